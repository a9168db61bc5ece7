//! A server that goes away, is changed by others, or is fought over.

use std::time::Instant;

use anyhow::{Context, ensure};
use e2e::wait;
use k8s_openapi::api::{core::v1::Secret, events::v1::Event};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use peristyle_crds::v1alpha1::Database;
use serde_json::json;

use super::{Bench, PATIENCE, external};

#[tokio::test]
async fn a_server_that_is_down_leaves_the_rest_alone_and_is_found_again_within_15_seconds() {
    let mut bench = Bench::with_class().await.unwrap();
    bench.apply("Database", "orders", json!({})).await.unwrap();
    bench.condition("orders", "Ready", "True").await.unwrap();
    let secret = bench.operated.api::<Secret>().get("orders-db").await.unwrap();

    bench.server.stop();
    // A new spec makes the operator talk to the server.
    bench.apply("Database", "orders", json!({"roles": {"writer": {"connectionLimit": 7}}})).await.unwrap();
    let (reason, message) = bench.condition("orders", "Ready", "Unknown").await.unwrap();
    assert_eq!(reason, "ServerUnreachable", "{message}");
    let (_, message) = bench.condition("orders", "ServerReachable", "Unknown").await.unwrap();
    assert!(message.contains("does not answer"), "{message}");
    let kept = bench.operated.api::<Secret>().get("orders-db").await.unwrap();
    assert_eq!(kept.resource_version(), secret.resource_version(), "the credentials were touched");

    let back = Instant::now();
    bench.server.resume().await;
    bench.condition("orders", "Ready", "True").await.unwrap();
    println!("healed {:?} after the server was started", back.elapsed());
    assert!(back.elapsed().as_secs() < 15, "healed after {:?}", back.elapsed());
    bench.connect("orders-db").await.unwrap();
}

#[tokio::test]
async fn what_somebody_changed_on_the_server_is_put_right_and_told_once() {
    let bench = Bench::with_class().await.unwrap();
    let spec = |limit: i32| json!({"roles": {"writer": {"connectionLimit": limit}}});
    bench.apply("Database", "orders", spec(7)).await.unwrap();
    bench.condition("orders", "Ready", "True").await.unwrap();
    let superuser = bench.server.superuser("postgres").await;
    superuser.batch_execute("GRANT CONNECT ON DATABASE shop_orders TO PUBLIC").await.unwrap();
    // Without the record of a Secret the logins are looked at again, and the server with them.
    bench.operated.api::<Secret>().delete("orders-db", &DeleteParams::default()).await.unwrap();
    let (reason, message) = bench.condition("orders", "DriftDetected", "True").await.unwrap();
    assert_eq!(reason, "DriftRepaired");
    assert_eq!(message, "put right on the server: PUBLIC has CONNECT on the database");
    let events: Api<Event> = bench.operated.api();
    wait::until("the event", PATIENCE, async || {
        let events = events.list(&ListParams::default()).await?.items;
        let told = events.iter().filter(|event| event.reason.as_deref() == Some("DriftRepaired")).count();
        ensure!(told == 1, "{told} events");
        Ok(())
    })
    .await
    .unwrap();
    bench.condition("orders", "Ready", "True").await.unwrap();

    // The next look finds nothing, and another spec is no difference.
    bench.apply("Database", "orders", spec(8)).await.unwrap();
    wait::until("the condition is withdrawn", PATIENCE, async || {
        let status = bench.operated.api::<Database>().get("orders").await?.status.context("no status")?;
        let drift = status.conditions.iter().find(|condition| condition.type_ == "DriftDetected");
        ensure!(drift.is_none(), "{drift:?}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn of_two_databases_with_one_name_the_older_wins_and_the_other_follows_when_the_name_is_free() {
    let bench = Bench::start().await.unwrap();
    let spec = json!({"name": "shared", "reclaimPolicy": "Delete", "deletionProtection": "Disabled"});
    bench.apply("Database", "older", spec.clone()).await.unwrap();
    bench.condition("older", "Ready", "Unknown").await.unwrap();
    // Creation times have whole seconds.
    let created = bench.operated.api::<Database>().get("older").await.unwrap().creation_timestamp();
    wait::until("a younger Database exists", PATIENCE, async || {
        let api = bench.operated.api::<Database>();
        bench.apply("Database", "younger", spec.clone()).await?;
        if api.get("younger").await?.creation_timestamp() > created {
            return Ok(());
        }
        api.delete("younger", &DeleteParams::default()).await?;
        anyhow::bail!("both are of the same second")
    })
    .await
    .unwrap();
    bench.admin_secret(&bench.server).await.unwrap();
    bench.class("pg", external(&bench.server)).await.unwrap();
    bench.condition("older", "Ready", "True").await.unwrap();
    let (reason, message) = bench.condition("younger", "Ready", "False").await.unwrap();
    assert_eq!(reason, "DatabaseConflict");
    assert!(message.contains("shared belongs to Database older"), "{message}");

    bench.operated.api::<Database>().delete("older", &DeleteParams::default()).await.unwrap();
    bench.gone("older").await.unwrap();
    bench.condition("younger", "Ready", "True").await.unwrap();
    bench.connect("younger-db").await.unwrap();
}

#[tokio::test]
async fn editing_the_status_leads_a_deletion_to_nothing_but_its_own_database() {
    let bench = Bench::with_class().await.unwrap();
    let spec = json!({"reclaimPolicy": "Delete", "deletionProtection": "Disabled"});
    for name in ["victim", "thief"] {
        bench.apply("Database", name, spec.clone()).await.unwrap();
        bench.condition(name, "Ready", "True").await.unwrap();
    }
    let status = json!({"status": {
        "databaseName": "shop_victim", "binding": {"name": "victim-db"},
        "roles": [{"role": "Writer", "secretName": "victim-db", "activeSlot": "B"}]
    }, "metadata": {"annotations": {"peristyle.dev/database": "victim"}}});
    let api = bench.operated.api::<Database>();
    let params = kube::api::PatchParams::default();
    api.patch_status("thief", &params, &kube::api::Patch::Merge(&status)).await.unwrap();
    api.delete("thief", &DeleteParams::default()).await.unwrap();
    bench.gone("thief").await.unwrap();
    assert!(!bench.on_server("shop_thief").await);
    assert!(bench.on_server("shop_victim").await);
    bench.connect("victim-db").await.unwrap();
    bench.connect("victim-db-owner").await.unwrap();
}
