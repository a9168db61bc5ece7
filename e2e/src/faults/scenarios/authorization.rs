//! A Keto and an Oathkeeper that accept connections and do not answer.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use super::{apply, apply_service, arrives, becomes_ready, remove, tells};
use crate::faults::http::disturbance::Disturbance;
use crate::faults::rig::Rig;
use crate::faults::runner::Runner;
use crate::faults::workload::Step;
use crate::operated::NAMESPACE;

pub async fn a_silent_keto_holds_up_nobody_else(runner: &Runner) -> Result<()> {
    let rig = &runner.rig;
    Step::Delete.act(&rig.client).await?;
    arrives(rig, Step::Delete).await?;
    let all = [&rig.keto_read, &rig.keto_write, &rig.keto_opl];
    for keto in all {
        keto.disturb(|_| Some(Disturbance::Hang));
    }
    rig.journal.begin(None);
    Step::Create.act(&rig.client).await?;
    apply_service(rig, "beside").await?;
    becomes_ready(rig, "Service", "beside").await?;
    tells(rig, "Service", "greeter", "KetoUnavailable").await?;
    for keto in all {
        keto.calm();
    }
    arrives(rig, Step::Create).await?;
    remove(rig, "Service", "beside").await
}

/// A new policy makes the class ask every pod for its rules, and none answers.
pub async fn a_silent_oathkeeper_publishes_no_route_and_withdraws_none(runner: &Runner) -> Result<()> {
    let rig = &runner.rig;
    let before = routes(rig, "greeter").await?;
    rig.journal.begin(None);
    rig.oathkeeper.disturb(|_| Some(Disturbance::Hang));
    let policy = json!({
        "targets": [{"service": "guarded"}],
        "authentication": [{"name": "idp", "jwt": {"issuer": "http://auth.test", "audiences": ["guarded"]}}],
        "rules": [{"name": "all", "match": {"http": [{"path": {"prefix": "/"}}]}, "authentication": ["idp"]}]
    });
    apply(rig, "AuthPolicy", "guarded", policy).await?;
    let service = json!({"image": "x:1", "ports": [{"name": "http", "port": 8080, "protocol": "HTTP"}],
        "expose": [{"name": "public"}]});
    apply(rig, "Service", "guarded", service).await?;
    tells(rig, "Service", "guarded", "OathkeeperUnavailable").await?;
    let ways_in: Vec<String> =
        routes(rig, "guarded").await?.into_keys().filter(|name| !name.contains("-fence-")).collect();
    ensure!(ways_in.is_empty(), "published although Oathkeeper is silent: {ways_in:?}");
    let after = routes(rig, "greeter").await?;
    ensure!(before == after, "routes of the greeter were {before:?}, and are {after:?}");

    rig.oathkeeper.calm();
    becomes_ready(rig, "Service", "guarded").await?;
    ensure!(routes(rig, "guarded").await?.len() > 1, "nothing was published afterwards");
    remove(rig, "Service", "guarded").await?;
    remove(rig, "AuthPolicy", "guarded").await?;
    arrives(rig, Step::MoveBack).await
}

/// Routes of a Service with their UIDs.
async fn routes(rig: &Rig, service: &str) -> Result<BTreeMap<String, String>> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("traefik.io", "v1alpha1", "IngressRoute"));
    let api: Api<DynamicObject> = Api::namespaced_with(rig.client.clone(), NAMESPACE, &resource);
    let found = api.list(&ListParams::default()).await?;
    let of_service = |route: &DynamicObject| {
        route.owner_references().iter().any(|owner| owner.kind == "Service" && owner.name == service)
    };
    let routes = found.items.into_iter().filter(of_service);
    Ok(routes.map(|route| (route.name_any(), route.uid().unwrap_or_default())).collect())
}
