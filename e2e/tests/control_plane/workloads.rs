//! How a Service follows its pods and what they read, on a real API server with
//! real controllers. No node: the tests say what a kubelet would say.

mod ignored;
mod late;
mod references;
mod untouched;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use e2e::operated::{NAMESPACE, Operated};
use e2e::wait;
use k8s_openapi::api::{
    apps::v1::Deployment,
    autoscaling::v1::Scale,
    core::v1::{Pod, ResourceQuota},
    events::v1::Event,
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams},
};
use peristyle_crds::v1alpha1::{Service, service::ServiceStatus};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);
/// Within this time a Service says what is wrong with its pods.
const NEWS: Duration = Duration::from_secs(10);

struct Bench(Operated);

impl Bench {
    async fn start() -> Result<Self> {
        let mut operated = Operated::prepare().await?;
        operated.operate("first").await?;
        Ok(Self(operated))
    }

    async fn apply(&self, name: &str, spec: Value) -> Result<()> {
        self.0.team().apply("Service", name, &spec).await
    }

    /// Objects of Traefik in the tests' namespace.
    fn traefik(&self, kind: &str) -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("traefik.io", "v1alpha1", kind));
        Api::namespaced_with(self.0.client.clone(), NAMESPACE, &resource)
    }

    async fn status(&self, name: &str) -> Result<ServiceStatus> {
        self.0.api::<Service>().get(name).await?.status.context("no status yet")
    }

    /// Waits until a condition has this status and reason, and returns its message.
    async fn says(
        &self,
        name: &str,
        type_: &str,
        expected: (&str, &str),
        patience: Duration,
    ) -> Result<String> {
        self.0.team().becomes_within(patience, "Service", name, type_, expected).await
    }

    /// Waits until nobody may connect to the pods.
    async fn closes(&self, name: &str) {
        let is_closed = |policy: &NetworkPolicy| {
            policy.spec.as_ref().is_some_and(|spec| spec.ingress.iter().flatten().count() == 0)
        };
        let policies = self.0.api::<NetworkPolicy>();
        wait::object(&policies, name, "the policy is closed", PATIENCE, is_closed).await.unwrap();
    }

    /// The pods of a Service that are not on their way out.
    async fn pods(&self, name: &str) -> Result<Vec<Pod>> {
        let ours = ListParams::default().labels(&format!("app.kubernetes.io/instance={name}"));
        let mut pods = self.0.api::<Pod>().list(&ours).await?.items;
        pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
        Ok(pods)
    }

    async fn pod(&self, name: &str) -> Result<String> {
        wait::until(&format!("{name} has a pod"), PATIENCE, async || {
            let pods = self.pods(name).await?;
            pods.first().map(ResourceExt::name_any).context("none yet")
        })
        .await
    }

    /// Says what the kubelet says of the only container of a pod.
    async fn kubelet(
        &self,
        pod: &str,
        is_ready: bool,
        restarts: i32,
        state: Value,
        last: Value,
    ) -> Result<()> {
        let ready = if is_ready { "True" } else { "False" };
        let status = json!({"status": {
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            "containerStatuses": [{"name": "orders", "image": "r.test/o:1", "imageID": "", "ready": is_ready,
                "restartCount": restarts, "state": state, "lastState": last}]
        }});
        let params = PatchParams::default();
        self.0.api::<Pod>().patch_status(pod, &params, &Patch::Merge(&status)).await?;
        Ok(())
    }

    async fn runs(&self, pod: &str) -> Result<()> {
        self.kubelet(pod, true, 0, json!({"running": {"startedAt": "2026-01-01T00:00:00Z"}}), json!({})).await
    }

    /// The pods' template as the operator wants it.
    async fn template(&self, name: &str) -> Result<Value> {
        Ok(serde_json::to_value(
            self.0.api::<Deployment>().get(name).await?.spec.context("no spec")?.template,
        )?)
    }

    /// Waits until the operator has looked at everything that happened so far.
    async fn quiet(&self, name: &str) -> Result<()> {
        // The value of a label that it copies nowhere makes it look once more.
        let mark = format!("mark-{name}");
        self.apply(&mark, json!({"image": "x:1", "replicas": 0})).await?;
        self.says(&mark, "Ready", ("True", "Succeeded"), PATIENCE).await?;
        Ok(())
    }
}

