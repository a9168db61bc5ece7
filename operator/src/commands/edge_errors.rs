//! `peristyle edge-errors`: answers for the edge where the workload does not.
//!
//! Traefik's `errors` middleware sends `/grpc/<status>` with the headers of the
//! refused call; fences send the call itself. Nothing of a request is logged:
//! it carries the caller's credentials.

use std::net::SocketAddr;

use axum::{
    Router,
    body::Body,
    extract::{Path, Request},
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
    routing::{any, get},
};
use clap::Args;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
};

/// Settings of `peristyle edge-errors`.
#[derive(Args, Clone, Debug)]
pub struct EdgeErrors {
    /// Address to listen on, for HTTP/1.1 and HTTP/2 without TLS.
    #[arg(long, env = "PERISTYLE_EDGE_ERRORS_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
}

/// Serves until SIGTERM, then lets running requests end.
///
/// # Errors
/// When the address cannot be bound or the server fails.
pub async fn run(settings: EdgeErrors) -> anyhow::Result<()> {
    let address = settings.listen;
    let listener = TcpListener::bind(address)
        .await
        .map_err(|error| anyhow::anyhow!("--listen {address}: {error}; choose another address or port"))?;
    let mut terminate = signal(SignalKind::terminate())?;
    axum::serve(listener, router())
        .with_graceful_shutdown(async move {
            terminate.recv().await;
        })
        .await?;
    Ok(())
}

/// What is served.
pub fn router() -> Router {
    Router::new().route("/healthz", get(healthz)).route("/grpc/{status}", any(refused)).fallback(fence)
}

/// A probe is answered, a client that came through the edge is not: no
/// withheld host may answer anything with 200.
async fn healthz(request: Request) -> Response<Body> {
    if request.headers().contains_key("x-forwarded-host") {
        return fence(request).await;
    }
    Response::new(Body::from("ok"))
}

async fn refused(Path(status): Path<String>, request: Request) -> Response<Body> {
    match status.parse().ok().filter(|status| (400..600).contains(status)) {
        Some(status) if is_grpc(request.headers()) => grpc(refusal(status)),
        _ => fence(request).await,
    }
}

async fn fence(request: Request) -> Response<Body> {
    if is_grpc(request.headers()) {
        return grpc((Code::Unavailable, "route unavailable"));
    }
    let mut response = Response::new(Body::from("route unavailable\n"));
    *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// gRPC status codes that the edge gives.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Code {
    Unknown = 2,
    DeadlineExceeded = 4,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

/// What an HTTP status of the edge or of the decision service means to a
/// gRPC client. 500 comes from the decision service, 502 to 504 from the
/// workload; 404 means that the decision service has not loaded the rules.
const fn refusal(status: u16) -> (Code, &'static str) {
    match status {
        400 => (Code::Internal, "bad request"),
        401 => (Code::Unauthenticated, "authentication required"),
        403 => (Code::PermissionDenied, "permission denied"),
        404 => (Code::Unavailable, "rules not loaded"),
        408 => (Code::DeadlineExceeded, "request timed out"),
        413 => (Code::ResourceExhausted, "message too large"),
        429 => (Code::ResourceExhausted, "too many requests"),
        500 => (Code::Unavailable, "authorization unavailable"),
        501..=599 => (Code::Unavailable, "service unavailable"),
        _ => (Code::Unknown, "refused by the edge"),
    }
}

/// Whether a gRPC answer is one that the edge gives in place of the workload.
#[must_use]
pub fn is_refusal(status: &str, message: &str) -> bool {
    (400..600).map(refusal).any(|(code, words)| words == message && (code as u8).to_string() == status)
}

/// The same test as the edge's: a gRPC call, and not gRPC-Web.
fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get_all(header::CONTENT_TYPE).iter().any(|value| {
        value
            .as_bytes()
            .strip_prefix(b"application/grpc")
            .is_some_and(|rest| matches!(rest.first(), None | Some(b'+' | b';')))
    })
}

/// A response of headers alone, which is how gRPC ends a call at once.
fn grpc((code, message): (Code, &'static str)) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    response.headers_mut().extend([
        (header::CONTENT_TYPE, HeaderValue::from_static("application/grpc")),
        (header::HeaderName::from_static("grpc-status"), HeaderValue::from(code as u16)),
        (header::HeaderName::from_static("grpc-message"), HeaderValue::from_static(message)),
    ]);
    response
}
