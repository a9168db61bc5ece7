//! The operator as a process among others: who leads, what it asks for, and
//! what it makes of an API server that refuses, ends and comes back. No node,
//! so no pod runs.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::audit::{self, Request};
use e2e::operated::{NAMESPACE, Operated};
use e2e::replica::{self, Replica};
use e2e::wait;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Event};
use kube::{
    Api,
    api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams},
};
use nix::sys::signal::Signal;
use peristyle_crds::v1alpha1::Service;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);
/// Children of a Service that says nothing but its image.
const CHILDREN: usize = 5;

/// A control plane on which the operator has the chart's rights.
struct Bench(Operated);

impl Bench {
    async fn start() -> Result<Self> {
        let operated = Operated::prepare().await?;
        replica::grant(&operated.plane).await?;
        Ok(Self(operated))
    }

    /// One with an operator that leads.
    async fn with_leader() -> Result<(Self, Replica)> {
        let bench = Self::start().await?;
        let leader = bench.replica("first").await?;
        leader.wait_until_leading().await?;
        Ok((bench, leader))
    }

    async fn replica(&self, name: &str) -> Result<Replica> {
        Replica::start(&self.0.plane, name).await
    }

    async fn apply(&self, name: &str, spec: Value) -> Result<()> {
        let object = json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
        let params = PatchParams::apply("team").force();
        // Untyped: some of what is applied here no type of ours can read.
        let resource = ApiResource::erase::<Service>(&());
        let api: Api<DynamicObject> = Api::namespaced_with(self.0.client.clone(), NAMESPACE, &resource);
        api.patch(name, &params, &Patch::Apply(&object)).await?;
        Ok(())
    }

    async fn deployment(&self, name: &str, image: &str) -> Result<Deployment> {
        let runs = |deployment: &Deployment| {
            let pod = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
            pod.is_some_and(|pod| pod.containers.iter().any(|c| c.image.as_deref() == Some(image)))
        };
        wait::object(&self.0.api::<Deployment>(), name, "the Deployment has its image", PATIENCE, runs).await
    }

    /// Applies a Service and waits until the operator has written everything for it.
    async fn settled(&self, name: &str) -> Result<()> {
        self.apply(name, json!({"image": "x:1"})).await?;
        self.deployment(name, "x:1").await?;
        self.ready(name, "Unknown", "RolloutInProgress").await?;
        Ok(())
    }

    /// Waits until `Ready` has this status and reason; its message.
    async fn ready(&self, name: &str, status: &str, reason: &str) -> Result<String> {
        wait::until(&format!("Service {name}: Ready={status} {reason}"), PATIENCE, async || {
            let service = self.0.api::<Service>().get(name).await?;
            let conditions = service.status.context("no status yet")?.conditions;
            let ready = conditions.iter().find(|c| c.type_ == "Ready").context("no condition yet")?;
            ensure!(ready.status == status && ready.reason == reason, "{ready:?}");
            ensure!(ready.observed_generation >= service.metadata.generation, "{ready:?} is of the past");
            Ok(ready.message.clone())
        })
        .await
    }

    fn now(&self) -> Result<u64> {
        audit::position(self.0.plane.state())
    }
}

fn shown(requests: &[Request]) -> String {
    requests.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  ")
}

/// Seconds since the epoch, as in the audit log.
fn clock() -> f64 {
    jiff::Timestamp::now().as_duration().as_secs_f64()
}

