//! The operator as users run it: an optimised build in a process of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ServiceAccount;
use k8s_openapi::api::rbac::v1::ClusterRoleBinding;
use kube::api::PostParams;
use kube::config::Kubeconfig;
use kube::{Api, Client};
use serde_json::json;
use tokio::process::{Child, Command};

use crate::command;
use crate::control_plane::ControlPlane;
use crate::stack::SYSTEM_NAMESPACE;
use crate::wait;

/// Who the operator is in the audit log.
pub const USER: &str = "system:serviceaccount:peristyle-system:bench";
/// Clock ticks per second in `/proc`, the same on every Linux.
const TICKS: f64 = 100.0;

/// Builds the operator as a release is built.
pub async fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.current_dir(crate::workspace()).args([
        "build",
        "--release",
        "--locked",
        "--workspace",
        "--bin",
        "peristyle",
    ]);
    command::output(build.arg("--quiet")).await?;
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| crate::workspace().join("target"), PathBuf::from);
    Ok(target.join("release/peristyle"))
}

/// A kubeconfig with all rights under a name of its own.
pub async fn kubeconfig(plane: &ControlPlane, client: &Client) -> Result<PathBuf> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let account: ServiceAccount = serde_json::from_value(json!({"metadata": {"name": "bench"}}))?;
    accounts.create(&PostParams::default(), &account).await?;
    let binding: ClusterRoleBinding = serde_json::from_value(json!({
        "metadata": {"name": "bench"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "bench", "namespace": SYSTEM_NAMESPACE}]
    }))?;
    Api::<ClusterRoleBinding>::all(client.clone()).create(&PostParams::default(), &binding).await?;
    let request: TokenRequest =
        serde_json::from_value(json!({"spec": {"audiences": [], "expirationSeconds": 7200}}))?;
    let granted = accounts.create_token_request("bench", &PostParams::default(), &request).await?;
    let token = granted.status.context("the API server granted no token")?.token;

    let mut config = serde_json::to_value(Kubeconfig::read_from(plane.kubeconfig())?)?;
    for user in config["users"].as_array_mut().into_iter().flatten() {
        user["user"] = json!({"token": token});
    }
    let path = plane.state().path("bench.kubeconfig");
    fs::write(&path, config.to_string())?;
    Ok(path)
}

/// A running operator that leads; it ends when it is dropped.
pub struct Operator {
    process: Child,
}

impl Operator {
    /// Starts one and waits until it leads.
    pub async fn start(program: &Path, kubeconfig: &Path, client: &Client) -> Result<Self> {
        let leases: Api<Lease> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
        let renewed =
            async || anyhow::Ok(leases.get_opt("peristyle-operator").await?.and_then(|l| l.spec?.renew_time));
        let before = renewed().await?;
        let process = Command::new(program)
            .args(["run", "--identity", "bench", "--admin-address", "127.0.0.1:0", "--log", "warn"])
            .env("KUBECONFIG", kubeconfig)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("cannot start the operator")?;
        let mut operator = Self { process };
        wait::until("the operator leads", Duration::from_mins(1), async || {
            if let Some(status) = operator.process.try_wait()? {
                return Err(wait::Never(anyhow::anyhow!("the operator ended with {status}")).into());
            }
            ensure!(renewed().await? != before, "the Lease is not renewed");
            Ok(())
        })
        .await?;
        Ok(operator)
    }

    /// Ends it and waits until it is gone.
    pub async fn stop(mut self) -> Result<()> {
        self.process.kill().await?;
        Ok(())
    }

    /// Seconds of CPU since its start.
    pub fn cpu(&self) -> Result<f64> {
        let stat = fs::read_to_string(self.proc("stat")?)?;
        // After the name in brackets, which may hold spaces, field 3 follows.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |field: usize| fields.get(field - 3).and_then(|f| f.parse::<f64>().ok());
        let (user, system) = (ticks(14).context("no utime")?, ticks(15).context("no stime")?);
        Ok((user + system) / TICKS)
    }

    /// Resident memory now and at its peak, in MiB.
    pub fn memory(&self) -> Result<(f64, f64)> {
        let status = fs::read_to_string(self.proc("status")?)?;
        let kib = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix(" kB")?.parse::<f64>().ok()
        };
        let (now, peak) = (kib("VmRSS:").context("no VmRSS")?, kib("VmHWM:").context("no VmHWM")?);
        Ok((now / 1024.0, peak / 1024.0))
    }

    fn proc(&self, file: &str) -> Result<String> {
        Ok(format!("/proc/{}/{file}", self.process.id().context("the operator has ended")?))
    }
}
