//! Faults on purpose: the operator runs as a process whose every connection
//! leads through a proxy, and is killed, cut off or lied to at each of its
//! writes. What must come out is what comes out undisturbed.
//!
//! Real are: the operator's binary, kube-apiserver, etcd and
//! kube-controller-manager, PostgreSQL, Keto, Oathkeeper and the agents that
//! deliver their ConfigMaps. Played are: scheduler and kubelet (pods are ready,
//! Jobs succeed), and the edge (what Traefik would serve is derived from the
//! route objects; whether a caller may pass is the real Oathkeeper's word).

pub mod bench;
pub mod edge;
pub mod http;
pub mod journal;
pub mod names;
pub mod nodes;
pub mod operator;
pub mod plans;
pub mod postgres;
pub mod programs;
pub mod runner;
pub mod snapshot;
pub mod sql;
pub mod workload;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use self::plans::Plan;
use self::runner::{Runner, Verdict};
use crate::progress::Progress;

/// Which plans to run.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// The plan with this id, or all whose id begins so.
    pub id: Option<String>,
    /// At most so many, spread evenly.
    pub sample: Option<usize>,
}

/// What became of the plans.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Plans whose fault happened and that ended as undisturbed.
    pub passed: usize,
    /// Plans whose write did not happen this time.
    pub not_reached: Vec<String>,
    /// Plans that ended otherwise, with what is wrong.
    pub failed: Vec<(String, Vec<String>)>,
    /// The longest time from the restart to the last write.
    pub slowest: Duration,
}

impl Report {
    /// Takes a verdict in; the words for it.
    fn note(&mut self, id: &str, is_plan: bool, verdict: &Verdict) -> String {
        match verdict {
            Verdict::Passed(took) if is_plan => {
                self.passed += 1;
                self.slowest = self.slowest.max(*took);
                format!("passed, converged after {:.1} s", took.as_secs_f64())
            }
            Verdict::Passed(_) => "passed".to_owned(),
            Verdict::NotReached => {
                self.not_reached.push(id.to_owned());
                "not reached".to_owned()
            }
            Verdict::Failed(lines) => {
                self.failed.push((id.to_owned(), lines.clone()));
                format!("FAILED\n    {}", lines.join("\n    "))
            }
        }
    }

    /// Fails when a plan failed.
    ///
    /// # Errors
    /// The ids of the failed plans.
    pub fn check(&self) -> Result<()> {
        if self.failed.is_empty() {
            return Ok(());
        }
        let failed = self.failed.iter().map(|(id, lines)| format!("{id}\n    {}", lines.join("\n    ")));
        bail!("{} plans failed:\n  {}", self.failed.len(), failed.collect::<Vec<_>>().join("\n  "))
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { passed, not_reached, failed, slowest } = self;
        let total = passed + not_reached.len() + failed.len();
        write!(
            f,
            "{total} plans run: {passed} passed, {} failed, {} not reached; slowest convergence {:.1} s",
            failed.len(),
            not_reached.len(),
            slowest.as_secs_f64()
        )
    }
}

fn chosen(runner: &Runner, selection: &Selection) -> Result<Vec<Plan>> {
    let writes: BTreeMap<_, _> =
        runner.recordings.iter().map(|(step, recording)| (*step, recording.entries.writes.clone())).collect();
    let mut plans = plans::all(&writes);
    if let Some(id) = &selection.id {
        plans.retain(|plan| plan.id().starts_with(id.as_str()));
        ensure!(!plans.is_empty(), "no plan's id begins with {id:?}; --list prints all");
    }
    Ok(match selection.sample {
        Some(count) => plans::sample(plans, count),
        None => plans,
    })
}

/// Records the undisturbed steps and returns the ids of all plans.
///
/// # Errors
/// When the systems do not start or an undisturbed step fails.
pub async fn list(selection: &Selection) -> Result<Vec<String>> {
    let runner = Box::pin(Runner::start(&Progress::default())).await?;
    Ok(chosen(&runner, selection)?.iter().map(Plan::id).collect())
}

/// Runs plans one after the other and prints each.
///
/// # Errors
/// When the systems do not start or an undisturbed step fails; a failed plan is in the report.
pub async fn run(selection: &Selection) -> Result<Report> {
    let progress = Progress::default();
    let mut runner = Box::pin(Runner::start(&progress)).await?;
    run_on(&mut runner, selection, &progress).await
}

/// The same on systems that run already; what `runner` leads to are others
/// afterwards when a failed plan left those beyond repair.
///
/// # Errors
/// When new systems do not start; a failed plan is in the report.
pub async fn run_on(runner: &mut Runner, selection: &Selection, progress: &Progress) -> Result<Report> {
    let plans = chosen(runner, selection)?;
    let total = plans.len();
    let mut report = Report::default();
    let mut number = 0;
    for round in runner::schedule(plans) {
        for (position, (step, plan)) in round.iter().enumerate() {
            let started = Instant::now();
            let verdict = runner.run(*step, plan.as_ref().map(|plan| plan.fault.clone())).await?;
            let id = plan.as_ref().map_or_else(|| format!("{}:undisturbed", step.word()), Plan::id);
            let result = report.note(&id, plan.is_some(), &verdict);
            number += usize::from(plan.is_some());
            let took = started.elapsed().as_secs_f64();
            progress.say(&format!("{number}/{total} {id}: {result} ({took:.1} s)"));
            if matches!(verdict, Verdict::Failed(_)) {
                let steps: Vec<_> = round[..=position].iter().map(|(step, _)| *step).collect();
                if runner.recover(&steps).await.is_err() {
                    progress.say("starting over with new systems");
                    *runner = Box::pin(Runner::start(progress)).await?;
                    runner.walk(&steps).await?;
                }
            }
        }
    }
    progress.say(&report.to_string());
    Ok(report)
}
