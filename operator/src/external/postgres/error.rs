//! What can go wrong with a server, without any SQL text.

use std::{error::Error as _, time::Duration};

use peristyle_crds::condition::{Reason, types};
use tokio_postgres::error::DbError;

use super::{Endpoint, Login, sqlstate};
use crate::{
    fence::NotLeading,
    retry::{Class, Classified},
    sql::plan::Obstacle,
};

/// SQLSTATEs of a server that starts or stops.
const STARTING: [&str; 3] = ["57P01", "57P02", "57P03"];
/// How many failures in a row leave a status that was good as it is.
const UNNOTICED: u32 = 1;
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
        /// How often in a row.
        failures: u32,
        /// When the next try is due; the same for all objects of the server.
        retry: Duration,
    },
    /// Passes over other objects use all connections to the server.
    #[error("waits for a connection to server {endpoint}, which other objects use")]
    Busy {
        /// Where.
        endpoint: Endpoint,
        /// When to try again.
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
    /// The name is taken, or what was made is gone.
    #[error(transparent)]
    Obstacle(#[from] Obstacle),
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
            STARTING.contains(&code) || (code == FULL && !names(text, &login.user) && !names(text, database))
        };
        match error.as_db_error() {
            Some(db) if !is_servers(db) => Self::Refused {
                endpoint: endpoint.clone(),
                user: login.user.clone(),
                refusal: Refusal { code: db.code().code().to_owned(), message: db.message().to_owned() },
            },
            _ => Self::unreachable(endpoint, cause(error)),
        }
    }

    /// Not counted yet.
    pub(super) fn unreachable(endpoint: &Endpoint, cause: String) -> Self {
        Self::Unreachable { endpoint: endpoint.clone(), cause, failures: 0, retry: Duration::ZERO }
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

    /// When to try again, of what one delay counts for all objects of the server,
    /// and whether it is so brief that what was said before may stand.
    #[must_use]
    pub fn later(&self) -> Option<(Duration, bool)> {
        match self {
            Self::Unreachable { retry, failures, .. } => Some((*retry, *failures <= UNNOTICED)),
            Self::Busy { retry, .. } => Some((*retry, true)),
            _ => None,
        }
    }

    /// Whether the server is well and did not do this one thing.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::NoEffect { .. } => true,
            // Read-only is the whole server, after a failover.
            Self::Statement { code: Some(code), .. } => code != "25006" && !sqlstate::is_of_the_server(code),
            _ => false,
        }
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
            Self::InUse { .. } | Self::Busy { .. } => Class::Wait,
            Self::Obstacle(_) | Self::OtherServer { .. } | Self::Authorities(_) => Class::Terminal,
            Self::NotConverged { .. } | Self::Catalog(_) => Class::Bug,
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::Obstacle(Obstacle::Conflict(_)) => Reason::DatabaseConflict,
            Self::Obstacle(Obstacle::Gone(_)) => Reason::DatabaseGone,
            Self::OtherServer { .. } | Self::Authorities(_) => Reason::Invalid,
            Self::InUse { .. } | Self::Busy { .. } => Reason::Progressing,
            // A lock, or an update by another at the same time: the server is well.
            Self::Statement { code: Some(code), .. } if code == "XX000" || sqlstate::is_of_others(code) => {
                Reason::Progressing
            }
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
            | Self::Busy { .. }
            | Self::Refused { .. }
            | Self::OtherServer { .. }
            | Self::Authorities(_) => types::SERVER_REACHABLE,
            _ => types::PROVISIONED,
        }
    }
}

/// Whether the server's words name `what`, which it quotes. Part of another word,
/// such as `role` in "too many connections for role", is no name.
pub(super) fn names(text: &str, what: &str) -> bool {
    text.contains(&format!("\"{what}\""))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_the_roles_or_the_databases_only_when_it_is_named() {
        let text = "too many connections for role \"shop_writer_a\"";
        assert!(names(text, "shop_writer_a"));
        for other in ["role", "shop", "connections", "writer_a"] {
            assert!(!names(text, other), "{other}");
        }
    }

    #[test]
    fn what_another_holds_is_no_fault_of_the_server() {
        for code in ["55P03", "40001", "40P01", "XX000"] {
            let error = Error::Statement { step: "x", code: Some(code.to_owned()), message: String::new() };
            assert_eq!((error.class(), error.reason()), (Class::Transient, Reason::Progressing), "{code}");
        }
    }
}
