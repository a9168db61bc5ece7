//! One writer at a time: a Lease in the operator's namespace.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client};
use kube_lease_manager::LeaseManagerBuilder;
use peristyle_crds::FIELD_MANAGER;
use tokio::{sync::watch, task::JoinHandle};

use crate::config::Config;

/// Name of the Lease.
const LEASE: &str = "peristyle-operator";
/// How long a Lease holds without renewal, in seconds.
const DURATION: u64 = 15;
/// How long before the end it is renewed, in seconds.
const GRACE: u64 = 5;

/// Ends when the API server has not answered for as long as the Lease holds:
/// by then somebody else may lead, and what this process still has in hand
/// must not be finished.
pub async fn cut_off(client: Client, namespace: &str) {
    let leases: Api<Lease> = Api::namespaced(client, namespace);
    let mut answered = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_secs(GRACE));
    while answered.elapsed() < Duration::from_secs(DURATION) {
        tick.tick().await;
        let left = Duration::from_secs(DURATION).saturating_sub(answered.elapsed());
        if let Ok(Ok(_)) = tokio::time::timeout(left, leases.get_metadata(LEASE)).await {
            answered = Instant::now();
        }
    }
}

/// Competes for the Lease; the receiver says whether this process holds it.
///
/// # Errors
/// When the Lease can neither be read nor created.
pub async fn compete(
    client: Client,
    config: &Config,
) -> anyhow::Result<(watch::Receiver<bool>, JoinHandle<()>)> {
    let manager = LeaseManagerBuilder::new(client, LEASE)
        .with_namespace(&config.namespace)
        .with_identity(&config.identity)
        .with_duration(DURATION)
        .with_grace(GRACE)
        // Each candidate its own: an apply that finds the Lease taken must conflict.
        .with_field_manager(format!("{FIELD_MANAGER}-{}", config.identity))
        .build()
        .await
        .map_err(|e| anyhow::anyhow!("Lease {}/{LEASE}: {e}", config.namespace))?;
    let (held, task) = manager.watch().await;
    let task = tokio::spawn(async move {
        if let Ok(Err(error)) = task.await {
            tracing::error!(%error, "the Lease could not be kept");
        }
    });
    Ok((held, task))
}
