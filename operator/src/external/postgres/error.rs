//! What can go wrong with a server, without any SQL text.

use std::{error::Error as _, time::Duration};

use peristyle_crds::condition::{Reason, types};
use tokio_postgres::error::DbError;

use super::{Endpoint, Login, sqlstate};
use crate::{
    fence::NotLeading,
    retry::{Class, Classified},
    sql::plan::Conflict,
};

/// SQLSTATEs of a server that starts or stops.
const STARTING: [&str; 3] = ["57P01", "57P02", "57P03"];
/// SQLSTATE of too many connections: of the server, of a database or of a role.
const FULL: &str = "53300";

/// Why the server refused a login.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Refusal {
    /// SQLSTATE.
    pub code: String,
    /// The server's words.
    pub message: String,
}

/// A failure with a server.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers there, or not yet.
    #[error("server {endpoint} does not answer: {cause}")]
    Unreachable {
        /// Where.
        endpoint: Endpoint,
        /// Why.
        cause: String,
        /// When the next try is due; the same for all objects of the server.
        retry: Duration,
    },
    /// The server answered and refused the login.
    #[error("server {endpoint} refuses {user:?}: {} (SQLSTATE {})", refusal.message, refusal.code)]
    Refused {
        /// Where.
        endpoint: Endpoint,
        /// Who.
        user: String,
        /// Why.
        refusal: Refusal,
    },
    /// A statement failed.
    #[error("failed to {step}: {message}{}", code.as_ref().map(|c| format!(" (SQLSTATE {c})")).unwrap_or_default())]
    Statement {
        /// What was tried.
        step: &'static str,
        /// SQLSTATE, if the server answered.
        code: Option<String>,
        /// The server's words, or why there are none.
        message: String,
    },
    /// A grant was accepted and did nothing.
    #[error("failed to {step}: {message}; the administrator lacks the right to grant")]
    NoEffect {
        /// What was tried.
        step: &'static str,
        /// The warning.
        message: String,
    },
    /// Everything was accepted and the catalog still differs.
    #[error("the server accepted how to {step}, but its catalog does not show it")]
    NotConverged {
        /// The first step that would be repeated.
        step: &'static str,
    },
    /// Somebody changed it and it cannot be changed back.
    #[error("{0}; the server accepted how to undo it, but its catalog does not show it")]
    StillDiffers(String),
    /// Another server answers at the address.
    #[error(
        "the server has system identifier {found}, the database was created on {expected}; point the DatabaseClass at the right server"
    )]
    OtherServer {
        /// As bound.
        expected: String,
        /// As found.
        found: String,
    },
    /// The name is taken.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// Something keeps roles or the database in use.
    #[error("failed to {step}: {by}")]
    InUse {
        /// What was tried.
        step: &'static str,
        /// By whom.
        by: String,
    },
    /// `ca.crt` is not a list of certificates.
    #[error("ca.crt of tls.caConfigMap cannot be used: {0}")]
    Authorities(String),
    /// The catalog has something that it cannot have.
    #[error("the catalog cannot be read: {0}")]
    Catalog(String),
}

impl Error {
    pub(super) fn connect(
        endpoint: &Endpoint,
        login: &Login,
        database: &str,
        error: &tokio_postgres::Error,
    ) -> Self {
        // A limit of the role or of the database is named, one of the server is nobody's.
        let is_servers = |db: &DbError| {
            let (code, text) = (db.code().code(), db.message());
            STARTING.contains(&code)
                || (code == FULL && !text.contains(&login.user) && !text.contains(database))
        };
        match error.as_db_error() {
            Some(db) if !is_servers(db) => Self::Refused {
                endpoint: endpoint.clone(),
                user: login.user.clone(),
                refusal: Refusal { code: db.code().code().to_owned(), message: db.message().to_owned() },
            },
            _ => Self::Unreachable { endpoint: endpoint.clone(), cause: cause(error), retry: Duration::ZERO },
        }
    }

    pub(super) fn no_answer(endpoint: &Endpoint) -> Self {
        Self::Unreachable {
            endpoint: endpoint.clone(),
            cause: "no answer within 10 s".to_owned(),
            retry: Duration::ZERO,
        }
    }

    /// `is_secret`: the server's words could quote the statement, so they are left out.
    pub(super) fn statement(step: &'static str, is_secret: bool, error: &tokio_postgres::Error) -> Self {
        let message = if is_secret && error.as_db_error().is_some() {
            "refused by the server".to_owned()
        } else {
            cause(error)
        };
        Self::Statement { step, code: error.code().map(|code| code.code().to_owned()), message }
    }

    pub(super) fn statement_timeout(step: &'static str) -> Self {
        Self::Statement { step, code: None, message: "the server took too long".to_owned() }
    }

    pub(super) fn not_sent(step: &'static str, cause: NotLeading) -> Self {
        Self::Statement { step, code: None, message: cause.to_string() }
    }

    /// SQLSTATE of a failed statement.
    #[must_use]
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Statement { code, .. } => code.as_deref(),
            Self::Refused { refusal, .. } => Some(&refusal.code),
            _ => None,
        }
    }
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            Self::Unreachable { .. } => Class::Transient,
            Self::Refused { refusal, .. } => sqlstate::class(&refusal.code),
            Self::NoEffect { .. } => Class::Forbidden,
            Self::Statement { code, .. } => code.as_deref().map_or(Class::Transient, sqlstate::class),
            Self::InUse { .. } => Class::Wait,
            Self::Conflict(_) | Self::OtherServer { .. } | Self::Authorities(_) => Class::Terminal,
            Self::NotConverged { .. } | Self::StillDiffers(_) | Self::Catalog(_) => Class::Bug,
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::Conflict(_) => Reason::DatabaseConflict,
            Self::OtherServer { .. } | Self::Authorities(_) => Reason::Invalid,
            Self::InUse { .. } => Reason::Progressing,
            _ => match self.class() {
                Class::Forbidden => Reason::InsufficientPrivileges,
                Class::Conflict => Reason::Progressing,
                Class::Bug => Reason::InternalError,
                _ => Reason::ServerUnreachable,
            },
        }
    }

    fn condition(&self) -> &'static str {
        match self {
            Self::Unreachable { .. }
            | Self::Refused { .. }
            | Self::OtherServer { .. }
            | Self::Authorities(_) => types::SERVER_REACHABLE,
            _ => types::PROVISIONED,
        }
    }
}

/// The innermost cause: the outer texts say only "db error" or "error connecting".
fn cause(error: &tokio_postgres::Error) -> String {
    if let Some(db) = error.as_db_error() {
        return db.message().to_owned();
    }
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    if error.source().is_none() {
        return error.to_string();
    }
    inner.to_string()
}
