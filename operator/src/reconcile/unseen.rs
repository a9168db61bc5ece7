//! Statuses that were written and that the cache does not show yet.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// For each object whose status was written: the version in the cache then.
///
/// A pass over that version would not know of the write: it would write the
/// status once more, with other times, and tell of the same transition again.
/// The event of the write brings the next pass.
#[derive(Debug, Default)]
pub struct Unseen(Mutex<HashMap<String, String>>);

impl Unseen {
    /// Notes a write to the object `key`, which was `before` and is `after` it.
    pub fn wrote(&self, key: &str, before: Option<String>, after: Option<&str>) {
        // A write that changed nothing makes no event.
        if let Some(before) = before.filter(|before| after.is_some_and(|after| after != before)) {
            self.lock().insert(key.to_owned(), before);
        }
    }

    /// Whether the object `key` in `version` is as it was before the last write.
    pub fn is_before(&self, key: &str, version: Option<&str>) -> bool {
        let mut unseen = self.lock();
        if unseen.get(key).map(String::as_str) == version {
            return version.is_some();
        }
        unseen.remove(key);
        false
    }

    /// Forgets an object that is gone.
    pub fn forget(&self, key: &str) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pass_waits_until_the_cache_has_left_the_version_before_the_write() {
        let unseen = Unseen::default();
        assert!(!unseen.is_before("a", Some("1")), "nothing was written");
        unseen.wrote("a", Some("1".to_owned()), Some("2"));
        assert!(unseen.is_before("a", Some("1")) && unseen.is_before("a", Some("1")));
        assert!(!unseen.is_before("b", Some("1")), "another object");
        assert!(!unseen.is_before("a", Some("2")));
        assert!(!unseen.is_before("a", Some("1")), "it is forgotten once it was seen");
    }

    #[test]
    fn a_write_that_changed_nothing_is_not_waited_for() {
        let unseen = Unseen::default();
        unseen.wrote("a", Some("1".to_owned()), Some("1"));
        unseen.wrote("b", Some("1".to_owned()), None);
        unseen.wrote("c", None, Some("1"));
        assert!(["a", "b"].iter().all(|key| !unseen.is_before(key, Some("1"))));
        assert!(!unseen.is_before("c", None));
        assert!(unseen.lock().is_empty());
    }
}
