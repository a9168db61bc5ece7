//! `cargo sandbox bench`: what the operator costs, on a control plane without
//! nodes, beside a client that sends the same requests and knows nothing.
//!
//! The control plane is the wall for both, and the machine is noisy: runs
//! take turns, and the figures that travel are ratios.

mod bulk;
mod change;
mod exposed;
mod load;
mod subject;
mod usage;

use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::json;

use self::bulk::Bulk;
use self::change::Latency;
use self::exposed::Exposed;
use self::subject::{QUIET, Subject};
use self::usage::Memory;
use crate::control_plane::ControlPlane;
use crate::progress::Progress;
use crate::replica;
use crate::stack::{self, SYSTEM_NAMESPACE};

/// How often both sides create everything; the figures are medians.
const ROUNDS: usize = 3;
/// Changes of one Service, and as many plain applies.
const CHANGES: usize = 100;
/// How long the operator is watched while nothing happens.
const IDLE: Duration = Duration::from_secs(60);

/// What is measured at one number of idle Services.
#[derive(Debug)]
struct Standing {
    services: usize,
    memory: Memory,
    /// Requests of the operator while idle, without watches and its Lease.
    requests: usize,
    /// Seconds of CPU of the operator while idle.
    cpu: f64,
}

/// Measures and prints the tables of `docs/benchmarks.md`.
///
/// # Errors
/// When the operator cannot be built, or something does not become ready.
pub async fn run(services: usize, more: usize) -> Result<()> {
    let progress = Progress::default();
    let p = &progress;
    let program = p.step("build the operator (release)", subject::build()).await?;
    let plane = ControlPlane::start().await?;
    let client = plane.client().await?;
    stack::install_definitions(async |arguments: &[&str]| plane.kubectl(arguments).await).await?;
    create_namespace(&client, SYSTEM_NAMESPACE).await?;
    replica::grant(&plane).await?;

    let mut rounds = Vec::new();
    for round in 1..=ROUNDS {
        let name = format!("round {round} of {ROUNDS}: {services} Services by each");
        rounds.push(p.step(&name, bulk::round(&plane, &client, &program, round, services)).await?);
    }

    let namespace = "standing";
    create_namespace(&client, namespace).await?;
    let operator = Subject::start(&program, &plane).await?;
    let mut standings = Vec::new();
    let mut latency = None;
    for count in [0, services, more] {
        let from = standings.last().map_or(0, |standing: &Standing| standing.services);
        if count > from {
            let created = load::create(&client, namespace, from..count, load::service);
            p.step(&format!("{count} Services"), created).await?;
        }
        if count > 0 && latency.is_none() {
            let changes = change::measure(&client, namespace, &operator, CHANGES);
            latency = Some(p.step("single changes", changes).await?);
        }
        standings.push(p.step("idle", stand(&operator, count)).await?);
    }
    operator.stop().await?;
    let routes = exposed::measure(&plane, &client, &program, [services, more]);
    let routes = p.step("exposed Services", routes).await?;
    print!("{}", report(&rounds, latency.as_ref(), &standings, &routes, &program)?);
    Ok(())
}

async fn create_namespace(client: &Client, name: &str) -> Result<()> {
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
    Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await?;
    Ok(())
}

async fn stand(operator: &Subject<'_>, services: usize) -> Result<Standing> {
    operator.quiet_for(QUIET).await?;
    let (mark, cpu) = (operator.mark()?, operator.cpu()?);
    tokio::time::sleep(IDLE).await;
    Ok(Standing {
        services,
        memory: operator.memory()?,
        requests: operator.requests(mark)?.len(),
        cpu: operator.cpu()? - cpu,
    })
}

fn report(
    rounds: &[Bulk],
    latency: Option<&Latency>,
    standings: &[Standing],
    routes: &[Exposed],
    program: &std::path::Path,
) -> Result<String> {
    use std::fmt::Write;
    let mut text = String::from("\n| creating Services | median | runs |\n|---|---|---|\n");
    let mut row = |name: &str, figure: &dyn Fn(&Bulk) -> f64, digits: usize| {
        let mut figures: Vec<f64> = rounds.iter().map(figure).collect();
        let runs: Vec<String> = figures.iter().map(|f| format!("{f:.digits$}")).collect();
        let _ = writeln!(text, "| {name} | {:.digits$} | {} |", median(&mut figures), runs.join(", "));
    };
    row("operator, Services per second", &|b| b.rate(b.operator), 1);
    row("client that sends the same applies and status writes", &|b| b.rate(b.raw), 1);
    row("**ratio**", &|b| b.raw.as_secs_f64() / b.operator.as_secs_f64(), 2);
    row("reads per Service", &|b| b.per_service(b.reads), 2);
    row("writes per Service", &|b| b.per_service(b.writes), 2);
    row("children per Service", &|b| b.per_service(b.children), 2);
    row("CPU of the operator, seconds", &|b| b.cpu, 2);
    let build = if cfg!(debug_assertions) { "development" } else { "release" };
    row(&format!("CPU of the client, a {build} build, seconds"), &|b| b.raw_cpu, 2);
    if let Some(latency) = latency {
        writeln!(text, "\n| one change, milliseconds | p50 | p99 |\n|---|---|---|")?;
        writeln!(
            text,
            "| apply of a Deployment, to its reply | {:.1} | {:.1} |",
            latency.raw.0, latency.raw.1
        )?;
        writeln!(
            text,
            "| `spec.image` of a Service, to the Deployment with it | {:.1} | {:.1} |",
            latency.change.0, latency.change.1
        )?;
        writeln!(
            text,
            "| the same from the reply to the change | {:.1} | {:.1} |",
            latency.reaction.0, latency.reaction.1
        )?;
        writeln!(text, "| requests of the operator per change | {:.2} | |", latency.requests)?;
    }
    writeln!(
        text,
        "\n| idle Services | RSS, MiB | of which program | peak | requests in {} s | CPU seconds |\n|---|---|---|---|---|---|",
        IDLE.as_secs()
    )?;
    for s in standings {
        writeln!(
            text,
            "| {} | {:.1} | {:.1} | {:.1} | {} | {:.2} |",
            s.services, s.memory.resident, s.memory.program, s.memory.peak, s.requests, s.cpu
        )?;
    }
    writeln!(
        text,
        "\n| exposed Services | beside | per second | requests each | CPU each, ms |\n|---|---|---|---|---|"
    )?;
    for batch in routes {
        let each = bulk::count(batch.services);
        writeln!(
            text,
            "| {} | {} | {:.1} | {:.2} | {:.1} |",
            batch.services,
            batch.beside,
            each / batch.took.as_secs_f64(),
            bulk::count(batch.requests) / each,
            batch.cpu * 1000.0 / each
        )?;
    }
    let size = std::fs::metadata(program)?.len();
    writeln!(text, "\nbinary: {} MB", size / 1_000_000)?;
    Ok(text)
}

fn median(figures: &mut [f64]) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}
