//! Deadlines: taken from `grpc-timeout`, kept, and handed on.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode};
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until, timeout_at};
use tonic::Status;

/// When the answer must be complete; an extension of every request.
#[derive(Clone, Copy, Debug)]
pub struct Deadline(Instant);

impl Deadline {
    /// In this much time from now.
    #[must_use]
    pub fn after(time: Duration) -> Self {
        Self(Instant::now() + time)
    }

    /// The time left, at most `limit`.
    #[must_use]
    pub fn remaining(self, limit: Duration) -> Duration {
        self.0.saturating_duration_since(Instant::now()).min(limit)
    }
}

/// Reads a `grpc-timeout`: up to eight digits and a unit, as the gRPC
/// protocol over HTTP/2 defines it.
///
/// # Errors
/// `INVALID_ARGUMENT` when the header is malformed.
pub fn grpc_timeout(headers: &HeaderMap) -> Result<Option<Duration>, Status> {
    let Some(value) = headers.get("grpc-timeout") else {
        return Ok(None);
    };
    let malformed =
        || Status::invalid_argument("grpc-timeout is malformed: expected digits and a unit, as in 200m");
    value.to_str().ok().and_then(parse).map(Some).ok_or_else(malformed)
}

fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_hours(number)),
        "M" => Some(Duration::from_mins(number)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

/// Ends a call with `DEADLINE_EXCEEDED` when its time is up. `longest` bounds
/// the time to the first byte for callers that set no deadline; a stream may
/// then go on.
pub(crate) async fn enforce(State(longest): State<Duration>, mut request: Request, next: Next) -> Response {
    let asked = match grpc_timeout(request.headers()) {
        Ok(asked) => asked,
        Err(status) => return status.into_http(),
    };
    let now = Instant::now();
    let answer_by = now + asked.map_or(longest, |asked| asked.min(longest));
    let stream_until = asked.map(|asked| now + asked);
    request.extensions_mut().insert(Deadline(stream_until.unwrap_or(answer_by)));
    match timeout_at(answer_by, next.run(request)).await {
        Err(_) => exceeded().into_http(),
        Ok(response) => match stream_until {
            None => response,
            Some(end) => response
                .map(|inner| Body::new(TimedBody { inner, timer: Box::pin(sleep_until(end)), over: false })),
        },
    }
}

/// Ends a request over HTTP with 503 when no answer has begun within `longest`.
pub(crate) async fn enforce_over_http(
    State(longest): State<Duration>,
    mut request: Request,
    next: Next,
) -> Response {
    let deadline = Deadline::after(longest);
    request.extensions_mut().insert(deadline);
    match timeout_at(deadline.0, next.run(request)).await {
        Ok(response) => response,
        Err(_) => (StatusCode::SERVICE_UNAVAILABLE, "no answer in time").into_response(),
    }
}

fn exceeded() -> Status {
    Status::deadline_exceeded("the deadline passed before the answer was complete")
}

/// A response body that ends with `DEADLINE_EXCEEDED` at the deadline.
struct TimedBody {
    inner: Body,
    timer: Pin<Box<Sleep>>,
    over: bool,
}

impl HttpBody for TimedBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        self.timer.as_mut().poll(cx).map(|()| {
            self.over = true;
            let mut trailers = HeaderMap::new();
            if exceeded().add_header(&mut trailers).is_err() {
                trailers.insert("grpc-status", HeaderValue::from_static("4"));
            }
            Some(Ok(Frame::trailers(trailers)))
        })
    }

    fn is_end_stream(&self) -> bool {
        self.over || self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("2S", Some(Duration::from_secs(2)))]
    #[case("200m", Some(Duration::from_millis(200)))]
    #[case("99999999H", Some(Duration::from_hours(99_999_999)))]
    #[case("1u", Some(Duration::from_micros(1)))]
    #[case("", None)]
    #[case("S", None)]
    #[case("+1S", None)]
    #[case("100000000S", None)]
    #[case("1s", None)]
    fn timeouts_follow_the_protocol(#[case] text: &str, #[case] expected: Option<Duration>) {
        assert_eq!(parse(text), expected);
    }

    #[test]
    fn an_outgoing_call_gets_the_smaller_of_limit_and_rest() {
        let soon = Deadline::after(Duration::from_millis(50));
        assert!(soon.remaining(Duration::from_secs(2)) <= Duration::from_millis(50));
        let late = Deadline::after(Duration::from_mins(1));
        assert_eq!(late.remaining(Duration::from_secs(2)), Duration::from_secs(2));
    }

    proptest! {
        #[test]
        fn any_header_is_read_or_refused_without_a_panic(text in ".*") {
            let _ = parse(&text);
        }
    }
}
