//! A Keto and an Oathkeeper that accept connections and do not answer.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, ensure};
use http::{Method, StatusCode};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, ListParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::{PATIENCE, apply, apply_service, arrives, becomes_ready, ready, remove, tells};
use crate::faults::http::disturbance::Disturbance;
use crate::faults::rig::Rig;
use crate::faults::runner::Runner;
use crate::faults::workload::Step;
use crate::operated::NAMESPACE;
use crate::stack::SYSTEM_NAMESPACE;
use crate::wait;

/// How soon what nobody may enter any more is closed: a right that is missing is
/// looked for again only after half a minute.
const CLOSED: Duration = Duration::from_secs(15);
/// How soon a deletion is over, or says what it waits for.
const DELETED: Duration = Duration::from_secs(30);

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

/// Keto is away while everything is deleted: nothing waits for it, and what it
/// still knows is taken back when it is there again.
pub async fn what_is_deleted_without_keto_goes_in_time_and_its_tuples_follow(runner: &Runner) -> Result<()> {
    let rig = &runner.rig;
    let all = [&rig.keto_read, &rig.keto_write, &rig.keto_opl];
    for keto in all {
        keto.disturb(|_| Some(Disturbance::Close));
    }
    rig.journal.begin(None);
    Step::Delete.act(&rig.client).await?;
    let gone = async || rig.has_arrived(Step::Delete).await;
    wait::until("everything is gone", DELETED, gone).await?;
    let left = runner.left(Step::Delete).await?;
    ensure!(left.iter().any(|line| line.contains("Keto")), "Keto was not away: {left:?}");
    for keto in all {
        keto.calm();
    }
    wait::until("Keto knows nothing of it", PATIENCE, async || {
        let left = runner.left(Step::Delete).await?;
        ensure!(left.is_empty(), "{left:?}");
        Ok(())
    })
    .await?;
    let violations = rig.journal.entries().violations;
    ensure!(violations.is_empty(), "{violations:?}");
    runner.walk(&[Step::Create]).await
}

/// A new policy makes the class ask every pod for its rules, and none answers.
pub async fn a_silent_oathkeeper_publishes_no_route_and_withdraws_none(runner: &Runner) -> Result<()> {
    let rig = &runner.rig;
    let before = routes(rig, "greeter").await?;
    rig.journal.begin(None);
    rig.oathkeeper.disturb(|_| Some(Disturbance::Hang));
    apply(rig, "AuthPolicy", "guarded", policy()).await?;
    apply(rig, "Service", "guarded", guarded("x:1")).await?;
    tells(rig, "Service", "guarded", "OathkeeperUnavailable").await?;
    let ways_in = ways_in(rig, "guarded").await?;
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

/// The Service is left alone, because a right is missing that its routes do not need.
pub async fn a_route_whose_policy_goes_is_closed_although_a_right_is_missing(runner: &Runner) -> Result<()> {
    let rig = &runner.rig;
    apply(rig, "AuthPolicy", "guarded", policy()).await?;
    apply(rig, "Service", "guarded", guarded("x:1")).await?;
    becomes_ready(rig, "Service", "guarded").await?;
    ensure!(!ways_in(rig, "guarded").await?.is_empty(), "nothing was published");
    rig.api.disturb(|seen| {
        let is_chosen = seen.method == Method::PATCH && seen.path.contains("/deployments/guarded");
        is_chosen
            .then(|| Disturbance::status(StatusCode::FORBIDDEN, "Forbidden", "may not patch deployments"))
    });
    apply(rig, "Service", "guarded", guarded("x:2")).await?;
    tells(rig, "Service", "guarded", "Forbidden").await?;
    remove(rig, "AuthPolicy", "guarded").await?;
    wait::until("the route is closed", CLOSED, async || {
        let ways_in = ways_in(rig, "guarded").await?;
        ensure!(ways_in.is_empty(), "{ways_in:?}");
        Ok(())
    })
    .await?;
    let told = ready(rig, "Service", "guarded").await?;
    ensure!(told["reason"] == "Forbidden", "it was not left alone any more: {told}");
    rig.api.calm();
    remove(rig, "Service", "guarded").await?;
    arrives(rig, Step::MoveBack).await
}

/// Nobody may touch the route, so it cannot go before the rules that it asks for:
/// these go all the same, and Oathkeeper knows nothing that would let somebody in.
pub async fn the_rules_of_a_policy_that_goes_do_not_wait_for_a_route_that_cannot(
    runner: &Runner,
) -> Result<()> {
    let rig = &runner.rig;
    apply(rig, "AuthPolicy", "guarded", policy()).await?;
    apply(rig, "Service", "guarded", guarded("x:1")).await?;
    becomes_ready(rig, "Service", "guarded").await?;
    ensure!(has_rules(rig, "guarded").await?, "no rule is published");
    rig.api.disturb(|seen| {
        let is_chosen = seen.method != Method::GET && seen.path.contains("/ingressroutes/guarded");
        is_chosen.then(|| Disturbance::status(StatusCode::FORBIDDEN, "Forbidden", "may not touch routes"))
    });
    remove(rig, "AuthPolicy", "guarded").await?;
    wait::until("the rules are gone", CLOSED, async || {
        ensure!(!has_rules(rig, "guarded").await?, "they still stand");
        Ok(())
    })
    .await?;
    ensure!(!ways_in(rig, "guarded").await?.is_empty(), "the route could go");
    rig.api.calm();
    remove(rig, "Service", "guarded").await?;
    arrives(rig, Step::MoveBack).await
}

/// Whether the file that Oathkeeper reads has rules of this policy.
async fn has_rules(rig: &Rig, policy: &str) -> Result<bool> {
    let maps: Api<ConfigMap> = Api::namespaced(rig.client.clone(), SYSTEM_NAMESPACE);
    let rules = maps.get("oathkeeper-rules").await?.data.unwrap_or_default();
    Ok(rules.values().any(|rules| rules.contains(&format!("\"id\":\"{NAMESPACE}.{policy}."))))
}

fn policy() -> Value {
    json!({
        "targets": [{"service": "guarded"}],
        "authentication": [{"name": "idp", "jwt": {"issuer": "http://auth.test", "audiences": ["guarded"]}}],
        "rules": [{"name": "all", "match": {"http": [{"path": {"prefix": "/"}}]}, "authentication": ["idp"]}]
    })
}

fn guarded(image: &str) -> Value {
    json!({"image": image, "ports": [{"name": "http", "port": 8080, "protocol": "HTTP"}],
        "expose": [{"name": "public"}]})
}

/// Routes that do not refuse.
async fn ways_in(rig: &Rig, service: &str) -> Result<Vec<String>> {
    Ok(routes(rig, service).await?.into_keys().filter(|name| !name.contains("-fence-")).collect())
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
