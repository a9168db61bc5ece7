//! The controller of `Service`.

pub mod apply;
pub mod build;
pub mod evidence;
pub mod named;
pub mod observe;
pub mod peers;
pub mod references;
pub mod route;
pub mod status;
pub mod triggers;
pub mod validate;
pub mod workload;

use std::sync::Arc;

use kube::ResourceExt;
use peristyle_crds::{
    condition::{Reason, types},
    names::SERVICE_LABEL,
    v1alpha1::{Service, ServiceStatus},
};

use self::{observe::Observed, status::Untouched};
use crate::{
    apply::Error,
    conditions::Finding,
    context::Context,
    controllers::Reaches,
    edge::{claims::ServiceKey, traefik::Edge},
    metadata::{Owner, is_ignored},
    reconcile::{self, Outcome},
};

/// Runs the controller until the process ends.
pub async fn run(ctx: Arc<Context>, reaches: Reaches) {
    let triggers = triggers::all(&ctx.stores, &ctx.publications, reaches, &ctx.config.edge_errors_service);
    reconcile::run_closing(ctx.clone(), &ctx.stores.services, triggers, close, reconcile).await;
}

/// What a change elsewhere closes, be it a policy or a caller that is gone, does
/// not wait until a pause of this Service is over.
async fn close(service: Arc<Service>, ctx: Arc<Context>) -> Result<(), Error> {
    let owner = owner(&service);
    if service.metadata.deletion_timestamp.is_some() {
        return apply::withdraw(&ctx, &owner, &Edge::default()).await;
    }
    let observed = observe::observe(&ctx, &service, &owner).await;
    let edge = build::edge(&owner, &route::routes(&service, &observed));
    withdraw(&ctx, &owner, &service, &observed, &edge).await?;
    // Without it there never was a pod that somebody could connect to.
    if ctx.stores.deployments.get(&owner.namespace, &owner.name).is_some() {
        protect(&ctx, &owner, &service, &observed).await?;
    }
    Ok(())
}

fn owner(service: &Service) -> Owner {
    Owner::new(service, &service.namespace().unwrap_or_default(), SERVICE_LABEL)
}

/// Closes what is open beyond `edge`. What is served cannot be judged before
/// all of Traefik's kinds are in the caches.
async fn withdraw(
    ctx: &Context,
    owner: &Owner,
    service: &Service,
    observed: &Observed,
    edge: &Edge,
) -> Result<(), Error> {
    if observed.has_traefik || service.spec.expose.is_empty() {
        apply::withdraw(ctx, owner, edge).await?;
        apply::fence(ctx, owner, edge, observed.edge_errors.as_ref()).await?;
    }
    Ok(())
}

/// Lets only those connect to the pods that may.
async fn protect(ctx: &Context, owner: &Owner, service: &Service, observed: &Observed) -> Result<(), Error> {
    match validate::access::peers(service, observed) {
        Some(peers) => apply::protect(ctx, owner, &build::access::network_policy(owner, &peers)).await,
        None => Ok(()),
    }
}

async fn reconcile(service: Arc<Service>, ctx: Arc<Context>) -> Result<Outcome<ServiceStatus>, Error> {
    let owner = owner(&service);
    if service.metadata.deletion_timestamp.is_some() {
        // Children that go before their owner must not come back.
        apply::withdraw(&ctx, &owner, &Edge::default()).await?;
        ctx.proofs.replace(&ServiceKey::of(&service), None);
        return Ok(deleted(&service));
    }
    let observed = observe::observe(&ctx, &service, &owner).await;
    let mut routes = route::routes(&service, &observed);
    let edge = build::edge(&owner, &routes);
    // First of all: a spec that is refused below must not keep a route open.
    withdraw(&ctx, &owner, &service, &observed, &edge).await?;
    let validated = validate::validate(&service, &observed);
    let paused = paused(&service);
    if paused.is_some() || validated.is_err() {
        // Nor may it leave the pods open.
        protect(&ctx, &owner, &service, &observed).await?;
    }
    let untouched = Untouched { ctx: &ctx, owner: &owner, service: &service, routes: &routes };
    if let Some(reason) = paused {
        return Ok(untouched.paused(reason));
    }
    let validated = match validated {
        Ok(validated) => validated,
        Err(invalid) => return Ok(untouched.refused(&invalid)),
    };
    let config = match &validated.workload {
        Some(workload) => references::stamp(&ctx, &owner, &service, workload).await?,
        None => None,
    };
    let edge_errors = observed.edge_errors.as_ref();
    let desired = build::build(&owner, &service, &validated, edge, edge_errors, config.as_ref());
    let applied = match apply::apply(&ctx, &owner, &desired, observed.has_traefik).await {
        Ok(applied) => applied,
        // No failure: the cache is about to lose it too.
        Err(Error::OwnerGone { .. }) => return Ok(deleted(&service)),
        // They may last, and meanwhile the pods live on.
        Err(error @ (Error::NameConflict { .. } | Error::Remains { .. })) => {
            return Ok(untouched.refused(&error));
        }
        Err(error) => return Err(error),
    };
    let again = evidence::gather(&ctx, &service, &owner, &desired.edge, &mut routes).await;
    let outcome = status::outcome(&ctx, &owner, &validated, &routes, &applied);
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
