//! The operator as a process among others: who leads, what it asks for, and
//! what it makes of an API server that refuses, ends and comes back. No node,
//! so no pod runs.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::audit::{self, Request};
use e2e::operated::{NAMESPACE, Operated};
use e2e::replica::{self, Replica};
use e2e::stack::SYSTEM_NAMESPACE;
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

#[tokio::test]
async fn a_right_that_is_missing_in_one_namespace_is_missed_only_there() {
    let (bench, _leader) = Bench::with_leader().await.unwrap();
    let role = ["get", "clusterrole", "peristyle", "-o", "json"];
    let mut role: Value = serde_json::from_str(&bench.0.plane.kubectl(&role).await.unwrap()).unwrap();
    let mut own = json!([]);
    for rule in role["rules"].as_array_mut().unwrap() {
        if rule["resources"] == json!(["deployments"]) {
            own = json!([rule.clone()]);
            rule["verbs"] = json!(["list", "watch"]);
        }
    }
    role["metadata"] = json!({"name": "peristyle"});
    let replace = ["replace", "-f", "-"];
    bench.0.plane.kubectl_with_input(&replace, &role.to_string()).await.unwrap();
    let grant = async |namespace: &str| {
        let rbac = |kind: &str| {
            json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
            "metadata": {"name": "deployments", "namespace": namespace}})
        };
        let mut items = [rbac("Role"), rbac("RoleBinding")];
        items[0]["rules"] = own.clone();
        items[1]["roleRef"] =
            json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "deployments"});
        items[1]["subjects"] =
            json!([{"kind": "ServiceAccount", "name": "peristyle", "namespace": SYSTEM_NAMESPACE}]);
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
        bench.0.plane.kubectl_with_input(&["apply", "-f", "-"], &list).await.unwrap();
    };
    grant(NAMESPACE).await;
    bench.0.plane.kubectl(&["create", "namespace", "closed"]).await.unwrap();
    let spec = json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": "Service",
        "metadata": {"name": "orders", "namespace": "closed"}, "spec": {"image": "x:1"}});
    bench.0.plane.kubectl_with_input(&["create", "-f", "-"], &spec.to_string()).await.unwrap();
    let reason = async || {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].reason}";
        bench.0.plane.kubectl(&["get", "psvc", "orders", "-n", "closed", "-o", path]).await
    };
    wait::until("the missing right is reported", PATIENCE, async || {
        let reason = reason().await?;
        ensure!(reason == "Forbidden", "{reason}");
        Ok(())
    })
    .await
    .unwrap();
    for name in ["a", "b", "c"] {
        bench.settled(name).await.unwrap();
    }
    grant("closed").await;
    let granted = Instant::now();
    wait::until("it heals", PATIENCE * 2, async || {
        let reason = reason().await?;
        ensure!(reason == "RolloutInProgress", "{reason}");
        Ok(())
    })
    .await
    .unwrap();
    assert!(granted.elapsed() <= Duration::from_secs(60), "{:?}", granted.elapsed());
}

