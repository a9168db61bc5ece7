//! What the policies publish: the ConfigMaps of their AuthClasses.

use peristyle_crds::names::AUTH_CLASS_LABEL;

use super::{Rendered, assume, input::Input, without_owner};
use crate::{
    auth::{key::PolicyKey, plan::Plan, relations::Refusals, world::World},
    controllers::auth_class::build,
    edge::claims::Claims,
    metadata::Owner,
};

/// The rules and relation models of all policies as Oathkeeper and Keto read
/// them, and why a policy is not among them. Tuples go to Keto itself.
///
/// # Errors
/// When a child cannot be written as JSON, which would be a bug.
pub fn render(input: &Input) -> Result<Rendered, serde_json::Error> {
    let (classes, namespaces) = (assume::classes(input), assume::namespaces(input));
    let auth_classes = assume::auth_classes(input);
    let claims = Claims::settle(&input.services, &classes, &namespaces);
    let world = World::new(&input.auth_policies, &auth_classes, &input.services, &claims);
    let mut rendered = Rendered::default();
    let mut reject = |policy: &PolicyKey, why: &dyn std::fmt::Display| {
        rendered.problems.push(format!("AuthPolicy {policy}: {why}"));
    };
    let mut maps = Vec::new();
    for policy in world.policies() {
        if let Err(rejection) = world.class(policy) {
            reject(&PolicyKey::of(policy), &rejection);
        }
    }
    for class in &auth_classes {
        let plan = Plan::new(&world, class, &Refusals::new());
        // One that was only taken to be there, and that nobody needs.
        if plan.policies.is_empty() && input.auth_classes.is_empty() {
            continue;
        }
        for (policy, compiled) in &plan.policies {
            if let Err(rejection) = compiled {
                reject(policy, rejection);
            }
        }
        let owner = Owner::new(class, &class.spec.oathkeeper.namespace, AUTH_CLASS_LABEL);
        maps.extend(build::published(&owner, class, &plan));
    }
    for map in maps {
        rendered.objects.push(without_owner(serde_json::to_value(map)?));
    }
    Ok(rendered)
}
