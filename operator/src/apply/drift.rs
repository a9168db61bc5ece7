//! Who changes, again and again, what the operator owns.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use kube::core::Status;

/// Time in which changes are counted.
const WINDOW: Duration = Duration::from_secs(60);
/// Changes within the window that are reverted.
const LIMIT: usize = 5;
/// The longest time for which an object is left to somebody else.
const LONGEST: Duration = Duration::from_secs(30 * 60);

/// Fields of ours that other managers have changed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Conflict {
    /// The managers, sorted.
    pub managers: String,
    /// The fields, sorted.
    pub fields: String,
}

impl Conflict {
    /// What the API server answers to an apply that it would have to force.
    #[must_use]
    pub fn of(status: &Status) -> Option<Self> {
        let causes = &status.details.as_ref()?.causes;
        let causes: Vec<_> = causes.iter().filter(|cause| cause.reason == "FieldManagerConflict").collect();
        let managers: BTreeSet<&str> =
            causes.iter().filter_map(|cause| cause.message.split('"').nth(1)).collect();
        let fields: BTreeSet<&str> = causes.iter().map(|cause| cause.field.as_str()).collect();
        let list = |set: BTreeSet<&str>| set.into_iter().collect::<Vec<_>>().join(", ");
        (!causes.is_empty()).then(|| Self { managers: list(managers), fields: list(fields) })
    }
}

impl std::fmt::Display for Conflict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} changed {}", self.managers, self.fields)
    }
}

/// What was reverted lately, by object.
#[derive(Debug, Default)]
pub struct Drift(Mutex<HashMap<String, Dispute>>);

#[derive(Debug, Default)]
struct Dispute {
    reverted: VecDeque<Instant>,
    /// How often the object was left to somebody else, and until when.
    given_up: u32,
    until: Option<(Instant, Conflict)>,
}

impl Drift {
    /// Whom the object is left to for now.
    #[must_use]
    pub fn left_to(&self, object: &str, now: Instant) -> Option<Conflict> {
        let disputes = self.lock();
        let (until, conflict) = disputes.get(object)?.until.as_ref()?;
        (now < *until).then(|| conflict.clone())
    }

    /// Notes a change that is to be reverted, unless that was done too often:
    /// then the object is left alone for a minute, at most for half an hour.
    pub fn may_revert(&self, object: &str, conflict: &Conflict, now: Instant) -> bool {
        let mut disputes = self.lock();
        // Whoever was left alone for long and came to rest is forgotten.
        let is_recent = |at: &Instant| now.duration_since(*at) < LONGEST;
        disputes.retain(|_, dispute| {
            dispute.reverted.back().is_some_and(is_recent)
                || dispute.until.as_ref().is_some_and(|(until, _)| is_recent(until))
        });
        let dispute = disputes.entry(object.to_owned()).or_default();
        dispute.reverted.retain(|at| now.duration_since(*at) < WINDOW);
        if dispute.reverted.len() < LIMIT {
            dispute.reverted.push_back(now);
            return true;
        }
        let pause = WINDOW.saturating_mul(1 << dispute.given_up.min(10)).min(LONGEST);
        dispute.given_up += 1;
        dispute.reverted.clear();
        dispute.until = Some((now + pause, conflict.clone()));
        false
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Dispute>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn conflict() -> Conflict {
        Conflict { managers: "kubectl-edit".to_owned(), fields: ".spec.replicas".to_owned() }
    }

    #[test]
    fn the_sixth_change_within_a_minute_is_left_for_longer_and_longer() {
        let (drift, start) = (Drift::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert!((0..5).all(|second| drift.may_revert("a", &conflict(), at(second))));
        assert!(drift.may_revert("b", &conflict(), at(5)), "another object");
        assert_eq!(drift.left_to("a", at(5)), None);
        assert!(!drift.may_revert("a", &conflict(), at(5)));
        assert_eq!(drift.left_to("a", at(64)), Some(conflict()));
        assert_eq!(drift.left_to("a", at(65)), None);
        assert!((65..70).all(|second| drift.may_revert("a", &conflict(), at(second))));
        assert!(!drift.may_revert("a", &conflict(), at(70)));
        assert_eq!(drift.left_to("a", at(189)), Some(conflict()));
        assert_eq!(drift.left_to("a", at(190)), None);
    }

    #[test]
    fn rare_changes_are_reverted_for_ever() {
        let (drift, start) = (Drift::default(), Instant::now());
        let at = |minutes: u64| start + Duration::from_secs(60 * minutes);
        assert!((0..100).all(|minute| drift.may_revert("a", &conflict(), at(minute))));
    }

    #[test]
    fn the_api_server_names_managers_and_fields() {
        let cause = |manager: &str, field: &str| {
            json!({"reason": "FieldManagerConflict", "field": field,
                "message": format!("conflict with \"{manager}\" using apps/v1")})
        };
        let causes = [cause("kubectl-edit", ".spec.replicas"), cause("argo", ".spec.paused")];
        let status: Status = serde_json::from_value(
            json!({"code": 409, "message": "", "reason": "Conflict", "details": {"causes": causes}}),
        )
        .unwrap();
        let found = Conflict::of(&status).unwrap();
        assert_eq!(found.to_string(), "argo, kubectl-edit changed .spec.paused, .spec.replicas");
        let other: Status = serde_json::from_value(json!({"code": 409, "reason": "AlreadyExists"})).unwrap();
        assert_eq!(Conflict::of(&other), None);
    }
}
