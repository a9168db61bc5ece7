//! Which AuthPolicy is meant.

use std::fmt;

use jiff::Timestamp;
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use peristyle_crds::v1alpha1::AuthPolicy;

/// An AuthPolicy by namespace and name.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct PolicyKey {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl PolicyKey {
    /// The key of `policy`.
    #[must_use]
    pub fn of(policy: &AuthPolicy) -> Self {
        Self { namespace: policy.namespace().unwrap_or_default(), name: policy.name_any() }
    }

    /// The key as the queue of a controller wants it.
    #[must_use]
    pub fn reference(&self) -> ObjectRef<AuthPolicy> {
        ObjectRef::new(&self.name).within(&self.namespace)
    }

    /// How a message to the owner of `reader` names this policy: what lives in
    /// another namespace is not told.
    #[must_use]
    pub fn told_to(&self, reader: &Self) -> String {
        if self.namespace == reader.namespace {
            format!("AuthPolicy {}", self.name)
        } else {
            "an AuthPolicy in another namespace".to_owned()
        }
    }
}

impl fmt::Display for PolicyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Sorts the older policy first; of equals the one with the smaller name.
#[must_use]
pub fn age(policy: &AuthPolicy) -> (Timestamp, PolicyKey) {
    let created = policy.creation_timestamp().map_or(Timestamp::MAX, |time| time.0);
    (created, PolicyKey::of(policy))
}
