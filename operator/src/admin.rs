//! Probes and metrics.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::net::TcpListener;

use crate::{context::Context, watch::health::Health};

/// Set once every cache holds its first list.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// The process is ready from now on.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Serves `/livez`, `/readyz` and `/metrics` for the life of the process. A
/// line of `/readyz` names each watch that fails.
///
/// # Errors
/// When the address cannot be bound or the server fails.
pub async fn serve(address: SocketAddr, ctx: Arc<Context>, readiness: Readiness) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|e| anyhow::anyhow!("--admin-address {address}: {e}; choose another address or port"))?;
    let ready = async move |State(ctx): State<Arc<Context>>| {
        if readiness.is_set() {
            (StatusCode::OK, report("ok", ctx.stores.healths()))
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, report("caches are filling", ctx.stores.healths()))
        }
    };
    let router = Router::new()
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(ctx);
    axum::serve(listener, router).await?;
    Ok(())
}

async fn metrics(State(ctx): State<Arc<Context>>) -> String {
    for health in ctx.stores.healths() {
        ctx.metrics.set_watch(health.path(), health.problem().is_some());
    }
    ctx.metrics.encode()
}

/// `state`, and a line for each watch that fails: without its right, for
/// example, a start waits for ever.
fn report(state: &str, healths: &[Health]) -> String {
    let problems = healths.iter().filter_map(|health| Some((health.path(), health.problem()?)));
    problems.fold(state.to_owned(), |text, (path, problem)| format!("{text}\n{path}: {}", problem.text))
}
