//! The real Keto and Oathkeeper with the charts' configuration, each with the
//! agent that delivers its ConfigMap.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::postgres::{KETO, Postgres};
use crate::command;
use crate::control_plane::ControlPlane;
use crate::daemon;
use crate::stack::SYSTEM_NAMESPACE;
use crate::state::State;
use crate::substrate::{Component, Programs};
use crate::wait;

const PATIENCE: Duration = Duration::from_secs(60);
/// How many of these this process has started.
static STARTED: AtomicU8 = AtomicU8::new(0);

/// Where the programs listen.
#[derive(Clone, Debug)]
pub struct Addresses {
    pub keto_read: String,
    pub keto_write: String,
    pub keto_opl: String,
    pub oathkeeper: String,
}

/// Starts all; they end with the control plane.
///
/// # Errors
/// When one does not start.
pub async fn start(
    plane: &ControlPlane,
    programs: &Programs,
    peristyle: &Path,
    postgres: &Postgres,
) -> Result<Addresses> {
    let state = plane.state();
    let [.., high, low] = std::process::id().to_be_bytes();
    // A loopback address of one's own, on which every port is free.
    let last = 3 + STARTED.fetch_add(1, Ordering::Relaxed) % 250;
    let ip = format!("127.{}.{low}.{last}", 64 + high % 128);
    let path = |component| programs.get(&component).context("a program was not built");
    let agent = Agent { state, peristyle, kubeconfig: plane.kubeconfig(), ip: &ip };

    let namespaces = state.path("namespaces.keto.ts");
    let config =
        configured("keto", &ip, &[4466, 4467, 4468, 4469], &[("/etc/keto/namespaces.keto.ts", &namespaces)])?;
    let dsn = format!(
        "postgres://{KETO}:{}@{}/{KETO}?sslmode=disable",
        postgres.admin_password(),
        postgres.address()
    );
    let keto_config = state.path("keto.yaml");
    fs::write(&keto_config, format!("{config}\ndsn: {dsn}\n"))?;
    agent.start("keto", "keto-namespaces", "namespaces.keto.ts", &namespaces, 4466)?;
    let rules = state.path("rules.json");
    let config = configured("oathkeeper", &ip, &[4456, 9000], &[("/etc/rules/rules.json", &rules)])?;
    let oathkeeper_config = state.path("oathkeeper.yaml");
    fs::write(
        &oathkeeper_config,
        config.replace("host: 127.0.0.1, port: 4455", &format!("host: {ip}, port: 4455")),
    )?;
    agent.start("oathkeeper", "oathkeeper-rules", "rules.json", &rules, 4456)?;
    for file in [&namespaces, &rules] {
        wait::until("the agents have written their files", PATIENCE, async || {
            ensure!(file.exists(), "{} does not exist", file.display());
            Ok(())
        })
        .await?;
    }

    let migrate = configured_text("keto-migrate")?;
    let migrate_config = state.path("keto-migrate.yaml");
    fs::write(&migrate_config, format!("{migrate}\ndsn: {dsn}\n"))?;
    let mut keto = tokio::process::Command::new(path(Component::Keto)?);
    keto.args(["migrate", "up", "--yes", "--config"]).arg(&migrate_config);
    command::logged(&mut keto, &state.log("keto-migrate")).await?;
    let serve = |name: &str, component: Component, config: &Path| {
        let arguments = [
            path(component)?.display().to_string(),
            "serve".to_owned(),
            "--sqa-opt-out".to_owned(),
            "--config".to_owned(),
            config.display().to_string(),
        ];
        daemon::start(state, name, &arguments)
    };
    serve("keto", Component::Keto, &keto_config)?;
    serve("oathkeeper", Component::Oathkeeper, &oathkeeper_config)?;
    let at = |port: u16| format!("{ip}:{port}");
    let running =
        Addresses { keto_read: at(4466), keto_write: at(4467), keto_opl: at(4469), oathkeeper: at(4456) };
    // Not "ready": Oathkeeper is that only with rules.
    for address in [&running.keto_read, &running.oathkeeper] {
        let url = format!("http://{address}/health/alive");
        wait::until(&format!("{address} is ready"), PATIENCE, async || {
            daemon::check(state).map_err(wait::Never)?;
            reqwest::get(&url).await?.error_for_status()?;
            Ok(())
        })
        .await?;
    }
    Ok(running)
}

struct Agent<'a> {
    state: &'a State,
    peristyle: &'a Path,
    kubeconfig: PathBuf,
    ip: &'a str,
}

impl Agent<'_> {
    fn start(&self, component: &str, config_map: &str, key: &str, file: &Path, port: u16) -> Result<()> {
        let Self { state, peristyle, kubeconfig, ip } = self;
        let listen = SocketAddr::new(ip.parse()?, port + 10_000);
        let arguments = [
            "env".to_owned(),
            format!("KUBECONFIG={}", kubeconfig.display()),
            peristyle.display().to_string(),
            "agent".to_owned(),
            format!("--component={component}"),
            format!("--namespace={SYSTEM_NAMESPACE}"),
            format!("--config-map={config_map}"),
            format!("--key={key}"),
            format!("--file={}", file.display()),
            format!("--check=http://{ip}:{port}"),
            format!("--listen={listen}"),
        ];
        daemon::start(state, &format!("agent-{component}"), &arguments)?;
        Ok(())
    }
}

fn configured_text(name: &str) -> Result<String> {
    let path = crate::workspace().join(format!("charts/peristyle-stack/files/{name}.yaml"));
    fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

/// The chart's configuration, listening on `ip` and reading other files.
fn configured(name: &str, ip: &str, ports: &[u16], files: &[(&str, &PathBuf)]) -> Result<String> {
    let mut text = configured_text(name)?;
    let hosts = ports
        .iter()
        .map(|port| (format!("host: 0.0.0.0, port: {port}"), format!("host: {ip}, port: {port}")));
    let files = files.iter().map(|(from, to)| ((*from).to_owned(), to.display().to_string()));
    for (from, to) in hosts.chain(files) {
        ensure!(text.contains(&from), "the chart's configuration of {name} has no {from:?} any more");
        text = text.replace(&from, &to);
    }
    Ok(text)
}
