//! An API server that is busy, broken, away or silent.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use http::{Method, StatusCode};

use super::{PATIENCE, apply_service, arrives, becomes_ready, is_at_rest, ready, remove, tells};
use crate::faults::http::{Seen, disturbance::Disturbance};
use crate::faults::names;
use crate::faults::rig::Rig;
use crate::faults::runner::Runner;
use crate::faults::workload::Step;
use crate::wait;

/// The longest pause that the operator grants a server.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// Without a word of the server the pauses double from a quarter of a second,
/// and the third failure is told, which brings one more look at once: four
/// tries take at least this long.
const FOUR_TRIES: Duration = Duration::from_millis(750);

pub async fn a_busy_api_server_is_asked_again_when_it_says(runner: &Runner) -> Result<()> {
    storm(&runner.rig, StatusCode::TOO_MANY_REQUESTS, Some("2"), 3).await
}

pub async fn every_storm_of_errors_is_met_slowly_and_holds_up_no_other_object(runner: &Runner) -> Result<()> {
    let rig = &runner.rig;
    storm(rig, StatusCode::SERVICE_UNAVAILABLE, Some("3"), 4).await?;
    storm(rig, StatusCode::SERVICE_UNAVAILABLE, None, 4).await?;
    storm(rig, StatusCode::INTERNAL_SERVER_ERROR, None, 4).await?;
    storm(rig, StatusCode::BAD_GATEWAY, None, 4).await?;
    storm(rig, StatusCode::TOO_MANY_REQUESTS, Some("30"), 2).await?;
    storm(rig, StatusCode::TOO_MANY_REQUESTS, Some("86400"), 2).await
}

/// All that the operator asks about one Service's children is refused `tries` times; another's is not.
async fn storm(rig: &Rig, code: StatusCode, retry_after: Option<&'static str>, tries: usize) -> Result<()> {
    let refused: Arc<Mutex<Vec<Instant>>> = Arc::default();
    let noted = refused.clone();
    rig.api.disturb(move |seen| {
        let is_chosen = seen.path.contains("/busy") && !seen.path.contains("/services/busy/status");
        let answer = Disturbance::status(code, "", "the server is busy");
        is_chosen.then(|| {
            noted.lock().unwrap_or_else(PoisonError::into_inner).push(Instant::now());
            match retry_after {
                Some(seconds) => answer.with_header("retry-after", seconds),
                None => answer,
            }
        })
    });
    apply_service(rig, "busy").await?;
    apply_service(rig, "idle").await?;
    becomes_ready(rig, "Service", "idle").await?;
    let so_far = || refused.lock().unwrap_or_else(PoisonError::into_inner).clone();
    wait::until("it has been tried often enough", 2 * PATIENCE, async || {
        let count = so_far().len();
        ensure!(count >= tries, "{count} times with {code}");
        Ok(())
    })
    .await?;
    let times = so_far();
    if let Some(seconds) = retry_after.map(str::parse).transpose()? {
        let pause = Duration::from_secs(seconds).min(LONGEST_PAUSE);
        let too_soon = times.windows(2).map(|two| two[1] - two[0]).find(|gap| *gap < pause);
        ensure!(too_soon.is_none(), "{code}: asked again after {too_soon:?}, not after {pause:?}");
    } else {
        let took = times[tries - 1] - times[0];
        ensure!(took >= FOUR_TRIES, "{code}: {tries} tries within {took:?}");
    }
    rig.api.calm();
    // It comes back by itself, after a pause that was asked for before.
    becomes_ready_within(rig, 2 * PATIENCE).await?;
    remove(rig, "Service", "busy").await?;
    remove(rig, "Service", "idle").await
}

async fn becomes_ready_within(rig: &Rig, patience: Duration) -> Result<()> {
    wait::until("the refused Service is ready", patience, async || {
        let ready = ready(rig, "Service", "busy").await?;
        ensure!(ready["status"] == "True", "{ready}");
        Ok(())
    })
    .await
}

async fn many_watches(rig: &Rig) -> Result<()> {
    let mut watches = 0;
    wait::until("every watch has ended several times", PATIENCE, async || {
        watches += rig.api.take_seen().iter().filter(|seen| seen.is_watch()).count();
        ensure!(watches > 100, "only {watches} watches were opened");
        Ok(())
    })
    .await
}

