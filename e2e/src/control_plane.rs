//! etcd, kube-apiserver, kube-controller-manager and, with a node,
//! kube-scheduler.

mod credentials;
mod processes;

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{Api, Client};
use tempfile::TempDir;
use tokio::process::Command;

use crate::cluster;
use crate::command;
use crate::daemon;
use crate::node::namespaces;
use crate::node::network::Network;
use crate::ports;
use crate::progress::Progress;
use crate::state::{Kind, Ports, Settings, State};
use crate::substrate::{self, Component};
use crate::wait;

/// How long a component may take to answer for the first time, on a machine
/// that also builds.
const PATIENCE: Duration = Duration::from_mins(2);

/// Where a control plane listens and which addresses it gives out.
#[derive(Clone, Debug)]
struct Layout {
    /// Where kube-apiserver listens.
    address: Ipv4Addr,
    ports: Ports,
    services: Ipv4Net,
    pods: Ipv4Net,
    /// The network namespace to run in, with a node beside it; none for the
    /// machine's own and no node.
    namespace: Option<String>,
}

/// A control plane without nodes in a directory of its own, for tests of
/// controllers. It ends when it is dropped.
#[derive(Debug)]
pub struct ControlPlane {
    state: State,
    layout: Layout,
    watcher: Child,
    _dir: TempDir,
}

/// Ends the processes and removes the files of a control plane whose test was
/// killed and dropped nothing: then its standard input closes.
const WATCH: &str = r#"read -r _
for file in "$0"/pids/*.json; do kill -KILL "$(sed -n 's/.*"pid":\([0-9]*\).*/\1/p' "$file")"; done
rm -rf "$0""#;

impl ControlPlane {
    /// Starts one on free ports and waits until it serves; needs no root.
    /// Builds Kubernetes when it is not in the cache.
    ///
    /// # Errors
    /// When the build or a component fails.
    pub async fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("peristyle-").tempdir()?;
        let state = State::at(dir.path())?;
        // In a session of its own, which an interrupt from the terminal does not reach.
        let mut watcher = std::process::Command::new("setsid");
        watcher.args(["sh", "-c", WATCH]).arg(dir.path()).stdin(Stdio::piped());
        let watcher = watcher.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        // From here on dropping ends what was started.
        let plane = Self { state, layout: without_node(free_ports()?)?, watcher, _dir: dir };
        start_layout(&plane.state, &plane.layout, &Progress::default()).await?;
        Ok(plane)
    }

    /// Kills kube-apiserver and starts it again on the same port.
    ///
    /// # Errors
    /// When it does not end, or does not serve again.
    pub async fn restart_apiserver(&self) -> Result<()> {
        self.stop_apiserver().await?;
        self.start_apiserver().await
    }

    /// Kills kube-apiserver.
    ///
    /// # Errors
    /// When it does not end.
    pub async fn stop_apiserver(&self) -> Result<()> {
        self.stop("kube-apiserver")?;
        let address = (self.layout.address, self.layout.ports.apiserver);
        // A killed process gives up its port when its last thread has ended.
        wait::until("the port of kube-apiserver is free", PATIENCE, async || Ok(TcpListener::bind(address)?))
            .await
            .map(drop)
    }

    /// Starts kube-apiserver again and waits until it serves.
    ///
    /// # Errors
    /// When it does not serve.
    pub async fn start_apiserver(&self) -> Result<()> {
        processes::start_apiserver(&self.state, &self.layout)?;
        let client = self.client().await?;
        wait::until("kube-apiserver is ready again", PATIENCE, async || {
            daemon::check(&self.state).map_err(wait::Never)?;
            cluster::readiness(&client).await
        })
        .await
    }

    /// Ends kube-controller-manager, so that a test can say what it would.
    ///
    /// # Errors
    /// When it does not end.
    pub fn stop_controllers(&self) -> Result<()> {
        self.stop("kube-controller-manager")
    }

    fn stop(&self, component: &str) -> Result<()> {
        let processes = daemon::recorded(&self.state).into_iter().filter(|(name, _)| name == component);
        daemon::stop(&processes.map(|(_, process)| process).collect::<Vec<_>>())
    }

    /// Runs kubectl with all rights and returns its standard output.
    ///
    /// # Errors
    /// When it fails, with its standard error.
    pub async fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        command::output(self.kubectl_command().args(arguments)).await
    }

    /// [`Self::kubectl`] with text on the standard input, for `-f -`.
    ///
    /// # Errors
    /// When it fails, with its standard error.
    pub async fn kubectl_with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        command::output_with_input(self.kubectl_command().args(arguments), Some(input)).await
    }

    fn kubectl_command(&self) -> Command {
        let mut kubectl = Command::new(self.state.program("kubectl"));
        kubectl.arg("--kubeconfig").arg(self.kubeconfig());
        kubectl
    }

    /// The path of a kubeconfig with all rights.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.state.path("kubeconfig")
    }

    /// A client with all rights.
    ///
    /// # Errors
    /// When the kubeconfig cannot be read.
    pub async fn client(&self) -> Result<Client> {
        cluster::client(&self.kubeconfig(), None).await
    }

    /// Where the audit log of all requests and the logs of components are.
    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        let processes: Vec<_> =
            daemon::recorded(&self.state).into_iter().map(|(_, process)| process).collect();
        if let Err(error) = daemon::stop(&processes) {
            eprintln!("cannot end the control plane in {}: {error:#}", self.state.dir().display());
            return;
        }
        // It waits for this, and has nothing left to do.
        let _ = self.watcher.kill().and_then(|()| self.watcher.wait());
    }
}

