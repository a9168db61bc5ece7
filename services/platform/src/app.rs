//! Puts modules on their ports and takes them off again.

use std::{any::Any, collections::HashMap, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    error_handling::HandleErrorLayer,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::get,
};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::{Status, service::Routes};
use tower::{BoxError, ServiceBuilder, limit::GlobalConcurrencyLimitLayer, load_shed::LoadShedLayer};
use tower_http::catch_panic::CatchPanicLayer;

use crate::{
    access_log::{Mode, Policy},
    config::{ConfigError, Env},
    deadline,
    health::{Checked, Readiness},
    jwt::{self, Verifier},
    metrics::Metrics,
    module::{self, Method, Module},
    observe::{Observer, observe},
    server,
};

/// Ports, limits and times of a process.
#[derive(Clone, Debug)]
pub struct Settings {
    /// gRPC: `GRPC_PORT`; else `PORT`, unless HTTP has it; else 50051.
    pub grpc_port: u16,
    /// HTTP, when a module serves it: `PORT`, else 8080.
    pub http_port: u16,
    /// Metrics and health over HTTP: `METRICS_PORT`, 9090.
    pub metrics_port: u16,
    /// `ACCESS_LOG` (`All`) and `ACCESS_LOG_SLOW` (1s).
    pub access_log: Policy,
    /// `REQUEST_TIMEOUT` (30s): the longest time to a first byte.
    pub request_timeout: Duration,
    /// `MAX_CONCURRENT_REQUESTS` (512) per listener; more are refused.
    pub max_concurrent: usize,
    /// `DRAIN_TIMEOUT` (20s): how long running requests may take at the end.
    pub drain_timeout: Duration,
}

impl Settings {
    /// Reads the settings of a process with (`http`) or without HTTP modules.
    ///
    /// # Errors
    /// When a variable is wrong.
    pub fn from_env(env: &Env, http: bool) -> Result<Self, ConfigError> {
        let port = |name, default| env.or(name, default, "a port number from 0 to 65535");
        let grpc_port =
            if http { port("GRPC_PORT", 50051) } else { port("GRPC_PORT", port("PORT", 50051)?) }?;
        Ok(Self {
            grpc_port,
            http_port: port("PORT", 8080)?,
            metrics_port: port("METRICS_PORT", 9090)?,
            access_log: Policy {
                mode: env.parse::<Mode>("ACCESS_LOG", "All, Abnormal or Off")?.unwrap_or(Mode::All),
                slow: env.duration("ACCESS_LOG_SLOW", Duration::from_secs(1))?,
            },
            request_timeout: env.duration("REQUEST_TIMEOUT", Duration::from_secs(30))?,
            max_concurrent: env.or("MAX_CONCURRENT_REQUESTS", 512, "a number of requests")?,
            drain_timeout: env.duration("DRAIN_TIMEOUT", Duration::from_secs(20))?,
        })
    }
}

/// Why a process cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot listen on port {port} ({variable})")]
    Listen {
        variable: &'static str,
        port: u16,
        #[source]
        source: std::io::Error,
    },
    #[error("the descriptors of module {module} are broken")]
    Descriptors {
        module: &'static str,
        #[source]
        source: prost::DecodeError,
    },
    #[error("reflection cannot be built")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Modules on bound ports, not serving yet.
pub struct App {
    listeners: Vec<(TcpListener, Router)>,
    metrics: (TcpListener, Router),
    readiness: Readiness,
    drain_timeout: Duration,
    /// Where gRPC is served.
    pub grpc_addr: SocketAddr,
    /// Where HTTP is served, when a module does.
    pub http_addr: Option<SocketAddr>,
    /// Where metrics and health are served.
    pub metrics_addr: SocketAddr,
}

