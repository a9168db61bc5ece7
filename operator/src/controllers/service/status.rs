//! From what was applied, or only seen, to the status. Pure but for the caches.

use std::{sync::Arc, time::Duration};

use peristyle_crds::{
    condition::{Reason, types},
    names::{IGNORE_LABEL, SERVICE_LABEL},
    v1alpha1::{Service, ServiceStatus},
};

use super::{
    apply::{Applied, HookState},
    route::Routes,
    validate::Validated,
    workload,
};
use crate::{
    conditions::{Finding, State},
    context::Context,
    metadata::{Owner, is_controlled_by},
    reconcile::Outcome,
    retry::{Classified, Consequence, Retry, consequence},
    stores::views::{Deployment, Pod},
};

/// How often an object that is left alone is looked at although nothing changed.
const PAUSED: Duration = Duration::from_secs(6 * 3600);

/// The status and how each aspect stands.
#[must_use]
pub fn outcome(
    ctx: &Context,
    owner: &Owner,
    validated: &Validated,
    routes: &Routes,
    applied: &Applied,
) -> Outcome<ServiceStatus> {
    let live = applied.deployment.as_deref();
    let workload = workload(ctx, owner, live, &applied.hooks, &validated.holds);
    let mut status = ServiceStatus {
        url: routes.urls.first().map(|url| url.url.clone()),
        urls: routes.urls.clone(),
        inventory: applied.inventory.clone(),
        problems: validated.problems.clone(),
        ..ServiceStatus::default()
    };
    count(&mut status, owner, live, validated.replicas);
    let mut findings =
        vec![validated.databases.clone(), validated.access.clone(), workload, routes.finding()];
    findings.extend(advisory(&applied.ignored));
    let disputes = applied.foreign.join("; ");
    findings.extend(
        (!disputes.is_empty()).then(|| Finding::failed(types::READY, Reason::ForeignManager, disputes)),
    );
    Outcome::new(status, findings)
}

/// How the workload stands, with what its pods say where that matters.
fn workload(
    ctx: &Context,
    owner: &Owner,
    live: Option<&Deployment>,
    hooks: &HookState,
    holds: &[Finding],
) -> Finding {
    let pods: Vec<Arc<Pod>> = if workload::is_settled(live, hooks) {
        Vec::new()
    } else {
        ctx.stores.pods.labelled(&owner.namespace, SERVICE_LABEL, &owner.name)
    };
    let pods: Vec<&Pod> = pods.iter().map(|pod| &**pod).collect();
    workload::finding(live, hooks, holds, &pods)
}

/// Writes down how many pods there are; `wanted` stands for those of a
/// Deployment that does not exist.
fn count(status: &mut ServiceStatus, owner: &Owner, live: Option<&Deployment>, wanted: i32) {
    let counts = live.map(|deployment| &deployment.status);
    let desired = live.and_then(|deployment| deployment.spec.replicas).unwrap_or(wanted);
    let ready = counts.and_then(|counts| counts.ready_replicas).unwrap_or(0);
    let selector = owner.selector();
    let selector: Vec<String> = selector.iter().map(|(key, value)| format!("{key}={value}")).collect();
    status.replicas = Some(counts.and_then(|counts| counts.replicas).unwrap_or(0));
    status.ready_replicas = Some(ready);
    status.pods = Some(format!("{ready}/{desired}"));
    status.selector = Some(selector.join(","));
}

fn advisory(ignored: &[String]) -> Option<Finding> {
    (!ignored.is_empty()).then(|| Finding {
        condition: types::ADVISORY,
        state: State::Good,
        reason: Reason::Ignored,
        message: format!("left alone for its label {IGNORE_LABEL}: {}", ignored.join(", ")),
    })
}

/// A Service of which nothing was changed but what protects. What was said of
/// it before stands, but for what can be seen all the same: its pods and routes.
pub struct Untouched<'a> {
    /// What the operator shares.
    pub ctx: &'a Context,
    /// The Service as owner.
    pub owner: &'a Owner,
    /// The Service.
    pub service: &'a Service,
    /// Its routes.
    pub routes: &'a Routes,
}

impl Untouched<'_> {
    /// `Ready` as it was, for another reason.
    #[must_use]
    pub fn paused(&self, reason: Reason) -> Outcome<ServiceStatus> {
        let conditions = self.service.status.iter().flat_map(|status| &status.conditions);
        let ready = conditions.into_iter().find(|condition| condition.type_ == types::READY);
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
        let outcome = self.seen(Finding { condition: types::READY, state, reason, message });
        Outcome { requeue: Some(PAUSED), ..outcome }
    }

    /// What `error` means for the Service, by the table of all errors.
    #[must_use]
    pub fn refused(&self, error: &impl Classified) -> Outcome<ServiceStatus> {
        let Consequence { shown, retry } = consequence(error.class(), error.reason(), 1);
        let finding = Finding {
            condition: error.condition(),
            state: shown.unwrap_or(State::Failed),
            reason: error.reason(),
            message: error.to_string(),
        };
        let requeue = match retry {
            Retry::After(after) => Some(after),
            Retry::OnChange | Retry::Backoff => None,
        };
        Outcome { requeue, ..self.seen(finding) }
    }

    fn seen(&self, ready: Finding) -> Outcome<ServiceStatus> {
        let Self { ctx, owner, service, routes } = self;
        let live = ctx.stores.deployments.get(&owner.namespace, &owner.name);
        let live = live.filter(|live| is_controlled_by(&**live, &owner.reference.uid));
        let workload = match live.as_deref() {
            None => Finding::waiting(types::WORKLOAD_AVAILABLE, ready.reason, "there is no Deployment"),
            live => workload(ctx, owner, live, &HookState::Held, &[]),
        };
        let mut status = service.status.clone().unwrap_or_default();
        status.urls.retain(|url| routes.urls.contains(url));
        status.url = status.urls.first().map(|url| url.url.clone());
        let wanted = service.spec.replicas.unwrap_or(ctx.config.default_replicas);
        count(&mut status, owner, live.as_deref(), wanted);
        let mut findings = vec![ready, workload];
        findings.extend(Some(routes.finding()).filter(|finding| finding.state != State::Good));
        Outcome::new(status, findings)
    }
}
