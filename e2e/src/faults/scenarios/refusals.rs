//! Writes that are refused once, or done without an answer.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use http::{Method, StatusCode};

use crate::faults::http::{Seen, disturbance::Disturbance};
use crate::faults::names;
use crate::faults::runner::Runner;
use crate::faults::sql::{End, Trouble, Weather};
use crate::faults::workload::Step;

const REFUSALS: [(StatusCode, &str); 3] = [
    (StatusCode::CONFLICT, "Conflict"),
    (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
    (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
];
/// For what is refused many times in one step.
const LONG: Duration = Duration::from_secs(120);

type Names = Arc<Mutex<BTreeSet<String>>>;

fn lock(names: &Names) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
    names.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Which kind a request patches.
fn patched(seen: &Seen) -> Option<String> {
    let write = names::api_write(seen).filter(|_| seen.method == Method::PATCH)?;
    write.split(' ').nth(1).map(ToOwned::to_owned)
}

/// Refuses the first PATCH of each kind; the kinds so far.
fn refuse_each(runner: &Runner, code: StatusCode, reason: &'static str) -> Names {
    let refused = Names::default();
    let known = refused.clone();
    runner.rig.api.disturb(move |seen| {
        let is_first = lock(&known).insert(patched(seen)?);
        is_first.then(|| Disturbance::status(code, reason, "refused by the fault harness"))
    });
    refused
}

/// The host changes and changes back, and the first PATCH of each kind is refused.
pub async fn every_refusal_of_a_write_is_repeated_and_makes_nothing_twice(runner: &Runner) -> Result<()> {
    for ((code, reason), step) in REFUSALS.into_iter().zip([Step::Move, Step::MoveBack, Step::Move]) {
        let refused = refuse_each(runner, code, reason);
        runner.walk(&[step]).await.with_context(|| code.to_string())?;
        let refused = lock(&refused).clone();
        ensure!(refused.len() > 2, "of {} only {refused:?} were refused with {code}", step.word());
    }
    runner.rig.api.calm();
    runner.walk(&[Step::MoveBack]).await
}

/// Everything is created anew for each kind and code.
pub async fn every_refusal_of_a_first_write_is_repeated_and_makes_nothing_twice(
    runner: &Runner,
) -> Result<()> {
    let writes = &runner.recordings[&Step::Create].entries.writes;
    let of_kind = |what: &str| what.strip_prefix("PATCH ")?.split(' ').next().map(ToOwned::to_owned);
    let kinds: BTreeSet<String> = writes.iter().filter_map(|write| of_kind(&write.what)).collect();
    for kind in kinds {
        for (code, reason) in REFUSALS {
            runner.walk(&[Step::Delete]).await?;
            let (left, chosen) = (Arc::new(Mutex::new(true)), kind.clone());
            let is_left = left.clone();
            runner.rig.api.disturb(move |seen| {
                let is_chosen = patched(seen).is_some_and(|kind| kind == chosen);
                let is_first =
                    is_chosen && std::mem::take(&mut *is_left.lock().unwrap_or_else(PoisonError::into_inner));
                is_first.then(|| Disturbance::status(code, reason, "refused by the fault harness"))
            });
            runner.walk(&[Step::Create]).await.with_context(|| format!("{code} for {kind}"))?;
            let is_left = *left.lock().unwrap_or_else(PoisonError::into_inner);
            ensure!(!is_left, "no PATCH of {kind} was refused with {code}");
        }
    }
    runner.rig.api.calm();
    Ok(())
}

/// The server does what it is asked and the operator sees a timeout: a record
/// of passwords, and tuples.
pub async fn a_write_whose_reply_never_comes_is_found_done(runner: &Runner) -> Result<()> {
    runner.walk(&[Step::Delete]).await?;
    let left = swallow(runner, &["POST secrets shop/greeter-db-slots"]);
    let tuples = Arc::new(Mutex::new(true));
    let is_left = tuples.clone();
    runner.rig.keto_write.disturb(move |seen| {
        let is_due =
            seen.is_write() && std::mem::take(&mut *is_left.lock().unwrap_or_else(PoisonError::into_inner));
        is_due.then_some(Disturbance::Swallow)
    });
    runner.walk_within(LONG, &[Step::Create]).await?;
    runner.rig.api.calm();
    runner.rig.keto_write.calm();
    ensure!(lock(&left).is_empty(), "these did not happen: {left:?}");
    ensure!(!*tuples.lock().unwrap_or_else(PoisonError::into_inner), "no tuple was written");
    Ok(())
}

/// The same for whatever a creation writes to the API server, one after the
/// other, and for statements.
pub async fn any_write_whose_reply_never_comes_is_found_done(runner: &Runner) -> Result<()> {
    let writes = &runner.recordings[&Step::Create].entries.writes;
    let of_api = |what: &&str| ["PATCH ", "POST ", "PUT "].iter().any(|verb| what.starts_with(verb));
    let all: BTreeSet<&str> = writes.iter().map(|write| write.what.as_str()).filter(of_api).collect();
    for what in all {
        runner.walk(&[Step::Delete]).await?;
        let left = swallow(runner, &[what]);
        runner.walk_within(LONG, &[Step::Create]).await.with_context(|| what.to_owned())?;
        ensure!(lock(&left).is_empty(), "{what} did not happen");
    }
    runner.rig.api.calm();
    for containing in
        ["CREATE ROLE \"shop_greeter_owner\"", "CREATE DATABASE", "CREATE SCHEMA", "_owner_a\" LOGIN"]
    {
        runner.walk(&[Step::Delete]).await?;
        runner.rig.sql.set(Weather::Once(vec![Trouble { containing, end: End::Swallowed }]));
        runner.walk_within(LONG, &[Step::Create]).await.context(containing)?;
        ensure!(runner.rig.sql.calm().is_empty(), "no statement with {containing}");
    }
    runner.walk(&[Step::Delete]).await?;
    runner.walk(&[Step::Create]).await
}

/// Swallows the reply to the first write of each name; those left.
fn swallow(runner: &Runner, names: &[&str]) -> Names {
    let left: Names = Arc::new(Mutex::new(names.iter().map(|name| (*name).to_owned()).collect()));
    let due = left.clone();
    runner.rig.api.disturb(move |seen| {
        let is_due = seen.is_write() && names::api_write(seen).is_some_and(|what| lock(&due).remove(&what));
        is_due.then_some(Disturbance::Swallow)
    });
    left
}
