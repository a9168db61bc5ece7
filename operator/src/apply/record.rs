//! What the last apply of a child sent, and what the server made of it.

use kube::Resource;
use sha2::{Digest, Sha256};

use super::{Child, Error, encode, key};

/// What the last apply of an object sent and what the server made of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Record {
    pub desired: Hash,
    pub live: Hash,
    /// Version of the object when it was looked at last: of the same one nothing
    /// else needs to be compared.
    pub version: Option<Box<str>>,
}

/// The first half of a SHA-256: enough to tell whether something changed.
pub type Hash = [u8; 16];

impl Record {
    pub fn of<K: Child>(desired: Hash, live: &K) -> Result<Self, Error> {
        Ok(Self { desired, live: hash(settled(live)?.to_string()), version: version(live) })
    }

    /// Whether `live` is, but for its status, what the apply made.
    pub fn made<K: Child>(&self, live: &K) -> Result<bool, Error> {
        let is_same = self.version.is_some() && self.version == version(live);
        Ok(is_same || self.live == hash(settled(live)?.to_string()))
    }

    /// Whether the cache, which has `live`, does not show yet what was applied.
    /// Versions of one kind can be compared as numbers (KEP-5504).
    pub fn is_ahead_of<K: Child>(&self, live: Option<&K>) -> bool {
        let number = |version: Option<&str>| version.and_then(|version| version.parse::<u128>().ok());
        let shown = live.map_or(Some(0), |live| number(live.meta().resource_version.as_deref()));
        number(self.version.as_deref()).zip(shown).is_some_and(|(applied, shown)| applied > shown)
    }
}

pub fn version<K: Resource>(object: &K) -> Option<Box<str>> {
    object.meta().resource_version.as_deref().map(Into::into)
}

/// The parts of an object that only a writer of its spec changes.
fn settled<K: Child>(object: &K) -> Result<serde_json::Value, Error> {
    let mut value = encode(object)?;
    if let Some(object) = value.as_object_mut() {
        object.remove("status");
        object.remove("apiVersion");
        object.remove("kind");
        if let Some(metadata) = object.get_mut("metadata").and_then(|m| m.as_object_mut()) {
            for volatile in ["managedFields", "resourceVersion", "generation"] {
                metadata.remove(volatile);
            }
            // Written by the Deployment controller at each rollout.
            if let Some(annotations) = metadata.get_mut("annotations").and_then(|a| a.as_object_mut()) {
                annotations.remove("deployment.kubernetes.io/revision");
                if annotations.is_empty() {
                    metadata.remove("annotations");
                }
            }
        }
    }
    Ok(value)
}

/// Of what is sent, without a tree of it: most passes find nothing to send.
pub fn fingerprint<K: Child>(desired: &K) -> Result<Hash, Error> {
    serde_json::to_vec(desired).map(hash).map_err(|e| Error::Encode(key(desired), e))
}

fn hash(text: impl AsRef<[u8]>) -> Hash {
    let digest = Sha256::digest(text);
    std::array::from_fn(|index| digest[index])
}
