//! Caches that show the operator an old world.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Resource};
use peristyle_crds::names::{MANAGED_BY, MANAGED_BY_LABEL, SERVICE_LABEL};
use peristyle_crds::v1alpha1::Service;
use serde_json::json;
use tokio::sync::watch;

use super::{PATIENCE, arrives, is_at_rest, rests_for};
use crate::faults::http::{Seen, disturbance::Disturbance};
use crate::faults::runner::Runner;
use crate::faults::workload::Step;
use crate::operated::NAMESPACE;
use crate::wait;

pub async fn caches_that_lag_behind_bring_nothing_back(runner: &Runner) -> Result<()> {
    let rig = &runner.rig;
    let is_of_services = |seen: &Seen| seen.path.starts_with("/apis/peristyle.dev/v1alpha1/services?");
    rig.api.disturb(move |seen| {
        (seen.is_watch() && is_of_services(seen)).then_some(Disturbance::Late(Duration::from_secs(2)))
    });
    rig.restart().await?;
    runner.walk(&[Step::Move]).await?;
    // Its children are gone before the operator hears that the Service is.
    runner.walk(&[Step::Delete]).await?;
    rests_for(rig, Duration::from_secs(4)).await?;
    let effects = rig.journal.entries().effects;
    let made: Vec<_> = effects.into_keys().filter(|effect| effect.starts_with("create ")).collect();
    ensure!(made.is_empty(), "after the deletion there was: {made:?}");
    rig.api.calm();
    rig.restart().await?;
    runner.walk(&[Step::Create]).await
}

/// One child is deleted and another comes and goes while the operator sees
/// neither; it works on, and makes up for it when it hears.
pub async fn events_that_are_held_back_are_made_up_for(runner: &Runner) -> Result<()> {
    let rig = &runner.rig;
    let (is_held, receiver) = watch::channel(false);
    rig.api.disturb(move |seen| {
        let is_chosen = seen.is_watch() && seen.path.contains("/networkpolicies?");
        is_chosen.then(|| Disturbance::Hold(receiver.clone()))
    });
    rig.restart().await?;
    // Its caches have their first lists.
    wait::until("the operator is ready", PATIENCE, async || {
        reqwest::get(format!("http://{}/readyz", rig.operator.admin())).await?.error_for_status()?;
        Ok(())
    })
    .await?;
    is_at_rest(rig).await?;

    is_held.send_replace(true);
    let policies: Api<NetworkPolicy> = Api::namespaced(rig.client.clone(), NAMESPACE);
    let owner: Service = Api::namespaced(rig.client.clone(), NAMESPACE).get("greeter").await?;
    let owner = owner.controller_owner_ref(&()).context("the Service has no UID")?;
    let passing: NetworkPolicy = serde_json::from_value(json!({
        "metadata": {"name": "greeter-passing", "ownerReferences": [owner],
            "labels": {MANAGED_BY_LABEL: MANAGED_BY, SERVICE_LABEL: "greeter"}},
        "spec": {"podSelector": {}}
    }))?;
    policies.create(&PostParams::default(), &passing).await?;
    policies.delete("greeter-passing", &DeleteParams::default()).await?;
    let before = policies.get("greeter").await?;
    policies.delete("greeter", &DeleteParams::default()).await?;
    Step::Move.act(&rig.client).await?;
    arrives(rig, Step::Move).await?;
    ensure!(policies.get_opt("greeter").await?.is_none(), "the watch was not held");

    is_held.send_replace(false);
    wait::until("the child is back", PATIENCE, async || {
        let policy = policies.get("greeter").await?;
        ensure!(policy.spec == before.spec, "{:?}", policy.spec);
        Ok(())
    })
    .await?;
    is_at_rest(rig).await?;
    runner.walk(&[Step::Move, Step::MoveBack]).await?;
    rig.api.calm();
    rig.restart().await?;
    is_at_rest(rig).await
}
