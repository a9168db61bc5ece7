//! Database servers that accept connections and do not answer.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use peristyle_crds::v1alpha1::DatabaseClass;
use serde_json::{Value, json};

use super::{PATIENCE, apply, apply_service, arrives, becomes_ready, ready, remove, tells};
use crate::faults::postgres::Postgres;
use crate::faults::rig::Rig;
use crate::faults::runner::Runner;
use crate::faults::sql::{SqlProxy, Weather};
use crate::faults::workload::Step;
use crate::wait;

/// How soon a server that can be used again must be.
const HEALED: Duration = Duration::from_secs(15);

pub async fn a_silent_database_server_holds_up_nobody_else(runner: &Runner) -> Result<()> {
    let rig = &runner.rig;
    Step::Delete.act(&rig.client).await?;
    arrives(rig, Step::Delete).await?;
    rig.sql.set(Weather::Silent);
    rig.journal.begin(None);
    Step::Create.act(&rig.client).await?;
    apply_service(rig, "beside").await?;
    becomes_ready(rig, "Service", "beside").await?;
    tells(rig, "Service", "greeter", "DatabaseNotReady").await?;
    drop(rig.sql.calm());
    arrives(rig, Step::Create).await?;
    remove(rig, "Service", "beside").await
}

pub async fn a_silent_database_server_holds_up_no_database_on_another(runner: &Runner) -> Result<()> {
    const STUCK: [&str; 3] = ["stuck1", "stuck2", "stuck3"];
    let rig = &runner.rig;
    let silent = SqlProxy::start(rig.postgres.address(), rig.journal.clone()).await?;
    silent.set(Weather::Silent);
    let classes = apply_class(rig, "silent", silent.address()).await?;
    for name in STUCK {
        apply(rig, "Database", name, database("silent")).await?;
    }
    apply(rig, "Database", "healthy", database("postgres")).await?;
    becomes_ready(rig, "Database", "healthy").await?;
    for name in STUCK {
        let is_ready = ready(rig, "Database", name).await.is_ok_and(|ready| ready["status"] == "True");
        ensure!(!is_ready, "{name} is ready on a silent server");
    }
    drop(silent.calm());
    for name in STUCK {
        becomes_ready(rig, "Database", name).await?;
        remove(rig, "Database", name).await?;
    }
    remove(rig, "Database", "healthy").await?;
    classes.delete("silent", &DeleteParams::default()).await?;
    Ok(())
}

/// A class that leads to another server, and the interface that deletes it.
async fn apply_class(rig: &Rig, name: &str, address: SocketAddr) -> Result<Api<DatabaseClass>> {
    let classes: Api<DatabaseClass> = Api::all(rig.client.clone());
    let class = json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": "DatabaseClass",
        "metadata": {"name": name},
        "spec": {"engine": "PostgreSQL", "provider": "External", "external": {
            "endpoints": {"write": address.to_string()},
            "adminSecret": {"name": "postgres-admin"},
            "tls": {"mode": "Disabled", "allowInsecure": "Enabled"}}}});
    classes.patch(name, &PatchParams::apply("team").force(), &Patch::Apply(&class)).await?;
    Ok(classes)
}

fn database(class: &str) -> Value {
    json!({"className": class, "reclaimPolicy": "Delete", "deletionProtection": "Disabled",
        "rotation": {"mode": "Disabled"}})
}

/// The administrator lands on a standby: first where nothing was made yet, then
/// after a failover of a server that was in use.
pub async fn a_standby_is_told_and_used_as_soon_as_it_is_promoted(runner: &Runner) -> Result<()> {
    let rig = &runner.rig;
    let first = rig.postgres.standby().await?;
    let proxy = SqlProxy::start(first.address(), rig.journal.clone()).await?;
    let classes = apply_class(rig, "standby", proxy.address()).await?;
    is_told_and_heals(rig, &first, "before").await?;
    let second = first.standby().await?;
    proxy.lead_to(second.address());
    is_told_and_heals(rig, &second, "after").await?;
    for name in ["before", "after"] {
        remove(rig, "Database", name).await?;
    }
    classes.delete("standby", &DeleteParams::default()).await?;
    Ok(())
}

async fn is_told_and_heals(rig: &Rig, standby: &Postgres, name: &str) -> Result<()> {
    apply(rig, "Database", name, database("standby")).await?;
    wait::until(&format!("Database {name} tells of the standby"), PATIENCE, async || {
        let ready = ready(rig, "Database", name).await?;
        let message = ready["message"].as_str().unwrap_or_default();
        ensure!(ready["status"] != "True" && message.contains("is a replica"), "{ready}");
        Ok(())
    })
    .await?;
    let client = standby.client("postgres").await?;
    client.execute("SELECT pg_promote()", &[]).await?;
    let promoted = Instant::now();
    becomes_ready(rig, "Database", name).await?;
    let took = promoted.elapsed();
    ensure!(took <= HEALED, "Database {name} is ready {took:?} after the promotion");
    Ok(())
}
