//! kubectl and helm for the current cluster, from the sandbox's own build.

use anyhow::Result;
use tokio::process::Command;

use crate::cluster::Cluster;
use crate::command;

impl Cluster {
    /// Runs kubectl and returns its standard output.
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

    /// Runs helm and returns its standard output.
    ///
    /// # Errors
    /// When it fails, with its standard error.
    pub async fn helm(&self, arguments: &[&str]) -> Result<String> {
        let mut helm = Command::new(self.state().program("helm"));
        helm.arg("--kubeconfig").arg(self.kubeconfig());
        if let Some(context) = self.context() {
            helm.args(["--kube-context", context]);
        }
        command::output(helm.args(arguments)).await
    }

    fn kubectl_command(&self) -> Command {
        let mut kubectl = Command::new(self.state().program("kubectl"));
        kubectl.arg("--kubeconfig").arg(self.kubeconfig());
        if let Some(context) = self.context() {
            kubectl.args(["--context", context]);
        }
        kubectl
    }
}
