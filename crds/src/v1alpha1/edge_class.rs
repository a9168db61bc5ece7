//! `EdgeClass`: what answers traffic from outside, and for which hosts.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An edge and its hosts.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "peristyle.dev",
    version = "v1alpha1",
    kind = "EdgeClass",
    plural = "edgeclasses",
    status = "EdgeClassStatus",
    category = "peristyle",
    derive = "PartialEq",
    doc = "An edge that answers traffic from outside the cluster, and the hosts it serves.",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Provider", type_ = "string", json_path = ".spec.provider"),
    printcolumn(name = "Routes", type_ = "integer", json_path = ".status.routes"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = ("self.metadata.name.matches('^[a-z]([-a-z0-9]{0,48}[a-z0-9])?$')",
        "metadata.name: at most 50 lower case letters, digits and '-', starting with a letter; it is the value of a label")
)]
#[x_kube(validation = ("(self.provider == 'Traefik') == has(self.traefik)", "spec.traefik goes with provider Traefik, and only with it"))]
pub struct EdgeClassSpec {
    /// What answers.
    pub provider: Provider,
    /// Traefik's part. Default: none, which provider Traefik does not take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traefik: Option<Traefik>,
    /// Hosts that Services may claim.
    pub hosts: Hosts,
    /// How clients reach the entry points; shown in `status.url` of Services. Default: https, port 443.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<Address>,
    /// Where the operator proves that routes are closed: a call without
    /// credentials must be refused. Default: nothing is asked, AuthPolicies
    /// have no condition Enforced, and a Service is Ready without this proof.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
}

/// Where the operator calls the edge, as a client without credentials.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct Probe {
    /// Host and port of the entry point, for example
    /// `traefik-pods.peristyle-system.svc.cluster.local:8000`. Every address
    /// that the name resolves to is asked: a headless core Service covers all pods.
    #[schemars(length(min = 3, max = 259), regex(pattern = r"^[a-z0-9.-]+:[1-9][0-9]{0,4}$"))]
    pub address: String,
    /// Scheme of the entry point; the certificate is not checked, since nothing
    /// secret is sent. Default: that of `spec.address`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
}

/// What answers traffic.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Provider {
    /// Traefik 3.6 or later with `allowEmptyServices` and the label selector
    /// `peristyle.dev/edge=<name of the class>`, as the stack chart sets them.
    #[default]
    Traefik,
}

/// Traefik's part.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Traefik {
    /// Entry points on which routes are served. TLS is the entry point's own setting.
    #[schemars(length(min = 1, max = 8), inner(length(min = 1, max = 63)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub entry_points: Vec<String>,
    /// Traefik's own pods, which may connect to exposed ports of isolated Services. Default: those
    /// labelled `app.kubernetes.io/name: traefik` in the operator's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<EdgePods>,
    /// Traefik's API, for example
    /// `http://traefik-pods.peristyle-system.svc.cluster.local:8082`. With it a
    /// Service is Ready only when every Traefik pod has its routes and the
    /// addresses of its pods. Every address that the name resolves to is asked.
    /// Default: not asked.
    #[serde(default, rename = "apiURL", skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^http://[a-z0-9.-]+:[1-9][0-9]{0,4}$"))]
    pub api_url: Option<String>,
}

/// Pods of the edge.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EdgePods {
    /// Their namespace.
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub namespace: String,
    /// Their labels. Default: none, every pod of the namespace.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub match_labels: BTreeMap<String, String>,
}

/// Hosts that Services may claim.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
pub struct Hosts {
    /// Host of a route that names none, with `{service}` and `{namespace}` filled in,
    /// each in a label of its own: `{service}-{namespace}` would be the same for
    /// `a-b` in `c` and `a` in `b-c`.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9.{}-]+$"))]
    #[x_kube(validation = ("self.contains('{service}') && self.contains('{namespace}')",
        "must contain {service} and {namespace}, so that no two Services share a default host"))]
    #[x_kube(validation = ("!self.split('.').exists(label, label.contains('{service}') && label.contains('{namespace}'))",
        "{service} and {namespace} must stand in different labels, so that no two Services share a default host"))]
    pub template: String,
    /// Other hosts that namespaces may claim. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub allow: Vec<AllowedHosts>,
}

/// Hosts for namespaces.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
pub struct AllowedHosts {
    /// Namespaces that may claim them.
    pub namespaces: NamespaceSelector,
    /// A host is allowed when it is one of these or ends with `.` and one of these.
    #[schemars(
        length(min = 1, max = 32),
        inner(
            length(min = 1, max = 253),
            regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$")
        )
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub suffixes: Vec<String>,
}

/// Namespaces by label.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct NamespaceSelector {
    /// Labels, all of which the namespace must carry. Empty: every namespace.
    pub selector: LabelSelector,
}

/// Labels that must match.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LabelSelector {
    /// Name and value of each label. Default: none, which matches everything.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 16))]
    pub match_labels: BTreeMap<String, String>,
}

/// How clients reach the entry points.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Address {
    /// Scheme. Default: https.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<Scheme>,
    /// Port. Default: the scheme's own, 443 or 80.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65535))]
    pub port: Option<i32>,
}

/// Scheme of a URL. Default: https, for a probe that of `spec.address`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// TLS at the entry point.
    #[default]
    Https,
    /// No TLS, for development.
    Http,
}

impl EdgeClassSpec {
    /// The scheme of the entry point that is probed.
    #[must_use]
    pub fn probe_scheme(&self) -> Scheme {
        let of_clients = || self.address.as_ref().and_then(|address| address.scheme);
        self.probe.as_ref().and_then(|probe| probe.scheme).or_else(of_clients).unwrap_or_default()
    }

    /// The address of a host as clients write it, without a trailing slash.
    #[must_use]
    pub fn url(&self, host: &str) -> String {
        let address = self.address.clone().unwrap_or_default();
        let (scheme, default_port) = match address.scheme.unwrap_or_default() {
            Scheme::Https => ("https", 443),
            Scheme::Http => ("http", 80),
        };
        match address.port {
            Some(port) if port != default_port => format!("{scheme}://{host}:{port}"),
            _ => format!("{scheme}://{host}"),
        }
    }
}

/// What the operator observed.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EdgeClassStatus {
    /// Generation of the spec that this status speaks of; -1 before the first look.
    #[serde(default)]
    pub observed_generation: i64,
    /// Routes that Services of this class ask for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub routes: Option<i32>,
    /// Ready, Reconciling, Stalled.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
