//! `AuthClass`: an Oathkeeper and Keto pair and the issuers it trusts.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;

/// Where policies are decided.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "peristyle.dev",
    version = "v1alpha1",
    kind = "AuthClass",
    plural = "authclasses",
    status = "AuthClassStatus",
    category = "peristyle",
    derive = "PartialEq",
    doc = "An ORY Oathkeeper and Keto pair that decides, and the token issuers it trusts.",
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
    printcolumn(name = "Rules", type_ = "integer", json_path = ".status.rules"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].message",
        priority = 1
    )
)]
pub struct AuthClassSpec {
    /// The decision engine.
    pub oathkeeper: Oathkeeper,
    /// The relation store.
    pub keto: Keto,
    /// Issuers whose tokens policies may accept. Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["issuer".into()]))]
    pub issuers: Vec<Issuer>,
    /// The token that Oathkeeper signs for the workload behind a protected rule. Exposed
    /// workloads are told how to verify it by `ID_TOKEN_JWKS_URL`, `ID_TOKEN_ISSUER` and
    /// `ID_TOKEN_AUDIENCE`. Default: none; they then learn who calls from `X-User` alone.
    /// With or without it a caller's own `Authorization` header ends at the gate, also where
    /// a rule is public; only a route whose `auth.mode` is Public passes it on.
    #[serde(rename = "idToken", default, skip_serializing_if = "Option::is_none")]
    pub id_token: Option<IdToken>,
}

/// Where Oathkeeper runs and where it reads its rules.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Oathkeeper {
    /// Namespace of the Service and of the ConfigMap.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Core Service of the decision API; the port named `api`, else 4456. Every ready pod
    /// behind it must confirm the rules.
    #[schemars(length(min = 1, max = 63))]
    pub service: String,
    /// ConfigMap that the operator writes, key `rules.json`.
    #[schemars(length(min = 1, max = 253))]
    pub rules_config_map: String,
}

/// Where Keto answers and where it reads its namespaces.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Keto {
    /// Read API, for example `http://keto-read.peristyle-system.svc.cluster.local:4466`.
    #[serde(rename = "readURL")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^https?://[^/?#\s]+$"))]
    pub read_url: String,
    /// Write API.
    #[serde(rename = "writeURL")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^https?://[^/?#\s]+$"))]
    pub write_url: String,
    /// Syntax API for the Ory Permission Language.
    #[serde(rename = "oplURL")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^https?://[^/?#\s]+$"))]
    pub opl_url: String,
    /// ConfigMap that the operator writes with the namespaces of all policies.
    pub namespaces_config_map: ConfigMapKey,
}

/// A key of a ConfigMap in a namespace.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct ConfigMapKey {
    /// Namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Key.
    #[schemars(length(min = 1, max = 253))]
    pub key: String,
}

/// A token issuer.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Issuer {
    /// `iss` of its tokens, exactly.
    #[schemars(length(min = 1, max = 512))]
    pub issuer: String,
    /// Address of its JSON Web Key Set, fetched by Oathkeeper.
    #[serde(rename = "jwksURL")]
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^https?://\S+$"))]
    pub jwks_url: String,
}

/// The token that Oathkeeper signs for workloads. Its `sub` is the caller's, its `aud` is
/// `<service>.<namespace>`.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("!has(self.ttl) || (duration(self.ttl) >= duration('1m') && duration(self.ttl) <= duration('1h'))",
        "ttl: from 1m to 1h")
)]
pub struct IdToken {
    /// `iss` of the tokens, exactly; workloads accept no other.
    #[schemars(length(min = 1, max = 512), regex(pattern = r"^https?://\S+$"))]
    pub issuer: String,
    /// Secret in the operator's namespace whose key `jwks.json` holds the private JSON Web Keys;
    /// the last one signs. Made by the operator where it does not exist, and never changed
    /// afterwards. Oathkeeper's pods must mount it.
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"))]
    pub jwks_secret: String,
    /// How long a token is valid, 1m to 1h; it is checked when a call begins. Default: 5m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<Duration>,
}

/// What the operator observed.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthClassStatus {
    /// Generation of the spec that this status speaks of; -1 before the first look.
    #[serde(default)]
    pub observed_generation: i64,
    /// Rules published for all policies of the class, the deny rules among them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rules: Option<i32>,
    /// Oathkeeper pods that are ready.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub pods: Vec<PodRules>,
    /// Ready, Reconciling, Stalled, Published.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// What one Oathkeeper pod has loaded.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct PodRules {
    /// Name of the pod.
    pub name: String,
    /// Published rules that it has confirmed.
    pub rules: i32,
}
