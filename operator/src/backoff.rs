//! Exponential delay per object, with jitter.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

const FIRST: Duration = Duration::from_millis(250);
const MAX: Duration = Duration::from_secs(300);
/// The longest time for which news of an object wait because of a failure.
const RESPITE: Duration = Duration::from_secs(1);

/// First delay of a watch that fails.
const FIRST_OF_WATCH: Duration = Duration::from_millis(800);
/// Longest delay of a watch that fails, before jitter. What it watches is not
/// seen meanwhile, so it is far from [`MAX`].
const MAX_OF_WATCH: Duration = Duration::from_secs(10);
/// A watch that has not failed for this long begins with its first delay again.
const CALM: Duration = Duration::from_secs(120);

/// How often each object has failed in a row. A new generation begins anew.
#[derive(Debug, Default)]
pub struct Backoff(Mutex<HashMap<String, Failures>>);

#[derive(Debug, Default)]
struct Failures {
    generation: Option<i64>,
    count: u32,
    /// Not before then, whatever is told of it.
    held: Option<Instant>,
}

impl Backoff {
    /// Counts a failure of `key`; returns how many there were in a row.
    pub fn fail(&self, key: &str, generation: Option<i64>) -> u32 {
        let mut all = self.lock();
        let failures = of(&mut all, key, generation);
        failures.count = failures.count.saturating_add(1);
        failures.count
    }

    /// Leaves `key` alone for `pause`, or for as long as it was to be left alone
    /// already, unless its generation changes.
    pub fn hold(&self, key: &str, generation: Option<i64>, pause: Duration) {
        let mut all = self.lock();
        let held = &mut of(&mut all, key, generation).held;
        *held = (*held).max(Some(Instant::now() + pause));
    }

    /// For how much longer `key` is to be left alone.
    pub fn held(&self, key: &str, generation: Option<i64>) -> Option<Duration> {
        let all = self.lock();
        let failures = all.get(key).filter(|failures| failures.generation == generation)?;
        let left = failures.held?.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// Forgets the failures of `key`, because it succeeded or is gone.
    pub fn reset(&self, key: &str) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Failures>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn of<'a>(all: &'a mut HashMap<String, Failures>, key: &str, generation: Option<i64>) -> &'a mut Failures {
    let failures = all.entry(key.to_owned()).or_default();
    if failures.generation != generation {
        *failures = Failures { generation, ..Failures::default() };
    }
    failures
}

/// The delays of one watch that fails: 800 ms doubled each time up to 10 s, plus
/// or minus a quarter. kube's own go to a minute, for which a standby that takes
/// over would act on what it saw before an outage.
///
/// An API server that has come back no longer has what a watch had seen (410
/// Gone), and a new list is all that it takes: the first such answer in a row
/// costs the first delay, however long the outage was.
#[derive(Debug, Default)]
pub struct WatchBackoff {
    failures: u32,
    last: Option<Instant>,
    was_gone: bool,
    gone: Gone,
}

/// Whether the failure that is about to be waited for was a 410. Clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Gone(Arc<AtomicBool>);

impl Gone {
    /// Notes it of a failure.
    pub fn note(&self, is_gone: bool) {
        self.0.store(is_gone, Ordering::Relaxed);
    }
}

impl WatchBackoff {
    /// Where to note each failure before it is waited for.
    #[must_use]
    pub fn gone(&self) -> Gone {
        self.gone.clone()
    }
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        if self.last.is_some_and(|last| last.elapsed() > CALM) {
            self.failures = 0;
        }
        self.last = Some(Instant::now());
        let is_gone = self.gone.0.load(Ordering::Relaxed);
        let was_gone = std::mem::replace(&mut self.was_gone, is_gone);
        if is_gone && !was_gone {
            return Some(jitter(FIRST_OF_WATCH));
        }
        let doubled = FIRST_OF_WATCH.saturating_mul(1 << self.failures.min(8));
        self.failures = self.failures.saturating_add(1);
        Some(jitter(doubled.min(MAX_OF_WATCH)))
    }
}

impl kube::runtime::utils::Backoff for WatchBackoff {
    /// Only time resets it, as in client-go: a list that fails again and again
    /// is announced each time by an event that is no error.
    fn reset(&mut self) {}
}

