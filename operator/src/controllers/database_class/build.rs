//! The children of a class with an embedded server: one pod with one volume.
//! Its connections are not encrypted; it is for development.

use std::collections::BTreeMap;

use k8s_openapi::{
    ByteString,
    api::{
        apps::v1::{StatefulSet, StatefulSetPersistentVolumeClaimRetentionPolicy, StatefulSetSpec},
        core::v1::{
            Capabilities, Container, ContainerPort, EmptyDirVolumeSource, ExecAction, KeyToPath, Lifecycle,
            LifecycleHandler, PersistentVolumeClaim, PersistentVolumeClaimSpec, PodSecurityContext, PodSpec,
            PodTemplateSpec, Probe, ResourceRequirements, SeccompProfile, Secret, SecretVolumeSource,
            SecurityContext, Service, ServicePort, ServiceSpec, TCPSocketAction, Volume, VolumeMount,
            VolumeResourceRequirements,
        },
    },
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use kube::api::ObjectMeta;
use peristyle_crds::v1alpha1::database_class::{Embedded, Storage};

use super::target::{EMBEDDED_ADMIN, EMBEDDED_PORT};
use crate::{credentials::PASSWORD, metadata::Owner, sql::password::Password};

const DATA: &str = "/var/lib/postgresql/data";
/// A folder below the volume: a volume's root may hold `lost+found`.
const CLUSTER: &str = "/var/lib/postgresql/data/cluster";
const ADMIN: &str = "/run/admin";

/// Makes the cluster once. It is made aside and moved, so that one whose
/// making was interrupted is never started. `$0` is the folder of the programs;
/// the password is read from a file, which no process list shows.
const MAKE_CLUSTER: &str = r#"if [ ! -s "$1/cluster/PG_VERSION" ]; then
  rm -rf "$1/new"
  "$0/initdb" -D "$1/new" --username="$2" --pwfile="$3" --auth=scram-sha-256 --encoding=UTF8 --no-locale
  echo 'host all all all scram-sha-256' >> "$1/new/pg_hba.conf"
  mv "$1/new" "$1/cluster"
fi
"#;

/// The administrator's Secret.
#[must_use]
pub fn secret(owner: &Owner, name: &str, password: &Password) -> Secret {
    let data = [("username", EMBEDDED_ADMIN), (PASSWORD, password.expose())]
        .map(|(key, value)| (key.to_owned(), ByteString(value.as_bytes().to_vec())));
    Secret {
        metadata: owner.child(name),
        type_: Some("kubernetes.io/basic-auth".to_owned()),
        data: Some(data.into()),
        ..Secret::default()
    }
}

/// The address of the server.
#[must_use]
pub fn service(owner: &Owner, name: &str) -> Service {
    Service {
        metadata: owner.child(name),
        spec: Some(ServiceSpec {
            selector: Some(owner.selector()),
            ports: Some(vec![ServicePort {
                name: Some("postgresql".to_owned()),
                port: EMBEDDED_PORT,
                target_port: Some(IntOrString::String("postgresql".to_owned())),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        ..Service::default()
    }
}

/// The server.
#[must_use]
pub fn stateful_set(owner: &Owner, name: &str, embedded: &Embedded) -> StatefulSet {
    StatefulSet {
        metadata: owner.child(name),
        spec: Some(StatefulSetSpec {
            replicas: Some(1),
            service_name: Some(name.to_owned()),
            selector: LabelSelector { match_labels: Some(owner.selector()), ..LabelSelector::default() },
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(owner.labels()), ..ObjectMeta::default() }),
                spec: Some(pod(name, embedded)),
            },
            volume_claim_templates: embedded.storage.as_ref().map(|storage| vec![claim(storage)]),
            // The administrator's password ends with the class, so must the data that knows it.
            persistent_volume_claim_retention_policy: embedded.storage.as_ref().map(|_| {
                StatefulSetPersistentVolumeClaimRetentionPolicy {
                    when_deleted: Some("Delete".to_owned()),
                    when_scaled: Some("Retain".to_owned()),
                }
            }),
            ..StatefulSetSpec::default()
        }),
        ..StatefulSet::default()
    }
}

fn pod(name: &str, embedded: &Embedded) -> PodSpec {
    let empty = |name: &str| Volume {
        name: name.to_owned(),
        empty_dir: Some(EmptyDirVolumeSource::default()),
        ..Volume::default()
    };
    let mut volumes = vec![
        empty("tmp"),
        Volume {
            name: "admin".to_owned(),
            secret: Some(SecretVolumeSource {
                secret_name: Some(name.to_owned()),
                items: Some(vec![KeyToPath {
                    key: PASSWORD.to_owned(),
                    path: PASSWORD.to_owned(),
                    mode: Some(0o440),
                }]),
                ..SecretVolumeSource::default()
            }),
            ..Volume::default()
        },
    ];
    if embedded.storage.is_none() {
        volumes.push(empty("data"));
    }
    PodSpec {
        automount_service_account_token: Some(false),
        enable_service_links: Some(false),
        security_context: Some(PodSecurityContext {
            run_as_non_root: Some(true),
            run_as_user: Some(embedded.user),
            run_as_group: Some(embedded.user),
            fs_group: Some(embedded.user),
            // The server refuses a folder that the group may write.
            fs_group_change_policy: Some("OnRootMismatch".to_owned()),
            seccomp_profile: Some(SeccompProfile {
                type_: "RuntimeDefault".to_owned(),
                ..SeccompProfile::default()
            }),
            ..PodSecurityContext::default()
        }),
        init_containers: Some(vec![initdb(embedded)]),
        containers: vec![server(embedded)],
        volumes: Some(volumes),
        ..PodSpec::default()
    }
}

fn initdb(embedded: &Embedded) -> Container {
    let password = format!("{ADMIN}/{PASSWORD}");
    let command = ["/bin/sh", "-euc", MAKE_CLUSTER, &embedded.bin_dir, DATA, EMBEDDED_ADMIN, &password];
    Container {
        name: "initdb".to_owned(),
        command: Some(command.map(ToOwned::to_owned).into()),
        volume_mounts: Some(vec![mount("data", DATA), mount("tmp", "/tmp"), mount("admin", ADMIN)]),
        ..container(embedded)
    }
}

fn server(embedded: &Embedded) -> Container {
    let program = |name: &str| format!("{}/{name}", embedded.bin_dir);
    let command = [
        &*program("postgres"),
        "-D",
        CLUSTER,
        "-c",
        "listen_addresses=*",
        "-c",
        "unix_socket_directories=/tmp",
    ];
    let stop = [&*program("pg_ctl"), "stop", "-D", CLUSTER, "-m", "fast"];
    Container {
        name: "postgres".to_owned(),
        command: Some(command.map(ToOwned::to_owned).into()),
        ports: Some(vec![ContainerPort {
            name: Some("postgresql".to_owned()),
            container_port: EMBEDDED_PORT,
            ..ContainerPort::default()
        }]),
        readiness_probe: Some(Probe {
            tcp_socket: Some(TCPSocketAction {
                port: IntOrString::String("postgresql".to_owned()),
                ..TCPSocketAction::default()
            }),
            period_seconds: Some(2),
            ..Probe::default()
        }),
        lifecycle: Some(Lifecycle {
            // On SIGTERM the server waits for its clients to leave.
            pre_stop: Some(LifecycleHandler {
                exec: Some(ExecAction { command: Some(stop.map(ToOwned::to_owned).into()) }),
                ..LifecycleHandler::default()
            }),
            ..Lifecycle::default()
        }),
        volume_mounts: Some(vec![mount("data", DATA), mount("tmp", "/tmp")]),
        ..container(embedded)
    }
}

/// What both containers have in common.
fn container(embedded: &Embedded) -> Container {
    let requests: BTreeMap<String, Quantity> = [("cpu", "50m"), ("memory", "128Mi")]
        .map(|(name, quantity)| (name.to_owned(), Quantity(quantity.to_owned())))
        .into();
    Container {
        image: Some(embedded.image.clone()),
        image_pull_policy: Some("IfNotPresent".to_owned()),
        resources: Some(ResourceRequirements { requests: Some(requests), ..ResourceRequirements::default() }),
        security_context: Some(SecurityContext {
            allow_privilege_escalation: Some(false),
            read_only_root_filesystem: Some(true),
            capabilities: Some(Capabilities {
                drop: Some(vec!["ALL".to_owned()]),
                ..Capabilities::default()
            }),
            ..SecurityContext::default()
        }),
        ..Container::default()
    }
}

fn mount(volume: &str, path: &str) -> VolumeMount {
    VolumeMount { name: volume.to_owned(), mount_path: path.to_owned(), ..VolumeMount::default() }
}

fn claim(storage: &Storage) -> PersistentVolumeClaim {
    let size = [("storage".to_owned(), Quantity(storage.size.clone()))];
    PersistentVolumeClaim {
        metadata: ObjectMeta { name: Some("data".to_owned()), ..ObjectMeta::default() },
        spec: Some(PersistentVolumeClaimSpec {
            access_modes: Some(vec!["ReadWriteOnce".to_owned()]),
            storage_class_name: storage.storage_class_name.clone(),
            resources: Some(VolumeResourceRequirements {
                requests: Some(size.into()),
                ..VolumeResourceRequirements::default()
            }),
            ..PersistentVolumeClaimSpec::default()
        }),
        ..PersistentVolumeClaim::default()
    }
}
