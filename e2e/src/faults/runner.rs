//! Records undisturbed steps, repeats them with a fault each, and compares.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::bench::Bench;
use super::journal::{Entries, Fault, Point};
use super::plans::Plan;
use super::snapshot::{Snapshot, differences};
use super::workload::{ANEW, LOOPS, Step};
use crate::progress::Progress;
use crate::wait;

/// How long after the restart everything may take to be as it should, unless a runner says otherwise.
const BAR: Duration = Duration::from_secs(10);
/// When a plan is given up.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long nothing may be written at the end.
const QUIET: Duration = Duration::from_millis(700);
/// The same for a recording, which must not miss a late write.
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

/// A bench with a recording of every step.
pub struct Runner {
    pub bench: Bench,
    pub recordings: BTreeMap<Step, Recording>,
    /// How long after a restart everything may take to be as it should.
    pub bar: Duration,
}

impl Runner {
    /// Starts a bench and records every step.
    ///
    /// # Errors
    /// When an undisturbed step does not come to its end.
    pub async fn start(progress: &Progress) -> Result<Self> {
        let bench = Box::pin(Bench::start(progress)).await?;
        let mut runner = Self { bench, recordings: BTreeMap::new(), bar: BAR };
        progress.step("the first create", runner.record(Step::Create)).await?;
        for step in LOOPS.into_iter().flatten() {
            let recording = progress.step(&format!("record {}", step.word()), runner.record(*step)).await?;
            runner.recordings.insert(*step, recording);
        }
        Ok(runner)
    }

    async fn record(&self, step: Step) -> Result<Recording> {
        let Bench { journal, camera, postgres, client, operator, gate, .. } = &self.bench;
        journal.begin(None);
        gate.may_be_open(step.may_be_open());
        step.act(client).await?;
        let mut snapshot = wait::until(&format!("{} is done", step.word()), PATIENCE, async || {
            ensure!(
                operator.is_running(),
                wait::Never(anyhow::anyhow!("the operator ended:\n{}", operator.log()))
            );
            self.bench.has_arrived(step).await?;
            let quiet = if matches!(step, Step::Rotate | Step::RotateBack) {
                QUIET_ROTATION
            } else {
                QUIET_RECORDING
            };
            let is_over = journal.last_write().is_some_and(|last| last.elapsed() >= quiet);
            ensure!(is_over, "the operator has not come to rest");
            let snapshot = camera.take(postgres).await?;
            // The garbage collector takes its time.
            let left = snapshot.keys().find(|key| step == Step::Delete && key.contains(GREETER));
            ensure!(left.is_none(), "{left:?} is still there");
            Ok(snapshot)
        })
        .await
        .with_context(|| operator.log())?;
        gate.may_be_open(step == Step::Open);
        camera.look_inside(postgres, &mut snapshot).await?;
        let entries = journal.entries();
        let what = entries.violations.join("; ");
        ensure!(what.is_empty(), "{} breaks an invariant without any fault: {what}", step.word());
        Ok(Recording { entries, snapshot })
    }

    /// Runs a step with or without a fault and compares with its recording.
    ///
    /// # Errors
    /// When the harness itself fails.
    pub async fn run(&self, step: Step, fault: Option<Fault>) -> Result<Verdict> {
        let Bench { journal, client, operator, gate, .. } = &self.bench;
        let recording = self.recordings.get(&step).context("the step was not recorded")?;
        let point = fault.as_ref().map(|fault| fault.point);
        journal.begin(fault);
        gate.may_be_open(step.may_be_open());
        let mut since = Instant::now();
        let mut is_struck = false;
        step.act(client).await?;
        let mut left = vec!["nothing was compared".to_owned()];
        while since.elapsed() < PATIENCE {
            // In this order: one that does not run may have been struck just now.
            let is_running = operator.is_running();
            if !is_struck && journal.has_struck() {
                is_struck = true;
                since = Instant::now();
                if !operator.is_running() {
                    self.bench.restart().await?;
                }
            } else if !is_running {
                left = vec![format!("the operator ended by itself:\n{}", operator.log())];
                self.bench.restart().await?;
                break;
            }
            if journal.is_quiet_for(QUIET) {
                left = self.compare(&recording.snapshot).await?;
                // A write meanwhile means that it was not quiet.
                if left.is_empty() && journal.is_quiet_for(QUIET) && is_struck == journal.has_struck() {
                    return Ok(self.judge(step, recording, point, since));
                }
            }
            tokio::time::sleep(INTERVAL).await;
        }
        gate.may_be_open(step == Step::Open);
        left.insert(0, format!("no convergence within {} s", PATIENCE.as_secs()));
        left.extend(journal.entries().violations);
        Ok(Verdict::Failed(left))
    }

    fn judge(&self, step: Step, recording: &Recording, point: Option<Point>, since: Instant) -> Verdict {
        let Bench { journal, gate, .. } = &self.bench;
        gate.may_be_open(step == Step::Open);
        let entries = journal.entries();
        let took = journal.last_write().map_or(Duration::ZERO, |last| last.saturating_duration_since(since));
        let mut problems = entries.violations.clone();
        problems.extend(counts(step, point, &recording.entries, &entries));
        if point.is_some() && took > self.bar {
            problems.push(format!("converged only after {:.1} s", took.as_secs_f64()));
        }
        if !problems.is_empty() {
            return Verdict::Failed(problems);
        }
        if point.is_some() && !journal.has_struck() {
            return Verdict::NotReached;
        }
        Verdict::Passed(took)
    }

