//! Faults on purpose: the operator runs as a process whose every connection
//! leads through a proxy, and is killed, cut off or lied to at each of its
//! writes. What must come out is what comes out undisturbed.
//!
//! Real are: the operator's binary, kube-apiserver, etcd and
//! kube-controller-manager, PostgreSQL, Keto, Oathkeeper and the agents that
//! deliver their ConfigMaps. Played are: scheduler and kubelet (pods are ready,
//! Jobs succeed), and the edge (what Traefik would serve is derived from the
//! route objects; whether a caller may pass is the real Oathkeeper's word).

pub mod counts;
pub mod edge;
pub mod http;
pub mod journal;
pub mod names;
pub mod nodes;
pub mod operator;
pub mod plans;
pub mod postgres;
pub mod programs;
pub mod report;
pub mod rig;
pub mod runner;
pub mod scenarios;
pub mod snapshot;
pub mod sql;
pub mod workload;

use std::collections::{BTreeMap, VecDeque};
use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;

use self::plans::{Plan, Round};
use self::report::Report;
use self::runner::{Runner, STRICT, Verdict};
use self::scenarios::Scenario;
use crate::progress::Progress;

/// How long nothing may be written after all plans.
const REST: Duration = Duration::from_secs(60);

/// Which plans to run.
#[derive(Clone, Debug, Default)]
pub struct Selection {
    /// The plan with this id, or all whose id begins so.
    pub id: Option<String>,
    /// At most so many, the same in every run.
    pub sample: Option<usize>,
    /// The scenarios whose names begin so, and no plan unless `id` or `sample` asks for some. By
    /// default all scenarios follow when all plans are run.
    pub scenarios: Option<String>,
}

impl Selection {
    fn has(&self, scenario: &Scenario) -> bool {
        match &self.scenarios {
            Some(name) => scenario.name.starts_with(name.as_str()),
            None => self.id.is_none() && self.sample.is_none(),
        }
    }

    /// The plans for what `runner` has recorded.
    ///
    /// # Errors
    /// When no plan has the id.
    pub fn plans(&self, runner: &Runner) -> Result<Vec<Plan>> {
        if self.scenarios.is_some() && self.id.is_none() && self.sample.is_none() {
            return Ok(Vec::new());
        }
        let writes: BTreeMap<_, _> = runner
            .recordings
            .iter()
            .map(|(step, recording)| (*step, recording.entries.writes.clone()))
            .collect();
        let mut plans = plans::all(&writes);
        if let Some(id) = &self.id {
            plans.retain(|plan| plan.id().starts_with(id.as_str()));
            ensure!(!plans.is_empty(), "no plan's id begins with {id:?}; --list prints all");
        }
        Ok(match self.sample {
            Some(count) => plans::sample(plans, count),
            None => plans,
        })
    }
}

/// Records the undisturbed steps and returns the ids of all plans.
///
/// # Errors
/// When the systems do not start or an undisturbed step fails.
pub async fn list(selection: &Selection) -> Result<Vec<String>> {
    let runner = Box::pin(Runner::start(STRICT, &Progress::default())).await?;
    Ok(selection.plans(&runner)?.iter().map(Plan::id).collect())
}

/// Runs plans on `workers` sets of systems at a time and prints each, then the
/// scenarios, then demands that nothing is written for a minute.
///
/// # Errors
/// When the systems do not start or an undisturbed step fails; a failed plan is in the report.
pub async fn run(selection: &Selection, workers: NonZeroUsize) -> Result<Report> {
    let progress = Progress::default();
    let starting = (0..workers.get()).map(|_| Box::pin(Runner::start(STRICT, &progress)));
    let mut runners = try_join_all(starting).await?;
    let plans = selection.plans(&runners[0])?;
    let mut report = run_plans(&mut runners, plans, &progress).await?;
    run_scenarios(&mut runners[0], |scenario| selection.has(scenario), &mut report, &progress).await?;
    for runner in &runners {
        let rest = runner.rest(REST).await;
        report.note_scenario("nothing is written for a minute at the end", &rest, &progress);
        report.calls += runner.rig.gate.calls();
    }
    progress.say(&report.to_string());
    Ok(report)
}

/// Runs plans on systems that run already; what a runner leads to are others
/// afterwards when a failed plan left those beyond repair. A plan whose write
/// did not happen is run once more.
///
/// # Errors
/// When new systems do not start; a failed plan is in the report.
pub async fn run_plans(runners: &mut [Runner], plans: Vec<Plan>, progress: &Progress) -> Result<Report> {
    let report = Mutex::new(Report::of(plans.len()));
    let mut due = plans;
    for is_last in [false, true] {
        let rounds = Mutex::new(VecDeque::from(plans::schedule(due)));
        let workers = runners.iter_mut().map(|runner| Box::pin(work(runner, &rounds, &report, progress)));
        try_join_all(workers).await?;
        due = if is_last { Vec::new() } else { std::mem::take(&mut lock(&report).not_reached) };
    }
    Ok(report.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn work(
    runner: &mut Runner,
    rounds: &Mutex<VecDeque<Round>>,
    report: &Mutex<Report>,
    progress: &Progress,
) -> Result<()> {
    loop {
        let Some(round) = lock(rounds).pop_front() else { return Ok(()) };
        for (position, (step, plan)) in round.iter().enumerate() {
            let started = Instant::now();
            let verdict = runner.run(*step, plan.as_ref().map(|plan| plan.fault.clone())).await?;
            let told = lock(report).note(*step, plan.as_ref(), &verdict);
            progress.say(&format!("{told} ({:.1} s)", started.elapsed().as_secs_f64()));
            if matches!(verdict, Verdict::Failed(_)) {
                let steps: Vec<_> = round[..=position].iter().map(|(step, _)| *step).collect();
                if runner.recover(&steps).await.is_err() {
                    renew(runner, progress).await?;
                    runner.walk(&steps).await?;
                }
            }
        }
    }
}

/// Runs the scenarios that `is_wanted`, each from the created greeter back to
/// it, and puts everything back when one fails.
///
/// # Errors
/// When new systems do not start; a failed scenario is in the report.
pub async fn run_scenarios(
    runner: &mut Runner,
    is_wanted: impl Fn(&Scenario) -> bool,
    report: &mut Report,
    progress: &Progress,
) -> Result<()> {
    for scenario in scenarios::ALL.iter().filter(|scenario| is_wanted(scenario)) {
        let result = progress.step(scenario.name, (scenario.run)(runner)).await;
        let result = result.with_context(|| format!("the operator said:\n{}", runner.rig.operator.log()));
        report.note_scenario(scenario.name, &result, progress);
        if result.is_err() {
            scenarios::clear(&runner.rig).await;
            if runner.rig.restart().await.is_err() || runner.recover(&[]).await.is_err() {
                renew(runner, progress).await?;
            }
        }
    }
    Ok(())
}

async fn renew(runner: &mut Runner, progress: &Progress) -> Result<()> {
    progress.say("starting over with new systems");
    *runner = Box::pin(Runner::start(runner.bars, progress)).await?;
    Ok(())
}
