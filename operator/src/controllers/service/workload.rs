//! How the pods stand, and what keeps them from running. Pure.
//!
//! Messages name the pod and the cause. They change with what happened and not
//! with what the kubelet is doing about it: a pod in a crash loop changes its
//! message once per restart, and restarts are at last five minutes apart.

pub mod cause;

use k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus};
use kube::ResourceExt;
use peristyle_crds::condition::{Reason, types};

use self::cause::{Cause, Weight};
use super::apply::HookState;
use crate::{
    conditions::{Finding, State},
    stores::views::{Deployment, Pod},
};

const CONDITION: &str = types::WORKLOAD_AVAILABLE;

/// Whether there is nothing that only the pods could explain.
#[must_use]
pub fn is_settled(deployment: Option<&Deployment>, hooks: &HookState) -> bool {
    match hooks {
        HookState::Failed { .. } | HookState::Running { .. } => false,
        HookState::Held | HookState::Done => {
            deployment.is_none_or(|deployment| Progress::of(deployment).is_done())
        }
    }
}

/// How the workload stands.
///
/// `holds` is what the pods need and is missing; `pods` are those of the
/// workload and of its hooks, which matter only if not [`is_settled`].
#[must_use]
pub fn finding(
    deployment: Option<&Deployment>,
    hooks: &HookState,
    holds: &[Finding],
    pods: &[&Pod],
) -> Finding {
    match hooks {
        HookState::Failed { hook, job, reason } => {
            let cause = cause::of_job(&pods_of(pods, job)).unwrap_or_else(|| reason.clone());
            return Finding::stalled(
                CONDITION,
                Reason::HookFailed,
                format!(
                    "hook {hook} (Job {job}) failed: {cause}; change the image or the hook to run it again"
                ),
            );
        }
        HookState::Running { hook, job } => {
            let cause = cause::worst(&pods_of(pods, job));
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
        (Some(hold), Some(deployment)) if hold.condition == CONDITION => {
            let running = running(deployment, pods);
            if running.state == State::Failed {
                return running;
            }
            Finding::waiting(CONDITION, hold.reason, format!("{}; the running pods are kept", hold.message))
        }
        (_, Some(deployment)) => running(deployment, pods),
        (None, None) => Finding::waiting(CONDITION, Reason::RolloutInProgress, "no Deployment yet"),
    }
}

/// What the Deployment controller says.
struct Progress<'a> {
    desired: i32,
    status: &'a DeploymentStatus,
    is_observed: bool,
}

impl<'a> Progress<'a> {
    fn of(deployment: &'a Deployment) -> Self {
        let status = &deployment.status;
        Self {
            desired: deployment.spec.replicas.unwrap_or(1),
            is_observed: status.observed_generation >= deployment.metadata.generation,
            status,
        }
    }

    fn available(&self) -> i32 {
        self.status.available_replicas.unwrap_or(0)
    }

    fn is_done(&self) -> bool {
        let updated = self.status.updated_replicas.unwrap_or(0);
        self.is_observed
            && updated >= self.desired
            && self.available() >= self.desired
            && self.status.replicas.unwrap_or(0) <= updated
    }

    fn condition(&self, type_: &str, status: &str) -> Option<&DeploymentCondition> {
        let mut conditions = self.status.conditions.iter().flatten();
        conditions.find(|c| c.type_ == type_ && c.status == status).filter(|_| self.is_observed)
    }

    fn is_late(&self) -> bool {
        self.condition("Progressing", "False")
            .is_some_and(|c| c.reason.as_deref() == Some("ProgressDeadlineExceeded"))
    }

    /// The rollout was complete once, and no pod of it serves any more.
    fn is_down(&self) -> bool {
        self.available() == 0
            && self
                .condition("Progressing", "True")
                .is_some_and(|c| c.reason.as_deref() == Some("NewReplicaSetAvailable"))
    }
}

/// What the pods run, which is not what the spec says while they are held back.
fn image(deployment: &Deployment) -> &str {
    let main = deployment.metadata.name.as_deref().unwrap_or_default();
    deployment.spec.template.image(main).unwrap_or_default()
}

