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

use crate::context::Context;

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

/// Serves `/livez`, `/readyz` and `/metrics` for the life of the process.
///
/// # Errors
/// When the address cannot be bound or the server fails.
pub async fn serve(address: SocketAddr, ctx: Arc<Context>, readiness: Readiness) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|e| anyhow::anyhow!("--admin-address {address}: {e}; choose another address or port"))?;
    let ready = move || async move {
        if readiness.is_set() {
            (StatusCode::OK, "ok")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "caches are filling")
        }
    };
    let router = Router::new()
        .route("/livez", get(async || "ok"))
        .route("/readyz", get(ready))
        .route("/metrics", get(async |State(ctx): State<Arc<Context>>| ctx.metrics.encode()))
        .with_state(ctx);
    axum::serve(listener, router).await?;
    Ok(())
}
