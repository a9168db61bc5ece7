//! Sees every request from its first byte to the last: span, metrics and
//! exactly one line in the access log, whatever ends it.

use std::{
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll},
    time::Instant,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use http::HeaderMap;
use hyper::body::{Frame, SizeHint};
use tonic::{Code, Status};
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::{
    access_log::{self, Outcome, Policy},
    metrics::Metrics,
    server::Peer,
    trace_context,
};

/// Who calls: set once the token is verified; an extension of every request.
#[derive(Clone, Debug, Default)]
pub struct Subject(Arc<OnceLock<String>>);

impl Subject {
    pub(crate) fn set(&self, subject: &str) {
        // The first verified name stands.
        let _ = self.0.set(subject.to_owned());
    }

    /// The subject, or an empty string while nobody vouches for one.
    #[must_use]
    pub fn get(&self) -> &str {
        self.0.get().map_or("", String::as_str)
    }
}

/// What the middleware needs for every request of one listener.
#[derive(Clone)]
pub(crate) struct Observer {
    pub(crate) metrics: Metrics,
    pub(crate) policy: Policy,
    /// Whether the listener speaks gRPC; otherwise plain HTTP.
    pub(crate) grpc: bool,
    /// Whether `X-User` names the subject: only without a token layer, when
    /// the edge is all there is to trust.
    pub(crate) trust_x_user: bool,
}

pub(crate) async fn observe(State(observer): State<Observer>, mut request: Request, next: Next) -> Response {
    let mut call = Call::start(observer, &request);
    request.extensions_mut().insert(call.subject.clone());
    let response = next.run(request).instrument(call.span.clone()).await;
    call.outcome = if call.observer.grpc {
        grpc_outcome(response.headers())
    } else {
        Some(Outcome::Http(response.status().as_u16()))
    };
    response.map(|inner| Body::new(ObservedBody { inner, call }))
}

/// One request. Dropping it is its end, so that a caller who goes away is
/// logged like any other.
struct Call {
    observer: Observer,
    path: String,
    peer: String,
    subject: Subject,
    span: Span,
    trace_id: String,
    started: Instant,
    outcome: Option<Outcome>,
}

impl Call {
    fn start(observer: Observer, request: &Request) -> Self {
        let path = request.uri().path();
        let path = if observer.grpc { path.to_owned() } else { format!("{} {path}", request.method()) };
        let span = tracing::info_span!(
            "rpc",
            otel.name = %path,
            otel.kind = "server",
            method = %path,
            trace_id = tracing::field::Empty
        );
        // Fails only when no telemetry is installed.
        let _ = span.set_parent(trace_context::extract(request.headers()));
        let trace_id = trace_context::trace_id(&span);
        span.record("trace_id", &trace_id);
        let subject = Subject::default();
        if observer.trust_x_user
            && let Some(user) = request.headers().get("x-user").and_then(|value| value.to_str().ok())
        {
            subject.set(user);
        }
        observer.metrics.started(observer.grpc, &path);
        let peer = request.extensions().get::<Peer>().map(|Peer(peer)| peer.to_string()).unwrap_or_default();
        Self { observer, path, peer, subject, span, trace_id, started: Instant::now(), outcome: None }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let elapsed = self.started.elapsed();
        let outcome = self.outcome.unwrap_or(if self.observer.grpc {
            Outcome::Grpc(Code::Cancelled)
        } else {
            // nginx' status for a client that closed the connection.
            Outcome::Http(499)
        });
        self.observer.metrics.handled(&self.path, outcome, elapsed);
        if self.observer.policy.logs(&self.path, outcome, elapsed) {
            tracing::info!(
                target: access_log::TARGET,
                parent: None,
                method = self.path,
                code = outcome.name(),
                ms = elapsed.as_secs_f64() * 1000.0,
                peer = self.peer,
                subject = self.subject.get(),
                trace_id = self.trace_id,
                "request"
            );
        }
    }
}

/// The response's body, which ends the call with its trailers.
struct ObservedBody {
    inner: Body,
    call: Call,
}

impl HttpBody for ObservedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let span = self.call.span.clone();
        let frame = span.in_scope(|| Pin::new(&mut self.inner).poll_frame(cx));
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(trailers) = frame.trailers_ref()
        {
            self.call.outcome = grpc_outcome(trailers).or(self.call.outcome);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

fn grpc_outcome(headers: &HeaderMap) -> Option<Outcome> {
    Status::from_header_map(headers).map(|status| Outcome::Grpc(status.code()))
}
