//! From findings to conditions with kstatus semantics.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use peristyle_crds::condition::{Reason, types};

/// How one aspect of an object stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// As the spec says.
    Good,
    /// Not yet; may come by itself.
    Waiting,
    /// Cannot be told, because a system does not answer; tried again.
    Unknown,
    /// Failed; tried again.
    Failed,
    /// Failed until a person changes something.
    Stalled,
}

/// One aspect of an object with its reason.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Finding {
    /// Condition type.
    pub condition: &'static str,
    /// How it stands.
    pub state: State,
    /// Why.
    pub reason: Reason,
    /// The object and the cause; no time stamps, no secrets.
    pub message: String,
}

impl Finding {
    /// All is well.
    #[must_use]
    pub fn good(condition: &'static str, message: impl Into<String>) -> Self {
        Self { condition, state: State::Good, reason: Reason::Succeeded, message: message.into() }
    }

    /// Not yet.
    #[must_use]
    pub fn waiting(condition: &'static str, reason: Reason, message: impl Into<String>) -> Self {
        Self { condition, state: State::Waiting, reason, message: message.into() }
    }

    /// A system does not answer, tried again.
    #[must_use]
    pub fn unknown(condition: &'static str, reason: Reason, message: impl Into<String>) -> Self {
        Self { condition, state: State::Unknown, reason, message: message.into() }
    }

    /// Failed, tried again.
    #[must_use]
    pub fn failed(condition: &'static str, reason: Reason, message: impl Into<String>) -> Self {
        Self { condition, state: State::Failed, reason, message: message.into() }
    }

    /// Failed until a person changes something.
    #[must_use]
    pub fn stalled(condition: &'static str, reason: Reason, message: impl Into<String>) -> Self {
        Self { condition, state: State::Stalled, reason, message: message.into() }
    }
}

/// The worst finding, the first of its kind; `None` when all is good. An object
/// that is left alone keeps the readiness that it had, whatever else is found.
#[must_use]
pub fn worst(findings: &[Finding]) -> Option<&Finding> {
    let is_kept = |finding: &&Finding| finding.condition == types::READY && is_pause(finding.reason);
    if let Some(kept) = findings.iter().find(is_kept) {
        return Some(kept).filter(|kept| kept.state != State::Good);
    }
    [State::Stalled, State::Failed, State::Unknown, State::Waiting]
        .into_iter()
        .find_map(|state| findings.iter().find(|finding| finding.state == state))
}

/// What `Ready` says where no finding is bad.
#[must_use]
pub fn good(findings: &[Finding]) -> Finding {
    let said = findings.iter().find(|finding| finding.condition == types::READY);
    said.cloned().unwrap_or_else(|| Finding::good(types::READY, "all is as the spec says"))
}

/// Nothing is in progress while the operator leaves an object alone.
fn is_pause(reason: Reason) -> bool {
    matches!(reason, Reason::Suspended | Reason::Ignored)
}

/// The conditions that say what `findings` say, with `Ready` first.
///
/// `Ready` repeats the worst finding. `Reconciling` and `Stalled` are there
/// only when true. Types in `previous` that no finding mentions are kept: a
/// failure in one step says nothing about the others. The transition time
/// moves only with the status.
#[must_use]
pub fn conditions(
    previous: &[Condition],
    findings: &[Finding],
    generation: i64,
    now: Timestamp,
) -> Vec<Condition> {
    let mut wanted: Vec<(&str, &str, Reason, String)> = Vec::new();
    let ready = worst(findings).cloned().unwrap_or_else(|| good(findings));
    wanted.push((types::READY, status(ready.state), ready.reason, ready.message.clone()));
    if ready.state != State::Good && !is_pause(ready.reason) {
        let companion = if ready.state == State::Stalled { types::STALLED } else { types::RECONCILING };
        wanted.push((companion, "True", ready.reason, ready.message));
    }
    for finding in findings.iter().filter(|finding| finding.condition != types::READY) {
        wanted.push((finding.condition, status(finding.state), finding.reason, finding.message.clone()));
    }
    let mut result: Vec<Condition> = wanted
        .into_iter()
        .map(|(type_, status, reason, message)| {
            let before = previous.iter().find(|c| c.type_ == type_ && c.status == status);
            Condition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: reason.as_str().to_owned(),
                message,
                observed_generation: Some(generation),
                last_transition_time: before.map_or(Time(now), |c| c.last_transition_time.clone()),
            }
        })
        .collect();
    let momentary =
        [types::READY, types::RECONCILING, types::STALLED, types::ADVISORY, types::DRIFT_DETECTED];
    for old in previous {
        if !momentary.contains(&old.type_.as_str()) && !result.iter().any(|c| c.type_ == old.type_) {
            result.push(old.clone());
        }
    }
    result
}

