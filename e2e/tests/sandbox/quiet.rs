//! An operator with nothing to do asks and writes nothing.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use e2e::audit::{self, Request};
use e2e::example::Example;
use e2e::stack::SYSTEM_NAMESPACE;
use e2e::state::State;
use e2e::wait;

const WINDOW: Duration = Duration::from_secs(60);

/// Requests of the operator since `position`: not for its Lease, not the renewal of a watch.
fn requests(state: &State, position: u64) -> Result<Vec<Request>> {
    let operator = format!("system:serviceaccount:{SYSTEM_NAMESPACE}:peristyle");
    let mut requests = audit::since(state, position)?;
    requests.retain(|request| {
        request.user == operator && request.verb != "watch" && request.resource != "leases"
    });
    Ok(requests)
}

#[tokio::test]
async fn an_idle_operator_reads_and_writes_nothing_for_a_minute() {
    let state = State::current().unwrap();
    Example::start(&state).await.expect("charts installed by `cargo sandbox test`");
    let mut position = audit::position(&state).unwrap();
    assert!(!requests(&state, 0).unwrap().is_empty(), "the audit log does not show the operator at all");
    // The example may still settle; then a whole window must stay empty.
    let mut began = Instant::now();
    wait::until("a minute passes without a request", WINDOW * 5, async || {
        let seen = requests(&state, position)?;
        if !seen.is_empty() {
            (position, began) = (audit::position(&state)?, Instant::now());
        }
        let seen: Vec<_> = seen.iter().map(ToString::to_string).collect();
        ensure!(began.elapsed() >= WINDOW, "the last requests: {seen:?}");
        Ok(())
    })
    .await
    .unwrap();
}
