//! AuthPolicies: says of each whether it compiles and whether it is live.
//! Writes nothing but their status; the AuthClass's controller publishes.

mod status;

use std::{convert::Infallible, sync::Arc};

use futures::StreamExt;
use peristyle_crds::v1alpha1::{AuthPolicy, AuthPolicyStatus};

use crate::{
    auth::world::Snapshot,
    context::Context,
    edge::{claims::ServiceKey, standing},
    reconcile::{self, Outcome},
    watch::concerned,
};

/// Runs the controller until the process ends.
pub async fn run(ctx: Arc<Context>) {
    let stores = &ctx.stores;
    let policies = &stores.auth_policies;
    let all = |events| concerned(events, policies, |(), _| true);
    // Hosts and namespaces of Keto pass from one policy to another: whatever may
    // move them concerns all. A pass costs no request.
    let triggers = vec![
        ctx.publications.changes(),
        concerned(ctx.proofs.changes(), policies, |service, policy| {
            service.as_ref().is_none_or(|service| targets(policy, service))
        }),
        all(policies.spec_changes().map(drop).boxed()),
        all(standing::claimed(stores)),
        all(stores.auth_classes.spec_changes().map(drop).boxed()),
        all(stores.edge_classes.spec_changes().map(drop).boxed()),
        all(stores.namespaces.changes().map(drop).boxed()),
        all(standing::freed(stores).map(drop).boxed()),
    ];
    reconcile::run(ctx.clone(), &stores.auth_policies, triggers, reconcile).await;
}

fn targets(policy: &AuthPolicy, service: &ServiceKey) -> bool {
    policy.metadata.namespace.as_ref() == Some(&service.namespace)
        && policy.spec.targets.iter().any(|target| target.service == service.name)
}

#[allow(clippy::unused_async, reason = "the signature of every reconcile")]
async fn reconcile(
    policy: Arc<AuthPolicy>,
    ctx: Arc<Context>,
) -> Result<Outcome<AuthPolicyStatus>, Infallible> {
    let snapshot = Snapshot::take(&ctx.stores);
    let claims = snapshot.claims();
    Ok(status::status(&snapshot.world(&claims), &ctx.publications, &ctx.proofs, &policy))
}
