//! Puts modules on their ports and takes them off again.

mod routers;
mod settings;

use std::{collections::HashMap, future::Future, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use sqlx::PgPool;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

pub use self::settings::Settings;
use crate::{
    config::{ConfigError, Env},
    health::{Checked, Readiness},
    jwt::Verifier,
    metrics::Metrics,
    module::{self, Http, Method, Module},
    observe::Observer,
    server,
};

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

/// What the modules of a process bring, put together.
struct Parts {
    grpc: Router,
    http: Option<Router>,
    methods: HashMap<String, Method>,
    public: Vec<&'static str>,
    public_paths: Vec<&'static str>,
    checked: Vec<Checked>,
    pools: Vec<(&'static str, PgPool)>,
    reflection: tonic_reflection::server::Builder<'static>,
}

impl Parts {
    fn gather(modules: Vec<Module>) -> Result<Self, AppError> {
        let health = tonic_health::pb::FILE_DESCRIPTOR_SET;
        let read = |module, descriptors| {
            module::methods(descriptors).map_err(|source| AppError::Descriptors { module, source })
        };
        let mut parts = Self {
            grpc: Router::new(),
            http: None,
            methods: read("health", health)?,
            public: Vec::new(),
            public_paths: Vec::new(),
            checked: Vec::new(),
            pools: Vec::new(),
            reflection: tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(health),
        };
        for Module { name, grpc, descriptors, public, http, database } in modules {
            let methods = read(name, descriptors)?;
            let services = services(&methods);
            parts.methods.extend(methods);
            parts.reflection = parts.reflection.register_encoded_file_descriptor_set(descriptors);
            parts.grpc = parts.grpc.merge(grpc.into_axum_router().reset_fallback());
            if let Some(Http { routes, names, public }) = http {
                parts.http = Some(parts.http.unwrap_or_default().merge(routes));
                parts.methods.extend(names.iter().map(|&path| {
                    (path.to_owned(), Method { service: name.to_owned(), method: path.to_owned() })
                }));
                parts.public_paths.extend(public);
            }
            parts.public.extend(public);
            parts.pools.push((name, database.pool.clone()));
            parts.checked.push(Checked { name, services, database });
        }
        Ok(parts)
    }
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
        let parts = Parts::gather(modules)?;
        let settings = Settings::from_env(env, parts.http.is_some())?;
        let verifier = Verifier::from_env(env)?
            .map(|verifier| Arc::new(verifier.with_public(parts.public, parts.public_paths)));
        let (reporter, health) = tonic_health::server::health_reporter();
        let chassis = Routes::new(health).add_service(parts.reflection.build_v1()?);
        let metrics = Metrics::new(parts.methods, parts.pools);
        let readiness = Readiness::new(reporter, parts.checked);
        let observer = Observer {
            metrics: metrics.clone(),
            policy: settings.access_log,
            grpc: true,
            trust_x_user: verifier.is_none(),
        };
        let http = parts.http.map(|modules| {
            let observer = Observer { grpc: false, ..observer.clone() };
            let (max, longest) = (settings.max_concurrent, settings.request_timeout);
            routers::http(modules, max, verifier.clone(), longest, observer).merge(readiness.routes())
        });
        let grpc = routers::grpc(
            parts.grpc,
            chassis.into_axum_router().reset_fallback(),
            settings.max_concurrent,
            verifier,
            settings.request_timeout,
            observer,
        );

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

fn services(methods: &HashMap<String, Method>) -> Vec<String> {
    let mut services: Vec<_> = methods.values().map(|method| method.service.clone()).collect();
    services.sort();
    services.dedup();
    services
}

async fn expose(State(metrics): State<Metrics>) -> Response {
    match metrics.encode() {
        Ok(text) => ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text)
            .into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
