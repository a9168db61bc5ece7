//! AuthPolicies: says of each whether it compiles and whether it is live.
//! Writes nothing but their status; the AuthClass's controller publishes.

mod status;

use std::{convert::Infallible, sync::Arc};

use futures::StreamExt;
use peristyle_crds::v1alpha1::{AuthPolicy, AuthPolicyStatus};

use crate::{
    auth::world::Snapshot,
    context::Context,
    controllers::auth_class::triggers::{all, spec_changes},
    reconcile::{self, Outcome},
    retry::{Class, Classified},
};

/// Runs the controller until the process ends.
pub async fn run(ctx: Arc<Context>) {
    let stores = &ctx.stores;
    let policies = stores.auth_policies.store();
    // Hosts and namespaces of Keto pass from one policy to another: whatever may
    // move them concerns all. A pass costs no request.
    let triggers = vec![
        ctx.publications.changes(),
        all(policies, spec_changes(&stores.auth_policies)),
        all(policies, spec_changes(&stores.services)),
        all(policies, spec_changes(&stores.auth_classes)),
        all(policies, spec_changes(&stores.edge_classes)),
        all(policies, stores.namespaces.changes().map(drop).boxed()),
    ];
    reconcile::run(ctx.clone(), &stores.auth_policies, triggers, reconcile).await;
}

/// Nothing here can fail.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Never(#[from] Infallible);

impl Classified for Never {
    fn class(&self) -> Class {
        match self.0 {}
    }

    fn reason(&self) -> peristyle_crds::condition::Reason {
        match self.0 {}
    }
}

#[allow(clippy::unused_async, reason = "the signature of every reconcile")]
async fn reconcile(policy: Arc<AuthPolicy>, ctx: Arc<Context>) -> Result<Outcome<AuthPolicyStatus>, Never> {
    let snapshot = Snapshot::take(&ctx.stores);
    let claims = snapshot.claims();
    Ok(status::status(&snapshot.world(&claims), &ctx.publications, &policy))
}
