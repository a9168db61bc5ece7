//! The steps from nothing to a Ready node with DNS.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::Api;
use nix::unistd::geteuid;
use tokio::process::Command;

use crate::cluster;
use crate::command;
use crate::control_plane;
use crate::daemon::{self, Identity};
use crate::images::{self, References, catalog, rootfs};
use crate::node::{self, Node, cgroups, containerd, kubelet, namespaces, network, proxy};
use crate::packages;
use crate::progress::Progress;
use crate::state::{Kind, Settings, State};
use crate::substrate::{self, Component};
use crate::wait;

const MANIFEST: &str = include_str!("../../manifests/cluster.yaml");

/// How long the node or DNS may take, on a machine that also builds.
const PATIENCE: Duration = Duration::from_mins(3);

pub(super) async fn up(
    state: &State,
    network: Option<Ipv4Net>,
    published: &[u16],
    progress: &Progress,
) -> Result<()> {
    if !geteuid().is_root() {
        bail!(
            "a node needs root for its containers and devices: run the command as root; `up --control-plane` works without"
        );
    }
    packages::ensure(packages::NODE, progress).await?;
    namespaces::check_ports(published).await?;
    let network = network::choose(network).await?;
    let cluster = Kind::Full { network, published: published.to_vec() };
    state.save(&Settings { cluster: cluster.clone(), ready: false })?;

    // The root file systems come over the network while Go compiles.
    let (programs, ..) = tokio::try_join!(
        substrate::build(&Component::ALL, progress),
        rootfs::BASE.layer(progress),
        rootfs::POSTGRES.layer(progress),
    )?;
    substrate::link(state, &programs)?;
    let recipes = catalog::substrate(&programs, progress).await?;
    let pause = recipes.iter().find(|recipe| recipe.name == "pause").context("there is no pause image")?;

    let node = Node { state, network };
    namespaces::create(&node, published).await.context("cannot make the node's network")?;
    cgroups::create(state)?;
    let runtime = containerd::start(&node, &pause.reference())?;
    let (references, ()) = tokio::try_join!(
        async {
            wait_for_containerd(state).await?;
            images::import(state, &recipes, progress).await
        },
        start_node(&node, &runtime, progress),
    )?;
    progress.step("CoreDNS", start_dns(&node, &references)).await?;
    state.save(&Settings { cluster, ready: true })
}

async fn wait_for_containerd(state: &State) -> Result<()> {
    wait::until("containerd answers", PATIENCE, async || {
        daemon::check(state).map_err(wait::Never)?;
        command::output(
            Command::new("ctr").arg("--address").arg(state.path("containerd.sock")).arg("version"),
        )
        .await
    })
    .await?;
    Ok(())
}

async fn start_node(node: &Node<'_>, runtime: &Identity, progress: &Progress) -> Result<()> {
    let state = node.state;
    control_plane::start_in_namespace(state, &node.network, progress).await?;
    let ready = async {
        wait_for_containerd(state).await?;
        kubelet::start(node, runtime)?;
        proxy::start(node, runtime)?;
        let nodes: Api<NodeObject> = Api::all(cluster::client(&state.path("kubeconfig"), None).await?);
        wait::until("the node is ready", PATIENCE, async || {
            daemon::check(state).map_err(wait::Never)?;
            let object = nodes.get(node::NAME).await?;
            if !is_ready(&object) {
                bail!("the node as it was last:\n{}", serde_saphyr::to_string(&object.status)?);
            }
            Ok(())
        })
        .await
    };
    progress.step("kubelet and kube-proxy", ready).await
}

fn is_ready(node: &NodeObject) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

async fn start_dns(node: &Node<'_>, references: &References) -> Result<()> {
    let state = node.state;
    let image = references.get("coredns").context("there is no coredns image")?;
    let manifest =
        MANIFEST.replace("${IMAGE}", image).replace("${CLUSTER_DNS}", &node.network.dns().to_string());
    let mut kubectl = Command::new(state.program("kubectl"));
    kubectl.arg("--kubeconfig").arg(state.path("kubeconfig"));
    kubectl.args(["apply", "--server-side", "--filename", "-"]);
    command::output_with_input(&mut kubectl, Some(&manifest)).await?;
    let client = cluster::client(&state.path("kubeconfig"), None).await?;
    let deployments: Api<Deployment> = Api::namespaced(client, "kube-system");
    wait::object(&deployments, "coredns", "CoreDNS serves", PATIENCE, |deployment| {
        deployment.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0) > 0
    })
    .await?;
    Ok(())
}