#[tokio::test]
async fn a_warm_standby_takes_over_in_time_and_changes_nothing_that_stands() {
    let (bench, mut first) = Bench::with_leader().await.unwrap();
    bench.settled("before").await.unwrap();
    let second = bench.replica("second").await.unwrap();
    second.wait_until_ready().await.unwrap();
    let position = bench.now().unwrap();

    first.signal(Signal::SIGKILL).unwrap();
    let killed = clock();
    first.ended().await.unwrap();
    bench.apply("killed", json!({"image": "x:1"})).await.unwrap();
    bench.deployment("killed", "x:1").await.unwrap();
    let took = took_over(&bench, &second, position, killed).unwrap();
    assert!(took <= 17.0, "{took} s after SIGKILL");
    bench.ready("killed", "Unknown", "RolloutInProgress").await.unwrap();

    let third = bench.replica("third").await.unwrap();
    third.wait_until_ready().await.unwrap();
    let handed_over = bench.now().unwrap();
    second.signal(Signal::SIGTERM).unwrap();
    let terminated = clock();
    let mut second = second;
    let status = second.ended().await.unwrap();
    assert!(status.success(), "{status}:\n{}", second.said());
    bench.apply("terminated", json!({"image": "x:1"})).await.unwrap();
    bench.deployment("terminated", "x:1").await.unwrap();
    let took = took_over(&bench, &third, handed_over, terminated).unwrap();
    assert!(took <= 2.0, "{took} s after SIGTERM");
    let last = second.writes(&bench.0.plane, handed_over).unwrap();
    assert!(last.iter().all(|write| write.at <= terminated + took), "two wrote at once:\n  {}", shown(&last));

    // Whoever led, the object of the first one was as it should be.
    for replica in [&second, &third] {
        let mut writes = replica.writes(&bench.0.plane, position).unwrap();
        writes.retain(|write| write.name.starts_with("before"));
        assert!(writes.is_empty(), "written although nothing had changed:\n  {}", shown(&writes));
    }
}

/// How long after `moment` `replica` held the Lease; its first write must
/// follow within a second.
fn took_over(bench: &Bench, replica: &Replica, position: u64, moment: f64) -> Result<f64> {
    let plane = &bench.0.plane;
    let all = replica.all_requests(plane, position)?;
    let is_acquisition =
        |request: &&Request| request.resource == "leases" && request.is_write() && request.code < 300;
    let acquired = all.iter().find(is_acquisition).context("it never got the Lease")?.at;
    let writes = replica.writes(plane, position)?;
    let first = writes.first().context("it wrote nothing")?.at;
    ensure!(first >= acquired, "it wrote before it held the Lease:\n  {}", shown(&writes));
    ensure!(first - acquired <= 1.0, "{} s from the Lease to the first write", first - acquired);
    Ok(acquired - moment)
}

#[tokio::test]
async fn a_leader_that_was_paused_for_longer_than_its_lease_writes_nothing_more() {
    let (bench, mut first) = Bench::with_leader().await.unwrap();
    bench.settled("paused").await.unwrap();
    let second = bench.replica("second").await.unwrap();
    second.wait_until_ready().await.unwrap();

    let stopped = Instant::now();
    first.signal(Signal::SIGSTOP).unwrap();
    // Work that it finds when it wakes up.
    bench.apply("paused", json!({"image": "x:2"})).await.unwrap();
    second.wait_until_leading().await.unwrap();
    bench.deployment("paused", "x:2").await.unwrap();
    bench.0.api::<Deployment>().delete("paused", &DeleteParams::default()).await.unwrap();
    wait::until("a minute has passed", PATIENCE * 2, async || {
        ensure!(stopped.elapsed() >= Duration::from_secs(60), "not yet");
        Ok(())
    })
    .await
    .unwrap();
    let position = bench.now().unwrap();
    first.signal(Signal::SIGCONT).unwrap();
    let status = first.ended().await.unwrap();
    assert!(!status.success(), "it went on as if it led");
    bench.settled("later").await.unwrap();
    let mut writes = first.all_requests(&bench.0.plane, position).unwrap();
    writes.retain(Request::is_write);
    assert!(writes.is_empty(), "the old leader wrote:\n  {}", shown(&writes));
}

