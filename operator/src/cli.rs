//! The command line.

use clap::{Parser, Subcommand};

use crate::{
    commands::agent::{self, Agent},
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
        }
    }
}
