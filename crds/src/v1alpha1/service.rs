//! `Service`: one workload with everything that makes it run and be reached.

pub mod access;
pub mod env;
pub mod health;
pub mod lifetime;

use std::collections::BTreeMap;

use k8s_openapi::{
    api::core::v1::ResourceRequirements,
    apimachinery::pkg::{api::resource::Quantity, apis::meta::v1::Condition},
};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::{
    access::{Access, AccessMode, Inbound, Outbound},
    env::{EnvFrom, EnvSource, EnvVar, FieldRef, KeyRef, ResourceFieldRef, SourceRef},
    health::{ExecCheck, GrpcCheck, Health, HttpCheck, Probe, ProbeMode, TcpCheck},
    lifetime::{Availability, Disruption, PreStop, RestartOn, Shutdown},
};
use super::PathMatch;
use crate::duration::Duration;

/// What a Service runs and how it is reached.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "peristyle.dev",
    version = "v1alpha1",
    kind = "Service",
    namespaced,
    status = "ServiceStatus",
    shortname = "psvc",
    category = "peristyle",
    derive = "PartialEq",
    doc = "One workload: its Deployment, core Service, NetworkPolicy, migrations and routes.",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Replicas", type_ = "string", json_path = ".status.pods"),
    printcolumn(name = "URL", type_ = "string", json_path = ".status.url"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.image", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].message", priority = 1),
    validation = ("self.metadata.name.matches('^[a-z]([-a-z0-9]{0,48}[a-z0-9])?$')",
        "metadata.name: at most 50 lower case letters, digits and '-', starting with a letter, as the core Service of this name needs")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("!has(self.expose) || self.expose.all(e, !has(e.port) || (has(self.ports) ? self.ports.exists(p, p.name == e.port) : e.port == 'grpc'))",
        "spec.expose[].port must be the name of one of spec.ports"),
    validation = ("!has(self.hooks) || !has(self.hooks.preRollout) || self.hooks.preRollout.all(h, !has(h.database) || (has(self.databases) && self.databases.exists(d, d.name == h.database)))",
        "spec.hooks.preRollout[].database must be the name of one of spec.databases")
)]
pub struct ServiceSpec {
    /// Container image of the workload, with a tag or a digest.
    #[schemars(length(min = 1, max = 1024))]
    pub image: String,

    /// Replaces the image's entry point; not run in a shell. Default: the image's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub command: Vec<String>,

    /// Replaces the image's arguments. Default: the image's; none where `command` is set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub args: Vec<String>,

    /// Ports on which the workload listens. Default: one gRPC port `grpc`, 50051.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub ports: Vec<Port>,

    /// Number of pods. Default: set by the platform team for the operator (2). 0 stops the workload.
    /// `kubectl scale` changes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: Option<i32>,

    /// CPU and memory, as of a container. Default: nothing is requested or limited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resources: Option<Resources>,

    /// Environment variables. Names that the operator sets (`PORT`, those of databases and
    /// dependencies) are refused. Default: only those.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub env: Vec<EnvVar>,

    /// Secrets and ConfigMaps whose every key becomes an environment variable; later ones win.
    /// Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub env_from: Vec<EnvFrom>,

    /// Whether pods are replaced when what they read at their start changes. Default: Config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_on: Option<RestartOn>,

    /// Probes. Default: by protocol of the ports, gRPC health on the first GRPC port, else
    /// GET /healthz (live) and /readyz (ready) on the first HTTP port, else a TCP connect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub health: Option<Health>,

    /// Services that this one calls; each sets `<NAME>_URL` and opens the connection. A Service of
    /// another namespace must list this one in its `access.inbound`. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub depends_on: Vec<Dependency>,

    /// Databases that this Service uses. The Deployment waits until each has credentials.
    /// Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub databases: Vec<DatabaseBinding>,

    /// Who may connect to the pods, and where they may connect to. Default: `mode: Isolated`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<Access>,

    /// Routes from outside the cluster. A route exists only while its policy is live.
    /// Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub expose: Vec<Expose>,

