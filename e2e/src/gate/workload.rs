//! Servers of the test in place of workloads: they let everyone in and keep
//! what reached them.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::StreamBody;
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::decisions::head;

/// Begins what came through a connection after it was handed over to the workload.
pub const SMUGGLED: &str = "smuggled: ";
/// The one protocol for which the edge may hand a connection over.
const WEBSOCKET: &str = "websocket";
/// An empty message of gRPC: not compressed, no bytes.
const EMPTY_MESSAGE: [u8; 5] = [0; 5];

/// Heads of requests that a workload got.
#[derive(Clone, Debug, Default)]
pub struct Reached(Arc<Mutex<Vec<String>>>);

impl Reached {
    /// All heads since the last look.
    #[must_use]
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, head: String) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(head);
    }
}

/// Answers 200 with what `body` makes of the head of each request.
pub fn answer(listener: TcpListener, body: impl Fn(&str) -> String + Clone + Send + Sync + 'static) {
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let body = body.clone();
            tokio::spawn(async move {
                let Ok(head) = head(&mut stream).await else { return };
                // A client that is gone needs no answer.
                drop(write(&mut stream, &body(&head)).await);
            });
        }
    });
}

/// A workload over HTTP/1.1 that shows each request its own head. Whoever asks
/// it for WebSocket gets that, and whoever asks for any other protocol gets that
/// too, without what a careful server would ask for.
pub(super) fn http(listener: TcpListener, reached: Reached) {
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let reached = reached.clone();
            tokio::spawn(async move {
                let Ok(head) = head(&mut stream).await else { return };
                reached.add(head.clone());
                let done = match wanted(&head) {
                    Some(protocol) => hand_over(&mut stream, &protocol, &reached).await,
                    None => write(&mut stream, &head).await,
                };
                drop(done);
            });
        }
    });
}

/// The protocol that a request asks for, as it writes it.
fn wanted(head: &str) -> Option<String> {
    let value = |header: &str| {
        let mut lines = head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(name, _)| name.eq_ignore_ascii_case(header)).map(|(_, value)| value.trim().to_owned())
    };
    let protocol = value("upgrade")?;
    // RFC 6455, 4.2.1: no handshake without the key.
    (!protocol.eq_ignore_ascii_case(WEBSOCKET) || value("sec-websocket-key").is_some()).then_some(protocol)
}

async fn write(stream: &mut TcpStream, body: &str) -> Result<()> {
    let head = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length:";
    Ok(stream.write_all(format!("{head} {}\r\n\r\n{body}", body.len()).as_bytes()).await?)
}

async fn hand_over(stream: &mut TcpStream, protocol: &str, reached: &Reached) -> Result<()> {
    let head = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade:";
    stream.write_all(format!("{head} {protocol}\r\n\r\n").as_bytes()).await?;
    let mut chunk = [0; 4096];
    let count = stream.read(&mut chunk).await?;
    if protocol.eq_ignore_ascii_case(WEBSOCKET) {
        stream.write_all(&chunk[..count]).await?;
    } else if count > 0 {
        reached.add(format!("{SMUGGLED}{}", String::from_utf8_lossy(&chunk[..count]).escape_debug()));
    }
    Ok(())
}

/// A workload that answers every gRPC call with an empty message.
pub(super) fn grpc(listener: TcpListener, reached: Reached) {
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let reached = reached.clone();
            let served = service_fn(move |request| {
                reached.add(shown(&request));
                async { Ok::<_, Infallible>(greeting()) }
            });
            let connection =
                http2::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), served);
            tokio::spawn(connection);
        }
    });
}

/// The head as HTTP/1.1 would write it.
fn shown(request: &Request<Incoming>) -> String {
    let line = |(name, value): (&http::HeaderName, &HeaderValue)| {
        format!("{name}: {}\r\n", String::from_utf8_lossy(value.as_bytes()))
    };
    let lines: String = request.headers().iter().map(line).collect();
    format!("{} {} HTTP/2.0\r\n{lines}", request.method(), request.uri())
}

type Frames = stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>;

fn greeting() -> Response<StreamBody<Frames>> {
    let trailers =
        HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from_static("0"))]);
    let frames = vec![Ok(Frame::data(Bytes::from_static(&EMPTY_MESSAGE))), Ok(Frame::trailers(trailers))];
    let mut response = Response::new(StreamBody::new(stream::iter(frames)));
    let grpc = HeaderValue::from_static("application/grpc");
    response.headers_mut().insert(http::header::CONTENT_TYPE, grpc);
    response
}
