//! The controllers, one for each kind.

use std::sync::Arc;

use crate::context::Context;

/// Runs every controller until the process ends.
pub async fn run(_ctx: Arc<Context>) {
    std::future::pending::<()>().await;
}