fn crash() -> Value {
    json!({"terminated": {"exitCode": 1, "reason": "Error", "startedAt": null, "finishedAt": null}})
}

#[tokio::test]
async fn what_happens_to_pods_is_told_within_seconds_and_withdrawn() {
    let bench = Bench::start().await.unwrap();
    bench.apply("orders", json!({"image": "r.test/o:1", "replicas": 1})).await.unwrap();
    let pod = bench.pod("orders").await.unwrap();
    bench.says("orders", "Ready", ("Unknown", "RolloutInProgress"), PATIENCE).await.unwrap();

    // The first rollout fails.
    let pull = json!({"waiting": {"reason": "ErrImagePull", "message": "at 12:00"}});
    bench.kubelet(&pod, false, 0, pull, json!({})).await.unwrap();
    let message = bench.says("orders", "Ready", ("False", "ImagePullBackOff"), NEWS).await.unwrap();
    assert_eq!(message, format!("{pod}: ImagePullBackOff (image r.test/o:1)"));

    // It succeeds.
    bench.runs(&pod).await.unwrap();
    bench.says("orders", "WorkloadAvailable", ("True", "Succeeded"), NEWS).await.unwrap();
    bench.says("orders", "Ready", ("True", "Succeeded"), NEWS).await.unwrap();
    assert_eq!(bench.status("orders").await.unwrap().pods.as_deref(), Some("1/1"));

    // What was good fails.
    let waiting = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}});
    bench.kubelet(&pod, false, 3, waiting.clone(), crash()).await.unwrap();
    let message = bench.says("orders", "Ready", ("False", "CrashLoopBackOff"), NEWS).await.unwrap();
    assert_eq!(message, format!("{pod}: CrashLoopBackOff (exit 1), 3 restarts"));
    wait::until("the counts are told", NEWS, async || {
        let status = bench.status("orders").await?;
        ensure!(status.pods.as_deref() == Some("0/1"), "{status:?}");
        Ok(())
    })
    .await
    .unwrap();

    // What the kubelet does about it changes nothing; another restart does.
    let before = bench.0.api::<Service>().get("orders").await.unwrap().resource_version();
    for state in [crash(), json!({"running": {"startedAt": null}}), waiting] {
        bench.kubelet(&pod, false, 3, state, crash()).await.unwrap();
    }
    bench.quiet("orders").await.unwrap();
    let after = bench.0.api::<Service>().get("orders").await.unwrap().resource_version();
    assert_eq!(before, after, "the status was written although nothing had happened");
    bench.kubelet(&pod, false, 4, json!({"running": {"startedAt": null}}), crash()).await.unwrap();
    wait::until("the restart is told", NEWS, async || {
        let message = bench.says("orders", "Ready", ("False", "CrashLoopBackOff"), NEWS).await?;
        ensure!(message.ends_with("4 restarts"), "{message}");
        Ok(())
    })
    .await
    .unwrap();

    bench.runs(&pod).await.unwrap();
    bench.says("orders", "Ready", ("True", "Succeeded"), NEWS).await.unwrap();
}

#[tokio::test]
async fn a_quota_a_scheduler_and_a_missing_key_are_named() {
    let bench = Bench::start().await.unwrap();
    let quota: ResourceQuota =
        serde_json::from_value(json!({"metadata": {"name": "small"}, "spec": {"hard": {"count/pods": "1"}}}))
            .unwrap();
    bench.0.api::<ResourceQuota>().create(&PostParams::default(), &quota).await.unwrap();
    wait::object(&bench.0.api::<ResourceQuota>(), "small", "the quota counts", PATIENCE, |quota| {
        quota.status.as_ref().is_some_and(|status| status.hard.is_some())
    })
    .await
    .unwrap();
    bench.apply("orders", json!({"image": "r.test/o:1", "replicas": 2})).await.unwrap();
    let message = bench.says("orders", "Ready", ("False", "QuotaExceeded"), PATIENCE).await.unwrap();
    assert!(message.starts_with("orders: pods cannot be created: exceeded quota: small"), "{message}");

    let pod = bench.pod("orders").await.unwrap();
    let says = json!({"status": {"conditions": [{"type": "PodScheduled", "status": "False",
        "reason": "Unschedulable", "message": "0/3 nodes are available: 3 Insufficient memory."}]}});
    bench.0.api::<Pod>().patch_status(&pod, &PatchParams::default(), &Patch::Merge(&says)).await.unwrap();
    bench.0.api::<ResourceQuota>().delete("small", &kube::api::DeleteParams::default()).await.unwrap();
    let message = bench.says("orders", "Ready", ("Unknown", "Unschedulable"), PATIENCE).await.unwrap();
    assert_eq!(message, format!("{pod}: Unschedulable: 0/3 nodes are available: 3 Insufficient memory."));

    let missing = json!({"waiting": {"reason": "CreateContainerConfigError",
        "message": "couldn't find key k in Secret shop/s"}});
    bench.kubelet(&pod, false, 0, missing, json!({})).await.unwrap();
    let message =
        bench.says("orders", "Ready", ("Unknown", "CreateContainerConfigError"), NEWS).await.unwrap();
    assert_eq!(message, format!("{pod}: CreateContainerConfigError: couldn't find key k in Secret shop/s"));
}

