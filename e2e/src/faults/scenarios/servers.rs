//! Database servers that accept connections and do not answer.

use anyhow::{Result, ensure};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use peristyle_crds::v1alpha1::DatabaseClass;
use serde_json::json;

use super::{apply, apply_service, arrives, becomes_ready, ready, remove, tells};
use crate::faults::runner::Runner;
use crate::faults::sql::{SqlProxy, Weather};
use crate::faults::workload::Step;

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
    let classes: Api<DatabaseClass> = Api::all(rig.client.clone());
    let class = json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": "DatabaseClass",
        "metadata": {"name": "silent"},
        "spec": {"engine": "PostgreSQL", "provider": "External", "external": {
            "endpoints": {"write": silent.address().to_string()},
            "adminSecret": {"name": "postgres-admin"},
            "tls": {"mode": "Disabled", "allowInsecure": "Enabled"}}}});
    classes.patch("silent", &PatchParams::apply("team").force(), &Patch::Apply(&class)).await?;
    let database = |class: &str| {
        json!({"className": class, "reclaimPolicy": "Delete", "deletionProtection": "Disabled",
            "rotation": {"mode": "Disabled"}})
    };
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
