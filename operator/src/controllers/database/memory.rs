//! What was verified on the server, so that a pass over an object that did not
//! change asks nobody anything.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use peristyle_crds::{
    condition::types,
    names::ROTATE_ANNOTATION,
    v1alpha1::{Database, DatabaseStatus},
};

use super::{record, validate::Validated};
use crate::{conditions::Finding, context::Context, controllers::database_class::target, sql::plan::Login};

/// How long a verification is believed; shorter than the interval of a healthy object.
const BELIEVED: Duration = Duration::from_secs(4 * 3600);

/// Everything that a verification depends on and that the API server tells us of.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Inputs {
    uid: Option<String>,
    generation: Option<i64>,
    class: (Option<String>, Option<i64>),
    /// Moves when the server was away: what it held before may be gone.
    reachable_since: Option<Time>,
    server: [Option<String>; 2],
    logins: Vec<Login>,
    /// The request to rotate, which moves no generation.
    asked: Option<String>,
    /// Versions of the Secrets by name.
    secrets: BTreeMap<String, Option<String>>,
}

impl Inputs {
    /// As the caches have them.
    #[must_use]
    pub fn observe(ctx: &Context, database: &Database, validated: &Validated) -> Self {
        let namespace = database.namespace().unwrap_or_default();
        let version = |name: &str| ctx.stores.secrets.get(&namespace, name)?.resource_version();
        let record = record::name(&database.name_any());
        let secrets = validated.secrets.values().chain([&record]);
        let mut conditions = validated.class.status.iter().flat_map(|status| &status.conditions);
        Self {
            uid: database.uid(),
            generation: database.metadata.generation,
            class: (validated.class.uid(), validated.class.metadata.generation),
            reachable_since: conditions
                .find(|condition| condition.type_ == types::READY)
                .map(|condition| condition.last_transition_time.clone()),
            server: target::versions(ctx, &validated.access),
            logins: validated.desired.logins.clone(),
            asked: database.annotations().get(ROTATE_ANNOTATION).cloned(),
            secrets: secrets.map(|name| (name.clone(), version(name))).collect(),
        }
    }

    /// Sets the versions of Secrets that were just written, which the cache may not have yet.
    pub fn set_versions(&mut self, versions: &BTreeMap<String, Option<String>>) {
        self.secrets.clone_from(versions);
    }
}

/// A successful verification.
#[derive(Clone, Debug)]
pub struct Verified {
    /// The status it led to.
    pub status: DatabaseStatus,
    /// The findings it led to.
    pub findings: Vec<Finding>,
    /// When something is to be done although nothing changes.
    pub due: Option<Instant>,
}

impl Verified {
    /// How long nothing is to be done.
    #[must_use]
    pub fn left(&self) -> Option<Duration> {
        self.due.map(|due| due.saturating_duration_since(Instant::now()))
    }
}

/// Verifications by object.
#[derive(Default)]
pub struct Memory(Mutex<HashMap<String, (Inputs, Instant, Verified)>>);

impl Memory {
    /// What was verified of `database`, if nothing it depends on has changed since.
    #[must_use]
    pub fn recall(&self, database: &Database, inputs: &Inputs) -> Option<Verified> {
        let entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (known, at, verified) = entries.get(&key(database))?;
        let is_due = verified.left().is_some_and(|left| left.is_zero());
        (known == inputs && at.elapsed() < BELIEVED && !is_due).then(|| verified.clone())
    }

    /// Remembers a verification, and forgets those of objects that are gone.
    pub fn keep(&self, ctx: &Context, database: &Database, inputs: Inputs, verified: Verified) {
        let entry = (inputs, Instant::now(), verified);
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.insert(key(database), entry);
        let live = ctx.stores.databases.store().state();
        if entries.len() > live.len() {
            let live: HashSet<String> = live.iter().map(|database| key(database)).collect();
            entries.retain(|name, _| live.contains(name));
        }
    }

    /// Forgets `database`.
    pub fn forget(&self, database: &Database) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key(database));
    }
}

fn key(database: &Database) -> String {
    format!("{}/{}", database.namespace().unwrap_or_default(), database.name_any())
}
