//! Records undisturbed steps, repeats them with a fault each, and compares.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::counts;
use super::journal::{Entries, Fault};
use super::rig::Rig;
use super::snapshot::{Snapshot, differences};
use super::workload::{LOOPS, Step};
use crate::progress::Progress;
use crate::wait;

/// What is asked of every plan.
#[derive(Clone, Copy, Debug)]
pub struct Bars {
    /// How long after the restart the last write may be.
    pub recovery: Duration,
    /// How long nothing may be written at the end.
    pub quiet: Duration,
    /// For how long the API server is away.
    pub outage: Duration,
}

/// What `cargo sandbox faults` asks, on a machine that does nothing else.
pub const STRICT: Bars = Bars {
    recovery: Duration::from_secs(10),
    quiet: Duration::from_secs(2),
    outage: Duration::from_secs(300),
};

/// What a test asks beside others. Only the command holds plans to the time of
/// recovery: how long a busy machine takes says nothing about the operator.
pub const LENIENT: Bars = Bars {
    recovery: Duration::from_secs(60),
    quiet: Duration::from_millis(700),
    outage: Duration::from_secs(30),
};

/// When a plan is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long nothing may be written at the end of a recording, which must not miss a late write.
const QUIET_RECORDING: Duration = Duration::from_secs(2);
/// The login before is shut only after the overlap.
const QUIET_ROTATION: Duration = Duration::from_secs(3);
const INTERVAL: Duration = Duration::from_millis(50);
/// How the names of all children begin.
const GREETER: &str = "shop/greeter";

/// What a step does when nothing disturbs it.
#[derive(Clone, Debug)]
pub struct Recording {
    pub entries: Entries,
    pub snapshot: Snapshot,
}

/// How a step under a plan ended.
#[derive(Clone, Debug)]
pub enum Verdict {
    /// As undisturbed, this long after the restart.
    Passed(Duration),
    /// As undisturbed, but the write did not happen, so neither did the fault.
    NotReached,
    /// What is wrong, one line each.
    Failed(Vec<String>),
}

/// A rig with a recording of every step.
pub struct Runner {
    pub rig: Rig,
    pub recordings: BTreeMap<Step, Recording>,
    pub bars: Bars,
}

impl Runner {
    /// Starts a rig and records every step.
    ///
    /// # Errors
    /// When an undisturbed step does not come to its end.
    pub async fn start(bars: Bars, progress: &Progress) -> Result<Self> {
        let rig = Box::pin(Rig::start(progress)).await?;
        let mut runner = Self { rig, recordings: BTreeMap::new(), bars };
        progress.step("the first create", Box::pin(runner.record(Step::Create))).await?;
        for step in LOOPS.into_iter().flatten() {
            let recording = Box::pin(runner.record(*step));
            let recording = progress.step(&format!("record {}", step.word()), recording).await?;
            runner.recordings.insert(*step, recording);
        }
        ensure!(runner.rig.gate.calls() > 0, "nobody has tried to get in without credentials");
        Ok(runner)
    }

    async fn record(&self, step: Step) -> Result<Recording> {
        let Rig { journal, camera, postgres, client, operator, gate, .. } = &self.rig;
        journal.begin(None);
        gate.set(step.access());
        step.act(client).await?;
        let snapshot = wait::until(&format!("{} is done", step.word()), PATIENCE, async || {
            ensure!(
                operator.is_running(),
                wait::Never(anyhow::anyhow!("the operator ended:\n{}", operator.log()))
            );
            self.rig.has_arrived(step).await?;
            let quiet = if matches!(step, Step::Rotate | Step::RotateBack) {
                QUIET_ROTATION
            } else {
                QUIET_RECORDING
            };
            let last = journal.last_write();
            ensure!(last.is_some_and(|last| last.elapsed() >= quiet), "the operator has not come to rest");
            let mut snapshot = camera.take(postgres).await?;
            // The garbage collector takes its time.
            let left = snapshot.keys().find(|key| step == Step::Delete && key.contains(GREETER));
            ensure!(left.is_none(), "{left:?} is still there");
            camera.look_inside(postgres, &mut snapshot).await?;
            ensure!(journal.last_write() == last, "the operator wrote while it was looked at");
            Ok(snapshot)
        })
        .await
        .with_context(|| operator.log())?;
        gate.set(step.access_afterwards());
        let entries = journal.entries();
        let what = entries.violations.join("; ");
        ensure!(what.is_empty(), "{} breaks an invariant without any fault: {what}", step.word());
        Ok(Recording { entries, snapshot })
    }

    /// Runs a step with or without a fault and compares with its recording.
    ///
    /// # Errors
    /// When the step was not recorded.
    pub async fn run(&self, step: Step, fault: Option<Fault>) -> Result<Verdict> {
        self.run_within(PATIENCE, step, fault).await
    }

