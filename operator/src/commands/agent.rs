//! `peristyle agent`: hands a ConfigMap to the component beside it as a file,
//! at once, and says when the component has loaded it. A mounted ConfigMap
//! takes up to 80 s, and nobody knows when.

mod component;
mod file;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use clap::Args;
use futures::StreamExt;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    runtime::{
        WatchStreamExt,
        watcher::{self, watcher},
    },
};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

use self::component::{Component, Kind};
use crate::{backoff::WatchBackoff, external::http, telemetry};

/// Settings of `peristyle agent`.
#[derive(Args, Clone, Debug)]
pub struct Agent {
    /// What runs beside this process.
    #[arg(long, value_enum)]
    component: Kind,

    /// Namespace of the ConfigMap.
    #[arg(long, env = "POD_NAMESPACE")]
    namespace: String,

    /// Name of the ConfigMap.
    #[arg(long)]
    config_map: String,

    /// Key of the ConfigMap.
    #[arg(long)]
    key: String,

    /// File that receives the key's content. Its directory must be writable.
    #[arg(long)]
    file: PathBuf,

    /// Content of the file until the ConfigMap holds some. Default: no rule, or no namespace.
    #[arg(long)]
    initial: Option<String>,

    /// Address of the component's API. Default: its usual port on this host.
    #[arg(long)]
    check: Option<String>,

    /// Address of probes: `/livez`, `/filez` (the file is there), `/readyz` (it is loaded).
    #[arg(long, default_value = "0.0.0.0:8081")]
    listen: SocketAddr,

    /// Log filter, as of the crate `tracing-subscriber`.
    #[arg(long, env = "PERISTYLE_LOG", default_value = "info")]
    log: String,
}

/// What was delivered, for the probes.
struct Delivery {
    component: Component,
    /// Content of the file once it comes from the ConfigMap.
    content: watch::Receiver<Option<String>>,
}

/// Runs the agent until SIGTERM.
///
/// # Errors
/// When the file cannot be written, the address cannot be bound, or there is no
/// cluster to ask.
pub async fn run(agent: Agent) -> anyhow::Result<()> {
    let _telemetry = telemetry::start(&agent.log)?;
    let initial = agent.initial.clone().unwrap_or_else(|| agent.component.initial());
    if !agent.file.exists() {
        file::write(&agent.file, &initial)?;
    }
    let (sender, content) = watch::channel(None);
    let delivery = Arc::new(Delivery {
        component: Component::new(agent.component, agent.check.as_deref(), http::client()?),
        content,
    });
    let client = Client::try_default().await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        result = serve(agent.listen, delivery) => result,
        result = deliver(&agent, client, sender) => result,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// Writes the file whenever the ConfigMap changes. A ConfigMap that is gone or
/// empty leaves the file as it is: what protects stays in force.
async fn deliver(
    agent: &Agent,
    client: Client,
    content: watch::Sender<Option<String>>,
) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &agent.namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={}", agent.config_map));
    let mut config_maps = watcher(api, config).backoff(WatchBackoff::default()).applied_objects().boxed();
    while let Some(event) = config_maps.next().await {
        let text = match event {
            Ok(config_map) => config_map.data.and_then(|mut data| data.remove(&agent.key)),
            Err(error) => {
                tracing::warn!(%error, "watch failed, retrying");
                continue;
            }
        };
        let Some(text) = text.filter(|text| !text.trim().is_empty()) else {
            tracing::warn!(config_map = %agent.config_map, key = %agent.key, "empty; the file stays as it is");
            continue;
        };
        if content.borrow().as_ref() == Some(&text) {
            continue;
        }
        file::write(&agent.file, &text)?;
        tracing::info!(file = %agent.file.display(), bytes = text.len(), "delivered");
        content.send_replace(Some(text));
    }
    anyhow::bail!("the watch ended")
}

async fn serve(address: SocketAddr, delivery: Arc<Delivery>) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address)
        .await
        .map_err(|e| anyhow::anyhow!("--listen {address}: {e}; choose another address or port"))?;
    let router = Router::new()
        .route("/livez", get(async || "ok"))
        // The file is written before this server starts.
        .route("/filez", get(async || "ok"))
        .route("/readyz", get(ready))
        .with_state(delivery);
    axum::serve(listener, router).await?;
    Ok(())
}

async fn ready(State(delivery): State<Arc<Delivery>>) -> (StatusCode, String) {
    let content = delivery.content.borrow().clone();
    let Some(content) = content else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the ConfigMap has not been seen yet".to_owned());
    };
    match delivery.component.has_loaded(&content).await {
        Ok(()) => (StatusCode::OK, "ok".to_owned()),
        Err(problem) => (StatusCode::SERVICE_UNAVAILABLE, problem),
    }
}
