//! PostgreSQL: one session at a time, every one with pinned options.

mod catalog;
mod error;
mod provision;
mod removal;
mod servers;
mod sqlstate;

pub use error::{Error, Refusal};
pub use provision::{Provisioned, check_login, open_login, provision, retire_login};
pub use removal::{Trash, drop_database, empty_trash, trash_database};
pub use servers::{Servers, Session};

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, pem::PemObject},
};
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_postgres::{AsyncMessage, Client, NoTls, Row, config::SslMode, types::ToSql};
use tokio_postgres_rustls::MakeRustlsConnect;
use tokio_util::task::AbortOnDropHandle;

use crate::{fence::Fence, retry::CALL_DEADLINE, sql::Statement};

/// Start-up options win over what a database's owner or a role's owner sets
/// with ALTER … SET: no tenant can make the administrator run its functions.
const PINNED: &str = "-c search_path=pg_catalog -c role=none -c local_preload_libraries= \
    -c default_transaction_read_only=off -c statement_timeout=60s -c lock_timeout=5s \
    -c idle_in_transaction_session_timeout=60s -c standard_conforming_strings=on \
    -c synchronous_commit=on -c row_security=off -c client_min_messages=warning";
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

/// One session; ends when dropped.
pub struct Connection {
    client: Client,
    ineffective: Arc<Mutex<Option<String>>>,
    driver: AbortOnDropHandle<()>,
    /// Statements run only while it is open; none in tools and tests.
    fence: Option<Fence>,
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
        if major >= 17 {
            options.push_str(PINNED_FROM_17);
        }
        config
            .host(&endpoint.host)
            .port(endpoint.port)
            .user(&login.user)
            .password(login.password.expose_secret())
            .dbname(database)
            .options(options)
            .application_name("peristyle");
        let connected = async {
            Ok(match tls {
                Tls::Disabled => {
                    let connecting = config.ssl_mode(SslMode::Disable).connect(NoTls).await;
                    let (client, connection) =
                        connecting.map_err(|e| Error::connect(endpoint, login, database, &e))?;
                    Self::drive(client, connection)
                }
                Tls::VerifyFull { authorities } => {
                    let tls = MakeRustlsConnect::new(client_config(authorities)?);
                    let connecting = config.ssl_mode(SslMode::Require).connect(tls).await;
                    let (client, connection) =
                        connecting.map_err(|e| Error::connect(endpoint, login, database, &e))?;
                    Self::drive(client, connection)
                }
            })
        };
        tokio::time::timeout(CALL_DEADLINE, connected)
            .await
            .unwrap_or_else(|_| Err(Error::no_answer(endpoint)))
    }

    /// Reads the connection until it ends and keeps what must not be missed:
    /// a GRANT or REVOKE without effect reports success and a warning.
    fn drive<S, T>(client: Client, mut connection: tokio_postgres::Connection<S, T>) -> Self
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let ineffective = Arc::new(Mutex::new(None));
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
        Self { client, ineffective, driver: AbortOnDropHandle::new(driver), fence: None }
    }

    /// Runs one message. After an error the connection must not be used again.
    ///
    /// # Errors
    /// [`Error::Statement`] with the SQLSTATE, and without one when this
    /// replica does not lead; [`Error::NoEffect`] when the server only warned
    /// that a grant did nothing.
    #[tracing::instrument(name = "call", skip_all, fields(otel.kind = "client", otel.name = statement.step(), peer.service = "postgresql"))]
    pub async fn execute(&self, statement: &Statement) -> Result<(), Error> {
        tracing::debug!(step = statement.step(), %statement, "executing");
        let _passage = match self.fence.as_ref().map(Fence::pass).transpose() {
            Ok(passage) => passage,
            Err(not_leading) => return Err(Error::not_sent(statement.step(), not_leading)),
        };
        let running = self.client.batch_execute(statement.expose());
        // What takes longer, such as the copy of a template, goes on at the server
        // and is found done, or begun, by the next pass.
        match tokio::time::timeout(CALL_DEADLINE, running).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(Error::statement(statement.step(), statement.is_secret(), &error)),
            Err(_) => return Err(Error::statement_timeout(statement.step())),
        }
        match self.ineffective.lock().unwrap_or_else(PoisonError::into_inner).take() {
            None => Ok(()),
            Some(message) => Err(Error::NoEffect { step: statement.step(), message }),
        }
    }

    /// Reads the catalog.
    ///
    /// # Errors
    /// [`Error::Statement`] with the SQLSTATE.
    #[tracing::instrument(name = "call", skip_all, fields(otel.kind = "client", otel.name = "read the catalog", peer.service = "postgresql"))]
    async fn query(&self, sql: &str, parameters: &[&(dyn ToSql + Sync)]) -> Result<Vec<Row>, Error> {
        const STEP: &str = "read the catalog";
        match tokio::time::timeout(CALL_DEADLINE, self.client.query(sql, parameters)).await {
            Ok(result) => result.map_err(|error| Error::statement(STEP, false, &error)),
            Err(_) => Err(Error::statement_timeout(STEP)),
        }
    }

    /// Says goodbye and waits until the server has heard it, so that the next
    /// connection does not find this one still counted.
    pub async fn close(self) {
        drop(self.client);
        // Late or broken: dropping the driver ends the connection all the same.
        drop(tokio::time::timeout(Duration::from_secs(2), self.driver).await);
    }
}

fn client_config(authorities: &str) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authorities.as_bytes()) {
        let certificate = certificate.map_err(|e| Error::Authorities(e.to_string()))?;
        roots.add(certificate).map_err(|e| Error::Authorities(e.to_string()))?;
    }
    if roots.is_empty() {
        return Err(Error::Authorities("no certificate in it".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::Authorities(e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
