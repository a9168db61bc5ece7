//! What was verified on the server, so that a pass over an object that did not
//! change asks nobody anything.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;
use peristyle_crds::{
    condition::types,
    v1alpha1::{Database, DatabaseStatus, database::RoleName},
};

use super::validate::Validated;
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
    secrets: BTreeMap<RoleName, (String, Option<String>)>,
}

impl Inputs {
    /// As the caches have them.
    #[must_use]
    pub fn observe(ctx: &Context, database: &Database, validated: &Validated) -> Self {
        let namespace = database.namespace().unwrap_or_default();
        let version = |name: &str| ctx.stores.secrets.get(&namespace, name)?.resource_version();
        let secrets = validated.secrets.iter();
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
            secrets: secrets.map(|(role, name)| (*role, (name.clone(), version(name)))).collect(),
        }
    }

    /// Sets the versions of Secrets that were just written, which the cache may not have yet.
    pub fn set_version(&mut self, role: RoleName, version: Option<String>) {
        if let Some(secret) = self.secrets.get_mut(&role) {
            secret.1 = version;
        }
    }
}

/// A successful verification.
#[derive(Clone, Debug)]
pub struct Verified {
    /// The status it led to.
    pub status: DatabaseStatus,
    /// The findings it led to.
    pub findings: Vec<Finding>,
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
        (known == inputs && at.elapsed() < BELIEVED).then(|| verified.clone())
    }

    /// Remembers a verification.
    pub fn keep(&self, database: &Database, inputs: Inputs, verified: Verified) {
        let entry = (inputs, Instant::now(), verified);
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key(database), entry);
    }

    /// Forgets `database`.
    pub fn forget(&self, database: &Database) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&key(database));
    }
}

fn key(database: &Database) -> String {
    format!("{}/{}", database.namespace().unwrap_or_default(), database.name_any())
}
