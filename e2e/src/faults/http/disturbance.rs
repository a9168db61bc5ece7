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
