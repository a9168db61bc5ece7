//! etcd, kube-apiserver, kube-controller-manager and, with a node,
//! kube-scheduler.

mod credentials;
mod processes;

use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use ipnet::Ipv4Net;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{Api, Client};
use tempfile::TempDir;

use crate::cluster;
use crate::daemon;
use crate::node::namespaces;
use crate::node::network::Network;
use crate::progress::Progress;
use crate::state::{Kind, Ports, Settings, State};
use crate::substrate::{self, Component};
use crate::wait;

/// How long a component may take to answer for the first time, on a machine
/// that also builds.
const PATIENCE: Duration = Duration::from_secs(120);

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
    _dir: TempDir,
}

impl ControlPlane {
    /// Starts one on free ports and waits until it serves; needs no root.
    /// Builds Kubernetes when it is not in the cache.
    ///
    /// # Errors
    /// When the build or a component fails.
    pub async fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("peristyle-").tempdir()?;
        // From here on dropping ends what was started.
        let plane = Self { state: State::at(dir.path())?, _dir: dir };
        start_without_node(&plane.state, &Progress::default()).await?;
        Ok(plane)
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
        }
    }
}

/// Starts a control plane on free ports of the loopback address.
///
/// # Errors
/// When the build or a component fails.
pub async fn start_without_node(state: &State, progress: &Progress) -> Result<()> {
    let programs = substrate::build(&[Component::Kubernetes], progress).await?;
    substrate::link(state, &programs)?;
    let ports = free_ports()?;
    let cluster = Kind::ControlPlane { ports };
    state.save(&Settings { cluster: cluster.clone(), ready: false })?;
    // Nothing uses these addresses; Services need some.
    let network = Network::new(Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 16))?;
    let layout = Layout {
        address: Ipv4Addr::LOCALHOST,
        ports,
        services: network.services(),
        pods: network.pods(),
        namespace: None,
    };
    start(state, &layout, progress).await?;
    state.save(&Settings { cluster, ready: true })
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

/// Three ports that nobody listens on now.
fn free_ports() -> Result<Ports> {
    // All are held until all are known, so that they differ.
    let listener = || TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1");
    let listeners = [listener()?, listener()?, listener()?];
    let [apiserver, etcd, etcd_peer] = listeners.each_ref().map(TcpListener::local_addr);
    Ok(Ports { apiserver: apiserver?.port(), etcd: etcd?.port(), etcd_peer: etcd_peer?.port() })
}
