//! A PostgreSQL server of the test's own, from the distribution's programs.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use peristyle::{
    external::postgres::{Endpoint, Login, Servers, Session, Target, Tls},
    sql::password::Password,
};
use tempfile::TempDir;

const BIN: &str = "/usr/lib/postgresql/15/bin";
const DEADLINE: Duration = Duration::from_secs(60);

/// A running server; stopped and removed when dropped.
pub struct Server {
    dir: TempDir,
    process: Child,
    port: u16,
    servers: Servers,
    superuser: Account,
    creator: Account,
}

/// Name and password of a role.
#[derive(Clone)]
pub struct Account {
    pub user: String,
    pub password: String,
}

impl Account {
    pub fn new(user: &str, password: &str) -> Self {
        Self { user: user.to_owned(), password: password.to_owned() }
    }

    fn generate(user: &str) -> Self {
        Self::new(user, Password::generate().expose())
    }

    fn login(&self) -> Login {
        Login { user: self.user.clone(), password: self.password.clone().into() }
    }
}

/// As whom the operator administers the server.
#[derive(Clone, Copy, Debug)]
pub enum Admin {
    Superuser,
    CreateRole,
}

pub const ADMINS: [Admin; 2] = [Admin::Superuser, Admin::CreateRole];

impl Server {
    pub async fn start() -> Self {
        assert!(
            Path::new(BIN).join("initdb").exists(),
            "PostgreSQL 15 is missing: apt-get install -y --no-install-recommends postgresql-15"
        );
        let dir = tempfile::tempdir().unwrap();
        let superuser = Account::generate("postgres");
        let creator = Account::generate("creator");
        fs::write(dir.path().join("password"), &superuser.password).unwrap();
        certificates(dir.path());
        give_to_server_user(dir.path());
        let data = dir.path().join("data");
        let initdb = as_server_user(&format!("{BIN}/initdb"))
            .arg("-D")
            .arg(&data)
            .args(["--username=postgres", "--auth=scram-sha-256", "--no-sync", "--no-locale"])
            .args(["--encoding=UTF8", "--pwfile"])
            .arg(dir.path().join("password"))
            .output()
            .unwrap();
        assert!(initdb.status.success(), "{}", String::from_utf8_lossy(&initdb.stderr));
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let process = run(dir.path(), port);
        let server = Self { dir, process, port, servers: Servers::default(), superuser, creator };
        let superuser = server.connect_when_up().await;
        superuser
            .batch_execute(&format!(
                "CREATE ROLE creator LOGIN CREATEROLE CREATEDB PASSWORD '{}'",
                server.creator.password
            ))
            .await
            .unwrap();
        server
    }

    /// Stops it as a crash does: connections are cut.
    pub fn stop(&mut self) {
        let stopped = Command::new("kill").args(["-QUIT", &self.process.id().to_string()]).status();
        if stopped.is_ok() {
            let _ = self.process.wait();
        }
    }

    /// Starts it again; ready when this returns.
    #[allow(dead_code, reason = "used by the tests of the controllers")]
    pub async fn resume(&mut self) {
        self.process = run(self.dir.path(), self.port);
        self.connect_when_up().await;
    }

    async fn connect_when_up(&self) -> tokio_postgres::Client {
        let end = Instant::now() + DEADLINE;
        loop {
            match self.client(&self.superuser, "postgres").await {
                Ok(client) => return client,
                Err(error) if Instant::now() > end => panic!("{error}: {}", self.log()),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }

    /// A session of the operator.
    pub async fn session(&self, admin: Admin) -> Session {
        self.session_with(admin, "127.0.0.1", Tls::Disabled).await
    }

    pub async fn session_with(&self, admin: Admin, host: &str, tls: Tls) -> Session {
        self.servers.session(self.target(admin, host, tls)).await.unwrap()
    }

    pub fn target(&self, admin: Admin, host: &str, tls: Tls) -> Target {
        Target {
            endpoint: self.endpoint(host),
            maintenance_database: "postgres".to_owned(),
            tls,
            admin: match admin {
                Admin::Superuser => self.superuser.login(),
                Admin::CreateRole => self.creator.login(),
            },
        }
    }

    pub fn endpoint(&self, host: &str) -> Endpoint {
        Endpoint { host: host.to_owned(), port: self.port }
    }

    /// The certificate that signed the server's.
    pub fn authorities(&self) -> String {
        fs::read_to_string(self.dir.path().join("ca.crt")).unwrap()
    }

    /// A connection as an application makes it: no pinned options.
    pub async fn client(
        &self,
        account: &Account,
        database: &str,
    ) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let (client, connection) = tokio_postgres::Config::new()
            .host("127.0.0.1")
            .port(self.port)
            .user(&account.user)
            .password(&account.password)
            .dbname(database)
            .connect(tokio_postgres::NoTls)
            .await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// The administrator without superuser rights.
    pub fn creator(&self) -> &Account {
        &self.creator
    }

    /// The superuser.
    #[allow(dead_code, reason = "used by the tests of the client")]
    pub fn superuser_account(&self) -> &Account {
        &self.superuser
    }

    pub async fn superuser(&self, database: &str) -> tokio_postgres::Client {
        self.client(&self.superuser, database).await.unwrap()
    }

    /// What the server wrote, every statement included.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Immediate shutdown: ends the server's own children as well.
        self.stop();
    }
}

fn run(dir: &Path, port: u16) -> Child {
    let log = fs::File::options().create(true).append(true).open(dir.join("log")).unwrap();
    as_server_user(&format!("{BIN}/postgres"))
        .arg("-D")
        .arg(dir.join("data"))
        .args(["-c", "fsync=off", "-c", "log_statement=all", "-c", "log_connections=on", "-c", "ssl=on"])
        .args(["-c", "listen_addresses=127.0.0.1", "-c", "unix_socket_directories="])
        .arg("-c")
        .arg(format!("port={port}"))
        .arg("-c")
        .arg(format!("ssl_cert_file={}", dir.join("server.crt").display()))
        .arg("-c")
        .arg(format!("ssl_key_file={}", dir.join("server.key").display()))
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|m| std::os::unix::fs::MetadataExt::uid(&m) == 0)
}

/// The server refuses to run as root.
fn as_server_user(program: &str) -> Command {
    if !is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups", program]);
    command
}

fn give_to_server_user(dir: &Path) {
    if !is_root() {
        return;
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|l| l.starts_with("postgres:")).unwrap();
    let ids: Vec<u32> = line.split(':').skip(2).take(2).map(|id| id.parse().unwrap()).collect();
    let mut paths: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
    paths.push(dir.to_owned());
    for path in paths {
        chown(path, Some(ids[0]), Some(ids[1])).unwrap();
    }
}

/// An authority, and a certificate by it for `localhost`.
fn certificates(dir: &Path) {
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).current_dir(dir).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    openssl(
        &[
            &["req", "-x509", "-days", "2", "-subj", "/CN=test authority"][..],
            &key[..],
            &["-keyout", "ca.key", "-out", "ca.crt"][..],
        ]
        .concat(),
    );
    openssl(
        &[
            &["req", "-subj", "/CN=localhost"][..],
            &key[..],
            &["-keyout", "server.key", "-out", "server.csr"][..],
        ]
        .concat(),
    );
    fs::write(dir.join("san"), "subjectAltName=DNS:localhost").unwrap();
    openssl(&[
        "x509",
        "-req",
        "-days",
        "2",
        "-in",
        "server.csr",
        "-CA",
        "ca.crt",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-extfile",
        "san",
        "-out",
        "server.crt",
    ]);
}
