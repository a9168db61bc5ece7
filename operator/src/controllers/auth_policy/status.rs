//! The status of an AuthPolicy.

use kube::ResourceExt;
use peristyle_crds::{
    condition::{Reason, types},
    v1alpha1::{AuthPolicy, AuthPolicyStatus, auth_policy::TupleCount},
};

use crate::{
    auth::{
        compile::{Compiled, compile},
        key::PolicyKey,
        publications::{Publication, Publications, Standing},
        rejection::Rejection,
        world::World,
    },
    conditions::{Finding, is_true},
    reconcile::Outcome,
};

/// How `policy` stands.
pub fn status(
    world: &World<'_>,
    publications: &Publications,
    policy: &AuthPolicy,
) -> Outcome<AuthPolicyStatus> {
    let key = PolicyKey::of(policy);
    let before = policy.status.clone().unwrap_or_default();
    let compiled = world.class(policy).and_then(|class| {
        let uid = class.uid().unwrap_or_default();
        let namespaces = world.namespaces(class, &publications.refusals(&uid));
        Ok((uid, compile(world, class, &namespaces, policy)?))
    });
    match compiled {
        Err(rejection) => rejected(policy, &before, &rejection),
        Ok((uid, compiled)) => {
            let publication = publications.get(&uid, &key, &compiled.hash);
            accepted(policy, &before, compiled, publication)
        }
    }
}

fn rejected(
    policy: &AuthPolicy,
    before: &AuthPolicyStatus,
    rejection: &Rejection,
) -> Outcome<AuthPolicyStatus> {
    let programmed = Finding {
        condition: types::PROGRAMMED,
        message: "the policy is not accepted; its routes are withheld".to_owned(),
        ..rejection.finding()
    };
    let status = AuthPolicyStatus { tuples: count(policy, before, None), ..AuthPolicyStatus::default() };
    Outcome::new(status, vec![rejection.finding(), programmed])
}

fn accepted(
    policy: &AuthPolicy,
    before: &AuthPolicyStatus,
    compiled: Compiled,
    publication: Publication,
) -> Outcome<AuthPolicyStatus> {
    let mut findings = vec![if compiled.territory.missing.is_empty() {
        Finding::good(types::ACCEPTED, "the policy compiles")
    } else {
        Finding::waiting(types::ACCEPTED, Reason::TargetNotFound, compiled.territory.not_found())
    }];
    let tuples = count(policy, before, publication.tuples);
    let was_live = before.compiled_hash.as_deref() == Some(&compiled.hash)
        && is_true(&before.conditions, types::PROGRAMMED, policy.metadata.generation);
    let live = format!("{} rules are loaded by every ready Oathkeeper pod", compiled.rules.len());
    findings.push(if compiled.territory.hosts.is_empty() {
        let why = if compiled.territory.routes == 0 {
            "no target has a route that requires a policy"
        } else {
            "no host belongs to the routes of the targets"
        };
        Finding::waiting(types::PROGRAMMED, Reason::NotExposed, why)
    } else {
        match publication.standing {
            Standing::Live => Finding::good(types::PROGRAMMED, live),
            // What was said before the operator restarted is said until it is known better.
            Standing::Unknown if was_live => Finding::good(types::PROGRAMMED, live),
            Standing::Unknown => Finding::waiting(
                types::PROGRAMMED,
                Reason::PropagatingRules,
                "the rules have not been confirmed since the operator started",
            ),
            Standing::Pending { reason, message } => Finding::waiting(types::PROGRAMMED, reason, message),
        }
    });
    let status = AuthPolicyStatus {
        compiled_hash: Some(compiled.hash),
        rules: compiled.ids,
        tuples,
        ..AuthPolicyStatus::default()
    };
    Outcome::new(status, findings)
}

/// Tuples declared and applied; `None` for a policy that never had any.
fn count(policy: &AuthPolicy, before: &AuthPolicyStatus, applied: Option<usize>) -> Option<TupleCount> {
    let declared = policy.spec.relations.as_ref().map_or(0, |r| r.tuples.len());
    let applied = applied.map_or_else(
        || before.tuples.as_ref().map_or(0, |count| count.applied),
        |applied| i32::try_from(applied).unwrap_or(i32::MAX),
    );
    (declared > 0 || applied > 0)
        .then(|| TupleCount { declared: i32::try_from(declared).unwrap_or(i32::MAX), applied })
}