#[tokio::test]
async fn a_failed_hook_stalls_the_rollout_and_is_quoted_without_its_password() {
    let bench = Bench::start().await.unwrap();
    let hook = json!([{"name": "migrate", "command": ["migrate"]}]);
    bench.apply("orders", json!({"image": "x:1", "hooks": {"preRollout": hook}})).await.unwrap();
    bench.says("orders", "Ready", ("Unknown", "HookRunning"), PATIENCE).await.unwrap();
    let log = "connecting\ncannot reach postgres://orders_w:pa55word@db:5432/orders: no such table\n";
    let ended = json!({"terminated": {"exitCode": 2, "reason": "Error", "message": log}});
    let status = json!({"status": {"phase": "Failed", "containerStatuses": [{"name": "orders",
        "image": "x:1", "imageID": "", "ready": false, "restartCount": 0, "state": ended}]}});
    // The Job controller tries again twice, ten and twenty seconds later.
    let message = wait::until("the hook has failed for good", PATIENCE * 2, async || {
        let hooks = ListParams::default().labels("peristyle.dev/hook=migrate");
        let pods = bench.0.api::<Pod>();
        for pod in pods.list(&hooks).await? {
            let phase = pod.status.as_ref().and_then(|status| status.phase.clone());
            if phase.as_deref() != Some("Failed") {
                let patch = Patch::Merge(&status);
                pods.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await?;
            }
        }
        let conditions = bench.status("orders").await?.conditions;
        let stalled = conditions.into_iter().find(|c| c.type_ == "Stalled" && c.reason == "HookFailed");
        Ok(stalled.context("it is still tried")?.message)
    })
    .await
    .unwrap();
    let quoted = ": exit 2: cannot reach postgres://orders_w:…@db:5432/orders: no such table; ";
    assert!(
        message.starts_with("hook migrate (Job orders-migrate-") && message.contains(quoted),
        "{message}"
    );
    assert!(bench.0.api::<Deployment>().get_opt("orders").await.unwrap().is_none(), "the rollout went on");
}

