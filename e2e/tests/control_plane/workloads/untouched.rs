//! What is kept, and what is told, while nothing else may be changed.

use anyhow::ensure;
use e2e::wait;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Service as CoreService, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use peristyle_crds::v1alpha1::Service;
use serde_json::{Value, json};

use super::{Bench, NEWS, PATIENCE, crash};

#[tokio::test]
async fn a_suspended_service_keeps_its_children_its_readiness_and_its_protection() {
    let bench = Bench::start().await.unwrap();
    let spec = |suspend: bool| json!({"image": "x:1", "replicas": 0, "suspend": suspend});
    bench.apply("orders", spec(false)).await.unwrap();
    bench.says("orders", "Ready", ("True", "Succeeded"), PATIENCE).await.unwrap();
    bench.apply("orders", spec(true)).await.unwrap();
    bench.says("orders", "Ready", ("True", "Suspended"), PATIENCE).await.unwrap();
    let status = bench.status("orders").await.unwrap();
    assert!(!status.conditions.iter().any(|c| c.type_ == "Reconciling"), "{status:?}");
    let generation = bench.0.api::<Service>().get("orders").await.unwrap().metadata.generation;
    assert_eq!(Some(status.observed_generation), generation);

    let params = PatchParams::default();
    let scale = json!({"spec": {"minReadySeconds": 7}});
    bench.0.api::<Deployment>().patch("orders", &params, &Patch::Merge(scale)).await.unwrap();
    let open = json!({"spec": {"ingress": [{}]}});
    bench.0.api::<NetworkPolicy>().patch("orders", &params, &Patch::Merge(open)).await.unwrap();
    bench.closes("orders").await;
    let seconds = |d: &Deployment| d.spec.as_ref().and_then(|spec| spec.min_ready_seconds);
    let deployment = bench.0.api::<Deployment>().get("orders").await.unwrap();
    assert_eq!(seconds(&deployment), Some(7), "a suspended Service was changed");

    bench.apply("orders", spec(false)).await.unwrap();
    wait::object(&bench.0.api::<Deployment>(), "orders", "it is as the spec says", PATIENCE, |d| {
        seconds(d) != Some(7)
    })
    .await
    .unwrap();
    bench.says("orders", "Ready", ("True", "Succeeded"), PATIENCE).await.unwrap();
}

/// The NetworkPolicy comes back when it is deleted, and closes when it is opened.
async fn is_protected(bench: &Bench) {
    let policies = bench.0.api::<NetworkPolicy>();
    let before = policies.get("orders").await.unwrap().metadata.uid;
    policies.delete("orders", &DeleteParams::default()).await.unwrap();
    wait::until("the policy is back", PATIENCE, async || {
        let policy = policies.get("orders").await?;
        ensure!(policy.metadata.uid != before, "it is the old one");
        Ok(())
    })
    .await
    .unwrap();
    let open = json!({"spec": {"ingress": [{}]}});
    policies.patch("orders", &PatchParams::default(), &Patch::Merge(open)).await.unwrap();
    bench.closes("orders").await;
}

