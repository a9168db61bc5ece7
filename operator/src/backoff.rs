//! Exponential delay per object, with jitter.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

const FIRST: Duration = Duration::from_millis(250);
const MAX: Duration = Duration::from_secs(300);

/// How often each object has failed in a row.
#[derive(Debug, Default)]
pub struct Backoff(Mutex<HashMap<String, Failures>>);

#[derive(Debug, Default)]
struct Failures {
    count: u32,
    /// Not before then, whatever is told of it, and for which generation of the object.
    held: Option<(Instant, Option<i64>)>,
}

impl Backoff {
    /// Counts a failure of `key`; returns how many there were in a row.
    pub fn fail(&self, key: &str) -> u32 {
        let mut failures = self.lock();
        let failures = failures.entry(key.to_owned()).or_default();
        failures.count = failures.count.saturating_add(1);
        failures.count
    }

    /// Leaves `key` alone for `pause`, unless its generation changes.
    pub fn hold(&self, key: &str, generation: Option<i64>, pause: Duration) {
        let held = Some((Instant::now() + pause, generation));
        self.lock().entry(key.to_owned()).or_default().held = held;
    }

    /// For how much longer `key` is to be left alone.
    pub fn held(&self, key: &str, generation: Option<i64>) -> Option<Duration> {
        let (until, held) = self.lock().get(key)?.held?;
        let left = until.saturating_duration_since(Instant::now());
        (held == generation && !left.is_zero()).then_some(left)
    }

    /// Forgets the failures of `key`, because it succeeded or is gone.
    pub fn reset(&self, key: &str) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Failures>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long to wait after `failures` in a row: 250 ms doubled each time up to
/// 5 min, and up to a quarter more.
#[must_use]
pub fn delay(failures: u32) -> Duration {
    let doubled = FIRST.saturating_mul(1 << failures.saturating_sub(1).min(12));
    doubled.min(MAX).mul_f64(rand::random_range(1.0..1.25))
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
    fn failures_are_counted_for_each_object_until_it_succeeds() {
        let backoff = Backoff::default();
        assert_eq!([backoff.fail("a"), backoff.fail("a"), backoff.fail("b")], [1, 2, 1]);
        backoff.reset("a");
        assert_eq!(backoff.fail("a"), 1);
    }

    #[test]
    fn what_is_held_is_left_alone_until_its_generation_changes() {
        let backoff = Backoff::default();
        assert_eq!(backoff.held("a", Some(1)), None);
        backoff.hold("a", Some(1), Duration::from_secs(60));
        assert!(backoff.held("a", Some(1)).is_some());
        assert_eq!(backoff.held("a", Some(2)), None);
        backoff.hold("a", Some(1), Duration::ZERO);
        assert_eq!(backoff.held("a", Some(1)), None, "its time is over");
    }
}