    /// Commands that run around a rollout. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hooks: Option<Hooks>,

    /// How a pod stops. Default: it serves on for 5 s, and is killed after 30 s in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown: Option<Shutdown>,

    /// How the pods survive the maintenance and the loss of nodes. Default: spread over nodes, of
    /// which a drain takes one pod at a time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub availability: Option<Availability>,

    /// Stops the operator from changing anything but what protects: routes whose policy is gone are
    /// still withdrawn, and the NetworkPolicy is still kept. Default: false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,
}

impl ServiceSpec {
    /// Whether connections are restricted, with the default.
    #[must_use]
    pub fn access_mode(&self) -> AccessMode {
        self.access.as_ref().and_then(|access| access.mode).unwrap_or_default()
    }
}

/// A port of the workload and of its core Service.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// Name, unique in the Service.
    #[schemars(length(min = 1, max = 15), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Port on which the container listens.
    #[schemars(range(min = 1, max = 65535))]
    pub port: i32,
    /// What is spoken there. Default: GRPC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Port of the core Service. Default: the same as `port`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub service_port: Option<i32>,
}

impl Port {
    /// The protocol with its default.
    #[must_use]
    pub fn protocol(&self) -> Protocol {
        self.protocol.unwrap_or_default()
    }

    /// The port of the core Service with its default.
    #[must_use]
    pub fn service_port(&self) -> i32 {
        self.service_port.unwrap_or(self.port)
    }
}

/// What is spoken on a port. Default: GRPC.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Protocol {
    /// gRPC over HTTP/2 without TLS (`appProtocol: kubernetes.io/h2c`).
    #[default]
    #[serde(rename = "GRPC")]
    Grpc,
    /// HTTP/1.1.
    #[serde(rename = "HTTP")]
    Http,
    /// Any other protocol over TCP.
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP.
    #[serde(rename = "UDP")]
    Udp,
}

/// Requests and limits by resource name, in Kubernetes quantities.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Resources {
    /// What the scheduler reserves, for example `cpu: 50m`, `memory: 64Mi`. Default: nothing, or
    /// what `limits` says.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub requests: BTreeMap<String, Quantity>,
    /// What the container may use at most. Default: all that the node has.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub limits: BTreeMap<String, Quantity>,
}

impl From<&Resources> for ResourceRequirements {
    fn from(resources: &Resources) -> Self {
        let some = |map: &BTreeMap<String, Quantity>| (!map.is_empty()).then(|| map.clone());
        Self { requests: some(&resources.requests), limits: some(&resources.limits), claims: None }
    }
}

/// A Service that this one calls.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[x_kube(
    validation = ("has(self.service) != has(self.url)", "set exactly one of service and url"),
    validation = ("!has(self.namespace) || has(self.service)", "namespace goes with service")
)]
pub struct Dependency {
    /// Names the variable: `payments` sets `PAYMENTS_URL`.
    #[schemars(length(min = 1, max = 50), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// A `services.peristyle.dev`; its first port is called. Default: none, `url` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub service: Option<String>,
    /// Namespace of `service`. Default: the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub namespace: Option<String>,
    /// Address of something that Peristyle does not run; put into the variable as it is.
    /// Default: none, `service` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 2048))]
    pub url: Option<String>,
}

/// A Database of the same namespace and how the workload receives it.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct DatabaseBinding {
    /// Name within this Service; hooks refer to it.
    #[schemars(length(min = 1, max = 50), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Name of the Database object.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"))]
    pub database: String,
    /// Role to log in with. Default: Writer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<BindingRole>,
    /// How the credentials reach the container. Default: the variable `DATABASE_URL`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inject: Option<Inject>,
}

impl DatabaseBinding {
    /// The role with its default.
    #[must_use]
    pub fn role(&self) -> BindingRole {
        self.role.unwrap_or_default()
    }