/// Whether `Ready` says something else than before: what an event tells.
#[must_use]
pub fn is_transition(previous: &[Condition], next: &[Condition]) -> bool {
    let ready = |conditions: &[Condition]| {
        conditions.iter().find(|c| c.type_ == types::READY).map(|c| (c.status.clone(), c.reason.clone()))
    };
    ready(previous) != ready(next)
}

/// Whether the condition `type_` is True and speaks of `generation`.
#[must_use]
pub fn is_true(conditions: &[Condition], type_: &str, generation: Option<i64>) -> bool {
    conditions.iter().any(|c| c.type_ == type_ && c.status == "True" && (c.observed_generation >= generation))
}

const fn status(state: State) -> &'static str {
    match state {
        State::Good => "True",
        State::Waiting | State::Unknown => "Unknown",
        State::Failed | State::Stalled => "False",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EARLY: Timestamp = Timestamp::constant(1_000, 0);
    const LATE: Timestamp = Timestamp::constant(2_000, 0);

    fn of<'a>(conditions: &'a [Condition], type_: &str) -> Option<&'a Condition> {
        conditions.iter().find(|c| c.type_ == type_)
    }

    #[test]
    fn ready_repeats_the_worst_finding_and_not_the_first() {
        let findings = [
            Finding::waiting(types::DATABASES_READY, Reason::DatabaseNotReady, "a"),
            Finding::stalled(types::ROUTES_PROGRAMMED, Reason::HostConflict, "b"),
        ];
        let result = conditions(&[], &findings, 3, EARLY);
        let ready = of(&result, types::READY).unwrap();
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "HostConflict"));
        assert!(of(&result, types::STALLED).is_some());
        assert!(of(&result, types::RECONCILING).is_none());
    }

    #[test]
    fn what_is_left_alone_keeps_its_readiness_and_the_rest_says_what_is_so() {
        let ready = |state| Finding { state, ..Finding::good(types::READY, "a") };
        let down = Finding::failed(types::WORKLOAD_AVAILABLE, Reason::PodsNotReady, "b");
        for (state, status) in [(State::Good, "True"), (State::Waiting, "Unknown"), (State::Failed, "False")]
        {
            let kept = Finding { reason: Reason::Suspended, ..ready(state) };
            let result = conditions(&[], &[kept, down.clone()], 1, EARLY);
            let said = of(&result, types::READY).unwrap();
            assert_eq!((said.status.as_str(), said.reason.as_str()), (status, "Suspended"));
            assert_eq!(of(&result, types::WORKLOAD_AVAILABLE).unwrap().status, "False");
            assert!(of(&result, types::RECONCILING).is_none() && of(&result, types::STALLED).is_none());
        }
    }

    #[test]
    fn waiting_is_unknown_and_reconciling() {
        let findings = [Finding::waiting(types::DATABASES_READY, Reason::DatabaseNotReady, "a")];
        let result = conditions(&[], &findings, 1, EARLY);
        assert_eq!(of(&result, types::READY).unwrap().status, "Unknown");
        assert_eq!(of(&result, types::RECONCILING).unwrap().status, "True");
    }

    #[test]
    fn companions_disappear_when_all_is_good() {
        let before =
            conditions(&[], &[Finding::failed(types::PROVISIONED, Reason::Unavailable, "a")], 1, EARLY);
        let after = conditions(&before, &[Finding::good(types::PROVISIONED, "b")], 1, LATE);
        assert_eq!(of(&after, types::READY).unwrap().status, "True");
        assert!(of(&after, types::RECONCILING).is_none() && of(&after, types::STALLED).is_none());
    }

    #[test]
    fn the_transition_time_moves_with_the_status_only() {
        let before = conditions(&[], &[Finding::good(types::PROVISIONED, "a")], 1, EARLY);
        let same = conditions(&before, &[Finding::good(types::PROVISIONED, "other words")], 2, LATE);
        assert_eq!(of(&same, types::PROVISIONED).unwrap().last_transition_time, Time(EARLY));
        let moved =
            conditions(&same, &[Finding::failed(types::PROVISIONED, Reason::Unavailable, "a")], 2, LATE);
        assert_eq!(of(&moved, types::PROVISIONED).unwrap().last_transition_time, Time(LATE));
    }

    #[test]
    fn what_a_failed_step_does_not_know_is_kept() {
        let before = conditions(&[], &[Finding::good(types::DATABASES_READY, "a")], 1, EARLY);
        let after = conditions(&before, &[Finding::failed(types::READY, Reason::Unavailable, "x")], 1, LATE);
        assert_eq!(of(&after, types::DATABASES_READY).unwrap().status, "True");
        assert_eq!(of(&after, types::READY).unwrap().status, "False");
    }
}
