//! The operator under faults: a fixed sample of all plans, and what no plan of
//! one write shows. All plans: `cargo sandbox faults`.

use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::faults::bench::Bench;
use e2e::faults::http::{Disturbance, Seen};
use e2e::faults::runner::Runner;
use e2e::faults::sql::Weather;
use e2e::faults::workload::Step;
use e2e::faults::{self, Selection};
use e2e::operated::NAMESPACE;
use e2e::progress::Progress;
use e2e::wait;
use http::{Method, StatusCode};
use kube::Api;
use kube::api::{Patch, PatchParams};
use peristyle_crds::v1alpha1::Service;
use serde_json::{Value, json};

/// How many plans fit the time of the test command.
const SAMPLE: usize = 9;
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_or_a_lost_reply_at_any_write_changes_nothing_in_the_end() {
    let progress = Progress::default();
    let mut runner = Box::pin(Runner::start(&progress)).await.unwrap();
    // `cargo sandbox faults` holds every plan to its bar; a machine that tests does other things too.
    runner.bar = PATIENCE;
    let selection = Selection { id: None, sample: Some(SAMPLE) };
    let report = Box::pin(faults::run_on(&mut runner, &selection, &progress)).await.unwrap();
    // Not by a macro, whose words are shown only when a test fails.
    writeln!(std::io::stderr(), "{report}").unwrap();
    report.check().unwrap();
    assert!(report.passed > report.not_reached.len(), "hardly any fault happened: {report}");
    let told = |scenario: &str| format!("{scenario}; the operator said:\n{}", runner.bench.operator.log());
    a_statement_that_is_refused_once_makes_nothing_twice(&runner)
        .await
        .with_context(|| told("SQLSTATE"))
        .unwrap();
    caches_that_lag_behind_bring_nothing_back(&runner).await.with_context(|| told("lag")).unwrap();
}

/// Runs a step that must end as it was recorded.
async fn ends_as_recorded(runner: &Runner, step: Step) -> Result<()> {
    runner.walk(&[step]).await
}

/// The server shuts down, has no connection left, or has become read-only.
async fn a_statement_that_is_refused_once_makes_nothing_twice(runner: &Runner) -> Result<()> {
    for sqlstate in ["57P01", "53300", "25006"] {
        ends_as_recorded(runner, Step::Delete).await?;
        runner.bench.sql.set(Weather::Refuse { containing: "CREATE ROLE".to_owned(), sqlstate });
        ends_as_recorded(runner, Step::Create).await.context(sqlstate)?;
        ensure!(runner.bench.sql.is_calm(), "no statement was refused with {sqlstate}");
    }
    Ok(())
}

async fn caches_that_lag_behind_bring_nothing_back(runner: &Runner) -> Result<()> {
    let Runner { bench, .. } = runner;
    let is_of_services = |seen: &Seen| seen.path.starts_with("/apis/peristyle.dev/v1alpha1/services?");
    bench.api.disturb(move |seen| {
        (seen.is_watch() && is_of_services(seen)).then_some(Disturbance::Late(Duration::from_secs(2)))
    });
    bench.restart().await?;
    ends_as_recorded(runner, Step::Move).await?;
    ends_as_recorded(runner, Step::MoveBack).await?;
    // Its children are gone before the operator hears that the Service is.
    ends_as_recorded(runner, Step::Delete).await?;
    wait::until("the operator rests", PATIENCE, async || {
        ensure!(bench.journal.is_quiet_for(Duration::from_secs(4)), "it still writes");
        Ok(())
    })
    .await?;
    let made: Vec<_> =
        bench.journal.entries().effects.into_keys().filter(|e| e.starts_with("create ")).collect();
    ensure!(made.is_empty(), "after the deletion there was: {made:?}");
    bench.api.calm();
    bench.restart().await?;
    ends_as_recorded(runner, Step::Create).await
}

