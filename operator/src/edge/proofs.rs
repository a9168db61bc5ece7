//! What is proved of the routes that are published. In memory only: after a
//! restart it is proved anew.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{StreamExt, stream::BoxStream};
use tokio::{sync::broadcast, time::Instant};
use tokio_stream::wrappers::BroadcastStream;

use super::{claims::ServiceKey, patience::Patience};

/// Changes that a slow controller may be behind; older ones are told by the
/// next look at everything.
const BUFFER: usize = 1024;

/// How long an edge may go on with an object that is gone. Traefik gathers
/// changes for 2 s (`providersThrottleDuration`).
const LAG: Duration = Duration::from_secs(3);

/// What a call without credentials came to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// Refused, as it must be.
    Refused,
    /// Somebody answered it.
    LetIn(String),
    /// Neither the one nor the other.
    Unproven(String),
}

/// One host of a policy.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Proof {
    /// The host.
    pub host: String,
    /// Hash of the rules that its route enforces.
    pub hash: String,
    /// What came of it.
    pub verdict: Verdict,
}

/// What is known of the routes of one Service.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Known {
    /// UID of the Service: nothing of it is proved of another of its name.
    pub uid: String,
    /// The objects that this was seen with; others must be looked at anew.
    pub mark: String,
    /// For each protected host.
    pub proofs: Vec<Proof>,
    /// Addresses of the workload that every pod of the edge has.
    pub servers: BTreeSet<String>,
    /// Looks in a row that left something open.
    pub waits: u32,
}

/// The object that has the name of a route.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Object {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// The last object of a name, and since when it is there if it followed another one.
#[derive(Debug)]
struct Last {
    uid: String,
    since: Option<Instant>,
}

/// What is known of all routes.
#[derive(Debug)]
pub struct Proofs {
    /// How long edges may take to answer.
    pub patience: Patience,
    services: Mutex<HashMap<ServiceKey, Known>>,
    objects: Mutex<HashMap<ServiceKey, HashMap<String, Last>>>,
    changes: broadcast::Sender<ServiceKey>,
}

impl Default for Proofs {
    fn default() -> Self {
        Self {
            patience: Patience::default(),
            services: Mutex::default(),
            objects: Mutex::default(),
            changes: broadcast::channel(BUFFER).0,
        }
    }
}

impl Proofs {
    /// What is known of the routes of the Service with this UID.
    #[must_use]
    pub fn of(&self, service: &ServiceKey, uid: &str) -> Option<Known> {
        self.lock().get(service).filter(|known| known.uid == uid).cloned()
    }

    /// Replaces what is known; `None` when nothing of it is published any more.
    pub fn replace(&self, service: &ServiceKey, known: Option<Known>) {
        let before = {
            let mut services = self.lock();
            match known.clone() {
                Some(known) => services.insert(service.clone(), known),
                None => services.remove(service),
            }
        };
        let proofs = |known: Option<Known>| known.map(|known| known.proofs);
        if proofs(before) != proofs(known) {
            // An error means that nobody listens yet.
            drop(self.changes.send(service.clone()));
        }
    }

    /// For how long from `now` what an edge shows of the routes of a Service may
    /// be of objects before these. An edge may have loaded one that is gone, and
    /// then lose it before it loads the one that followed: by name and content
    /// both are the same.
    #[must_use]
    pub fn may_be_of_others(
        &self,
        service: &ServiceKey,
        objects: &[Object],
        now: Instant,
    ) -> Option<Duration> {
        let mut services = lock(&self.objects);
        let known = services.entry(service.clone()).or_default();
        let mut longest = None;
        for Object { name, uid } in objects {
            let last = known.entry(name.clone()).or_insert_with(|| Last { uid: uid.clone(), since: None });
            if last.uid != *uid {
                *last = Last { uid: uid.clone(), since: Some(now) };
            }
            let left = last.since.map(|since| LAG.saturating_sub(now.duration_since(since)));
            longest = longest.max(left.filter(|left| !left.is_zero()));
        }
        longest
    }

    /// Forgets all Services but those that exist, by name and UID.
    pub fn retain(&self, exists: impl Fn(&ServiceKey, Option<&str>) -> bool) {
        self.lock().retain(|service, known| exists(service, Some(&known.uid)));
        lock(&self.objects).retain(|service, _| exists(service, None));
    }

