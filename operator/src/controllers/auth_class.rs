//! AuthClasses: publishes the models, tuples and rules of all accepted
//! policies, and tells which of them every Oathkeeper pod has confirmed.
//!
//! Order: models → namespaces visible → tuples → rules → confirmation. Each
//! part is taken back in the same way when its policy is gone, because what is
//! published is always computed from the policies that exist now; only tuples
//! need a record of what was ours. Rules wait a little for the routes that ask
//! for them to go first.

pub mod build;
mod config_maps;
mod pods;
mod progress;
mod relations;
mod rules;
pub mod signing_keys;
mod status;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::StreamExt;
use kube::ResourceExt;
use peristyle_crds::{
    condition::{Reason, types},
    names::AUTH_CLASS_LABEL,
    v1alpha1::{AuthClass, AuthClassStatus},
};

use self::progress::Memory;
use crate::{
    apply,
    auth::{
        evidence,
        publications::{Publication, Standing},
        relations::Refusals,
        world::Snapshot,
    },
    conditions::Finding,
    context::Context,
    controllers::Reaches,
    external::{keto::Keto, oathkeeper::Oathkeeper},
    metadata::Owner,
    reconcile::{self, Outcome},
    retry::{self, Class, Classified},
    watch::concerned,
};

/// First and longest wait before an unconfirmed class is looked at again.
const POLL: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(2));

/// The clients of the systems behind a class.
#[derive(Clone)]
struct Clients {
    keto: Keto,
    oathkeeper: Oathkeeper,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Apply(#[from] apply::Error),
    #[error("failed to read ConfigMap {name}: {source}")]
    Read { name: String, source: Box<kube::Error> },
    #[error("ConfigMap {name}: {source}; it was edited by hand, restore or delete it")]
    Record { name: String, source: serde_json::Error },
    #[error("spec.idToken: no key could be made, the system has no randomness")]
    Key,
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            Self::Apply(error) => error.class(),
            Self::Read { source, .. } => retry::classify(source),
            Self::Record { .. } => Class::Terminal,
            Self::Key => Class::Transient,
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::Apply(error) => error.reason(),
            Self::Read { .. } | Self::Key => retry::reason(self.class()),
            Self::Record { .. } => Reason::Invalid,
        }
    }

    fn condition(&self) -> &'static str {
        types::PUBLISHED
    }
}

/// Runs the controller until the process ends.
pub async fn run(ctx: Arc<Context>, reaches: Reaches) {
    let clients = Clients {
        keto: Keto::new(ctx.http.clone()).behind(ctx.fence.clone()),
        oathkeeper: Oathkeeper::new(ctx.http.clone()),
    };
    let memory = Arc::new(Memory::default());
    let stores = &ctx.stores;
    let classes = &stores.auth_classes;
    let all = |events| concerned(events, classes, |(), _| true);
    let triggers = vec![
        stores.config_maps.cluster_owners(AUTH_CLASS_LABEL),
        // Only the one that is named: there are many, and they change often.
        stores.secrets.concerning(classes, {
            let system = ctx.config.namespace.clone();
            move |secret, class| {
                secret.namespace().as_ref() == Some(&system)
                    && class
                        .spec
                        .id_token
                        .as_ref()
                        .is_some_and(|token| token.jwks_secret == secret.name_any())
            }
        }),
        all(reaches.map(drop).boxed()),
        all(stores.edge_classes.spec_changes().map(drop).boxed()),
        // Which class is the default depends on all of them.
        all(classes.spec_changes().map(drop).boxed()),
        stores.system_endpoint_slices.concerning(classes, |slice, class| {
            pods::is_of(slice, &class.spec.oathkeeper.service)
                || pods::services_of(&class.spec.keto).iter().any(|keto| pods::is_of(slice, keto))
        }),
    ];
    reconcile::run(ctx.clone(), &stores.auth_classes, triggers, move |class, ctx| {
        reconcile(class, ctx, clients.clone(), memory.clone())
    })
    .await;
}