/// How long to wait after `failures` in a row: 250 ms doubled each time up to
/// 5 min, and up to a quarter more.
#[must_use]
pub fn delay(failures: u32) -> Duration {
    doubled(failures).min(MAX).mul_f64(rand::random_range(1.0..1.25))
}

/// How long after `failures` in a row nothing is tried again, whatever is told:
/// the same up to a second, so that what heals is seen soon.
#[must_use]
pub fn respite(failures: u32) -> Duration {
    doubled(failures).min(RESPITE)
}

fn doubled(failures: u32) -> Duration {
    FIRST.saturating_mul(1 << failures.saturating_sub(1).min(12))
}

/// `delay` plus or minus a quarter, so that objects do not move in step.
#[must_use]
pub fn jitter(delay: Duration) -> Duration {
    delay.mul_f64(rand::random_range(0.75..1.25))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_delay_doubles_up_to_five_minutes() {
        let about = |delay: Duration, base: Duration| delay >= base && delay <= base.mul_f64(1.25);
        assert!(about(delay(1), FIRST) && about(delay(5), FIRST * 16));
        assert!(about(delay(14), MAX) && about(delay(u32::MAX), MAX));
    }

    #[test]
    fn news_wait_as_long_as_the_next_try_but_for_no_more_than_a_second() {
        assert_eq!([1, 2, 3, 14, u32::MAX].map(respite), [FIRST, FIRST * 2, RESPITE, RESPITE, RESPITE]);
    }

    #[test]
    fn failures_are_counted_for_each_object_until_it_succeeds_or_changes() {
        let backoff = Backoff::default();
        let fail = |key, generation| backoff.fail(key, Some(generation));
        assert_eq!([fail("a", 1), fail("a", 1), fail("b", 1)], [1, 2, 1]);
        assert_eq!(fail("a", 2), 1, "what failed was another spec");
        assert_eq!(fail("a", 2), 2);
        backoff.reset("a");
        assert_eq!(fail("a", 2), 1);
    }

    #[test]
    fn what_is_held_is_left_alone_until_its_generation_changes() {
        let backoff = Backoff::default();
        assert_eq!(backoff.held("a", Some(1)), None);
        backoff.hold("a", Some(1), Duration::from_secs(60));
        assert!(backoff.held("a", Some(1)).is_some());
        assert_eq!(backoff.held("a", Some(2)), None);
        backoff.hold("a", Some(1), Duration::ZERO);
        assert!(backoff.held("a", Some(1)).is_some(), "who asks for less takes nothing back");
        backoff.hold("b", Some(1), Duration::ZERO);
        assert_eq!(backoff.held("b", Some(1)), None, "its time is over");
    }

    #[test]
    fn a_watch_that_fails_is_tried_again_within_half_a_minute_however_long_it_failed() {
        let mut delays = WatchBackoff::default();
        let first = delays.next().unwrap();
        assert!(first <= FIRST_OF_WATCH.mul_f64(1.25), "{first:?}");
        assert!(delays.by_ref().take(100).all(|delay| delay <= Duration::from_millis(12_500)));
        kube::runtime::utils::Backoff::reset(&mut delays);
        let later = delays.next().unwrap();
        assert!(later >= MAX_OF_WATCH.mul_f64(0.75), "{later:?}: an event in between is no success");
    }

    #[test]
    fn a_watch_lists_soon_when_what_it_had_seen_is_gone_but_not_again_and_again() {
        let mut delays = WatchBackoff { failures: 9, ..WatchBackoff::default() };
        let gone = delays.gone();
        let mut is_soon = |is_gone| {
            gone.note(is_gone);
            delays.next().unwrap() <= FIRST_OF_WATCH.mul_f64(1.25)
        };
        assert_eq!([false, true, true, true].map(&mut is_soon), [false, true, false, false]);
        assert_eq!([false, true].map(&mut is_soon), [false, true], "another outage");
    }

    #[test]
    fn a_watch_that_was_calm_for_long_begins_anew() {
        let long_ago = Instant::now().checked_sub(CALM + Duration::from_secs(1));
        let mut delays = WatchBackoff { failures: 9, last: long_ago, ..WatchBackoff::default() };
        assert!(delays.next().unwrap() <= FIRST_OF_WATCH.mul_f64(1.25));
    }
}
