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

/// Test binaries of this crate on a control plane of their own, in two halves
/// that take about as long: most of the time they wait. Those with a gate share
/// a port and so a half.
const CONTROL_PLANE_TESTS: [&[&str]; 2] = [
    &[
        "schema",
        "controllers",
        "workloads",
        "references",
        "edge",
        "identity",
        "attacks",
        "decisions",
        "hosts",
        "relations",
        "charts",
        "sequences",
        "operator",
    ],
    &["databases", "ownership", "rbac", "traces", "poison", "canary", "misuse", "faults"],
];

/// Test binaries of this crate on the full sandbox with charts and example.
const SANDBOX_TESTS: &[&str] =
    &["converge", "calls", "closed", "secrets", "pods", "embedded", "existing", "quiet"];

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
    let [some, others] = CONTROL_PLANE_TESTS.map(|tests| cluster_tests(state, tests));
    // Both come to their end: a test that is cut off leaves what it started.
    let both = async {
        let (some, others) = tokio::join!(some, others);
        some.and(others)
    };
    p.step("control-plane tests", both).await?;
    p.step("sandbox life cycle", cluster_tests(state, &["lifecycle"])).await?;

    p.step("demo", Box::pin(demo::run(state, EDGE_PORT))).await?;
    p.step("end-to-end tests", cluster_tests(state, SANDBOX_TESTS)).await?;
    p.step("demo on what runs already", Box::pin(demo::run(state, EDGE_PORT))).await?;
    eprintln!("\n{}", progress.table());
    Ok(())
}

async fn cluster_tests(state: &State, names: &[&str]) -> Result<()> {
    let mut arguments = vec!["test", "--workspace", "--features", "e2e/cluster", "--locked"];
    arguments.extend(names.iter().flat_map(|name| ["--test", name]));
    // One cluster: tests that change the same objects take turns.
    arguments.extend(["--", "--test-threads=1"]);
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
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_test_of_this_crate_is_run() {
        let listed = CONTROL_PLANE_TESTS.into_iter().flatten().chain(SANDBOX_TESTS).chain(&["lifecycle"]);
        let listed: BTreeSet<String> = listed.map(ToString::to_string).collect();
        let folder = crate::workspace().join("e2e/tests");
        let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "rs"));
        let there: BTreeSet<String> =
            files.map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned()).collect();
        assert_eq!(listed, there);
    }
}
