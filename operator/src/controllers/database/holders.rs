//! Pods that read a Secret before its last rotation: what they know is the login before.

use jiff::{SignedDuration, Timestamp};
use kube::ResourceExt;
use peristyle_crds::{
    names::{CONFIG_HASH_ANNOTATION, SERVICE_LABEL},
    v1alpha1::{
        database::RoleName,
        service::{BindingRole, DatabaseBinding},
    },
};

use crate::{context::Context, controllers::service::named, stores::views::Pod};

/// Names of the Services of `namespace` that bind `role` of `database` and have
/// a pod from before `since`, sorted. A pod reads its variables when it starts:
/// one that is never replaced knows the login before for ever.
#[must_use]
pub fn holders(
    ctx: &Context,
    namespace: &str,
    database: &str,
    role: RoleName,
    since: Timestamp,
) -> Vec<String> {
    let is_meant = |binding: &DatabaseBinding| binding.database == database && reads(binding) == role;
    let mut services = ctx.stores.services.by(&named::bound(namespace, database));
    services.retain(|service| service.spec.databases.iter().any(is_meant));
    let holds = |name: &String| {
        let deployment = ctx.stores.deployments.get(namespace, name);
        let hash =
            deployment.as_deref().and_then(|live| live.spec.template.annotation(CONFIG_HASH_ANNOTATION));
        let pods = ctx.stores.pods.labelled(namespace, SERVICE_LABEL, name);
        pods.iter().any(|pod| is_from_before(pod, since, hash))
    };
    let mut names: Vec<String> = services.iter().map(|service| service.name_any()).filter(holds).collect();
    names.sort();
    names
}

fn reads(binding: &DatabaseBinding) -> RoleName {
    match binding.role() {
        BindingRole::Writer => RoleName::Writer,
        BindingRole::Reader => RoleName::Reader,
    }
}

/// Whether `pod` runs and was made before `since`, which is rounded up to a whole
/// second, while the time of a pod is cut to one: of those made within that
/// second, the ones that are as the Deployment wants them now were made after.
fn is_from_before(pod: &Pod, since: Timestamp, hash: Option<&str>) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return false;
    }
    let Some(created) = pod.creation_timestamp().map(|time| time.0) else {
        return true;
    };
    let is_of_that_second = created < since && since.duration_since(created) <= SignedDuration::from_secs(1);
    let is_as_wanted =
        hash.is_some() && pod.annotations().get(CONFIG_HASH_ANNOTATION).map(String::as_str) == hash;
    created < since && !(is_of_that_second && is_as_wanted)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::json;

    use super::*;

    #[rstest]
    #[case::long_before(0, "Running", "new", true)]
    #[case::it_has_ended(0, "Succeeded", "new", false)]
    #[case::in_that_second_with_what_was_there(9, "Running", "old", true)]
    #[case::in_that_second_with_what_is_wanted_now(9, "Running", "new", false)]
    #[case::after(10, "Running", "old", false)]
    fn a_pod_knows_what_was_there_when_it_was_made(
        #[case] created: i64,
        #[case] phase: &str,
        #[case] hash: &str,
        #[case] expected: bool,
    ) {
        let at = |second: i64| Timestamp::from_second(1_000_000 + second).unwrap();
        let pod = json!({
            "metadata": {"creationTimestamp": at(created).to_string(),
                         "annotations": {CONFIG_HASH_ANNOTATION: hash}},
            "status": {"phase": phase}
        });
        let pod: Pod = serde_json::from_value(pod).unwrap();
        assert_eq!(is_from_before(&pod, at(10), Some("new")), expected);
        let is_never_replaced = is_from_before(&pod, at(10), None);
        assert_eq!(is_never_replaced, phase == "Running" && created < 10, "without a hash only time counts");
    }
}
