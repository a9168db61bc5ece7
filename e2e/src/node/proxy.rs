//! kube-proxy in nftables mode; its table lives in the node's network namespace.

use anyhow::Result;
use serde_json::json;

use super::kubelet::inside;
use super::{NAME, Node};
use crate::daemon::{self, Identity};

/// Starts kube-proxy in the namespaces of containerd.
///
/// # Errors
/// When a file cannot be written or the daemon cannot be started.
pub fn start(node: &Node<'_>, containerd: &Identity) -> Result<Identity> {
    let state = node.state;
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": { "kubeconfig": state.text("kubeconfigs/kube-proxy.conf") },
        "clusterCIDR": node.network.pods(),
        "hostnameOverride": NAME,
        "mode": "nftables",
        "oomScoreAdj": 0,
        // Zero leaves the settings alone, some of which count for the machine.
        "conntrack": {
            "maxPerCore": 0,
            "min": 0,
            "tcpEstablishedTimeout": "0s",
            "tcpCloseWaitTimeout": "0s",
        },
    });
    let config = state.write("kube-proxy.json", config.to_string())?;
    let command =
        inside(containerd, &[state.text("bin/kube-proxy"), format!("--config={}", config.display())]);
    daemon::start(state, "kube-proxy", &command)
}