#[tokio::test]
async fn a_right_that_is_missing_is_named_and_heals_soon_after_it_is_granted() {
    let (bench, leader) = Bench::with_leader().await.unwrap();
    bench.settled("granted").await.unwrap();
    let rights = ["get", "clusterrole", "peristyle", "-o", "json"];
    let rights = bench.0.plane.kubectl(&rights).await.unwrap();
    let mut reduced: Value = serde_json::from_str(&rights).unwrap();
    for rule in reduced["rules"].as_array_mut().unwrap() {
        if rule["resources"] == json!(["deployments"]) {
            rule["verbs"] = json!(["get", "list", "watch"]);
        }
    }
    let replace = async |role: &Value| {
        let mut role = role.clone();
        role["metadata"] = json!({"name": "peristyle"});
        bench.0.plane.kubectl_with_input(&["replace", "-f", "-"], &role.to_string()).await.unwrap();
    };
    replace(&reduced).await;
    let position = bench.now().unwrap();
    bench.apply("refused", json!({"image": "x:1"})).await.unwrap();
    let message = bench.ready("refused", "False", "Forbidden").await.unwrap();
    assert!(message.contains("cannot patch resource \"deployments\""), "{message}");
    bench.ready("granted", "Unknown", "RolloutInProgress").await.unwrap();

    let refused = || -> Result<Vec<Request>> {
        let mut requests = leader.requests(&bench.0.plane, position)?;
        requests.retain(|request| request.code == 403);
        Ok(requests)
    };
    let tries = wait::until("it is tried a second time", PATIENCE, async || {
        let refused = refused()?;
        ensure!(refused.len() >= 2, "{} tries", refused.len());
        Ok(refused)
    });
    let tries = tries.await.unwrap();
    assert!(tries[1].at - tries[0].at >= 30.0, "tried again too soon:\n  {}", shown(&tries));

    replace(&serde_json::from_str(&rights).unwrap()).await;
    let granted = Instant::now();
    bench.deployment("refused", "x:1").await.unwrap();
    assert!(granted.elapsed() <= Duration::from_secs(60));
    let events = warnings(&bench, "refused").await.unwrap();
    assert_eq!(events.len(), 1, "one transition, one event: {events:?}");
}

/// Reasons of the warnings about a Service.
async fn warnings(bench: &Bench, name: &str) -> Result<Vec<String>> {
    let events = bench.0.api::<Event>().list(&ListParams::default()).await?;
    let about = events.into_iter().filter(|event| event.involved_object.name.as_deref() == Some(name));
    Ok(about
        .filter(|event| event.type_.as_deref() == Some("Warning"))
        .filter_map(|event| event.reason)
        .collect())
}

#[tokio::test]
async fn an_api_server_that_comes_back_is_asked_for_each_kind_once_and_no_child_is_touched() {
    let (bench, leader) = Bench::with_leader().await.unwrap();
    bench.settled("orders").await.unwrap();
    for _ in 0..2 {
        let position = bench.now().unwrap();
        bench.0.plane.restart_apiserver().await.unwrap();
        // Its watch cache is younger than what the operator has seen: 410 Gone.
        let name = format!("later-{position}");
        bench.apply(&name, json!({"image": "x:1"})).await.unwrap();
        bench.deployment(&name, "x:1").await.unwrap();
        let requests = leader.requests(&bench.0.plane, position).unwrap();
        let mut lists: Vec<String> = requests
            .iter()
            .filter(|request| request.verb == "list" && request.code == 200)
            .map(|request| format!("{}.{} {}", request.resource, request.group, request.namespace))
            .collect();
        lists.sort();
        let mut kinds = lists.clone();
        kinds.dedup();
        assert_eq!(lists, kinds, "a kind was listed twice");
        assert!(kinds.iter().any(|kind| kind.starts_with("services.peristyle.dev")), "{kinds:?}");
        // Its status follows what the Deployment's own controller does meanwhile.
        let is_child =
            |r: &Request| r.is_write() && r.name.starts_with("orders") && r.group != "peristyle.dev";
        let writes: Vec<Request> = requests.into_iter().filter(is_child).collect();
        assert!(writes.is_empty(), "written although nothing had changed:\n  {}", shown(&writes));
    }
}

