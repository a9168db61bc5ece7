//! `cargo sandbox`: a real Kubernetes cluster on one Linux machine.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Args, Parser, Subcommand};
use e2e::cluster::Cluster;
use e2e::progress::Progress;
use e2e::sandbox::{self, Wanted};
use e2e::stack::EDGE_PORT;
use e2e::state::{STATE_DIR_VARIABLE, State};
use e2e::{bench, checks, command, demo, faults, images};
use ipnet::Ipv4Net;
use tokio::process::Command;

/// A real Kubernetes cluster on one Linux machine, built from source, without Docker and registry.
#[derive(Parser)]
#[command(name = "cargo sandbox", bin_name = "cargo sandbox")]
struct Cli {
    /// Where the sandbox keeps its files [default: peristyle/sandbox or peristyle/control-plane in the user's state directory]
    #[arg(long, global = true, env = STATE_DIR_VARIABLE)]
    state_dir: Option<PathBuf>,
    /// Only etcd, kube-apiserver and kube-controller-manager: seconds to start, needs no root
    #[arg(long, global = true)]
    control_plane: bool,
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Build what is not cached and start the cluster; changes nothing when it runs
    Up(Up),
    /// End the cluster and remove everything of it except the cache
    Down,
    /// From nothing to the first protected call: cluster, charts, example and a transcript of real calls
    Demo {
        /// The port of 127.0.0.1 that leads to the edge; a sandbox that is up keeps the one it has
        #[arg(long, default_value_t = EDGE_PORT)]
        port: u16,
    },
    /// Run everything that must hold before a change lands
    Test,
    /// Measure the operator beside a client that sends the same requests; no test, use a quiet machine
    Bench {
        /// Services that each side creates in a round
        #[arg(long, default_value_t = 300)]
        services: usize,
        /// Services at which memory and idle requests are measured a second time
        #[arg(long, default_value_t = 1000)]
        more: usize,
    },
    /// Show what runs
    Status,
    /// Print the path of the kubeconfig: export KUBECONFIG=$(cargo sandbox kubeconfig)
    Kubeconfig,
    /// Print the end of a component's log
    Logs {
        /// Such as kubelet, kube-apiserver, containerd or audit
        name: String,
        /// How many lines
        #[arg(long, default_value_t = 200)]
        lines: u32,
        /// Go on printing as the log grows
        #[arg(long, short)]
        follow: bool,
    },
    /// Build and import every image and print its name and reference
    Images,
    /// Kill, cut off and mislead the operator at every write it makes, and compare what comes out
    Faults(Faults),
}

#[derive(Args)]
struct Faults {
    /// Only the plan with this id, or all whose id begins so
    #[arg(long)]
    plan: Option<String>,
    /// Print the ids of the plans instead of running them
    #[arg(long)]
    list: bool,
    /// Only so many, of each step some, the same in every run
    #[arg(long)]
    sample: Option<usize>,
    /// The scenarios whose names begin so, and plans only with --plan or --sample; all scenarios follow when all plans are run
    #[arg(long, value_name = "NAME", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    scenarios: Option<String>,
    /// So many sets of systems at a time [default: 2 with 4 cores, else 1]
    #[arg(long)]
    workers: Option<NonZeroUsize>,
}

#[derive(Args)]
struct Up {
    /// Use a cluster that exists instead of making one
    #[arg(long, conflicts_with = "control_plane")]
    kubeconfig: Option<PathBuf>,
    /// The context of --kubeconfig [default: its current one]
    #[arg(long, requires = "kubeconfig")]
    context: Option<String>,
    /// A /16 network for node, pods and services [default: the first of 10.213.0.0/16, 10.212.0.0/16, … that is free]
    #[arg(long)]
    network: Option<Ipv4Net>,
    /// Ports of 127.0.0.1 that lead to the same host ports of the node; '' for none
    #[arg(long, default_value = "8080", value_delimiter = ',', value_parser = published_port)]
    publish: Vec<Option<u16>>,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run(Cli::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Without the backtrace that RUST_BACKTRACE adds to Debug: the
            // causes say what to do.
            eprintln!("error: {error}");
            error.chain().skip(1).for_each(|cause| eprintln!("  because: {cause}"));
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> Result<()> {
    let state = match &cli.state_dir {
        Some(dir) => State::at(dir)?,
        None if cli.control_plane => State::control_plane()?,
        None => State::current()?,
    };
    match cli.action {
        Action::Up(up) => {
            let progress = Progress::default();
            sandbox::up(&state, &up.wanted(cli.control_plane), &progress).await?;
            eprintln!("\n{}", progress.table());
            eprintln!("export KUBECONFIG={}", Cluster::of(&state)?.kubeconfig().display());
            Ok(())
        }
        Action::Down => sandbox::down(&state).await,
        Action::Status => {
            print!("{}", sandbox::status(&state).await?);
            Ok(())
        }
        Action::Demo { port } => demo::run(&state, port).await,
        Action::Test => checks::run(&state).await,
        Action::Bench { services, more } => Box::pin(bench::run(services, more)).await,
        Action::Kubeconfig => {
            println!("{}", Cluster::of(&state)?.kubeconfig().display());
            Ok(())
        }
        Action::Logs { name, lines, follow } => logs(&state, &name, lines, follow).await,
        Action::Images => {
            for (name, reference) in images::build_and_import(&state, &Progress::default()).await? {
                println!("{name:<12} {reference}");
            }
            Ok(())
        }
        Action::Faults(faults) => faults.run().await,
    }
}

impl Faults {
    async fn run(self) -> Result<()> {
        let selection = faults::Selection { id: self.plan, sample: self.sample, scenarios: self.scenarios };
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let default = if cores >= 4 { NonZeroUsize::MIN.saturating_add(1) } else { NonZeroUsize::MIN };
        let workers = self.workers.unwrap_or(default);
        let work = async {
            if self.list {
                faults::list(&selection).await?.iter().for_each(|id| println!("{id}"));
                return Ok(());
            }
            faults::run(&selection, workers).await?.check()
        };
        tokio::select! {
            result = work => result,
            // What was started ends with the future.
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
        }
    }
}

impl Up {
    fn wanted(self, control_plane: bool) -> Wanted {
        match self.kubeconfig {
            Some(kubeconfig) => Wanted::Existing { kubeconfig, context: self.context },
            None if control_plane => Wanted::ControlPlane,
            None => Wanted::Full {
                network: self.network,
                published: self.publish.into_iter().flatten().collect(),
            },
        }
    }
}

/// A port, or nothing for the empty list.
fn published_port(text: &str) -> Result<Option<u16>, std::num::ParseIntError> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

async fn logs(state: &State, name: &str, lines: u32, follow: bool) -> Result<()> {
    let path = sandbox::log(state, name)?;
    let mut tail = Command::new("tail");
    tail.args(["-n", &lines.to_string()]).arg(path);
    if !follow {
        print!("{}", command::output(&mut tail).await?);
        return Ok(());
    }
    let status = tail.arg("-F").status().await?;
    if !status.success() {
        bail!("tail ended with {status}");
    }
    Ok(())
}
