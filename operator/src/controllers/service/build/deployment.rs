//! The Deployment.

use k8s_openapi::{
    api::{
        apps::v1::{Deployment, DeploymentSpec, DeploymentStrategy, RollingUpdateDeployment},
        core::v1::{
            ContainerPort, Lifecycle, LifecycleHandler, PodSpec, PodTemplateSpec, SleepAction,
            TopologySpreadConstraint,
        },
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};
use peristyle_crds::v1alpha1::{
    Service,
    service::{Port, Protocol},
};

use super::pod;
use crate::{
    controllers::service::validate::{Validated, Workload, probe::Probes},
    metadata::Owner,
};

/// Longer than the time in which the edge and kube-proxy learn that a pod goes.
const PRE_STOP_SECONDS: i64 = 5;
const GRACE_SECONDS: i64 = 30;
/// A pod that dies right after its first successful check does not count.
const MIN_READY_SECONDS: i32 = 1;
const PROGRESS_DEADLINE_SECONDS: i32 = 300;
const REVISIONS: i32 = 3;

/// The pods of the workload.
#[must_use]
pub fn deployment(
    owner: &Owner,
    service: &Service,
    validated: &Validated,
    workload: &Workload,
) -> Deployment {
    let selector = LabelSelector { match_labels: Some(owner.selector()), match_expressions: None };
    Deployment {
        metadata: owner.child(&*owner.name),
        spec: Some(DeploymentSpec {
            replicas: Some(validated.replicas),
            selector: selector.clone(),
            min_ready_seconds: Some(MIN_READY_SECONDS),
            progress_deadline_seconds: Some(PROGRESS_DEADLINE_SECONDS),
            revision_history_limit: Some(REVISIONS),
            strategy: Some(DeploymentStrategy {
                type_: Some("RollingUpdate".to_owned()),
                rolling_update: Some(RollingUpdateDeployment {
                    max_surge: Some(IntOrString::String("25%".to_owned())),
                    max_unavailable: Some(IntOrString::Int(0)),
                }),
            }),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(owner.labels()), ..ObjectMeta::default() }),
                spec: Some(PodSpec {
                    termination_grace_period_seconds: Some(GRACE_SECONDS),
                    topology_spread_constraints: Some(vec![TopologySpreadConstraint {
                        max_skew: 1,
                        topology_key: "kubernetes.io/hostname".to_owned(),
                        when_unsatisfiable: "ScheduleAnyway".to_owned(),
                        label_selector: Some(selector),
                        ..TopologySpreadConstraint::default()
                    }]),
                    ..main_pod(owner, service, validated, workload)
                }),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

fn main_pod(owner: &Owner, service: &Service, validated: &Validated, workload: &Workload) -> PodSpec {
    let some = |list: &[String]| (!list.is_empty()).then(|| list.to_vec());
    let mut container = pod::container(owner, service, workload.env.clone());
    container.command = some(&service.spec.command);
    container.args = some(&service.spec.args);
    container.ports = Some(validated.ports.iter().map(container_port).collect());
    let Probes { startup, readiness, liveness } = workload.probes.clone();
    container.startup_probe = startup;
    container.readiness_probe = readiness;
    container.liveness_probe = liveness;
    container.lifecycle = Some(Lifecycle {
        pre_stop: Some(LifecycleHandler {
            sleep: Some(SleepAction { seconds: PRE_STOP_SECONDS }),
            ..LifecycleHandler::default()
        }),
        ..Lifecycle::default()
    });
    pod::pod(owner, container)
}

fn container_port(port: &Port) -> ContainerPort {
    let protocol = match port.protocol() {
        Protocol::Grpc | Protocol::Http | Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
    };
    ContainerPort {
        name: Some(port.name.clone()),
        container_port: port.port,
        protocol: Some(protocol.to_owned()),
        ..ContainerPort::default()
    }
}
