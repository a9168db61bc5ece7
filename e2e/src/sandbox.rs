//! The life of a sandbox: up, status and down.

mod full;

use std::fs;
use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use ipnet::Ipv4Net;
use tokio::signal::unix::{SignalKind, signal};

use crate::cluster::{self, Cluster};
use crate::control_plane;
use crate::daemon;
use crate::node::leftovers;
use crate::progress::Progress;
use crate::state::{Kind, Settings, State};
use crate::substrate::{self, Component};

/// How long an API server that works may take to say so.
const ANSWER: Duration = Duration::from_secs(5);

/// What `up` makes.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// A control plane with one node.
    Full {
        /// The addresses to use; none for the first that are free.
        network: Option<Ipv4Net>,
        /// Ports of 127.0.0.1 that lead to the same host ports of the node.
        published: Vec<u16>,
    },
    /// etcd, kube-apiserver and kube-controller-manager only.
    ControlPlane,
    /// Nothing: a cluster that exists is used.
    Existing { kubeconfig: PathBuf, context: Option<String> },
}

/// Brings the sandbox up. One that runs is left as it is; what a killed one
/// left on the machine is cleared first. After a failure or an interrupt only
/// the logs remain.
///
/// # Errors
/// Which step failed, the end of its log and what to do.
pub async fn up(state: &State, wanted: &Wanted, progress: &Progress) -> Result<()> {
    let _lock = state.lock()?;
    if runs(state).await {
        ensure_same(state, wanted)?;
        progress.say("the sandbox is up already");
        return Ok(());
    }
    clear(state, progress).await?;
    let outcome = unless_interrupted(async {
        match wanted {
            Wanted::Full { network, published } => full::up(state, *network, published, progress).await,
            Wanted::ControlPlane => control_plane::start_without_node(state, progress).await,
            Wanted::Existing { kubeconfig, context } => {
                adopt(state, kubeconfig, context.as_deref(), progress).await
            }
        }
    })
    .await;
    if let Err(error) = outcome {
        progress.say("clearing what was started");
        if let Err(uncleared) = leftovers::clear(state).await {
            progress
                .say(&format!("cannot clear everything, `cargo sandbox down` tries again: {uncleared:#}"));
        }
        let _ = fs::remove_file(state.path("settings.json"));
        let logs = state.path("logs");
        let place =
            if logs.exists() { format!("; its logs stay in {}", logs.display()) } else { String::new() };
        return Err(error.context(format!("the sandbox did not come up{place}")));
    }
    Ok(())
}

/// Ends the sandbox and removes everything of it but the cache.
///
/// # Errors
/// When something resists.
pub async fn down(state: &State) -> Result<()> {
    let progress = Progress::default();
    if !state.dir().exists() {
        progress.say("there is no sandbox");
        return Ok(());
    }
    let _lock = state.lock()?;
    clear(state, &progress).await?;
    fs::remove_dir_all(state.dir()).with_context(|| format!("cannot remove {}", state.dir().display()))?;
    progress.say("the sandbox is down");
    Ok(())
}

/// What a reader wants to know about the sandbox, in lines.
///
/// # Errors
/// When the settings cannot be read.
pub async fn status(state: &State) -> Result<String> {
    let Some(settings) = state.settings()? else {
        return Ok("the sandbox is down\n".to_owned());
    };
    let mut lines = vec![format!("{:<24} {}", "state directory", state.dir().display())];
    match &settings.cluster {
        Kind::Existing { kubeconfig, .. } => {
            lines.push(format!("{:<24} {}", "existing cluster", kubeconfig.display()));
        }
        Kind::Full { published, .. } => {
            let published: Vec<_> = published.iter().map(|port| format!("127.0.0.1:{port}")).collect();
            lines.push(format!("{:<24} {}", "published", published.join(" ")));
        }
        Kind::ControlPlane { .. } => {}
    }
    if let Some((address, port)) = settings.cluster.apiserver() {
        lines.push(format!("{:<24} https://{address}:{port}", "kube-apiserver"));
        lines.push(format!("{:<24} {}", "kubeconfig", state.text("kubeconfig")));
    }
    for (name, process) in daemon::recorded(state) {
        let health = if process.is_running() { "running" } else { "ENDED" };
        lines.push(format!("{name:<24} {health} (pid {})", process.pid));
    }
    let summary = if runs(state).await { "up" } else { "NOT UP: `cargo sandbox up` starts it again" };
    lines.push(format!("{:<24} {summary}", "sandbox"));
    Ok(lines.join("\n") + "\n")
}

