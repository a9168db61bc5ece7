//! What the last apply of a child sent, and what the server made of it.

use kube::Resource;
use sha2::{Digest, Sha256};

use super::{Child, Error, key, ownership};
use crate::metadata::is_older;

/// What the last apply of an object sent and what the server made of it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Record {
    pub desired: Hash,
    /// What the server says the operator owns.
    owned: Option<Hash>,
    /// Counts changes of the spec, where the kind has a generation.
    generation: Option<i64>,
    /// Version of the object when it was looked at last: of the same one nothing
    /// else needs to be compared.
    pub version: Option<Box<str>>,
}

/// The first half of a SHA-256: enough to tell whether something changed.
pub type Hash = [u8; 16];

impl Record {
    pub fn of(desired: Hash, live: &impl Resource) -> Self {
        Self { desired, owned: owned(live), generation: live.meta().generation, version: version(live) }
    }

    /// Whether `live` is, but for its status and for what others added to its
    /// metadata, surely what the apply made.
    ///
    /// Whoever changes or removes what was applied takes it out of what the
    /// operator owns, or renews the time of it. The generation tells of those
    /// who hide that, and of fields that nobody owned; of a kind that has none
    /// only the same version is sure to be the same.
    pub fn made(&self, live: &impl Resource) -> bool {
        if self.version.is_some() && self.version == version(live) {
            return true;
        }
        let is_same_spec = self.generation.is_some() && self.generation == live.meta().generation;
        is_same_spec && self.owned.is_some() && self.owned == owned(live)
    }

    /// Whether the cache, which has `live`, does not show yet what was applied.
    pub fn is_ahead_of(&self, live: Option<&impl Resource>) -> bool {
        let shown = live.map_or(Some("0"), |live| live.meta().resource_version.as_deref());
        is_older(shown, self.version.as_deref())
    }
}

pub fn version<K: Resource>(object: &K) -> Option<Box<str>> {
    object.meta().resource_version.as_deref().map(Into::into)
}

fn owned(object: &impl Resource) -> Option<Hash> {
    ownership::text(object.meta()).map(hash)
}

/// Of what is sent, without a tree of it: most passes find nothing to send.
pub fn fingerprint<K: Child>(desired: &K) -> Result<Hash, Error> {
    serde_json::to_vec(desired).map(hash).map_err(|e| Error::Encode(key(desired), e))
}

fn hash(text: impl AsRef<[u8]>) -> Hash {
    let digest = Sha256::digest(text);
    std::array::from_fn(|index| digest[index])
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use peristyle_crds::FIELD_MANAGER;
    use serde_json::json;

    use super::*;

    /// An object as the API server sends it, changed by `change`.
    fn live(change: impl Fn(&mut serde_json::Value)) -> ConfigMap {
        let ours = json!({"manager": FIELD_MANAGER, "operation": "Apply", "time": "2026-01-01T00:00:00Z",
            "fieldsV1": {"f:data": {"f:a": {}}}});
        let mut metadata =
            json!({"name": "x", "resourceVersion": "7", "generation": 1, "managedFields": [ours]});
        change(&mut metadata);
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    #[test]
    fn only_a_change_of_what_was_applied_is_one() {
        let record = Record::of([0; 16], &live(|_| {}));
        let made = |change: fn(&mut serde_json::Value)| {
            let mut live = live(|metadata| {
                metadata["resourceVersion"] = json!("8");
                change(metadata);
            });
            let as_sent = record.made(&live);
            ownership::keep(&mut live.metadata);
            assert_eq!(record.made(&live), as_sent, "the cache keeps less of it");
            as_sent
        };
        assert!(made(|_| {}), "another status");
        assert!(made(|m| m["labels"] = json!({"team": "blue"})), "a label of somebody else");
        assert!(!made(|m| m["managedFields"][0]["fieldsV1"] = json!({})), "a field was taken over");
        assert!(!made(|m| m["managedFields"][0]["time"] = json!("2026-01-01T00:00:01Z")), "by our name");
        assert!(!made(|m| m["generation"] = json!(2)), "somebody forged what we own");
        assert!(!made(|m| m["managedFields"] = json!([])), "nothing tells what we own");
    }

    #[test]
    fn of_a_kind_without_a_generation_every_other_version_may_be_a_change() {
        let version = |version: &str| {
            live(|metadata| {
                metadata["generation"] = json!(null);
                metadata["resourceVersion"] = json!(version);
            })
        };
        let record = Record::of([0; 16], &version("7"));
        assert!(record.made(&version("7")));
        assert!(!record.made(&version("8")));
    }
}