#[tokio::test]
async fn a_start_that_waits_for_a_right_says_which() {
    let operated = Operated::prepare().await.unwrap();
    replica::grant(&operated.plane).await.unwrap();
    let first = ["get", "clusterrole", "peristyle", "-o", "jsonpath={.rules[0].resources}"];
    let all: Value = serde_json::from_str(&operated.plane.kubectl(&first).await.unwrap()).unwrap();
    assert_eq!(all[0], "services", "another rule is the first");
    let read = async |resources: Value| {
        let patch = json!([{"op": "replace", "path": "/rules/0/resources", "value": resources}]).to_string();
        let patch = ["patch", "clusterrole", "peristyle", "--type=json", "-p", &patch];
        operated.plane.kubectl(&patch).await.unwrap();
    };
    read(json!(["databases"])).await;
    let waiting = Replica::start(&operated.plane, "waiting").await.unwrap();
    wait::until("/readyz names the right", PATIENCE, async || {
        let (is_ready, text) = waiting.readiness().await?;
        ensure!(!is_ready && text.contains("cannot list resource \"services\""), "{text}");
        Ok(())
    })
    .await
    .unwrap();
    read(all).await;
    waiting.wait_until_leading().await.unwrap();
    let (is_ready, text) = waiting.readiness().await.unwrap();
    assert!(is_ready && text == "ok", "{text}");
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

/// What a replica did while the API server came back: each kind is listed at
/// most once, and no child of `orders` is written.
fn came_back_gently(bench: &Bench, replica: &Replica, position: u64) -> Result<()> {
    let requests = replica.requests(&bench.0.plane, position)?;
    let mut lists: Vec<String> = requests
        .iter()
        .filter(|request| request.verb == "list" && request.code == 200)
        .map(|request| format!("{}.{} {}", request.resource, request.group, request.namespace))
        .collect();
    lists.sort();
    let mut kinds = lists.clone();
    kinds.dedup();
    ensure!(lists == kinds, "a kind was listed twice: {lists:?}");
    let writes = requests.into_iter().filter(|r| r.is_write() && r.name.starts_with("orders"));
    // Its status follows what the Deployment's own controller does meanwhile, and an Event tells of it.
    let (statuses, others): (Vec<Request>, Vec<Request>) = writes.partition(|r| r.group == "peristyle.dev");
    let (events, writes): (Vec<Request>, Vec<Request>) =
        others.into_iter().partition(|r| r.group == "events.k8s.io");
    ensure!(events.len() <= statuses.len(), "told although nothing had changed:\n  {}", shown(&events));
    ensure!(writes.is_empty(), "written although nothing had changed:\n  {}", shown(&writes));
    Ok(())
}

#[tokio::test]
async fn ten_restarts_of_the_api_server_touch_no_child_and_ask_for_each_kind_once() {
    let (bench, first) = Bench::with_leader().await.unwrap();
    bench.settled("orders").await.unwrap();
    let mut replicas = vec![first, bench.replica("second").await.unwrap()];
    replicas[1].wait_until_ready().await.unwrap();
    for restart in 0..10 {
        let position = bench.now().unwrap();
        bench.0.plane.restart_apiserver().await.unwrap();
        let back = Instant::now();
        // Its watch cache is younger than what the operator has seen: 410 Gone.
        let name = format!("later-{restart}");
        bench.apply(&name, json!({"image": "x:1"})).await.unwrap();
        bench.deployment(&name, "x:1").await.unwrap();
        assert!(back.elapsed() <= Duration::from_secs(30), "{:?} to the first write", back.elapsed());
        for replica in &mut replicas {
            // A restart before each watch is open again would make it list twice.
            wait::until("no watch fails", PATIENCE, async || {
                let metrics = if replica.is_running()? { replica.metrics().await? } else { String::new() };
                let mut watches = metrics.lines().filter(|line| line.starts_with("peristyle_watch_failing{"));
                ensure!(watches.all(|watch| watch.ends_with(" 0")), "{metrics}");
                Ok(())
            })
            .await
            .unwrap();
            came_back_gently(&bench, replica, position).unwrap();
            // Who cannot renew its Lease in time ends, and the kubelet starts it again.
            if !replica.is_running().unwrap() {
                *replica = bench.replica(&format!("again-{restart}")).await.unwrap();
                replica.wait_until_ready().await.unwrap();
            }
        }
    }
}

#[tokio::test]
async fn after_a_long_outage_a_standby_leads_soon_with_what_is_and_touches_no_child() {
    let (bench, mut first) = Bench::with_leader().await.unwrap();
    bench.settled("orders").await.unwrap();
    let second = bench.replica("second").await.unwrap();
    second.wait_until_ready().await.unwrap();
    let position = bench.now().unwrap();
    bench.0.plane.stop_apiserver().await.unwrap();
    // The leader may not write for longer than its Lease holds.
    assert!(!first.ended().await.unwrap().success(), "it went on as if it led");
    let watches = ["/apis/peristyle.dev/v1alpha1/services", "/apis/apps/v1/deployments"];
    let failing = async |value: u8| {
        let metrics = second.metrics().await?;
        for path in watches {
            let line = format!("peristyle_watch_failing{{path=\"{path}\"}} {value}");
            ensure!(metrics.contains(&line), "no {line} in:\n{metrics}");
        }
        anyhow::Ok(())
    };
    // Long enough for every delay to be at its longest.
    let stopped = Instant::now();
    wait::until("half a minute has passed", PATIENCE * 2, async || {
        ensure!(stopped.elapsed() >= Duration::from_secs(30), "not yet");
        failing(1).await
    })
    .await
    .unwrap();

    bench.0.plane.start_apiserver().await.unwrap();
    let back = Instant::now();
    bench.apply("later", json!({"image": "x:1"})).await.unwrap();
    bench.deployment("later", "x:1").await.unwrap();
    assert!(back.elapsed() <= Duration::from_secs(30), "{:?} to the first write", back.elapsed());
    wait::until("no watch fails", PATIENCE, async || failing(0).await).await.unwrap();
    came_back_gently(&bench, &second, position).unwrap();
}

/// What one change needs: a pass for the spec, and one for the child.
const PASSES: u64 = 2;

#[tokio::test]
async fn requests_are_as_many_as_there_are_changes() {
    let (bench, leader) = Bench::with_leader().await.unwrap();
    // Nothing but the operator moves.
    bench.0.plane.stop_controllers().unwrap();
    let position = bench.now().unwrap();
    bench.settled("orders").await.unwrap();
    let asked = quiet(&bench, &leader, position).await.unwrap();
    let is_child = |r: &&Request| r.verb == "patch" && r.code == 201;
    assert_eq!(asked.iter().filter(is_child).count(), CHILDREN, "{}", shown(&asked));
    // Besides, the status and the event that tells of it.
    assert_eq!(asked.len(), CHILDREN + 2, "a creation:\n  {}", shown(&asked));

    let (asked, image) = change(&bench, &leader, json!({"image": "x:2"})).await.unwrap();
    assert_eq!(verbs(&asked), ["patch deployments", "patch services/status"], "one field of one child");

    // What the API server stores in another form makes no loop.
    let cpu = |cpu: &str| json!({"image": "x:2", "resources": {"requests": {"cpu": cpu}}});
    let (asked, thousand) = change(&bench, &leader, cpu("1000m")).await.unwrap();
    assert_eq!(verbs(&asked), ["patch deployments", "patch services/status"], "{}", shown(&asked));
    let requested = |deployment: &Deployment| {
        let pod = deployment.spec.as_ref()?.template.spec.as_ref()?;
        Some(pod.containers.first()?.resources.as_ref()?.requests.as_ref()?.get("cpu")?.0.clone())
    };
    let deployments = bench.0.api::<Deployment>();
    let before = deployments.get("orders").await.unwrap();
    assert_eq!(requested(&before).as_deref(), Some("1"), "the API server keeps it as it is");
    let (asked, one) = change(&bench, &leader, cpu("1")).await.unwrap();
    assert_eq!(verbs(&asked), ["patch deployments", "patch services/status"], "{}", shown(&asked));
    for passes in [image, thousand, one] {
        assert!(passes <= PASSES, "{passes} passes for one change");
    }
    let after = deployments.get("orders").await.unwrap();
    assert_eq!(before.spec, after.spec, "the same in other words is a rollout");

    // A label of the object makes a pass and changes nothing.
    let before = passes_of(&leader).await.unwrap();
    let position = bench.now().unwrap();
    let label = json!({"metadata": {"labels": {"team": "blue"}}});
    bench.0.api::<Service>().patch("orders", &PatchParams::default(), &Patch::Merge(&label)).await.unwrap();
    wait::until("there was a pass", PATIENCE, async || {
        ensure!(passes_of(&leader).await? > before, "not yet");
        Ok(())
    })
    .await
    .unwrap();
    let asked = quiet(&bench, &leader, position).await.unwrap();
    assert!(asked.is_empty(), "a pass without a change asked:\n  {}", shown(&asked));
}

/// Applies `spec`; what the operator asked for until it was quiet, and its passes.
async fn change(bench: &Bench, leader: &Replica, spec: Value) -> Result<(Vec<Request>, u64)> {
    let (position, before) = (bench.now()?, passes_of(leader).await?);
    bench.apply("orders", spec).await?;
    bench.ready("orders", "Unknown", "RolloutInProgress").await?;
    let asked = quiet(bench, leader, position).await?;
    Ok((asked, passes_of(leader).await? - before))
}

fn verbs(requests: &[Request]) -> Vec<String> {
    requests.iter().map(|request| format!("{} {}", request.verb, request.resource)).collect()
}

/// Successful passes over Services.
async fn passes_of(replica: &Replica) -> Result<u64> {
    let metrics = replica.metrics().await?;
    let line = metrics.lines().find(|line| {
        line.starts_with("peristyle_reconciles_total")
            && line.contains("\"Service\"")
            && line.contains("success")
    });
    Ok(line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).unwrap_or(0))
}

