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
