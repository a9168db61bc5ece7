//! Traefik's kinds, with the fields that the operator writes. Every field may
//! be absent: one odd object must not break the watch of all.

use std::collections::BTreeMap;

use kube::CustomResource;
use serde::{Deserialize, Serialize};

/// Routers of one kind of traffic.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, PartialEq, Serialize)]
#[kube(
    group = "traefik.io",
    version = "v1alpha1",
    kind = "IngressRoute",
    plural = "ingressroutes",
    namespaced,
    schema = "disabled",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", default)]
pub struct IngressRouteSpec {
    /// Where requests come in; only without `parentRefs`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub entry_points: Vec<String>,
    /// Routes that a request passes before it comes here.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub parent_refs: Vec<Reference>,
    /// Routers.
    pub routes: Vec<Router>,
}

/// An object in the same namespace.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Reference {
    /// Its name.
    pub name: String,
}

/// One router.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Router {
    /// Always `Rule`.
    pub kind: String,
    /// Which requests.
    #[serde(rename = "match")]
    pub rule: String,
    /// The greatest that matches answers.
    pub priority: i64,
    /// What a request passes, outermost first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub middlewares: Vec<Reference>,
    /// Where it goes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub services: Vec<RouterService>,
}

/// A core Service behind a router.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouterService {
    /// Its name.
    pub name: String,
    /// Its port.
    pub port: i32,
    /// `h2c` or `http`.
    pub scheme: String,
    /// Name of a ServersTransport.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub servers_transport: Option<String>,
}

/// One middleware: exactly one of the fields is set.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, PartialEq, Serialize)]
#[kube(
    group = "traefik.io",
    version = "v1alpha1",
    kind = "Middleware",
    plural = "middlewares",
    namespaced,
    schema = "disabled",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", default)]
pub struct MiddlewareSpec {
    /// Asks another server whether a request may pass.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub forward_auth: Option<ForwardAuth>,
    /// Lets another server answer in place of an error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub errors: Option<Errors>,
    /// Changes headers of a request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub headers: Option<Headers>,
}

/// Asks another server whether a request may pass.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ForwardAuth {
    /// The server.
    pub address: String,
    /// Whether `X-Forwarded-*` of the client are believed.
    pub trust_forward_header: bool,
    /// Headers of the request that the server sees. Empty would mean all.
    pub auth_request_headers: Vec<String>,
    /// Headers of the answer that the workload sees.
    pub auth_response_headers: Vec<String>,
    /// Longest answer in bytes.
    pub max_response_body_size: i64,
}

/// Lets another server answer in place of an error.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Errors {
    /// Which errors.
    pub status: Vec<String>,
    /// The status that the client sees.
    pub status_rewrites: BTreeMap<String, i32>,
    /// Path at the other server.
    pub query: String,
    /// The other server.
    pub service: RouterService,
}

/// Changes headers of a request.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Headers {
    /// Sets a header; an empty value removes it.
    pub custom_request_headers: BTreeMap<String, String>,
}

/// How the edge connects to servers.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, PartialEq, Serialize)]
#[kube(
    group = "traefik.io",
    version = "v1alpha1",
    kind = "ServersTransport",
    plural = "serverstransports",
    namespaced,
    schema = "disabled",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase", default)]
pub struct ServersTransportSpec {
    /// Time limits.
    pub forwarding_timeouts: Timeouts,
}

/// Time limits, in Go's notation.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Timeouts {
    /// To connect.
    pub dial_timeout: String,
    /// To the first byte of the answer's header.
    pub response_header_timeout: String,
}
