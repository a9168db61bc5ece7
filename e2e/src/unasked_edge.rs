//! A default edge without pods: routes are made for it, and nobody asks
//! whether it serves them.

use anyhow::Result;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::PostParams;
use kube::{Api, Client};
use peristyle_crds::v1alpha1::EdgeClass;
use serde_json::json;

use crate::stack::SYSTEM_NAMESPACE;

/// Creates its class, and stands in for the pods of edge-errors, which no node
/// runs: without them routes are withheld.
///
/// # Errors
/// When the API server refuses.
pub async fn create(client: &Client) -> Result<()> {
    let class: EdgeClass = serde_json::from_value(json!({
        "apiVersion": "peristyle.dev/v1alpha1", "kind": "EdgeClass",
        "metadata": {"name": "public", "annotations": {"peristyle.dev/is-default-class": "true"}},
        "spec": {"provider": "Traefik", "traefik": {"entryPoints": ["web"]},
                 "hosts": {"template": "{service}.{namespace}.example.com"}}
    }))?;
    Api::all(client.clone()).create(&PostParams::default(), &class).await?;
    let slice: EndpointSlice = serde_json::from_value(json!({
        "metadata": {"name": "edge-errors-1", "labels": {"kubernetes.io/service-name": "edge-errors"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["10.0.0.1"], "conditions": {"ready": true}}]
    }))?;
    Api::namespaced(client.clone(), SYSTEM_NAMESPACE).create(&PostParams::default(), &slice).await?;
    Ok(())
}
