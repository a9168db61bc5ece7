//! Many Services, created as fast as the API server takes them.

use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt, stream};
use kube::api::PostParams;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use peristyle_crds::v1alpha1::Service;
use serde_json::json;

/// Requests in flight: the knee of a control plane on two cores.
pub const IN_FLIGHT: usize = 16;
const PATIENCE: Duration = Duration::from_mins(10);

/// A Service that is ready without a node: everything but pods.
pub fn service(namespace: &str, index: usize) -> Result<Service> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "peristyle.dev/v1alpha1", "kind": "Service",
        "metadata": {"name": format!("s-{index}"), "namespace": namespace},
        "spec": {"image": "example.com/app:1", "replicas": 0,
                 "env": [{"name": "LOG", "value": "info"}],
                 "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}}}
    }))?)
}

/// The same with a route that is open to everyone.
pub fn exposed(namespace: &str, index: usize) -> Result<Service> {
    let mut service = service(namespace, index)?;
    service.spec.expose = serde_json::from_value(json!([{"name": "web", "auth": {"mode": "Public"}}]))?;
    Ok(service)
}

/// Creates Services and returns how long it took until the last was ready.
pub async fn create(
    client: &Client,
    namespace: &str,
    indices: Range<usize>,
    service: fn(&str, usize) -> Result<Service>,
) -> Result<Duration> {
    let api: Api<Service> = Api::namespaced(client.clone(), namespace);
    let wanted = indices.end;
    let started = Instant::now();
    let watched = api.clone();
    let ready = tokio::spawn(async move { all_ready(watched, wanted).await });
    stream::iter(indices.map(|index| service(namespace, index)))
        .map(|service| async { anyhow::Ok(api.create(&PostParams::default(), &service?).await?) })
        .buffer_unordered(IN_FLIGHT)
        .try_collect::<Vec<_>>()
        .await?;
    let last = ready.await??;
    Ok(last.duration_since(started))
}

/// When the last of so many Services became ready.
async fn all_ready(api: Api<Service>, wanted: usize) -> Result<Instant> {
    let events = watcher::watcher(api, watcher::Config::default()).default_backoff().applied_objects();
    let mut ready = std::collections::HashSet::new();
    let mut events = std::pin::pin!(events);
    let wait = async {
        while let Some(service) = events.try_next().await? {
            if is_ready(&service) {
                ready.insert(service.name_any());
            }
            if ready.len() >= wanted {
                return Ok(Instant::now());
            }
        }
        anyhow::bail!("the watch ended")
    };
    tokio::time::timeout(PATIENCE, wait)
        .await
        .with_context(|| format!("not all of {wanted} Services became ready"))?
}

fn is_ready(service: &Service) -> bool {
    service.status.as_ref().is_some_and(|status| {
        Some(status.observed_generation) == service.metadata.generation
            && status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True")
    })
}
