//! What every pod of a Service has in common, of the workload and of hooks.

use k8s_openapi::api::core::v1::{
    Capabilities, ConfigMapEnvSource, Container, EmptyDirVolumeSource, EnvFromSource, EnvVar,
    PodSecurityContext, PodSpec, ResourceRequirements, SeccompProfile, SecretEnvSource, SecurityContext,
    Volume, VolumeMount,
};
use peristyle_crds::v1alpha1::{Service, service::EnvFrom};

use crate::metadata::Owner;

/// The main container: image, environment and the security that Pod Security
/// "restricted" asks for.
#[must_use]
pub fn container(owner: &Owner, service: &Service, env: Vec<EnvVar>) -> Container {
    let spec = &service.spec;
    let sources: Vec<_> = spec.env_from.iter().map(env_from).collect();
    Container {
        name: owner.name.clone(),
        image: Some(spec.image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        env: Some(env),
        env_from: (!sources.is_empty()).then_some(sources),
        resources: spec.resources.as_ref().map(ResourceRequirements::from),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            capabilities: Some(Capabilities { add: None, drop: Some(vec!["ALL".to_owned()]) }),
            read_only_root_filesystem: Some(true),
            ..SecurityContext::default()
        }),
        volume_mounts: Some(vec![VolumeMount {
            name: "tmp".to_owned(),
            mount_path: "/tmp".to_owned(),
            ..VolumeMount::default()
        }]),
        ..Container::default()
    }
}

/// A pod of one container.
#[must_use]
pub fn pod(owner: &Owner, container: Container) -> PodSpec {
    PodSpec {
        containers: vec![container],
        service_account_name: Some(owner.name.clone()),
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                localhost_profile: None,
            }),
            ..PodSecurityContext::default()
        }),
        volumes: Some(vec![Volume {
            name: "tmp".to_owned(),
            empty_dir: Some(EmptyDirVolumeSource::default()),
            ..Volume::default()
        }]),
        ..PodSpec::default()
    }
}

fn env_from(source: &EnvFrom) -> EnvFromSource {
    EnvFromSource {
        prefix: source.prefix.clone(),
        secret_ref: source
            .secret_ref
            .as_ref()
            .map(|secret| SecretEnvSource { name: secret.name.clone(), optional: secret.optional }),
        config_map_ref: source
            .config_map_ref
            .as_ref()
            .map(|map| ConfigMapEnvSource { name: map.name.clone(), optional: map.optional }),
    }
}
