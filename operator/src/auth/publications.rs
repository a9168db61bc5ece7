//! What the running Oathkeeper pods have confirmed. In memory only: after a
//! restart everything is unknown until it is seen again.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use futures::{StreamExt, stream::BoxStream};
use kube::runtime::reflector::ObjectRef;
use peristyle_crds::{condition::Reason, v1alpha1::AuthPolicy};
use tokio::sync::broadcast;
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};

use super::{
    compile::{Allowed, Compiled},
    key::PolicyKey,
    relations::Refusals,
};

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
#[derive(Clone, Debug, PartialEq)]
pub struct Publication {
    /// The rules.
    pub rules: Ruleset,
    /// How they stand.
    pub standing: Standing,
    /// Tuples of the policy that Keto has, once that is known.
    pub tuples: Option<usize>,
    /// Why Keto may not have the policy's relations as they are now. The rules
    /// stay live: who has no relation is refused.
    pub relations: Option<(Reason, String)>,
    /// While these rules are not live: those that were, and all since by which
    /// some pod may decide, oldest first. Empty when none were live.
    pub earlier: Vec<Ruleset>,
}

/// Rules by which a pod decides, or may still decide.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ruleset {
    /// Hash of the compiled rules.
    pub hash: String,
    /// Which requests each rule allows.
    pub allowed: Arc<[Allowed]>,
    /// Hosts that the rules decide.
    pub hosts: BTreeSet<String>,
}

impl From<&Compiled> for Ruleset {
    fn from(compiled: &Compiled) -> Self {
        let Compiled { hash, allowed, territory, .. } = compiled;
        Self { hash: hash.clone(), allowed: allowed.clone(), hosts: territory.hosts.clone() }
    }
}

impl Publication {
    /// Rules of which nothing is known.
    #[must_use]
    pub fn unknown(hash: &str) -> Self {
        Self {
            rules: Ruleset { hash: hash.to_owned(), ..Ruleset::default() },
            standing: Standing::Unknown,
            tuples: None,
            relations: None,
            earlier: Vec::new(),
        }
    }

    /// What a pod may still decide by when `hash` is to follow this publication.
    #[must_use]
    pub fn before(&self, hash: &str) -> Vec<Ruleset> {
        if self.rules.hash == hash {
            return self.earlier.clone();
        }
        let own = self.rules.clone();
        match self.standing {
            Standing::Live => vec![own],
            // Only from rules that were live can one go on without a gap.
            Standing::Pending { .. } | Standing::Unknown if self.earlier.is_empty() => Vec::new(),
            Standing::Pending { .. } | Standing::Unknown => {
                self.earlier.iter().cloned().chain([own]).collect()
            }
        }
    }
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
            return Publication::unknown(hash);
        };
        let published = class.publications.get(policy);
        match published.filter(|publication| publication.rules.hash == hash) {
            Some(publication) => publication.clone(),
            None => Publication {
                standing: Standing::Pending {
                    reason: Reason::PropagatingRules,
                    message: format!("rules {hash} are not published yet"),
                },
                tuples: published.and_then(|publication| publication.tuples),
                relations: published.and_then(|publication| publication.relations.clone()),
                earlier: published.map(|publication| publication.before(hash)).unwrap_or_default(),
                ..Publication::unknown(hash)
            },
        }
    }

    /// All publications of a class; empty while it has not been looked at.
    #[must_use]
    pub fn of_class(&self, class: &str) -> BTreeMap<PolicyKey, Publication> {
        self.lock().get(class).map(|class| class.publications.clone()).unwrap_or_default()
    }

    /// Which requests the rules of this hash allow, published or on their way out; `None` when they are not published.
    #[must_use]
    pub fn allowed(&self, hash: &str) -> Option<Arc<[Allowed]>> {
        let classes = self.lock();
        let publications = classes.values().flat_map(|class| class.publications.values());
        let mut rules =
            publications.flat_map(|publication| publication.earlier.iter().chain([&publication.rules]));
        rules.find(|rules| rules.hash == hash).map(|rules| rules.allowed.clone())
    }

    /// The models of a class that Keto refused.
    #[must_use]
    pub fn refusals(&self, class: &str) -> Refusals {
        self.lock().get(class).map(|class| class.refusals.clone()).unwrap_or_default()
    }

    /// Forgets all classes but those that exist, by UID.
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.lock().retain(|uid, _| exists(uid));
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

    /// Takes back that any rules of a class are live: what the pods are told is
    /// not in our hands.
    pub fn doubt(&self, class: &str, reason: Reason, message: &str) {
        let doubtful = |publication: Publication| Publication {
            standing: Standing::Pending { reason, message: message.to_owned() },
            earlier: Vec::new(),
            ..publication
        };
        let publications = self.of_class(class).into_iter().map(|(key, one)| (key, doubtful(one)));
        self.replace(class, publications.collect(), self.refusals(class));
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
        Publication { standing: Standing::Live, ..Publication::unknown(hash) }
    }

    #[test]
    fn rules_that_cannot_be_written_are_live_for_nobody_until_they_are_seen_again() {
        let publications = Publications::default();
        publications.replace("c", [(key("a"), live("1"))].into(), Refusals::new());
        publications.doubt("c", Reason::NameConflict, "the ConfigMap is somebody else's");
        for hash in ["1", "2"] {
            let found = publications.get("c", &key("a"), hash);
            assert!(matches!(found.standing, Standing::Pending { .. }), "{found:?}");
            assert!(found.earlier.is_empty(), "nor do they stand in for others");
        }
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
