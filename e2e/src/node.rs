//! The one node of a full sandbox: containerd, kubelet and kube-proxy.
//!
//! The node has a network namespace and a mount namespace of its own, so that
//! its packet filter rules, bridges, mounts and sockets never appear among
//! those of the machine.

pub mod cgroups;
pub mod containerd;
pub mod kubelet;
pub mod leftovers;
pub mod namespaces;
pub mod network;
pub mod proxy;

/// The name of the node.
pub const NAME: &str = "peristyle";

/// What a node needs to start a daemon inside its namespaces.
#[derive(Clone, Debug)]
pub struct Node<'a> {
    pub state: &'a crate::state::State,
    pub network: network::Network,
}
