//! Logs: one JSON object a line on standard output. Traces: over OTLP where an
//! endpoint is set, one span for each pass over an object and for each call.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use opentelemetry::{propagation::TextMapPropagator, trace::TracerProvider as _};
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{EnvFilter, Layer, filter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// Environment variable with the address of an OTLP collector (gRPC).
const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
/// Annotation on objects: the trace of whoever changed them, as W3C `traceparent`.
pub const TRACEPARENT: &str = "peristyle.dev/traceparent";

/// Sends what is left of the traces when it is dropped.
#[must_use = "traces end when this is dropped"]
#[derive(Debug)]
pub struct Telemetry(Option<SdkTracerProvider>);

impl Drop for Telemetry {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.as_ref().map(SdkTracerProvider::shutdown) {
            tracing::warn!(%error, "the last traces are lost");
        }
    }
}

/// Starts logging with `filter`, for example `info,peristyle=debug`, and
/// tracing if the environment names a collector.
///
/// # Errors
/// When the filter or the collector's address does not parse, or logging was
/// started before.
pub fn start(filter: &str) -> anyhow::Result<Telemetry> {
    let filter = EnvFilter::try_new(filter).map_err(|e| {
        anyhow::anyhow!("--log {filter:?}: {e}; write for example info or info,peristyle=debug")
    })?;
    // The client logs the text of every statement, verifiers of passwords included.
    let filter = filter.add_directive("tokio_postgres=warn".parse()?);
    let log = fmt::layer().json().flatten_event(true).with_span_list(false).with_filter(filter);
    let provider = match std::env::var(ENDPOINT) {
        Ok(endpoint) if !endpoint.is_empty() => Some(provider(&endpoint)?),
        _ => None,
    };
    let spans = provider.as_ref().map(|provider| {
        let ours = filter::Targets::new().with_target("peristyle", tracing::Level::INFO);
        tracing_opentelemetry::layer().with_tracer(provider.tracer("peristyle")).with_filter(ours)
    });
    tracing_subscriber::registry().with(log).with(spans).try_init()?;
    Ok(Telemetry(provider))
}

fn provider(endpoint: &str) -> anyhow::Result<SdkTracerProvider> {
    let exporter = opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint).build();
    let exporter = exporter.map_err(|e| {
        anyhow::anyhow!("{ENDPOINT}={endpoint:?}: {e}; write for example http://collector:4317")
    })?;
    let name = std::env::var("OTEL_SERVICE_NAME").unwrap_or_else(|_| "peristyle".to_owned());
    let resource = Resource::builder().with_service_name(name).build();
    Ok(SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build())
}

/// The span of one pass over an object; goes on with the trace that its
/// annotation names.
#[must_use]
pub fn pass_span(kind: &str, object: &str, meta: &ObjectMeta) -> Span {
    let span = tracing::info_span!("pass", otel.name = format!("reconcile {kind}"), object);
    if let Some(parent) = traceparent(meta) {
        let carrier = [("traceparent".to_owned(), parent.to_owned())].into();
        let carrier: std::collections::HashMap<String, String> = carrier;
        // Without a collector nobody records spans, and that is no failure.
        drop(span.set_parent(TraceContextPropagator::new().extract(&carrier)));
    }
    span
}

/// The trace that an object's annotation names, if it is one.
#[must_use]
pub fn traceparent(meta: &ObjectMeta) -> Option<&str> {
    let text = meta.annotations.as_ref()?.get(TRACEPARENT)?;
    let lengths = text.split('-').map(str::len);
    let is_hex = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-'));
    (is_hex && lengths.eq([2, 32, 16, 2])).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotated(value: &str) -> ObjectMeta {
        let annotations = [(TRACEPARENT.to_owned(), value.to_owned())].into();
        ObjectMeta { annotations: Some(annotations), ..ObjectMeta::default() }
    }

    #[test]
    fn only_a_well_formed_traceparent_is_carried() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(traceparent(&annotated(good)), Some(good));
        for bad in ["", "00-x", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\n", "00-4BF9-00-01"]
        {
            assert_eq!(traceparent(&annotated(bad)), None, "{bad:?}");
        }
        assert_eq!(traceparent(&ObjectMeta::default()), None);
    }
}
