//! Plans: every write of every recorded step, times every point.

use std::collections::BTreeMap;

use super::journal::{Fault, Point, Write};
use super::workload::Step;
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

/// At most `count` plans, spread evenly over all writes and over the points.
#[must_use]
pub fn sample(plans: Vec<Plan>, count: usize) -> Vec<Plan> {
    let total = plans.len();
    if count >= total {
        return plans;
    }
    // In the middle of equal parts; within the write that is found there, the next point.
    let points = Point::ALL.len();
    let index = |part: usize| {
        let middle = (2 * part + 1) * total / (2 * count);
        if count <= total / points { middle - middle % points + part % points } else { middle }
    };
    (0..count).filter_map(|part| plans.get(index(part)).cloned()).collect()
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
    fn a_sample_has_the_wanted_size_and_reaches_from_start_to_end() {
        let plans = all(&writes(30));
        let found = sample(plans.clone(), 7);
        assert_eq!(found.len(), 7);
        let points: std::collections::BTreeSet<_> = found.iter().map(|plan| plan.fault.point).collect();
        assert_eq!(points.len(), Point::ALL.len());
        assert!(plans[80..].contains(found.last().unwrap()));
        assert_eq!(sample(plans.clone(), 1000), plans);
    }
}
