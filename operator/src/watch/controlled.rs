//! Which objects of a cache each owner controls.

use std::{
    collections::BTreeSet,
    ops::Bound::{Included, Unbounded},
    sync::{PoisonError, RwLock},
};

use kube::{Resource, ResourceExt};

/// The objects of a cache by the UID of their controller, so that an owner is
/// asked for its children and not every child for its owner.
///
/// May name more than the cache holds, never less: an object is added before
/// it is in the cache and removed after it has left it.
///
/// Each entry is `uid/namespace/name`, none of which has a slash in it: one
/// text takes a fraction of the memory of a table for each owner.
#[derive(Default)]
pub struct Controlled(RwLock<BTreeSet<Box<str>>>);

impl Controlled {
    /// Namespace, empty if there is none, and name of what the object with
    /// this UID controls, or did.
    pub fn of(&self, uid: &str) -> Vec<(String, String)> {
        let prefix = format!("{uid}/");
        let entries = self.0.read().unwrap_or_else(PoisonError::into_inner);
        entries
            .range::<str, _>((Included(prefix.as_str()), Unbounded))
            .map_while(|entry| entry.strip_prefix(&prefix)?.split_once('/'))
            .map(|(namespace, name)| (namespace.to_owned(), name.to_owned()))
            .collect()
    }

    /// Notes the controller of `object`.
    pub fn add(&self, object: &impl Resource) {
        if let Some(entry) = entry(object) {
            self.0.write().unwrap_or_else(PoisonError::into_inner).insert(entry);
        }
    }

    /// Forgets `object`.
    pub fn remove(&self, object: &impl Resource) {
        if let Some(entry) = entry(object) {
            self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&entry);
        }
    }
}

fn entry(object: &impl Resource) -> Option<Box<str>> {
    let mut owners = object.meta().owner_references.iter().flatten();
    let controller = owners.find(|owner| owner.controller == Some(true))?;
    let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
    Some(format!("{}/{namespace}/{name}", controller.uid).into())
}
