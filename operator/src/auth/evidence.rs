//! From what the pods answered to how each policy stands.

use std::collections::BTreeSet;

use peristyle_crds::condition::Reason;

use super::{
    compile::Compiled,
    key::PolicyKey,
    publications::{Publication, Standing},
};

/// What one ready Oathkeeper pod answered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Answer {
    /// It decides; these are the ids of its valid rules.
    Rules(BTreeSet<String>),
    /// It does not answer, or answers a decision with an error.
    Silent,
}

/// What the pods say about one policy.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Evidence {
    /// Every ready pod has exactly the policy's rules.
    Confirmed,
    /// A pod lacks a rule or still has an old one.
    Disproved,
    /// No pod, or one that does not answer.
    Missing,
}

/// Weighs the answers of all ready pods about the rules of `policy`.
#[must_use]
pub fn weigh(policy: &PolicyKey, compiled: &Compiled, answers: &[Answer]) -> Evidence {
    let prefix = format!("{}.{}.", policy.namespace, policy.name);
    let mut wanted: Vec<&str> = compiled.rules.iter().map(|rule| rule.id.as_str()).collect();
    wanted.sort_unstable();
    let mut evidence = if answers.is_empty() { Evidence::Missing } else { Evidence::Confirmed };
    for answer in answers {
        match answer {
            Answer::Rules(ids) => {
                let loaded = ids.iter().map(String::as_str).filter(|id| id.starts_with(&prefix));
                if !loaded.eq(wanted.iter().copied()) {
                    return Evidence::Disproved;
                }
            }
            Answer::Silent => evidence = Evidence::Missing,
        }
    }
    evidence
}