/// The log of a component.
///
/// # Errors
/// When there is no such log; the error names those that exist.
pub fn log(state: &State, component: &str) -> Result<PathBuf> {
    let path = state.log(component);
    if path.exists() {
        return Ok(path);
    }
    let entries = fs::read_dir(state.path("logs")).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries
        .filter_map(|e| Some(e.path().file_name()?.to_str()?.strip_suffix(".log")?.to_owned()))
        .collect();
    names.sort();
    Err(anyhow!("there is no log of {component:?}; there are: {}", names.join(", ")))
}

/// Refuses to take the cluster that is up for one of another kind.
fn ensure_same(state: &State, wanted: &Wanted) -> Result<()> {
    let up = state.settings()?.map(|settings| settings.cluster);
    let is_same = match (wanted, &up) {
        (Wanted::Full { .. }, Some(Kind::Full { .. }))
        | (Wanted::ControlPlane, Some(Kind::ControlPlane { .. })) => true,
        (Wanted::Existing { kubeconfig, context }, Some(Kind::Existing { kubeconfig: of, context: its })) => {
            fs::canonicalize(kubeconfig)? == *of && context == its
        }
        _ => false,
    };
    ensure!(
        is_same,
        "another cluster is up in {}: run `cargo sandbox down` first, or name another --state-dir",
        state.dir().display()
    );
    Ok(())
}

/// Whether everything that `up` started still works.
async fn runs(state: &State) -> bool {
    let Ok(cluster) = Cluster::of(state) else {
        return false;
    };
    if daemon::check(state).is_err() {
        return false;
    }
    let Ok(client) = cluster.client().await else {
        return false;
    };
    // An API server that is stopped accepts and never answers.
    matches!(tokio::time::timeout(ANSWER, cluster::readiness(&client)).await, Ok(Ok(())))
}

/// Removes what a sandbox left, except its directory and the logs in it.
async fn clear(state: &State, progress: &Progress) -> Result<()> {
    let cleared = leftovers::clear(state).await.context("cannot clear what the last sandbox left")?;
    if !cleared.is_empty() {
        progress.say(&format!("cleared {}", cleared.join(", ")));
    }
    for entry in fs::read_dir(state.dir())?.flatten() {
        if !State::is_kept(&entry.file_name()) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    let removed =
        if path.is_dir() && !path.is_symlink() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    removed.with_context(|| format!("cannot remove {}", path.display()))
}

/// Uses a cluster that exists; only kubectl and helm are built.
async fn adopt(state: &State, kubeconfig: &Path, context: Option<&str>, progress: &Progress) -> Result<()> {
    let client = cluster::client(kubeconfig, context).await?;
    cluster::readiness(&client).await.context("the cluster of --kubeconfig does not answer")?;
    let programs = substrate::build(&[Component::Kubernetes, Component::Helm], progress).await?;
    substrate::link(state, &programs)?;
    let kubeconfig = fs::canonicalize(kubeconfig)?;
    let cluster = Kind::Existing { kubeconfig, context: context.map(str::to_owned) };
    state.save(&Settings { cluster, ready: true })
}

/// Ends `work` at its next await when the user interrupts it.
///
/// # Errors
/// Those of `work`, or that it was interrupted.
pub async fn unless_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        outcome = work => outcome,
        _ = interrupt.recv() => Err(anyhow!("interrupted")),
        _ = terminate.recv() => Err(anyhow!("terminated")),
        _ = hangup.recv() => Err(anyhow!("the terminal is gone")),
    }
}
