//! Children that a team takes into its own hands.

use anyhow::ensure;
use e2e::{unasked_edge, wait};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Service as CoreService, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    ResourceExt,
    api::{DynamicObject, ListParams, Patch, PatchParams},
};
use peristyle_crds::v1alpha1::Service;
use serde_json::{Value, json};

use super::{Bench, PATIENCE};

#[tokio::test]
async fn an_ignored_child_is_left_alone_unless_it_protects() {
    let bench = Bench::start().await.unwrap();
    bench.apply("orders", json!({"image": "x:1", "replicas": 0})).await.unwrap();
    bench.says("orders", "Ready", ("True", "Succeeded"), PATIENCE).await.unwrap();
    let params = PatchParams::default();
    let ignore = json!({"metadata": {"labels": {"peristyle.dev/ignore": "true"}},
        "spec": {"minReadySeconds": 7}});
    bench.0.api::<Deployment>().patch("orders", &params, &Patch::Merge(ignore)).await.unwrap();
    let message = bench.says("orders", "Advisory", ("True", "Ignored"), PATIENCE).await.unwrap();
    assert!(message.contains("Deployment orders"), "{message}");
    let open = json!({"metadata": {"labels": {"peristyle.dev/ignore": "true"}}, "spec": {"ingress": [{}]}});
    bench.0.api::<NetworkPolicy>().patch("orders", &params, &Patch::Merge(open)).await.unwrap();
    bench.closes("orders").await;
    let deployment = bench.0.api::<Deployment>().get("orders").await.unwrap();
    assert_eq!(deployment.spec.and_then(|spec| spec.min_ready_seconds), Some(7));

    let keep = json!({"metadata": {"labels": {"peristyle.dev/ignore": null}}});
    bench.0.api::<Deployment>().patch("orders", &params, &Patch::Merge(keep)).await.unwrap();
    wait::until("nothing is ignored any more", PATIENCE, async || {
        let status = bench.status("orders").await?;
        ensure!(!status.conditions.iter().any(|c| c.type_ == "Advisory"), "{status:?}");
        Ok(())
    })
    .await
    .unwrap();
    let ignore = json!({"metadata": {"labels": {"peristyle.dev/ignore": "true"}}});
    bench.0.api::<Service>().patch("orders", &params, &Patch::Merge(ignore)).await.unwrap();
    bench.says("orders", "Ready", ("True", "Ignored"), PATIENCE).await.unwrap();
}

#[tokio::test]
async fn every_child_that_protects_nothing_can_be_taken_over_and_no_route_can() {
    let bench = Bench::start().await.unwrap();
    unasked_edge::create(&bench.0.client).await.unwrap();
    let spec = |args: &str| {
        json!({"image": "x:1", "replicas": 2, "args": [args],
            "expose": [{"name": "public", "auth": {"mode": "Public"}}]})
    };
    bench.apply("orders", spec("one")).await.unwrap();
    bench.says("orders", "RoutesProgrammed", ("True", "Succeeded"), PATIENCE).await.unwrap();

    let params = PatchParams::default();
    let taken = |change: Value| {
        let mut change = change;
        change["metadata"] = json!({"labels": {"peristyle.dev/ignore": "true"}});
        Patch::Merge(change)
    };
    let budgets = bench.0.api::<PodDisruptionBudget>();
    budgets.patch("orders", &params, &taken(json!({"spec": {"maxUnavailable": 2}}))).await.unwrap();
    let services = bench.0.api::<CoreService>();
    let selector = json!({"spec": {"selector": {"app.kubernetes.io/instance": "mine"}}});
    services.patch("orders", &params, &taken(selector)).await.unwrap();
    let accounts = bench.0.api::<ServiceAccount>();
    accounts.patch("orders", &params, &taken(json!({"automountServiceAccountToken": true}))).await.unwrap();
    let routes = bench.traefik("IngressRoute");
    let ours = ListParams::default().labels("peristyle.dev/service=orders");
    let before: Vec<_> = routes.list(&ours).await.unwrap().items;
    assert!(!before.is_empty());
    for route in &before {
        let nowhere = taken(json!({"spec": {"routes": []}}));
        routes.patch(&route.name_any(), &params, &nowhere).await.unwrap();
    }

    wait::until("the children are left alone, and told", PATIENCE, async || {
        let message = bench.says("orders", "Advisory", ("True", "Ignored"), PATIENCE).await?;
        let children = ["PodDisruptionBudget orders", "Service orders", "ServiceAccount orders"];
        ensure!(children.iter().all(|child| message.contains(child)), "{message}");
        ensure!(!message.contains("IngressRoute"), "{message}");
        Ok(())
    })
    .await
    .unwrap();
    for route in &before {
        let spec = route.data["spec"].clone();
        let is_back = |live: &DynamicObject| live.data["spec"] == spec;
        wait::object(&routes, &route.name_any(), "the route is back", PATIENCE, is_back).await.unwrap();
    }

    // A change that goes to all children passes these by.
    bench.apply("orders", spec("two")).await.unwrap();
    wait::until("the change is there", PATIENCE, async || {
        let args = &bench.template("orders").await?["spec"]["containers"][0]["args"];
        ensure!(*args == json!(["two"]), "{args}");
        Ok(())
    })
    .await
    .unwrap();
    let budget = budgets.get("orders").await.unwrap().spec.unwrap();
    assert_eq!(serde_json::to_value(budget.max_unavailable).unwrap(), 2);
    let selector = services.get("orders").await.unwrap().spec.unwrap().selector.unwrap();
    assert_eq!(selector["app.kubernetes.io/instance"], "mine");
    assert_eq!(accounts.get("orders").await.unwrap().automount_service_account_token, Some(true));
}
