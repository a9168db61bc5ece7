//! One line per step with its time, and the table of all steps at the end.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

/// Reports steps on standard error; clones share one list of times.
#[derive(Clone, Debug)]
pub struct Progress {
    started: Instant,
    steps: Arc<Mutex<Vec<(String, Duration)>>>,
}

impl Default for Progress {
    fn default() -> Self {
        Self { started: Instant::now(), steps: Arc::default() }
    }
}

impl Progress {
    /// Runs `work`, prints one line at its end and remembers how long it took.
    ///
    /// # Errors
    /// Those of `work`.
    pub async fn step<T>(&self, name: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
        let started = Instant::now();
        let result = work.await;
        let took = started.elapsed();
        match &result {
            Ok(_) => self.say(&format!("{name:<44} {:>7.1} s", took.as_secs_f64())),
            Err(_) => self.say(&format!("{name:<44} failed after {:.1} s", took.as_secs_f64())),
        }
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).push((name.to_owned(), took));
        result
    }

    /// Prints one line with the time since the start.
    pub fn say(&self, line: &str) {
        eprintln!("[{:>6.1} s] {line}", self.started.elapsed().as_secs_f64());
    }

    /// All steps with their times. Steps overlap, so that their sum exceeds the total.
    #[must_use]
    pub fn table(&self) -> String {
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = steps.iter().map(|(name, took)| format!("  {name:<44} {:>8.1}\n", took.as_secs_f64()));
        let total = self.started.elapsed().as_secs_f64();
        format!(
            "  {:<44} {:>8}\n{}  {:<44} {total:>8.1}\n",
            "step",
            "seconds",
            rows.collect::<String>(),
            "total"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_table_names_every_step_even_a_failed_one() {
        let progress = Progress::default();
        progress.step("good", async { Ok(()) }).await.unwrap();
        progress.step("bad", async { Err::<(), _>(anyhow::anyhow!("no")) }).await.unwrap_err();
        let table = progress.table();
        assert!(table.contains("good") && table.contains("bad") && table.contains("total"), "{table}");
    }
}
