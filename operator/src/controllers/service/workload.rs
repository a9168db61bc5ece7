//! How the pods stand, and what keeps them from running. Pure.
//!
//! Messages name the pod and the cause, and hold no counts of restarts: a
//! status that changes with every restart would never come to rest.

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ContainerState, ContainerStatus, Pod},
};
use kube::ResourceExt;
use peristyle_crds::condition::{Reason, types};

use super::apply::HookState;
use crate::conditions::Finding;

const CONDITION: &str = types::WORKLOAD_AVAILABLE;

/// How the workload stands.
///
/// `holds` is what the pods need and is missing; `pods` are those of the
/// workload and of its hooks.
#[must_use]
pub fn finding(
    deployment: Option<&Deployment>,
    hooks: &HookState,
    holds: &[Finding],
    image: &str,
    pods: &[&Pod],
) -> Finding {
    match hooks {
        HookState::Failed { hook, job, reason } => {
            let cause = pods_of(pods, job).and_then(|pods| worst(&pods));
            let cause = cause.map_or_else(|| reason.clone(), |cause| cause.text);
            return Finding::stalled(
                CONDITION,
                Reason::HookFailed,
                format!(
                    "hook {hook} (Job {job}) failed: {cause}; change the image or the hook to run it again"
                ),
            );
        }
        HookState::Running { hook, job } => {
            let cause = pods_of(pods, job).and_then(|pods| worst(&pods));
            let cause = cause.map(|cause| format!(": {}", cause.text)).unwrap_or_default();
            return Finding::waiting(
                CONDITION,
                Reason::HookRunning,
                format!("hook {hook} (Job {job}) runs{cause}"),
            );
        }
        HookState::Held | HookState::Done => {}
    }
    match (holds.first(), deployment) {
        (Some(hold), None) => Finding::waiting(CONDITION, hold.reason, hold.message.clone()),
        (Some(hold), Some(_)) if hold.condition == CONDITION => {
            Finding::waiting(CONDITION, hold.reason, format!("{}; the running pods are kept", hold.message))
        }
        (_, Some(deployment)) => running(deployment, image, pods),
        (None, None) => Finding::waiting(CONDITION, Reason::RolloutInProgress, "no Deployment yet"),
    }
}

fn running(deployment: &Deployment, image: &str, pods: &[&Pod]) -> Finding {
    let desired = deployment.spec.as_ref().and_then(|s| s.replicas).unwrap_or(1);
    let status = deployment.status.clone().unwrap_or_default();
    let available = status.available_replicas.unwrap_or(0);
    let updated = status.updated_replicas.unwrap_or(0);
    let is_observed = status.observed_generation >= deployment.metadata.generation;
    let is_done =
        is_observed && updated >= desired && available >= desired && status.replicas.unwrap_or(0) <= updated;
    if is_done {
        let message = match desired {
            0 => "scaled to zero".to_owned(),
            1 => format!("1 pod runs {image}"),
            n => format!("{n} pods run {image}"),
        };
        return Finding::good(CONDITION, message);
    }
    let name = deployment.name_any();
    let own = pods_of(pods, &name).unwrap_or_default();
    if let Some(cause) = worst(&own) {
        return match cause.kind {
            Kind::Failure => Finding::failed(CONDITION, Reason::RolloutFailed, cause.text),
            Kind::Missing => Finding::waiting(CONDITION, Reason::ReferenceMissing, cause.text),
            Kind::Unschedulable => Finding::waiting(CONDITION, Reason::RolloutInProgress, cause.text),
        };
    }
    let conditions = status.conditions.unwrap_or_default();
    let condition = |type_: &str, status: &str| {
        conditions.iter().find(|c| c.type_ == type_ && c.status == status && is_observed)
    };
    if let Some(refused) = condition("ReplicaFailure", "True") {
        let message = refused.message.as_deref().unwrap_or_default();
        // The name of the pod that could not be created differs at every try.
        let message = message.split_once("\" is forbidden: ").map_or(message, |(_, rest)| rest);
        return Finding::failed(
            CONDITION,
            Reason::RolloutFailed,
            format!("{name}: pods cannot be created: {message}"),
        );
    }
    if condition("Progressing", "False")
        .is_some_and(|c| c.reason.as_deref() == Some("ProgressDeadlineExceeded"))
    {
        return Finding::failed(
            CONDITION,
            Reason::RolloutFailed,
            format!("{name}: {available} of {desired} pods became available within the deadline"),
        );
    }
    Finding::waiting(
        CONDITION,
        Reason::RolloutInProgress,
        format!("{name}: {available} of {desired} pods are available"),
    )
}

