//! The controller of `Service`.

pub mod apply;
pub mod build;
pub mod evidence;
pub mod observe;
pub mod peers;
pub mod references;
pub mod route;
pub mod status;
pub mod triggers;
pub mod validate;
pub mod workload;

use std::{fmt::Display, sync::Arc, time::Duration};

use kube::ResourceExt;
use peristyle_crds::{
    condition::{Reason, types},
    names::SERVICE_LABEL,
    v1alpha1::{Service, ServiceStatus},
};

use self::{route::Routes, validate::Validated};
use crate::{
    apply::Error,
    conditions::{Finding, State},
    context::Context,
    edge::{claims::ServiceKey, traefik::Edge},
    metadata::{Owner, is_ignored},
    reconcile::{self, Outcome},
};

/// How often a name that somebody else has is looked at again: nothing tells
/// when the object is gone, since the caches hold only ours.
const CONFLICT: Duration = Duration::from_secs(60);

/// Runs the controller until the process ends.
pub async fn run(ctx: Arc<Context>) {
    let triggers = triggers::all(&ctx.stores, &ctx.publications, &ctx.config.edge_errors_service);
    reconcile::run(ctx.clone(), &ctx.stores.services, triggers, reconcile).await;
}

async fn reconcile(service: Arc<Service>, ctx: Arc<Context>) -> Result<Outcome<ServiceStatus>, Error> {
    let owner = Owner::new(&*service, &service.namespace().unwrap_or_default(), SERVICE_LABEL);
    if service.metadata.deletion_timestamp.is_some() {
        // Children that go before their owner must not come back.
        apply::withdraw(&ctx, &owner, &Edge::default()).await?;
        ctx.proofs.replace(&ServiceKey::of(&service), None);
        return Ok(deleted(&service));
    }
    let observed = observe::observe(&ctx, &service, &owner).await;
    let mut routes = route::routes(&service, &observed);
    let edge = build::edge(&owner, &routes);
    // First of all: a spec that is refused below must not keep a route open. What
    // is served cannot be judged before all of Traefik's kinds are in the caches.
    if observed.has_traefik || service.spec.expose.is_empty() {
        apply::withdraw(&ctx, &owner, &edge).await?;
        apply::fence(&ctx, &owner, &edge, observed.edge_errors.as_ref()).await?;
    }
    let validated = validate::validate(&service, &observed);
    if let Some(reason) = paused(&service) {
        if let Ok(Validated { peers: Some(peers), .. }) = &validated {
            apply::protect(&ctx, &owner, &build::access::network_policy(&owner, peers)).await?;
        }
        return Ok(status::paused(&service, &routes, reason));
    }
    let validated = match validated {
        Ok(validated) => validated,
        Err(invalid) => return Ok(stalled(&service, &routes, Reason::Invalid, &invalid)),
    };
    let config = match &validated.workload {
        Some(workload) => references::stamp(&ctx, &owner, &service, workload).await?,
        None => None,
    };
    let edge_errors = observed.edge_errors.as_ref();
    let desired = build::build(&owner, &service, &validated, edge, edge_errors, config.as_ref());
    let applied = match apply::apply(&ctx, &owner, &desired, observed.has_traefik).await {
        Ok(applied) => applied,
        Err(error @ Error::NameConflict { .. }) => {
            return Ok(Outcome {
                requeue: Some(CONFLICT),
                ..stalled(&service, &routes, Reason::NameConflict, &error)
            });
        }
        // No failure: the cache is about to lose it too.
        Err(Error::OwnerGone { .. }) => return Ok(deleted(&service)),
        Err(error) => return Err(error),
    };
    let again = evidence::gather(&ctx, &service, &owner, &desired.edge, &mut routes).await;
    let outcome = status::outcome(&ctx, &owner, &service, &validated, &routes, &applied);
    Ok(Outcome { requeue: again.or(outcome.requeue), ..outcome })
}

/// The last status of an object that goes.
fn deleted(service: &Service) -> Outcome<ServiceStatus> {
    let finding = Finding::waiting(types::READY, Reason::Progressing, "is being deleted");
    Outcome::new(service.status.clone().unwrap_or_default(), vec![finding])
}

/// Why nothing is changed but what protects, if that is asked for.
fn paused(service: &Service) -> Option<Reason> {
    if service.spec.suspend == Some(true) {
        return Some(Reason::Suspended);
    }
    is_ignored(service).then_some(Reason::Ignored)
}

/// Nothing was written but what had to be withdrawn: the last status, without
/// the addresses of routes that are no longer served.
fn stalled(
    service: &Service,
    routes: &Routes,
    reason: Reason,
    cause: &dyn Display,
) -> Outcome<ServiceStatus> {
    let status = status::last(service, routes);
    let mut findings = vec![Finding::stalled(types::READY, reason, cause.to_string())];
    findings.extend(Some(routes.finding()).filter(|finding| finding.state != State::Good));
    Outcome::new(status, findings)
}