    /// The proofs of all routes that enforce the rules of this hash, of Services
    /// that exist.
    #[must_use]
    pub fn of_rules(&self, hash: &str, exists: impl Fn(&ServiceKey, &str) -> bool) -> Vec<Proof> {
        let services = self.lock();
        let present = services.iter().filter(|(service, known)| exists(service, &known.uid));
        let proofs = present.flat_map(|(_, known)| &known.proofs);
        proofs.filter(|proof| proof.hash == hash).cloned().collect()
    }

    /// Services of whose routes something is proved or disproved from now on.
    /// `None`: some were missed.
    #[must_use]
    pub fn changes(&self) -> BoxStream<'static, Option<ServiceKey>> {
        BroadcastStream::new(self.changes.subscribe()).map(Result::ok).boxed()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<ServiceKey, Known>> {
        lock(&self.services)
    }
}

/// A panic of another thread leaves nothing half done in what is here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> ServiceKey {
        ServiceKey { namespace: "shop".to_owned(), name: name.to_owned() }
    }

    fn known(hash: &str, verdict: Verdict) -> Known {
        let proof = Proof { host: "a.test".to_owned(), hash: hash.to_owned(), verdict };
        Known { proofs: vec![proof], ..Known::default() }
    }

    #[tokio::test]
    async fn only_what_is_proved_anew_is_told() {
        let proofs = Proofs::default();
        let mut changes = proofs.changes();
        proofs.replace(&key("a"), Some(known("1", Verdict::Refused)));
        proofs.replace(&key("a"), Some(Known { waits: 3, ..known("1", Verdict::Refused) }));
        proofs.replace(&key("b"), None);
        proofs.replace(&key("a"), None);
        assert_eq!(changes.next().await.unwrap(), Some(key("a")));
        assert_eq!(changes.next().await.unwrap(), Some(key("a")));
        assert!(futures::poll!(changes.next()).is_pending());
    }

    #[test]
    fn proofs_count_for_the_rules_that_they_were_seen_with() {
        let proofs = Proofs::default();
        let of = |hash: &str| proofs.of_rules(hash, |_, _| true).len();
        proofs.replace(&key("a"), Some(known("1", Verdict::Refused)));
        proofs.replace(&key("b"), Some(known("2", Verdict::LetIn("200".to_owned()))));
        assert_eq!((of("1"), of("3")), (1, 0));
        proofs.replace(&key("a"), None);
        assert_eq!(of("1"), 0);
    }

    #[test]
    fn nothing_is_proved_of_a_service_by_what_was_seen_of_one_before_it() {
        let proofs = Proofs::default();
        let seen = Known { uid: "old".to_owned(), ..known("1", Verdict::Refused) };
        proofs.replace(&key("a"), Some(seen));
        let is_new = |_: &ServiceKey, uid: &str| uid == "new";
        assert!(proofs.of_rules("1", is_new).is_empty() && proofs.of(&key("a"), "new").is_none());
        assert!(proofs.of(&key("a"), "old").is_some());
        proofs.retain(|_, uid| uid.is_none_or(|uid| uid == "new"));
        assert!(proofs.of(&key("a"), "old").is_none(), "it is kept for ever");
    }

    #[test]
    fn what_an_edge_shows_soon_after_a_route_was_made_anew_may_be_that_before_it() {
        let (proofs, begin) = (Proofs::default(), Instant::now());
        let at = |uid: &str, seconds: u64| {
            let object = Object { name: "way".to_owned(), uid: uid.to_owned() };
            let left = proofs.may_be_of_others(&key("a"), &[object], begin + Duration::from_secs(seconds));
            left.map_or(0, |left| left.as_secs())
        };
        assert_eq!([at("1", 0), at("1", 1)], [0, 0], "the first of its name");
        assert_eq!([at("2", 2), at("2", 4), at("2", 5), at("2", 6)], [3, 1, 0, 0]);
        assert_eq!(at("3", 7), 3, "once more");
        proofs.retain(|service, _| *service == key("b"));
        assert_eq!(at("4", 8), 0, "it is kept for ever");
    }
}
