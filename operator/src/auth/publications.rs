//! What the running Oathkeeper pods have confirmed. In memory only: after a
//! restart everything is unknown until it is seen again.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{StreamExt, stream::BoxStream};
use kube::runtime::reflector::ObjectRef;
use peristyle_crds::{condition::Reason, v1alpha1::AuthPolicy};
use tokio::sync::broadcast;
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};

use super::{compile::Allowed, key::PolicyKey, relations::Refusals};

/// Changes that a slow controller may be behind.
const BUFFER: usize = 1024;

/// How the rules of a policy stand.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Standing {
    /// They were in the file when the operator started, and no pod has said
    /// anything about them yet.
    Unknown,
    /// They are not confirmed.
    Pending {
        /// Why.
        reason: Reason,
        /// What is missing.
        message: String,
    },
    /// Every ready pod decides by them.
    Live,
}

/// The rules of a policy as last published.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Publication {
    /// Hash of the compiled rules.
    pub hash: String,
    /// How they stand.
    pub standing: Standing,
    /// Tuples of the policy that Keto has, once that is known.
    pub tuples: Option<usize>,
    /// Which requests each rule allows.
    pub allowed: Arc<[Allowed]>,
}

#[derive(Debug, Default)]
struct Class {
    publications: BTreeMap<PolicyKey, Publication>,
    refusals: Refusals,
}

/// Publications of all AuthClasses, by the class's UID.
#[derive(Debug)]
pub struct Publications {
    classes: Arc<Mutex<HashMap<String, Class>>>,
    changes: broadcast::Sender<Vec<PolicyKey>>,
}

impl Default for Publications {
    fn default() -> Self {
        Self { classes: Arc::default(), changes: broadcast::channel(BUFFER).0 }
    }
}

impl Publications {
    /// How the rules `hash` of a policy stand: unknown while the class has not
    /// been looked at, pending while other rules or none are published.
    #[must_use]
    pub fn get(&self, class: &str, policy: &PolicyKey, hash: &str) -> Publication {
        let classes = self.lock();
        let Some(class) = classes.get(class) else {
            let (hash, allowed) = (hash.to_owned(), Arc::default());
            return Publication { hash, standing: Standing::Unknown, tuples: None, allowed };
        };
        let published = class.publications.get(policy);
        match published.filter(|publication| publication.hash == hash) {
            Some(publication) => publication.clone(),
            None => Publication {
                hash: hash.to_owned(),
                standing: Standing::Pending {
                    reason: Reason::PropagatingRules,
                    message: format!("rules {hash} are not published yet"),
                },
                tuples: published.and_then(|publication| publication.tuples),
                allowed: Arc::default(),
            },
        }
    }

    /// All publications of a class; empty while it has not been looked at.
    #[must_use]
    pub fn of_class(&self, class: &str) -> BTreeMap<PolicyKey, Publication> {
        self.lock().get(class).map(|class| class.publications.clone()).unwrap_or_default()
    }

    /// Which requests the rules of this hash allow; `None` when they are not published.
    #[must_use]
    pub fn allowed(&self, hash: &str) -> Option<Arc<[Allowed]>> {
        let classes = self.lock();
        let mut publications = classes.values().flat_map(|class| class.publications.values());
        publications.find(|publication| publication.hash == hash).map(|found| found.allowed.clone())
    }

    /// The models of a class that Keto refused.
    #[must_use]
    pub fn refusals(&self, class: &str) -> Refusals {
        self.lock().get(class).map(|class| class.refusals.clone()).unwrap_or_default()
    }

    /// Replaces what is known of a class and tells who is affected.
    pub fn replace(&self, class: &str, publications: BTreeMap<PolicyKey, Publication>, refusals: Refusals) {
        let next = Class { publications, refusals };
        let mut classes = self.lock();
        let first = !classes.contains_key(class);
        let previous = classes.entry(class.to_owned()).or_default();
        let is_changed = |key: &PolicyKey| {
            // A model that comes or goes concerns every policy that uses its names.
            first
                || previous.refusals != next.refusals
                || previous.publications.get(key) != next.publications.get(key)
        };
        let mut changed: Vec<PolicyKey> = previous
            .publications
            .keys()
            .chain(next.publications.keys())
            .chain(previous.refusals.keys())
            .chain(next.refusals.keys())
            .filter(|key| is_changed(key))
            .cloned()
            .collect();
        changed.sort();
        changed.dedup();
        *previous = next;
        drop(classes);
        if !changed.is_empty() {
            // An error means that nobody listens yet.
            drop(self.changes.send(changed));
        }
    }

    /// The policies whose publication changes from now on. A reader that fell
    /// behind gets all of them.
    #[must_use]
    pub fn changes(&self) -> BoxStream<'static, ObjectRef<AuthPolicy>> {
        let classes = self.classes.clone();
        BroadcastStream::new(self.changes.subscribe())
            .flat_map(move |event| {
                let keys = event.unwrap_or_else(|BroadcastStreamRecvError::Lagged(_)| {
                    let classes = lock(&classes);
                    classes.values().flat_map(|class| class.publications.keys().cloned()).collect()
                });
                futures::stream::iter(keys)
            })
            .map(|key: PolicyKey| key.reference())
            .boxed()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Class>> {
        lock(&self.classes)
    }
}

/// A panic of another thread leaves nothing half done in these maps.
fn lock(classes: &Mutex<HashMap<String, Class>>) -> MutexGuard<'_, HashMap<String, Class>> {
    classes.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> PolicyKey {
        PolicyKey { namespace: "shop".to_owned(), name: name.to_owned() }
    }

    fn live(hash: &str) -> Publication {
        Publication { hash: hash.to_owned(), standing: Standing::Live, tuples: None, allowed: Arc::default() }
    }

    #[test]
    fn rules_are_unknown_until_the_class_is_looked_at_and_then_live_or_pending() {
        let publications = Publications::default();
        let standing = |hash: &str| publications.get("c", &key("a"), hash).standing;
        assert_eq!(standing("1"), Standing::Unknown);
        publications.replace("c", BTreeMap::new(), Refusals::new());
        assert!(matches!(standing("1"), Standing::Pending { .. }));
        publications.replace("c", [(key("a"), live("1"))].into(), Refusals::new());
        assert_eq!(standing("1"), Standing::Live);
        assert!(matches!(standing("2"), Standing::Pending { .. }), "older rules do not count");
    }

    #[tokio::test]
    async fn only_policies_that_changed_came_or_went_are_told() {
        let publications = Publications::default();
        publications.replace(
            "c",
            [(key("gone"), live("1")), (key("same"), live("1")), (key("new"), live("1"))].into(),
            Refusals::new(),
        );
        let mut changes = publications.changes();
        publications.replace(
            "c",
            [(key("same"), live("1")), (key("new"), live("2")), (key("more"), live("1"))].into(),
            Refusals::new(),
        );
        let mut names: Vec<String> = Vec::new();
        for _ in 0..3 {
            names.push(changes.next().await.unwrap().name);
        }
        assert_eq!(names, ["gone", "more", "new"]);
        assert!(futures::poll!(changes.next()).is_pending());
    }

    #[tokio::test]
    async fn a_reader_that_fell_behind_gets_every_policy() {
        let publications = Publications::default();
        let mut changes = publications.changes();
        for n in 0..=BUFFER {
            publications.replace("c", [(key("a"), live(&n.to_string()))].into(), Refusals::new());
        }
        assert_eq!(changes.next().await.unwrap().name, "a");
    }
}