pub async fn lists_and_watches_that_end_or_expire_cause_no_write(runner: &Runner) -> Result<()> {
    let rig = &runner.rig;
    is_at_rest(rig).await?;
    rig.api.collect();
    let expired = || Disturbance::status(StatusCode::GONE, "Expired", "too old resource version");
    let count = AtomicUsize::new(0);
    let listed = Arc::new(Mutex::new(BTreeSet::new()));
    let known = listed.clone();
    rig.api.disturb(move |seen| {
        if let Some(kind) = names::api_list(seen) {
            return known.lock().unwrap_or_else(PoisonError::into_inner).insert(kind).then(expired);
        }
        if !seen.is_watch() {
            return None;
        }
        if !count.fetch_add(1, Ordering::SeqCst).is_multiple_of(3) {
            return Some(Disturbance::End(Duration::from_secs(1)));
        }
        let event = serde_json::json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1",
            "status": "Failure", "code": 410, "reason": "Expired", "message": "too old resource version"}});
        Some(Disturbance::Answer { status: StatusCode::OK, headers: Vec::new(), body: event.to_string() })
    });
    // Streams that are open stay undisturbed: the operator starts anew, applies
    // what it must once, and comes to rest.
    rig.restart().await?;
    many_watches(rig).await?;
    is_at_rest(rig).await?;
    rig.journal.begin(None);
    many_watches(rig).await?;
    rig.api.calm();
    let writes = rig.journal.entries().writes;
    ensure!(writes.is_empty(), "the operator wrote: {writes:?}");
    let listed = listed.lock().unwrap_or_else(PoisonError::into_inner).len();
    ensure!(listed > 10, "only {listed} kinds were listed");
    // Of the streams that are open some are still disturbed.
    rig.restart().await?;
    Step::Move.act(&rig.client).await?;
    arrives(rig, Step::Move).await?;
    Step::MoveBack.act(&rig.client).await?;
    arrives(rig, Step::MoveBack).await
}

pub async fn an_api_server_that_was_away_is_met_again(runner: &Runner) -> Result<()> {
    let rig = &runner.rig;
    is_at_rest(rig).await?;
    rig.journal.begin(None);
    rig.api.collect();
    rig.api.disturb(|_| Some(Disturbance::Close));
    let mut refused = 0;
    wait::until("the operator has noticed", PATIENCE, async || {
        refused += rig.api.take_seen().len();
        ensure!(refused > 2, "only {refused} requests");
        Ok(())
    })
    .await?;
    rig.api.calm();
    Step::Move.act(&rig.client).await?;
    arrives(rig, Step::Move).await?;
    Step::MoveBack.act(&rig.client).await?;
    arrives(rig, Step::MoveBack).await?;
    ensure!(rig.operator.is_running(), "the operator ended");
    Ok(())
}

pub async fn an_api_server_that_hangs_on_one_kind_holds_up_no_other_object(runner: &Runner) -> Result<()> {
    let rig = &runner.rig;
    let is_chosen = |seen: &Seen| seen.method == Method::PATCH && seen.path.contains("/ingressroutes/");
    rig.api.disturb(move |seen| is_chosen(seen).then_some(Disturbance::Hang));
    rig.journal.begin(None);
    Step::Move.act(&rig.client).await?;
    apply_service(rig, "beside").await?;
    becomes_ready(rig, "Service", "beside").await?;
    ensure!(rig.has_arrived(Step::Move).await.is_err(), "nothing hung");
    let livez = reqwest::get(format!("http://{}/livez", rig.operator.admin())).await?;
    ensure!(livez.status() == StatusCode::OK, "/livez answers {}", livez.status());
    rig.api.calm();
    arrives(rig, Step::Move).await?;
    Step::MoveBack.act(&rig.client).await?;
    arrives(rig, Step::MoveBack).await?;
    remove(rig, "Service", "beside").await
}

pub async fn a_forbidden_kind_is_told(runner: &Runner) -> Result<()> {
    let rig = &runner.rig;
    rig.api.disturb(|seen| {
        let is_chosen = seen.method == Method::PATCH && seen.path.contains("/serviceaccounts/");
        is_chosen
            .then(|| Disturbance::status(StatusCode::FORBIDDEN, "Forbidden", "may not patch serviceaccounts"))
    });
    apply_service(rig, "refused").await?;
    tells(rig, "Service", "refused", "Forbidden").await?;
    let told = ready(rig, "Service", "refused").await?;
    ensure!(told["message"].to_string().contains("ServiceAccount"), "the kind is not named: {told}");
    ensure!(rig.has_arrived(Step::MoveBack).await.is_ok(), "another object suffers");
    rig.api.calm();
    Ok(())
}

/// A right is looked for again within a minute, which the other scenarios take as well.
pub async fn what_was_forbidden_heals(runner: &Runner) -> Result<()> {
    let rig = &runner.rig;
    // Run by itself, it finds one that nobody has refused.
    apply_service(rig, "refused").await?;
    becomes_ready(rig, "Service", "refused").await?;
    remove(rig, "Service", "refused").await
}
