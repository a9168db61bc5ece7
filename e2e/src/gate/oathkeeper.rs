//! One pod of the decision service.

use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use tokio::net::TcpStream;

use super::{PATIENCE, words};
use crate::stack::SYSTEM_NAMESPACE;
use crate::state::State;
use crate::{daemon, ports, replica, wait};

/// The signing keys of all pods, as their Secret is mounted.
pub(super) fn keys_file(dir: &Path) -> PathBuf {
    dir.join("id-token.json")
}

/// Oathkeeper with the chart's configuration.
pub struct Oathkeeper {
    /// Port of its API.
    pub port: u16,
    address: IpAddr,
    rules: PathBuf,
}

impl Oathkeeper {
    pub(super) fn start(
        state: &State,
        program: &Path,
        dir: &Path,
        address: IpAddr,
        name: &str,
    ) -> Result<Self> {
        let chart = crate::workspace().join("charts/peristyle-stack/files/oathkeeper.yaml");
        let keys = keys_file(dir);
        let dir = dir.join(name);
        fs::create_dir_all(&dir)?;
        let rules = dir.join("rules.json");
        fs::write(&rules, "[]")?;
        let mut config = fs::read_to_string(&chart)?;
        let [port, proxy, metrics] = ports::free()?;
        for (from, to) in [
            ("host: 0.0.0.0, port: 4456", format!("host: {address}, port: {port}")),
            ("host: 127.0.0.1, port: 4455", format!("host: {address}, port: {proxy}")),
            ("host: 0.0.0.0, port: 9000", format!("host: {address}, port: {metrics}")),
            ("/etc/rules/rules.json", rules.display().to_string()),
            ("/etc/id-token/jwks.json", keys.display().to_string()),
        ] {
            ensure!(config.contains(from), "the chart's configuration has no {from:?} any more");
            config = config.replace(from, &to);
        }
        let file = dir.join("oathkeeper.yaml");
        fs::write(&file, config)?;
        let (program, file) = (program.display().to_string(), file.display().to_string());
        daemon::start(
            state,
            name,
            &words(&["env", "LOG_LEVEL=warn", &program, "serve", "--sqa-opt-out", "--config", &file]),
        )?;
        Ok(Self { port, address, rules })
    }

    /// Starts the agent that brings the operator's rules, as the chart does.
    pub(super) fn follow(&self, state: &State, kubeconfig: &Path) -> Result<()> {
        let peristyle = replica::binary()?.display().to_string();
        let kubeconfig = format!("KUBECONFIG={}", kubeconfig.display());
        let [agent] = ports::free()?;
        let (rules, check) =
            (self.rules.display().to_string(), format!("http://{}:{}", self.address, self.port));
        daemon::start(
            state,
            "agent",
            &words(&[
                "env",
                &kubeconfig,
                &peristyle,
                "agent",
                "--component=oathkeeper",
                "--namespace",
                SYSTEM_NAMESPACE,
                "--config-map=oathkeeper-rules",
                "--key=rules.json",
                "--file",
                &rules,
                "--check",
                &check,
                "--listen",
                &format!("{}:{agent}", self.address),
            ]),
        )?;
        Ok(())
    }

    pub(super) async fn listens(&self, state: &State) -> Result<()> {
        wait::until("Oathkeeper listens", PATIENCE, async || {
            daemon::check(state).map_err(wait::Never)?;
            Ok(TcpStream::connect((self.address, self.port)).await?)
        })
        .await
        .map(drop)
    }

    /// Gives it the rules that `other` has now, in one step.
    ///
    /// # Errors
    /// When a file cannot be read or written.
    pub fn learn_from(&self, other: &Self) -> Result<()> {
        let new = self.rules.with_extension("new");
        fs::copy(&other.rules, &new)?;
        Ok(fs::rename(new, &self.rules)?)
    }
}
