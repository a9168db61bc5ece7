//! `DatabaseClass`: a database server and how the operator administers it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::LocalName;
use crate::duration::Duration;

/// A database server.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "peristyle.dev",
    version = "v1alpha1",
    kind = "DatabaseClass",
    plural = "databaseclasses",
    status = "DatabaseClassStatus",
    shortname = "dbclass",
    category = "peristyle",
    derive = "PartialEq",
    doc = "A database server on which Databases are created.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].reason"
    ),
    printcolumn(name = "Provider", type_ = "string", json_path = ".spec.provider"),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.engineVersion"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].message",
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("self.engine == oldSelf.engine && self.provider == oldSelf.provider", "spec.engine and spec.provider are immutable"),
    validation = ("(self.provider == 'External') == has(self.external)", "spec.external goes with provider External, and only with it"),
    validation = ("(self.provider == 'Embedded') == has(self.embedded)", "spec.embedded goes with provider Embedded, and only with it")
)]
pub struct DatabaseClassSpec {
    /// Database engine; immutable.
    pub engine: Engine,
    /// Who runs the server; immutable.
    pub provider: Provider,
    /// A server that exists. Default: none, `embedded` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<External>,
    /// A server that the operator runs in its own namespace. For development: one pod, no backup.
    /// Default: none, `external` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub embedded: Option<Embedded>,
    /// What Databases get that do not say otherwise. Default: as each field says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defaults: Option<Defaults>,
    /// What happens to databases in the trash. Default: they are dropped after 168h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trash: Option<Trash>,
}

/// What happens to databases that a deletion with `reclaimPolicy: Trash` left.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Trash {
    /// How long they can be restored; then they are dropped. A change also counts for those that
    /// are there already. A class that is deleted drops nothing. Default: `168h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention: Option<Duration>,
}

/// What Databases of the class get that do not say otherwise.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Defaults {
    /// How passwords change. Default: every 720h, with an overlap of 24h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<RotationDefaults>,
}

/// How passwords change.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct RotationDefaults {
    /// Time between two rotations. Default: `720h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
    /// How long the login before keeps working. Default: `24h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap: Option<Duration>,
}

/// Database engine.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Engine {
    /// PostgreSQL 14 to 18.
    #[default]
    PostgreSQL,
}

/// Who runs the server.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Provider {
    /// Somebody else.
    #[default]
    External,
    /// The operator, as a StatefulSet of one pod.
    Embedded,
}

/// A server that exists.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct External {
    /// Where workloads connect.
    pub endpoints: Endpoints,
    /// Where the operator connects as administrator, `host:port`; never a pooler.
    /// Default: `endpoints.write`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 300), regex(pattern = r"^[A-Za-z0-9.-]+:[0-9]{1,5}$"))]
    pub admin_endpoint: Option<String>,
    /// Secret in the operator's namespace with `username` and `password` of the administrator.
    pub admin_secret: LocalName,
    /// Encryption of every connection.
    pub tls: Tls,
    /// Database to which the administrator connects first. Default: `postgres`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    pub maintenance_database: Option<String>,
}

/// Addresses of the server.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Endpoints {
    /// The primary, `host:port`.
    #[schemars(length(min = 1, max = 300), regex(pattern = r"^[A-Za-z0-9.-]+:[0-9]{1,5}$"))]
    pub write: String,
}

/// Encryption of connections.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("(self.mode == 'VerifyFull') == has(self.caConfigMap)", "caConfigMap goes with mode VerifyFull, and only with it"),
    validation = ("self.mode != 'Disabled' || (has(self.allowInsecure) && self.allowInsecure == 'Enabled')",
        "mode Disabled sends passwords' proofs and data in clear: set allowInsecure: Enabled to accept that")
)]
pub struct Tls {
    /// `VerifyFull`: certificate and host name are checked. `Disabled`: no encryption.
    pub mode: TlsMode,
    /// ConfigMap in the operator's namespace with the authorities under `ca.crt` (PEM).
    /// Default: none, which `mode: VerifyFull` does not take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_config_map: Option<LocalName>,
    /// Accepts `mode: Disabled`. Default: Disabled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allow_insecure: Option<AllowInsecure>,
}

/// Mode of encryption.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum TlsMode {
    /// Certificate and host name are checked.
    #[default]
    VerifyFull,
    /// No encryption.
    Disabled,
}

/// Whether `mode: Disabled` is accepted. Default: Disabled.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum AllowInsecure {
    /// It is.
    Enabled,
    /// It is not.
    #[default]
    Disabled,
}

/// A server for development: one pod whose data ends with its volume.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Embedded {
    /// Image with PostgreSQL's server programs in `binDir`, run as `user`.
    #[schemars(length(min = 1, max = 1024))]
    pub image: String,
    /// Folder of `initdb` and `postgres` in the image.
    #[serde(rename = "binDir")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^/[A-Za-z0-9/._-]+$"))]
    pub bin_dir: String,
    /// Numeric user and group of the server's process.
    #[schemars(range(min = 1, max = 65535))]
    pub user: i64,
    /// Persistent volume; it ends with the class. Kubernetes takes a PersistentVolumeClaim that has
    /// its name already, so only those may create one in the operator's namespace who are trusted
    /// with the data. Default: an emptyDir; the data ends with the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<Storage>,
}

/// A persistent volume.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Storage {
    /// Size as a Kubernetes quantity, for example `10Gi`.
    #[schemars(length(min = 1, max = 32))]
    pub size: String,
    /// StorageClass. Default: the cluster's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub storage_class_name: Option<String>,
}

/// What the operator observed.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseClassStatus {
    /// Generation of the spec that this status speaks of; -1 before the first look.
    #[serde(default)]
    pub observed_generation: i64,
    /// Version as the server reports it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_version: Option<String>,
    /// `Superuser` or `CreateRole`: what the administrator is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub admin_mode: Option<AdminMode>,
    /// Databases of this class that exist as objects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub databases: Option<i32>,
    /// Ready, Reconciling, Stalled, ServerReachable, Advisory (what cannot be dropped from the trash).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// What the administrator is on the server.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum AdminMode {
    /// A superuser.
    Superuser,
    /// A role with CREATEROLE and CREATEDB.
    CreateRole,
}