#[tokio::test(flavor = "multi_thread")]
async fn systems_that_refuse_stall_or_end_watches_are_survived_and_told_of() {
    let bench = Box::pin(Bench::start(&Progress::default())).await.unwrap();
    let told = |scenario: &str| format!("{scenario}; the operator said:\n{}", bench.operator.log());
    a_busy_api_server_is_asked_again_when_it_says(&bench).await.with_context(|| told("429")).unwrap();
    watches_that_end_or_expire_cause_no_write(&bench).await.with_context(|| told("watches")).unwrap();
    an_api_server_that_was_away_is_met_again(&bench).await.with_context(|| told("away")).unwrap();
    a_forbidden_kind_is_told(&bench).await.with_context(|| told("forbidden")).unwrap();
    a_silent_database_server_holds_up_nobody_else(&bench).await.with_context(|| told("silent")).unwrap();
    a_silent_keto_holds_up_nobody_else(&bench).await.with_context(|| told("Keto")).unwrap();
    what_was_forbidden_heals(&bench).await.with_context(|| told("forbidden")).unwrap();
}

async fn arrives(bench: &Bench, step: Step) -> Result<()> {
    wait::until(&format!("{} is done", step.word()), PATIENCE, async || bench.has_arrived(step).await).await
}

async fn a_busy_api_server_is_asked_again_when_it_says(bench: &Bench) -> Result<()> {
    let left = AtomicUsize::new(2);
    let refuses = move |seen: &Seen| {
        let is_chosen = seen.method == Method::PATCH && seen.path.contains("/deployments/");
        let is_due =
            || left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok();
        (is_chosen && is_due()).then(|| {
            let busy = "the server is busy";
            Disturbance::status(StatusCode::TOO_MANY_REQUESTS, "TooManyRequests", busy)
                .with_header("retry-after", "2")
        })
    };
    bench.api.disturb(refuses);
    Step::Create.act(&bench.client).await?;
    arrives(bench, Step::Create).await?;
    bench.api.calm();
    Ok(())
}

async fn is_at_rest(bench: &Bench) -> Result<()> {
    wait::until("the operator rests", PATIENCE, async || {
        ensure!(bench.journal.is_quiet_for(Duration::from_secs(2)), "it still writes");
        Ok(())
    })
    .await
}

async fn many_watches(bench: &Bench) -> Result<()> {
    let mut watches = 0;
    wait::until("every watch has ended several times", PATIENCE, async || {
        watches += bench.api.take_seen().iter().filter(|seen| seen.is_watch()).count();
        ensure!(watches > 100, "only {watches} watches were opened");
        Ok(())
    })
    .await
}

async fn watches_that_end_or_expire_cause_no_write(bench: &Bench) -> Result<()> {
    is_at_rest(bench).await?;
    let count = AtomicUsize::new(0);
    bench.api.disturb(move |seen| {
        if !seen.is_watch() {
            return None;
        }
        if !count.fetch_add(1, Ordering::SeqCst).is_multiple_of(3) {
            return Some(Disturbance::End(Duration::from_secs(1)));
        }
        let gone = json!({"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "status": "Failure",
            "code": 410, "reason": "Expired", "message": "too old resource version"}});
        Some(Disturbance::Answer { status: StatusCode::OK, headers: Vec::new(), body: format!("{gone}\n") })
    });
    // A watch that is open would stay so: the operator starts anew, applies
    // everything once because it remembers nothing, and comes to rest.
    bench.restart().await?;
    many_watches(bench).await?;
    is_at_rest(bench).await?;
    bench.journal.begin(None);
    many_watches(bench).await?;
    bench.api.calm();
    let writes = bench.journal.entries().writes;
    ensure!(writes.is_empty(), "the operator wrote: {writes:?}");
    Step::Move.act(&bench.client).await?;
    arrives(bench, Step::Move).await
}

async fn an_api_server_that_was_away_is_met_again(bench: &Bench) -> Result<()> {
    is_at_rest(bench).await?;
    bench.journal.begin(None);
    drop(bench.api.take_seen());
    bench.api.disturb(|_| Some(Disturbance::Close));
    let mut refused = 0;
    wait::until("the operator has noticed", PATIENCE, async || {
        refused += bench.api.take_seen().len();
        ensure!(refused > 2, "only {refused} requests");
        Ok(())
    })
    .await?;
    bench.api.calm();
    Step::MoveBack.act(&bench.client).await?;
    arrives(bench, Step::MoveBack).await?;
    ensure!(bench.operator.is_running(), "the operator ended");
    Ok(())
}

