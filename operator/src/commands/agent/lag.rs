//! How far the component is behind what was delivered to it.

use std::time::{Duration, Instant};

/// For how long content may wait to be loaded before the pod takes no part in
/// decisions: while it changes all the time, some of it is always on its way.
/// The operator asks every pod itself before it says that rules are live.
const PATIENCE: Duration = Duration::from_secs(5);

/// What was delivered and whether it was loaded.
#[derive(Debug, Default)]
pub struct Lag {
    /// What was delivered last.
    newest: Option<String>,
    /// Since when something is delivered that was not seen to be loaded.
    behind: Option<Instant>,
    /// Whether anything was ever loaded.
    was_loaded: bool,
}

impl Lag {
    /// What was delivered last.
    pub fn newest(&self) -> Option<String> {
        self.newest.clone()
    }

    /// `text` was delivered.
    pub fn delivered(&mut self, text: String, now: Instant) {
        self.newest = Some(text);
        self.behind.get_or_insert(now);
    }

    /// `text` is loaded.
    pub fn loaded(&mut self, text: &str) {
        self.was_loaded = true;
        if self.newest.as_deref() == Some(text) {
            self.behind = None;
        }
    }

    /// Whether it is too early to hold it against the component that it has not
    /// loaded what was delivered last. Never of content that it had, and lost.
    pub fn is_excused(&self, now: Instant) -> bool {
        let is_recent = |behind: Instant| now.saturating_duration_since(behind) < PATIENCE;
        self.was_loaded && self.behind.is_some_and(is_recent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_may_wait_for_a_few_seconds_and_no_longer_however_often_it_changes() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let mut lag = Lag::default();
        lag.delivered("1".to_owned(), at(0));
        assert!(!lag.is_excused(at(0)), "nothing was ever loaded");
        lag.loaded("1");
        assert!(!lag.is_excused(at(0)), "it has lost what it had");
        for second in 1..=6 {
            lag.delivered(format!("v{second}"), at(second));
            lag.loaded("1");
            assert_eq!(lag.is_excused(at(second)), second < 6, "{second}");
        }
        lag.loaded("v6");
        lag.delivered("7".to_owned(), at(9));
        assert!(lag.is_excused(at(13)) && !lag.is_excused(at(14)));
    }
}
