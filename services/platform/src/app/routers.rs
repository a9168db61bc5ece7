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
    verifier: Option<Arc<Verifier>>,
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
        Some(verifier) => router.layer(from_fn_with_state(verifier, jwt::require)),
        None => router,
    };
    router.layer(from_fn_with_state(longest, deadline::enforce)).layer(from_fn_with_state(observer, observe))
}

/// The HTTP listener, without the probes.
pub(super) fn http(
    modules: Router,
    max_concurrent: usize,
    verifier: Option<Arc<Verifier>>,
    longest: Duration,
    observer: Observer,
) -> Router {
    let router = limit(modules, max_concurrent, |_| StatusCode::SERVICE_UNAVAILABLE.into_response())
        // One of its own: the default one would be replaced, layers and all, where the probes are merged.
        .fallback(|| async { StatusCode::NOT_FOUND })
        .layer(CatchPanicLayer::custom(|panic: Box<dyn Any + Send>| {
            log_panic(&*panic);
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }));
    let router = match verifier {
        Some(verifier) => router.layer(from_fn_with_state(verifier, jwt::require_over_http)),
        None => router,
    };
    router
        .layer(from_fn_with_state(longest, deadline::enforce_over_http))
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

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use axum::{extract::Request, routing::post};
    use tonic::Code;
    use tower::ServiceExt;

    use super::*;
    use crate::{
        access_log::{Mode, Policy},
        metrics::Metrics,
        module::Method,
    };

    async fn panicking() {
        panic!("on purpose")
    }

    struct Served {
        router: Router,
        metrics: Metrics,
    }

    /// A listener with a method that never answers and one that panics, for
    /// at most one request at a time.
    fn served() -> Served {
        let method =
            |name: &str| (format!("/a.B/{name}"), Method { service: "a.B".into(), method: name.into() });
        let metrics = Metrics::new(HashMap::from([method("Hang"), method("Panic")]), Vec::new());
        let modules = Router::new()
            .route("/a.B/Hang", post(std::future::pending::<()>))
            .route("/a.B/Panic", post(panicking));
        let policy = Policy { mode: Mode::Off, slow: Duration::MAX };
        let observer = Observer { metrics: metrics.clone(), policy, grpc: true, trust_x_user: false };
        let longest = Duration::from_secs(30);
        Served { router: grpc(modules, Router::new(), 1, None, longest, observer), metrics }
    }

    impl Served {
        async fn call(&self, path: &str, timeout: &str) -> Code {
            let request = Request::post(path).header("grpc-timeout", timeout).body(Body::empty()).unwrap();
            let response = self.router.clone().oneshot(request).await.unwrap();
            Status::from_header_map(response.headers()).unwrap().code()
        }

        fn counted(&self, method: &str, code: &str) -> bool {
            let service = if method == "unknown" { "unknown" } else { "a.B" };
            let line = format!(
                r#"grpc_server_handled_total{{service="{service}",method="{method}",code="{code}"}} 1"#
            );
            self.metrics.encode().unwrap().contains(&line)
        }
    }

    #[tokio::test]
    async fn a_panic_is_an_internal_error_that_is_counted() {
        let served = served();
        assert_eq!(served.call("/a.B/Panic", "1S").await, Code::Internal);
        assert!(served.counted("Panic", "INTERNAL"));
    }

    #[tokio::test]
    async fn an_answer_that_comes_too_late_is_not_waited_for() {
        let served = served();
        assert_eq!(served.call("/a.B/Hang", "20m").await, Code::DeadlineExceeded);
        assert!(served.counted("Hang", "DEADLINE_EXCEEDED"));
    }

    #[tokio::test]
    async fn a_malformed_deadline_and_an_unknown_method_are_refused_and_counted() {
        let served = served();
        assert_eq!(served.call("/a.B/Hang", "soon").await, Code::InvalidArgument);
        assert!(served.counted("Hang", "INVALID_ARGUMENT"));
        assert_eq!(served.call("/no.Such/Method", "1S").await, Code::Unimplemented);
        assert!(served.counted("unknown", "UNIMPLEMENTED"));
    }

    #[tokio::test]
    async fn what_is_too_much_is_refused_at_once() {
        let served = served();
        let (hanging, refused) = tokio::join!(served.call("/a.B/Hang", "300m"), async {
            tokio::task::yield_now().await;
            served.call("/a.B/Hang", "1S").await
        });
        assert_eq!((hanging, refused), (Code::DeadlineExceeded, Code::ResourceExhausted));
    }

    #[tokio::test]
    async fn a_request_over_http_is_not_waited_for_either() {
        let modules = Router::new().route("/hang", post(std::future::pending::<()>));
        let policy = Policy { mode: Mode::Off, slow: Duration::MAX };
        let metrics = Metrics::new(HashMap::new(), Vec::new());
        let observer = Observer { metrics, policy, grpc: false, trust_x_user: false };
        let router = http(modules, 1, None, Duration::from_millis(20), observer);
        let request = Request::post("/hang").body(Body::empty()).unwrap();
        assert_eq!(router.oneshot(request).await.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
    }

    #[tokio::test]
    async fn a_caller_who_goes_away_is_counted_as_cancelled() {
        let served = served();
        let gone = tokio::time::timeout(Duration::from_millis(20), served.call("/a.B/Hang", "1S")).await;
        assert!(gone.is_err());
        assert!(served.counted("Hang", "CANCELLED"));
    }
}
