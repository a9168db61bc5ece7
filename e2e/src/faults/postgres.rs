//! A PostgreSQL server of the distribution's programs, and what its catalog holds.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::unistd::{User, geteuid};
use tempfile::TempDir;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::names::stable;
use crate::{command, ports, stack, wait};

const BIN: &str = "/usr/lib/postgresql/15/bin";
const PATIENCE: Duration = Duration::from_secs(60);
/// The administrator that the operator is: no superuser.
pub const ADMIN: &str = "creator";
/// Where Keto keeps its tuples.
pub const KETO: &str = "keto";

/// Everything but the templates' own: databases with their privileges, roles
/// with their attributes and comments, memberships.
const CATALOG: &str = "
SELECT 'database ' || datname || ' of ' || pg_get_userbyid(datdba) || ' open ' || datallowconn
    || ' acl ' || coalesce((SELECT string_agg(item::text, ' ' ORDER BY item::text) FROM unnest(datacl) item), '')
    || ' comment ' || coalesce(shobj_description(oid, 'pg_database'), '')
  FROM pg_database WHERE NOT datistemplate
UNION ALL
SELECT 'role ' || rolname || ' super ' || rolsuper || ' inherit ' || rolinherit || ' createrole ' || rolcreaterole
    || ' createdb ' || rolcreatedb || ' login ' || rolcanlogin || ' limit ' || rolconnlimit
    || ' valid ' || coalesce(rolvaliduntil::text, '') || ' password ' || (rolpassword IS NOT NULL)
    || ' settings ' || coalesce((SELECT string_agg(setconfig::text, ' ' ORDER BY setconfig::text)
         FROM pg_db_role_setting WHERE setrole = pg_authid.oid), '')
    || ' comment ' || coalesce(shobj_description(oid, 'pg_authid'), '')
  FROM pg_authid WHERE rolname !~ '^pg_'
UNION ALL
SELECT 'member ' || pg_get_userbyid(member) || ' of ' || pg_get_userbyid(roleid) || ' admin ' || admin_option
  FROM pg_auth_members WHERE pg_get_userbyid(member) !~ '^pg_'
ORDER BY 1";

/// What a database holds of ours: schemas and default privileges.
const INSIDE: &str = "
SELECT 'schema ' || nspname || ' of ' || pg_get_userbyid(nspowner)
    || ' acl ' || coalesce((SELECT string_agg(item::text, ' ' ORDER BY item::text) FROM unnest(nspacl) item), '')
  FROM pg_namespace WHERE nspname !~ '^(pg_|information_schema)'
UNION ALL
SELECT 'default ' || pg_get_userbyid(defaclrole) || ' ' || defaclobjtype::text || ' '
    || coalesce((SELECT string_agg(item::text, ' ' ORDER BY item::text) FROM unnest(defaclacl) item), '')
  FROM pg_default_acl
ORDER BY 1";

/// A running server; stopped and removed when dropped.
pub struct Postgres {
    dir: TempDir,
    process: Child,
    port: u16,
    password: String,
    admin_password: String,
}

impl Postgres {
    /// Makes a cluster with an administrator and a database for Keto.
    ///
    /// # Errors
    /// When Debian's postgresql-15 is missing or the server does not start.
    pub async fn start() -> Result<Self> {
        ensure!(
            Path::new(BIN).join("initdb").exists(),
            "PostgreSQL 15 is missing: apt-get install --no-install-recommends postgresql-15"
        );
        let dir = tempfile::Builder::new().prefix("peristyle-pg-").tempdir()?;
        let password = stack::password()?;
        fs::write(dir.path().join("password"), &password)?;
        give_to_server_user(dir.path())?;
        let data = dir.path().join("data").display().to_string();
        let password_file = format!("--pwfile={}", dir.path().join("password").display());
        let mut initdb = tokio::process::Command::from(as_server_user("initdb"));
        initdb.args(["-D", &data, "--username=postgres", "--auth=scram-sha-256", "--no-sync", "--no-locale"]);
        command::output(initdb.args(["--encoding=UTF8", &password_file])).await?;
        let (server, client) = Self::serve(dir, password, stack::password()?).await?;
        let statements = format!(
            "CREATE ROLE {ADMIN} LOGIN CREATEROLE CREATEDB PASSWORD '{}'; CREATE ROLE {KETO} LOGIN PASSWORD '{}'",
            server.admin_password, server.admin_password
        );
        client.batch_execute(&statements).await?;
        client.batch_execute(&format!("CREATE DATABASE {KETO} OWNER {KETO}")).await?;
        Ok(server)
    }

