//! Keys, certificates and kubeconfigs, all made by kubeadm.

use std::fs;

use anyhow::{Context, Result};
use serde_json::json;
use tokio::process::Command;

use super::Layout;
use crate::command;
use crate::node;
use crate::state::State;
use crate::substrate::KUBERNETES_VERSION;

/// The kubeconfigs that kubeadm writes.
const KUBECONFIGS: [&str; 5] =
    ["admin.conf", "controller-manager.conf", "kubelet.conf", "scheduler.conf", "super-admin.conf"];

/// The address in certificates of a control plane on 127.0.0.1, which kubeadm
/// does not take; it is one that nobody has.
const NOWHERE: &str = "192.0.2.1";

pub(super) async fn create(state: &State, layout: &Layout) -> Result<()> {
    let config = state.write("kubeadm.yaml", config(state, layout))?;
    let kubeconfigs = state.path("kubeconfigs");
    for phase in ["certs", "kubeconfig"] {
        let mut kubeadm = kubeadm(state);
        kubeadm.args(["init", "phase", phase, "all", "--config"]).arg(&config);
        if phase == "kubeconfig" {
            kubeadm.arg("--kubeconfig-dir").arg(&kubeconfigs);
        }
        command::output(&mut kubeadm).await?;
    }
    if layout.namespace.is_some() {
        let mut user = kubeadm(state);
        user.args(["kubeconfig", "user", "--client-name", "system:kube-proxy", "--config"]).arg(&config);
        state.write("kubeconfigs/kube-proxy.conf", command::output(&mut user).await?)?;
    }
    let server = format!("https://{}:{}", layout.address, layout.ports.apiserver);
    let proxy = fs::exists(kubeconfigs.join("kube-proxy.conf"))?.then_some("kube-proxy.conf");
    for name in KUBECONFIGS.into_iter().chain(proxy) {
        let path = kubeconfigs.join(name);
        let text = fs::read_to_string(&path).with_context(|| format!("kubeadm wrote no {name}"))?;
        fs::write(&path, with_server(&text, &server))?;
    }
    // The administrator of `super-admin.conf` needs no role binding.
    fs::copy(kubeconfigs.join("super-admin.conf"), state.path("kubeconfig"))?;
    Ok(())
}

fn kubeadm(state: &State) -> Command {
    Command::new(state.program("kubeadm"))
}

fn config(state: &State, layout: &Layout) -> String {
    let advertise =
        if layout.address.is_loopback() { NOWHERE.to_owned() } else { layout.address.to_string() };
    let init = json!({
        "apiVersion": "kubeadm.k8s.io/v1beta4",
        "kind": "InitConfiguration",
        "localAPIEndpoint": { "advertiseAddress": advertise, "bindPort": layout.ports.apiserver },
        "nodeRegistration": {
            "name": node::NAME,
            "criSocket": format!("unix://{}", state.text("containerd.sock")),
        },
    });
    let cluster = json!({
        "apiVersion": "kubeadm.k8s.io/v1beta4",
        "kind": "ClusterConfiguration",
        "clusterName": "peristyle",
        "kubernetesVersion": KUBERNETES_VERSION,
        "certificatesDir": state.text("pki"),
        // A hundred times faster to make than RSA keys.
        "encryptionAlgorithm": "ECDSA-P256",
        "apiServer": { "certSANs": ["127.0.0.1", "localhost"] },
        "networking": {
            "serviceSubnet": layout.services.to_string(),
            "podSubnet": layout.pods.to_string(),
            "dnsDomain": "cluster.local",
        },
    });
    format!("{init}\n---\n{cluster}\n")
}

/// The kubeconfig with every server replaced; some name the advertised address.
fn with_server(kubeconfig: &str, server: &str) -> String {
    let lines = kubeconfig.lines().map(|line| match line.split_once("server: ") {
        Some((indent, _)) => format!("{indent}server: {server}\n"),
        None => format!("{line}\n"),
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_server_is_replaced_and_nothing_else() {
        let text = "clusters:\n- cluster:\n    server: https://192.0.2.1:1\n  name: peristyle\n";
        let expected = "clusters:\n- cluster:\n    server: https://127.0.0.1:2\n  name: peristyle\n";
        assert_eq!(with_server(text, "https://127.0.0.1:2"), expected);
    }
}
