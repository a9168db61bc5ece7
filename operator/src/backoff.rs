//! Exponential delay per object, with jitter.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

const FIRST: Duration = Duration::from_millis(250);
const MAX: Duration = Duration::from_secs(300);

/// How often each object has failed in a row.
#[derive(Debug, Default)]
pub struct Backoff(Mutex<HashMap<String, u32>>);

impl Backoff {
    /// Counts a failure of `key` and returns how long to wait: 250 ms doubled
    /// each time, at most 5 min, plus or minus a quarter.
    pub fn fail(&self, key: &str) -> Duration {
        let mut failures = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = failures.entry(key.to_owned()).or_default();
        let delay = FIRST.saturating_mul(1 << (*count).min(12)).min(MAX);
        *count += 1;
        jitter(delay)
    }

    /// Forgets the failures of `key`.
    pub fn reset(&self, key: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
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
    fn the_delay_doubles_up_to_its_cap_and_starts_over_after_a_success() {
        let backoff = Backoff::default();
        let delays: Vec<Duration> = (0..14).map(|_| backoff.fail("a")).collect();
        assert!(delays[0] <= FIRST.mul_f64(1.25));
        assert!(delays[4] >= FIRST * 16 * 3 / 4);
        assert!(delays[13] >= MAX * 3 / 4 && delays[13] <= MAX * 5 / 4);
        assert!(backoff.fail("b") <= FIRST.mul_f64(1.25), "another object is not affected");
        backoff.reset("a");
        assert!(backoff.fail("a") <= FIRST.mul_f64(1.25));
    }
}
