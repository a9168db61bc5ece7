//! Databases on a real API server and a real PostgreSQL, administered by a
//! role that is no superuser.

mod life;
mod outside;
mod rotation;
mod trash;

use std::{collections::BTreeMap, time::Duration};

use crate::server::{Account, Server};
use anyhow::{Context, Result, ensure};
use e2e::operated::Operated;
use e2e::{stack, wait};
use k8s_openapi::api::{
    apps::v1::StatefulSet,
    core::v1::{Secret, Service as CoreService},
};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams},
};
use peristyle_crds::v1alpha1::{Database, DatabaseClass, Service, database_class::AdminMode};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// An operator and a database server.
struct Bench {
    operated: Operated,
    server: Server,
}

impl Bench {
    async fn start() -> Result<Self> {
        let server = Server::start().await;
        let mut operated = Operated::prepare().await?;
        operated.operate("first").await?;
        Ok(Self { operated, server })
    }

    /// One that has a class for its server.
    async fn with_class() -> Result<Self> {
        let bench = Self::start().await?;
        bench.admin_secret(&bench.server).await?;
        bench.class("pg", external(&bench.server)).await?;
        Ok(bench)
    }

    async fn admin_secret(&self, server: &Server) -> Result<()> {
        let Account { user, password } = server.creator();
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "pg-admin"},
            "stringData": {"username": user, "password": password}
        });
        let api: Api<Secret> = Api::namespaced(self.operated.client.clone(), stack::SYSTEM_NAMESPACE);
        api.patch("pg-admin", &PatchParams::apply("team").force(), &Patch::Apply(&secret)).await?;
        Ok(())
    }

    async fn class(&self, name: &str, spec: Value) -> Result<()> {
        let class = json!({
            "apiVersion": "peristyle.dev/v1alpha1", "kind": "DatabaseClass", "spec": spec,
            "metadata": {"name": name, "annotations": {"peristyle.dev/is-default-class": "true"}},
        });
        let api: Api<DatabaseClass> = Api::all(self.operated.client.clone());
        api.patch(name, &PatchParams::apply("team").force(), &Patch::Apply(&class)).await?;
        Ok(())
    }

    async fn apply(&self, kind: &str, name: &str, spec: Value) -> Result<()> {
        let object = json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
        let params = PatchParams::apply("team").force();
        match kind {
            "Service" => {
                drop(self.operated.api::<Service>().patch(name, &params, &Patch::Apply(&object)).await?);
            }
            _ => drop(self.operated.api::<Database>().patch(name, &params, &Patch::Apply(&object)).await?),
        }
        Ok(())
    }

    /// Waits until the condition `type_` has `status` for the current spec; its reason and message.
    async fn condition(&self, name: &str, type_: &str, status: &str) -> Result<(String, String)> {
        wait::until(&format!("Database {name}: {type_}={status}"), PATIENCE, async || {
            let database = self.operated.api::<Database>().get(name).await?;
            let conditions = database.status.context("no status")?.conditions;
            let found =
                conditions.iter().find(|c| c.type_ == type_).with_context(|| format!("{conditions:?}"))?;
            ensure!(found.status == status, "{found:?}");
            ensure!(found.observed_generation >= database.metadata.generation, "{found:?} is of the past");
            Ok((found.reason.clone(), found.message.clone()))
        })
        .await
    }

    async fn secret(&self, name: &str) -> Result<BTreeMap<String, String>> {
        let data = self.operated.api::<Secret>().get(name).await?.data.unwrap_or_default();
        data.into_iter().map(|(key, value)| Ok((key, String::from_utf8(value.0)?))).collect()
    }

    /// Connects with the credentials of a Secret.
    async fn connect(&self, secret: &str) -> Result<tokio_postgres::Client> {
        let secret = self.secret(secret).await?;
        let (client, connection) = tokio_postgres::connect(&secret["uri"], tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    async fn gone(&self, name: &str) -> Result<()> {
        wait::until(&format!("Database {name} is gone"), PATIENCE, async || {
            ensure!(self.operated.api::<Database>().get_opt(name).await?.is_none(), "it is still there");
            Ok(())
        })
        .await
    }

    async fn on_server(&self, database: &str) -> bool {
        let superuser = self.server.superuser("postgres").await;
        !superuser
            .query("SELECT 1 FROM pg_database WHERE datname = $1", &[&database])
            .await
            .unwrap()
            .is_empty()
    }
}

fn external(server: &Server) -> Value {
    json!({"engine": "PostgreSQL", "provider": "External", "external": {
        "endpoints": {"write": server.endpoint("127.0.0.1").to_string()},
        "adminSecret": {"name": "pg-admin"},
        "tls": {"mode": "Disabled", "allowInsecure": "Enabled"}
    }})
}

#[tokio::test]
async fn a_short_database_gets_credentials_that_work_and_keeps_them_over_a_restart() {
    let mut bench = Bench::with_class().await.unwrap();
    bench.apply("Database", "orders", json!({})).await.unwrap();
    bench.condition("orders", "Ready", "True").await.unwrap();

    let status = bench.operated.api::<Database>().get("orders").await.unwrap().status.unwrap();
    assert_eq!(status.database_name.as_deref(), Some("shop_orders"));
    assert_eq!(status.binding.unwrap().name, "orders-db");
    assert_eq!(status.roles.len(), 2);
    let owner = bench.connect("orders-db-owner").await.unwrap();
    owner.batch_execute("CREATE TABLE t (id int)").await.unwrap();
    let writer = bench.connect("orders-db").await.unwrap();
    writer.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    assert!(writer.batch_execute("CREATE TABLE u (id int)").await.is_err());

    let class = Api::<DatabaseClass>::all(bench.operated.client.clone()).get("pg").await.unwrap();
    let class = class.status.unwrap();
    assert_eq!(class.admin_mode, Some(AdminMode::CreateRole));
    wait::until("the class counts the Database", PATIENCE, async || {
        let class = Api::<DatabaseClass>::all(bench.operated.client.clone()).get("pg").await?;
        ensure!(class.status.and_then(|s| s.databases) == Some(1), "it does not");
        Ok(())
    })
    .await
    .unwrap();

    let before = bench.operated.api::<Secret>().get("orders-db").await.unwrap();
    let database = bench.operated.api::<Database>().get("orders").await.unwrap();
    let seen = bench.server.log().len();
    bench.operated.operate("second").await.unwrap();
    wait::until("the new operator verifies the logins", PATIENCE, async || {
        let log = bench.server.log();
        ensure!(log[seen..].matches("user=shop_orders_writer_a").count() > 0, "not yet");
        ensure!(log[seen..].matches("user=shop_orders_owner_a").count() > 0, "not yet");
        Ok(())
    })
    .await
    .unwrap();
    // A change that the operator has to look at and that concerns nothing of it.
    bench.apply("Database", "later", json!({})).await.unwrap();
    bench.condition("later", "Ready", "True").await.unwrap();
    let log = bench.server.log();
    for word in ["CREATE", "ALTER", "GRANT", "REVOKE", "COMMENT"] {
        let repeated = log[seen..].lines().any(|l| l.contains(word) && l.contains("shop_orders"));
        assert!(!repeated, "{word} for a Database that was as it should be");
    }
    let after = bench.operated.api::<Secret>().get("orders-db").await.unwrap();
    assert_eq!(before.resource_version(), after.resource_version());
    let unchanged = bench.operated.api::<Database>().get("orders").await.unwrap();
    assert_eq!(database.resource_version(), unchanged.resource_version());

    for secret in ["orders-db", "orders-db-owner", "later-db", "later-db-owner"] {
        let password = &bench.secret(secret).await.unwrap()["password"];
        assert!(!log.contains(password), "the server's log has the password of {secret}");
    }
}

#[tokio::test]
async fn credentials_that_were_lost_or_edited_are_restored_and_work() {
    let bench = Bench::with_class().await.unwrap();
    bench.apply("Database", "orders", json!({})).await.unwrap();
    bench.condition("orders", "Ready", "True").await.unwrap();
    let old = bench.secret("orders-db").await.unwrap();

    bench.operated.api::<Secret>().delete("orders-db", &DeleteParams::default()).await.unwrap();
    let made_again = async || {
        ensure!(bench.secret("orders-db").await? == old, "the Secret is another");
        bench.connect("orders-db").await.context("the password does not work")
    };
    wait::until("the Secret is made again", PATIENCE, made_again).await.unwrap();

    let weak = json!({"stringData": {"password": "hunter2", "uri": "postgresql://elsewhere"}});
    bench
        .operated
        .api::<Secret>()
        .patch("orders-db", &PatchParams::default(), &Patch::Merge(&weak))
        .await
        .unwrap();
    wait::until("the Secret is restored", PATIENCE, made_again).await.unwrap();

    // Without what was written down, what clients have is still the truth.
    bench.operated.api::<Secret>().delete("orders-db-slots", &DeleteParams::default()).await.unwrap();
    wait::until("the passwords are written down again", PATIENCE, async || {
        let slots = bench.secret("orders-db-slots").await?;
        ensure!(slots["writer"].contains(&old["password"]), "another password was written down");
        made_again().await
    })
    .await
    .unwrap();

    let superuser = bench.server.superuser("postgres").await;
    superuser.batch_execute("ALTER ROLE shop_orders_writer_a NOLOGIN").await.unwrap();
    bench.apply("Database", "orders", json!({"roles": {"writer": {"connectionLimit": 7}}})).await.unwrap();
    bench.condition("orders", "Ready", "True").await.unwrap();
    bench.connect("orders-db").await.unwrap();
}

#[tokio::test]
async fn a_reader_exists_only_while_somebody_binds_it() {
    let bench = Bench::with_class().await.unwrap();
    bench.apply("Database", "orders", json!({})).await.unwrap();
    let service = |databases: Value| json!({"image": "x:1", "databases": databases});
    let reader = json!([{"name": "main", "database": "orders", "role": "Reader"}]);
    bench.apply("Service", "report", service(reader)).await.unwrap();
    let connected =
        wait::until("the reader connects", PATIENCE, async || bench.connect("orders-db-ro").await);
    let connected = connected.await.unwrap();
    assert!(connected.batch_execute("CREATE TEMP TABLE t (id int)").await.is_err());
    let uri = bench.secret("orders-db-ro").await.unwrap()["uri"].clone();

    bench.apply("Service", "report", service(json!([]))).await.unwrap();
    wait::until("the Secret is gone", PATIENCE, async || {
        ensure!(bench.operated.api::<Secret>().get_opt("orders-db-ro").await?.is_none(), "it is still there");
        Ok(())
    })
    .await
    .unwrap();
    assert!(tokio_postgres::connect(&uri, tokio_postgres::NoTls).await.is_err(), "the login is still open");
}

#[tokio::test]
async fn what_belongs_to_another_is_not_touched_and_another_server_is_noticed() {
    let bench = Bench::with_class().await.unwrap();
    bench.apply("Database", "orders", json!({"name": "shared"})).await.unwrap();
    bench.condition("orders", "Ready", "True").await.unwrap();
    bench
        .apply(
            "Database",
            "thief",
            json!({"name": "shared", "reclaimPolicy": "Delete", "deletionProtection": "Disabled"}),
        )
        .await
        .unwrap();
    let (reason, message) = bench.condition("thief", "Ready", "False").await.unwrap();
    assert_eq!(reason, "DatabaseConflict", "{message}");
    bench.condition("thief", "Stalled", "True").await.unwrap();
    bench.operated.api::<Database>().delete("thief", &DeleteParams::default()).await.unwrap();
    bench.gone("thief").await.unwrap();
    bench.connect("orders-db").await.unwrap();

    let foreign: Secret =
        serde_json::from_value(json!({"metadata": {"name": "late-db"}, "stringData": {"password": "x"}}))
            .unwrap();
    bench.operated.api::<Secret>().create(&PostParams::default(), &foreign).await.unwrap();
    bench.apply("Database", "late", json!({})).await.unwrap();
    let (reason, message) = bench.condition("late", "Ready", "False").await.unwrap();
    assert_eq!(reason, "NameConflict", "{message}");
    assert_eq!(bench.secret("late-db").await.unwrap()["password"], "x");

    let other = Server::start().await;
    bench.admin_secret(&other).await.unwrap();
    bench.class("pg", external(&other)).await.unwrap();
    bench
        .apply("Database", "orders", json!({"name": "shared", "roles": {"writer": {"connectionLimit": 3}}}))
        .await
        .unwrap();
    let (_, message) = bench.condition("orders", "ServerReachable", "False").await.unwrap();
    assert!(message.contains("system identifier"), "{message}");
    let found = other.superuser("postgres").await;
    let found = found.query("SELECT 1 FROM pg_database WHERE datname = 'shared'", &[]).await.unwrap();
    assert!(found.is_empty(), "the database was made on the other server");
}

#[tokio::test]
async fn deletion_follows_the_policy_and_waits_for_a_person_where_data_would_be_lost() {
    let bench = Bench::with_class().await.unwrap();
    bench.apply("Database", "kept", json!({})).await.unwrap();
    bench.condition("kept", "Ready", "True").await.unwrap();
    let owner = bench.connect("kept-db-owner").await.unwrap();
    owner.batch_execute("CREATE TABLE t AS SELECT 42 AS answer").await.unwrap();
    let old = bench.secret("kept-db").await.unwrap()["uri"].clone();
    bench.operated.api::<Database>().delete("kept", &DeleteParams::default()).await.unwrap();
    bench.gone("kept").await.unwrap();
    assert!(bench.on_server("shop_kept").await);
    bench.apply("Database", "kept", json!({})).await.unwrap();
    let (reason, message) = bench.condition("kept", "Ready", "False").await.unwrap();
    assert_eq!(reason, "DatabaseConflict");
    assert!(message.contains("set spec.adopt to IfMarked"), "{message}");
    let uid = bench.operated.api::<Database>().get("kept").await.unwrap().uid().unwrap();
    // The cluster may not have cleared away that of the object before.
    let secret = bench.operated.api::<Secret>().get_opt("kept-db").await.unwrap();
    let is_new = secret.is_some_and(|secret| secret.owner_references().iter().any(|owner| owner.uid == uid));
    assert!(!is_new, "it got credentials");
    bench.apply("Database", "kept", json!({"adopt": "IfMarked"})).await.unwrap();
    bench.condition("kept", "Ready", "True").await.unwrap();
    let writer = bench.connect("kept-db").await.unwrap();
    let answer: i32 = writer.query_one("SELECT answer FROM t", &[]).await.unwrap().get(0);
    assert_eq!(answer, 42, "the data was taken back");
    assert!(tokio_postgres::connect(&old, tokio_postgres::NoTls).await.is_err(), "the old password works");

    let spec = |protection: &str| json!({"reclaimPolicy": "Delete", "deletionProtection": protection});
    bench.apply("Database", "scratch", spec("Enabled")).await.unwrap();
    bench.condition("scratch", "Ready", "True").await.unwrap();
    let session = bench.connect("scratch-db").await.unwrap();
    bench.operated.api::<Database>().delete("scratch", &DeleteParams::default()).await.unwrap();
    let (reason, message) = bench.condition("scratch", "DeletionBlocked", "True").await.unwrap();
    assert_eq!(reason, "DeletionProtected", "{message}");
    assert!(bench.on_server("shop_scratch").await);

    bench.apply("Database", "scratch", spec("Disabled")).await.unwrap();
    bench.gone("scratch").await.unwrap();
    assert!(!bench.on_server("shop_scratch").await);
    assert!(session.batch_execute("SELECT 1").await.is_err());

    bench.apply("Database", "stuck", spec("Disabled")).await.unwrap();
    bench.condition("stuck", "Ready", "True").await.unwrap();
    Api::<DatabaseClass>::all(bench.operated.client.clone())
        .delete("pg", &DeleteParams::default())
        .await
        .unwrap();
    bench.condition("stuck", "Ready", "Unknown").await.unwrap();
    bench.operated.api::<Database>().delete("stuck", &DeleteParams::default()).await.unwrap();
    let (reason, message) = bench.condition("stuck", "DeletionBlocked", "True").await.unwrap();
    assert_eq!(reason, "ClassNotFound");
    assert!(message.contains("removing the finalizer"), "{message}");
    bench.class("pg", external(&bench.server)).await.unwrap();
    bench.gone("stuck").await.unwrap();
    assert!(!bench.on_server("shop_stuck").await);
}

#[tokio::test]
async fn objects_in_any_order_converge_when_the_last_piece_comes() {
    let bench = Bench::start().await.unwrap();
    bench.apply("Database", "orders", json!({})).await.unwrap();
    let (reason, _) = bench.condition("orders", "Ready", "Unknown").await.unwrap();
    assert_eq!(reason, "ClassNotFound");
    // Nobody listens at port 1; then the right address, still without the administrator's Secret.
    let mut spec = external(&bench.server);
    spec["external"]["endpoints"]["write"] = "127.0.0.1:1".into();
    bench.class("pg", spec).await.unwrap();
    let classes = Api::<DatabaseClass>::all(bench.operated.client.clone());
    let says = async |what: &str| {
        wait::until(&format!("the class says {what}"), PATIENCE, async || {
            let status = classes.get("pg").await?.status.context("no status")?;
            let ready = status.conditions.iter().find(|c| c.type_ == "Ready").context("not Ready")?;
            ensure!(ready.message.contains(what) && ready.status == "Unknown", "{ready:?}");
            Ok(())
        })
        .await
    };
    says("pg-admin has no \"username\"").await.unwrap();
    bench.admin_secret(&bench.server).await.unwrap();
    says("does not answer").await.unwrap();
    bench.class("pg", external(&bench.server)).await.unwrap();
    bench.condition("orders", "Ready", "True").await.unwrap();
    bench.connect("orders-db").await.unwrap();
}

#[tokio::test]
async fn an_embedded_server_is_a_pod_of_the_operators_namespace() {
    let bench = Bench::start().await.unwrap();
    let spec = json!({"engine": "PostgreSQL", "provider": "Embedded", "embedded":
        {"image": "postgres:15", "binDir": "/usr/lib/postgresql/15/bin", "user": 100, "storage": {"size": "1Gi"}}});
    bench.class("dev", spec).await.unwrap();
    let client = &bench.operated.client;
    let sets: Api<StatefulSet> = Api::namespaced(client.clone(), stack::SYSTEM_NAMESPACE);
    let set =
        wait::object(&sets, "dev-postgres", "is there", PATIENCE, |_: &StatefulSet| true).await.unwrap();
    let services: Api<CoreService> = Api::namespaced(client.clone(), stack::SYSTEM_NAMESPACE);
    services.get("dev-postgres").await.unwrap();
    let secrets: Api<Secret> = Api::namespaced(client.clone(), stack::SYSTEM_NAMESPACE);
    let secret = secrets.get("dev-postgres").await.unwrap();
    let password = String::from_utf8(secret.data.unwrap()["password"].0.clone()).unwrap();
    assert!(!serde_json::to_string(&set).unwrap().contains(&password), "the password is in the pod's spec");

    // Another password would lock the operator out of the server that there is.
    secrets.delete("dev-postgres", &DeleteParams::default()).await.unwrap();
    let classes: Api<DatabaseClass> = Api::all(client.clone());
    wait::until("the class says what is lost", PATIENCE, async || {
        let conditions = classes.get("dev").await?.status.context("no status")?.conditions;
        let ready = conditions.iter().find(|c| c.type_ == "Ready").context("no Ready")?;
        ensure!(ready.status == "False" && ready.message.contains("restore it"), "{ready:?}");
        ensure!(secrets.get_opt("dev-postgres").await?.is_none(), "another password was made");
        Ok(())
    })
    .await
    .unwrap();
    sets.delete("dev-postgres", &DeleteParams::default()).await.unwrap();
    wait::object(&secrets, "dev-postgres", "is made again", PATIENCE, |_: &Secret| true).await.unwrap();
    wait::object(&sets, "dev-postgres", "is made again", PATIENCE, |now: &StatefulSet| {
        now.uid() != set.uid()
    })
    .await
    .unwrap();
    bench.apply("Database", "orders", json!({})).await.unwrap();
    let (_, message) = bench.condition("orders", "ServerReachable", "Unknown").await.unwrap();
    assert!(message.contains("dev-postgres has no ready pod"), "{message}");
}
