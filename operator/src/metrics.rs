//! Metrics of the operator in OpenMetrics text.

use std::{
    fmt::Write as _,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};

use crate::retry::Class;

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ByKind {
    kind: String,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ByResult {
    kind: String,
    result: &'static str,
}

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct ByPath {
    path: String,
}

/// Counters and histograms of the process.
pub struct Metrics {
    registry: Mutex<Registry>,
    reconciles: Family<ByResult, Counter>,
    seconds: Family<ByKind, Histogram>,
    leader: Gauge,
    watches: Family<ByPath, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("peristyle");
        let reconciles = Family::<ByResult, Counter>::default();
        let seconds = Family::<ByKind, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(0.001, 4.0, 9))
        });
        let leader = Gauge::default();
        registry.register("reconciles", "Passes over an object by kind and result", reconciles.clone());
        registry.register("reconcile_duration_seconds", "Time of one pass over an object", seconds.clone());
        registry.register("leader", "1 while this process holds the Lease", leader.clone());
        let watches = Family::<ByPath, Gauge>::default();
        registry.register(
            "watch_failing",
            "1 while a watch of the API server fails: what it watches is seen as it was before",
            watches.clone(),
        );
        Self { registry: Mutex::new(registry), reconciles, seconds, leader, watches }
    }
}

impl Metrics {
    /// Counts one pass over an object of `kind`.
    pub fn reconciled(&self, kind: &str, failure: Option<Class>, time: Duration) {
        let result = match failure {
            None => "success",
            Some(Class::Terminal) => "terminal",
            Some(Class::Wait) => "wait",
            Some(Class::Conflict) => "conflict",
            Some(Class::Transient) => "transient",
            Some(Class::Forbidden) => "forbidden",
            Some(Class::Quota) => "quota",
            Some(Class::Bug) => "bug",
        };
        self.reconciles.get_or_create(&ByResult { kind: kind.to_owned(), result }).inc();
        self.seconds.get_or_create(&ByKind { kind: kind.to_owned() }).observe(time.as_secs_f64());
    }

    /// Says whether this process holds the Lease.
    pub fn set_leader(&self, is_leader: bool) {
        self.leader.set(i64::from(is_leader));
    }

    /// Says whether the watch of `path` fails.
    pub fn set_watch(&self, path: &str, is_failing: bool) {
        self.watches.get_or_create(&ByPath { path: path.to_owned() }).set(i64::from(is_failing));
    }

    /// All metrics as text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        if encode(&mut text, &registry).is_err() {
            text.clear();
            let _ = writeln!(text, "# EOF");
        }
        text
    }
}
