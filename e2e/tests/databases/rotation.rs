//! Passwords that change while clients work.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use e2e::wait;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use peristyle_crds::v1alpha1::{
    Database,
    database::{RoleName, RoleStatus, Slot},
};
use serde_json::json;

use super::{Bench, PATIENCE};

impl Bench {
    /// Asks for other passwords.
    async fn rotate(&self, name: &str, nonce: &str) -> Result<()> {
        let patch = json!({"metadata": {"annotations": {"peristyle.dev/rotate": nonce}}});
        self.operated.api::<Database>().patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        Ok(())
    }

    /// Waits until the Secret of the writer is the answer to `nonce`; its slot.
    async fn rotated(&self, name: &str, nonce: &str) -> Result<Slot> {
        wait::until(&format!("Database {name} answers {nonce}"), PATIENCE, async || {
            let secret = self.operated.api::<Secret>().get(&format!("{name}-db")).await?;
            let done = secret.annotations().get("peristyle.dev/rotate").cloned();
            ensure!(done.as_deref() == Some(nonce), "the Secret is the answer to {done:?}");
            let user = self.secret(&format!("{name}-db")).await?["username"].clone();
            Ok(if user.ends_with("_a") { Slot::A } else { Slot::B })
        })
        .await
    }

    async fn writer(&self, name: &str) -> Result<RoleStatus> {
        let status = self.operated.api::<Database>().get(name).await?.status.context("no status")?;
        status.roles.into_iter().find(|role| role.role == RoleName::Writer).context("no writer")
    }

    /// Waits until the status shows `slot` and no login before it.
    async fn retired(&self, name: &str, slot: Slot) -> Result<()> {
        wait::until(&format!("Database {name} has only slot {slot:?}"), PATIENCE, async || {
            let writer = self.writer(name).await?;
            ensure!(writer.active_slot == Some(slot) && writer.retiring.is_none(), "{writer:?}");
            Ok(())
        })
        .await
    }
}

/// A client that reads the Secret and connects, ten times a second.
struct Client {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<(usize, Vec<String>)>,
}

impl Client {
    fn start(secrets: Api<Secret>, name: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = stop.clone();
        let task = tokio::spawn(async move {
            let (mut served, mut refused) = (0, Vec::new());
            let mut ticks = tokio::time::interval(Duration::from_millis(100));
            while !is_over.load(Ordering::Relaxed) {
                ticks.tick().await;
                match Self::connect(&secrets, name).await {
                    Ok(()) => served += 1,
                    Err(error) => refused.push(format!("{error:#}")),
                }
            }
            (served, refused)
        });
        Self { stop, task }
    }

    async fn connect(secrets: &Api<Secret>, name: &str) -> Result<()> {
        let data = secrets.get(name).await?.data.context("no data")?;
        let uri = String::from_utf8(data["uri"].0.clone())?;
        let (client, connection) = tokio_postgres::connect(&uri, tokio_postgres::NoTls).await?;
        let connection = tokio::spawn(connection);
        client.batch_execute("SELECT 1").await?;
        drop(client);
        connection.await??;
        Ok(())
    }

    /// How often it was served, and each refusal.
    async fn stop(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

#[tokio::test]
async fn a_client_that_reconnects_ten_times_a_second_is_never_refused_through_rotations_and_crashes() {
    let mut bench = Bench::with_class().await.unwrap();
    bench.apply("Database", "orders", json!({"rotation": {"overlap": "2s"}})).await.unwrap();
    bench.condition("orders", "Ready", "True").await.unwrap();
    let client = Client::start(bench.operated.api(), "orders-db");
    let mut passwords = BTreeSet::from([bench.secret("orders-db").await.unwrap()["password"].clone()]);
    let mut slot = bench.writer("orders").await.unwrap().active_slot.unwrap();

    for crash in ["none", "asked", "written down", "on the server", "published"] {
        let seen = bench.server.log().len();
        bench.rotate("orders", crash).await.unwrap();
        let reached = async || {
            let record = bench.secret("orders-db-slots").await?;
            let log = bench.server.log();
            let is_reached = match crash {
                "none" | "asked" => true,
                "written down" => record["writer"].contains(crash),
                "on the server" => {
                    log[seen..].contains("shop_orders_writer_") && log[seen..].contains("SCRAM")
                }
                _ => bench.rotated("orders", crash).await.is_ok(),
            };
            ensure!(is_reached, "the rotation is not there yet");
            Ok(())
        };
        wait::until(crash, PATIENCE, reached).await.unwrap();
        if crash != "none" {
            bench.operated.operate("first").await.unwrap();
        }
        let next = bench.rotated("orders", crash).await.unwrap();
        assert_eq!(next, slot.other(), "after a crash when it was {crash}");
        bench.retired("orders", next).await.unwrap();
        assert!(passwords.insert(bench.secret("orders-db").await.unwrap()["password"].clone()));
        slot = next;
    }

    let (served, refused) = client.stop().await;
    assert_eq!(refused, Vec::<String>::new(), "after {served} that were served");
    assert!(served > 50, "only {served} connections were tried");
    println!("{served} logins through 5 rotations and 4 crashes, none refused");
    let log = bench.server.log();
    for password in &passwords {
        assert!(!log.contains(password), "the server's log has a password");
    }
    let open = bench.server.superuser("postgres").await;
    let open =
        open.query("SELECT rolname::text FROM pg_roles WHERE rolcanlogin AND rolname LIKE 'shop_%'", &[]);
    assert_eq!(open.await.unwrap().len(), 2, "one login for the owner and one for the writer");
}

#[tokio::test]
async fn a_login_in_use_outlives_its_overlap_and_holds_up_the_next_rotation() {
    let bench = Bench::with_class().await.unwrap();
    bench.apply("Database", "orders", json!({"rotation": {"overlap": "1s"}})).await.unwrap();
    bench.condition("orders", "Ready", "True").await.unwrap();
    let before = bench.secret("orders-db").await.unwrap()["uri"].clone();
    let session = bench.connect("orders-db").await.unwrap();
    let slot = bench.writer("orders").await.unwrap().active_slot.unwrap();

    bench.rotate("orders", "1").await.unwrap();
    bench.rotated("orders", "1").await.unwrap();
    wait::until("the session is seen", PATIENCE, async || {
        let retiring = bench.writer("orders").await?.retiring.context("nothing retires")?;
        ensure!(retiring.slot == slot && retiring.sessions == 1, "{retiring:?}");
        Ok(())
    })
    .await
    .unwrap();
    bench.rotate("orders", "2").await.unwrap();
    wait::until("the next rotation waits", PATIENCE, async || {
        let (_, message) = bench.condition("orders", "CredentialsReady", "True").await?;
        ensure!(message.contains("next rotation of Writer waits"), "{message}");
        Ok(())
    })
    .await
    .unwrap();
    session.batch_execute("SELECT 1").await.unwrap();
    tokio_postgres::connect(&before, tokio_postgres::NoTls).await.map(drop).unwrap();

    drop(session);
    assert_eq!(bench.rotated("orders", "2").await.unwrap(), slot, "the slot is free again");
    bench.retired("orders", slot).await.unwrap();
    let error = tokio_postgres::connect(&before, tokio_postgres::NoTls).await.err().unwrap();
    assert_eq!(error.code().unwrap().code(), "28P01");
}
