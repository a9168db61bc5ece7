//! `peristyle`: the operator and its tools in one binary.

use std::process::ExitCode;

use clap::Parser;

#[tokio::main]
async fn main() -> ExitCode {
    // Two TLS providers in one process panic at the first connection.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        eprintln!("peristyle: a TLS provider was installed before main");
        return ExitCode::FAILURE;
    }
    match peristyle::cli::Cli::parse().run().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("peristyle: {error:#}");
            ExitCode::FAILURE
        }
    }
}