#[tokio::test]
async fn requests_are_as_many_as_there_are_changes() {
    let (bench, leader) = Bench::with_leader().await.unwrap();
    let plane = &bench.0.plane;
    // The first status that says what it waits for is the last write of a creation here.
    let position = bench.now().unwrap();
    bench.settled("orders").await.unwrap();
    let writes = quiet(&bench, &leader, position).await.unwrap();
    let about: Vec<Request> = writes.into_iter().filter(|w| !is_event(w)).collect();
    assert!(about.len() <= CHILDREN + 2, "creation:\n  {}", shown(&about));

    let position = bench.now().unwrap();
    bench.apply("orders", json!({"image": "x:2"})).await.unwrap();
    bench.deployment("orders", "x:2").await.unwrap();
    let writes = quiet(&bench, &leader, position).await.unwrap();
    let about: Vec<Request> = writes.into_iter().filter(|w| !is_event(w)).collect();
    // The status once it is applied, and once the Deployment's own controller has answered.
    assert!(about.len() <= 3, "one field of one child:\n  {}", shown(&about));
    let mut reads = leader.requests(plane, position).unwrap();
    reads.retain(|request| !request.is_write() && request.verb != "watch");
    assert!(reads.is_empty(), "read although everything is cached:\n  {}", shown(&reads));

    // A label of the object makes a pass and changes nothing.
    let before = passes(&leader.metrics().await.unwrap());
    let position = bench.now().unwrap();
    let label = json!({"metadata": {"labels": {"team": "blue"}}});
    bench.0.api::<Service>().patch("orders", &PatchParams::default(), &Patch::Merge(&label)).await.unwrap();
    wait::until("there was a pass", PATIENCE, async || {
        ensure!(passes(&leader.metrics().await?) > before, "not yet");
        Ok(())
    })
    .await
    .unwrap();
    let requests = leader.requests(plane, position).unwrap();
    let asked: Vec<Request> = requests.into_iter().filter(|r| r.verb != "watch").collect();
    assert!(asked.is_empty(), "a pass without a change asked:\n  {}", shown(&asked));
}

fn is_event(request: &Request) -> bool {
    request.resource == "events"
}

/// Successful passes over Services.
fn passes(metrics: &str) -> u64 {
    let line = metrics.lines().find(|line| {
        line.starts_with("peristyle_reconciles_total")
            && line.contains("\"Service\"")
            && line.contains("success")
    });
    line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
}

/// Waits until nothing is written for a second; what was written since `position`.
async fn quiet(bench: &Bench, leader: &Replica, position: u64) -> Result<Vec<Request>> {
    let mut last = (leader.writes(&bench.0.plane, position)?.len(), Instant::now());
    wait::until("nothing more is written", PATIENCE, async || {
        let writes = leader.writes(&bench.0.plane, position)?;
        if writes.len() != last.0 {
            last = (writes.len(), Instant::now());
        }
        ensure!(last.1.elapsed() >= Duration::from_secs(1), "the latest:\n  {}", shown(&writes));
        Ok(writes)
    })
    .await
}

#[tokio::test]
async fn an_object_that_cannot_be_read_says_so_and_the_others_go_on() {
    let (bench, _leader) = Bench::with_leader().await.unwrap();
    bench.settled("readable").await.unwrap();
    bench.settled("changed").await.unwrap();
    // As with definitions of another version: the API server takes what the operator cannot read.
    let lenient = json!([{"op": "replace", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/spec",
        "value": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}}]);
    let patch = ["patch", "crd", "services.peristyle.dev", "--type=json", "-p", &lenient.to_string()];
    bench.0.plane.kubectl(&patch).await.unwrap();
    let unreadable = json!({"image": "x:1", "resources": "many"});
    wait::until("the API server takes it", PATIENCE, async || {
        bench.apply("unreadable", unreadable.clone()).await
    })
    .await
    .unwrap();
    bench.apply("changed", unreadable.clone()).await.unwrap();
    let untyped = async |name: &str| -> Result<Value> {
        let text = bench.0.plane.kubectl(&["get", "psvc", name, "-n", NAMESPACE, "-o", "json"]).await?;
        Ok(serde_json::from_str(&text)?)
    };
    for name in ["unreadable", "changed"] {
        wait::until("its status names the field", PATIENCE, async || {
            let object = untyped(name).await?;
            let conditions = object["status"]["conditions"].as_array().context("no conditions")?;
            let ready = conditions.iter().find(|c| c["type"] == "Ready").context("no Ready")?;
            let message = ready["message"].as_str().unwrap_or_default();
            ensure!(ready["status"] == "False" && ready["reason"] == "Invalid", "{ready}");
            ensure!(message.contains("spec.resources") && message.contains("\"many\""), "{ready}");
            ensure!(object["status"]["observedGeneration"] == object["metadata"]["generation"], "{object}");
            Ok(())
        })
        .await
        .unwrap();
    }
    assert_eq!(untyped("changed").await.unwrap()["status"]["inventory"].as_array().unwrap().len(), CHILDREN);
    bench.deployment("changed", "x:1").await.unwrap();
    bench.settled("later").await.unwrap();

    bench.settled("unreadable").await.unwrap();
}
