//! The status of an AuthClass.

use peristyle_crds::{
    condition::{Reason, types},
    v1alpha1::{AuthClassStatus, auth_class::PodRules},
};

use super::{
    relations::Standing,
    rules::{Rules, Seen},
};
use crate::{
    auth::{evidence::Answer, plan::Plan},
    conditions::{Finding, State},
};

/// More rules than these make every decision slow.
const MANY: usize = 500;

/// Whether every ready pod and Keto have what is published.
pub fn is_settled(rules: &Rules, keto: &Standing) -> bool {
    // Without any pod there is nothing to ask; the first one to come is an event.
    matches!(keto, Standing::Current(_))
        && !rules.is_leaving
        && rules.pods.iter().all(|seen| is_confirmed(rules, seen))
}

/// How the class stands.
pub fn status(plan: &Plan, rules: &Rules, keto: &Standing) -> (AuthClassStatus, Vec<Finding>) {
    let pods: Vec<PodRules> = rules
        .pods
        .iter()
        .map(|seen| PodRules {
            name: seen.pod.name.clone(),
            rules: match &seen.answer {
                Answer::Rules(ids) => number(ids.intersection(&rules.ids).count()),
                Answer::Silent => 0,
            },
        })
        .collect();
    let accepted = plan.policies.iter().filter(|(_, compiled)| compiled.is_ok()).count();
    let finding = match open(rules, keto) {
        Some((reason, message)) => Finding::waiting(types::PUBLISHED, reason, message),
        None => Finding::good(
            types::PUBLISHED,
            format!(
                "{} rules of {accepted} policies are loaded by every ready Oathkeeper pod",
                rules.ids.len()
            ),
        ),
    };
    let status = AuthClassStatus { rules: Some(number(rules.ids.len())), pods, ..AuthClassStatus::default() };
    (status, [finding].into_iter().chain(advisory(rules.ids.len())).collect())
}

/// Oathkeeper tries one rule after the other for each request.
fn advisory(count: usize) -> Option<Finding> {
    (count > MANY).then(|| Finding {
        condition: types::ADVISORY,
        state: State::Good,
        reason: Reason::LimitExceeded,
        message: format!(
            "{count} rules, more than {MANY}: each call is compared with all of them; use further AuthClasses"
        ),
    })
}

fn open(rules: &Rules, keto: &Standing) -> Option<(Reason, String)> {
    if let Some(blocked) = keto.blocks(true) {
        return Some(blocked);
    }
    if rules.pods.is_empty() {
        return Some((
            Reason::OathkeeperUnavailable,
            "spec.oathkeeper.service: no ready pod behind it".to_owned(),
        ));
    }
    if let Some(problem) = rules.pods.iter().find_map(|seen| seen.problem.as_ref()) {
        return Some((Reason::OathkeeperUnavailable, problem.clone()));
    }
    let late: Vec<&str> = rules
        .pods
        .iter()
        .filter(|seen| !is_confirmed(rules, seen))
        .map(|seen| seen.pod.name.as_str())
        .collect();
    (!late.is_empty())
        .then(|| (Reason::PropagatingRules, format!("waiting for {} to load the rules", late.join(", "))))
}

fn is_confirmed(rules: &Rules, seen: &Seen) -> bool {
    matches!(&seen.answer, Answer::Rules(ids) if *ids == rules.ids)
}

fn number(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_500_rules_are_worth_a_word_that_makes_nothing_unready() {
        assert_eq!(advisory(500), None);
        let found = advisory(501).unwrap();
        assert_eq!((found.condition, found.state), (types::ADVISORY, State::Good));
    }
}
