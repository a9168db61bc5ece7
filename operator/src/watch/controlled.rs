//! Which objects of a cache each owner controls.

use std::{
    collections::{HashMap, HashSet},
    sync::{PoisonError, RwLock},
};

use kube::{Resource, runtime::reflector::ObjectRef};

use super::Cached;

/// The objects of a cache by the UID of their controller, so that an owner is
/// asked for its children and not every child for its owner.
///
/// May name more than the cache holds, never less: an object is added before
/// it is in the cache and removed after it has left it.
pub struct Controlled<K: Cached>(RwLock<HashMap<String, HashSet<ObjectRef<K>>>>);

impl<K: Cached> Default for Controlled<K> {
    fn default() -> Self {
        Self(RwLock::default())
    }
}

impl<K: Cached> Controlled<K> {
    /// What the object with this UID controls, or did.
    pub fn of(&self, uid: &str) -> Vec<ObjectRef<K>> {
        let owners = self.0.read().unwrap_or_else(PoisonError::into_inner);
        owners.get(uid).into_iter().flatten().cloned().collect()
    }

    /// Notes the controller of `object`.
    pub fn add(&self, object: &K) {
        if let Some(uid) = controller(object) {
            let mut owners = self.0.write().unwrap_or_else(PoisonError::into_inner);
            owners.entry(uid.to_owned()).or_default().insert(ObjectRef::from_obj(object));
        }
    }

    /// Forgets `object`.
    pub fn remove(&self, object: &K) {
        let Some(uid) = controller(object) else { return };
        let mut owners = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(controlled) = owners.get_mut(uid) {
            controlled.remove(&ObjectRef::from_obj(object));
            if controlled.is_empty() {
                owners.remove(uid);
            }
        }
    }
}

fn controller(object: &impl Resource) -> Option<&str> {
    let mut owners = object.meta().owner_references.iter().flatten();
    owners.find(|owner| owner.controller == Some(true)).map(|owner| owner.uid.as_str())
}
