//! How a route is protected: what the Service controller asks before it
//! publishes one.

use std::collections::BTreeSet;

use kube::ResourceExt;
use peristyle_crds::{
    condition::Reason,
    v1alpha1::{AuthClass, Service, auth_policy::OnTighten, service::Expose},
};

use super::{
    compile::compile,
    key::PolicyKey,
    publications::{Publications, Standing},
    tighten::tightens,
    world::World,
};

/// The protection of one route.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Protection {
    /// No policy targets the route.
    None,
    /// The class has not been looked at since the operator started: keep what
    /// is served, change nothing.
    Unknown {
        /// Name of the policy.
        policy: String,
        /// Hash of its compiled rules.
        hash: String,
        /// Where the edge asks for decisions.
        decisions_url: String,
    },
    /// A policy targets it but its rules are not live. A change that
    /// forbids something passes through here: the route is withheld from the
    /// change until every pod decides by the new rules, usually for less than a
    /// second. Tuples and models change without it.
    Pending {
        /// Name of the policy.
        policy: String,
        /// Why.
        reason: Reason,
        /// What is missing.
        message: String,
    },
    /// Its rules change and are not live yet; until then the pods decide by the
    /// rules that were, or by these. A route that is decided by those stays up.
    Changing {
        /// Name of the policy.
        policy: String,
        /// Hash of the rules that were live.
        hash: String,
        /// Hosts that they decide, and all rules since by which some pod may decide.
        hosts: BTreeSet<String>,
        /// Where the edge asks for decisions.
        decisions_url: String,
        /// Why the new ones are not live.
        reason: Reason,
        /// What is missing.
        message: String,
    },
    /// Every ready Oathkeeper pod decides by these rules.
    Live {
        /// Name of the policy.
        policy: String,
        /// Hash of its compiled rules.
        hash: String,
        /// Where the edge asks for decisions.
        decisions_url: String,
    },
}

/// The protection of the route `expose` of `service` in `world`.
///
/// The policy is compiled here and now: rules that an older version of it left
/// behind never count as its protection.
#[must_use]
pub fn decide(
    world: &World<'_>,
    publications: &Publications,
    service: &Service,
    expose: &Expose,
) -> Protection {
    let Some(policy) = world.targeting(service, expose) else {
        return Protection::None;
    };
    let key = PolicyKey::of(policy);
    let compiled = world.class(policy).and_then(|class| {
        let uid = class.uid().unwrap_or_default();
        let namespaces = world.namespaces(class, &publications.refusals(&uid));
        Ok((class, uid, compile(world, class, &namespaces, policy)?))
    });
    let (class, uid, compiled) = match compiled {
        Ok(compiled) => compiled,
        Err(rejection) => {
            return Protection::Pending {
                policy: key.name,
                reason: rejection.reason,
                message: rejection.message,
            };
        }
    };
    let on_tighten = policy.spec.on_tighten.unwrap_or_default();
    let policy = key.name.clone();
    let hash = compiled.hash;
    let publication = publications.get(&uid, &key, &hash);
    let stays_up = on_tighten == OnTighten::Serve
        || publication.earlier.iter().all(|earlier| !tightens(&earlier.allowed, &compiled.allowed));
    match publication.standing {
        Standing::Pending { reason, message }
            if stays_up && let [live, since @ ..] = &publication.earlier[..] =>
        {
            // A host that was another policy's meanwhile may be decided by that one.
            let hosts = since.iter().fold(live.hosts.clone(), |hosts, earlier| &hosts & &earlier.hosts);
            Protection::Changing {
                policy,
                hash: live.hash.clone(),
                hosts,
                decisions_url: decisions_url(class),
                reason,
                message,
            }
        }
        Standing::Live => Protection::Live { policy, hash, decisions_url: decisions_url(class) },
        Standing::Unknown => Protection::Unknown { policy, hash, decisions_url: decisions_url(class) },
        Standing::Pending { reason, message } => Protection::Pending { policy, reason, message },
    }
}

/// Where the edge asks for decisions of `class`.
#[must_use]
pub fn decisions_url(class: &AuthClass) -> String {
    let oathkeeper = &class.spec.oathkeeper;
    format!("http://{}.{}.svc.cluster.local:4456/decisions", oathkeeper.service, oathkeeper.namespace)
}
