//! An API server that is busy, broken, away or silent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use http::{Method, StatusCode};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::{Api, ResourceExt};

use super::{PATIENCE, apply_service, arrives, becomes_ready, is_at_rest, ready, remove, rests_for, tells};
use crate::faults::http::{Seen, disturbance::Disturbance};
use crate::faults::names;
use crate::faults::rig::Rig;
use crate::faults::runner::Runner;
use crate::faults::workload::Step;
use crate::operated::NAMESPACE;
use crate::wait;

/// The longest pause that the operator grants a server.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A watch that fails again and again is opened again after at most this long,
/// and what it shows then may well have to be told.
const LONGEST_PAUSE_OF_A_WATCH: Duration = Duration::from_secs(13);
/// Without a word of the server the pauses double from a quarter of a second up
/// to a second, whatever is told of the object meanwhile: four tries take at
/// least this long.
const FOUR_TRIES: Duration = Duration::from_millis(1750);

/// Services whose children are refused.
const BUSY: [&str; 4] = ["busy-one", "busy-two", "busy-three", "busy-four"];
/// What an object may ask besides what is refused: its status is told, with an event.
const TOLD: usize = 3;
/// How soon after an outage the operator must work again.
const RECONNECT: Duration = Duration::from_secs(30);

pub async fn a_busy_api_server_is_asked_again_when_it_says(runner: &Runner) -> Result<()> {
    // One more than it takes until the status tells of it, which is a change of the object.
    storm(&runner.rig, StatusCode::TOO_MANY_REQUESTS, Some("2"), 5).await
}

pub async fn every_storm_of_errors_is_met_slowly_and_holds_up_no_other_object(runner: &Runner) -> Result<()> {
    let rig = &runner.rig;
    storm(rig, StatusCode::TOO_MANY_REQUESTS, Some("1"), 5).await?;
    storm(rig, StatusCode::SERVICE_UNAVAILABLE, Some("3"), 5).await?;
    storm(rig, StatusCode::SERVICE_UNAVAILABLE, None, 4).await?;
    storm(rig, StatusCode::INTERNAL_SERVER_ERROR, None, 4).await?;
    storm(rig, StatusCode::BAD_GATEWAY, None, 4).await?;
    storm(rig, StatusCode::TOO_MANY_REQUESTS, Some("30"), 2).await?;
    storm(rig, StatusCode::TOO_MANY_REQUESTS, Some("86400"), 2).await
}

