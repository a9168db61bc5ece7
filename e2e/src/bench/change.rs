//! One change of one Service while nothing else happens.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::TryStreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use peristyle_crds::v1alpha1::Service;
use serde_json::json;

use super::bulk::count;
use super::subject::{QUIET, Subject};

const PATIENCE: Duration = Duration::from_secs(30);

/// Milliseconds as (p50, p99).
#[derive(Debug)]
pub struct Latency {
    /// An apply of a Deployment, until its reply.
    pub raw: (f64, f64),
    /// From the sending of a patch of a Service until a watch shows its Deployment changed.
    pub change: (f64, f64),
    /// The same from the reply to the patch: what the operator adds to what the API server took.
    pub reaction: (f64, f64),
    /// Requests of the operator per change.
    pub requests: f64,
}

/// Changes one Service and applies a Deployment of nobody, by turns.
pub async fn measure(
    client: &Client,
    namespace: &str,
    operator: &Subject<'_>,
    times: usize,
) -> Result<Latency> {
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let one = watcher::Config::default().fields("metadata.name=s-0");
    let mut events =
        std::pin::pin!(watcher::watcher(deployments.clone(), one).default_backoff().applied_objects());
    operator.quiet_for(QUIET).await?;
    let mark = operator.mark()?;
    let (mut raw, mut change, mut reaction) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..times {
        let image = format!("example.com/app:turn-{turn}");
        let started = Instant::now();
        let applied = Patch::Apply(nobodys(&image));
        deployments.patch("nobodys", &PatchParams::apply("raw").force(), &applied).await?;
        raw.push(started.elapsed());

        let started = Instant::now();
        let patch = json!({"spec": {"image": image}});
        services.patch("s-0", &PatchParams::default(), &Patch::Merge(patch)).await?;
        let accepted = Instant::now();
        let changed = async {
            while let Some(deployment) = events.try_next().await? {
                if runs(&deployment, &image) {
                    return anyhow::Ok(());
                }
            }
            bail!("the watch ended")
        };
        tokio::time::timeout(PATIENCE, changed).await.context("the Deployment of s-0 did not change")??;
        change.push(started.elapsed());
        reaction.push(accepted.elapsed());
        // The next turn begins when the status of this one is written.
        operator.quiet_for(Duration::from_millis(100)).await?;
    }
    let requests = count(operator.requests(mark)?.len()) / count(times);
    Ok(Latency {
        raw: percentiles(&mut raw),
        change: percentiles(&mut change),
        reaction: percentiles(&mut reaction),
        requests,
    })
}

fn nobodys(image: &str) -> serde_json::Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "nobodys"},
        "spec": {"replicas": 0, "selector": {"matchLabels": {"app": "nobodys"}},
                 "template": {"metadata": {"labels": {"app": "nobodys"}},
                              "spec": {"containers": [{"name": "main", "image": image}]}}}
    })
}

fn runs(deployment: &Deployment, image: &str) -> bool {
    let pod = deployment.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    deployment.name_any() == "s-0"
        && pod.is_some_and(|pod| pod.containers.iter().any(|c| c.image.as_deref() == Some(image)))
}

fn percentiles(times: &mut [Duration]) -> (f64, f64) {
    times.sort();
    let at =
        |percent: usize| times[(times.len() * percent / 100).min(times.len() - 1)].as_secs_f64() * 1000.0;
    (at(50), at(99))
}
