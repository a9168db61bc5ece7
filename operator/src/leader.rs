//! One writer at a time: a Lease in the operator's namespace.

use kube::Client;
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
        .with_field_manager(FIELD_MANAGER)
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
