//! What routes cost: Services with one, beside few others and beside many.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::PostParams;
use kube::{Api, Client};
use peristyle_crds::v1alpha1::EdgeClass;
use serde_json::json;

use super::load;
use super::subject::{QUIET, Subject};
use crate::control_plane::ControlPlane;
use crate::stack::SYSTEM_NAMESPACE;

const NAMESPACE: &str = "exposed";

/// One batch of exposed Services.
#[derive(Debug)]
pub struct Exposed {
    /// How many there were before.
    pub beside: usize,
    /// How many were created.
    pub services: usize,
    pub took: Duration,
    pub requests: usize,
    /// Seconds of CPU of the operator.
    pub cpu: f64,
}

/// Creates exposed Services until there are as many as each of `counts`.
pub async fn measure(
    plane: &ControlPlane,
    client: &Client,
    program: &Path,
    counts: [usize; 2],
) -> Result<Vec<Exposed>> {
    super::create_namespace(client, NAMESPACE).await?;
    edge(client).await?;
    let operator = Subject::start(program, plane).await?;
    let mut batches = Vec::new();
    let mut beside = 0;
    for count in counts {
        operator.quiet_for(QUIET).await?;
        let (mark, cpu) = (operator.mark()?, operator.cpu()?);
        let took = load::create(client, NAMESPACE, beside..count, load::exposed).await?;
        operator.quiet_for(QUIET).await?;
        let (requests, cpu) = (operator.requests(mark)?.len(), operator.cpu()? - cpu);
        batches.push(Exposed { beside, services: count - beside, took, requests, cpu });
        beside = count;
    }
    operator.stop().await?;
    Ok(batches)
}

/// A class whose edge is not asked, and the pod that answers what is refused.
async fn edge(client: &Client) -> Result<()> {
    let class: EdgeClass = serde_json::from_value(json!({
        "apiVersion": "peristyle.dev/v1alpha1", "kind": "EdgeClass",
        "metadata": {"name": "public", "annotations": {"peristyle.dev/is-default-class": "true"}},
        "spec": {"provider": "Traefik", "traefik": {"entryPoints": ["web"]},
                 "hosts": {"template": "{service}.{namespace}.test"}}
    }))?;
    Api::all(client.clone()).create(&PostParams::default(), &class).await?;
    let slice: EndpointSlice = serde_json::from_value(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": {"name": "edge-errors-1", "namespace": SYSTEM_NAMESPACE,
                     "labels": {"kubernetes.io/service-name": "edge-errors"}},
        "addressType": "IPv4", "ports": [{"name": "http", "port": 8080}],
        "endpoints": [{"addresses": ["192.0.2.1"], "conditions": {"ready": true}}]
    }))?;
    Api::namespaced(client.clone(), SYSTEM_NAMESPACE).create(&PostParams::default(), &slice).await?;
    Ok(())
}
