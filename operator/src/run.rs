//! The composition root: everything is wired here and nowhere else.

use std::sync::Arc;

use kube::Client;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    admin::{self, Readiness},
    apply::Applier,
    auth::publications::Publications,
    backoff::Backoff,
    config::Config,
    context::Context,
    controllers,
    edge::proofs::Proofs,
    events::Events,
    external::{http, postgres::Servers},
    leader,
    metrics::Metrics,
    stores::Stores,
    telemetry,
};

/// Runs the operator against the cluster of its environment until SIGTERM, or
/// until the Lease is lost.
///
/// # Errors
/// When the cluster cannot be reached at start, or as [`operate`].
pub async fn run(config: Config) -> anyhow::Result<()> {
    telemetry::start(&config.log)?;
    let client = Client::try_default().await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        result = operate(client, config) => result,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// Runs the operator until the Lease is lost.
///
/// Caches are filled on every replica; controllers run on the one that holds
/// the Lease. A lost Lease ends the process: a fresh one cannot act on what an
/// old leader still had in hand.
///
/// # Errors
/// When an address cannot be bound, or the Lease is lost.
pub async fn operate(client: Client, config: Config) -> anyhow::Result<()> {
    let ctx = Arc::new(Context {
        stores: Stores::start(&client, &config.namespace),
        http: http::client()?,
        publications: Publications::default(),
        proofs: Proofs::default(),
        servers: Servers::default(),
        applier: Applier::new(client.clone()),
        events: Events::new(client.clone(), &config.identity),
        backoff: Backoff::default(),
        metrics: Metrics::default(),
        config,
        client,
    });
    let readiness = Readiness::default();
    tokio::select! {
        result = admin::serve(ctx.config.admin_address, ctx.clone(), readiness.clone()) => result,
        result = lead(ctx, readiness) => result,
    }
}

async fn lead(ctx: Arc<Context>, readiness: Readiness) -> anyhow::Result<()> {
    ctx.stores.ready().await;
    readiness.set();
    let (mut held, task) = leader::compete(ctx.client.clone(), &ctx.config).await?;
    held.wait_for(|held| *held).await?;
    ctx.metrics.set_leader(true);
    tracing::info!(identity = %ctx.config.identity, "leading");
    tokio::select! {
        () = controllers::run(ctx.clone()) => anyhow::bail!("a controller ended"),
        result = held.wait_for(|held| !*held) => {
            result?;
            anyhow::bail!("the Lease was lost")
        }
        _ = task => anyhow::bail!("the Lease could not be kept"),
        () = leader::cut_off(ctx.client.clone(), &ctx.config.namespace) => {
            anyhow::bail!("the API server has not answered for as long as the Lease holds")
        }
    }
}
