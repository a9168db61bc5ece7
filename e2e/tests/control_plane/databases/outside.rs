//! A server that goes away, is changed by others, or is fought over.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use e2e::wait;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Secret, events::v1::Event};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ListParams},
};
use peristyle_crds::v1alpha1::{Database, DatabaseClass, Service};
use serde_json::json;

use super::{Bench, PATIENCE, external};
use crate::server::Server;

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

/// Everything that a tenant with the right to edit status, labels and annotations
/// could point at another's database, in turn: what would be dropped must come
/// from the spec, the UID and the mark on the server alone.
#[tokio::test]
async fn editing_status_labels_or_annotations_leads_a_deletion_to_nothing_but_its_own_database() {
    let bench = Bench::with_class().await.unwrap();
    let other = Server::start().await;
    let spec = |class: &str| json!({"className": class, "reclaimPolicy": "Delete", "deletionProtection": "Disabled"});
    bench.apply("Database", "victim", spec("pg")).await.unwrap();
    bench.condition("victim", "Ready", "True").await.unwrap();
    let api = bench.operated.api::<Database>();
    let victim = serde_json::to_value(api.get("victim").await.unwrap()).unwrap();
    let endpoint = other.endpoint("127.0.0.1");
    let own = api.get("victim").await.unwrap().status.unwrap().server.unwrap();
    let server = |class: &str, port: i32, identifier: &str| json!({"class": class, "host": "127.0.0.1", "port": port, "version": "15.1", "systemIdentifier": identifier});
    let edits = [
        ("name", json!({"databaseName": "shop_victim", "binding": {"name": "victim-db"}})),
        ("roles", json!({"roles": victim["status"]["roles"]})),
        ("class", json!({"server": server("elsewhere", own.port, &own.system_identifier)})),
        ("port", json!({"server": server("pg", i32::from(endpoint.port), &own.system_identifier)})),
        ("identifier", json!({"server": server("pg", own.port, "1")})),
        ("conditions", json!({"conditions": victim["status"]["conditions"], "observedGeneration": 99})),
        ("all", victim["status"].clone()),
    ];
    for (what, status) in edits {
        bench.apply("Database", "thief", spec("pg")).await.unwrap();
        bench.condition("thief", "Ready", "True").await.unwrap();
        assert!(bench.on_server("shop_thief").await);
        let metadata = json!({"metadata": {
            "labels": victim["metadata"]["labels"],
            "annotations": {"peristyle.dev/database": "victim", "peristyle.dev/rotated-at": "2000-01-01T00:00:00Z"}
        }});
        let params = kube::api::PatchParams::default();
        api.patch("thief", &params, &kube::api::Patch::Merge(&metadata)).await.unwrap();
        let status = json!({"status": status});
        let edited = api.patch_status("thief", &params, &kube::api::Patch::Merge(&status)).await.unwrap();
        assert_eq!(edited.annotations()["peristyle.dev/database"], "victim", "{what}: the edit is there");
        api.delete("thief", &DeleteParams::default()).await.unwrap();
        let told = format!("{what}: the thief is gone or blocked");
        let ended = wait::until(&told, PATIENCE, async || {
            let Some(thief) = api.get_opt("thief").await? else { return Ok(true) };
            let conditions = thief.status.map(|status| status.conditions).unwrap_or_default();
            let is_blocked = conditions.iter().any(|c| c.type_ == "DeletionBlocked" && c.status == "True");
            ensure!(is_blocked, "{conditions:?}");
            Ok(false)
        });
        let is_gone = ended.await.unwrap();
        println!("{what}: {}", if is_gone { "its own database is gone" } else { "deletion is blocked" });
        assert!(!is_gone || !bench.on_server("shop_thief").await, "{what}: its own database is left");
        assert!(bench.on_server("shop_victim").await, "{what}: the victim's database is gone");
        bench.connect("victim-db").await.unwrap();
        bench.connect("victim-db-owner").await.unwrap();
        if !is_gone {
            // Somebody who may edit the object lets it go; the next one takes back what it left.
            let free = json!({"metadata": {"finalizers": null}});
            api.patch("thief", &params, &kube::api::Patch::Merge(&free)).await.unwrap();
            bench.gone("thief").await.unwrap();
            let superuser = bench.server.superuser("postgres").await;
            for sql in [
                "DROP DATABASE IF EXISTS shop_thief WITH (FORCE)",
                "DROP ROLE IF EXISTS shop_thief_owner_a, shop_thief_owner_b, shop_thief_writer_a, \
                 shop_thief_writer_b, shop_thief_owner, shop_thief_writer, shop_thief_reader",
            ] {
                superuser.batch_execute(sql).await.unwrap();
            }
        }
    }
    let found = other.superuser("postgres").await;
    let found = found.query("SELECT 1 FROM pg_roles WHERE rolname LIKE 'shop%'", &[]).await.unwrap();
    assert!(found.is_empty(), "something was made on the other server");
}