/// A spec with a mistake in it.
fn mistaken(more: &Value) -> Value {
    let mut spec = json!({"image": "r.test/o:2", "replicas": 1, "env": [{"name": "PORT", "value": "1"}]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    spec
}

#[tokio::test]
async fn a_mistake_in_the_spec_leaves_the_pods_closed_suspended_or_not() {
    let bench = Bench::start().await.unwrap();
    bench.apply("orders", json!({"image": "r.test/o:1", "replicas": 0})).await.unwrap();
    bench.says("orders", "Ready", ("True", "Succeeded"), PATIENCE).await.unwrap();
    bench.apply("orders", mistaken(&json!({}))).await.unwrap();
    let message = bench.says("orders", "Ready", ("False", "Invalid"), PATIENCE).await.unwrap();
    assert!(message.starts_with("spec.env[0].name: PORT "), "{message}");
    is_protected(&bench).await;
    bench.apply("orders", mistaken(&json!({"suspend": true}))).await.unwrap();
    bench.says("orders", "Ready", ("False", "Suspended"), PATIENCE).await.unwrap();
    is_protected(&bench).await;

    // One that never was right is closed before it has a pod.
    bench.apply("wrong", mistaken(&json!({}))).await.unwrap();
    bench.says("wrong", "Ready", ("False", "Invalid"), PATIENCE).await.unwrap();
    bench.0.api::<NetworkPolicy>().get("wrong").await.unwrap();
}

/// `WorkloadAvailable` follows the pod to its end and back.
async fn follows(bench: &Bench, pod: &str) {
    let waiting = json!({"waiting": {"reason": "CrashLoopBackOff"}});
    bench.kubelet(pod, false, 3, waiting, crash()).await.unwrap();
    bench.says("orders", "WorkloadAvailable", ("False", "CrashLoopBackOff"), NEWS).await.unwrap();
    wait::until("no pod is counted", NEWS, async || {
        let status = bench.status("orders").await?;
        ensure!((status.pods.as_deref(), status.ready_replicas) == (Some("0/1"), Some(0)), "{status:?}");
        Ok(())
    })
    .await
    .unwrap();
    bench.runs(pod).await.unwrap();
    let message = bench.says("orders", "WorkloadAvailable", ("True", "Succeeded"), NEWS).await.unwrap();
    assert_eq!(message, "1 pod runs r.test/o:1", "the spec says r.test/o:2, and no pod runs that");
    assert_eq!(bench.status("orders").await.unwrap().pods.as_deref(), Some("1/1"));
}

#[tokio::test]
async fn pods_are_told_of_also_while_the_spec_is_not_acted_on() {
    let bench = Bench::start().await.unwrap();
    bench.apply("orders", json!({"image": "r.test/o:1", "replicas": 1})).await.unwrap();
    let pod = bench.pod("orders").await.unwrap();
    bench.runs(&pod).await.unwrap();
    bench.says("orders", "Ready", ("True", "Succeeded"), PATIENCE).await.unwrap();

    let next = |more: Value| {
        let mut spec = json!({"image": "r.test/o:2", "replicas": 1});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    bench.apply("orders", next(json!({"suspend": true}))).await.unwrap();
    bench.says("orders", "Ready", ("True", "Suspended"), PATIENCE).await.unwrap();
    follows(&bench, &pod).await;
    bench.says("orders", "Ready", ("True", "Suspended"), NEWS).await.unwrap();

    bench.apply("orders", mistaken(&json!({}))).await.unwrap();
    bench.says("orders", "Ready", ("False", "Invalid"), PATIENCE).await.unwrap();
    follows(&bench, &pod).await;

    let bound = json!([{"name": "main", "database": "ledger"}]);
    bench.apply("orders", next(json!({"databases": bound}))).await.unwrap();
    bench.says("orders", "Ready", ("Unknown", "DatabaseNotReady"), PATIENCE).await.unwrap();
    follows(&bench, &pod).await;

    // The budget comes before the pods, and its name is taken.
    let taken: PodDisruptionBudget = serde_json::from_value(json!({"metadata": {"name": "orders"},
        "spec": {"maxUnavailable": 0, "selector": {"matchLabels": {"app": "legacy"}}}}))
    .unwrap();
    bench.0.api::<PodDisruptionBudget>().create(&PostParams::default(), &taken).await.unwrap();
    bench.apply("orders", next(json!({"replicas": 2}))).await.unwrap();
    let message = bench.says("orders", "Ready", ("False", "NameConflict"), PATIENCE).await.unwrap();
    assert!(message.starts_with("PodDisruptionBudget orders exists"), "{message}");
    follows(&bench, &pod).await;
}

#[tokio::test]
async fn a_service_that_is_made_anew_waits_for_what_the_one_before_left_behind() {
    let bench = Bench::start().await.unwrap();
    let spec = || json!({"image": "x:1", "replicas": 0});
    bench.apply("orders", spec()).await.unwrap();
    bench.says("orders", "Ready", ("True", "Succeeded"), PATIENCE).await.unwrap();
    // From here on the test clears away what has lost its owner.
    bench.0.plane.stop_controllers().unwrap();
    let before = bench.0.api::<Service>().get("orders").await.unwrap().metadata.uid;
    bench.0.api::<Service>().delete("orders", &DeleteParams::background()).await.unwrap();
    bench.apply("orders", spec()).await.unwrap();
    let message = bench.says("orders", "Ready", ("Unknown", "Progressing"), PATIENCE).await.unwrap();
    assert!(message.starts_with("NetworkPolicy orders belongs to a deleted object"), "{message}");
    let conditions = bench.status("orders").await.unwrap().conditions;
    assert!(!conditions.iter().any(|condition| condition.type_ == "Stalled"), "{conditions:?}");

    let gone = DeleteParams::background();
    bench.0.api::<NetworkPolicy>().delete("orders", &gone).await.unwrap();
    bench.0.api::<ServiceAccount>().delete("orders", &gone).await.unwrap();
    bench.0.api::<CoreService>().delete("orders", &gone).await.unwrap();
    bench.0.api::<Deployment>().delete("orders", &gone).await.unwrap();
    let deployments = bench.0.api::<Deployment>();
    wait::until("the Deployment is that of the new Service", PATIENCE, async || {
        let deployment = deployments.get("orders").await?;
        let owner = deployment.owner_references().first().map(|owner| owner.uid.clone());
        ensure!(owner.is_some() && owner != before, "it belongs to {owner:?}");
        Ok(())
    })
    .await
    .unwrap();
}
