//! A PostgreSQL server of the test's own, from Debian's package.
//!
//! A shell watches over the server: when its standard input closes, because
//! the test stopped the server, ended or was killed, the server goes too.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    str::FromStr,
    time::{Duration, Instant},
};

use nix::unistd::{Uid, User, chown};
use sqlx::{AssertSqlSafe, Connection, Executor, PgConnection, postgres::PgConnectOptions};
use tempfile::TempDir;

const BIN: &str = "/usr/lib/postgresql/15/bin";
const ACCOUNT: &str = "postgres";
const WATCH: &str = r#""$0" -D "$1" -k "$2" -c listen_addresses= -c fsync=off >"$2/log" 2>&1 &
server=$!
read -r _
kill -QUIT "$server"
wait "$server""#;

/// A server that listens on a socket in its own directory.
pub struct Postgres {
    directory: TempDir,
    watcher: Option<Child>,
}

/// The URIs of one database, as the operator hands them out.
pub struct Provisioned {
    /// For migrations: owns the schema `app`.
    pub owner: String,
    /// For the service: reads and writes rows, changes no table.
    pub writer: String,
    /// Superuser, for the test's own look at the rows.
    pub admin: String,
}

impl Postgres {
    /// Creates and starts a server.
    ///
    /// # Panics
    /// When PostgreSQL is not installed or does not start.
    pub async fn start() -> Self {
        assert!(
            Path::new(BIN).join("postgres").exists(),
            "the tests need PostgreSQL 15: apt-get install -y --no-install-recommends postgresql-15"
        );
        // Not the default place: the path of a socket has at most 107 bytes.
        let directory = tempfile::Builder::new().prefix("pg").tempdir_in("/tmp").unwrap();
        if Uid::effective().is_root() {
            let account = User::from_name(ACCOUNT).unwrap().unwrap();
            chown(directory.path(), Some(account.uid), Some(account.gid)).unwrap();
        }
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut initdb = command(&Path::new(BIN).join("initdb"));
        initdb.args(["-U", ACCOUNT, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-D"]);
        let output = initdb.arg(directory.path().join("data")).output().unwrap();
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        let mut server = Self { directory, watcher: None };
        server.resume().await;
        server
    }

    /// Stops the server at once; every connection breaks.
    ///
    /// # Panics
    /// When it does not end.
    pub fn stop(&mut self) {
        if let Some(mut watcher) = self.watcher.take() {
            drop(watcher.stdin.take());
            watcher.wait().unwrap();
        }
    }

    /// Starts the server again after [`Postgres::stop`].
    ///
    /// # Panics
    /// When it does not answer within 20 seconds.
    pub async fn resume(&mut self) {
        let mut watcher = command(Path::new("/bin/sh"));
        watcher.arg("-c").arg(WATCH).arg(format!("{BIN}/postgres"));
        watcher.arg(self.directory.path().join("data")).arg(self.directory.path());
        self.watcher = Some(watcher.stdin(Stdio::piped()).spawn().unwrap());
        let give_up = Instant::now() + Duration::from_secs(20);
        while let Err(error) = self.connect("postgres").await {
            let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            assert!(Instant::now() < give_up, "PostgreSQL does not answer: {error}\n{log}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A database with the roles, schema and privileges that the operator
    /// gives one.
    ///
    /// # Panics
    /// When it cannot be created.
    pub async fn provision(&self, name: &str) -> Provisioned {
        let mut admin = self.connect("postgres").await.unwrap();
        for statement in [
            format!("create role {name}_o nologin"),
            format!("create role {name}_owner login noinherit in role {name}_o"),
            format!("create role {name}_writer login"),
            format!("create database {name} template template0"),
            format!("alter role {name}_owner in database {name} set role = {name}_o"),
            format!("alter role {name}_owner in database {name} set search_path = app"),
            format!("alter role {name}_writer in database {name} set search_path = app"),
        ] {
            admin.execute(AssertSqlSafe(statement)).await.unwrap();
        }
        let mut inside = self.connect(name).await.unwrap();
        let grants = format!(
            "revoke all on schema public from public;
             create schema app authorization {name}_o;
             grant usage on schema app to {name}_writer;
             alter default privileges for role {name}_o in schema app
               grant select, insert, update, delete on tables to {name}_writer;"
        );
        sqlx::raw_sql(AssertSqlSafe(grants)).execute(&mut inside).await.unwrap();
        Provisioned {
            owner: self.uri(&format!("{name}_owner"), name),
            writer: self.uri(&format!("{name}_writer"), name),
            admin: self.uri(ACCOUNT, name),
        }
    }

    async fn connect(&self, database: &str) -> Result<PgConnection, sqlx::Error> {
        let options = PgConnectOptions::from_str(&self.uri(ACCOUNT, database)).unwrap();
        PgConnection::connect_with(&options).await
    }

    fn uri(&self, user: &str, database: &str) -> String {
        let socket: PathBuf = self.directory.path().into();
        format!("postgres://{user}@localhost/{database}?host={}&sslmode=disable", socket.display())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A command that runs as an account PostgreSQL accepts: never root.
fn command(program: &Path) -> Command {
    if !Uid::effective().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command
        .arg(format!("--reuid={ACCOUNT}"))
        .arg(format!("--regid={ACCOUNT}"))
        .arg("--clear-groups")
        .arg("--");
    command.arg(program).current_dir("/");
    command
}
