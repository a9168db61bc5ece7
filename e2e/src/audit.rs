//! The API server's own record of who asked for what.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::state::State;

/// A request that was answered.
#[derive(Clone, Debug)]
pub struct Request {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub verb: String,
    /// API group; empty for the core group.
    pub group: String,
    /// Plural, with its subresource if there is one: `services/status`.
    pub resource: String,
    pub namespace: String,
    pub name: String,
    /// HTTP status.
    pub code: u64,
    /// When it arrived, in seconds since the epoch.
    pub at: f64,
    /// Name of the user.
    pub user: String,
    /// Which of the user's tokens; empty for certificates.
    pub credential: String,
}

impl Request {
    /// Whether it changes something, were it granted.
    #[must_use]
    pub fn is_write(&self) -> bool {
        !matches!(self.verb.as_str(), "get" | "list" | "watch")
    }
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { verb, group, resource, namespace, name, code, .. } = self;
        write!(f, "{verb} {resource}.{group} {namespace}/{name} → {code}")
    }
}

/// How long the log is now; see [`since`].
///
/// # Errors
/// When there is none.
pub fn position(state: &State) -> Result<u64> {
    Ok(std::fs::metadata(state.log("audit")).context("the API server writes an audit log")?.len())
}

/// The requests that were logged from byte `position` on, in the order of their answers.
///
/// # Errors
/// When the log cannot be read.
pub fn since(state: &State, position: u64) -> Result<Vec<Request>> {
    let mut log = File::open(state.log("audit")).context("the API server writes an audit log")?;
    log.seek(SeekFrom::Start(position))?;
    let mut fresh = Vec::new();
    log.read_to_end(&mut fresh)?;
    let lines = fresh.split(|byte| *byte == b'\n');
    // The last line may be in the middle of being written.
    Ok(lines
        .filter_map(|line| serde_json::from_slice(line).ok())
        .filter_map(|entry| request(&entry))
        .collect())
}

fn request(entry: &Value) -> Option<Request> {
    // A watch is logged when it starts and when it ends; only its start counts.
    let is_watch = entry["verb"] == "watch";
    let stage = if is_watch { "ResponseStarted" } else { "ResponseComplete" };
    if entry["stage"] != stage {
        return None;
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let object = &entry["objectRef"];
    let mut resource = text(&object["resource"]);
    if let Some(subresource) = object["subresource"].as_str() {
        resource = format!("{resource}/{subresource}");
    }
    let at: jiff::Timestamp = entry["requestReceivedTimestamp"].as_str()?.parse().ok()?;
    Some(Request {
        verb: text(&entry["verb"]),
        group: text(&object["apiGroup"]),
        resource,
        namespace: text(&object["namespace"]),
        name: text(&object["name"]),
        code: entry["responseStatus"]["code"].as_u64().unwrap_or_default(),
        at: at.as_duration().as_secs_f64(),
        user: text(&entry["user"]["username"]),
        credential: text(&entry["user"]["extra"]["authentication.kubernetes.io/credential-id"][0]),
    })
}
