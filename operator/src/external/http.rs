//! The HTTP client of all calls to other systems.

use std::time::Duration;

use reqwest::{Client, Method, Response, StatusCode, redirect::Policy};

use crate::{fence::NotLeading, retry::CALL_DEADLINE};

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No answer within the deadline, or the connection failed.
    #[error("{method} {url}: {cause}")]
    Call {
        /// Method.
        method: Method,
        /// Address, without credentials: none is ever put there.
        url: String,
        /// The innermost cause; the client's own text repeats the address.
        cause: String,
        /// All causes.
        #[source]
        source: reqwest::Error,
    },
    /// An answer that was not expected.
    #[error("{method} {url}: answered {status}: {body}")]
    Status {
        /// Method.
        method: Method,
        /// Address.
        url: String,
        /// Status.
        status: StatusCode,
        /// The beginning of the body.
        body: String,
    },
    /// The configured address is no URL.
    #[error("{url:?} is no URL: {source}")]
    Url {
        /// What is configured.
        url: String,
        /// Why not.
        #[source]
        source: url::ParseError,
    },
    /// The write was not sent.
    #[error(transparent)]
    NotLeading(#[from] NotLeading),
}

/// A client with deadlines that follows no redirect and uses no proxy.
///
/// An image without certificates still speaks plain HTTP; `https` then fails
/// where it is used.
///
/// # Errors
/// When TLS cannot be set up at all.
pub fn client() -> reqwest::Result<Client> {
    let builder = || {
        Client::builder()
            .no_proxy()
            .redirect(Policy::none())
            .connect_timeout(Duration::from_secs(3))
            .timeout(CALL_DEADLINE)
    };
    builder().build().or_else(|_| builder().tls_certs_only([]).build())
}

/// Turns a failed call into an [`Error`].
#[must_use]
pub fn failed(method: &Method, url: &str, source: reqwest::Error) -> Error {
    let mut cause: &dyn std::error::Error = &source;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    Error::Call { method: method.clone(), url: url.to_owned(), cause: cause.to_string(), source }
}

/// Turns an answer that was not expected into an [`Error`].
pub async fn unexpected(method: &Method, url: &str, answer: Response) -> Error {
    let status = answer.status();
    let body: String = answer.text().await.unwrap_or_default().chars().take(200).collect();
    Error::Status { method: method.clone(), url: url.to_owned(), status, body }
}