#[tokio::test]
async fn a_server_that_goes_away_is_noticed_although_nothing_changes_and_found_again() {
    // The time between two looks, and one failure that is not told of.
    const NOTICED: Duration = Duration::from_secs(90);
    let mut bench = Bench::with_class().await.unwrap();
    bench.apply("Database", "orders", json!({})).await.unwrap();
    bench.condition("orders", "Ready", "True").await.unwrap();
    let binding = json!([{"name": "main", "database": "orders"}]);
    bench.apply("Service", "web", json!({"image": "x:1", "databases": binding})).await.unwrap();
    let deployments = bench.operated.api::<Deployment>();
    let before =
        wait::object(&deployments, "web", "is there", PATIENCE, |_: &Deployment| true).await.unwrap();
    let classes = Api::<DatabaseClass>::all(bench.operated.client.clone());
    bench.server.stop();
    let down = Instant::now();
    let services = bench.operated.api::<Service>();
    let noticed = wait::until("class, Database and Service tell of it", NOTICED, async || {
        let database = bench.operated.api::<Database>().get("orders").await?.status.context("no status")?;
        let class = classes.get("pg").await?.status.context("no status")?;
        let service = services.get("web").await?.status.context("no status")?;
        for (conditions, type_) in [
            (database.conditions, "Ready"),
            (class.conditions, "Ready"),
            (service.conditions, "DatabasesReady"),
        ] {
            let told = conditions.iter().find(|c| c.type_ == type_).with_context(|| format!("no {type_}"))?;
            ensure!(told.status == "Unknown" && told.reason == "ServerUnreachable", "{told:?}");
        }
        Ok(())
    });
    noticed.await.unwrap();
    println!("noticed after {:?}", down.elapsed());
    let back = Instant::now();
    bench.server.resume().await;
    bench.condition("orders", "Ready", "True").await.unwrap();
    println!("healed {:?} after the server was started", back.elapsed());
    assert!(back.elapsed().as_secs() < 15, "healed after {:?}", back.elapsed());
    wait::object(&services, "web", "has its Database again", PATIENCE, |service: &Service| {
        let conditions = service.status.iter().flat_map(|status| &status.conditions);
        conditions.into_iter().any(|c| c.type_ == "DatabasesReady" && c.status == "True")
    })
    .await
    .unwrap();
    let after = deployments.get("web").await.unwrap();
    assert_eq!(after.metadata.generation, before.metadata.generation, "the workload was touched");
}

#[tokio::test]
async fn what_cannot_be_undone_is_said_and_credentials_are_kept_all_the_same() {
    let bench = Bench::with_class().await.unwrap();
    bench.apply("Database", "orders", json!({})).await.unwrap();
    bench.condition("orders", "Ready", "True").await.unwrap();
    let old = bench.secret("orders-db").await.unwrap();
    let superuser = bench.server.superuser("postgres").await;
    // Only a superuser can take it back, and the operator is none here.
    superuser.batch_execute("ALTER ROLE shop_orders_reader REPLICATION").await.unwrap();
    bench.operated.api::<Secret>().delete("orders-db", &DeleteParams::default()).await.unwrap();
    let (reason, message) = bench.condition("orders", "Provisioned", "False").await.unwrap();
    assert_eq!(reason, "DriftNotRepaired");
    assert!(
        message.contains("not undone") && message.contains("shop_orders_reader has REPLICATION"),
        "{message}"
    );
    assert!(message.contains("42501"), "{message}");
    bench.condition("orders", "Ready", "False").await.unwrap();
    wait::until("the Secret is made again", PATIENCE, async || {
        ensure!(bench.secret("orders-db").await? == old, "the Secret is another");
        bench.connect("orders-db").await.context("the password does not work")
    })
    .await
    .unwrap();

    superuser.batch_execute("ALTER ROLE shop_orders_reader NOREPLICATION").await.unwrap();
    bench.apply("Database", "orders", json!({"roles": {"writer": {"connectionLimit": 7}}})).await.unwrap();
    bench.condition("orders", "Ready", "True").await.unwrap();
}

#[tokio::test]
async fn a_database_that_vanished_is_not_made_anew_unless_its_object_is() {
    let bench = Bench::with_class().await.unwrap();
    let spec = |limit: i32| json!({"roles": {"writer": {"connectionLimit": limit}}});
    bench.apply("Database", "orders", spec(7)).await.unwrap();
    bench.condition("orders", "Ready", "True").await.unwrap();
    let superuser = bench.server.superuser("postgres").await;
    let rename = "ALTER DATABASE shop_orders RENAME TO shop_orders_old";
    superuser.batch_execute(rename).await.unwrap();
    bench.apply("Database", "orders", spec(8)).await.unwrap();
    let (reason, message) = bench.condition("orders", "Ready", "False").await.unwrap();
    assert_eq!(reason, "DatabaseGone");
    assert!(message.contains("rename it back or restore it"), "{message}");
    bench.condition("orders", "Stalled", "True").await.unwrap();
    assert!(!bench.on_server("shop_orders").await, "an empty one was made");

    superuser.batch_execute("ALTER DATABASE shop_orders_old RENAME TO shop_orders").await.unwrap();
    bench.condition("orders", "Ready", "True").await.unwrap();

    superuser.batch_execute(rename).await.unwrap();
    bench.operated.api::<Database>().delete("orders", &DeleteParams::default()).await.unwrap();
    bench.gone("orders").await.unwrap();
    let mut anew = spec(8);
    anew["adopt"] = "IfMarked".into();
    bench.apply("Database", "orders", anew).await.unwrap();
    bench.condition("orders", "Ready", "True").await.unwrap();
    bench.connect("orders-db").await.unwrap();
    assert!(bench.on_server("shop_orders").await && bench.on_server("shop_orders_old").await);
}
