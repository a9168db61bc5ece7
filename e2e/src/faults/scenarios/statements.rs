//! Statements that the database server refuses.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use super::{arrives, ready, wait};
use crate::faults::runner::Runner;
use crate::faults::sql::{Trouble, Weather};
use crate::faults::workload::Step;

/// For what is looked at again only after the better part of a minute.
const LONG: Duration = Duration::from_secs(90);

/// Somebody was faster, was changing the same, or the server shuts down.
pub async fn statements_that_are_refused_once_make_nothing_twice(runner: &Runner) -> Result<()> {
    let troubles = [
        ("CREATE ROLE", "42710"),
        ("CREATE DATABASE", "42P04"),
        ("GRANT CONNECT", "XX000"),
        ("CREATE SCHEMA", "57P01"),
    ];
    create_with(runner, &troubles).await
}

/// What passes by itself, at each statement of a creation.
pub async fn statements_that_are_refused_for_a_moment_make_nothing_twice(runner: &Runner) -> Result<()> {
    const STATEMENTS: [&str; 6] = [
        "CREATE ROLE",
        "CREATE DATABASE",
        "REVOKE ALL ON DATABASE",
        "ALTER DATABASE",
        "CREATE SCHEMA",
        "_owner_a\" LOGIN",
    ];
    for sqlstate in ["57P01", "53300", "25006", "40001", "XX000"] {
        // Each failure in a row doubles the pause: half of them at a time.
        for statements in STATEMENTS.chunks(3) {
            let troubles: Vec<_> = statements.iter().map(|statement| (*statement, sqlstate)).collect();
            create_with(runner, &troubles).await?;
        }
    }
    Ok(())
}

async fn create_with(runner: &Runner, troubles: &[(&'static str, &'static str)]) -> Result<()> {
    runner.walk(&[Step::Delete]).await?;
    let once = troubles.iter().map(|(containing, sqlstate)| Trouble::refused(containing, sqlstate));
    runner.rig.sql.set(Weather::Once(once.collect()));
    runner.walk_within(LONG, &[Step::Create]).await.with_context(|| format!("{troubles:?}"))?;
    let left = runner.rig.sql.calm();
    ensure!(left.is_empty(), "these were not met: {left:?}");
    Ok(())
}

/// In use, and a right that is missing: nothing tells when that ends.
pub async fn statements_that_are_refused_for_long_reasons_are_told_and_heal(runner: &Runner) -> Result<()> {
    create_with(runner, &[("CREATE DATABASE", "55006")]).await?;

    let rig = &runner.rig;
    runner.walk(&[Step::Delete]).await?;
    rig.sql.set(Weather::Once(vec![Trouble::refused("REVOKE ALL ON DATABASE", "42501")]));
    Step::Create.act(&rig.client).await?;
    wait::until("the missing right is told", LONG, async || {
        let ready = ready(rig, "Database", "greeter").await?;
        ensure!(ready["reason"] == "InsufficientPrivileges", "{ready}");
        Ok(())
    })
    .await?;
    arrives(rig, Step::Create).await?;
    ensure!(rig.sql.calm().is_empty(), "no REVOKE was refused");
    runner.walk(&[Step::Create]).await?;

    rig.sql.set(Weather::Once(vec![Trouble::refused("DROP DATABASE", "55006")]));
    runner.walk_within(LONG, &[Step::Delete]).await?;
    ensure!(rig.sql.calm().is_empty(), "no DROP was refused");
    runner.walk(&[Step::Create]).await
}