/// How a policy stands after a look at the pods.
///
/// `before` is what was known; `None` when this is the first look since the
/// operator started, or the policy is new. `was_published`: its rules stood in
/// the file before this pass. `blocked`: why it may not go live yet although
/// its rules are loaded.
#[must_use]
pub fn stand(
    before: Option<&Publication>,
    compiled: &Compiled,
    was_published: bool,
    blocked: Option<(Reason, String)>,
    evidence: Evidence,
) -> Standing {
    let is_inherited = was_published && before.is_none();
    let same = before.filter(|before| before.rules.hash == compiled.hash);
    match (evidence, same.map(|before| &before.standing)) {
        // What is live stays live until a pod says otherwise: with Keto or every
        // Oathkeeper pod away each call is refused all the same.
        (Evidence::Confirmed | Evidence::Missing, Some(Standing::Live)) => Standing::Live,
        (Evidence::Confirmed, before) => match blocked {
            None => Standing::Live,
            // It may never have been live before the restart.
            Some(_) if before == Some(&Standing::Unknown) || before.is_none() && is_inherited => {
                Standing::Unknown
            }
            Some((reason, message)) => Standing::Pending { reason, message },
        },
        (Evidence::Missing, Some(Standing::Unknown)) => Standing::Unknown,
        (Evidence::Missing, None) if is_inherited => Standing::Unknown,
        (Evidence::Missing, _) => Standing::Pending {
            reason: Reason::OathkeeperUnavailable,
            message: "no ready Oathkeeper pod, or one does not answer".to_owned(),
        },
        (Evidence::Disproved, _) => Standing::Pending {
            reason: Reason::PropagatingRules,
            message: format!("rules {} are not loaded by every ready Oathkeeper pod yet", compiled.hash),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::{rule::Rule, world::Territory};

    fn compiled() -> Compiled {
        let mut rule = Rule::sentinel();
        rule.id = "shop.orders.read.1".to_owned();
        Compiled {
            hash: "new".to_owned(),
            rules: vec![rule],
            ids: Vec::new(),
            asks_keto: false,
            territory: Territory::default(),
            allowed: std::sync::Arc::default(),
        }
    }

    fn answer(ids: &[&str]) -> Answer {
        Answer::Rules(ids.iter().map(|id| (*id).to_owned()).collect())
    }

    fn found(answers: &[Answer]) -> Evidence {
        let key = PolicyKey { namespace: "shop".to_owned(), name: "orders".to_owned() };
        weigh(&key, &compiled(), answers)
    }

    #[test]
    fn every_ready_pod_must_have_exactly_the_rules_of_the_policy() {
        let good = answer(&["shop.orders.read.1", "shop.orders-2.x.1", "other.orders.x.1"]);
        let old_too = answer(&["shop.orders.read.1", "shop.orders.gone.1"]);
        assert_eq!(found(&[good.clone(), good.clone()]), Evidence::Confirmed);
        assert_eq!(found(&[good.clone(), old_too]), Evidence::Disproved);
        assert_eq!(found(&[Answer::Silent, answer(&[])]), Evidence::Disproved);
        assert_eq!(found(&[good, Answer::Silent]), Evidence::Missing);
        assert_eq!(found(&[]), Evidence::Missing);
    }

    fn publication(hash: &str, standing: Standing) -> Publication {
        Publication { standing, ..Publication::unknown(hash) }
    }

    fn pending() -> Standing {
        Standing::Pending { reason: Reason::PropagatingRules, message: String::new() }
    }

    fn after(
        before: Option<&Publication>,
        was_published: bool,
        keto: bool,
        evidence: Evidence,
    ) -> &'static str {
        let blocked = (!keto).then(|| (Reason::KetoUnavailable, String::new()));
        match stand(before, &compiled(), was_published, blocked, evidence) {
            Standing::Live => "live",
            Standing::Unknown => "unknown",
            Standing::Pending { reason, .. } => reason.as_str(),
        }
    }

    #[test]
    fn live_rules_stay_live_until_a_pod_says_otherwise() {
        let live = publication("new", Standing::Live);
        assert_eq!(after(Some(&live), true, false, Evidence::Confirmed), "live");
        assert_eq!(after(Some(&live), true, false, Evidence::Missing), "live");
        assert_eq!(after(Some(&live), true, true, Evidence::Disproved), "PropagatingRules");
    }

    #[test]
    fn changed_rules_are_not_live_before_every_pod_and_keto_have_them() {
        let older = publication("old", Standing::Live);
        assert_eq!(after(Some(&older), false, true, Evidence::Missing), "OathkeeperUnavailable");
        assert_eq!(after(Some(&older), true, true, Evidence::Disproved), "PropagatingRules");
        assert_eq!(after(Some(&older), false, false, Evidence::Confirmed), "KetoUnavailable");
        assert_eq!(after(Some(&older), false, true, Evidence::Confirmed), "live");
        let waiting = publication("new", pending());
        assert_eq!(after(Some(&waiting), true, false, Evidence::Confirmed), "KetoUnavailable");
        assert_eq!(after(Some(&waiting), true, true, Evidence::Confirmed), "live");
        assert_eq!(after(None, false, true, Evidence::Missing), "OathkeeperUnavailable");
    }

    #[test]
    fn after_a_restart_published_rules_are_unknown_until_a_pod_answers() {
        assert_eq!(after(None, true, false, Evidence::Missing), "unknown");
        let unknown = publication("new", Standing::Unknown);
        assert_eq!(after(Some(&unknown), true, false, Evidence::Missing), "unknown");
        assert_eq!(after(Some(&unknown), true, true, Evidence::Confirmed), "live");
        assert_eq!(after(Some(&unknown), true, true, Evidence::Disproved), "PropagatingRules");
        assert_eq!(after(None, true, true, Evidence::Confirmed), "live");
    }

    #[test]
    fn after_a_restart_a_policy_that_keto_blocks_is_not_taken_for_live() {
        let unknown = publication("new", Standing::Unknown);
        assert_eq!(after(None, true, false, Evidence::Confirmed), "unknown");
        assert_eq!(after(Some(&unknown), true, false, Evidence::Confirmed), "unknown");
    }
}