    async fn run_within(&self, patience: Duration, step: Step, fault: Option<Fault>) -> Result<Verdict> {
        let Rig { journal, gate, .. } = &self.rig;
        let recording = self.recordings.get(&step).context("the step was not recorded")?;
        let point = fault.as_ref().map(|fault| fault.point);
        journal.begin(fault);
        gate.set(step.access());
        let rounds = gate.rounds();
        let converged = self.converge(patience, step, recording).await;
        gate.set(step.access_afterwards());
        let entries = journal.entries();
        let mut problems = entries.violations.clone();
        if gate.rounds() == rounds {
            problems.push("nobody tried to get in without credentials".to_owned());
        }
        let took = match converged {
            Ok(took) => took,
            Err(left) => {
                problems.extend(left);
                return Ok(Verdict::Failed(problems));
            }
        };
        problems.extend(counts::too_often(step, point, &recording.entries, &entries));
        if point.is_some() && took > self.bars.recovery {
            problems.push(format!("converged only after {:.1} s", took.as_secs_f64()));
        }
        Ok(if !problems.is_empty() {
            Verdict::Failed(problems)
        } else if point.is_some() && !journal.has_struck() {
            Verdict::NotReached
        } else {
            Verdict::Passed(took)
        })
    }

    /// Does the step and waits until all is as recorded and quiet. The time
    /// from the restart, or from the beginning, to the last write; or what is
    /// wrong, one line each. A system that does not answer is looked at again.
    async fn converge(
        &self,
        patience: Duration,
        step: Step,
        recording: &Recording,
    ) -> Result<Duration, Vec<String>> {
        let Rig { journal, client, operator, .. } = &self.rig;
        let told = |error: anyhow::Error| vec![format!("{error:#}")];
        let mut since = Instant::now();
        let mut is_struck = false;
        step.act(client).await.map_err(told)?;
        let mut left = vec!["nothing was compared".to_owned()];
        while since.elapsed() < patience {
            // In this order: one that does not run may have been struck just now.
            let is_running = operator.is_running();
            if !is_struck && journal.has_struck() {
                is_struck = true;
                since = Instant::now();
                if !operator.is_running() {
                    self.rig.restart().await.map_err(told)?;
                }
            } else if !is_running {
                let mut left = vec![format!("the operator ended by itself:\n{}", operator.log())];
                left.extend(self.rig.restart().await.err().map(|error| format!("{error:#}")));
                return Err(left);
            }
            let last = journal.last_write();
            if last.is_none_or(|last| last.elapsed() >= self.bars.quiet) {
                left = self.compare(&recording.snapshot).await.unwrap_or_else(told);
                // After a write meanwhile what was seen may be old already.
                if left.is_empty() && journal.last_write() == last && is_struck == journal.has_struck() {
                    return Ok(last.map_or(Duration::ZERO, |last| last.saturating_duration_since(since)));
                }
            }
            tokio::time::sleep(INTERVAL).await;
        }
        left.insert(0, format!("no convergence within {} s", patience.as_secs()));
        Err(left)
    }

    /// What is not as it was after `step` undisturbed, one line each.
    ///
    /// # Errors
    /// When the step was not recorded or a system does not answer.
    pub async fn left(&self, step: Step) -> Result<Vec<String>> {
        let recording = self.recordings.get(&step).context("the step was not recorded")?;
        self.compare(&recording.snapshot).await
    }

    async fn compare(&self, expected: &Snapshot) -> Result<Vec<String>> {
        let Rig { camera, postgres, .. } = &self.rig;
        let mut found = camera.take(postgres).await?;
        let inside = |key: &String| key.starts_with("login with") || is_inside(key);
        let outside: Snapshot =
            expected.iter().filter(|(key, _)| !inside(key)).map(|(k, v)| (k.clone(), v.clone())).collect();
        let left = differences(&outside, &found);
        if !left.is_empty() {
            return Ok(left);
        }
        camera.look_inside(postgres, &mut found).await?;
        Ok(differences(expected, &found))
    }

    /// Runs steps without a fault of a plan.
    ///
    /// # Errors
    /// When one ends otherwise than recorded.
    pub async fn walk(&self, steps: &[Step]) -> Result<()> {
        self.walk_within(PATIENCE, steps).await
    }

    /// The same with other patience for each step.
    ///
    /// # Errors
    /// When one ends otherwise than recorded.
    pub async fn walk_within(&self, patience: Duration, steps: &[Step]) -> Result<()> {
        for step in steps {
            if let Verdict::Failed(lines) = self.run_within(patience, *step, None).await? {
                bail!("{} does not end as recorded: {}", step.word(), lines.join("; "));
            }
        }
        Ok(())
    }

    /// Looks whether anything is written for so long although nothing changes.
    ///
    /// # Errors
    /// What was written, or an invariant that was broken meanwhile.
    pub async fn rest(&self, window: Duration) -> Result<()> {
        self.rig.journal.begin(None);
        tokio::time::sleep(window).await;
        let Entries { writes, violations, .. } = self.rig.journal.entries();
        ensure!(writes.is_empty(), "the operator wrote: {writes:?}");
        ensure!(violations.is_empty(), "{violations:?}");
        Ok(())
    }

    /// Back to the created greeter after a failure, and from there along `steps`.
    ///
    /// # Errors
    /// When that does not succeed either; then only a new rig helps.
    pub async fn recover(&self, steps: &[Step]) -> Result<()> {
        // What is left of it may be half of it.
        drop(Step::Create.act(&self.rig.client).await);
        // How it gets there does not matter, only that it does.
        self.run(Step::Delete, None).await?;
        self.walk(&[Step::Create]).await?;
        self.walk(steps).await
    }
}

/// Whether a line tells of the contents of a database.
fn is_inside(key: &str) -> bool {
    let rest = key.strip_prefix("PostgreSQL ").unwrap_or_default();
    rest.split_once(": ").is_some_and(|(database, line)| {
        !database.contains(' ') && (line.starts_with("schema ") || line.starts_with("default "))
    })
}
