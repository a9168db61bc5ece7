//! Logs: one JSON object a line on standard output.

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt, util::SubscriberInitExt};

/// Starts logging with `filter`, for example `info,peristyle=debug`.
///
/// # Errors
/// When the filter does not parse or logging was started before.
pub fn start(filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).map_err(|e| {
        anyhow::anyhow!("--log {filter:?}: {e}; write for example info or info,peristyle=debug")
    })?;
    // The client logs the text of every statement, verifiers of passwords included.
    let filter = filter.add_directive("tokio_postgres=warn".parse()?);
    tracing_subscriber::registry().with(filter).with(fmt::layer().json().flatten_event(true)).try_init()?;
    Ok(())
}