/// Pods whose instance label is `instance`: the Deployment's or one Job's.
fn pods_of<'a>(pods: &[&'a Pod], instance: &str) -> Option<Vec<&'a Pod>> {
    let is_of = |pod: &&&Pod| {
        pod.labels().get("app.kubernetes.io/instance").is_some_and(|value| value == instance)
            && pod.metadata.deletion_timestamp.is_none()
    };
    let found: Vec<&Pod> = pods.iter().filter(is_of).copied().collect();
    (!found.is_empty()).then_some(found)
}

/// What keeps a pod from running; the worst first.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum Kind {
    Failure,
    Missing,
    Unschedulable,
}

#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Cause {
    kind: Kind,
    text: String,
}

/// The worst cause of all, the same one whatever the order of the pods.
fn worst(pods: &[&Pod]) -> Option<Cause> {
    pods.iter().filter_map(|pod| cause(pod)).min()
}

fn cause(pod: &Pod) -> Option<Cause> {
    let status = pod.status.as_ref()?;
    let of_container =
        status.container_statuses.iter().flatten().filter_map(container).min_by_key(|(kind, _)| *kind);
    let unschedulable = || {
        status
            .conditions
            .iter()
            .flatten()
            .find(|c| {
                c.type_ == "PodScheduled"
                    && c.status == "False"
                    && c.reason.as_deref() == Some("Unschedulable")
            })
            .map(|c| {
                let why = c.message.clone().unwrap_or_default();
                (Kind::Unschedulable, format!("Unschedulable: {why}"))
            })
    };
    let (kind, text) = of_container.or_else(unschedulable)?;
    Some(Cause { kind, text: format!("{}: {text}", pod.name_any()) })
}

fn container(status: &ContainerStatus) -> Option<(Kind, String)> {
    if status.ready {
        return None;
    }
    let state = status.state.clone().unwrap_or_default();
    if let Some(waiting) = &state.waiting {
        let reason = waiting.reason.as_deref().unwrap_or_default();
        match reason {
            // The two alternate while the kubelet tries again.
            "ErrImagePull" | "ImagePullBackOff" => {
                return Some((Kind::Failure, format!("ImagePullBackOff (image {})", status.image)));
            }
            "ErrImageNeverPull" | "InvalidImageName" => {
                return Some((Kind::Failure, format!("{reason} (image {})", status.image)));
            }
            "CreateContainerConfigError" => {
                let why = waiting.message.as_deref().unwrap_or_default();
                return Some((Kind::Missing, format!("{reason}: {why}")));
            }
            "CreateContainerError" | "RunContainerError" | "StartError" => {
                return Some((Kind::Failure, reason.to_owned()));
            }
            _ => {}
        }
    }
    // Between two starts the state alternates; what ended the last one does not.
    let ended = exit(&state).or_else(|| exit(&status.last_state.clone().unwrap_or_default()))?;
    let word = if status.restart_count > 0 { "CrashLoopBackOff" } else { "Terminated" };
    Some((Kind::Failure, format!("{word} ({ended})")))
}

