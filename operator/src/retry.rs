//! Classes of failure: what a failure means for the object and when to try again.

use std::time::Duration;

use kube::core::Status;
use peristyle_crds::condition::Reason;

use crate::conditions::{Finding, State};

/// How often a healthy object is looked at although nothing changed.
const RESYNC: Duration = Duration::from_secs(6 * 3600);
/// How often an object that waits is looked at although nothing changed.
const WAIT: Duration = Duration::from_secs(45);
/// How often it is tried whether a right has been granted.
const GRANT: Duration = Duration::from_secs(40);
/// How often it is tried whether what was refused is accepted by now: not every
/// correction by a person is told, for example that of a webhook.
const REFUSED: Duration = Duration::from_secs(300);
/// How many failures in a row of a system that does not answer as it should
/// leave the status as it is.
const UNNOTICED: u32 = 2;

/// Deadline of every call to another system.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// What kind of failure it is; the table of the architecture.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Class {
    /// Nothing helps but a change by a person.
    Terminal,
    /// Something that may come by itself is missing.
    Wait,
    /// Another writer was faster.
    Conflict,
    /// A system did not answer as it should.
    Transient,
    /// The API server refused for lack of permission.
    Forbidden,
    /// A ResourceQuota leaves no room.
    Quota,
    /// A broken invariant of ours.
    Bug,
}

/// When to look at an object again.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Retry {
    /// When it, or something that it depends on, changes.
    OnChange,
    /// After this long, plus or minus a quarter.
    After(Duration),
    /// After a delay that grows with each failure.
    Backoff,
}

/// What follows from a failure.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Consequence {
    /// What the status says; `None` leaves it as it is. Events follow from it.
    pub shown: Option<State>,
    /// When to try again.
    pub retry: Retry,
}

/// What follows from a failure of `class` for `reason`, after `failures` in a row.
#[must_use]
pub fn consequence(class: Class, reason: Reason, failures: u32) -> Consequence {
    let (shown, retry) = match class {
        // The caches do not show when the object of somebody else is gone.
        Class::Terminal if reason == Reason::NameConflict => (Some(State::Stalled), Retry::After(WAIT)),
        Class::Terminal => (Some(State::Stalled), Retry::After(REFUSED)),
        Class::Wait => (Some(State::Waiting), Retry::After(WAIT)),
        Class::Quota => (Some(State::Failed), Retry::After(WAIT)),
        Class::Conflict => (None, Retry::Backoff),
        Class::Transient if failures <= UNNOTICED => (None, Retry::Backoff),
        Class::Transient => (Some(State::Unknown), Retry::Backoff),
        Class::Forbidden => (Some(State::Failed), Retry::After(GRANT)),
        Class::Bug => (Some(State::Failed), Retry::Backoff),
    };
    Consequence { shown, retry }
}

/// When to look again after a pass without an error. What may come by itself is
/// looked at in time even where something else waits for a person. A finding is
/// no failure of the pass, so nothing here grows.
#[must_use]
pub fn after(findings: &[Finding], requeue: Option<Duration>) -> Retry {
    let any = |states: &[State]| findings.iter().any(|finding| states.contains(&finding.state));
    match requeue {
        Some(after) => Retry::After(after),
        None if any(&[State::Failed, State::Unknown, State::Waiting]) => Retry::After(WAIT),
        None if any(&[State::Stalled]) => Retry::OnChange,
        None => Retry::After(RESYNC),
    }
}

/// An error that knows what it means.
pub trait Classified: std::error::Error + Send + Sync + 'static {
    /// The class of the failure.
    fn class(&self) -> Class;
    /// The reason shown in conditions.
    fn reason(&self) -> Reason;
    /// The condition that the failure concerns, `Ready` if none in particular.
    fn condition(&self) -> &'static str {
        peristyle_crds::condition::types::READY
    }
}

/// Bounds a call to the API server by [`CALL_DEADLINE`]; the client has no bound of its own.
///
/// # Errors
/// Those of the call, and one when the deadline passes.
pub async fn bounded<T>(call: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    let elapsed = |elapsed: tokio::time::error::Elapsed| Err(kube::Error::Service(elapsed.into()));
    tokio::time::timeout(CALL_DEADLINE, call).await.unwrap_or_else(elapsed)
}

/// For controllers that only read caches.
impl Classified for std::convert::Infallible {
    fn class(&self) -> Class {
        match *self {}
    }

    fn reason(&self) -> Reason {
        match *self {}
    }
}

/// The class of an error of the client.
#[must_use]
pub fn classify(error: &kube::Error) -> Class {
    match error {
        kube::Error::Api(status) if status.is_forbidden() => refusal(status),
        kube::Error::Api(status) if status.is_conflict() => Class::Conflict,
        // Another object has taken the place of the one that was meant.
        kube::Error::Api(status) if is_of_another_object(status) => Class::Conflict,
        // The API server did not accept what we rendered: trying again soon changes nothing.
        kube::Error::Api(status) if matches!(status.code, 400 | 413 | 422) => Class::Terminal,
        _ => Class::Transient,
    }
}

/// What a 403 means: admission answers with it too, where no right is missing.
fn refusal(status: &Status) -> Class {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    if causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating") {
        return Class::Wait;
    }
    if status.message.contains("exceeded quota") { Class::Quota } else { Class::Forbidden }
}

/// Whether a write named the UID of an object that is no longer the one of its name.
fn is_of_another_object(status: &Status) -> bool {
    let causes = status.details.iter().flat_map(|details| &details.causes);
    status.code == 422 && causes.into_iter().any(|cause| cause.field == "metadata.uid")
}

