//! The controllers, one for each kind.

pub mod auth_class;
pub mod auth_policy;
pub mod edge_class;
pub mod service;

use std::sync::Arc;

use crate::context::Context;

/// Runs every controller until the process ends.
pub async fn run(ctx: Arc<Context>) {
    tokio::join!(
        auth_policy::run(ctx.clone()),
        auth_class::run(ctx.clone()),
        edge_class::run(ctx.clone()),
        service::run(ctx),
    );
}
