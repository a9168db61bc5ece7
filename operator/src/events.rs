//! Events on transitions.

use std::sync::{Arc, Mutex, PoisonError};

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

/// How many events one recorder writes. It keeps each of them, whole, to count
/// repetitions, and after a burst for as long as the process lives.
const KEPT: usize = 128;

/// Writes events; a lost event is logged and never fails a reconcile. Clones count repetitions
/// together, those that come soon after each other.
#[derive(Clone)]
pub struct Events {
    client: Client,
    reporter: Reporter,
    current: Arc<Mutex<Current>>,
}

/// A recorder and how many events it was given.
struct Current {
    recorder: Recorder,
    given: usize,
}

impl Events {
    /// Events reported by the process `identity`.
    #[must_use]
    pub fn new(client: Client, identity: &str) -> Self {
        let reporter = Reporter { controller: "peristyle".to_owned(), instance: Some(identity.to_owned()) };
        let recorder = Recorder::new(client.clone(), reporter.clone());
        Self { client, reporter, current: Arc::new(Mutex::new(Current { recorder, given: 0 })) }
    }

    fn recorder(&self) -> Recorder {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.given == KEPT {
            let recorder = Recorder::new(self.client.clone(), self.reporter.clone());
            *current = Current { recorder, given: 0 };
        }
        current.given += 1;
        current.recorder.clone()
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
        if let Err(error) = bounded(self.recorder().publish(&event, object)).await {
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

    #[tokio::test]
    async fn a_repetition_is_counted_until_a_recorder_has_written_its_share() {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let noted = asked.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let noted = noted.clone();
            async move {
                noted.lock().unwrap().push(request.method().to_string());
                let body = request.into_body().collect_bytes().await?;
                Ok::<_, kube::Error>(http::Response::new(kube::client::Body::from(body.to_vec())))
            }
        });
        let events = Events::new(Client::new(service, "default"), "test");
        let object = ObjectReference { namespace: Some("shop".to_owned()), ..ObjectReference::default() };
        for _ in 0..=KEPT {
            events.tell(&object, EventType::Normal, "Succeeded", "again").await;
        }
        let asked = asked.lock().unwrap();
        let made: Vec<_> = (0..asked.len()).filter(|index| asked[*index] == "POST").collect();
        assert_eq!((asked.len(), made), (KEPT + 1, vec![0, KEPT]));
    }

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