    /// Name of the variable with its default.
    #[must_use]
    pub fn env(&self) -> &str {
        self.inject.as_ref().and_then(|i| i.env.as_deref()).unwrap_or("DATABASE_URL")
    }
}

/// Role to log in with; the owner is for hooks only. Default: Writer.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum BindingRole {
    /// Reads and writes rows.
    #[default]
    Writer,
    /// Reads rows.
    Reader,
}

/// How credentials reach the container.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Inject {
    /// Variable that receives the connection URI. Default: `DATABASE_URL`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128), regex(pattern = r"^[A-Z_][A-Z0-9_]*$"))]
    pub env: Option<String>,
}

/// A route from outside the cluster.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Expose {
    /// Name, unique in the Service; AuthPolicies refer to it.
    #[schemars(length(min = 1, max = 40), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Name of the port. Default: the first port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    pub port: Option<String>,
    /// Name of the EdgeClass. Default: the class annotated as default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub class_name: Option<String>,
    /// Host names. Default: the one that the EdgeClass's template yields.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(
            length(min = 1, max = 253),
            regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
        )
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub hosts: Vec<String>,
    /// Paths that are served. Default: everything (`prefix: /`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub paths: Vec<PathMatch>,
    /// Who may call. Default: `mode: Required`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<ExposeAuth>,
}

impl Expose {
    /// The mode with its default.
    #[must_use]
    pub fn auth_mode(&self) -> AuthMode {
        self.auth.as_ref().map_or(AuthMode::Required, |auth| auth.mode)
    }
}

/// Protection of a route.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct ExposeAuth {
    /// `Required`: withheld until an AuthPolicy is live. `Public`: open to everyone.
    pub mode: AuthMode,
}

/// Whether a route needs a policy.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum AuthMode {
    /// The route exists only while an AuthPolicy that targets it is live.
    #[default]
    Required,
    /// Everyone may call.
    Public,
}

/// Commands around a rollout.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Hooks {
    /// Run in order, each as a Job, before pods of a new image start. Once per image and hook.
    /// Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub pre_rollout: Vec<Hook>,
}

/// One command in the Service's own image.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
pub struct Hook {
    /// Name, part of the Job's name.
    #[schemars(length(min = 1, max = 20), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Command and arguments; not run in a shell.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub command: Vec<String>,
    /// One of `spec.databases`: its variable then holds the owner's credentials, not the workload's.
    /// Default: all variables are the workload's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 50))]
    pub database: Option<String>,
    /// How long the command may take. Default: 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
}

/// What the operator observed.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// Generation of the spec that this status speaks of; -1 before the first look.
    #[serde(default)]
    pub observed_generation: i64,
    /// Pods that exist.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Pods that are ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_replicas: Option<i32>,
    /// Pods that are ready, of those that should run: `1/2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<String>,
    /// Labels of the pods, as a selector; for the scale subresource.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<String>,
    /// Address of the first route that is served.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// Addresses of all routes that are served.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub urls: Vec<RouteUrl>,
    /// Ready, Reconciling, Stalled, WorkloadAvailable, DatabasesReady, AccessValid, RoutesProgrammed, Advisory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Objects that exist because of this one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub inventory: Vec<InventoryItem>,
    /// What was accepted although it is odd.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub problems: Vec<Problem>,
}

/// Something odd in the spec.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct Problem {
    /// Path of the field.
    pub field: String,
    /// How much it matters.
    pub severity: Severity,
    /// What is odd, and what to do about it.
    pub message: String,
}

/// How much a problem matters.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Severity {
    /// It probably does not do what was meant.
    #[default]
    Warning,
    /// It has no effect.
    Info,
}

/// A route that is served.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct RouteUrl {
    /// Name of the expose entry.
    pub name: String,
    /// Address.
    pub url: String,
    /// Name of the EdgeClass.
    pub class: String,
}

/// An object in the same namespace that the operator keeps.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct InventoryItem {
    /// Group and version.
    pub api_version: String,
    /// Kind.
    pub kind: String,
    /// Name.
    pub name: String,
}