/// Waits until for a second nothing is asked, but for watches, and no pass ends:
/// one that has nothing to ask may come late. What was asked since `position`.
async fn quiet(bench: &Bench, replica: &Replica, position: u64) -> Result<Vec<Request>> {
    let asked = || -> Result<Vec<Request>> {
        let mut asked = replica.requests(&bench.0.plane, position)?;
        asked.retain(|request| request.verb != "watch");
        Ok(asked)
    };
    let mut last = ((asked()?.len(), passes_of(replica).await?), Instant::now());
    wait::until("nothing more is asked", PATIENCE, async || {
        let asked = asked()?;
        let now = (asked.len(), passes_of(replica).await?);
        if now != last.0 {
            last = (now, Instant::now());
        }
        ensure!(last.1.elapsed() >= Duration::from_secs(1), "the latest:\n  {}", shown(&asked));
        Ok(asked)
    })
    .await
}

#[tokio::test]
async fn each_write_of_another_manager_is_answered_by_one_and_in_time() {
    let (bench, leader) = Bench::with_leader().await.unwrap();
    bench.0.plane.stop_controllers().unwrap();
    bench.settled("orders").await.unwrap();
    let deployments = bench.0.api::<Deployment>();
    let seconds = |d: &Deployment| d.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
    let ours = seconds(&deployments.get("orders").await.unwrap());
    let editor = PatchParams { field_manager: Some("editor".to_owned()), ..PatchParams::default() };
    let merged = Patch::Merge(json!({"spec": {"minReadySeconds": 41}}));
    let applied = Patch::Apply(json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "orders"}, "spec": {"minReadySeconds": 42}}));
    for (params, edit) in [(editor, merged), (PatchParams::apply("gitops").force(), applied)] {
        let position = bench.now().unwrap();
        deployments.patch("orders", &params, &edit).await.unwrap();
        let edited = Instant::now();
        wait::object(&deployments, "orders", "it is changed back", PATIENCE, |d| seconds(d) == ours)
            .await
            .unwrap();
        assert!(edited.elapsed() <= Duration::from_secs(5), "{:?}", edited.elapsed());
        let asked = quiet(&bench, &leader, position).await.unwrap();
        let is_write = |r: &&Request| r.resource == "deployments" && r.is_write() && r.code < 300;
        assert_eq!(asked.iter().filter(is_write).count(), 1, "one for one:\n  {}", shown(&asked));
    }

    // An autoscaler writes the scale of the Service; its number is never the operator's to write.
    let position = bench.now().unwrap();
    let scale = PatchParams { field_manager: Some("autoscaler".to_owned()), ..PatchParams::default() };
    let services = bench.0.api::<Service>();
    services.patch_scale("orders", &scale, &Patch::Merge(json!({"spec": {"replicas": 5}}))).await.unwrap();
    let follows = |d: &Deployment| d.spec.as_ref().and_then(|spec| spec.replicas) == Some(5);
    wait::object(&deployments, "orders", "the Deployment follows", PATIENCE, follows).await.unwrap();
    let asked = quiet(&bench, &leader, position).await.unwrap();
    assert_eq!(services.get("orders").await.unwrap().spec.replicas, Some(5));
    let is_spec =
        |r: &&Request| r.is_write() && r.group == "peristyle.dev" && r.resource != "services/status";
    assert_eq!(asked.iter().filter(is_spec).count(), 0, "a spec was written:\n  {}", shown(&asked));
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