#[tokio::test]
async fn a_service_is_scaled_through_its_own_scale() {
    let bench = Bench::start().await.unwrap();
    bench.apply("orders", json!({"image": "x:1", "replicas": 1})).await.unwrap();
    bench.says("orders", "WorkloadAvailable", ("Unknown", "RolloutInProgress"), PATIENCE).await.unwrap();
    let budgets = bench.0.api::<PodDisruptionBudget>();
    assert!(
        budgets.get_opt("orders").await.unwrap().is_none(),
        "a budget for a single pod blocks every drain"
    );

    let api = bench.0.api::<Service>();
    let patch = json!({"spec": {"replicas": 3}});
    api.patch_scale("orders", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    let deployments = bench.0.api::<Deployment>();
    let scaled = |d: &Deployment| d.spec.as_ref().and_then(|spec| spec.replicas) == Some(3);
    wait::object(&deployments, "orders", "the Deployment follows", PATIENCE, scaled).await.unwrap();
    wait::until("there are three pods", PATIENCE, async || {
        let scale: Scale = serde_json::from_value(serde_json::to_value(api.get_scale("orders").await?)?)?;
        let status = scale.status.context("no status")?;
        ensure!(status.replicas == 3, "{status:?}");
        let selector = status.selector.context("no selector")?;
        let found = bench.0.api::<Pod>().list(&ListParams::default().labels(&selector)).await?;
        ensure!(found.items.len() == 3, "{} pods", found.items.len());
        Ok(())
    })
    .await
    .unwrap();
    bench.apply("unset", json!({"image": "x:1"})).await.unwrap();
    let patch = json!({"spec": {"replicas": 3}});
    api.patch_scale("unset", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    wait::object(&deployments, "unset", "the Deployment follows", PATIENCE, scaled).await.unwrap();

    let budget = budgets.get("orders").await.unwrap().spec.unwrap();
    let availability = json!({"image": "x:1", "replicas": 3, "availability": {"disruption": "AlwaysAllow"}});
    assert_eq!(serde_json::to_value(budget.max_unavailable).unwrap(), 1);
    bench.apply("orders", availability).await.unwrap();
    wait::until("the budget is gone", PATIENCE, async || {
        ensure!(budgets.get_opt("orders").await?.is_none(), "it is still there");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn what_is_odd_is_accepted_and_told_with_its_field() {
    let bench = Bench::start().await.unwrap();
    let everywhere = json!({"outbound": [{"cidr": "10.0.0.0/8"}, {"cidr": "0.0.0.0/0"}]});
    let odd = json!({"image": "r.test/o", "replicas": 0, "access": everywhere,
        "dependsOn": [{"name": "pay", "url": "https://api.example.com"}]});
    bench.apply("orders", odd).await.unwrap();
    bench.says("orders", "Ready", ("True", "Succeeded"), PATIENCE).await.unwrap();
    let problems = serde_json::to_value(bench.status("orders").await.unwrap().problems).unwrap();
    let told: Vec<_> = problems.as_array().unwrap().iter().map(|p| (&p["field"], &p["severity"])).collect();
    let warning = json!("Warning");
    let fields = ["spec.image", "spec.access.outbound[1]", "spec.dependsOn[0].url"].map(Value::from);
    assert_eq!(told, fields.iter().map(|field| (field, &warning)).collect::<Vec<_>>(), "{problems}");
    assert_eq!(
        problems[0]["message"],
        "r.test/o may be another program tomorrow; name a version or a digest"
    );
    bench.apply("orders", json!({"image": "r.test/o:1", "replicas": 0})).await.unwrap();
    wait::until("nothing is odd any more", PATIENCE, async || {
        let problems = bench.status("orders").await?.problems;
        ensure!(problems.is_empty(), "{problems:?}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn what_contradicts_itself_is_refused_by_the_schema() {
    let bench = Bench::start().await.unwrap();
    for (spec, message) in [
        (json!({"access": {"outbound": [{"cidr": "10.0.0.1/8"}]}}), "must be a network such as 10.0.0.0/8"),
        (json!({"access": {"outbound": [{"cidr": "example.com"}]}}), "must be a network such as 10.0.0.0/8"),
        (json!({"access": {"inbound": [{"service": "a b"}]}}), "spec.access.inbound[0].service"),
        (json!({"access": {"mode": "Closed"}}), "supported values: \"Isolated\", \"Open\""),
        (json!({"availability": {"spread": ["a", "a"]}}), "duplicate entries"),
        (json!({"shutdown": {"grace": "soon"}}), "spec.shutdown.grace"),
        (
            json!({"envFrom": [{"secretRef": {"name": "../../bank/secrets/keys", "optional": true}}]}),
            "spec.envFrom[0].secretRef.name",
        ),
        (
            json!({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "s?watch=1", "key": "k"}}}]}),
            "spec.env[0].valueFrom.configMapKeyRef.name",
        ),
    ] {
        let mut whole = json!({"image": "x:1"});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        let refused = bench.apply("orders", whole).await.unwrap_err().to_string();
        assert!(refused.contains(message), "{spec}: {refused}");
    }
}

#[tokio::test]
async fn a_caller_is_let_in_while_it_declares_the_call_and_no_longer() {
    let bench = Bench::start().await.unwrap();
    bench.apply("orders", json!({"image": "x:1", "replicas": 0})).await.unwrap();
    let calls = json!({"image": "x:1", "replicas": 0, "dependsOn": [{"name": "o", "service": "orders"}]});
    bench.apply("web", calls).await.unwrap();
    let policies = bench.0.api::<NetworkPolicy>();
    let lists =
        |policy: &NetworkPolicy| serde_json::to_string(&policy.spec).is_ok_and(|t| t.contains("\"web\""));
    wait::object(&policies, "orders", "web is let in", PATIENCE, lists).await.unwrap();
    let started = Instant::now();
    bench.apply("web", json!({"image": "x:1", "replicas": 0})).await.unwrap();
    wait::object(&policies, "orders", "web is let in no longer", PATIENCE, |p| !lists(p)).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(30), "it took {:?}", started.elapsed());
}

#[tokio::test]
async fn a_service_of_another_namespace_is_called_only_if_it_agrees_and_absence_reads_the_same() {
    let bench = Bench::start().await.unwrap();
    let elsewhere: kube::Api<Service> = kube::Api::namespaced(bench.0.client.clone(), "peristyle-system");
    let target = |inbound: Value| {
        json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": "Service", "metadata": {"name": "pay"},
            "spec": {"image": "x:1", "replicas": 0, "access": {"inbound": inbound}}})
    };
    let team = PatchParams::apply("team").force();
    let calls = json!({"image": "x:1", "replicas": 0,
        "dependsOn": [{"name": "p", "service": "pay", "namespace": "peristyle-system"}]});
    bench.apply("web", calls).await.unwrap();
    let absent = bench.says("web", "AccessValid", ("Unknown", "DependencyMissing"), PATIENCE).await.unwrap();
    elsewhere.patch("pay", &team, &Patch::Apply(target(json!([])))).await.unwrap();
    bench.quiet("web").await.unwrap();
    let refused = bench.says("web", "AccessValid", ("Unknown", "DependencyMissing"), PATIENCE).await.unwrap();
    assert_eq!(absent, refused, "the message tells whether the Service exists");
    assert!(bench.0.api::<Deployment>().get_opt("web").await.unwrap().is_none());

    let agrees = target(json!([{"service": "web", "namespace": "shop"}]));
    elsewhere.patch("pay", &team, &Patch::Apply(agrees)).await.unwrap();
    bench.says("web", "AccessValid", ("True", "Succeeded"), PATIENCE).await.unwrap();
    bench.says("web", "Ready", ("True", "Succeeded"), PATIENCE).await.unwrap();
    elsewhere.patch("pay", &team, &Patch::Apply(target(json!([])))).await.unwrap();
    bench.says("web", "AccessValid", ("Unknown", "DependencyMissing"), NEWS * 3).await.unwrap();
}

#[tokio::test]
async fn a_change_of_what_is_ours_is_reverted_with_an_event_and_a_manager_that_insists_is_named() {
    let bench = Bench::start().await.unwrap();
    bench.apply("orders", json!({"image": "x:1", "replicas": 0})).await.unwrap();
    bench.says("orders", "Ready", ("True", "Succeeded"), PATIENCE).await.unwrap();
    let deployments = bench.0.api::<Deployment>();
    let vandal = PatchParams { field_manager: Some("vandal".to_owned()), ..PatchParams::default() };
    let seconds = |d: &Deployment| d.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
    let ours = seconds(&deployments.get("orders").await.unwrap());
    for change in 0..5 {
        let edit = json!({"spec": {"minReadySeconds": 10 + change}});
        deployments.patch("orders", &vandal, &Patch::Merge(edit)).await.unwrap();
        wait::object(&deployments, "orders", "it is changed back", PATIENCE, |d| seconds(d) == ours)
            .await
            .unwrap();
    }
    let events: kube::Api<Event> = bench.0.api();
    wait::until("the change is told", PATIENCE, async || {
        let events = events.list(&ListParams::default()).await?;
        let notes: Vec<_> = events.iter().filter_map(|event| event.note.clone()).collect();
        let expected = "Deployment orders: vandal changed .spec.minReadySeconds; changed back";
        ensure!(notes.iter().any(|note| note == expected), "{notes:?}");
        Ok(())
    })
    .await
    .unwrap();

    let edit = json!({"spec": {"minReadySeconds": 99}});
    deployments.patch("orders", &vandal, &Patch::Merge(edit)).await.unwrap();
    let message = bench.says("orders", "Ready", ("False", "ForeignManager"), PATIENCE).await.unwrap();
    assert!(message.starts_with("Deployment orders: vandal changed .spec.minReadySeconds"), "{message}");
    bench.quiet("orders").await.unwrap();
    assert_eq!(seconds(&deployments.get("orders").await.unwrap()), Some(99));
}
