//! The controllers, one for each kind.

pub mod auth_class;
pub mod auth_policy;
pub mod database;
pub mod database_class;
pub mod edge_class;
pub mod service;

use std::sync::Arc;

use futures::stream::BoxStream;

use crate::{
    auth::reach::{Reach, reaches},
    context::Context,
};

/// Changes of who decides about access, with those whom they concern.
pub(crate) type Reaches = BoxStream<'static, Arc<Reach>>;

/// Runs every controller until the process ends.
pub async fn run(ctx: Arc<Context>) {
    let (telling, [of_classes, of_policies, of_services]) = reaches(&ctx.stores);
    tokio::join!(
        telling,
        auth_class::run(ctx.clone(), of_classes),
        auth_policy::run(ctx.clone(), of_policies),
        database::run(ctx.clone()),
        database_class::run(ctx.clone()),
        edge_class::run(ctx.clone()),
        service::run(ctx, of_services),
    );
}
