//! The edge itself.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::process::Command;

use super::PATIENCE;
use crate::operated::Operated;
use crate::state::State;
use crate::substrate::{self, Component, Programs};
use crate::{command, daemon, ports, wait};

const NAME: &str = "traefik";

/// Traefik with the arguments of the chart but for the addresses.
pub(super) struct Traefik {
    environment: Vec<String>,
    /// Outside of a cluster no name leads to Oathkeeper: it is reached as the
    /// HTTP proxy of everything that is no address.
    way: String,
    command: Vec<String>,
    ports: [u16; 2],
}

impl Traefik {
    /// One that listens on `web`, and on `api` for the operator; decisions are
    /// asked for at `way`.
    pub(super) async fn new(
        programs: &Programs,
        operated: &Operated,
        web: u16,
        api: u16,
        way: SocketAddr,
    ) -> Result<Self> {
        let helm = programs.get(&Component::Helm).context("helm was not built")?;
        let chart = crate::workspace().join("charts/peristyle-stack");
        let mut template = Command::new(helm);
        template.arg("template").arg("stack").arg(chart);
        template.args([
            "--show-only",
            "templates/traefik.yaml",
            "--kube-version",
            substrate::KUBERNETES_VERSION,
        ]);
        let documents: Vec<Value> = serde_saphyr::from_multiple(&command::output(&mut template).await?)?;
        let deployment = documents.iter().find(|d| d["kind"] == "Deployment").context("no Deployment")?;
        let arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"].as_array();
        let [secure, internal] = ports::free()?;
        let numbers = [(":8000", web), (":8443", secure), (":8080", internal), (":8082", api)];
        let placed = |argument: &str| {
            let found = numbers.iter().find(|(port, _)| argument.ends_with(&format!("address={port}")));
            match found {
                Some((port, number)) => argument.replace(port, &format!("127.0.0.1:{number}")),
                None => argument.to_owned(),
            }
        };
        let program = programs.get(&Component::Traefik).context("Traefik was not built")?;
        let mut command = vec![program.display().to_string()];
        command.extend(arguments.context("no arguments")?.iter().filter_map(Value::as_str).map(placed));
        let kubeconfig = operated.plane().kubeconfig().display().to_string();
        Ok(Self {
            environment: vec![format!("KUBECONFIG={kubeconfig}"), format!("NO_PROXY={}", way.ip())],
            way: format!("HTTP_PROXY=http://{way}"),
            command,
            ports: [web, api],
        })
    }

    /// Starts it, with or without the way to the decision service.
    pub(super) async fn start(&self, state: &State, finds_decisions: bool) -> Result<()> {
        let mut words = vec!["env".to_owned()];
        words.extend(self.environment.iter().cloned());
        words.extend(finds_decisions.then(|| self.way.clone()));
        words.extend(self.command.iter().cloned());
        daemon::start(state, NAME, &words)?;
        wait::until("Traefik answers", PATIENCE, async || {
            daemon::check(state).map_err(wait::Never)?;
            for port in self.ports {
                TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await?;
            }
            Ok(())
        })
        .await
    }

    pub(super) fn stop(state: &State) -> Result<()> {
        let own = daemon::recorded(state).into_iter().filter(|(name, _)| name == NAME);
        daemon::stop(&own.map(|(_, process)| process).collect::<Vec<_>>())
    }
}
