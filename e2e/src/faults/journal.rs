//! What the operator writes to the systems around it, and the one write at
//! which something goes wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::operator::Operator;

/// Where around a write the fault is.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Point {
    /// The operator is killed, and the write never reaches its system.
    Before,
    /// The write is done, and the operator is killed before it hears so.
    After,
    /// The write is done, and the connection ends without a reply: the
    /// operator lives and does not know.
    Lost,
}

impl Point {
    pub const ALL: [Self; 3] = [Self::Before, Self::After, Self::Lost];

    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Before => "before",
            Self::After => "after",
            Self::Lost => "lost",
        }
    }
}

/// The n-th write of its kind within one step.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Write {
    /// System and what is written, without what differs from run to run.
    pub what: String,
    /// From 1.
    pub nth: usize,
}

/// The fault of a plan.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    pub write: Write,
    pub point: Point,
}

/// Something that a successful write brought about.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Effect {
    /// Such as `create secrets shop/greeter-db-owner`.
    pub what: String,
    /// Counts only when `what` never had this value before; always when there is none.
    pub value: Option<String>,
}

/// What one step did.
#[derive(Clone, Debug, Default)]
pub struct Entries {
    /// Writes in their order.
    pub writes: Vec<Write>,
    /// Successful creations and deletions and new passwords, each with its count.
    pub effects: BTreeMap<String, usize>,
    /// Broken invariants.
    pub violations: Vec<String>,
}

#[derive(Default)]
struct State {
    entries: Entries,
    counts: BTreeMap<String, usize>,
    fault: Option<Fault>,
    struck: Option<Instant>,
    last_write: Option<Instant>,
}

/// Shared by the proxies and the runner.
pub struct Journal {
    state: Mutex<State>,
    /// Every value that an effect had, in whatever step.
    values: Mutex<BTreeSet<(String, String)>>,
    operator: Arc<Operator>,
}

impl Journal {
    #[must_use]
    pub fn new(operator: Arc<Operator>) -> Self {
        Self { state: Mutex::default(), values: Mutex::default(), operator }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets everything and waits for the write of `fault`.
    pub fn begin(&self, fault: Option<Fault>) {
        *self.lock() = State { fault, ..State::default() };
    }

    /// Notes a write before it is forwarded; what shall go wrong with it.
    pub fn write(&self, what: String) -> Option<Point> {
        let mut state = self.lock();
        state.last_write = Some(Instant::now());
        let count = state.counts.entry(what.clone()).or_default();
        *count += 1;
        let write = Write { what, nth: *count };
        let point = state.fault.take_if(|fault| fault.write == write).map(|fault| fault.point);
        state.entries.writes.push(write);
        point
    }

    /// Notes what a write brought about.
    pub fn effect(&self, Effect { what, value }: Effect) {
        let mut state = self.lock();
        state.last_write = Some(Instant::now());
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        if value.is_none_or(|value| values.insert((what.clone(), value))) {
            *state.entries.effects.entry(what).or_default() += 1;
        }
    }

    /// Notes a broken invariant, each once.
    pub fn violation(&self, violation: String) {
        let mut state = self.lock();
        if !state.entries.violations.contains(&violation) {
            state.entries.violations.push(violation);
        }
    }

    /// The fault happens now: kills the operator unless it shall live.
    pub fn strike(&self, point: Point) {
        // One step for whoever looks: never killed and not yet struck, nor the other way round.
        let mut state = self.lock();
        if point != Point::Lost {
            self.operator.kill();
        }
        state.struck = Some(Instant::now());
    }

    #[must_use]
    pub fn has_struck(&self) -> bool {
        self.lock().struck.is_some()
    }

    /// When the operator last wrote in this step.
    #[must_use]
    pub fn last_write(&self) -> Option<Instant> {
        self.lock().last_write
    }

    /// Whether nothing was written for `window`.
    #[must_use]
    pub fn is_quiet_for(&self, window: Duration) -> bool {
        self.last_write().is_none_or(|last| last.elapsed() >= window)
    }

    #[must_use]
    pub fn entries(&self) -> Entries {
        self.lock().entries.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal() -> Journal {
        Journal::new(Arc::new(Operator::never_started()))
    }

    #[test]
    fn a_value_counts_once_however_often_and_in_whatever_step_it_is_written() {
        let journal = journal();
        let password =
            |value: &str| Effect { what: "new password".to_owned(), value: Some(value.to_owned()) };
        let count = || journal.entries().effects.get("new password").copied().unwrap_or_default();
        journal.effect(password("one"));
        journal.effect(password("one"));
        assert_eq!(count(), 1);
        journal.effect(password("two"));
        assert_eq!(count(), 2);
        journal.begin(None);
        journal.effect(password("one"));
        assert_eq!(count(), 0, "it was there before the step");
    }

    #[test]
    fn only_the_write_that_was_asked_for_is_struck() {
        let journal = journal();
        let write = Write { what: "a".to_owned(), nth: 2 };
        journal.begin(Some(Fault { write, point: Point::Lost }));
        let points = ["a", "b", "a", "a"].map(|what| journal.write(what.to_owned()));
        assert_eq!(points, [None, None, Some(Point::Lost), None]);
    }
}
