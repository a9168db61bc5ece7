//! AuthPolicies: says of each whether it compiles and whether it is live.
//! Writes nothing but their status; the AuthClass's controller publishes.

mod status;

use std::{convert::Infallible, sync::Arc};

use futures::{StreamExt, stream::iter};
use peristyle_crds::v1alpha1::{AuthPolicy, AuthPolicyStatus};

use crate::{
    auth::{key::PolicyKey, reach::aimed_at, world::Snapshot},
    context::Context,
    controllers::Reaches,
    reconcile::{self, Outcome},
    watch::concerned,
};

/// Runs the controller until the process ends.
pub async fn run(ctx: Arc<Context>, reaches: Reaches) {
    let stores = &ctx.stores;
    let policies = &stores.auth_policies;
    let all = |events| concerned(events, policies, |(), _| true);
    let triggers = vec![
        ctx.publications.changes(),
        concerned(ctx.proofs.changes(), policies, |service, policy| {
            service.as_ref().is_none_or(|service| aimed_at(policy).any(|aim| aim == service.names()))
        }),
        // Hosts and namespaces of Keto pass from one policy to another.
        reaches
            .flat_map(|reach| iter(reach.policies.iter().map(PolicyKey::reference).collect::<Vec<_>>()))
            .boxed(),
        all(stores.auth_classes.spec_changes().map(drop).boxed()),
        all(stores.edge_classes.spec_changes().map(drop).boxed()),
    ];
    reconcile::run(ctx.clone(), &stores.auth_policies, triggers, reconcile).await;
}

#[allow(clippy::unused_async, reason = "the signature of every reconcile")]
async fn reconcile(
    policy: Arc<AuthPolicy>,
    ctx: Arc<Context>,
) -> Result<Outcome<AuthPolicyStatus>, Infallible> {
    let snapshot = Snapshot::take(&ctx.stores).around(aimed_at(&policy));
    let claims = snapshot.claims();
    Ok(status::status(&snapshot.world(&claims), &ctx.publications, &ctx.proofs, &policy))
}
