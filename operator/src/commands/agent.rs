//! `peristyle agent`: hands a ConfigMap to the component beside it as a file,
//! at once, and says when the component has loaded it. A mounted ConfigMap
//! takes up to 80 s, and nobody knows when.

mod component;
mod file;
mod lag;

use std::{
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use clap::Args;
use futures::{Stream, StreamExt};
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
};

use self::{
    component::{Component, Kind},
    lag::Lag,
};
use crate::{backoff::WatchBackoff, external::http, telemetry};

/// The file is replaced no more often than this: each time all rules are read anew.
const PAUSE: Duration = Duration::from_millis(250);

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
    lag: Mutex<Lag>,
}

impl Delivery {
    fn lag(&self) -> MutexGuard<'_, Lag> {
        // A panic of another thread leaves nothing half done in it.
        self.lag.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
    let delivery = Arc::new(Delivery {
        component: Component::new(agent.component, agent.check.as_deref(), http::client()?),
        lag: Mutex::default(),
    });
    let client = Client::try_default().await?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        result = serve(agent.listen, delivery.clone()) => result,
        result = deliver(&agent, client, &delivery) => result,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}

/// Writes the file whenever the ConfigMap changes. A ConfigMap that is gone or
/// empty leaves the file as it is: what protects stays in force.
async fn deliver(agent: &Agent, client: Client, delivery: &Delivery) -> anyhow::Result<()> {
    let api: Api<ConfigMap> = Api::namespaced(client, &agent.namespace);
    let config = watcher::Config::default().fields(&format!("metadata.name={}", agent.config_map));
    let events = watcher(api, config).backoff(WatchBackoff::default()).applied_objects();
    let texts = events.filter_map(async |event| {
        let text = match event {
            Ok(config_map) => config_map.data.and_then(|mut data| data.remove(&agent.key)),
            Err(error) => {
                tracing::warn!(%error, "watch failed, retrying");
                return None;
            }
        };
        let text = text.filter(|text| !text.trim().is_empty());
        if text.is_none() {
            tracing::warn!(config_map = %agent.config_map, key = %agent.key, "empty; the file stays as it is");
        }
        text
    });
    follow(texts, |text| {
        if delivery.lag().newest().as_ref() == Some(&text) {
            return Ok(());
        }
        file::write(&agent.file, &text)?;
        tracing::info!(file = %agent.file.display(), bytes = text.len(), "delivered");
        delivery.lag().delivered(text, Instant::now());
        Ok(())
    })
    .await?;
    anyhow::bail!("the watch ended")
}

/// Writes the first of `texts` at once, and then the latest, at intervals.
async fn follow(
    texts: impl Stream<Item = String>,
    mut write: impl FnMut(String) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut texts = std::pin::pin!(texts);
    let mut free = tokio::time::Instant::now();
    let mut latest: Option<String> = None;
    loop {
        tokio::select! {
            text = texts.next() => match text {
                Some(text) => latest = Some(text),
                None => return latest.map_or(Ok(()), write),
            },
            () = tokio::time::sleep_until(free), if latest.is_some() => {
                if let Some(text) = latest.take() {
                    write(text)?;
                }
                free = tokio::time::Instant::now() + PAUSE;
            }
        }
    }
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
    let Some(content) = delivery.lag().newest() else {
        return (StatusCode::SERVICE_UNAVAILABLE, "the ConfigMap has not been seen yet".to_owned());
    };
    match delivery.component.has_loaded(&content).await {
        Ok(()) => {
            delivery.lag().loaded(&content);
            (StatusCode::OK, "ok".to_owned())
        }
        Err(problem) if delivery.lag().is_excused(Instant::now()) => (StatusCode::OK, problem),
        Err(problem) => (StatusCode::SERVICE_UNAVAILABLE, problem),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_comes_in_quick_succession_is_written_once_and_the_last_is_never_lost() {
        let (sender, texts) = tokio::sync::mpsc::unbounded_channel();
        let (mut written, mut sender) = (Vec::new(), Some(sender));
        for text in 1..=50 {
            sender.as_ref().unwrap().send(text.to_string()).unwrap();
        }
        let texts = tokio_stream::wrappers::UnboundedReceiverStream::new(texts);
        let started = Instant::now();
        follow(texts, |text| {
            if text == "50" {
                // The end of the watch, so that the test ends too.
                drop(sender.take());
            }
            written.push(text);
            Ok(())
        })
        .await
        .unwrap();
        assert_eq!(written.last().unwrap(), "50");
        let most = started.elapsed().as_millis() / PAUSE.as_millis() + 2;
        assert!(written.len() as u128 <= most, "{written:?}");
    }
}
