//! The controller of `Service`.

pub mod apply;
pub mod build;
pub mod observe;
pub mod route;
pub mod status;
pub mod triggers;
pub mod validate;
pub mod workload;

use std::{sync::Arc, time::Duration};

use kube::ResourceExt;
use peristyle_crds::{
    condition::{Reason, types},
    names::SERVICE_LABEL,
    v1alpha1::{Service, ServiceStatus},
};

use crate::{
    apply::Error as ApplyError,
    conditions::Finding,
    context::Context,
    metadata::Owner,
    reconcile::{self, Outcome},
    retry::{Class, Classified},
};

/// How often a name that somebody else has is looked at again: nothing tells
/// when the object is gone, since the caches hold only ours.
const CONFLICT: Duration = Duration::from_secs(60);

/// Why a pass over a Service ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The spec contradicts itself.
    #[error(transparent)]
    Invalid(#[from] validate::Invalid),
    /// A child could not be written.
    #[error(transparent)]
    Apply(#[from] ApplyError),
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            Self::Invalid(_) => Class::Terminal,
            Self::Apply(error) => error.class(),
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::Invalid(_) => Reason::Invalid,
            Self::Apply(error) => error.reason(),
        }
    }

    fn condition(&self) -> &'static str {
        match self {
            Self::Invalid(_) => types::READY,
            Self::Apply(error) => error.condition(),
        }
    }
}

/// Runs the controller until the process ends.
pub async fn run(ctx: Arc<Context>) {
    let triggers = triggers::all(&ctx.stores, &ctx.publications, &ctx.config.edge_errors_service);
    reconcile::run(ctx.clone(), &ctx.stores.services, triggers, reconcile).await;
}

async fn reconcile(service: Arc<Service>, ctx: Arc<Context>) -> Result<Outcome<ServiceStatus>, Error> {
    let owner = Owner::new(&*service, &service.namespace().unwrap_or_default(), SERVICE_LABEL);
    let observed = observe::observe(&ctx, &service, &owner).await;
    let routes = route::routes(&service, &observed);
    let edge = build::edge(&owner, &routes);
    // First of all: a spec that is refused below must not keep a route open.
    apply::withdraw(&ctx, &owner, &edge).await?;
    let validated = validate::validate(&service, &observed)?;
    let desired = build::build(&owner, &service, &validated, edge, observed.edge_errors.as_ref());
    let applied = match apply::apply(&ctx, &owner, &desired).await {
        Ok(applied) => applied,
        Err(error @ ApplyError::NameConflict { .. }) => return Ok(in_the_way(&service, &error)),
        Err(error) => return Err(error.into()),
    };
    Ok(status::outcome(&ctx, &service, &validated, &routes, &applied))
}

/// A child's name is taken; the last status and what is in the way.
fn in_the_way(service: &Service, error: &ApplyError) -> Outcome<ServiceStatus> {
    let finding = Finding::stalled(types::READY, Reason::NameConflict, error.to_string());
    Outcome {
        requeue: Some(CONFLICT),
        ..Outcome::new(service.status.clone().unwrap_or_default(), vec![finding])
    }
}
