//! W3C trace context: taken from a request, handed to the next.

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    Context,
    propagation::{Extractor, Injector, TextMapPropagator},
    trace::TraceContextExt,
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
            self.0.insert(name, value);
        }
    }
}

/// The caller's context; a missing or malformed `traceparent` starts a trace.
#[must_use]
pub fn extract(headers: &HeaderMap) -> Context {
    TraceContextPropagator::new().extract_with_context(&Context::new(), &Headers(headers))
}

/// Writes the current span into the headers of an outgoing request.
pub fn inject(headers: &mut HeaderMap) {
    TraceContextPropagator::new().inject_context(&Span::current().context(), &mut HeadersMut(headers));
}

/// The trace a span belongs to: 32 hexadecimal digits, all zero when no
/// telemetry is installed.
#[must_use]
pub fn trace_id(span: &Span) -> String {
    span.context().span().span_context().trace_id().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    /// What leaves when a request with this `traceparent` is served.
    fn served(traceparent: Option<&str>) -> (String, String) {
        let (subscriber, _provider) =
            telemetry::subscriber(&telemetry::Settings::default(), std::io::sink).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            let mut incoming = HeaderMap::new();
            if let Some(value) = traceparent {
                incoming.insert("traceparent", value.parse().unwrap());
            }
            let span = tracing::info_span!("rpc");
            span.set_parent(extract(&incoming)).unwrap();
            let mut outgoing = HeaderMap::new();
            span.in_scope(|| inject(&mut outgoing));
            (trace_id(&span), outgoing["traceparent"].to_str().unwrap().to_owned())
        })
    }

    #[test]
    fn the_trace_goes_on_under_a_new_span() {
        let (trace, outgoing) = served(Some(PARENT));
        assert_eq!(trace, "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(outgoing.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"));
        assert!(!outgoing.contains("00f067aa0ba902b7"));
    }

    #[test]
    fn without_a_valid_parent_a_trace_starts() {
        for parent in
            [None, Some("00-nonsense"), Some("00-00000000000000000000000000000000-00f067aa0ba902b7-01")]
        {
            let (trace, outgoing) = served(parent);
            assert_ne!(trace, "0".repeat(32));
            assert!(outgoing.contains(&trace), "{outgoing} carries {trace}");
        }
    }
}
