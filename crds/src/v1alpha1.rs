//! Version `v1alpha1`: three kinds for application teams, three classes for
//! the platform team.
#![allow(clippy::duplicated_attributes, reason = "kube's printcolumn repeats its keys for every column")]

pub mod auth_class;
pub mod auth_policy;
pub mod database;
pub mod database_class;
pub mod edge_class;
pub mod service;

pub use auth_class::{AuthClass, AuthClassSpec, AuthClassStatus};
pub use auth_policy::{AuthPolicy, AuthPolicySpec, AuthPolicyStatus};
pub use database::{Database, DatabaseSpec, DatabaseStatus};
pub use database_class::{DatabaseClass, DatabaseClassSpec, DatabaseClassStatus};
pub use edge_class::{EdgeClass, EdgeClassSpec, EdgeClassStatus};
pub use service::{Service, ServiceSpec, ServiceStatus};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What every kind reports; lets one function write the status of all.
pub trait Reported: kube::Resource<DynamicType = ()> {
    /// The status type.
    type Status: Clone + Default + PartialEq + Serialize + std::fmt::Debug + Send + Sync;
    /// The stored status, if any was written.
    fn reported(&self) -> Option<&Self::Status>;
    /// The conditions within a status.
    fn conditions(status: &Self::Status) -> &[Condition];
    /// Sets the two fields that every status has.
    fn set_observed(status: &mut Self::Status, generation: i64, conditions: Vec<Condition>);
}

macro_rules! reported {
    ($($kind:ty => $status:ty),+ $(,)?) => {$(
        impl Reported for $kind {
            type Status = $status;
            fn reported(&self) -> Option<&$status> { self.status.as_ref() }
            fn conditions(status: &$status) -> &[Condition] { &status.conditions }
            fn set_observed(status: &mut $status, generation: i64, conditions: Vec<Condition>) {
                status.observed_generation = generation;
                status.conditions = conditions;
            }
        }
    )+};
}

reported! {
    Service => ServiceStatus,
    Database => DatabaseStatus,
    AuthPolicy => AuthPolicyStatus,
    EdgeClass => EdgeClassStatus,
    AuthClass => AuthClassStatus,
    DatabaseClass => DatabaseClassStatus,
}

/// A Secret, ConfigMap or class by name; always in the namespace that the
/// field's description names.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct LocalName {
    /// Name of the object.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// A path of a request: exactly one of the two.
#[derive(
    Clone, Debug, Default, Deserialize, Eq, Hash, kube::KubeSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
#[x_kube(validation = ("has(self.prefix) != has(self.exact)", "set exactly one of prefix and exact"))]
pub struct PathMatch {
    /// Matches the path itself and everything below it, by whole segments. Default: none, `exact` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), regex(pattern = r"^/[A-Za-z0-9/._~-]*$"))]
    #[x_kube(validation = ("!self.matches('//|/[.][.]?(/|$)')",
        "must have no empty, '.' or '..' segment; write the path as it is after cleaning, for example /a/c for /a/./b/..//c"))]
    pub prefix: Option<String>,
    /// Matches this path only. Default: none, `prefix` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024), regex(pattern = r"^/[A-Za-z0-9/._~-]*$"))]
    #[x_kube(validation = ("!self.matches('//|/[.][.]?(/|$)')",
        "must have no empty, '.' or '..' segment; write the path as it is after cleaning, for example /a/c for /a/./b/..//c"))]
    pub exact: Option<String>,
}
