//! Which objects of a cache belong together.

use std::{
    collections::BTreeSet,
    ops::Bound::{Included, Unbounded},
    sync::{PoisonError, RwLock},
};

use kube::{Resource, ResourceExt};

use crate::metadata;

/// What an object can be found by. None of one function may begin as another
/// of it does and go on after a slash.
pub type Keys<K> = fn(&K) -> Vec<String>;

/// The objects of a cache by their keys, so that an owner is asked for its
/// children and not every child for its owner.
///
/// May name more than the cache holds, never less: an object is added before
/// it is in the cache and removed after it has left it.
///
/// Each entry is `key/namespace/name`, neither of which has a slash in it: one
/// text takes a fraction of the memory of a table for each key.
pub struct Index<K> {
    keys: Keys<K>,
    entries: RwLock<BTreeSet<Box<str>>>,
}

impl<K: Resource> Index<K> {
    /// An index without an entry.
    pub fn by(keys: Keys<K>) -> Self {
        Self { keys, entries: RwLock::default() }
    }

    /// Namespace, empty if there is none, and name of what has this key, or had it.
    pub fn of(&self, key: &str) -> Vec<(String, String)> {
        let prefix = format!("{key}/");
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries
            .range::<str, _>((Included(prefix.as_str()), Unbounded))
            .map_while(|entry| entry.strip_prefix(&prefix)?.split_once('/'))
            .map(|(namespace, name)| (namespace.to_owned(), name.to_owned()))
            .collect()
    }

    /// Whether `object` has this key.
    pub fn has(&self, object: &K, key: &str) -> bool {
        (self.keys)(object).iter().any(|found| found == key)
    }

    /// Notes the keys of `object`.
    pub fn add(&self, object: &K) {
        self.entries.write().unwrap_or_else(PoisonError::into_inner).extend(self.entries_of(object));
    }

    /// Forgets the keys of `before`, but for those that it has `now`.
    pub fn remove(&self, before: &K, now: Option<&K>) {
        let kept: Vec<_> = now.map(|now| self.entries_of(now).collect()).unwrap_or_default();
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        for entry in self.entries_of(before).filter(|entry| !kept.contains(entry)) {
            entries.remove(&entry);
        }
    }

    fn entries_of(&self, object: &K) -> impl Iterator<Item = Box<str>> {
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        (self.keys)(object).into_iter().map(move |key| format!("{key}/{namespace}/{name}").into())
    }
}

/// The UID of the controller of `object`.
#[must_use]
pub fn controller<K: Resource>(object: &K) -> Vec<String> {
    metadata::controller(object).map(|owner| owner.uid.clone()).into_iter().collect()
}

/// Those of `labels` that `object` has in its namespace.
#[must_use]
pub fn labels<K: Resource>(object: &K, labels: &[&str]) -> Vec<String> {
    let namespace = object.namespace().unwrap_or_default();
    let found = labels.iter().filter_map(|label| {
        let value = object.labels().get(*label)?;
        Some(labelled(&namespace, label, value))
    });
    found.collect()
}

/// The key of what carries `label` with `value` in `namespace`.
#[must_use]
pub fn labelled(namespace: &str, label: &str, value: &str) -> String {
    format!("{namespace} {label}={value}")
}

/// For what is only found by its name.
#[must_use]
pub fn nothing<K>(_: &K) -> Vec<String> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    fn map(name: &str, value: &str) -> ConfigMap {
        let metadata = json!({"namespace": "shop", "name": name, "labels": {"team": value}});
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    #[test]
    fn a_key_that_an_object_lost_is_forgotten_and_one_that_it_keeps_is_not() {
        let index = Index::by(|map: &ConfigMap| labels(map, &["team"]));
        let names = |value| index.of(&labelled("shop", "team", value)).into_iter().map(|(_, name)| name);
        let [before, now] = [map("a", "red"), map("a", "blue")];
        index.add(&before);
        index.add(&map("b", "red"));
        index.add(&now);
        index.remove(&before, Some(&now));
        assert_eq!(names("red").collect::<Vec<_>>(), ["b"]);
        index.remove(&now, Some(&now));
        assert_eq!(names("blue").collect::<Vec<_>>(), ["a"]);
        index.remove(&now, None);
        assert_eq!(names("blue").count(), 0);
    }
}
