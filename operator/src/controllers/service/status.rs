//! From what was applied to the status. Pure but for the cache of pods.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use peristyle_crds::{
    condition::{Reason, types},
    names::{IGNORE_LABEL, SERVICE_LABEL},
    v1alpha1::{Service, ServiceStatus},
};

use super::{apply::Applied, route::Routes, validate::Validated, workload};
use crate::{
    conditions::{Finding, State},
    context::Context,
    metadata::Owner,
    reconcile::Outcome,
};

/// How often an object that is left alone is looked at although nothing changed.
const PAUSED: Duration = Duration::from_secs(6 * 3600);

/// The status and how each aspect stands.
#[must_use]
pub fn outcome(
    ctx: &Context,
    owner: &Owner,
    service: &Service,
    validated: &Validated,
    routes: &Routes,
    applied: &Applied,
) -> Outcome<ServiceStatus> {
    let namespace = service.namespace().unwrap_or_default();
    let pods = if workload::is_settled(applied.deployment.as_ref(), &applied.hooks) {
        Vec::new()
    } else {
        ctx.stores.pods.labelled(&namespace, SERVICE_LABEL, &service.name_any())
    };
    let pods: Vec<&Pod> = pods.iter().map(|pod| &**pod).collect();
    let workload = workload::finding(
        applied.deployment.as_ref(),
        &applied.hooks,
        &validated.holds,
        &service.spec.image,
        &pods,
    );
    let live = applied.deployment.as_ref();
    let counts = live.and_then(|deployment| deployment.status.clone()).unwrap_or_default();
    let desired = live.and_then(|deployment| deployment.spec.as_ref()?.replicas);
    let desired = desired.unwrap_or(validated.replicas);
    let ready = counts.ready_replicas.unwrap_or(0);
    let selector = owner.selector();
    let selector: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let status = ServiceStatus {
        replicas: Some(counts.replicas.unwrap_or(0)),
        ready_replicas: Some(ready),
        pods: Some(format!("{ready}/{desired}")),
        selector: Some(selector.join(",")),
        url: routes.urls.first().map(|url| url.url.clone()),
        urls: routes.urls.clone(),
        inventory: applied.inventory.clone(),
        problems: validated.problems.clone(),
        ..ServiceStatus::default()
    };
    let mut findings =
        vec![validated.databases.clone(), validated.access.clone(), workload, routes.finding()];
    findings.extend(advisory(&applied.ignored));
    Outcome::new(status, findings)
}

fn advisory(ignored: &[String]) -> Option<Finding> {
    (!ignored.is_empty()).then(|| Finding {
        condition: types::ADVISORY,
        state: State::Good,
        reason: Reason::Ignored,
        message: format!("left alone for its label {IGNORE_LABEL}: {}", ignored.join(", ")),
    })
}

/// The last status, without the addresses of routes that are no longer served.
#[must_use]
pub fn last(service: &Service, routes: &Routes) -> ServiceStatus {
    let mut status = service.status.clone().unwrap_or_default();
    status.urls.retain(|url| routes.urls.contains(url));
    status.url = status.urls.first().map(|url| url.url.clone());
    status
}

/// `Ready` as it was, for another reason.
#[must_use]
pub fn paused(service: &Service, routes: &Routes, reason: Reason) -> Outcome<ServiceStatus> {
    let status = last(service, routes);
    let ready = status.conditions.iter().find(|condition| condition.type_ == types::READY);
    let state = match ready.map(|condition| condition.status.as_str()) {
        Some("True") => State::Good,
        Some("False") => State::Failed,
        _ => State::Waiting,
    };
    let why = match reason {
        Reason::Suspended => "spec.suspend is true".to_owned(),
        _ => format!("the label {IGNORE_LABEL} is set"),
    };
    let message = format!("{why}: nothing is changed but what protects");
    let mut findings = vec![Finding { condition: types::READY, state, reason, message }];
    findings.extend(Some(routes.finding()).filter(|finding| finding.state != State::Good));
    Outcome { requeue: Some(PAUSED), ..Outcome::new(status, findings) }
}
