//! Plans: every write of every recorded step, times every point, and the
//! order in which they are run.

use std::collections::{BTreeMap, VecDeque};

use super::journal::{Fault, Point, Write};
use super::workload::{ANEW, LOOPS, Step};
use crate::images;

/// How much of a write's name an id shows.
const SHOWN: usize = 60;

/// One fault in one step.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Plan {
    pub step: Step,
    pub fault: Fault,
}

impl Plan {
    /// The same in every run, as long as the operator writes the same.
    #[must_use]
    pub fn id(&self) -> String {
        let Write { what, nth } = &self.fault.write;
        let words = what.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        let mut slug = words.collect::<Vec<_>>().join("-").to_ascii_lowercase();
        if slug.len() > SHOWN {
            slug.truncate(SHOWN);
            slug = format!("{slug}-{}", &images::digest(what.as_bytes())[..6]);
        }
        format!("{}:{slug}:{nth}:{}", self.step.word(), self.fault.point.word())
    }
}

/// All plans for what each step wrote, in the order of the writes.
#[must_use]
pub fn all(writes: &BTreeMap<Step, Vec<Write>>) -> Vec<Plan> {
    let of_step = |(step, writes): (&Step, &Vec<Write>)| {
        let step = *step;
        let points = |write: &Write| {
            let write = write.clone();
            Point::ALL.map(|point| Plan { step, fault: Fault { write: write.clone(), point } })
        };
        writes.iter().flat_map(points).collect::<Vec<_>>()
    };
    writes.iter().flat_map(of_step).collect()
}

/// At most `count` plans: of each step in turn one, at each point in turn.
/// Within those a hash chooses, so that other plans that come or go leave the
/// sample as it is; first writes of their kind first, as they happen in every run.
#[must_use]
pub fn sample(plans: Vec<Plan>, count: usize) -> Vec<Plan> {
    let rank = |plan: &Plan| (plan.fault.write.nth, images::digest(plan.id().as_bytes()));
    let mut steps: BTreeMap<Step, Vec<Plan>> = BTreeMap::new();
    for plan in plans {
        steps.entry(plan.step).or_default().push(plan);
    }
    for plans in steps.values_mut() {
        plans.sort_by_cached_key(rank);
    }
    let mut chosen = Vec::new();
    while chosen.len() < count && !steps.is_empty() {
        for plans in steps.values_mut() {
            let point = Point::ALL[chosen.len() % Point::ALL.len()];
            let next = plans.iter().position(|plan| plan.fault.point == point).unwrap_or_default();
            chosen.push(plans.remove(next));
        }
        steps.retain(|_, plans| !plans.is_empty());
    }
    chosen.truncate(count);
    chosen
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
    use super::*;

    fn writes(count: usize) -> BTreeMap<Step, Vec<Write>> {
        let write = |n| Write { what: format!("PATCH secrets shop/{n}"), nth: 1 };
        [(Step::Create, (0..count).map(write).collect())].into()
    }

    #[test]
    fn every_write_is_cut_at_every_point_and_every_plan_has_an_id_of_its_own() {
        let plans = all(&writes(5));
        assert_eq!(plans.len(), 15);
        assert_eq!(plans[0].id(), "create:patch-secrets-shop-0:1:before");
        let ids: std::collections::BTreeSet<_> = plans.iter().map(Plan::id).collect();
        assert_eq!(ids.len(), 15);
    }

    #[test]
    fn a_sample_has_the_wanted_size_and_something_of_every_step_and_point() {
        let of = |step: Step, plans: Vec<Plan>| plans.into_iter().map(move |plan| Plan { step, ..plan });
        let steps = [Step::Create, Step::Move, Step::Open, Step::Delete];
        let plans: Vec<_> = steps.into_iter().flat_map(|step| of(step, all(&writes(30)))).collect();
        let found = sample(plans.clone(), 4);
        assert_eq!(found.iter().map(|plan| plan.step).collect::<Vec<_>>(), steps);
        let points: std::collections::BTreeSet<_> = found.iter().map(|plan| plan.fault.point).collect();
        assert_eq!(points.len(), Point::ALL.len());
        assert_eq!(sample(plans.clone(), 7).len(), 7);
        assert_eq!(sample(plans.clone(), 1000).len(), plans.len());
    }

    #[test]
    fn a_sample_stays_as_it_is_when_other_plans_come_and_whatever_their_order() {
        let some = sample(all(&writes(30)), 6);
        let mut others = all(&writes(30));
        others.reverse();
        others.retain(|plan| some.contains(plan) || plan.fault.write.what.ends_with('7'));
        assert_eq!(sample(others, 6), some);
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
}
