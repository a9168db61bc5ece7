//! kubelet, which shares containerd's namespaces.

use anyhow::Result;
use serde_json::json;

use super::{NAME, Node, namespaces};
use crate::daemon::{self, Identity};

/// Starts kubelet beside the containerd that runs.
///
/// # Errors
/// When a file cannot be written or the daemon cannot be started.
pub fn start(node: &Node<'_>, containerd: &Identity) -> Result<Identity> {
    let state = node.state;
    // Pods with `dnsPolicy: Default` get this file. The cluster does not reach out.
    state.write("resolv.conf", "")?;
    let config = state.write("kubelet.json", config(node))?;
    let command = inside(
        containerd,
        &[
            state.text("bin/kubelet"),
            format!("--config={}", config.display()),
            format!("--kubeconfig={}", state.text("kubeconfigs/kubelet.conf")),
            format!("--root-dir={}", state.text("kubelet")),
            format!("--hostname-override={NAME}"),
            format!("--node-ip={}", node.network.node()),
        ],
    );
    daemon::start(state, "kubelet", &command)
}

/// A command line that runs in the namespaces of another process.
pub fn inside(process: &Identity, command: &[String]) -> Vec<String> {
    let namespaces = format!("/proc/{}/ns", process.pid);
    let enter =
        ["nsenter".to_owned(), format!("--net={namespaces}/net"), format!("--mount={namespaces}/mnt")];
    [&enter, command].concat()
}

fn config(node: &Node<'_>) -> String {
    let state = node.state;
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": true },
            "x509": { "clientCAFile": state.text("pki/ca.crt") },
        },
        "authorization": { "mode": "Webhook" },
        "address": node.network.node(),
        "containerRuntimeEndpoint": format!("unix://{}", state.text("containerd.sock")),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", namespaces::name(state)),
        "failCgroupV1": false,
        "failSwapOn": false,
        "oomScoreAdj": 0,
        "clusterDNS": [node.network.dns()],
        "clusterDomain": "cluster.local",
        "resolvConf": state.text("resolv.conf"),
        "podLogsDir": state.text("logs/pods"),
        "volumePluginDir": state.text("kubelet/volume-plugins"),
        // An image that was removed could not be fetched again.
        "imageGCHighThresholdPercent": 100,
        // A full disk of the machine is its owner's affair.
        "evictionHard": { "memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%" },
        "shutdownGracePeriod": "0s",
    })
    .to_string()
}
