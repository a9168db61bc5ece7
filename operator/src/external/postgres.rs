//! PostgreSQL: one session at a time, every one with pinned options.

mod catalog;
mod error;
mod link;
mod provision;
mod removal;
mod servers;
mod socket;
mod sqlstate;

pub use error::{Error, Refusal};
pub use provision::{Left, Provisioned, check_login, open_login, provision, retire_login};
pub use removal::{Trash, drop_database, empty_trash, trash_database};
pub use servers::{Servers, Session, Turn};

use std::sync::{Arc, Mutex, PoisonError};

use secrecy::{ExposeSecret, SecretString};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    runtime::Handle,
    sync::OwnedSemaphorePermit,
    task::JoinHandle,
};
use tokio_postgres::{AsyncMessage, Client, NoTls, Row, config::SslMode, types::ToSql};

use self::{
    link::{Interrupted, Link},
    servers::Server,
    socket::{dial, verified},
};
use crate::{fence::Fence, retry::CALL_DEADLINE, sql::Statement};

/// Start-up options win over what a database's owner or a role's owner sets
/// with ALTER … SET: no tenant can make the administrator run its functions.
const PINNED: &str = "-c search_path=pg_catalog -c role=none -c local_preload_libraries= \
    -c default_transaction_read_only=off -c statement_timeout=60s -c lock_timeout=5s \
    -c idle_in_transaction_session_timeout=60s -c standard_conforming_strings=on \
    -c synchronous_commit=on -c row_security=off -c client_min_messages=warning";
/// A statement ends with its client, also when that was killed. An older server
/// refuses a connection that sends it.
const PINNED_FROM_14: &str = " -c client_connection_check_interval=1s";
/// An older server refuses a connection that sends it.
const PINNED_FROM_17: &str = " -c transaction_timeout=0";

/// How connections are encrypted.
#[derive(Clone)]
pub enum Tls {
    /// Not at all.
    Disabled,
    /// With a certificate for the host's name by one of these authorities (PEM).
    VerifyFull {
        /// The authorities.
        authorities: String,
    },
}

/// Where to connect.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Endpoint {
    /// Host name or address.
    pub host: String,
    /// Port.
    pub port: u16,
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Who connects.
#[derive(Clone, Debug)]
pub struct Login {
    /// Name of the role.
    pub user: String,
    /// Its password.
    pub password: SecretString,
}

/// A server and its administrator.
#[derive(Clone)]
pub struct Target {
    /// Where the administrator connects; connections are counted under it.
    pub endpoint: Endpoint,
    /// Database to connect to first.
    pub maintenance_database: String,
    /// Encryption.
    pub tls: Tls,
    /// The administrator.
    pub admin: Login,
}

/// The last warning that a grant did nothing.
type Ineffective = Arc<Mutex<Option<String>>>;

/// One session. It ends when dropped, and with it the statement that it runs.
pub struct Connection {
    /// Always there, until the end.
    link: Option<Link>,
    ineffective: Ineffective,
    /// Statements run only while it is open; none in tools and tests.
    fence: Option<Fence>,
    /// Where failures are counted that concern all of the server.
    server: Option<Arc<Server>>,
}

impl Connection {
    /// Connects to `database` as `login`.
    ///
    /// # Errors
    /// [`Error::Refused`] when the server answers and does not let the login
    /// in, [`Error::Unreachable`] when it does not answer within 10 s.
    pub async fn open(
        endpoint: &Endpoint,
        tls: &Tls,
        login: &Login,
        database: &str,
        major: i32,
    ) -> Result<Self, Error> {
        let mut config = tokio_postgres::Config::new();
        let mut options = PINNED.to_owned();
        for (from, more) in [(14, PINNED_FROM_14), (17, PINNED_FROM_17)] {
            if major >= from {
                options.push_str(more);
            }
        }
        config
            .host(&endpoint.host)
            .port(endpoint.port)
            .user(&login.user)
            .password(login.password.expose_secret())
            .dbname(database)
            .options(options)
            .application_name("peristyle");
        let refused = |error| Error::connect(endpoint, login, database, &error);
        let connected = async {
            let (stream, ear) =
                dial(endpoint).await.map_err(|error| Error::unreachable(endpoint, error.to_string()))?;
            let (client, driver, ineffective) = match tls {
                Tls::Disabled => {
                    let connecting = config.ssl_mode(SslMode::Disable).connect_raw(stream, NoTls);
                    drive(connecting.await.map_err(refused)?)
                }
                Tls::VerifyFull { authorities } => {
                    let connector = verified(authorities, &endpoint.host)?;
                    let connecting = config.ssl_mode(SslMode::Require).connect_raw(stream, connector);
                    drive(connecting.await.map_err(refused)?)
                }
            };
            let (endpoint, tls) = (endpoint.clone(), tls.clone());
            let link = Link { client, driver, ear, endpoint, tls, permit: None, running: Mutex::default() };
            Ok(Self { link: Some(link), ineffective, fence: None, server: None })
        };
        tokio::time::timeout(CALL_DEADLINE, connected)
            .await
            .unwrap_or_else(|_| Err(Error::unreachable(endpoint, "no answer within 10 s".to_owned())))
    }

