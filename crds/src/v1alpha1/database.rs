//! `Database`: one database with its own roles, credentials and life cycle.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::LocalName;
use crate::duration::Duration;

/// What the database is called, who may use it and what happens at its end.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "peristyle.dev",
    version = "v1alpha1",
    kind = "Database",
    namespaced,
    status = "DatabaseStatus",
    shortname = "psdb",
    category = "peristyle",
    derive = "PartialEq",
    doc = "One database on the server of a DatabaseClass, with its own roles and credentials.",
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
    printcolumn(name = "Class", type_ = "string", json_path = ".status.server.class"),
    printcolumn(name = "Database", type_ = "string", json_path = ".status.databaseName"),
    printcolumn(
        name = "Rotated",
        type_ = "date",
        json_path = ".status.roles[?(@.role=='Writer')].rotatedAt"
    ),
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
    validation = ("has(self.className) == has(oldSelf.className) && (!has(self.className) || self.className == oldSelf.className)",
        "spec.className is immutable; a database does not move between servers"),
    validation = ("has(self.name) == has(oldSelf.name) && (!has(self.name) || self.name == oldSelf.name)",
        "spec.name is immutable; a database is not renamed")
)]
pub struct DatabaseSpec {
    /// Name of the DatabaseClass; immutable. Default: the class annotated as default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub class_name: Option<String>,

    /// Name on the server; immutable. Default: made from namespace and name, unique on the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 50), regex(pattern = r"^[a-z][a-z0-9_]{0,49}$"))]
    pub name: Option<String>,

    /// Whether a database of this name that a deleted Database of this namespace and name left,
    /// on the server or in its trash, is taken over with its data. Default: Never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adopt: Option<Adopt>,

    /// The built-in roles and where their credentials go. Default: writer and owner, and a reader
    /// once a Service binds one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub roles: Option<Roles>,

    /// How passwords change. The annotation `peristyle.dev/rotate` with a value that was not
    /// acted on yet changes them now, in either mode. Default: as the class says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotation: Option<Rotation>,

    /// What deleting this object does to the data. Default: Retain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reclaim_policy: Option<ReclaimPolicy>,

    /// Whether a deletion that would take data away waits for a person. Default: Enabled. What
    /// waits is the object, and with it a deletion of its namespace: set Disabled, or
    /// `reclaimPolicy: Retain`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deletion_protection: Option<DeletionProtection>,
}

impl DatabaseSpec {
    /// The policy with its default.
    #[must_use]
    pub fn reclaim_policy(&self) -> ReclaimPolicy {
        self.reclaim_policy.unwrap_or_default()
    }

    /// Whether deletion protection is on; the default is on.
    #[must_use]
    pub fn is_protected(&self) -> bool {
        self.deletion_protection.unwrap_or_default() == DeletionProtection::Enabled
    }
}

/// The built-in roles.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Roles {
    /// Reads and writes rows; for workloads. Secret by default: `<name>-db`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writer: Option<Role>,
    /// Reads rows. Secret by default: `<name>-db-ro`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reader: Option<Role>,
    /// Owns the schema; for migrations. Secret by default: `<name>-db-owner`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<Role>,
}

/// One role.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Role {
    /// Name of the Secret that receives the credentials. Default: `<name>-db` for the writer,
    /// `<name>-db-ro` for the reader, `<name>-db-owner` for the owner.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"))]
    pub secret_name: Option<String>,
    /// Connections that the role's login may hold. Default: 30 (owner: 5).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10000))]
    pub connection_limit: Option<i32>,
}

/// Whether a database of this name that a deleted Database of this namespace and name left,
/// on the server or in its trash, is taken over with its data. Default: Never.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Adopt {
    /// It is a conflict.
    #[default]
    Never,
    /// It is when the mark on the server says that a Database of this namespace and name made it.
    /// Passwords that led to it before end.
    IfMarked,
}

/// How passwords change: each role has two logins, of which a Secret names one. A rotation
/// gives the other one a new password and puts it into the Secret.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Rotation {
    /// Whether passwords change by themselves. Default: TwoSlot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<RotationMode>,
    /// Time between two rotations, at least `1m` and longer than `overlap`. Default: the class's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Duration>,
    /// How long the login before keeps working. It also does while a session uses it, and
    /// while a bound Service has pods that started before the rotation. Default: the class's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub overlap: Option<Duration>,
}

/// Whether passwords change by themselves. Default: TwoSlot.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum RotationMode {
    /// After each `interval`.
    #[default]
    TwoSlot,
    /// Only when asked by annotation.
    Disabled,
}

/// What deleting this object does to the data. Default: Retain.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum ReclaimPolicy {
    /// Database, roles and credentials stay on the server.
    #[default]
    Retain,
    /// Logins are shut, sessions ended and the database is renamed to `<name>-trash`. Until the
    /// retention of its class is over, a Database of the same name in the same namespace with
    /// `adopt: IfMarked` gets it back with its data; then database and roles are dropped.
    Trash,
    /// Database and roles are dropped.
    Delete,
}

/// Whether a deletion that would take data away waits for a person. Default: Enabled. What
/// waits is the object, and with it a deletion of its namespace: set Disabled, or
/// `reclaimPolicy: Retain`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum DeletionProtection {
    /// A deletion with `reclaimPolicy: Trash` or `Delete` waits until this is Disabled.
    #[default]
    Enabled,
    /// `reclaimPolicy` acts.
    Disabled,
}

/// What the operator observed.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DatabaseStatus {
    /// Generation of the spec that this status speaks of; -1 before the first look.
    #[serde(default)]
    pub observed_generation: i64,
    /// The server, as it was when the database was first bound to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<Server>,
    /// Name on the server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub database_name: Option<String>,
    /// Secret of the writer, as servicebinding.io's Provisioned Service wants it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub binding: Option<LocalName>,
    /// Roles that can log in.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["role".into()]))]
    pub roles: Vec<RoleStatus>,
    /// Ready, Reconciling, Stalled, ServerReachable, Provisioned, CredentialsReady, DriftDetected,
    /// DeletionBlocked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// The server that holds the database.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Server {
    /// Name of the DatabaseClass.
    pub class: String,
    /// Host that clients connect to.
    pub host: String,
    /// Port.
    pub port: i32,
    /// Version as the server reports it.
    pub version: String,
    /// `system_identifier` of the cluster: another server behind the same address is noticed.
    pub system_identifier: String,
}

/// A role that can log in.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RoleStatus {
    /// Writer, Reader or Owner.
    pub role: RoleName,
    /// Login that the Secret names: `A` is `<database>_<role>_a`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active_slot: Option<Slot>,
    /// Secret with the credentials.
    pub secret_name: String,
    /// Since when the Secret holds these credentials.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotated_at: Option<Time>,
    /// The login before, while it still works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retiring: Option<Retiring>,
}

/// A login that a rotation replaced and that still works.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct Retiring {
    /// Which one.
    pub slot: Slot,
    /// Sessions that used it when it was last looked at.
    pub sessions: i32,
}

/// One of the two logins of a role.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
pub enum Slot {
    /// The first.
    #[default]
    A,
    /// The second.
    B,
}

impl Slot {
    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// The three built-in roles.
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
pub enum RoleName {
    /// Owns the schema; for migrations.
    Owner,
    /// Reads and writes rows.
    #[default]
    Writer,
    /// Reads rows.
    Reader,
}
