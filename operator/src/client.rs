//! The client of the API server: a deadline on every call, no hidden
//! repetition, and no write by a replica that does not lead.

use std::time::Duration;

use http::{Method, Request, Response, StatusCode, header::RETRY_AFTER};
use kube::{Client, Config, client::Body};
use tower::BoxError;
use tracing::{Instrument, field::Empty};

use crate::{fence::Fence, retry::CALL_DEADLINE};

/// Longest that a server may ask to wait.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A connection on which nothing arrives for this long is dead: the API server
/// ends a watch after 290 s.
const SILENCE: Duration = Duration::from_secs(300);

/// Why a call has no answer that could be used.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    /// No answer in time. How much time there was differs from write to write
    /// and is not told: the text stands in conditions.
    #[error("the API server did not answer in time")]
    Deadline,
    /// The server has too much to do and says when to come back.
    #[error("the API server answered {status} and asks to wait")]
    Throttled {
        /// 429 or 503.
        status: StatusCode,
        /// How long; at most a minute, whatever it says.
        after: Duration,
    },
    /// The write was not sent.
    #[error(transparent)]
    NotLeading(#[from] crate::fence::NotLeading),
}

/// A client that sends each request once: a failed one is repeated by the pass
/// that needs it, in its own time, and not for minutes inside of one call.
///
/// # Errors
/// When `config` has credentials that cannot be used.
pub fn from_config(mut config: Config) -> kube::Result<Client> {
    config.default_retry = false;
    config.read_timeout = Some(SILENCE);
    Client::try_from(config)
}

/// `inner` with a deadline for every answer and with writes let through by `fence`.
#[must_use]
pub fn fenced(inner: Client, fence: Fence) -> Client {
    with_deadline(CALL_DEADLINE, inner, fence)
}

fn with_deadline(deadline: Duration, inner: Client, fence: Fence) -> Client {
    let namespace = inner.default_namespace().to_owned();
    let call = move |request: Request<Body>| {
        let (inner, fence) = (inner.clone(), fence.clone());
        async move { call(deadline, &inner, &fence, request).await }
    };
    Client::new(tower::service_fn(call), namespace)
}

async fn call(
    deadline: Duration,
    inner: &Client,
    fence: &Fence,
    request: Request<Body>,
) -> Result<Response<Body>, BoxError> {
    let is_read = matches!(*request.method(), Method::GET | Method::HEAD);
    let passage = if is_read { None } else { Some(fence.pass().map_err(Error::NotLeading)?) };
    let limit = passage.as_ref().map_or(deadline, |passage| passage.left.min(deadline));
    let span = tracing::info_span!(
        "call",
        otel.kind = "client",
        otel.name = format!("{} {}", request.method(), request.uri().path()),
        peer.service = "kube-apiserver",
        http.response.status_code = Empty,
        otel.status_code = Empty,
    );
    let sent = tokio::time::timeout(limit, inner.send(request)).instrument(span.clone()).await;
    let answer = match sent {
        Ok(Ok(answer)) => answer,
        failed => {
            span.record("otel.status_code", "ERROR");
            return Err(match failed {
                Ok(Err(error)) => error.into(),
                _ => Error::Deadline.into(),
            });
        }
    };
    span.record("http.response.status_code", answer.status().as_u16());
    if let Some(after) = pause(&answer) {
        return Err(Error::Throttled { status: answer.status(), after }.into());
    }
    Ok(answer)
}

/// How long the server asks to wait.
fn pause<B>(answer: &Response<B>) -> Option<Duration> {
    if !matches!(answer.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        return None;
    }
    let seconds = answer.headers().get(RETRY_AFTER)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_secs(seconds).min(LONGEST_PAUSE))
}

/// How long the server asked to wait, if `error` is because of that.
#[must_use]
pub fn pause_asked_by(error: &(dyn std::error::Error + 'static)) -> Option<Duration> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(Error::Throttled { after, .. }) = error.downcast_ref() {
            return Some(*after);
        }
        next = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Instant};

    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::{Api, ResourceExt, api::PostParams};
    use tokio::sync::Mutex;

    use super::*;
    use crate::{
        apply,
        retry::{Class, Classified},
    };

    /// A server that answers every request with `answer` and keeps what it was asked.
    fn server(
        answer: impl Fn() -> Response<Body> + Send + Sync + 'static,
    ) -> (Client, Fence, Arc<Mutex<Vec<Method>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let answer = Arc::new(answer);
        let service = {
            let asked = asked.clone();
            tower::service_fn(move |request: Request<Body>| {
                let (asked, answer) = (asked.clone(), answer.clone());
                async move {
                    asked.lock().await.push(request.method().clone());
                    Ok::<_, BoxError>(answer())
                }
            })
        };
        let fence = Fence::new(Duration::from_secs(5));
        (fenced(Client::new(service, "default"), fence.clone()), fence, asked)
    }

    fn found() -> Response<Body> {
        Response::new(Body::from(br#"{"metadata":{"name":"a"}}"#.to_vec()))
    }

    #[tokio::test]
    async fn a_replica_that_does_not_lead_reads_and_sends_no_write() {
        let (client, fence, asked) = server(found);
        let api: Api<ConfigMap> = Api::default_namespaced(client);
        assert_eq!(api.get("a").await.unwrap().name_any(), "a");
        let error = api.create(&PostParams::default(), &ConfigMap::default()).await.unwrap_err();
        assert!(error.to_string().contains("does not hold the Lease"), "{error}");
        assert_eq!(*asked.lock().await, [Method::GET], "a write was sent");

        fence.open_until(Instant::now() + Duration::from_secs(60));
        api.create(&PostParams::default(), &ConfigMap::default()).await.unwrap();
        assert_eq!(*asked.lock().await, [Method::GET, Method::POST]);
    }

    #[tokio::test]
    async fn a_server_that_accepts_and_never_answers_is_given_up_on() {
        let silent = tower::service_fn(|_: Request<Body>| {
            std::future::pending::<Result<Response<Body>, std::convert::Infallible>>()
        });
        let inner = Client::new(silent, "default");
        let client = with_deadline(Duration::from_millis(10), inner, Fence::new(Duration::ZERO));
        let error = Api::<ConfigMap>::default_namespaced(client).get("a").await.unwrap_err();
        assert!(error.to_string().contains("did not answer in time"), "{error}");
    }

    #[tokio::test]
    async fn a_pause_that_the_server_asks_for_is_kept_to_a_minute_and_sent_once() {
        for (asked_for, expected) in [("1", 1), ("30", 30), ("86400", 60)] {
            let (client, _, asked) = server(move || {
                Response::builder().status(429).header("Retry-After", asked_for).body(Body::empty()).unwrap()
            });
            let error = Api::<ConfigMap>::default_namespaced(client).get("a").await.unwrap_err();
            let error = apply::Error::Request {
                verb: "get",
                kind: "ConfigMap".to_owned(),
                name: "a".to_owned(),
                source: Box::new(error),
            };
            assert_eq!(pause_asked_by(&error), Some(Duration::from_secs(expected)), "{error}");
            assert_eq!(error.class(), Class::Transient);
            assert_eq!(asked.lock().await.len(), 1, "the client repeated it by itself");
        }
    }
}