    /// Binds it to what counts for its server: its connections, its failures,
    /// and whether anything may be written.
    fn count(&mut self, server: &Arc<Server>, permit: &Arc<OwnedSemaphorePermit>) {
        self.fence.clone_from(&server.fence);
        self.server = Some(server.clone());
        if let Some(link) = &mut self.link {
            link.permit = Some(permit.clone());
        }
    }

    /// Runs one message. After an error in a transaction only `ROLLBACK` may follow.
    ///
    /// # Errors
    /// [`Error::Statement`] with the SQLSTATE, and without one when this
    /// replica does not lead; [`Error::Unreachable`] when the whole server
    /// failed; [`Error::NoEffect`] when the server only warned that a grant did
    /// nothing.
    #[tracing::instrument(name = "call", skip_all, fields(otel.kind = "client", otel.name = statement.step(), peer.service = "postgresql"))]
    pub async fn execute(&self, statement: &Statement) -> Result<(), Error> {
        tracing::debug!(step = statement.step(), %statement, "executing");
        drop(self.ineffective());
        let link = self.link()?;
        let call = link.client.batch_execute(statement.expose());
        let done = link.run(self.fence.as_ref(), statement.patience(), call).await;
        done.map_err(|why| self.failure(statement.step(), statement.is_secret(), &why))?;
        match self.ineffective() {
            None => Ok(()),
            Some(message) => Err(Error::NoEffect { step: statement.step(), message }),
        }
    }

    /// Reads the catalog.
    ///
    /// # Errors
    /// As [`Connection::execute`].
    #[tracing::instrument(name = "call", skip_all, fields(otel.kind = "client", otel.name = "read the catalog", peer.service = "postgresql"))]
    async fn query(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        let link = self.link()?;
        let rows = link.run(None, CALL_DEADLINE, link.client.query(sql, parameters)).await;
        rows.map_err(|why| self.failure("read the catalog", false, &why))
    }

    fn link(&self) -> Result<&Link, Error> {
        self.link.as_ref().ok_or_else(|| Error::Catalog("the connection has ended".to_owned()))
    }

    /// The last warning that a grant did nothing, once.
    fn ineffective(&self) -> Option<String> {
        self.ineffective.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn failure(&self, step: &'static str, is_secret: bool, why: &Interrupted) -> Error {
        let (error, is_servers) = match why {
            Interrupted::NotLeading(cause) => (Error::not_sent(step, *cause), false),
            Interrupted::Late => (Error::statement_timeout(step), true),
            Interrupted::Failed(cause) => {
                let is_servers = cause.code().is_none_or(|code| sqlstate::is_of_the_server(code.code()));
                (Error::statement(step, is_secret, cause), is_servers)
            }
        };
        match &self.server {
            Some(server) if is_servers => server.fail(error.to_string()),
            _ => error,
        }
    }

    /// Ends it and waits until the server has let go of it, so that the next
    /// connection does not find this one still counted.
    pub async fn close(mut self) {
        if let Some(link) = self.link.take() {
            // A task: it goes on to its end also when nobody waits any more.
            drop(tokio::spawn(link.end()).await);
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let (Some(link), Ok(runtime)) = (self.link.take(), Handle::try_current()) {
            runtime.spawn(link.end());
        }
    }
}

/// Reads the connection until it ends and keeps what must not be missed:
/// a GRANT or REVOKE without effect reports success and a warning.
fn drive<S, T>(
    (client, mut connection): (Client, tokio_postgres::Connection<S, T>),
) -> (Client, JoinHandle<()>, Ineffective)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let ineffective = Ineffective::default();
    let seen = ineffective.clone();
    let driver = tokio::spawn(async move {
        // An error reaches the caller through the client as well.
        while let Some(Ok(message)) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            if let AsyncMessage::Notice(notice) = message
                && matches!(notice.code().code(), "01006" | "01007")
            {
                *seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(notice.message().to_owned());
            }
        }
    });
    (client, driver, ineffective)
}
