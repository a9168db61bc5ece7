//! `suite serve greeter caller` and `suite migrate greeter`.

use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::Parser;
use platform::{Env, telemetry};
use suite::Name;
use tokio::signal::unix::{SignalKind, signal};

/// The reference services of Peristyle. Configured by environment variables.
#[derive(Parser)]
#[command(version)]
enum Command {
    /// Serve modules in this process until SIGTERM or SIGINT
    Serve {
        #[arg(required = true)]
        modules: Vec<Name>,
    },
    /// Bring the schema of a module's database up to date
    Migrate { module: Name },
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Command::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("suite: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> Result<()> {
    // Only fails when a provider is installed, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let env = Env::from_process();
    match command {
        Command::Serve { modules } => {
            let names: Vec<_> = modules.iter().map(|name| name.as_str()).collect();
            let provider = telemetry::install(&telemetry::Settings::from_env(&env, &names.join("-")))?;
            let app = suite::bind(&env, &modules).await?;
            let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
            app.run(async {
                tokio::select! {
                    _ = term.recv() => {}
                    _ = int.recv() => {}
                }
            })
            .await;
            tokio::task::spawn_blocking(move || provider.shutdown())
                .await?
                .context("cannot flush the last spans")
        }
        Command::Migrate { module } => {
            telemetry::install(&telemetry::Settings::from_env(
                &env,
                &format!("{}-migrate", module.as_str()),
            ))?;
            suite::migrate(&env, module).await
        }
    }
}
