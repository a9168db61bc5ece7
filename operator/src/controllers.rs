//! The controllers, one for each kind.

pub mod auth_class;
pub mod auth_policy;

use std::sync::Arc;

use crate::context::Context;

/// Runs every controller until the process ends.
pub async fn run(ctx: Arc<Context>) {
    tokio::join!(auth_policy::run(ctx.clone()), auth_class::run(ctx));
}
