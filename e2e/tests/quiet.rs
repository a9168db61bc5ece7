//! An operator with nothing to do asks and writes nothing.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::example::Example;
use e2e::stack::SYSTEM_NAMESPACE;
use e2e::state::State;
use e2e::wait;
use serde_json::Value;

const WINDOW: Duration = Duration::from_secs(60);

/// Requests of the operator in the audit log, from byte `offset` on: not its
/// Lease, not the renewal of a watch.
fn requests(state: &State, offset: u64) -> Result<Vec<String>> {
    let mut log = File::open(state.log("audit")).context("the API server writes an audit log")?;
    log.seek(SeekFrom::Start(offset))?;
    let mut fresh = Vec::new();
    log.read_to_end(&mut fresh)?;
    let operator = format!("system:serviceaccount:{SYSTEM_NAMESPACE}:peristyle");
    let entries =
        fresh.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Value>(line).ok());
    let mut found: Vec<String> = entries
        .filter(|entry| {
            entry["user"]["username"] == operator.as_str() && entry["stage"] == "ResponseComplete"
        })
        .filter(|entry| entry["verb"] != "watch" && entry["objectRef"]["resource"] != "leases")
        .map(|entry| format!("{} {}", entry["verb"], entry["requestURI"]))
        .collect();
    found.dedup();
    Ok(found)
}

fn size(state: &State) -> Result<u64> {
    Ok(std::fs::metadata(state.log("audit"))?.len())
}

#[tokio::test]
async fn an_idle_operator_reads_and_writes_nothing_for_a_minute() {
    let state = State::current().unwrap();
    Example::start(&state).await.expect("charts installed by `cargo sandbox test`");
    let mut offset = size(&state).unwrap();
    assert!(!requests(&state, 0).unwrap().is_empty(), "the audit log does not show the operator at all");
    // The example may still settle; then a whole window must stay empty.
    let mut began = std::time::Instant::now();
    wait::until("a minute passes without a request", WINDOW * 5, async || {
        let seen = requests(&state, offset)?;
        if !seen.is_empty() {
            (offset, began) = (size(&state)?, std::time::Instant::now());
        }
        ensure!(began.elapsed() >= WINDOW, "the last requests: {seen:?}");
        Ok(())
    })
    .await
    .unwrap();
}