/// Starts a control plane on free ports of the loopback address.
///
/// # Errors
/// When the build or a component fails.
pub async fn start_without_node(state: &State, progress: &Progress) -> Result<()> {
    start_layout(state, &without_node(free_ports()?)?, progress).await
}

async fn start_layout(state: &State, layout: &Layout, progress: &Progress) -> Result<()> {
    let programs = substrate::build(&[Component::Kubernetes], progress).await?;
    substrate::link(state, &programs)?;
    let cluster = Kind::ControlPlane { ports: layout.ports };
    state.save(&Settings { cluster: cluster.clone(), ready: false })?;
    start(state, layout, progress).await?;
    state.save(&Settings { cluster, ready: true })
}

fn without_node(ports: Ports) -> Result<Layout> {
    // Nothing uses these addresses; Services need some.
    let network = Network::new(Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 16))?;
    Ok(Layout {
        address: Ipv4Addr::LOCALHOST,
        ports,
        services: network.services(),
        pods: network.pods(),
        namespace: None,
    })
}

/// Starts the control plane of a full sandbox in the node's network namespace.
///
/// # Errors
/// When a component fails.
pub async fn start_in_namespace(state: &State, network: &Network, progress: &Progress) -> Result<()> {
    let layout = Layout {
        address: network.node(),
        ports: Ports { apiserver: 6443, etcd: 2379, etcd_peer: 2380 },
        services: network.services(),
        pods: network.pods(),
        namespace: Some(namespaces::path(state)),
    };
    start(state, &layout, progress).await
}

async fn start(state: &State, layout: &Layout, progress: &Progress) -> Result<()> {
    progress.step("keys and kubeconfigs", credentials::create(state, layout)).await?;
    let serving = async {
        processes::start_etcd(state, layout)?;
        processes::start_apiserver(state, layout)?;
        let client = cluster::client(&state.path("kubeconfig"), None).await?;
        wait::until("kube-apiserver is ready", PATIENCE, async || {
            daemon::check(state).map_err(wait::Never)?;
            cluster::readiness(&client).await
        })
        .await?;
        anyhow::Ok(client)
    };
    let client = progress.step("etcd and kube-apiserver", serving).await?;
    let controllers = async {
        processes::start_controllers(state, layout)?;
        let accounts: Api<ServiceAccount> = Api::namespaced(client, "default");
        wait::until("kube-controller-manager works", PATIENCE, async || {
            daemon::check(state).map_err(wait::Never)?;
            accounts.get("default").await.context("namespace default has no service account yet")
        })
        .await
    };
    progress.step("kube-controller-manager", controllers).await?;
    Ok(())
}

fn free_ports() -> Result<Ports> {
    let [apiserver, etcd, etcd_peer] = ports::free()?;
    Ok(Ports { apiserver, etcd, etcd_peer })
}
