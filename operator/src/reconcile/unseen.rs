//! Statuses that were written, until the cache has shown them.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::runtime::controller::Action;

use crate::metadata::is_older;

/// The last write of a status for each object.
///
/// A pass over an older version would not know of the write: it would
/// write the status once more, with other times, and tell of the same
/// transition again. The event of the write brings nothing that is not known
/// and makes no pass, unless one waits for it.
#[derive(Debug, Default)]
pub struct Unseen(Mutex<HashMap<String, Write>>);

#[derive(Debug, Default)]
struct Write {
    /// The version that it made, once the reply has come.
    after: Option<String>,
    /// The version that the cache got last since it began.
    seen: Option<String>,
    /// Whether the event brings more than the status, or a pass waits for it.
    is_news: bool,
}

impl Unseen {
    /// A pass over the object `key` is about to write its status. What comes into
    /// the cache before the reply waits for it: it may be that very write.
    pub fn begin(&self, key: &str) {
        self.lock().insert(key.to_owned(), Write::default());
    }

    /// The status was written and the object is `written`. Whether the pass over
    /// `seen` has to be followed by another one for what came meanwhile.
    pub fn wrote(&self, key: &str, seen: &ObjectMeta, written: &ObjectMeta) -> bool {
        let mut writes = self.lock();
        let Some(write) = writes.get_mut(key) else { return false };
        write.after.clone_from(&written.resource_version);
        // A list after a gap may bring what others wrote meanwhile with this very version.
        write.is_news = !is_same_but_for_status(seen, written);
        let came = write.seen.is_some() && (write.is_news || write.seen != write.after);
        if write.after.is_none() {
            writes.remove(key);
        }
        came
    }

    /// Whether the event that put `version` of the object `key` into the cache
    /// brings nothing but the status that was written, or waits for the reply.
    pub fn is_known(&self, key: &str, version: Option<&str>) -> bool {
        let mut writes = self.lock();
        let Some(write) = writes.get_mut(key).filter(|_| version.is_some()) else { return false };
        if write.after.is_some() && write.after.as_deref() != version {
            return false;
        }
        write.seen = version.map(str::to_owned);
        !write.is_news
    }

    /// What a pass over `version` of the object `key` does instead, if that is
    /// older than the last write.
    pub fn instead(&self, key: &str, version: Option<&str>) -> Option<Action> {
        let mut writes = self.lock();
        let write = writes.get_mut(key)?;
        if !is_older(version, write.after.as_deref()) {
            // The cache may have what was written before its event has been told.
            if write.after.as_deref() != version {
                writes.remove(key);
            }
            return None;
        }
        if write.seen.is_some() && write.seen == write.after {
            // It was handed out just before the cache got the next one.
            return Some(Action::requeue(Duration::ZERO));
        }
        write.is_news = true;
        Some(Action::await_change())
    }

    /// The status was not written, as far as is known. Whether something came meanwhile.
    pub fn failed(&self, key: &str) -> bool {
        self.lock().remove(key).is_some_and(|write| write.seen.is_some())
    }

