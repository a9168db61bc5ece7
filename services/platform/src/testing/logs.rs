//! Installs telemetry for a test binary and keeps what is logged.

use std::{
    io::Write,
    sync::{Arc, Mutex, OnceLock},
};

use serde_json::Value;
use tracing_subscriber::{fmt::MakeWriter, util::SubscriberInitExt};

use crate::telemetry;

#[derive(Clone, Default)]
struct Buffer(Arc<Mutex<Vec<u8>>>);

impl Write for Buffer {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Buffer {
    type Writer = Self;

    fn make_writer(&'w self) -> Self {
        self.clone()
    }
}

static BUFFER: OnceLock<Buffer> = OnceLock::new();

/// Installs telemetry once for the process.
///
/// # Panics
/// When something else is installed.
pub fn install() {
    BUFFER.get_or_init(|| {
        let buffer = Buffer::default();
        let (subscriber, _provider) =
            telemetry::subscriber(&telemetry::Settings::default(), buffer.clone()).unwrap();
        subscriber.try_init().unwrap();
        buffer
    });
}

/// Everything logged so far.
///
/// # Panics
/// When [`install`] was not called.
#[must_use]
pub fn text() -> String {
    String::from_utf8(BUFFER.get().unwrap().0.lock().unwrap().clone()).unwrap()
}

/// The lines of the access log with this trace id.
///
/// # Panics
/// When a line is no JSON.
#[must_use]
pub fn access(trace_id: &str) -> Vec<Value> {
    let text = text();
    let lines = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines.filter(|line| line["target"] == "access" && line["trace_id"] == trace_id).collect()
}
