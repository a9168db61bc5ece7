//! `cargo sandbox test`: everything that must hold before a change lands, the
//! quickest first.

use std::process::Stdio;

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use crate::demo;
use crate::packages;
use crate::progress::Progress;
use crate::stack::{self, EDGE_PORT};
use crate::state::{STATE_DIR_VARIABLE, State, cache_dir};
use crate::substrate::{self, Component};

const CARGO_DENY: &str = "0.20.2";

/// Modules of the control-plane tests that run beside all others, each row at
/// the same time: all parts take about as long, and most of it they wait. Those
/// with a gate share a port and so a part, which is that of all others.
const ASIDE: [&[&str]; 2] =
    [&["canary", "databases", "misuse", "ownership", "poison", "rbac", "traces"], &["faults", "operator"]];

/// Runs all checks; the sandbox of `state` is brought up for the last ones and stays.
///
/// # Errors
/// The first check that failed.
pub async fn run(state: &State) -> Result<()> {
    let progress = Progress::default();
    let p = &progress;
    p.step("cargo fmt", cargo(&["fmt", "--all", "--check"], &[])).await?;
    let clippy = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--features",
        "e2e/cluster",
        "--locked",
        "--",
        "-D",
        "warnings",
    ];
    p.step("cargo clippy", cargo(&clippy, &[])).await?;
    let doc = ["doc", "--workspace", "--no-deps", "--locked"];
    p.step("cargo doc", cargo(&doc, &[("RUSTDOCFLAGS", "-D warnings")])).await?;
    p.step("cargo deny", deny(p)).await?;

    packages::ensure(packages::NODE, p).await?;
    packages::ensure(packages::TESTS, p).await?;
    let programs = substrate::build(&Component::ALL, p).await?;
    let bin = substrate::folder(&programs)?;
    let unit = ["test", "--workspace", "--locked"];
    p.step("unit and integration tests", cargo(&unit, &[("PERISTYLE_BIN", &bin)])).await?;
    p.step("helm lint", stack::lint(&programs)).await?;
    p.step("control-plane tests", control_plane_tests(state)).await?;
    p.step("sandbox life cycle", cluster_tests(state, "lifecycle", &[])).await?;

    p.step("demo", Box::pin(demo::run(state, EDGE_PORT))).await?;
    p.step("end-to-end tests", cluster_tests(state, "sandbox", &[])).await?;
    p.step("demo on what runs already", Box::pin(demo::run(state, EDGE_PORT))).await?;
    eprintln!("\n{}", progress.table());
    Ok(())
}

async fn control_plane_tests(state: &State) -> Result<()> {
    let [first, second] =
        ASIDE.map(|part| part.iter().map(|module| format!("{module}::")).collect::<Vec<_>>());
    let aside = first.iter().chain(&second);
    let rest: Vec<String> = aside.flat_map(|module| ["--skip".to_owned(), module.clone()]).collect();
    // All come to their end: a test that is cut off leaves what it started.
    let (first, second, rest) = tokio::join!(
        cluster_tests(state, "control_plane", &first),
        cluster_tests(state, "control_plane", &second),
        cluster_tests(state, "control_plane", &rest),
    );
    first.and(second).and(rest)
}

async fn cluster_tests(state: &State, target: &str, filter: &[String]) -> Result<()> {
    let mut arguments =
        vec!["test", "--workspace", "--features", "e2e/cluster", "--locked", "--test", target];
    // One cluster: tests that change the same objects take turns.
    arguments.extend(["--", "--test-threads=1"]);
    arguments.extend(filter.iter().map(String::as_str));
    cargo(&arguments, &[(STATE_DIR_VARIABLE, &state.dir().display().to_string())]).await
}

async fn cargo(arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let program = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut cargo = Command::new(program);
    cargo.current_dir(crate::workspace()).args(arguments).envs(environment.iter().copied());
    // A test tells what it waited for and shows the object; frames of the runtime would bury that.
    cargo.env("RUST_BACKTRACE", "0");
    run_shown(cargo, &format!("cargo {}", arguments.join(" "))).await
}

/// Licences, sources and bans. Advisories need a database that is fetched from
/// a public repository; `cargo deny check advisories` is for where that is reachable.
async fn deny(progress: &Progress) -> Result<()> {
    let root = cache_dir("tools")?.join(format!("cargo-deny-{CARGO_DENY}"));
    let program = root.join("bin/cargo-deny");
    if !program.exists() {
        progress.say("installing cargo-deny");
        let root = root.to_str().context("the cache directory is not valid UTF-8")?;
        // A debug build takes half the time to make and checks as well.
        cargo(
            &["install", "cargo-deny", "--version", CARGO_DENY, "--locked", "--debug", "--root", root],
            &[],
        )
        .await?;
    }
    let mut deny = Command::new(program);
    deny.current_dir(crate::workspace()).args([
        "--log-level",
        "warn",
        "check",
        "bans",
        "licenses",
        "sources",
    ]);
    run_shown(deny, "cargo deny check").await
}

async fn run_shown(mut command: Command, name: &str) -> Result<()> {
    let status = command.stdin(Stdio::null()).kill_on_drop(true).status().await;
    let status = status.with_context(|| format!("cannot run `{name}`"))?;
    if !status.success() {
        bail!("`{name}` failed: what it said stands above");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_module_that_runs_aside_is_there() {
        let main = crate::workspace().join("e2e/tests/control_plane/main.rs");
        let main = std::fs::read_to_string(main).unwrap();
        for module in ASIDE.into_iter().flatten() {
            assert!(main.lines().any(|line| line == format!("mod {module};")), "there is no module {module}");
        }
    }
}
