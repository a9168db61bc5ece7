//! What happened more often than undisturbed.

use super::journal::{Entries, Point};
use super::workload::Step;

/// What was created or deleted, or which passwords were made, more often than
/// undisturbed. Less often is fine: what is there in the end is compared by itself.
#[must_use]
pub fn too_often(step: Step, point: Option<Point>, expected: &Entries, found: &Entries) -> Vec<String> {
    let of = |entries: &Entries, name: &str| entries.effects.get(name).copied().unwrap_or_default();
    let extra = |name: &str| of(found, name).saturating_sub(of(expected, name));
    let is_allowed = |name: &str| {
        let Some(object) = name.strip_prefix("delete ") else {
            return name.strip_prefix("create ").is_some_and(|object| is_way_in_again(point, object, extra));
        };
        // The garbage collector may be slower this time than who withdraws a
        // route. That explains one deletion, and none of what was made again.
        let is_race = step == Step::Delete
            && of(found, name) == 1
            && of(found, &format!("create {object}")) == 0
            && GARBAGE.iter().any(|kind| object.starts_with(kind));
        is_race || is_way_in_again(point, object, extra)
    };
    let too_often = found.effects.keys().filter(|name| extra(name) > 0 && !is_allowed(name));
    too_often.map(|name| format!("{name}: {} times more than undisturbed", extra(name))).collect()
}

/// Children that the operator deletes and the garbage collector as well.
const GARBAGE: [&str; 3] = ["ingressroutes.", "middlewares.", "serverstransports."];

/// Who starts in the middle of a publication withdraws the ways in until the
/// policy is known to be live, once.
fn is_way_in_again(point: Option<Point>, object: &str, extra: impl Fn(&str) -> usize) -> bool {
    matches!(point, Some(Point::Before | Point::After))
        && object.starts_with("ingressroutes.")
        && extra(&format!("delete {object}")) == 1
        && extra(&format!("create {object}")) == 1
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(effects: &[(&str, usize)]) -> Entries {
        let effects = effects.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
        Entries { effects, ..Entries::default() }
    }

    #[test]
    fn twice_is_told_and_a_route_that_was_withdrawn_once_is_not() {
        let undisturbed = entries(&[("CREATE ROLE", 1), ("create ingressroutes.traefik.io a", 1)]);
        let after = |point, effects: &[_]| too_often(Step::Create, point, &undisturbed, &entries(effects));
        let told = |effects: &[_]| after(Some(Point::After), effects);
        assert_eq!(told(&[("CREATE ROLE", 2)]), ["CREATE ROLE: 1 times more than undisturbed"]);
        assert_eq!(told(&[]).len(), 0);
        let route = ["create ingressroutes.traefik.io a", "delete ingressroutes.traefik.io a"];
        assert_eq!(told(&[(route[0], 2), (route[1], 1)]).len(), 0);
        assert_eq!(after(Some(Point::Lost), &[(route[0], 2), (route[1], 1)]).len(), 2);
        assert_eq!(told(&[(route[0], 2)]).len(), 1);
        assert_eq!(told(&[(route[0], 3), (route[1], 2)]).len(), 2);
    }

    #[test]
    fn a_second_password_is_told() {
        let password = "new password in secrets shop/greeter-db-slots owner";
        let undisturbed = entries(&[(password, 1)]);
        let told =
            |count| too_often(Step::Rotate, Some(Point::Lost), &undisturbed, &entries(&[(password, count)]));
        assert_eq!(told(1).len(), 0);
        assert_eq!(told(2), [format!("{password}: 1 times more than undisturbed")]);
    }

    #[test]
    fn of_a_deletion_only_one_of_what_the_garbage_collector_deletes_as_well_is_fine() {
        let told = |effects: &[_]| {
            too_often(Step::Delete, Some(Point::Lost), &entries(&[]), &entries(effects)).len()
        };
        let route = "delete middlewares.traefik.io shop/greeter-x";
        assert_eq!(told(&[(route, 1)]), 0);
        assert_eq!(told(&[(route, 2)]), 1);
        assert_eq!(told(&[(route, 1), ("create middlewares.traefik.io shop/greeter-x", 1)]), 2);
        assert_eq!(told(&[("delete secrets shop/of-somebody", 1)]), 1);
        assert_eq!(told(&[("DROP DATABASE", 1)]), 1);
    }
}
