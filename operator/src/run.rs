//! The composition root: everything is wired here and nowhere else.

use std::{pin::pin, sync::Arc, time::Duration};

use kube::Client;
use tokio::signal::unix::{SignalKind, signal};

use crate::{
    admin::{self, Readiness},
    client,
    config::Config,
    context::Context,
    controllers,
    leader::{self, Leadership},
    telemetry,
};

/// How long passes that run may go on after SIGTERM.
const DRAIN: Duration = Duration::from_secs(1);

/// Runs the operator against the cluster of its environment until SIGTERM, or
/// until the Lease is lost.
///
/// # Errors
/// When the cluster cannot be reached at start, or as [`operate_until`].
pub async fn run(config: Config) -> anyhow::Result<()> {
    let _telemetry = telemetry::start(&config.log)?;
    let client = client::from_config(kube::Config::infer().await?)?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let stop = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    operate_until(stop, client, config).await
}

/// Runs the operator until the Lease is lost.
///
/// # Errors
/// As [`operate_until`].
pub async fn operate(client: Client, config: Config) -> anyhow::Result<()> {
    operate_until(std::future::pending(), client, config).await
}

/// Runs the operator until `stop` or until the Lease is lost.
///
/// Caches are filled on every replica; controllers run on the one that holds
/// the Lease. A lost Lease ends the process: a fresh one cannot act on what an
/// old leader still had in hand.
///
/// # Errors
/// When an address cannot be bound, or the Lease is lost.
pub async fn operate_until(
    stop: impl Future<Output = ()>,
    client: Client,
    config: Config,
) -> anyhow::Result<()> {
    let fence = leader::fence();
    let leadership = Leadership::new(client.clone(), &config, fence.clone());
    let ctx = Arc::new(Context::new(client, config, fence)?);
    let readiness = Readiness::default();
    tokio::select! {
        result = admin::serve(ctx.config.admin_address, ctx.clone(), readiness.clone()) => result,
        result = Box::pin(lead(ctx, leadership, readiness, stop)) => result,
    }
}

async fn lead(
    ctx: Arc<Context>,
    mut leadership: Leadership,
    readiness: Readiness,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let mut stop = pin!(stop);
    let acquired = async {
        ctx.stores.ready().await;
        readiness.set();
        leadership.acquire(|| ctx.stores.are_current()).await;
    };
    let is_leader = tokio::select! {
        () = acquired => true,
        () = &mut stop => false,
    };
    if !is_leader {
        leadership.release().await;
        return Ok(());
    }
    ctx.metrics.set_leader(true);
    tracing::info!(identity = leadership.identity(), "leading");
    {
        let mut work = Box::pin(controllers::run(ctx.clone()));
        let mut kept = pin!(leadership.keep());
        tokio::select! {
            () = &mut work => anyhow::bail!("a controller ended"),
            () = &mut kept => anyhow::bail!("the Lease was lost"),
            () = &mut stop => {}
        }
        tracing::info!("stopping");
        ctx.passes.close();
        let drained = async {
            tokio::select! {
                () = ctx.passes.wait() => {}
                () = work => {}
                () = kept => {}
            }
        };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!("a pass is cut off; the next leader finishes its work");
        }
    }
    // No other replica may begin before the last write of this one is over.
    ctx.fence.close();
    ctx.fence.idle().await;
    leadership.release().await;
    Ok(())
}
