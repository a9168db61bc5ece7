//! Who may connect to the pods, and where they may connect to.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The pods' NetworkPolicy. It needs a network plug-in that enforces NetworkPolicies.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
pub struct Access {
    /// Isolated: only what is declared. Open: no NetworkPolicy. Default: Isolated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<AccessMode>,
    /// Who may connect besides the edge and the Services of this namespace that name this one in
    /// `dependsOn`. A Service of another namespace must be listed here.
    /// Default: nobody.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub inbound: Vec<Inbound>,
    /// Where the pods may connect to besides DNS, their databases and what `dependsOn` names.
    /// Default: nowhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub outbound: Vec<Outbound>,
}

/// Isolated: only what is declared. Open: no NetworkPolicy. Default: Isolated.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum AccessMode {
    /// Only the edge (where exposed), declared callers, DNS, bound databases and `outbound`.
    #[default]
    Isolated,
    /// Everything.
    Open,
}

/// A caller.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct Inbound {
    /// Name of a `services.peristyle.dev`, or `*` for every pod of the namespace.
    #[schemars(length(min = 1, max = 50), regex(pattern = r"^(\*|[a-z]([-a-z0-9]{0,48}[a-z0-9])?)$"))]
    pub service: String,
    /// Its namespace. Default: the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub namespace: Option<String>,
}

/// A destination.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
pub struct Outbound {
    /// Addresses, for example `10.0.0.0/8` or `fd00::/8`.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = ("isCIDR(self) && cidr(self).masked() == cidr(self)", "must be a network such as 10.0.0.0/8, without bits beyond the prefix"))]
    pub cidr: String,
    /// TCP and UDP ports. Default: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(range(min = 1, max = 65535)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub ports: Vec<i32>,
}