impl App {
    /// Binds the ports of `modules`.
    ///
    /// # Errors
    /// When a setting is wrong or a port is taken.
    pub async fn bind(env: &Env, modules: Vec<Module>) -> Result<Self, AppError> {
        let settings = Settings::from_env(env, modules.iter().any(|module| module.http.is_some()))?;
        let verifier = Verifier::from_env(env, modules.iter().any(|module| module.issues_tokens))?;
        let (reporter, health) = tonic_health::server::health_reporter();
        let mut reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET);
        let mut methods = module::methods(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .map_err(|source| AppError::Descriptors { module: "health", source })?;
        let (mut grpc, mut http, mut checked, mut public) = (Router::new(), None, Vec::new(), Vec::new());
        let mut pools = Vec::new();
        for module in modules {
            let own = module::methods(module.descriptors)
                .map_err(|source| AppError::Descriptors { module: module.name, source })?;
            reflection = reflection.register_encoded_file_descriptor_set(module.descriptors);
            checked.push(Checked {
                name: module.name,
                services: services(&own),
                database: module.database.clone(),
            });
            methods.extend(own);
            pools.push((module.name, module.database.pool));
            public.extend(module.public);
            grpc = grpc.merge(module.grpc.into_axum_router().reset_fallback());
            if let Some((router, paths)) = module.http {
                http = Some(http.unwrap_or_else(Router::new).merge(router));
                methods.extend(paths.iter().map(|path| {
                    let method = Method { service: module.name.to_owned(), method: (*path).to_owned() };
                    ((*path).to_owned(), method)
                }));
            }
        }
        let metrics = Metrics::new(methods, pools);
        let readiness = Readiness::new(reporter, checked);
        let observer = Observer {
            metrics: metrics.clone(),
            policy: settings.access_log,
            grpc: true,
            trust_x_user: verifier.is_none(),
        };

        // Health is exempt from the limit: a busy process is not a dead one.
        let grpc = limit(grpc, settings.max_concurrent, |status: Status| status.into_http())
            .merge(
                Routes::new(health).add_service(reflection.build_v1()?).into_axum_router().reset_fallback(),
            )
            .fallback(|| async { Status::unimplemented("no such method").into_http::<Body>() })
            .layer(CatchPanicLayer::custom(|panic: Box<dyn Any + Send>| {
                log_panic(&*panic);
                Status::internal("internal error").into_http::<Body>()
            }));
        let grpc = match verifier {
            Some(verifier) => {
                grpc.layer(from_fn_with_state(Arc::new(verifier.with_public(public)), jwt::require))
            }
            None => grpc,
        };
        let grpc = grpc
            .layer(from_fn_with_state(settings.request_timeout, deadline::enforce))
            .layer(from_fn_with_state(observer.clone(), observe));
        let http = http.map(|http| {
            limit(http, settings.max_concurrent, |_| StatusCode::SERVICE_UNAVAILABLE.into_response())
                .layer(CatchPanicLayer::custom(|panic: Box<dyn Any + Send>| {
                    log_panic(&*panic);
                    StatusCode::INTERNAL_SERVER_ERROR.into_response()
                }))
                .layer(from_fn_with_state(Observer { grpc: false, ..observer }, observe))
                .merge(readiness.routes())
        });

        let (grpc_listener, grpc_addr) = listen("PORT or GRPC_PORT", settings.grpc_port).await?;
        let mut listeners = vec![(grpc_listener, grpc)];
        let mut http_addr = None;
        if let Some(http) = http {
            let (listener, addr) = listen("PORT", settings.http_port).await?;
            listeners.push((listener, http));
            http_addr = Some(addr);
        }
        let (metrics_listener, metrics_addr) = listen("METRICS_PORT", settings.metrics_port).await?;
        let exposition = Router::new().route("/metrics", get(expose)).with_state(metrics);
        Ok(Self {
            listeners,
            metrics: (metrics_listener, exposition.merge(readiness.routes())),
            readiness,
            drain_timeout: settings.drain_timeout,
            grpc_addr,
            http_addr,
            metrics_addr,
        })
    }

    /// Serves until `shutdown`, then drains: health says so, no connection is
    /// accepted, running requests finish or are cut off at the deadline.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let (stop, stop_metrics) = (CancellationToken::new(), CancellationToken::new());
        tracing::info!(grpc = %self.grpc_addr, http = ?self.http_addr, metrics = %self.metrics_addr, "serving");
        tokio::spawn(server::serve(self.metrics.0, self.metrics.1, stop_metrics.clone()));
        let watch = tokio::spawn(self.readiness.clone().watch(stop.clone()));
        let mut servers = JoinSet::new();
        for (listener, router) in self.listeners {
            servers.spawn(server::serve(listener, router, stop.clone()));
        }
        shutdown.await;
        tracing::info!("draining");
        stop.cancel();
        // A check that runs now must not overwrite what drain says.
        let _ = watch.await;
        self.readiness.drain().await;
        if tokio::time::timeout(self.drain_timeout, servers.join_all()).await.is_err() {
            tracing::warn!("requests were still running at the end of DRAIN_TIMEOUT and are cut off");
        }
        stop_metrics.cancel();
        tracing::info!("stopped");
    }
}

async fn listen(variable: &'static str, port: u16) -> Result<(TcpListener, SocketAddr), AppError> {
    let failed = |source| AppError::Listen { variable, port, source };
    // Both families where the host has IPv6.
    let listener = match TcpListener::bind(("::", port)).await {
        Ok(listener) => listener,
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => return Err(failed(error)),
        Err(_) => TcpListener::bind(("0.0.0.0", port)).await.map_err(failed)?,
    };
    let addr = listener.local_addr().map_err(failed)?;
    Ok((listener, addr))
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

fn services(methods: &HashMap<String, Method>) -> Vec<String> {
    let mut services: Vec<_> = methods.values().map(|method| method.service.clone()).collect();
    services.sort();
    services.dedup();
    services
}

fn log_panic(panic: &(dyn Any + Send)) {
    let text =
        panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    tracing::error!(panic = text.unwrap_or("no message"), "a handler panicked");
}

async fn expose(State(metrics): State<Metrics>) -> Response {
    match metrics.encode() {
        Ok(text) => ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
            .into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
