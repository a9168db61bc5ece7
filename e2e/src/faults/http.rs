//! A proxy for HTTP: counts writes, cuts the connection at one of them, and
//! answers in place of the server what a test tells it to.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::StreamExt;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::journal::{Journal, Point};

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

/// What happens to a request instead of being forwarded.
#[derive(Clone, Debug)]
pub enum Disturbance {
    /// This answer.
    Answer { status: StatusCode, headers: Vec<(&'static str, String)>, body: String },
    /// No answer, ever.
    Hang,
    /// The connection ends.
    Close,
    /// It is forwarded, and the answer ends after this long.
    End(Duration),
    /// It is forwarded, and each piece of the answer arrives this much later.
    Late(Duration),
}

impl Disturbance {
    /// An error as the API server words it.
    #[must_use]
    pub fn status(code: StatusCode, reason: &str, message: &str) -> Self {
        let body = serde_json::json!({"kind": "Status", "apiVersion": "v1", "status": "Failure",
            "code": code.as_u16(), "reason": reason, "message": message});
        Self::Answer { status: code, headers: Vec::new(), body: body.to_string() }
    }

    /// With one more header.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        if let Self::Answer { headers, .. } = &mut self {
            headers.push((name, value.into()));
        }
        self
    }
}

type Disturb = Arc<dyn Fn(&Seen) -> Option<Disturbance> + Send + Sync>;

/// How writes of one system are named in plans.
pub type Describe = fn(&Seen) -> Option<String>;
/// What a successful write brought about, if it counts.
pub type Effect = fn(&Seen, StatusCode) -> Option<String>;

struct Shared {
    upstream: Upstream,
    journal: Arc<Journal>,
    describe: Describe,
    effect: Effect,
    disturb: Mutex<Option<Disturb>>,
    seen: Mutex<Vec<Seen>>,
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
        (describe, effect): (Describe, Effect),
    ) -> Result<Self> {
        let listener = TcpListener::bind((ip, 0)).await.with_context(|| format!("no free port on {ip}"))?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream,
            journal,
            describe,
            effect,
            disturb: Mutex::default(),
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

    /// Forwards everything again.
    pub fn calm(&self) {
        *lock(&self.shared.disturb) = None;
    }

    /// The requests since the last call.
    #[must_use]
    pub fn take_seen(&self) -> Vec<Seen> {
        std::mem::take(&mut *lock(&self.shared.seen))
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
    let service = service_fn(move |request| answer(request, shared.clone()));
    let connection =
        hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    // It ends with an error whenever a plan cuts it.
    let _ = connection.await;
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
    lock(&shared.seen).push(seen.clone());
    let disturb = lock(&shared.disturb).clone();
    let mut late = None;
    let mut lifetime = None;
    match disturb.and_then(|disturb| disturb(&seen)) {
        Some(Disturbance::Answer { status, headers, body }) => return Ok(made(status, headers, body)),
        Some(Disturbance::Hang) => std::future::pending::<()>().await,
        Some(Disturbance::Close) => return Err(Cut::Plan),
        Some(Disturbance::End(after)) => lifetime = Some(after),
        Some(Disturbance::Late(by)) => late = Some(by),
        None => {}
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
        if answer.status().is_success()
            && let Some(effect) = (forwarding.effect)(&seen, answer.status())
        {
            forwarding.journal.effect(effect);
        }
        anyhow::Ok(answer)
    });
    let answer = forwarded.await.map_err(|error| Cut::Upstream(error.into()))?.map_err(Cut::Upstream)?;
    if let Some(point) = point {
        shared.journal.strike(point);
        return Err(Cut::Plan);
    }
    Ok(match (lifetime, late) {
        (Some(after), _) => answer.map(|body| shortened(body, after)),
        (None, Some(by)) => answer.map(|body| delayed(body, by)),
        (None, None) => answer,
    })
}

fn made(status: StatusCode, headers: Vec<(&'static str, String)>, body: String) -> Response<Body> {
    let body = Full::new(Bytes::from(body)).map_err(|never: Infallible| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    for (name, value) in headers {
        if let Ok(value) = value.parse() {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

fn shortened(body: Body, after: Duration) -> Body {
    let end = Box::pin(tokio::time::sleep(after));
    StreamBody::new(BodyStream::new(body).take_until(end)).boxed_unsync()
}

fn delayed(body: Body, by: Duration) -> Body {
    let pieces = BodyStream::new(body).then(move |piece| async move {
        tokio::time::sleep(by).await;
        piece
    });
    StreamBody::new(pieces.boxed()).boxed_unsync()
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
