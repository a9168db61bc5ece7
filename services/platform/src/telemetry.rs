//! Logs as JSON lines and spans for OpenTelemetry.

use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig;
use opentelemetry_sdk::{Resource, trace::SdkTracerProvider};
use tracing::{Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{EnvFilter, Layer, fmt::MakeWriter, layer::SubscriberExt, util::SubscriberInitExt};

use crate::{
    access_log,
    config::{ConfigError, Env},
};

/// What logs and traces need to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `OTEL_SERVICE_NAME`; default: the name of the process' modules.
    pub service_name: String,
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`; without it no exporter is started.
    pub endpoint: Option<String>,
    /// `LOG_LEVEL`; a level or `tracing` directives, default `info`.
    pub level: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self { service_name: "suite".into(), endpoint: None, level: "info".into() }
    }
}

impl Settings {
    /// Reads the settings; `service_name` stands in for an unset name.
    #[must_use]
    pub fn from_env(env: &Env, service_name: &str) -> Self {
        Self {
            service_name: env.get("OTEL_SERVICE_NAME").unwrap_or(service_name).to_owned(),
            endpoint: env.get("OTEL_EXPORTER_OTLP_ENDPOINT").map(str::to_owned),
            level: env.get("LOG_LEVEL").unwrap_or("info").to_owned(),
        }
    }
}

/// Why telemetry cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("the exporter for OTEL_EXPORTER_OTLP_ENDPOINT cannot be built")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
    #[error("telemetry is already installed")]
    Installed(#[from] tracing_subscriber::util::TryInitError),
}

/// Installs logs and traces for the process. The provider flushes spans when
/// it is shut down.
///
/// # Errors
/// When a setting is wrong or something else is installed already.
pub fn install(settings: &Settings) -> Result<SdkTracerProvider, TelemetryError> {
    let (subscriber, provider) = subscriber(settings, std::io::stdout)?;
    subscriber.try_init()?;
    Ok(provider)
}

/// Builds what [`install`] installs, with the log going to `writer`.
///
/// # Errors
/// When a setting is wrong.
pub fn subscriber<W>(
    settings: &Settings,
    writer: W,
) -> Result<(impl Subscriber + Send + Sync + use<W>, SdkTracerProvider), TelemetryError>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    // The access log has its own switch and stays on at every level.
    let directives = format!("{},{}=info", settings.level, access_log::TARGET);
    let filter = EnvFilter::try_new(&directives).map_err(|_| ConfigError::Invalid {
        name: "LOG_LEVEL".into(),
        value: settings.level.clone(),
        expected: "error, warn, info, debug or trace",
    })?;
    let log = tracing_subscriber::fmt::layer()
        .json()
        .flatten_event(true)
        .with_span_list(false)
        .with_writer(writer)
        .with_filter(filter);

    let resource = Resource::builder().with_service_name(settings.service_name.clone()).build();
    let mut provider = SdkTracerProvider::builder().with_resource(resource);
    if let Some(endpoint) = &settings.endpoint {
        let exporter =
            opentelemetry_otlp::SpanExporter::builder().with_tonic().with_endpoint(endpoint).build()?;
        provider = provider.with_batch_exporter(exporter);
    }
    let provider = provider.build();
    // Without an exporter spans still give every request its trace id. The
    // filter is the layer's own: LOG_LEVEL must not take trace ids away.
    let spans = tracing_opentelemetry::layer()
        .with_tracer(provider.tracer("platform"))
        .with_filter(LevelFilter::INFO);
    Ok((tracing_subscriber::registry().with(log).with(spans), provider))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_log_level_is_named() {
        let settings = Settings { level: "loud=very".into(), ..Settings::default() };
        let error = subscriber(&settings, std::io::sink).err().unwrap().to_string();
        assert!(error.starts_with(r#"LOG_LEVEL="loud=very" is not valid"#), "{error}");
    }

    #[test]
    fn an_empty_endpoint_starts_no_exporter() {
        let env = Env::from_iter([("OTEL_EXPORTER_OTLP_ENDPOINT", "")]);
        assert_eq!(Settings::from_env(&env, "greeter").endpoint, None);
    }
}