/// The reason that goes with a class of client error.
#[must_use]
pub const fn reason(class: Class) -> Reason {
    match class {
        Class::Terminal => Reason::Invalid,
        Class::Wait | Class::Conflict => Reason::Progressing,
        Class::Transient => Reason::Unavailable,
        Class::Forbidden => Reason::Forbidden,
        Class::Quota => Reason::QuotaExceeded,
        Class::Bug => Reason::InternalError,
    }
}

#[cfg(test)]
mod tests {
    use peristyle_crds::condition::types::{DATABASES_READY, ROUTES_PROGRAMMED};
    use serde_json::json;

    use super::*;

    /// The table: class, reason and failures; status and event by the state; retry.
    #[test]
    fn every_class_of_failure_has_its_status_and_its_next_try() {
        let table = [
            (Class::Terminal, Reason::Invalid, 1, Some(State::Stalled), Retry::After(REFUSED)),
            (Class::Terminal, Reason::NameConflict, 1, Some(State::Stalled), Retry::After(WAIT)),
            (Class::Wait, Reason::DatabaseNotReady, 1, Some(State::Waiting), Retry::After(WAIT)),
            (Class::Conflict, Reason::Progressing, 1, None, Retry::Backoff),
            (Class::Conflict, Reason::Progressing, 99, None, Retry::Backoff),
            (Class::Transient, Reason::Unavailable, 1, None, Retry::Backoff),
            (Class::Transient, Reason::Unavailable, UNNOTICED, None, Retry::Backoff),
            (Class::Transient, Reason::Unavailable, UNNOTICED + 1, Some(State::Unknown), Retry::Backoff),
            (Class::Forbidden, Reason::Forbidden, 1, Some(State::Failed), Retry::After(GRANT)),
            (Class::Forbidden, Reason::Forbidden, 99, Some(State::Failed), Retry::After(GRANT)),
            (Class::Quota, Reason::QuotaExceeded, 1, Some(State::Failed), Retry::After(WAIT)),
            (Class::Bug, Reason::InternalError, 1, Some(State::Failed), Retry::Backoff),
        ];
        for (class, reason, failures, shown, retry) in table {
            let found = consequence(class, reason, failures);
            assert_eq!(found, Consequence { shown, retry }, "{class:?} for {reason:?} after {failures}");
        }
    }

    #[test]
    fn a_missing_right_is_tried_again_after_half_a_minute_and_before_a_whole_one() {
        assert!(GRANT.mul_f64(0.75) >= Duration::from_secs(30));
        assert!(GRANT.mul_f64(1.25) <= Duration::from_secs(60));
    }

    #[test]
    fn answers_of_the_api_server_fall_into_their_classes() {
        let of = |code: u16, reason: &str| {
            let status = kube::core::Status { code, reason: reason.to_owned(), ..Default::default() };
            classify(&kube::Error::Api(status.boxed()))
        };
        for (code, reason, class) in [
            (400, "BadRequest", Class::Terminal),
            (422, "Invalid", Class::Terminal),
            (413, "RequestEntityTooLarge", Class::Terminal),
            (403, "Forbidden", Class::Forbidden),
            (409, "Conflict", Class::Conflict),
            (429, "TooManyRequests", Class::Transient),
            (500, "InternalError", Class::Transient),
            (503, "ServiceUnavailable", Class::Transient),
            (504, "Timeout", Class::Transient),
        ] {
            assert_eq!(of(code, reason), class, "{code} {reason}");
        }
        let elapsed = kube::Error::Service(crate::client::Error::Deadline.into());
        assert_eq!(classify(&elapsed), Class::Transient);
    }

    #[test]
    fn a_refusal_that_no_right_would_mend_is_told_apart() {
        let of = |status: serde_json::Value| {
            let status: Status = serde_json::from_value(status).unwrap();
            let class = classify(&kube::Error::Api(status.boxed()));
            (class, reason(class))
        };
        let terminating = json!({"code": 403, "reason": "Forbidden", "message": "it is being terminated",
            "details": {"causes": [{"reason": "NamespaceTerminating", "message": "shop", "field": "metadata.namespace"}]}});
        assert_eq!(of(terminating), (Class::Wait, Reason::Progressing));
        let quota = json!({"code": 403, "reason": "Forbidden",
            "message": "services \"orders\" is forbidden: exceeded quota: small, requested: services=1"});
        assert_eq!(of(quota), (Class::Quota, Reason::QuotaExceeded));
        let replaced = json!({"code": 422, "reason": "Invalid", "message": "field is immutable",
            "details": {"causes": [{"reason": "FieldValueInvalid", "field": "metadata.uid"}]}});
        assert_eq!(of(replaced), (Class::Conflict, Reason::Progressing));
        let invalid = json!({"code": 422, "reason": "Invalid", "message": "",
            "details": {"causes": [{"reason": "FieldValueInvalid", "field": "spec.ports"}]}});
        assert_eq!(of(invalid), (Class::Terminal, Reason::Invalid));
    }

    #[test]
    fn what_waits_is_looked_at_although_something_else_is_stalled() {
        let stalled = Finding::stalled(ROUTES_PROGRAMMED, Reason::HostConflict, "a");
        let waiting = Finding::waiting(DATABASES_READY, Reason::DatabaseNotReady, "b");
        let unknown = Finding::unknown(DATABASES_READY, Reason::Unavailable, "c");
        let good = Finding::good(DATABASES_READY, "d");
        assert_eq!(after(std::slice::from_ref(&stalled), None), Retry::OnChange);
        assert_eq!(after(&[stalled.clone(), waiting], None), Retry::After(WAIT));
        assert_eq!(after(&[stalled.clone(), unknown], None), Retry::After(WAIT));
        assert_eq!(after(&[good], None), Retry::After(RESYNC));
        let minute = Duration::from_secs(60);
        assert_eq!(after(&[stalled], Some(minute)), Retry::After(minute));
    }
}
