//! A way to the edge of a cluster that publishes it nowhere on this machine.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, Command};

use crate::cluster::Cluster;
use crate::stack::SYSTEM_NAMESPACE;

/// How long kubectl may take to find a pod.
const PATIENCE: Duration = Duration::from_secs(60);

/// `kubectl port-forward` to Traefik; it ends when this is dropped.
#[derive(Debug)]
pub struct Forward {
    _kubectl: Child,
    /// The port of 127.0.0.1 that leads to the edge.
    pub port: u16,
}

impl Forward {
    /// Opens a free port of 127.0.0.1.
    ///
    /// # Errors
    /// When kubectl finds no pod of Traefik, with what it said.
    pub async fn open(cluster: &Cluster) -> Result<Self> {
        let mut kubectl = Command::new(cluster.state().program("kubectl"));
        kubectl.arg("--kubeconfig").arg(cluster.kubeconfig());
        if let Some(context) = cluster.context() {
            kubectl.args(["--context", context]);
        }
        kubectl.args([
            "port-forward",
            "-n",
            SYSTEM_NAMESPACE,
            "--address=127.0.0.1",
            "service/traefik",
            ":80",
        ]);
        kubectl.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut kubectl = kubectl.spawn().context("cannot run kubectl")?;
        let output = kubectl.stdout.take().context("kubectl has no output")?;
        let mut lines = BufReader::new(output).lines();
        let first = tokio::time::timeout(PATIENCE, lines.next_line()).await;
        let first = first.context("kubectl port-forward says nothing")??.unwrap_or_default();
        let Some(port) = port(&first) else {
            bail!("kubectl port-forward reaches no pod of Traefik; what it said stands above");
        };
        // kubectl stops at a pipe that nobody reads.
        tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
        Ok(Self { _kubectl: kubectl, port })
    }
}

/// The port in `Forwarding from 127.0.0.1:40123 -> 8000`.
fn port(line: &str) -> Option<u16> {
    line.strip_prefix("Forwarding from 127.0.0.1:")?.split(' ').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_read_from_what_kubectl_says_first() {
        assert_eq!(port("Forwarding from 127.0.0.1:40123 -> 8000"), Some(40123));
        assert_eq!(port("error: timed out waiting for the condition"), None);
    }
}
