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
    let same = before.filter(|before| before.hash == compiled.hash);
    match (evidence, same.map(|before| &before.standing)) {
        // What is live stays live until a pod says otherwise: with Keto or every
        // Oathkeeper pod away each call is refused all the same.
        (Evidence::Confirmed | Evidence::Missing, Some(Standing::Live)) => Standing::Live,
        (Evidence::Confirmed, Some(Standing::Unknown)) => Standing::Live,
        (Evidence::Confirmed, None) if was_published && before.is_none() => Standing::Live,
        (Evidence::Confirmed, _) => match blocked {
            Some((reason, message)) => Standing::Pending { reason, message },
            None => Standing::Live,
        },
        (Evidence::Missing, Some(Standing::Unknown)) => Standing::Unknown,
        (Evidence::Missing, None) if was_published && before.is_none() => Standing::Unknown,
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