fn exit(state: &ContainerState) -> Option<String> {
    let terminated = state.terminated.as_ref().filter(|t| t.exit_code != 0)?;
    Some(match terminated.reason.as_deref() {
        Some("OOMKilled") => "out of memory".to_owned(),
        _ => format!("exit {}", terminated.exit_code),
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;
    use crate::conditions::State;

    fn deployment(status: &Value) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "orders", "generation": 2},
            "spec": {"replicas": 2, "selector": {}, "template": {}},
            "status": status
        }))
        .unwrap()
    }

    fn pod(name: &str, instance: &str, status: &Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"app.kubernetes.io/instance": instance}},
            "status": status
        }))
        .unwrap()
    }

    fn container(state: &Value, last: &Value, restarts: i32) -> Value {
        json!({"containerStatuses": [{
            "name": "orders", "image": "r.test/o:1", "imageID": "", "ready": false,
            "restartCount": restarts, "state": state, "lastState": last
        }]})
    }

    fn judged(status: &Value, pods: &[Pod]) -> Finding {
        let pods: Vec<&Pod> = pods.iter().collect();
        finding(Some(&deployment(status)), &HookState::Done, &[], "r.test/o:1", &pods)
    }

    fn starting() -> Value {
        json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 1})
    }

    #[rstest]
    #[case::crash_loop(
        container(&json!({"waiting": {"reason": "CrashLoopBackOff"}}), &json!({"terminated": {"exitCode": 1}}), 3),
        State::Failed, "orders-a: CrashLoopBackOff (exit 1)"
    )]
    #[case::between_two_crashes(
        container(&json!({"running": {}}), &json!({"terminated": {"exitCode": 1}}), 4),
        State::Failed, "orders-a: CrashLoopBackOff (exit 1)"
    )]
    #[case::out_of_memory(
        container(&json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}), &json!({}), 1),
        State::Failed, "orders-a: CrashLoopBackOff (out of memory)"
    )]
    #[case::image(
        container(&json!({"waiting": {"reason": "ErrImagePull", "message": "at 12:00"}}), &json!({}), 0),
        State::Failed, "orders-a: ImagePullBackOff (image r.test/o:1)"
    )]
    #[case::key_of_a_secret(
        container(&json!({"waiting": {"reason": "CreateContainerConfigError", "message": "couldn't find key k in Secret shop/s"}}), &json!({}), 0),
        State::Waiting, "orders-a: CreateContainerConfigError: couldn't find key k in Secret shop/s"
    )]
    #[case::unschedulable(
        json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available"}]}),
        State::Waiting, "orders-a: Unschedulable: 0/1 nodes are available"
    )]
    #[case::starting(
        container(&json!({"waiting": {"reason": "ContainerCreating"}}), &json!({}), 0),
        State::Waiting, "orders: 1 of 2 pods are available"
    )]
    fn an_unavailable_workload_names_the_pod_and_the_cause(
        #[case] status: Value,
        #[case] state: State,
        #[case] message: &str,
    ) {
        let finding = judged(&starting(), &[pod("orders-a", "orders", &status)]);
        assert_eq!((finding.state, finding.message.as_str()), (state, message));
    }

    #[test]
    fn the_worst_pod_is_named_whatever_the_order() {
        let crash = container(
            &json!({"waiting": {"reason": "CrashLoopBackOff"}}),
            &json!({"terminated": {"exitCode": 1}}),
            3,
        );
        let config = container(
            &json!({"waiting": {"reason": "CreateContainerConfigError", "message": "m"}}),
            &json!({}),
            0,
        );
        let mut pods = [
            pod("orders-a", "orders", &config),
            pod("orders-c", "orders", &crash),
            pod("orders-b", "orders", &crash),
            pod("orders-migrate", "orders-migrate-1", &crash),
        ];
        let first = judged(&starting(), &pods);
        assert_eq!(first.message, "orders-b: CrashLoopBackOff (exit 1)");
        pods.reverse();
        assert_eq!(judged(&starting(), &pods), first);
    }

    #[test]
    fn a_finished_rollout_is_good_and_one_of_an_older_generation_is_not() {
        let mut status =
            json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2});
        assert_eq!(judged(&status, &[]).state, State::Good);
        status["observedGeneration"] = json!(1);
        assert_eq!(judged(&status, &[]).state, State::Waiting);
    }

    #[test]
    fn old_pods_beside_the_new_ones_are_a_rollout_in_progress() {
        let status =
            json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 2, "availableReplicas": 3});
        assert_eq!(judged(&status, &[]).reason, Reason::RolloutInProgress);
    }

    #[test]
    fn a_refused_pod_is_told_without_its_random_name() {
        let mut status = starting();
        status["conditions"] = json!([{"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate",
            "message": "pods \"orders-7f9c-x2x4z\" is forbidden: exceeded quota: q"}]);
        let finding = judged(&status, &[]);
        assert_eq!(finding.message, "orders: pods cannot be created: exceeded quota: q");
        assert_eq!(finding.state, State::Failed);
    }

    #[test]
    fn a_missed_deadline_is_a_failure() {
        let mut status = starting();
        status["conditions"] =
            json!([{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]);
        assert_eq!(judged(&status, &[]).reason, Reason::RolloutFailed);
    }

    #[test]
    fn a_failed_hook_stalls_with_the_exit_code_of_its_pod() {
        let failed = HookState::Failed {
            hook: "migrate".to_owned(),
            job: "orders-migrate-1".to_owned(),
            reason: "BackoffLimitExceeded".to_owned(),
        };
        let status = container(&json!({"terminated": {"exitCode": 2, "reason": "Error"}}), &json!({}), 0);
        let pod = pod("orders-migrate-1-x", "orders-migrate-1", &status);
        let with_pod = finding(None, &failed, &[], "x", &[&pod]);
        assert_eq!(with_pod.state, State::Stalled);
        assert_eq!(
            with_pod.message,
            "hook migrate (Job orders-migrate-1) failed: orders-migrate-1-x: Terminated (exit 2); change the image or the hook to run it again"
        );
        let without = finding(None, &failed, &[], "x", &[]);
        assert!(without.message.contains("failed: BackoffLimitExceeded"), "{}", without.message);
    }

    #[test]
    fn what_is_missing_holds_the_first_rollout_and_keeps_a_running_one() {
        let hold = Finding::waiting(CONDITION, Reason::ReferenceMissing, "Secret s does not exist");
        let first = finding(None, &HookState::Held, std::slice::from_ref(&hold), "x", &[]);
        assert_eq!(first.message, "Secret s does not exist");
        let good =
            json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2});
        let later = finding(Some(&deployment(&good)), &HookState::Held, &[hold], "x", &[]);
        assert_eq!(later.message, "Secret s does not exist; the running pods are kept");
        assert_eq!(later.state, State::Waiting);
    }
}