    /// Starts a server that follows this one and takes no changes until it is promoted.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn standby(&self) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("peristyle-pg-").tempdir()?;
        fs::write(dir.path().join("password"), &self.password)?;
        give_to_server_user(dir.path())?;
        let data = dir.path().join("data").display().to_string();
        let mut copy = tokio::process::Command::from(as_server_user("pg_basebackup"));
        copy.env("PGPASSWORD", &self.password);
        copy.args(["-D", &data, "--host=127.0.0.1", "--port", &self.port.to_string()]);
        copy.args(["--username=postgres", "--no-password", "--checkpoint=fast", "--no-sync"]);
        // With what makes it a standby.
        command::output(copy.arg("--write-recovery-conf")).await?;
        let (server, _) = Self::serve(dir, self.password.clone(), self.admin_password.clone()).await?;
        Ok(server)
    }

    /// Serves the cluster below `dir`.
    async fn serve(dir: TempDir, password: String, admin_password: String) -> Result<(Self, Client)> {
        let data = dir.path().join("data").display().to_string();
        let [port] = ports::free()?;
        let log = fs::File::create(dir.path().join("log"))?;
        let process = as_server_user("postgres")
            .args(["-D", &data, "-c", "fsync=off", "-c", "listen_addresses=127.0.0.1"])
            .args(["-c", "unix_socket_directories=", "-c", &format!("port={port}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("cannot start PostgreSQL")?;
        let server = Self { dir, process, port, password, admin_password };
        let client = wait::until("PostgreSQL answers", PATIENCE, async || {
            server.client("postgres").await.with_context(|| command::tail(&server.dir.path().join("log")))
        })
        .await?;
        Ok((server, client))
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port))
    }

    /// Password of [`ADMIN`] and of [`KETO`].
    #[must_use]
    pub fn admin_password(&self) -> &str {
        &self.admin_password
    }

    /// A superuser's connection.
    ///
    /// # Errors
    /// When the server refuses it.
    pub async fn client(&self, database: &str) -> Result<Client> {
        self.login("postgres", &self.password, database).await
    }

    /// Anybody's connection.
    ///
    /// # Errors
    /// When the server refuses it.
    pub async fn login(&self, user: &str, password: &str, database: &str) -> Result<Client> {
        let mut config = tokio_postgres::Config::new();
        config.host("127.0.0.1").port(self.port).user(user).password(password).dbname(database);
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Databases, roles and memberships, one line each.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn catalog(&self) -> Result<Vec<String>> {
        lines(&self.client("postgres").await?, CATALOG).await
    }

    /// Schemas and default privileges of every database but Keto's, one line each.
    ///
    /// # Errors
    /// When the server does not answer.
    pub async fn contents(&self) -> Result<Vec<String>> {
        let query = "SELECT datname FROM pg_database WHERE NOT datistemplate AND datallowconn ORDER BY 1";
        let mut found = Vec::new();
        for database in lines(&self.client("postgres").await?, query).await? {
            if database == KETO {
                continue;
            }
            for line in lines(&self.client(&database).await?, INSIDE).await? {
                found.push(format!("{database}: {line}"));
            }
        }
        Ok(found)
    }
}

async fn lines(client: &Client, query: &str) -> Result<Vec<String>> {
    let messages = client.simple_query(query).await?;
    let rows = messages.into_iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(stable),
        _ => None,
    });
    Ok(rows.collect())
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // An immediate shutdown ends the server's own children as well.
        let stopped = Command::new("kill").args(["-QUIT", &self.process.id().to_string()]).status();
        if stopped.is_ok() {
            let _ = self.process.wait();
        }
    }
}

/// The server refuses to run as root.
fn as_server_user(program: &str) -> Command {
    let program = format!("{BIN}/{program}");
    if !geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", &program]);
    command
}

fn give_to_server_user(dir: &Path) -> Result<()> {
    if !geteuid().is_root() {
        return Ok(());
    }
    let user = User::from_name("postgres")?.context("there is no user postgres")?;
    for path in [dir.to_owned(), dir.join("password")] {
        chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))?;
    }
    Ok(())
}
