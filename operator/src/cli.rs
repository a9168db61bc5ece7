//! The command line.

use clap::{Parser, Subcommand};

use crate::{
    commands::{
        agent::{self, Agent},
        edge_errors, render,
    },
    config::Config,
    run,
};

/// Kubernetes operator for services, databases and access policies.
#[derive(Debug, Parser)]
#[command(name = "peristyle", version, about)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs the operator.
    Run(Config),
    /// Delivers rules or namespaces to the Oathkeeper or Keto beside it.
    Agent(Agent),
    /// Prints the custom resource definitions.
    Crds,
    /// Prints what the operator would create for the objects in files; needs no cluster.
    Render(render::Render),
    /// Answers refused calls in place of the workload, gRPC calls with gRPC statuses.
    EdgeErrors(edge_errors::EdgeErrors),
}

impl Cli {
    /// Runs the chosen command to its end.
    ///
    /// # Errors
    /// Whatever made the command fail, with its causes.
    pub async fn run(self) -> anyhow::Result<()> {
        match self.command {
            Command::Run(config) => run::run(config).await,
            Command::Agent(settings) => agent::run(settings).await,
            Command::Crds => {
                for crd in peristyle_crds::crd::all() {
                    print!("---\n{}", serde_saphyr::to_string(&crd)?);
                }
                Ok(())
            }
            Command::Render(files) => render::run(&files),
            Command::EdgeErrors(settings) => edge_errors::run(settings).await,
        }
    }
}
