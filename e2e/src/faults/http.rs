//! A proxy for HTTP: counts writes, cuts the connection at one of them, and
//! answers in place of the server what a test tells it to.

pub mod disturbance;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, JoinSet};

use self::disturbance::{Disturbance, made};
use super::journal::{Effect, Journal, Point};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Where requests go.
pub enum Upstream {
    /// The API server, with the rights of this client.
    Kubernetes(kube::Client),
    /// A plain HTTP server at `host:port`.
    Plain { address: String, client: reqwest::Client },
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    /// Path and query.
    pub path: String,
    pub body: Bytes,
}

impl Seen {
    /// Whether it opens a watch.
    #[must_use]
    pub fn is_watch(&self) -> bool {
        self.path.contains("watch=true") || self.path.contains("watch=1")
    }

    /// Whether it keeps a Lease: what no plan counts and no quiet forbids.
    #[must_use]
    pub fn is_lease(&self) -> bool {
        self.path.contains("/leases/") || self.path.contains("/leases?") || self.path.ends_with("/leases")
    }

    /// Whether it changes something.
    #[must_use]
    pub fn is_write(&self) -> bool {
        matches!(self.method, Method::PATCH | Method::PUT | Method::DELETE)
            || self.method == Method::POST && !self.path.contains("/opl/syntax/check")
    }
}

type Disturb = Arc<dyn Fn(&Seen) -> Option<Disturbance> + Send + Sync>;

/// How writes of one system are named in plans.
pub type Describe = fn(&Seen) -> Option<String>;
/// What a successful write brought about, as far as it counts.
pub type Effects = fn(&Seen, StatusCode) -> Vec<Effect>;

struct Shared {
    upstream: Upstream,
    journal: Arc<Journal>,
    describe: Describe,
    effects: Effects,
    disturb: Mutex<Option<Disturb>>,
    /// Ends the connections that are open.
    cut: Notify,
    /// Requests since somebody began to collect them.
    seen: Mutex<Option<Vec<Seen>>>,
}