    async fn compare(&self, expected: &Snapshot) -> Result<Vec<String>> {
        let Bench { camera, postgres, .. } = &self.bench;
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

    /// Runs steps without a fault.
    ///
    /// # Errors
    /// When one ends otherwise than recorded.
    pub async fn walk(&self, steps: &[Step]) -> Result<()> {
        for step in steps {
            if let Verdict::Failed(lines) = self.run(*step, None).await? {
                bail!("{} failed undisturbed: {}", step.word(), lines.join("; "));
            }
        }
        Ok(())
    }

    /// Back to the created greeter after a failure, and from there along `steps`.
    ///
    /// # Errors
    /// When that does not succeed either; then only a new bench helps.
    pub async fn recover(&self, steps: &[Step]) -> Result<()> {
        // What is left of it may be half of it.
        drop(Step::Create.act(&self.bench.client).await);
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

/// What was created or deleted more often than undisturbed. Less often is fine:
/// what is there in the end is compared by itself.
fn counts(step: Step, point: Option<Point>, expected: &Entries, found: &Entries) -> Vec<String> {
    let extra = |name: &str| {
        let of = |entries: &Entries| entries.effects.get(name).copied().unwrap_or_default();
        of(found).saturating_sub(of(expected))
    };
    let is_allowed = |name: &str| {
        // The garbage collector may be faster than who withdraws a route.
        let is_race = step == Step::Delete && name.starts_with("delete ");
        // Who starts in the middle of a publication withdraws the ways in until
        // the policy is known to be live, once.
        let is_restarted = matches!(point, Some(Point::Before | Point::After));
        let is_way_in = |route: &&str| is_restarted && route.starts_with("ingressroutes.");
        let withdrawn = name.split_once(' ').map(|(_, object)| object).filter(is_way_in);
        is_race
            || withdrawn.is_some_and(|object| {
                extra(name) == 1 && extra(&format!("create {object}")) == extra(&format!("delete {object}"))
            })
    };
    let too_often = found.effects.keys().filter(|name| extra(name) > 0 && !is_allowed(name));
    too_often.map(|name| format!("{name}: {} times more than undisturbed", extra(name))).collect()
}

/// A loop of steps, with a plan in those that have one.
pub type Round = Vec<(Step, Option<Plan>)>;

/// Plans in an order in which each finds the state that its step begins with:
/// whole loops, with a plan in each step that has one left.
#[must_use]
pub fn schedule(plans: Vec<Plan>) -> Vec<Round> {
    let mut queues: BTreeMap<Step, VecDeque<Plan>> = BTreeMap::new();
    for plan in plans {
        queues.entry(plan.step).or_default().push_back(plan);
    }
    let mut rounds = Vec::new();
    // Creations that are left over need nothing but a deletion before.
    let loops = LOOPS.map(|steps| (steps, steps.split(|step| *step == Step::Create).next().unwrap_or(steps)));
    for (steps, needed_for) in loops.into_iter().chain([(ANEW, ANEW)]) {
        while needed_for.iter().any(|step| queues.get(step).is_some_and(|queue| !queue.is_empty())) {
            let next = |step: &Step| (*step, queues.get_mut(step).and_then(VecDeque::pop_front));
            rounds.push(steps.iter().map(next).collect());
        }
    }
    rounds
}

#[cfg(test)]
mod tests {
    use super::super::journal::Write;
    use super::*;

    fn entries(effects: &[(&str, usize)]) -> Entries {
        let effects = effects.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        Entries { effects, ..Entries::default() }
    }

    #[test]
    fn every_plan_is_scheduled_once_and_a_creation_alone_needs_no_rotation() {
        let plan = |step| {
            let write = Write { what: String::new(), nth: 1 };
            Plan { step, fault: Fault { write, point: Point::Lost } }
        };
        let rounds = schedule([Step::Create, Step::Create, Step::Move].map(plan).into());
        let steps: Vec<Vec<_>> = rounds
            .iter()
            .map(|round| round.iter().map(|(step, plan)| (*step, plan.is_some())).collect())
            .collect();
        let anew = vec![(Step::Delete, false), (Step::Create, true)];
        assert_eq!(steps, [vec![(Step::Move, true), (Step::MoveBack, false)], anew.clone(), anew]);
        let rotation = schedule([Step::Delete, Step::Create].map(plan).into());
        assert_eq!(rotation.len(), 1);
        assert_eq!(rotation[0].len(), 4);
    }

    #[test]
    fn twice_is_told_and_a_route_that_was_withdrawn_once_is_not() {
        let undisturbed = entries(&[("CREATE ROLE", 1), ("create ingressroutes.traefik.io a", 1)]);
        let after = |point, effects: &[_]| counts(Step::Create, point, &undisturbed, &entries(effects));
        let told = |effects: &[_]| after(Some(Point::After), effects);
        assert_eq!(told(&[("CREATE ROLE", 2)]), ["CREATE ROLE: 1 times more than undisturbed"]);
        assert_eq!(told(&[]).len(), 0);
        let route = ["create ingressroutes.traefik.io a", "delete ingressroutes.traefik.io a"];
        assert_eq!(told(&[(route[0], 2), (route[1], 1)]).len(), 0);
        assert_eq!(after(Some(Point::Lost), &[(route[0], 2), (route[1], 1)]).len(), 2);
        assert_eq!(told(&[(route[0], 2)]).len(), 1);
        assert_eq!(told(&[(route[0], 3), (route[1], 2)]).len(), 2);
    }
}
