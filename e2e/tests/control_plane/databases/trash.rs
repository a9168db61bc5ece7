//! Databases whose deletion can be taken back for a while.

use anyhow::{Result, ensure};
use e2e::wait;
use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, api::DeleteParams};
use peristyle_crds::v1alpha1::Database;
use serde_json::{Value, json};

use super::{Bench, PATIENCE, external};

impl Bench {
    async fn delete(&self, name: &str) -> Result<()> {
        self.operated.api::<Database>().delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Changes how long databases lie in the trash.
    async fn retention(&self, retention: &str) -> Result<()> {
        let mut spec = external(&self.server);
        spec["trash"] = json!({"retention": retention});
        self.class("pg", spec).await
    }

    /// Waits until neither a database nor a role of the name is on the server.
    async fn dropped(&self, database: &str) -> Result<()> {
        let superuser = self.server.superuser("postgres").await;
        wait::until(&format!("{database} is dropped"), PATIENCE, async || {
            let sql = "SELECT datname::text FROM pg_database WHERE starts_with(datname::text, $1) UNION ALL \
                SELECT rolname::text FROM pg_roles WHERE starts_with(rolname::text, $1)";
            let left = superuser.query(sql, &[&database]).await?;
            let left: Vec<String> = left.iter().map(|row| row.get(0)).collect();
            ensure!(left.is_empty(), "{left:?} is left");
            Ok(())
        })
        .await
    }

    /// How often the administrator has connected.
    fn visits(&self) -> usize {
        self.server.log().matches("connection authorized: user=creator").count()
    }
}

fn trash(protection: &str) -> Value {
    json!({"reclaimPolicy": "Trash", "deletionProtection": protection})
}

#[tokio::test]
async fn a_database_in_the_trash_waits_for_its_successor_and_its_time_and_asks_nothing_meanwhile() {
    let mut bench = Bench::with_class().await.unwrap();
    for name in ["orders", "stock"] {
        bench.apply("Database", name, trash("Enabled")).await.unwrap();
        bench.condition(name, "Ready", "True").await.unwrap();
    }
    let owner = bench.connect("orders-db-owner").await.unwrap();
    owner.batch_execute("CREATE TABLE t AS SELECT 42 AS answer").await.unwrap();
    let old = bench.secret("orders-db").await.unwrap()["uri"].clone();
    bench.delete("orders").await.unwrap();
    let (reason, message) = bench.condition("orders", "DeletionBlocked", "True").await.unwrap();
    assert_eq!(reason, "DeletionProtected");
    assert!(message.contains("set it to Disabled to let spec.reclaimPolicy Trash act"), "{message}");
    owner.batch_execute("SELECT 1").await.unwrap();

    bench.apply("Database", "orders", trash("Disabled")).await.unwrap();
    bench.gone("orders").await.unwrap();
    assert!(owner.batch_execute("SELECT 1").await.is_err(), "a session goes on");
    let error = tokio_postgres::connect(&old, tokio_postgres::NoTls).await.err().unwrap();
    assert_eq!(error.code().unwrap().code(), "28P01");
    assert!(!bench.on_server("shop_orders").await && bench.on_server("shop_orders-trash").await);

    bench.apply("Database", "orders", json!({})).await.unwrap();
    let (reason, message) = bench.condition("orders", "Ready", "False").await.unwrap();
    assert_eq!(reason, "DatabaseConflict");
    assert!(message.contains("set spec.adopt to IfMarked"), "{message}");
    let mut restored = trash("Disabled");
    restored["adopt"] = "IfMarked".into();
    bench.apply("Database", "orders", restored).await.unwrap();
    bench.condition("orders", "Ready", "True").await.unwrap();
    let reader = bench.connect("orders-db").await.unwrap();
    let answer: i32 = reader.query_one("SELECT answer FROM t", &[]).await.unwrap().get(0);
    assert_eq!(answer, 42, "the data came back");
    assert!(tokio_postgres::connect(&old, tokio_postgres::NoTls).await.is_err(), "the old password works");
    drop(reader);

    // Again, and this time until its end, over which two operators watch.
    bench.retention("20s").await.unwrap();
    bench.delete("orders").await.unwrap();
    bench.gone("orders").await.unwrap();
    let before = bench.visits();
    bench.operated.operate("second").await.unwrap();
    wait::until("the next operator looks into the trash", PATIENCE, async || {
        ensure!(bench.visits() > before, "it has not asked the server");
        bench.condition("stock", "Ready", "True").await.map(drop)
    })
    .await
    .unwrap();
    bench.dropped("shop_orders").await.unwrap();
    assert!(bench.on_server("shop_stock").await);
    bench.connect("stock-db").await.unwrap();
    let visits = bench.visits() - before;
    println!("{visits} visits while one database lay in the trash for 20 s");
    // The next operator verifies its class and its Database, looks into the trash, and comes back once.
    assert!(visits <= 10, "the server was asked {visits} times");
}

#[tokio::test]
async fn a_namespace_that_is_deleted_waits_for_a_protected_database() {
    let bench = Bench::with_class().await.unwrap();
    bench.apply("Database", "orders", trash("Enabled")).await.unwrap();
    bench.condition("orders", "Ready", "True").await.unwrap();
    let namespaces: Api<Namespace> = Api::all(bench.operated.client.clone());
    namespaces.delete(e2e::operated::NAMESPACE, &DeleteParams::default()).await.unwrap();
    // The control plane has no controller of namespaces: it deletes what is in them.
    bench.delete("orders").await.unwrap();
    let (_, message) = bench.condition("orders", "DeletionBlocked", "True").await.unwrap();
    assert!(message.contains("a deletion of the namespace waits for it as well"), "{message}");
    assert!(bench.on_server("shop_orders").await);
    bench.apply("Database", "orders", trash("Disabled")).await.unwrap();
    bench.gone("orders").await.unwrap();
    assert!(bench.on_server("shop_orders-trash").await);

    // A shorter time counts for what is there already.
    bench.retention("1s").await.unwrap();
    bench.dropped("shop_orders").await.unwrap();
}