/// A proxy; ends when dropped.
pub struct HttpProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for HttpProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl HttpProxy {
    /// Listens on a free port of `ip`.
    ///
    /// # Errors
    /// When there is none.
    pub async fn start(
        ip: std::net::IpAddr,
        upstream: Upstream,
        journal: Arc<Journal>,
        (describe, effects): (Describe, Effects),
    ) -> Result<Self> {
        let listener = TcpListener::bind((ip, 0)).await.with_context(|| format!("no free port on {ip}"))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream,
            journal,
            describe,
            effects,
            disturb: Mutex::default(),
            cut: Notify::new(),
            seen: Mutex::default(),
        });
        let task = tokio::spawn(accept(listener, shared.clone()));
        Ok(Self { address, shared, task })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// From now on, asks `disturb` what happens to each request; `None` forwards it.
    pub fn disturb(&self, disturb: impl Fn(&Seen) -> Option<Disturbance> + Send + Sync + 'static) {
        *lock(&self.shared.disturb) = Some(Arc::new(disturb));
    }

    /// Ends every connection that is open, with the answers that are under way.
    pub fn cut(&self) {
        self.shared.cut.notify_waiters();
    }

    /// Forwards everything again and collects nothing.
    pub fn calm(&self) {
        *lock(&self.shared.disturb) = None;
        *lock(&self.shared.seen) = None;
    }

    /// Collects requests from now on, until [`Self::calm`].
    pub fn collect(&self) {
        *lock(&self.shared.seen) = Some(Vec::new());
    }

    /// The requests that were collected since the last call.
    #[must_use]
    pub fn take_seen(&self) -> Vec<Seen> {
        lock(&self.shared.seen).as_mut().map(std::mem::take).unwrap_or_default()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Dropping the set ends every connection.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                connections.spawn(serve(stream, shared.clone()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    // Small answers must not wait for each other.
    let _ = stream.set_nodelay(true);
    let answering = shared.clone();
    let service = service_fn(move |request| answer(request, answering.clone()));
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        // It ends with an error whenever a plan cuts it.
        _ = connection => {}
        () = shared.cut.notified() => {}
    }
}

/// Ends the connection without an answer.
#[derive(Debug, thiserror::Error)]
enum Cut {
    #[error("cut by the plan")]
    Plan,
    #[error("the server behind did not answer: {0}")]
    Upstream(anyhow::Error),
}

async fn answer(request: Request<Incoming>, shared: Arc<Shared>) -> Result<Response<Body>, Cut> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map_err(|error| Cut::Upstream(error.into()))?.to_bytes();
    let path = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str).to_owned();
    let seen = Seen { method: parts.method.clone(), path, body };
    if let Some(collected) = lock(&shared.seen).as_mut() {
        collected.push(seen.clone());
    }
    let disturb = lock(&shared.disturb).clone();
    let disturbance = disturb.and_then(|disturb| disturb(&seen));
    match disturbance {
        Some(Disturbance::Answer { status, headers, body }) => return Ok(made(status, headers, body)),
        Some(Disturbance::Hang) => std::future::pending::<()>().await,
        Some(Disturbance::Close) => return Err(Cut::Plan),
        _ => {}
    }
    let what = seen.is_write().then(|| (shared.describe)(&seen)).flatten();
    let point = what.and_then(|what| shared.journal.write(what));
    if let Some(point @ Point::Before) = point {
        shared.journal.strike(point);
        return Err(Cut::Plan);
    }
    // A task of its own: what has been sent is done, even when the operator
    // that asked is killed meanwhile.
    let forwarding = shared.clone();
    let forwarded = tokio::spawn(async move {
        let answer = forward(&forwarding.upstream, &parts, &seen).await?;
        if answer.status().is_success() {
            for effect in (forwarding.effects)(&seen, answer.status()) {
                forwarding.journal.effect(effect);
            }
        }
        anyhow::Ok(answer)
    });
    let answer = forwarded.await.map_err(|error| Cut::Upstream(error.into()))?.map_err(Cut::Upstream)?;
    if let Some(point) = point {
        shared.journal.strike(point);
        return Err(Cut::Plan);
    }
    if matches!(disturbance, Some(Disturbance::Swallow)) {
        std::future::pending::<()>().await;
    }
    Ok(match disturbance {
        Some(disturbance) => answer.map(|body| disturbance.applied_to(body)),
        None => answer,
    })
}

async fn forward(upstream: &Upstream, parts: &http::request::Parts, seen: &Seen) -> Result<Response<Body>> {
    let mut headers = parts.headers.clone();
    for own in [header::HOST, header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING] {
        headers.remove(own);
    }
    let (mut parts, body) = match upstream {
        Upstream::Kubernetes(client) => {
            let mut request = Request::new(kube::client::Body::from(seen.body.clone()));
            *request.method_mut() = seen.method.clone();
            *request.uri_mut() = seen.path.parse()?;
            *request.headers_mut() = headers;
            let (parts, body) = client.send(request).await?.into_parts();
            (parts, body.map_err(BoxError::from).boxed_unsync())
        }
        Upstream::Plain { address, client } => {
            let url = format!("http://{address}{}", seen.path);
            let request = client.request(seen.method.clone(), url).headers(headers).body(seen.body.clone());
            let (parts, body) = Response::from(request.send().await?).into_parts();
            (parts, body.map_err(BoxError::from).boxed_unsync())
        }
    };
    for own in [header::CONNECTION, header::TRANSFER_ENCODING] {
        parts.headers.remove(own);
    }
    let body = BodyStream::new(body).filter_map(async |frame: Result<Frame<Bytes>, BoxError>| {
        // Trailers mean nothing in HTTP/1.
        frame.map(|frame| frame.into_data().ok().map(Frame::data)).transpose()
    });
    Ok(Response::from_parts(parts, StreamBody::new(body.boxed()).boxed_unsync()))
}
