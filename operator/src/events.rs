//! Events on transitions, one recorder for the process.

use k8s_openapi::{api::core::v1::ObjectReference, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};

use crate::{
    conditions::{Finding, State},
    retry::bounded,
};

/// The longest note that the API server takes, in bytes.
const LONGEST: usize = 1024;

/// Writes events; a lost event is logged and never fails a reconcile. Clones count repetitions together.
#[derive(Clone)]
pub struct Events(Recorder);

impl Events {
    /// Events reported by the process `identity`.
    #[must_use]
    pub fn new(client: Client, identity: &str) -> Self {
        let reporter = Reporter { controller: "peristyle".to_owned(), instance: Some(identity.to_owned()) };
        Self(Recorder::new(client, reporter))
    }

    /// Tells that `object` now stands as `finding` says.
    pub async fn transition(&self, object: &ObjectReference, finding: &Finding) {
        self.tell(object, type_of(finding.state), finding.reason.as_str(), &finding.message).await;
    }

    /// Tells the owner of a child that somebody else's change of it was reverted.
    pub async fn changed_back(&self, owner: &OwnerReference, namespace: Option<String>, note: &str) {
        let object = ObjectReference {
            api_version: Some(owner.api_version.clone()),
            kind: Some(owner.kind.clone()),
            name: Some(owner.name.clone()),
            uid: Some(owner.uid.clone()),
            namespace,
            ..ObjectReference::default()
        };
        self.tell(&object, EventType::Warning, "DriftReverted", note).await;
    }

    async fn tell(&self, object: &ObjectReference, type_: EventType, reason: &str, note: &str) {
        let event = Event {
            type_,
            reason: reason.to_owned(),
            note: Some(note[..note.floor_char_boundary(LONGEST)].to_owned()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if let Err(error) = bounded(self.0.publish(&event, object)).await {
            tracing::warn!(%error, "failed to publish an event");
        }
    }
}

/// Whether a transition to `state` is something to look into.
fn type_of(state: State) -> EventType {
    match state {
        State::Good | State::Waiting => EventType::Normal,
        State::Unknown | State::Failed | State::Stalled => EventType::Warning,
    }
}

#[cfg(test)]
mod tests {
    use peristyle_crds::condition::Reason;

    use super::*;
    use crate::retry::{Class, consequence};

    /// The last column of the table of failures. A failure that leaves the
    /// status as it is makes no transition, and so no event.
    #[test]
    fn every_class_of_failure_has_its_event_or_none() {
        let told = |class, failures| {
            let shown = consequence(class, Reason::Progressing, failures).shown;
            shown.map(|state| matches!(type_of(state), EventType::Warning))
        };
        let (warning, normal) = (Some(true), Some(false));
        for (class, failures, expected) in [
            (Class::Terminal, 1, warning),
            (Class::Wait, 1, normal),
            (Class::Conflict, 1, None),
            (Class::Conflict, 99, None),
            (Class::Transient, 1, None),
            (Class::Transient, 99, warning),
            (Class::Forbidden, 1, warning),
            (Class::Quota, 1, warning),
            (Class::Bug, 1, warning),
        ] {
            assert_eq!(told(class, failures), expected, "{class:?} after {failures}");
        }
        assert!(matches!(type_of(State::Good), EventType::Normal));
    }
}