async fn reconcile(
    class: Arc<AuthClass>,
    ctx: Arc<Context>,
    clients: Clients,
    memory: Arc<Memory>,
) -> Result<Outcome<AuthClassStatus>, Error> {
    if class.metadata.deletion_timestamp.is_some() {
        let finding = Finding::waiting(types::READY, Reason::Progressing, "is being deleted");
        return Ok(Outcome::new(class.status.clone().unwrap_or_default(), vec![finding]));
    }
    let uid = class.uid().unwrap_or_default();
    if let Some(finding) = misplaced(&class, &ctx.config.namespace) {
        ctx.publications.replace(&uid, BTreeMap::new(), Refusals::new());
        return Ok(Outcome::new(AuthClassStatus::default(), vec![finding]));
    }
    let progress = memory.of(&uid);
    let mut progress = progress.lock().await;
    let owner = Owner::new(&*class, &ctx.config.namespace, AUTH_CLASS_LABEL);

    if let Some(token) = &class.spec.id_token {
        signing_keys::ensure(&ctx, &owner, token).await?;
    }
    let snapshot = Snapshot::take(&ctx.stores);
    let claims = snapshot.claims();
    let world = snapshot.world(&claims);
    let relations::Published { plan, refusals, keto, failed } =
        relations::publish(&ctx, &clients.keto, &owner, &class, &world, &mut progress).await;
    let rules = rules::publish(&ctx, &clients.oathkeeper, &owner, &class, &mut progress, &plan).await;
    // A server that does not answer for a while writes for nobody else either.
    if let Err(error) = &rules
        && error.class() != Class::Transient
    {
        ctx.publications.doubt(&uid, error.reason(), &error.to_string());
    }
    let rules = rules?;

    let before = ctx.publications.of_class(&uid);
    let answers: Vec<evidence::Answer> = rules.pods.iter().map(|pod| pod.answer.clone()).collect();
    let mut publications = BTreeMap::new();
    for (key, compiled) in &plan.policies {
        let Ok(compiled) = compiled else { continue };
        let was_published = compiled.rules.iter().all(|rule| rules.previous.contains(&rule.id));
        let blocked = keto.blocks(compiled.asks_keto || plan.tuples.contains_key(key));
        let evidence = evidence::weigh(key, compiled, &answers);
        let standing = evidence::stand(before.get(key), compiled, was_published, blocked.clone(), evidence);
        let earlier = match standing {
            Standing::Live => Vec::new(),
            _ => before.get(key).map(|before| before.before(&compiled.hash)).unwrap_or_default(),
        };
        let publication = Publication {
            rules: compiled.into(),
            standing,
            tuples: keto.applied(plan.tuples.get(key)),
            relations: blocked,
            earlier,
        };
        publications.insert(key.clone(), publication);
    }
    for (key, hash, rejection) in &plan.oversized {
        let standing = Standing::Pending { reason: rejection.reason, message: rejection.message.clone() };
        publications.insert(key.clone(), Publication { standing, ..Publication::unknown(hash) });
    }
    ctx.publications.replace(&uid, publications, refusals);
    // Of classes that are gone nothing is known any more.
    let classes = ctx.stores.auth_classes.store().state();
    let exists = |uid: &str| classes.iter().any(|class| class.uid().as_deref() == Some(uid));
    ctx.publications.retain(exists);
    memory.retain(exists);

    if let Some(error) = failed {
        return Err(error);
    }
    let (status, findings) = status::status(&plan, &rules, &keto);
    let is_settled = status::is_settled(&rules, &keto);
    let mut outcome = Outcome::new(status, findings);
    outcome.requeue = progress.wait(is_settled, POLL);
    Ok(outcome)
}

/// A class whose Oathkeeper is not beside the operator. Its pods would not be
/// seen, and its ConfigMaps not be ours to write.
fn misplaced(class: &AuthClass, namespace: &str) -> Option<Finding> {
    let oathkeeper = &class.spec.oathkeeper.namespace;
    let keto = &class.spec.keto.namespaces_config_map.namespace;
    let (field, value) = if oathkeeper != namespace {
        ("oathkeeper.namespace", oathkeeper)
    } else if keto != namespace {
        ("keto.namespacesConfigMap.namespace", keto)
    } else {
        return None;
    };
    Some(Finding::stalled(
        types::PUBLISHED,
        Reason::Invalid,
        format!("spec.{field}: {value:?} is not the operator's namespace; use {namespace:?}"),
    ))
}