async fn ready(bench: &Bench, name: &str) -> Result<Value> {
    let services: Api<Service> = Api::namespaced(bench.client.clone(), NAMESPACE);
    let status = json!(services.get(name).await?.status);
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|c| c["type"] == "Ready").context("no condition yet")
}

async fn apply(bench: &Bench, name: &str) -> Result<Api<Service>> {
    let services: Api<Service> = Api::namespaced(bench.client.clone(), NAMESPACE);
    let object = json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": "Service", "metadata": {"name": name},
        "spec": {"image": "x:1"}});
    services.patch(name, &PatchParams::apply("team").force(), &Patch::Apply(&object)).await?;
    Ok(services)
}

async fn a_forbidden_kind_is_told(bench: &Bench) -> Result<()> {
    bench.api.disturb(|seen| {
        let is_chosen = seen.method == Method::PATCH && seen.path.contains("/serviceaccounts/");
        is_chosen
            .then(|| Disturbance::status(StatusCode::FORBIDDEN, "Forbidden", "may not patch serviceaccounts"))
    });
    apply(bench, "refused").await?;
    wait::until("the refusal is told", PATIENCE, async || {
        let ready = ready(bench, "refused").await?;
        ensure!(ready["reason"] == "Forbidden", "{ready}");
        ensure!(ready["message"].to_string().contains("ServiceAccount"), "the kind is not named: {ready}");
        Ok(())
    })
    .await?;
    bench.has_arrived(Step::MoveBack).await.context("another object suffers")?;
    bench.api.calm();
    Ok(())
}

/// A right is looked for again within a minute, which the other scenarios take as well.
async fn what_was_forbidden_heals(bench: &Bench) -> Result<()> {
    wait::until("it heals", PATIENCE, async || {
        let ready = ready(bench, "refused").await?;
        ensure!(ready["status"] == "True", "{ready}");
        Ok(())
    })
    .await
}

async fn a_silent_database_server_holds_up_nobody_else(bench: &Bench) -> Result<()> {
    Step::Delete.act(&bench.client).await?;
    arrives(bench, Step::Delete).await?;
    bench.sql.set(Weather::Silent);
    Step::Create.act(&bench.client).await?;
    apply(bench, "other").await?;
    wait::until("a Service without database is ready", Duration::from_secs(15), async || {
        let ready = ready(bench, "other").await?;
        ensure!(ready["status"] == "True", "{ready}");
        Ok(())
    })
    .await?;
    wait::until("the silence is told", PATIENCE, async || {
        let ready = ready(bench, "greeter").await?;
        ensure!(ready["reason"] == "DatabaseNotReady", "{ready}");
        Ok(())
    })
    .await?;
    bench.sql.set(Weather::Calm);
    arrives(bench, Step::Create).await
}

async fn a_silent_keto_holds_up_nobody_else(bench: &Bench) -> Result<()> {
    Step::Delete.act(&bench.client).await?;
    arrives(bench, Step::Delete).await?;
    let all = [&bench.keto_read, &bench.keto_write, &bench.keto_opl];
    for keto in all {
        keto.disturb(|_| Some(Disturbance::Hang));
    }
    bench.journal.begin(None);
    Step::Create.act(&bench.client).await?;
    apply(bench, "another").await?;
    wait::until("a Service without policy is ready", Duration::from_secs(15), async || {
        let ready = ready(bench, "another").await?;
        ensure!(ready["status"] == "True", "{ready}");
        Ok(())
    })
    .await?;
    wait::until("the silence is told", PATIENCE, async || {
        let ready = ready(bench, "greeter").await?;
        ensure!(ready["reason"] == "KetoUnavailable", "{ready}");
        Ok(())
    })
    .await?;
    for keto in all {
        keto.calm();
    }
    arrives(bench, Step::Create).await?;
    let violations = bench.journal.entries().violations;
    ensure!(violations.is_empty(), "{violations:?}");
    Ok(())
}
