//! What Traefik's API must say once it serves the routes of a Service.
//!
//! Source: pkg/provider/kubernetes/crd and pkg/api of Traefik 3.6.12.

use std::collections::BTreeMap;

use kube::ResourceExt;
use peristyle_crds::names::EDGE_LABEL;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::{
    Edge,
    objects::{Errors, ForwardAuth, Headers, IngressRoute},
};

/// Ending of every name that comes from Kubernetes objects, where the API asks for one.
pub const PROVIDER: &str = "@kubernetescrd";

/// A router as the API must show it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Expected {
    /// Its name, which is that of its service too.
    pub name: String,
    /// Names of its middlewares, outermost first.
    pub middlewares: Vec<String>,
    /// Names of the routers above it, sorted.
    pub parents: Vec<String>,
    /// Whether it leads to the workload.
    pub is_to_workload: bool,
}

/// A middleware as the API shows it: whole, but for the service of `errors`,
/// which has a name of Traefik's there.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct Content {
    /// Asks whether a request may pass.
    pub forward_auth: Option<ForwardAuth>,
    /// Changes headers.
    pub headers: Option<Headers>,
    /// Lets another server answer.
    pub errors: Option<ErrorPage>,
}

/// What the API shows of [`Errors`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ErrorPage {
    status: Vec<String>,
    status_rewrites: BTreeMap<String, i32>,
    query: String,
}

impl From<Errors> for ErrorPage {
    fn from(Errors { status, status_rewrites, query, service: _ }: Errors) -> Self {
        Self { status, status_rewrites, query }
    }
}

/// Every middleware of `edge` at the EdgeClass `class`, by the name that the API gives it.
#[must_use]
pub fn middlewares(edge: &Edge, class: &str) -> BTreeMap<String, Content> {
    let of_class = edge
        .middlewares
        .iter()
        .filter(|middleware| middleware.labels().get(EDGE_LABEL).is_some_and(|name| name == class));
    let shown = of_class.map(|middleware| {
        let spec = middleware.spec.clone();
        let errors = spec.errors.map(ErrorPage::from);
        let name = id(&middleware.namespace().unwrap_or_default(), &middleware.name_any());
        (name, Content { forward_auth: spec.forward_auth, headers: spec.headers, errors })
    });
    shown.collect()
}

/// Every router of `edge` at the EdgeClass `class`; `workload` is the core
/// Service behind its routes.
#[must_use]
pub fn expected(edge: &Edge, class: &str, workload: &str) -> Vec<Expected> {
    let mut routers = Vec::new();
    let is_of_class =
        |route: &&IngressRoute| route.labels().get(EDGE_LABEL).is_some_and(|name| name == class);
    for route in edge.routes().filter(is_of_class) {
        let mut parents: Vec<String> = edge
            .parents
            .iter()
            .filter(|parent| route.spec.parent_refs.iter().any(|r| r.name == parent.name_any()))
            .flat_map(|parent| parent.spec.routes.iter().map(|router| name(parent, &router.rule)))
            .collect();
        parents.sort();
        for router in &route.spec.routes {
            let middleware = |name: &str| id(&route.namespace().unwrap_or_default(), name);
            routers.push(Expected {
                name: name(route, &router.rule),
                middlewares: router.middlewares.iter().map(|reference| middleware(&reference.name)).collect(),
                parents: parents.clone(),
                is_to_workload: router.services.iter().any(|service| service.name == workload),
            });
        }
    }
    routers
}

fn name(route: &IngressRoute, rule: &str) -> String {
    let mut hash = hex::encode(Sha256::digest(rule));
    hash.truncate(20);
    let key = format!("{}-{hash}", route.name_any());
    id(&route.namespace().unwrap_or_default(), &key)
}

/// Every run of other characters than letters and digits becomes one `-`.
fn id(namespace: &str, name: &str) -> String {
    let whole = format!("{namespace}-{name}");
    let words = whole.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_that_traefik_gives() {
        let route: IngressRoute = serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": "v1", "name": "api.dots--x"}, "spec": {"routes": []}
        }))
        .unwrap();
        let rule = "Host(`a.test`)";
        let hash = hex::encode(Sha256::digest(rule));
        assert_eq!(name(&route, rule), format!("v1-api-dots-x-{}", &hash[..20]));
    }
}
