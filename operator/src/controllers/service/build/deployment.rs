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
use peristyle_crds::{
    names::{CONFIG_HASH_ANNOTATION, CONFIG_VERSIONS_ANNOTATION},
    v1alpha1::{
        Service,
        service::{Port, Protocol},
    },
};

use super::pod;
use crate::{
    controllers::service::{
        references::ConfigStamp,
        validate::{Validated, Workload, probe::Probes},
    },
    metadata::Owner,
};

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
    config: Option<&ConfigStamp>,
) -> Deployment {
    let mut metadata = owner.child(&*owner.name);
    if let Some(stamp) = config {
        let annotations = metadata.annotations.get_or_insert_default();
        annotations.insert(CONFIG_VERSIONS_ANNOTATION.to_owned(), stamp.versions.clone());
    }
    let hash = config.map(|stamp| [(CONFIG_HASH_ANNOTATION.to_owned(), stamp.hash.clone())].into());
    let selector = LabelSelector { match_labels: Some(owner.selector()), match_expressions: None };
    Deployment {
        metadata,
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
                metadata: Some(ObjectMeta {
                    labels: Some(owner.labels()),
                    annotations: hash,
                    ..ObjectMeta::default()
                }),
                spec: Some(PodSpec {
                    termination_grace_period_seconds: Some(validated.shutdown.grace),
                    topology_spread_constraints: Some(
                        validated.spread.iter().map(|key| spread(key, &selector)).collect(),
                    ),
                    priority_class_name: service
                        .spec
                        .availability
                        .as_ref()
                        .and_then(|availability| availability.priority_class_name.clone()),
                    ..main_pod(owner, service, validated, workload)
                }),
            },
            ..DeploymentSpec::default()
        }),
        status: None,
    }
}

/// As even as there is room for.
fn spread(topology_key: &str, selector: &LabelSelector) -> TopologySpreadConstraint {
    TopologySpreadConstraint {
        max_skew: 1,
        topology_key: topology_key.to_owned(),
        when_unsatisfiable: "ScheduleAnyway".to_owned(),
        label_selector: Some(selector.clone()),
        ..TopologySpreadConstraint::default()
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
    let sleep = validated.shutdown.sleep;
    container.lifecycle = (sleep > 0).then(|| Lifecycle {
        pre_stop: Some(LifecycleHandler {
            sleep: Some(SleepAction { seconds: sleep }),
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
