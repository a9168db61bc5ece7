//! The status of an AuthPolicy.

use std::collections::BTreeSet;

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
    conditions::{Finding, State, is_true},
    edge::proofs::{Proof, Proofs, Verdict},
    reconcile::Outcome,
};

/// How `policy` stands.
pub fn status(
    world: &World<'_>,
    publications: &Publications,
    proofs: &Proofs,
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
            let proofs = proofs.of_rules(&compiled.hash, |service, uid| world.has(service, uid));
            accepted(policy, &before, compiled, publication, &proofs)
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
    proofs: &[Proof],
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
    let programmed = if compiled.territory.hosts.is_empty() {
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
    };
    let enforced = enforced(policy, before, &compiled, proofs, &programmed);
    findings.push(match publication.relations {
        // Calls are refused or decided as before, but not as this version of the policy says.
        Some((reason, message)) if programmed.state == State::Good => {
            Finding::waiting(types::PROGRAMMED, reason, message)
        }
        _ => programmed,
    });
    findings.extend(enforced);
    let status = AuthPolicyStatus {
        compiled_hash: Some(compiled.hash),
        rules: compiled.ids,
        tuples,
        ..AuthPolicyStatus::default()
    };
    Outcome::new(status, findings)
}

/// Whether calls without credentials are refused; `None` when no EdgeClass of
/// the policy's hosts says where to ask.
fn enforced(
    policy: &AuthPolicy,
    before: &AuthPolicyStatus,
    compiled: &Compiled,
    proofs: &[Proof],
    programmed: &Finding,
) -> Option<Finding> {
    let probed = &compiled.territory.probed;
    if probed.is_empty() {
        return None;
    }
    let good = || {
        let message = format!("calls without credentials are refused on {}", list(probed));
        Finding::good(types::ENFORCED, message)
    };
    if programmed.state != State::Good {
        return Some(Finding { condition: types::ENFORCED, ..programmed.clone() });
    }
    let waiting = |reason, message: String| Some(Finding::waiting(types::ENFORCED, reason, message));
    let of_probed = || proofs.iter().filter(|proof| probed.contains(&proof.host));
    for proof in of_probed() {
        let host = &proof.host;
        if let Verdict::LetIn(what) = &proof.verdict {
            return Some(Finding::failed(
                types::ENFORCED,
                Reason::Overridden,
                format!("host {host}: {what}"),
            ));
        }
    }
    for proof in of_probed() {
        if let Verdict::Unproven(what) = &proof.verdict {
            return waiting(Reason::ProbeFailed, format!("host {}: {what}", proof.host));
        }
    }
    let seen: BTreeSet<&String> = of_probed().map(|proof| &proof.host).collect();
    let missing: BTreeSet<String> = probed.iter().filter(|host| !seen.contains(host)).cloned().collect();
    if missing.is_empty() {
        return Some(good());
    }
    // What was said before the operator restarted is said until it is known better.
    let was_enforced = before.compiled_hash.as_deref() == Some(&compiled.hash)
        && is_true(&before.conditions, types::ENFORCED, policy.metadata.generation);
    if was_enforced && seen.is_empty() {
        return Some(good());
    }
    waiting(Reason::PropagatingRoutes, format!("no route is published yet for {}", list(&missing)))
}

fn list(hosts: &BTreeSet<String>) -> String {
    hosts.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::world::Territory;

    #[test]
    fn a_policy_whose_relations_keto_lacks_is_not_programmed_though_its_rules_are_in_force() {
        let policy: AuthPolicy = serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "shop", "name": "orders", "generation": 2},
            "spec": {"targets": [{"service": "orders"}], "rules": []}
        }))
        .unwrap();
        let hosts: BTreeSet<String> = ["o.test".to_owned()].into();
        let territory = Territory { probed: hosts.clone(), hosts, routes: 1, ..Territory::default() };
        let proof = Proof { host: "o.test".to_owned(), hash: "1".to_owned(), verdict: Verdict::Refused };
        let found = |relations: Option<(Reason, String)>| {
            let compiled = Compiled {
                hash: "1".to_owned(),
                rules: Vec::new(),
                ids: Vec::new(),
                asks_keto: true,
                territory: territory.clone(),
                allowed: std::sync::Arc::default(),
            };
            let live = Publication { standing: Standing::Live, relations, ..Publication::unknown("1") };
            let proofs = std::slice::from_ref(&proof);
            let outcome = accepted(&policy, &AuthPolicyStatus::default(), compiled, live, proofs);
            let shown = |finding: &Finding| (finding.condition, finding.state == State::Good, finding.reason);
            outcome.findings.iter().map(shown).collect::<Vec<_>>()
        };
        let good = |condition| (condition, true, Reason::Succeeded);
        let [accepted, programmed, enforced] =
            [types::ACCEPTED, types::PROGRAMMED, types::ENFORCED].map(good);
        assert_eq!(found(None), [accepted, programmed, enforced]);
        let down = Some((Reason::KetoUnavailable, "Keto: gone".to_owned()));
        assert_eq!(found(down), [accepted, (types::PROGRAMMED, false, Reason::KetoUnavailable), enforced]);
    }
}
