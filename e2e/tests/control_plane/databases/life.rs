//! Deletions and successors while something is wrong, and many at once.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::{operated::NAMESPACE, stack, wait};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use peristyle_crds::v1alpha1::{Database, DatabaseClass};
use serde_json::{Value, json};

use super::{Bench, PATIENCE, external};

/// How soon a deletion that cannot go on must say so.
const SAID: Duration = Duration::from_secs(30);

fn delete_at_the_end() -> Value {
    json!({"reclaimPolicy": "Delete", "deletionProtection": "Disabled"})
}

impl Bench {
    /// Waits until the deletion says that it is blocked; the message.
    async fn blocked(&self, name: &str) -> Result<String> {
        wait::until(&format!("the deletion of {name} is blocked"), SAID, async || {
            let database = self.operated.api::<Database>().get(name).await?;
            let conditions = database.status.context("no status")?.conditions;
            let blocked = conditions.iter().find(|c| c.type_ == "DeletionBlocked" && c.status == "True");
            Ok(blocked.with_context(|| format!("{conditions:?}"))?.message.clone())
        })
        .await
    }

    /// What the server has of `database`: itself and its roles.
    async fn left(&self, database: &str) -> Vec<String> {
        let sql = "SELECT datname::text FROM pg_database WHERE starts_with(datname::text, $1) UNION ALL \
            SELECT rolname::text FROM pg_roles WHERE starts_with(rolname::text, $1)";
        let superuser = self.server.superuser("postgres").await;
        superuser.query(sql, &[&database]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }
}

#[tokio::test]
async fn a_deletion_waits_for_a_server_that_is_down_and_for_the_right_password_and_says_so() {
    let mut bench = Bench::with_class().await.unwrap();
    for name in ["first", "second"] {
        bench.apply("Database", name, delete_at_the_end()).await.unwrap();
        bench.condition(name, "Ready", "True").await.unwrap();
    }
    let api = bench.operated.api::<Database>();
    bench.server.stop();
    api.delete("first", &DeleteParams::default()).await.unwrap();
    let message = bench.blocked("first").await.unwrap();
    assert!(message.contains("does not answer") && message.contains("removing the finalizer"), "{message}");
    bench.server.resume().await;
    bench.gone("first").await.unwrap();
    assert_eq!(bench.left("shop_first").await, Vec::<String>::new());

    let secrets: Api<Secret> = Api::namespaced(bench.operated.client.clone(), stack::SYSTEM_NAMESPACE);
    let wrong = json!({"stringData": {"password": "wrong"}});
    secrets.patch("pg-admin", &PatchParams::default(), &Patch::Merge(&wrong)).await.unwrap();
    api.delete("second", &DeleteParams::default()).await.unwrap();
    let message = bench.blocked("second").await.unwrap();
    assert!(message.contains("removing the finalizer") && !message.contains("\"wrong\""), "{message}");
    assert!(bench.on_server("shop_second").await);
    bench.admin_secret(&bench.server).await.unwrap();
    bench.gone("second").await.unwrap();
    assert_eq!(bench.left("shop_second").await, Vec::<String>::new());
}

#[tokio::test]
async fn a_policy_that_changes_while_the_server_is_away_counts_at_the_end() {
    let bench = Bench::with_class().await.unwrap();
    bench.apply("Database", "orders", json!({})).await.unwrap();
    bench.condition("orders", "Ready", "True").await.unwrap();
    let classes = Api::<DatabaseClass>::all(bench.operated.client.clone());
    classes.delete("pg", &DeleteParams::default()).await.unwrap();
    bench.apply("Database", "orders", delete_at_the_end()).await.unwrap();
    bench.condition("orders", "Ready", "Unknown").await.unwrap();
    let database = bench.operated.api::<Database>().get("orders").await.unwrap();
    assert_eq!(database.finalizers(), ["peristyle.dev/database"]);
    bench.operated.api::<Database>().delete("orders", &DeleteParams::default()).await.unwrap();
    bench.blocked("orders").await.unwrap();
    bench.class("pg", external(&bench.server)).await.unwrap();
    bench.gone("orders").await.unwrap();
    assert_eq!(bench.left("shop_orders").await, Vec::<String>::new());
}

#[tokio::test]
async fn an_object_of_the_same_name_gets_nothing_of_one_whose_finalizer_was_stripped() {
    let bench = Bench::with_class().await.unwrap();
    bench.apply("Database", "orders", delete_at_the_end()).await.unwrap();
    bench.condition("orders", "Ready", "True").await.unwrap();
    let owner = bench.connect("orders-db-owner").await.unwrap();
    owner.batch_execute("CREATE TABLE rows AS SELECT 42 AS answer").await.unwrap();
    let api = bench.operated.api::<Database>();
    let strip = async || {
        let params = PatchParams::default();
        let free = json!({"metadata": {"finalizers": null}});
        api.patch("orders", &params, &Patch::Merge(&free)).await.map(drop)
    };
    // The server is out of reach, so that the operator is not faster.
    let classes = Api::<DatabaseClass>::all(bench.operated.client.clone());
    classes.delete("pg", &DeleteParams::default()).await.unwrap();
    bench.condition("orders", "Ready", "Unknown").await.unwrap();
    api.delete("orders", &DeleteParams::default()).await.unwrap();
    bench.blocked("orders").await.unwrap();
    strip().await.unwrap();
    bench.gone("orders").await.unwrap();

    bench.apply("Database", "orders", json!({})).await.unwrap();
    bench.class("pg", external(&bench.server)).await.unwrap();
    let (reason, _) = bench.condition("orders", "Ready", "False").await.unwrap();
    assert_eq!(reason, "DatabaseConflict");
    let uid = api.get("orders").await.unwrap().uid().unwrap();
    for name in ["orders-db", "orders-db-owner", "orders-db-slots"] {
        let secret = bench.operated.api::<Secret>().get_opt(name).await.unwrap();
        let is_new = secret.is_some_and(|secret| secret.owner_references().iter().any(|o| o.uid == uid));
        assert!(!is_new, "it got {name}");
    }
    owner.batch_execute("SELECT * FROM rows").await.expect("what is there was touched");

    // A namespace that was deleted and made again may belong to another team.
    api.delete("orders", &DeleteParams::default()).await.unwrap();
    bench.gone("orders").await.unwrap();
    let namespaces: Api<Namespace> = Api::all(bench.operated.client.clone());
    let before = namespaces.get(NAMESPACE).await.unwrap().uid();
    namespaces.delete(NAMESPACE, &DeleteParams::default()).await.unwrap();
    wait::until("the namespace is another", PATIENCE, async || {
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}}))?;
        drop(namespaces.create(&PostParams::default(), &namespace).await);
        let found = namespaces.get_opt(NAMESPACE).await?.context("it is not there")?;
        ensure!(found.uid() != before && found.metadata.deletion_timestamp.is_none(), "it is the same");
        Ok(())
    })
    .await
    .unwrap();
    bench.apply("Database", "orders", json!({"adopt": "IfMarked"})).await.unwrap();
    let (reason, message) = bench.condition("orders", "Ready", "False").await.unwrap();
    assert_eq!(reason, "DatabaseConflict");
    assert!(message.contains("does not belong to this object"), "{message}");
    assert!(
        bench.operated.api::<Secret>().get_opt("orders-db").await.unwrap().is_none(),
        "it got credentials"
    );
    owner.batch_execute("SELECT * FROM rows").await.expect("what is there was touched");
}

