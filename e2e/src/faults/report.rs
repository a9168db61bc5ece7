//! What became of plans and scenarios.

use std::fmt;
use std::time::Duration;

use anyhow::{Result, bail};

use super::plans::Plan;
use super::runner::Verdict;
use super::workload::Step;
use crate::progress::Progress;

/// What became of the plans.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// How many plans there are.
    pub total: usize,
    /// Plans whose fault happened and that ended as undisturbed.
    pub passed: usize,
    /// Plans whose write did not happen this time.
    pub not_reached: Vec<Plan>,
    /// What ended otherwise, with what is wrong.
    pub failed: Vec<(String, Vec<String>)>,
    /// Scenarios that passed.
    pub scenarios: usize,
    /// The longest time from the restart to the last write.
    pub slowest: Duration,
    /// How many calls without credentials were answered meanwhile.
    pub calls: u64,
}

impl Report {
    /// Of so many plans, none of which has been run.
    #[must_use]
    pub fn of(total: usize) -> Self {
        Self { total, ..Self::default() }
    }

    /// Takes a verdict in; the words for it.
    pub(super) fn note(&mut self, step: Step, plan: Option<&Plan>, verdict: &Verdict) -> String {
        let id = plan.map_or_else(|| format!("{}:undisturbed", step.word()), Plan::id);
        let result = match (verdict, plan) {
            (Verdict::Passed(took), Some(_)) => {
                self.passed += 1;
                self.slowest = self.slowest.max(*took);
                format!("passed, converged after {:.1} s", took.as_secs_f64())
            }
            (Verdict::Passed(_), None) => "passed".to_owned(),
            (Verdict::NotReached, plan) => {
                self.not_reached.extend(plan.cloned());
                "not reached".to_owned()
            }
            (Verdict::Failed(lines), _) => {
                self.failed.push((id.clone(), lines.clone()));
                format!("FAILED\n    {}", lines.join("\n    "))
            }
        };
        format!("{}/{} {id}: {result}", self.passed + self.not_reached.len(), self.total)
    }

    /// Takes the result of a scenario in, and says what is wrong with it.
    pub fn note_scenario(&mut self, name: &str, result: &Result<()>, progress: &Progress) {
        match result {
            Ok(()) => self.scenarios += 1,
            Err(error) => {
                progress.say(&format!("{name}: FAILED\n    {error:#}"));
                self.failed.push((name.to_owned(), vec![format!("{error:#}")]));
            }
        }
    }

    /// Fails when a plan or a scenario failed, or when more than one plan in
    /// twenty did not happen in two runs: then hardly anything was tried.
    ///
    /// # Errors
    /// Their ids.
    pub fn check(&self) -> Result<()> {
        if !self.failed.is_empty() {
            let told = |(id, lines): &(String, Vec<String>)| format!("{id}\n    {}", lines.join("\n    "));
            let failed: Vec<_> = self.failed.iter().map(told).collect();
            bail!("{} failed:\n  {}", failed.len(), failed.join("\n  "));
        }
        if self.not_reached.len() * 20 > self.total {
            bail!("too many plans did not happen: {self}");
        }
        Ok(())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { total, passed, not_reached, failed, scenarios, slowest, calls } = self;
        write!(
            f,
            "{total} plans: {passed} passed, {} not reached; {scenarios} scenarios passed; {} failures; \
             slowest convergence {:.1} s; {calls} calls without credentials were refused",
            not_reached.len(),
            failed.len(),
            slowest.as_secs_f64()
        )?;
        not_reached.iter().try_for_each(|plan| write!(f, "\n  not reached: {}", plan.id()))
    }
}

#[cfg(test)]
mod tests {
    use super::super::journal::{Fault, Point, Write};
    use super::*;

    fn plan(nth: usize) -> Plan {
        let write = Write { what: "PATCH secrets a".to_owned(), nth };
        Plan { step: Step::Move, fault: Fault { write, point: Point::Lost } }
    }

    #[test]
    fn what_did_not_happen_is_named_and_too_much_of_it_is_a_failure() {
        let mut report = Report::of(20);
        for nth in 0..19 {
            report.note(Step::Move, Some(&plan(nth)), &Verdict::Passed(Duration::ZERO));
        }
        report.note(Step::Move, Some(&plan(19)), &Verdict::NotReached);
        report.check().unwrap();
        assert!(report.to_string().contains("not reached: move:patch-secrets-a:19:lost"), "{report}");
        report.note(Step::Move, Some(&plan(20)), &Verdict::NotReached);
        assert!(report.check().is_err());
    }

    #[test]
    fn one_failure_fails_the_report_also_that_of_an_undisturbed_step() {
        let mut report = Report::of(1);
        report.note(Step::Open, None, &Verdict::Failed(vec!["open".to_owned()]));
        let error = report.check().unwrap_err().to_string();
        assert!(error.contains("open:undisturbed\n    open"), "{error}");
    }
}