/// All that the operator asks about the children of some Services is refused
/// `tries` times each; another's is not.
async fn storm(rig: &Rig, code: StatusCode, retry_after: Option<&'static str>, tries: usize) -> Result<()> {
    let refused: Arc<Mutex<BTreeMap<&str, Vec<Instant>>>> = Arc::default();
    let noted = refused.clone();
    rig.api.collect();
    rig.api.disturb(move |seen| {
        let name = BUSY.into_iter().find(|name| seen.path.contains(&format!("/{name}")))?;
        if seen.path.contains("/status") {
            return None;
        }
        let answer = Disturbance::status(code, "", "the server is busy");
        lock(&noted).entry(name).or_default().push(Instant::now());
        Some(match retry_after {
            Some(seconds) => answer.with_header("retry-after", seconds),
            None => answer,
        })
    });
    for name in BUSY {
        apply_service(rig, name).await?;
    }
    apply_service(rig, "idle").await?;
    becomes_ready(rig, "Service", "idle").await?;
    wait::until("each has been tried often enough", 2 * PATIENCE, async || {
        let counts: BTreeMap<&str, usize> =
            lock(&refused).iter().map(|(name, times)| (*name, times.len())).collect();
        ensure!(BUSY.iter().all(|name| counts.get(name) >= Some(&tries)), "{counts:?} with {code}");
        Ok(())
    })
    .await?;
    let seen = rig.api.take_seen();
    let refused = lock(&refused).clone();
    for (name, times) in &refused {
        if let Some(seconds) = retry_after.map(str::parse).transpose()? {
            let pause = Duration::from_secs(seconds).min(LONGEST_PAUSE);
            let too_soon = times.windows(2).map(|two| two[1] - two[0]).find(|gap| *gap < pause);
            ensure!(too_soon.is_none(), "{code}: {name} asked after {too_soon:?}, not after {pause:?}");
        } else {
            let took = times[tries - 1] - times[0];
            ensure!(took >= FOUR_TRIES, "{code}: {name} asked {tries} times within {took:?}");
        }
    }
    // Nor are there other questions in place of those.
    let count = refused.values().map(Vec::len).sum::<usize>();
    let asked: Vec<&Seen> = seen
        .iter()
        .filter(|seen| !seen.is_watch() && (seen.path.contains("/busy-") || seen.path.contains("/events?")))
        .collect();
    // Of the idle one and of the class there are events too.
    let bound = count + TOLD * (BUSY.len() + 2);
    let paths: Vec<_> = asked.iter().map(|seen| format!("{} {}", seen.method, seen.path)).collect();
    ensure!(asked.len() <= bound, "{} requests, of which {count} were refused: {paths:#?}", asked.len());
    rig.api.calm();
    // They come back by themselves, after a pause that was asked for before.
    for name in BUSY {
        becomes_ready_within(rig, name, 2 * PATIENCE).await?;
        remove(rig, "Service", name).await?;
    }
    remove(rig, "Service", "idle").await
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn becomes_ready_within(rig: &Rig, name: &str, patience: Duration) -> Result<()> {
    wait::until(&format!("Service {name} is ready"), patience, async || {
        let ready = ready(rig, "Service", name).await?;
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
    // what it must once, and comes to rest. It rests as well before it leads, and
    // a Service that an earlier scenario had refused is due as soon as it does.
    rig.restart().await?;
    apply_service(rig, "led").await?;
    becomes_ready(rig, "Service", "led").await?;
    many_watches(rig).await?;
    rests_for(rig, LONGEST_PAUSE_OF_A_WATCH).await?;
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
    arrives(rig, Step::MoveBack).await?;
    remove(rig, "Service", "led").await
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

/// As long as the bars say. Whatever the operator is afterwards, what it made is
/// as it was, and it needs no more memory than one that was started before.
pub async fn an_api_server_that_was_away_for_long_is_met_gently(runner: &Runner) -> Result<()> {
    let rig = &runner.rig;
    rig.restart().await?;
    apply_service(rig, "before").await?;
    becomes_ready(rig, "Service", "before").await?;
    is_at_rest(rig).await?;
    let memory = rig.operator.resident()?;
    let children = children(rig).await?;

    rig.journal.begin(None);
    let rounds = rig.gate.rounds();
    rig.api.disturb(|_| Some(Disturbance::Close));
    rig.api.cut();
    let since = Instant::now();
    let outage = runner.bars.outage;
    wait::until("the outage is over", outage + PATIENCE, async || {
        // Who cannot renew its Lease ends, and the kubelet starts it again.
        if !rig.operator.is_running() {
            rig.operator.start()?;
        }
        ensure!(since.elapsed() >= outage, "not yet");
        Ok(())
    })
    .await?;
    rig.api.calm();
    rig.api.collect();
    apply_service(rig, "later").await?;
    becomes_ready_within(rig, "later", RECONNECT).await?;
    is_at_rest(rig).await?;

    let mut lists: Vec<String> = rig.api.take_seen().iter().filter_map(listed).collect();
    lists.sort();
    let twice: Vec<_> = lists.windows(2).filter(|two| two[0] == two[1]).map(|two| &two[0]).collect();
    ensure!(lists.len() > 10 && twice.is_empty(), "of {} lists, these came twice: {twice:?}", lists.len());
    let entries = rig.journal.entries();
    let writes: Vec<_> = entries.writes.iter().filter(|write| !write.what.contains("shop/later")).collect();
    ensure!(writes.is_empty(), "written although nothing had changed: {writes:?}");
    ensure!(entries.violations.is_empty(), "{:?}", entries.violations);
    ensure!(rig.gate.rounds() > rounds, "nobody tried to get in without credentials");
    let after = self::children(rig).await?;
    ensure!(children == after, "the children were {children:?}, and are {after:?}");
    wait::until("the memory of the operator is back", PATIENCE, async || {
        let now = rig.operator.resident()?;
        ensure!(now <= memory + memory / 10, "{memory} bytes before, {now} after");
        Ok(())
    })
    .await?;
    rig.api.calm();
    remove(rig, "Service", "later").await?;
    remove(rig, "Service", "before").await
}

/// What a request lists: the kind, where, and which of it.
fn listed(seen: &Seen) -> Option<String> {
    names::api_list(seen)?;
    let (path, query) = seen.path.split_once('?')?;
    let which = query.split('&').filter(|parameter| parameter.contains("Selector="));
    Some(std::iter::once(path).chain(which).collect::<Vec<_>>().join(" "))
}

/// The greeter's children: UID and version of each.
async fn children(rig: &Rig) -> Result<BTreeMap<String, (String, String)>> {
    let kinds = [
        ("apps", "v1", "Deployment"),
        ("", "v1", "Service"),
        ("", "v1", "ServiceAccount"),
        ("", "v1", "Secret"),
        ("networking.k8s.io", "v1", "NetworkPolicy"),
        ("traefik.io", "v1alpha1", "IngressRoute"),
        ("traefik.io", "v1alpha1", "Middleware"),
    ];
    let mut found = BTreeMap::new();
    for (group, version, kind) in kinds {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let api: Api<DynamicObject> = Api::namespaced_with(rig.client.clone(), NAMESPACE, &resource);
        let objects = api.list_metadata(&ListParams::default()).await?;
        let before = found.len();
        for object in objects.items.iter().filter(|object| object.name_any().starts_with("greeter")) {
            let version = object.resource_version().unwrap_or_default();
            found
                .insert(format!("{kind} {}", object.name_any()), (object.uid().unwrap_or_default(), version));
        }
        ensure!(found.len() > before, "the greeter has no {kind}");
    }
    Ok(found)
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
