//! What happens to a request or to its answer.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{Response, StatusCode, header};
use http_body_util::{BodyExt, BodyStream, Full, StreamBody};
use tokio::sync::watch;

use super::Body;

/// What happens to a request instead of only being forwarded.
#[derive(Clone, Debug)]
pub enum Disturbance {
    /// This answer; it is not forwarded.
    Answer { status: StatusCode, headers: Vec<(&'static str, String)>, body: String },
    /// No answer, ever; it is not forwarded.
    Hang,
    /// The connection ends; it is not forwarded.
    Close,
    /// It is forwarded and done, and nobody hears so: the connection stays, silent.
    Swallow,
    /// It is forwarded, and the answer ends after this long.
    End(Duration),
    /// It is forwarded, and each piece of the answer arrives this much later.
    Late(Duration),
    /// It is forwarded, and no piece of the answer arrives while this is true.
    Hold(watch::Receiver<bool>),
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

    /// The answer as it arrives.
    pub(super) fn applied_to(self, body: Body) -> Body {
        match self {
            Self::End(after) => {
                let end = Box::pin(tokio::time::sleep(after));
                StreamBody::new(BodyStream::new(body).take_until(end)).boxed_unsync()
            }
            Self::Late(by) => {
                let pieces = BodyStream::new(body).then(move |piece| async move {
                    tokio::time::sleep(by).await;
                    piece
                });
                StreamBody::new(pieces.boxed()).boxed_unsync()
            }
            Self::Hold(held) => {
                let pieces = BodyStream::new(body).then(move |piece| {
                    let mut held = held.clone();
                    async move {
                        // Whoever held it is gone: nobody would ever release it.
                        let _ = held.wait_for(|held| !held).await;
                        piece
                    }
                });
                StreamBody::new(pieces.boxed()).boxed_unsync()
            }
            Self::Answer { .. } | Self::Hang | Self::Close | Self::Swallow => body,
        }
    }
}

pub(super) fn made(status: StatusCode, headers: Vec<(&'static str, String)>, body: String) -> Response<Body> {
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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;

    use super::super::super::{journal::Journal, names, operator::Operator};
    use super::super::{HttpProxy, Upstream};
    use super::*;

    /// What a test waits for something that must not come.
    const A_WHILE: Duration = Duration::from_millis(300);

    async fn proxy(behind: &str, http: &reqwest::Client) -> HttpProxy {
        let journal = Arc::new(Journal::new(Arc::new(Operator::never_started())));
        let upstream = Upstream::Plain { address: behind.to_owned(), client: http.clone() };
        let named = (names::keto_write as _, names::no_effects as _);
        HttpProxy::start(Ipv4Addr::LOCALHOST.into(), upstream, journal, named).await.unwrap()
    }

    /// A proxy and the server behind it, which answers everything.
    async fn pair(http: &reqwest::Client) -> (HttpProxy, HttpProxy) {
        let server = proxy("", http).await;
        server.disturb(|_| Some(Disturbance::status(StatusCode::OK, "", "done")));
        server.collect();
        (proxy(&server.address().to_string(), http).await, server)
    }

    #[tokio::test]
    async fn what_is_held_arrives_when_it_is_released() {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let (proxy, _server) = pair(&http).await;
        let (is_held, receiver) = watch::channel(true);
        proxy.disturb(move |_| Some(Disturbance::Hold(receiver.clone())));
        let answer = http.get(format!("http://{}/", proxy.address())).send().await.unwrap();
        let mut text = Box::pin(answer.text());
        assert!(tokio::time::timeout(A_WHILE, &mut text).await.is_err(), "it was not held");
        is_held.send_replace(false);
        assert!(text.await.unwrap().contains("done"));
    }

    #[tokio::test]
    async fn what_is_under_way_ends_with_its_connection() {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let (proxy, _server) = pair(&http).await;
        let (_held, receiver) = watch::channel(true);
        proxy.disturb(move |_| Some(Disturbance::Hold(receiver.clone())));
        let answer = http.get(format!("http://{}/", proxy.address())).send().await.unwrap();
        proxy.cut();
        assert!(answer.text().await.is_err(), "the answer came to its end");
    }

    #[tokio::test]
    async fn who_is_swallowed_was_heard_and_whoever_hangs_was_not() {
        let http = reqwest::Client::builder().no_proxy().timeout(A_WHILE).build().unwrap();
        for (disturbance, heard) in [(Disturbance::Swallow, 1), (Disturbance::Hang, 0)] {
            let (proxy, server) = pair(&http).await;
            proxy.disturb(move |_| Some(disturbance.clone()));
            let error = http.patch(format!("http://{}/", proxy.address())).send().await.unwrap_err();
            assert!(error.is_timeout(), "{error}");
            assert_eq!(server.take_seen().len(), heard);
        }
    }
}