fn running(deployment: &Deployment, pods: &[&Pod]) -> Finding {
    let progress = Progress::of(deployment);
    let desired = progress.desired;
    if progress.is_done() {
        let image = image(deployment);
        let message = match desired {
            0 => "scaled to zero".to_owned(),
            1 => format!("1 pod runs {image}"),
            n => format!("{n} pods run {image}"),
        };
        return Finding::good(CONDITION, message);
    }
    let name = deployment.name_any();
    let mut own = pods_of(pods, &name);
    // Evicted pods stay as objects and have been replaced.
    own.retain(|pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        !matches!(phase, Some("Failed" | "Succeeded"))
    });
    let cause = cause::worst(&own);
    if let Some(Cause { weight: Weight::Failure, reason, text }) = cause {
        return Finding::failed(CONDITION, reason, text);
    }
    if let Some(refused) = progress.condition("ReplicaFailure", "True") {
        let message = refused.message.as_deref().unwrap_or_default();
        // The name of the pod that could not be created differs at every try.
        let message = message.split_once("\" is forbidden: ").map_or(message, |(_, rest)| rest);
        let is_quota = message.starts_with("exceeded quota");
        let reason = if is_quota { Reason::QuotaExceeded } else { Reason::PodsRefused };
        return Finding::failed(CONDITION, reason, format!("{name}: pods cannot be created: {message}"));
    }
    let available = progress.available();
    let count = format!("{name}: {available} of {desired} pods are available");
    match (cause, progress.is_late()) {
        (Some(cause), true) => Finding::failed(CONDITION, cause.reason, cause.text),
        (Some(cause), false) => Finding::waiting(CONDITION, cause.reason, cause.text),
        (None, true) => {
            let pod = cause::not_ready(&own).map(|pod| format!("; {pod}")).unwrap_or_default();
            let message = format!("{count} and the deadline of the rollout has passed{pod}");
            Finding::failed(CONDITION, Reason::ProgressDeadlineExceeded, message)
        }
        (None, false) if progress.is_down() => {
            let pod = cause::not_ready(&own).map(|pod| format!("; {pod}")).unwrap_or_default();
            Finding::failed(CONDITION, Reason::PodsNotReady, format!("{count}{pod}"))
        }
        (None, false) => Finding::waiting(CONDITION, Reason::RolloutInProgress, count),
    }
}