    /// Forgets an object that is gone.
    pub fn forget(&self, key: &str) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Write>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_same_but_for_status(seen: &ObjectMeta, written: &ObjectMeta) -> bool {
    let but_for_status = |meta: &ObjectMeta| ObjectMeta {
        resource_version: None,
        // Of no interest, and not in the cache.
        managed_fields: None,
        ..meta.clone()
    };
    but_for_status(seen) == but_for_status(written)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(version: &str) -> ObjectMeta {
        ObjectMeta {
            resource_version: Some(version.to_owned()),
            generation: Some(1),
            ..ObjectMeta::default()
        }
    }

    const WAITS: Option<Action> = Some(Action::await_change());

    fn write(unseen: &Unseen, key: &str, seen: &ObjectMeta, written: &ObjectMeta) -> bool {
        unseen.begin(key);
        unseen.wrote(key, seen, written)
    }

    #[test]
    fn a_pass_waits_until_the_cache_has_left_the_version_before_the_write() {
        let unseen = Unseen::default();
        assert_eq!(unseen.instead("a", Some("1")), None, "nothing was written");
        assert!(!write(&unseen, "a", &meta("1"), &meta("2")));
        assert_eq!([unseen.instead("a", Some("1")), unseen.instead("a", Some("1"))], [WAITS, WAITS]);
        assert_eq!(unseen.instead("b", Some("1")), None, "another object");
        assert_eq!([unseen.instead("a", Some("2")), unseen.instead("a", Some("3"))], [None, None]);
        assert_eq!(unseen.instead("a", Some("1")), None, "it is forgotten once others have written");
    }

    #[test]
    fn a_write_that_changed_nothing_is_not_waited_for() {
        let unseen = Unseen::default();
        write(&unseen, "a", &meta("1"), &meta("1"));
        write(&unseen, "b", &meta("1"), &ObjectMeta::default());
        assert!(["a", "b"].iter().all(|key| unseen.instead(key, Some("1")).is_none()));
        assert!(!unseen.is_known("b", Some("2")), "nobody knows what it made");
    }

    #[test]
    fn the_event_of_a_status_is_known_unless_a_pass_waits_for_it() {
        let unseen = Unseen::default();
        write(&unseen, "a", &meta("1"), &meta("2"));
        assert!(!unseen.is_known("a", Some("1")) && !unseen.is_known("b", Some("2")));
        assert!(unseen.is_known("a", Some("2")));
        assert!(unseen.is_known("a", Some("2")), "a list brings it once more");
        assert!(!unseen.is_known("a", Some("3")), "the write of somebody else");

        write(&unseen, "a", &meta("1"), &meta("2"));
        assert_eq!(unseen.instead("a", Some("2")), None, "the cache has it already");
        assert!(unseen.is_known("a", Some("2")));

        write(&unseen, "a", &meta("2"), &meta("4"));
        assert_eq!(unseen.instead("a", Some("2")), WAITS);
        assert!(!unseen.is_known("a", Some("4")), "nobody would come back");
    }

    #[test]
    fn a_pass_that_was_given_the_version_before_an_event_that_is_known_comes_back_by_itself() {
        let unseen = Unseen::default();
        write(&unseen, "a", &meta("1"), &meta("2"));
        assert!(unseen.is_known("a", Some("2")));
        assert_eq!(unseen.instead("a", Some("1")), Some(Action::requeue(Duration::ZERO)));
    }

    #[test]
    fn an_event_that_is_faster_than_the_reply_is_known_if_it_is_that_of_the_write() {
        let unseen = Unseen::default();
        unseen.begin("a");
        assert!(unseen.is_known("a", Some("2")), "it waits for the reply");
        assert!(!unseen.wrote("a", &meta("1"), &meta("2")));
        assert_eq!(unseen.instead("a", Some("2")), None);

        unseen.begin("a");
        assert!(unseen.is_known("a", Some("3")), "somebody else wrote, it waits all the same");
        assert!(unseen.wrote("a", &meta("2"), &meta("4")), "nobody would look at it");
        assert_eq!(unseen.instead("a", Some("3")), WAITS, "it has not the status that was written");
        assert!(!unseen.is_known("a", Some("4")), "nobody would come back");

        unseen.begin("a");
        assert!(unseen.is_known("a", Some("5")));
        assert!(unseen.wrote("a", &meta("4"), &meta("4")), "nor here, where the write changed nothing");

        unseen.begin("a");
        let mut written = meta("7");
        written.generation = Some(2);
        assert!(unseen.is_known("a", Some("7")));
        assert!(unseen.wrote("a", &meta("5"), &written), "it brings another spec too");
    }

    #[test]
    fn an_event_after_a_write_without_a_reply_is_news() {
        let unseen = Unseen::default();
        unseen.begin("a");
        assert!(!unseen.failed("a"));
        assert!(!unseen.is_known("a", Some("2")));

        unseen.begin("a");
        assert!(unseen.is_known("a", Some("3")));
        assert!(unseen.failed("a"), "nobody would look at it");
    }

    #[test]
    fn the_event_is_no_longer_known_if_others_wrote_between_what_was_seen_and_the_status() {
        let changes: [fn(&mut ObjectMeta); 5] = [
            |meta| meta.generation = Some(2),
            |meta| meta.labels = Some([("team".to_owned(), "blue".to_owned())].into()),
            |meta| meta.annotations = Some([("peristyle.dev/rotate".to_owned(), "1".to_owned())].into()),
            |meta| meta.finalizers = Some(vec!["peristyle.dev/database".to_owned()]),
            |meta| meta.deletion_timestamp = serde_json::from_str("\"2026-01-01T00:00:00Z\"").unwrap(),
        ];
        for change in changes {
            let (unseen, mut written) = (Unseen::default(), meta("3"));
            change(&mut written);
            write(&unseen, "a", &meta("1"), &written);
            assert!(!unseen.is_known("a", Some("3")), "{written:?}");
        }
        let (unseen, mut written) = (Unseen::default(), meta("2"));
        written.managed_fields = Some(Vec::new());
        write(&unseen, "a", &meta("1"), &written);
        assert!(unseen.is_known("a", Some("2")), "only who wrote it changed");
    }
}
