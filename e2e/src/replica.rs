//! The operator as processes of their own, with the rights that the chart
//! grants, on a control plane: what a test can kill, stop and continue.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::audit::{self, Request};
use crate::command;
use crate::control_plane::ControlPlane;
use crate::ports;
use crate::progress::Progress;
use crate::stack::SYSTEM_NAMESPACE;
use crate::substrate::{self, Component};
use crate::wait;

const PATIENCE: Duration = Duration::from_secs(60);

/// One operator process. It is killed when this is dropped.
pub struct Replica {
    child: Child,
    log: PathBuf,
    admin: u16,
    /// As the audit log names its token.
    credential: String,
}

/// Grants the operator's account what the chart grants it.
///
/// # Errors
/// When the chart cannot be rendered or the API server refuses it.
pub async fn grant(plane: &ControlPlane) -> Result<()> {
    let rights = chart(&["templates/rbac.yaml", "templates/edge-label-policy.yaml"]).await?;
    plane.kubectl_with_input(&["apply", "--server-side", "-f", "-"], &rights).await?;
    Ok(())
}

/// What some templates of the operator's chart render to.
///
/// # Errors
/// When helm fails.
pub async fn chart(templates: &[&str]) -> Result<String> {
    let programs = substrate::build(&[Component::Helm], &Progress::default()).await?;
    let mut helm = Command::new(programs.get(&Component::Helm).context("helm was not built")?);
    helm.args(["template", "peristyle"]).arg(crate::workspace().join("charts/peristyle"));
    // Without a cluster helm takes an old version.
    helm.args(["--namespace", SYSTEM_NAMESPACE, "--kube-version", substrate::KUBERNETES_VERSION]);
    for template in templates {
        helm.args(["--show-only", template]);
    }
    command::output(&mut helm).await
}

impl Replica {
    /// Starts a process that calls itself `name`, with a token of its own.
    ///
    /// # Errors
    /// When there is no binary or no token.
    pub async fn start(plane: &ControlPlane, name: &str) -> Result<Self> {
        Self::start_with(plane, name, &[]).await
    }

    /// The same with more environment variables.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn start_with(plane: &ControlPlane, name: &str, variables: &[(&str, &str)]) -> Result<Self> {
        Self::run(&binary()?, plane, name, variables).await
    }

    /// The same of a program that lies elsewhere.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub async fn run(
        program: &Path,
        plane: &ControlPlane,
        name: &str,
        variables: &[(&str, &str)],
    ) -> Result<Self> {
        let token = plane.kubectl(&["create", "token", "peristyle", "-n", SYSTEM_NAMESPACE]).await?;
        let token = token.trim();
        let [admin] = ports::free()?;
        let log = plane.state().log(name);
        let output = File::create(&log)?;
        let mut process = Command::new(program);
        process.args(["run", "--identity", name, "--admin-address", &format!("127.0.0.1:{admin}")]);
        process.env_clear().env("KUBECONFIG", kubeconfig(plane, name, token)?);
        process.envs(variables.iter().copied());
        process.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).kill_on_drop(true);
        let child = process.spawn().context("cannot start the operator")?;
        Ok(Self { child, log, admin, credential: credential(token)? })
    }

    /// Waits until its caches are filled: it leads, or it is a warm standby.
    ///
    /// # Errors
    /// At the deadline, with its log.
    pub async fn wait_until_ready(&self) -> Result<()> {
        let ready = wait::until("the operator is ready", PATIENCE, async || {
            let (is_ready, text) = self.readiness().await?;
            ensure!(is_ready, "{text}");
            Ok(())
        });
        ready.await.with_context(|| self.said())
    }

    /// Whether its caches are filled, and what it says of them.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn readiness(&self) -> Result<(bool, String)> {
        let answer = reqwest::get(format!("http://127.0.0.1:{}/readyz", self.admin)).await?;
        Ok((answer.status().is_success(), answer.text().await?))
    }

    /// Whether the process has not ended.
    ///
    /// # Errors
    /// When the system does not tell.
    pub fn is_running(&mut self) -> Result<bool> {
        Ok(self.child.try_wait()?.is_none())
    }

    /// Waits until it holds the Lease.
    ///
    /// # Errors
    /// At the deadline, with its log.
    pub async fn wait_until_leading(&self) -> Result<()> {
        let leading = wait::until("the operator leads", PATIENCE, async || {
            // The help of the metric begins with its name too.
            ensure!(self.metrics().await?.lines().any(|line| line == "peristyle_leader 1"), "it does not");
            Ok(())
        });
        leading.await.with_context(|| self.said())
    }

    /// Its metrics.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn metrics(&self) -> Result<String> {
        Ok(reqwest::get(format!("http://127.0.0.1:{}/metrics", self.admin)).await?.text().await?)
    }

    /// What it has logged.
    #[must_use]
    pub fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// When it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.pid()?)?), signal)?)
    }

    /// Its process.
    ///
    /// # Errors
    /// When it has ended.
    pub fn pid(&self) -> Result<u32> {
        self.child.id().context("the operator has ended")
    }

    /// Waits until it has ended.
    ///
    /// # Errors
    /// At the deadline, with its log.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        match tokio::time::timeout(PATIENCE, self.child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!("the operator does not end:\n{}", self.said()),
        }
    }

    /// What it has asked the API server for since `position`, but for its Lease.
    ///
    /// # Errors
    /// When the audit log cannot be read.
    pub fn requests(&self, plane: &ControlPlane, position: u64) -> Result<Vec<Request>> {
        let mut requests = self.all_requests(plane, position)?;
        requests.retain(|request| request.resource != "leases");
        Ok(requests)
    }

    /// The same with its Lease.
    ///
    /// # Errors
    /// When the audit log cannot be read.
    pub fn all_requests(&self, plane: &ControlPlane, position: u64) -> Result<Vec<Request>> {
        let mut requests = audit::since(plane.state(), position)?;
        requests.retain(|request| request.credential == self.credential);
        Ok(requests)
    }

    /// What it has written since `position`, but for its Lease.
    ///
    /// # Errors
    /// When the audit log cannot be read.
    pub fn writes(&self, plane: &ControlPlane, position: u64) -> Result<Vec<Request>> {
        let mut requests = self.requests(plane, position)?;
        requests.retain(Request::is_write);
        Ok(requests)
    }
}

/// The operator's binary, which `cargo sandbox test` has built beside this test.
///
/// # Errors
/// When it is not there.
pub fn binary() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let folder = test.ancestors().nth(2).context("tests lie two folders below the binaries")?;
    let binary = folder.join("peristyle");
    ensure!(binary.exists(), "{} is missing; run the tests through `cargo sandbox test`", binary.display());
    Ok(binary)
}

/// The control plane's kubeconfig with another user.
fn kubeconfig(plane: &ControlPlane, name: &str, token: &str) -> Result<PathBuf> {
    let mut config: Value = serde_saphyr::from_str(&fs::read_to_string(plane.kubeconfig())?)?;
    config["users"][0]["user"] = serde_json::json!({"token": token});
    plane.state().write(&format!("{name}.kubeconfig"), serde_json::to_string(&config)?)
}

/// How the audit log names the token.
fn credential(token: &str) -> Result<String> {
    let claims = token.split('.').nth(1).context("the token is no JWT")?;
    let claims: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims)?)?;
    Ok(format!("JTI={}", claims["jti"].as_str().context("the token has no jti")?))
}