/// Pods whose instance label is `instance`: the Deployment's or one Job's.
fn pods_of<'a>(pods: &[&'a Pod], instance: &str) -> Vec<&'a Pod> {
    let is_of = |pod: &&&Pod| {
        pod.labels().get("app.kubernetes.io/instance").is_some_and(|value| value == instance)
            && pod.metadata.deletion_timestamp.is_none()
    };
    pods.iter().filter(is_of).copied().collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;

    fn deployment(status: &Value) -> Deployment {
        serde_json::from_value(json!({
            "metadata": {"name": "orders", "generation": 2},
            "spec": {"replicas": 2, "selector": {}, "template": {"spec": {"containers": [
                {"name": "proxy", "image": "r.test/p:1"}, {"name": "orders", "image": "r.test/o:1"}]}}},
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
        finding(Some(&deployment(status)), &HookState::Done, &[], &pods)
    }

    fn starting() -> Value {
        json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 1})
    }

    #[rstest]
    #[case::crash_loop(
        container(&json!({"waiting": {"reason": "CrashLoopBackOff"}}), &json!({"terminated": {"exitCode": 1}}), 3),
        State::Failed, Reason::CrashLoopBackOff, "orders-a: CrashLoopBackOff (exit 1), 3 restarts"
    )]
    #[case::between_two_crashes(
        container(&json!({"running": {}}), &json!({"terminated": {"exitCode": 1}}), 3),
        State::Failed, Reason::CrashLoopBackOff, "orders-a: CrashLoopBackOff (exit 1), 3 restarts"
    )]
    #[case::success_that_is_started_again(
        container(&json!({"waiting": {"reason": "CrashLoopBackOff"}}), &json!({"terminated": {"exitCode": 0, "reason": "Completed"}}), 3),
        State::Failed, Reason::CrashLoopBackOff, "orders-a: CrashLoopBackOff (exit 0), 3 restarts"
    )]
    #[case::between_two_successes(
        container(&json!({"running": {}}), &json!({"terminated": {"exitCode": 0, "reason": "Completed"}}), 3),
        State::Failed, Reason::CrashLoopBackOff, "orders-a: CrashLoopBackOff (exit 0), 3 restarts"
    )]
    #[case::first_success(
        container(&json!({"terminated": {"exitCode": 0, "reason": "Completed"}}), &json!({}), 0),
        State::Waiting, Reason::RolloutInProgress, "orders: 1 of 2 pods are available"
    )]
    #[case::first_crash(
        container(&json!({"terminated": {"exitCode": 1}}), &json!({}), 0),
        State::Failed, Reason::ContainerFailed, "orders-a: Terminated (exit 1)"
    )]
    #[case::out_of_memory(
        container(&json!({"terminated": {"exitCode": 137, "reason": "OOMKilled"}}), &json!({}), 1),
        State::Failed, Reason::OOMKilled, "orders-a: OOMKilled, 1 restart"
    )]
    #[case::image(
        container(&json!({"waiting": {"reason": "ErrImagePull", "message": "at 12:00"}}), &json!({}), 0),
        State::Failed, Reason::ImagePullBackOff, "orders-a: ImagePullBackOff (image r.test/o:1)"
    )]
    #[case::image_later(
        container(&json!({"waiting": {"reason": "ImagePullBackOff", "message": "at 12:01"}}), &json!({}), 0),
        State::Failed, Reason::ImagePullBackOff, "orders-a: ImagePullBackOff (image r.test/o:1)"
    )]
    #[case::no_such_command(
        container(&json!({"waiting": {"reason": "RunContainerError", "message": "container 1a2b"}}), &json!({}), 0),
        State::Failed, Reason::ContainerFailed, "orders-a: RunContainerError"
    )]
    #[case::key_of_a_secret(
        container(&json!({"waiting": {"reason": "CreateContainerConfigError", "message": "couldn't find key k in Secret shop/s"}}), &json!({}), 0),
        State::Waiting, Reason::CreateContainerConfigError, "orders-a: CreateContainerConfigError: couldn't find key k in Secret shop/s"
    )]
    #[case::unschedulable(
        json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes are available"}]}),
        State::Waiting, Reason::Unschedulable, "orders-a: Unschedulable: 0/1 nodes are available"
    )]
    #[case::starting(
        container(&json!({"waiting": {"reason": "ContainerCreating"}}), &json!({}), 0),
        State::Waiting, Reason::RolloutInProgress, "orders: 1 of 2 pods are available"
    )]
    fn an_unavailable_workload_names_the_pod_and_the_cause(
        #[case] status: Value,
        #[case] state: State,
        #[case] reason: Reason,
        #[case] message: &str,
    ) {
        let finding = judged(&starting(), &[pod("orders-a", "orders", &status)]);
        assert_eq!((finding.state, finding.reason, finding.message.as_str()), (state, reason, message));
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
        assert_eq!(first.message, "orders-b: CrashLoopBackOff (exit 1), 3 restarts");
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
        assert_eq!((finding.state, finding.reason), (State::Failed, Reason::QuotaExceeded));
        status["conditions"][0]["message"] =
            json!("pods \"orders-7f9c-x2x4z\" is forbidden: violates PodSecurity \"restricted\"");
        let finding = judged(&status, &[]);
        assert_eq!(
            (finding.reason, finding.message.as_str()),
            (Reason::PodsRefused, "orders: pods cannot be created: violates PodSecurity \"restricted\"")
        );
    }

    #[test]
    fn what_was_waited_for_in_vain_is_a_failure_after_the_deadline() {
        let mut status = starting();
        status["conditions"] =
            json!([{"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}]);
        let late = "orders: 1 of 2 pods are available and the deadline of the rollout has passed";
        let bare = judged(&status, &[]);
        assert_eq!((bare.state, bare.reason), (State::Failed, Reason::ProgressDeadlineExceeded));
        assert_eq!(bare.message, late);
        let sick = pod("orders-a", "orders", &container(&json!({"running": {}}), &json!({}), 0));
        assert_eq!(
            judged(&status, &[sick]).message,
            format!("{late}; orders-a: runs and does not pass its readiness check")
        );
        let pending = json!({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"}]});
        let unschedulable = judged(&status, &[pod("orders-a", "orders", &pending)]);
        assert_eq!((unschedulable.state, unschedulable.reason), (State::Failed, Reason::Unschedulable));
    }

    #[test]
    fn availability_is_withdrawn_when_pods_fail_later() {
        let mut status = json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2,
            "conditions": [{"type": "Progressing", "status": "True", "reason": "NewReplicaSetAvailable"}]});
        assert_eq!(judged(&status, &[]).state, State::Good);
        status["availableReplicas"] = json!(1);
        assert_eq!(judged(&status, &[]).state, State::Waiting);
        status["availableReplicas"] = json!(0);
        let sick = pod("orders-a", "orders", &container(&json!({"running": {}}), &json!({}), 0));
        let down = judged(&status, &[sick]);
        assert_eq!((down.state, down.reason), (State::Failed, Reason::PodsNotReady));
        assert_eq!(
            down.message,
            "orders: 0 of 2 pods are available; orders-a: runs and does not pass its readiness check"
        );
    }

    #[test]
    fn an_evicted_pod_that_was_replaced_is_no_cause() {
        let mut evicted = container(&json!({"terminated": {"exitCode": 137}}), &json!({}), 0);
        evicted["phase"] = json!("Failed");
        let finding = judged(&starting(), &[pod("orders-a", "orders", &evicted)]);
        assert_eq!(finding.reason, Reason::RolloutInProgress);
    }

    #[test]
    fn pods_matter_only_where_something_is_to_be_explained() {
        let done = deployment(
            &json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}),
        );
        assert!(is_settled(Some(&done), &HookState::Done));
        assert!(is_settled(None, &HookState::Held));
        assert!(!is_settled(Some(&deployment(&starting())), &HookState::Done));
        let runs = HookState::Running { hook: "m".to_owned(), job: "j".to_owned() };
        assert!(!is_settled(Some(&done), &runs));
    }

    #[test]
    fn a_failed_hook_stalls_with_what_its_last_pod_said() {
        let failed = HookState::Failed {
            hook: "migrate".to_owned(),
            job: "orders-migrate-1".to_owned(),
            reason: "BackoffLimitExceeded".to_owned(),
        };
        let ended = |name: &str, at: &str, log: &str| {
            let state = json!({"terminated": {"exitCode": 2, "reason": "Error", "message": log}});
            let mut pod = pod(name, "orders-migrate-1", &container(&state, &json!({}), 0));
            pod.metadata.creation_timestamp = serde_json::from_value(json!(at)).unwrap();
            pod
        };
        let last = ended("orders-migrate-1-a", "2026-01-01T00:01:00Z", "starting\nno such table\n");
        let first = ended("orders-migrate-1-b", "2026-01-01T00:00:00Z", "timeout\n");
        let with_pod = finding(None, &failed, &[], &[&last, &first]);
        assert_eq!(with_pod.state, State::Stalled);
        assert_eq!(
            with_pod.message,
            "hook migrate (Job orders-migrate-1) failed: orders-migrate-1-a: exit 2: no such table; change the image or the hook to run it again"
        );
        let without = finding(None, &failed, &[], &[]);
        assert!(without.message.contains("failed: BackoffLimitExceeded"), "{}", without.message);
    }

    #[test]
    fn what_is_missing_holds_the_first_rollout_and_keeps_a_running_one() {
        let hold = Finding::waiting(CONDITION, Reason::ReferenceMissing, "Secret s does not exist");
        let first = finding(None, &HookState::Held, std::slice::from_ref(&hold), &[]);
        assert_eq!(first.message, "Secret s does not exist");
        let good =
            json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2});
        let judge = |status: &Value, hold: &Finding, pods: &[&Pod]| {
            finding(Some(&deployment(status)), &HookState::Held, std::slice::from_ref(hold), pods)
        };
        let later = judge(&good, &hold, &[]);
        assert_eq!(later.message, "Secret s does not exist; the running pods are kept");
        assert_eq!(later.state, State::Waiting);

        // What is missing hides no failure of what runs.
        let crash = container(&json!({}), &json!({"terminated": {"exitCode": 1}}), 3);
        let crashed = judge(&starting(), &hold, &[&pod("orders-a", "orders", &crash)]);
        assert_eq!((crashed.state, crashed.reason), (State::Failed, Reason::CrashLoopBackOff));
        // Nor does the spec say what runs.
        let database = Finding::waiting(types::DATABASES_READY, Reason::DatabaseNotReady, "server down");
        assert_eq!(judge(&good, &database, &[]).message, "2 pods run r.test/o:1");
    }
}