#[tokio::test]
async fn sixty_databases_at_once_take_two_connections_and_no_status_tells_of_a_failure() {
    const MANY: i64 = 60;
    let bench = Bench::start().await.unwrap();
    for number in 0..MANY {
        bench.apply("Database", &format!("d{number}"), json!({})).await.unwrap();
    }
    let superuser = bench.server.superuser("postgres").await;
    let sampling = tokio::spawn(async move {
        let (mut most, mut samples) = (0, 0);
        let sql = "SELECT (SELECT count(*) FROM pg_stat_activity WHERE application_name = 'peristyle'), \
             (SELECT count(*) FROM pg_database WHERE starts_with(datname::text, 'shop_d') AND datallowconn)";
        let mut ticks = tokio::time::interval(Duration::from_millis(10));
        loop {
            ticks.tick().await;
            let row = superuser.query_one(sql, &[]).await.unwrap();
            let (connections, databases): (i64, i64) = (row.get(0), row.get(1));
            most = most.max(connections);
            samples += usize::from(connections > 0);
            if databases == MANY {
                return (most, samples);
            }
        }
    });
    bench.admin_secret(&bench.server).await.unwrap();
    bench.class("pg", external(&bench.server)).await.unwrap();
    let api = bench.operated.api::<Database>();
    wait::until("all are ready", PATIENCE * 5, async || {
        let all = api.list(&kube::api::ListParams::default()).await?.items;
        let ready = |database: &Database| {
            let conditions = database.status.iter().flat_map(|status| &status.conditions);
            conditions.into_iter().find(|c| c.type_ == "Ready").cloned()
        };
        let states: Vec<_> = all.iter().filter_map(ready).collect();
        let failed: Vec<_> = states.iter().filter(|c| c.status == "False").collect();
        ensure!(failed.is_empty(), wait::Never(anyhow::anyhow!("{failed:?}")));
        let left = all.len() - states.iter().filter(|c| c.status == "True").count();
        ensure!(left == 0, "{left} are not");
        Ok(())
    })
    .await
    .unwrap();
    let (most, samples) = sampling.await.unwrap();
    println!("{most} connections at most in {samples} samples with any");
    assert!(most <= 2, "{most} connections at a time");
    assert!(samples > 100, "only {samples} samples");
}

#[tokio::test]
async fn a_server_without_a_free_connection_is_waited_for_and_found_again() {
    let bench = Bench::with_class().await.unwrap();
    bench.apply("Database", "orders", json!({})).await.unwrap();
    bench.condition("orders", "Ready", "True").await.unwrap();
    let superuser = bench.server.superuser("postgres").await;
    superuser.batch_execute("CREATE ROLE greedy LOGIN PASSWORD 'greedy'").await.unwrap();
    let greedy = crate::server::Account::new("greedy", "greedy");
    let mut held = Vec::new();
    while let Ok(client) = bench.server.client(&greedy, "postgres").await {
        held.push(client);
    }
    bench.apply("Database", "orders", json!({"roles": {"writer": {"connectionLimit": 7}}})).await.unwrap();
    let (reason, message) = bench.condition("orders", "Ready", "Unknown").await.unwrap();
    assert_eq!(reason, "ServerUnreachable", "{message}");
    assert!(message.contains("connection slots"), "{message}");
    held.clear();
    let back = std::time::Instant::now();
    bench.condition("orders", "Ready", "True").await.unwrap();
    println!("healed after {:?}", back.elapsed());
    assert!(back.elapsed().as_secs() < 15, "healed after {:?}", back.elapsed());
}
