//! The layers around the modules, from the outside in: observed, in time,
//! with a token, not too many at once, and no panic gets out.

use std::{any::Any, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    error_handling::HandleErrorLayer,
    http::StatusCode,
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
};
use tonic::Status;
use tower::{BoxError, ServiceBuilder, limit::GlobalConcurrencyLimitLayer, load_shed::LoadShedLayer};
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    deadline,
    jwt::{self, Verifier},
    observe::{Observer, observe},
};

/// The gRPC listener. `chassis` holds health and reflection, which are exempt
/// from the limit: a busy process is not a dead one.
pub(super) fn grpc(
    modules: Router,
    chassis: Router,
    max_concurrent: usize,
    verifier: Option<Verifier>,
    longest: Duration,
    observer: Observer,
) -> Router {
    let router = limit(modules, max_concurrent, Status::into_http)
        .merge(chassis)
        .fallback(|| async { Status::unimplemented("no such method").into_http::<Body>() })
        .layer(CatchPanicLayer::custom(|panic: Box<dyn Any + Send>| {
            log_panic(&*panic);
            Status::internal("internal error").into_http::<Body>()
        }));
    let router = match verifier {
        Some(verifier) => router.layer(from_fn_with_state(Arc::new(verifier), jwt::require)),
        None => router,
    };
    router.layer(from_fn_with_state(longest, deadline::enforce)).layer(from_fn_with_state(observer, observe))
}

/// The HTTP listener, without the probes.
pub(super) fn http(modules: Router, max_concurrent: usize, observer: Observer) -> Router {
    limit(modules, max_concurrent, |_| StatusCode::SERVICE_UNAVAILABLE.into_response())
        .layer(CatchPanicLayer::custom(|panic: Box<dyn Any + Send>| {
            log_panic(&*panic);
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }))
        .layer(from_fn_with_state(observer, observe))
}

fn limit(router: Router, max: usize, refuse: fn(Status) -> Response) -> Router {
    let overloaded = HandleErrorLayer::new(move |_: BoxError| async move {
        refuse(Status::resource_exhausted("too many requests at once: try again later"))
    });
    router.layer(
        ServiceBuilder::new()
            .layer(overloaded)
            .layer(LoadShedLayer::new())
            .layer(GlobalConcurrencyLimitLayer::new(max)),
    )
}

fn log_panic(panic: &(dyn Any + Send)) {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    tracing::error!(panic = text.unwrap_or("no message"), "a handler panicked");
}
