//! What the controller knows of each class without asking again.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use peristyle_crds::v1alpha1::{auth_class::Keto, auth_policy::Tuple};

use super::pods::Pod;
use crate::{
    auth::{key::PolicyKey, leaving::Leaving, model::NamespacesFile, relations::Refusals},
    backoff::jitter,
};

/// For how long it is believed that Keto has what was brought to it: less than
/// the time between two looks at a class of which nothing has changed.
const LOOK_AGAIN: Duration = Duration::from_secs(4 * 3600);

/// How long a route may take to go before the rules that it asks for do. What
/// holds it up must not keep open what a policy no longer allows.
const LEAVE: Duration = Duration::from_secs(5);

/// One [`Progress`] per class, by UID.
#[derive(Default)]
pub struct Memory(Mutex<HashMap<String, Arc<tokio::sync::Mutex<Progress>>>>);

impl Memory {
    /// The progress of a class.
    pub fn of(&self, uid: &str) -> Arc<tokio::sync::Mutex<Progress>> {
        let mut classes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        classes.entry(uid.to_owned()).or_default().clone()
    }

    /// Forgets all classes but those that exist.
    pub fn retain(&self, exists: impl Fn(&str) -> bool) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| exists(uid));
    }
}

/// What was done for one class and has been seen to hold.
#[derive(Default)]
pub struct Progress {
    /// ConfigMaps by name, as last written.
    pub written: HashMap<String, Written>,
    /// Models as last checked by Keto.
    pub checked: Option<Checked>,
    /// What was brought to Keto last.
    pub relations: Option<Brought>,
    /// Pods that have loaded exactly these rules.
    pub confirmed: HashMap<Pod, BTreeSet<String>>,
    /// Since when the rules of this hash are of no policy and still asked for.
    leaving: HashMap<String, Instant>,
    /// Looks in a row that left something open.
    waits: u32,
}

/// A ConfigMap as it was after our last write.
pub struct Written {
    /// The content of its one key.
    pub content: String,
    /// Its resource version.
    pub version: Option<String>,
}

/// A syntax check of all models together.
pub struct Checked {
    /// What was checked.
    pub sources: Vec<(PolicyKey, String)>,
    /// Models that were refused.
    pub refusals: Refusals,
}

/// What was brought to Keto.
pub struct Brought {
    /// Where it is.
    pub keto: Keto,
    /// When Keto was seen to have it. Nothing tells of a database that was
    /// replaced behind it.
    pub seen: Instant,
    /// Its namespaces.
    pub file: NamespacesFile,
    /// The tuples of all policies.
    pub tuples: BTreeSet<Tuple>,
}

impl Brought {
    /// Whether Keto need not be asked again.
    pub fn is_still(&self, keto: &Keto, file: &NamespacesFile, tuples: &BTreeSet<Tuple>) -> bool {
        self.keto == *keto && self.file == *file && self.tuples == *tuples && self.seen.elapsed() < LOOK_AGAIN
    }
}

impl Progress {
    /// Those of `leaving` whose routes have not had enough time yet.
    pub fn give_time(&mut self, leaving: Vec<Leaving>) -> Vec<Leaving> {
        self.leaving.retain(|hash, _| leaving.iter().any(|one| one.hash == *hash));
        let mut has_time = |one: &Leaving| {
            self.leaving.entry(one.hash.clone()).or_insert_with(Instant::now).elapsed() < LEAVE
        };
        leaving.into_iter().filter(|one| has_time(one)).collect()
    }

    /// When to look again: soon and then less often while something is open,
    /// not at all when everything is settled.
    pub fn wait(&mut self, is_settled: bool, (first, last): (Duration, Duration)) -> Option<Duration> {
        if is_settled {
            self.waits = 0;
            return None;
        }
        let delay = first.saturating_mul(1 << self.waits.min(10)).min(last);
        self.waits += 1;
        Some(jitter(delay))
    }
}
