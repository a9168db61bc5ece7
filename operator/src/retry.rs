//! Classes of failure: what a failure means for the object and when to try again.

use std::time::Duration;

use peristyle_crds::condition::Reason;

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
    /// A broken invariant of ours.
    Bug,
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
        kube::Error::Api(status) if status.is_forbidden() => Class::Forbidden,
        kube::Error::Api(status) if status.is_conflict() => Class::Conflict,
        // The API server did not accept what we rendered: trying again changes nothing.
        kube::Error::Api(status) if matches!(status.code, 400 | 413 | 422) => Class::Terminal,
        _ => Class::Transient,
    }
}

/// The reason that goes with a class of client error.
#[must_use]
pub const fn reason(class: Class) -> Reason {
    match class {
        Class::Terminal => Reason::Invalid,
        Class::Wait | Class::Conflict => Reason::Progressing,
        Class::Transient => Reason::Unavailable,
        Class::Forbidden => Reason::Forbidden,
        Class::Bug => Reason::InternalError,
    }
}
