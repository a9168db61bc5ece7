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
        let type_ = match finding.state {
            State::Good | State::Waiting => EventType::Normal,
            State::Unknown | State::Failed | State::Stalled => EventType::Warning,
        };
        let event = Event {
            type_,
            reason: finding.reason.as_str().to_owned(),
            note: Some(finding.message.chars().take(1000).collect()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if let Err(error) = bounded(self.0.publish(&event, object)).await {
            tracing::warn!(%error, "failed to publish an event");
        }
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
        let event = Event {
            type_: EventType::Warning,
            reason: "DriftReverted".to_owned(),
            note: Some(note.chars().take(1000).collect()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if let Err(error) = bounded(self.0.publish(&event, &object)).await {
            tracing::warn!(%error, "failed to publish an event");
        }
    }
}
