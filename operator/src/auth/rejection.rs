//! Why a policy is not published.

use peristyle_crds::{
    class::ClassError,
    condition::{Reason, types},
};

use crate::conditions::{Finding, State};

/// A policy that does not compile. Nothing of it is published: its routes are
/// withheld.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Rejection {
    /// Whether it may resolve by itself.
    pub is_waiting: bool,
    /// Why.
    pub reason: Reason,
    /// Field, value and remedy.
    pub message: String,
}

impl Rejection {
    /// Something that the policy names does not exist yet.
    pub fn waiting(reason: Reason, message: impl Into<String>) -> Self {
        Self { is_waiting: true, reason, message: message.into() }
    }

    /// A person must change something.
    pub fn stalled(reason: Reason, message: impl Into<String>) -> Self {
        Self { is_waiting: false, reason, message: message.into() }
    }

    /// The spec is wrong.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::stalled(Reason::Invalid, message)
    }

    /// The condition `Accepted` that says so.
    #[must_use]
    pub fn finding(&self) -> Finding {
        Finding {
            condition: types::ACCEPTED,
            state: if self.is_waiting { State::Waiting } else { State::Stalled },
            reason: self.reason,
            message: self.message.clone(),
        }
    }
}

impl From<ClassError> for Rejection {
    fn from(error: ClassError) -> Self {
        match error {
            ClassError::NotFound(_) => Self::waiting(Reason::ClassNotFound, error.to_string()),
            ClassError::Ambiguous(_) => Self::stalled(Reason::ClassAmbiguous, error.to_string()),
        }
    }
}
