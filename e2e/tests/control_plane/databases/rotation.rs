//! Passwords that change while clients work.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use e2e::wait;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{
    Api, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use peristyle_crds::v1alpha1::{
    Database,
    database::{RoleName, RoleStatus, Slot},
};
use serde_json::{Value, json};

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

    /// What the server knows of the password of a writer's login; nothing when it has none.
    async fn verifier(&self, database: &str, slot: Slot) -> Option<String> {
        let login = format!("{database}_writer_{slot:?}").to_lowercase();
        let superuser = self.server.superuser("postgres").await;
        let sql = "SELECT rolpassword FROM pg_authid WHERE rolname = $1";
        superuser.query_opt(sql, &[&login]).await.unwrap().and_then(|row| row.get(0))
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

/// How a client comes to know whom to connect as.
enum Credentials {
    /// It reads the Secret each time.
    Read(Box<Api<Secret>>, &'static str),
    /// It has read its variables when it started.
    Fixed(String),
}

impl Credentials {
    async fn uri(&self) -> Result<String> {
        match self {
            Self::Read(secrets, name) => uri(secrets, name).await,
            Self::Fixed(uri) => Ok(uri.clone()),
        }
    }
}

async fn uri(secrets: &Api<Secret>, name: &str) -> Result<String> {
    let data = secrets.get(name).await?.data.context("no data")?;
    Ok(String::from_utf8(data["uri"].0.clone())?)
}

/// A client that connects ten times a second.
struct Client {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<(usize, Vec<String>)>,
}

impl Client {
    fn start(credentials: Credentials) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let is_over = stop.clone();
        let task = tokio::spawn(async move {
            let (mut served, mut refused) = (0, Vec::new());
            let mut ticks = tokio::time::interval(Duration::from_millis(100));
            while !is_over.load(Ordering::Relaxed) {
                ticks.tick().await;
                let connected = match credentials.uri().await {
                    Ok(uri) => Self::connect(&uri).await,
                    Err(error) => Err(error),
                };
                match connected {
                    Ok(()) => served += 1,
                    Err(error) => refused.push(format!("{error:#}")),
                }
            }
            (served, refused)
        });
        Self { stop, task }
    }

    async fn connect(uri: &str) -> Result<()> {
        let (client, connection) = tokio_postgres::connect(uri, tokio_postgres::NoTls).await?;
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
    let client = Client::start(Credentials::Read(Box::new(bench.operated.api()), "orders-db"));
    let mut passwords = BTreeSet::from([bench.secret("orders-db").await.unwrap()["password"].clone()]);
    let mut slot = bench.writer("orders").await.unwrap().active_slot.unwrap();

    for crash in ["none", "asked", "written down", "on the server", "published"] {
        let old = bench.verifier("shop_orders", slot.other()).await;
        bench.rotate("orders", crash).await.unwrap();
        let reached = async || {
            let record = bench.secret("orders-db-slots").await?;
            let is_reached = match crash {
                "none" | "asked" => true,
                "written down" => record["writer"].contains(crash),
                "on the server" => {
                    let new = bench.verifier("shop_orders", slot.other()).await;
                    new.is_some() && new != old
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

/// A pod as a kubelet runs it: it reads the Secret once, connects with that ten
/// times a second from then on, and is ready some time later.
struct Running {
    client: Client,
    age: u32,
}

/// Keeps a pod that is deleted until its process has ended, as a kubelet does.
async fn hold(pods: &Api<Pod>, name: &str, finalizers: Value) -> Result<()> {
    let patch = json!({"metadata": {"finalizers": finalizers}});
    match pods.patch(name, &PatchParams::default(), &Patch::Merge(&patch)).await {
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
        result => Ok(result.map(drop)?),
    }
}

/// Plays the kubelet for the pods of Service `web` until `is_over`: all clients'
/// logins, and each refusal.
async fn play_kubelet(
    pods: Api<Pod>,
    secrets: Api<Secret>,
    is_over: Arc<AtomicBool>,
) -> Result<(usize, Vec<String>)> {
    // Longer than the overlap: what ends a login must not be the time alone.
    const READY_AT: u32 = 40;
    let mut running: BTreeMap<String, Running> = BTreeMap::new();
    let (mut served, mut refused) = (0, Vec::new());
    let mut ticks = tokio::time::interval(Duration::from_millis(100));
    let of_web = ListParams::default().labels("peristyle.dev/service=web");
    while !is_over.load(Ordering::Relaxed) {
        ticks.tick().await;
        let live = pods.list(&of_web).await?.items;
        for pod in &live {
            let name = pod.name_any();
            if pod.metadata.deletion_timestamp.is_some() {
                // The process ends before the pod is gone.
                if let Some(this) = running.remove(&name) {
                    let (more, refusals) = this.client.stop().await;
                    served += more;
                    refused.extend(refusals);
                }
                hold(&pods, &name, json!(null)).await?;
                continue;
            }
            if !running.contains_key(&name) {
                hold(&pods, &name, json!(["test.peristyle.dev/kubelet"])).await?;
                let client = Client::start(Credentials::Fixed(uri(&secrets, "orders-db").await?));
                running.insert(name.clone(), Running { client, age: 0 });
            }
            let Some(this) = running.get_mut(&name) else { continue };
            this.age += 1;
            if this.age == READY_AT {
                let condition = |kind| json!({"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"});
                let status = json!({"status": {
                    "phase": "Running", "conditions": [condition("Ready"), condition("ContainersReady")]
                }});
                pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status)).await?;
            }
        }
    }
    for (_, pod) in running {
        let (more, refusals) = pod.client.stop().await;
        served += more;
        refused.extend(refusals);
    }
    Ok((served, refused))
}

#[tokio::test]
async fn pods_that_know_only_what_they_started_with_are_never_refused_while_they_are_replaced() {
    let bench = Bench::with_class().await.unwrap();
    bench.apply("Database", "orders", json!({"rotation": {"overlap": "1s"}})).await.unwrap();
    bench.condition("orders", "Ready", "True").await.unwrap();
    let service = |restart: &str| {
        json!({"image": "x:1", "replicas": 1, "restartOn": restart,
               "databases": [{"name": "main", "database": "orders"}]})
    };
    bench.apply("Service", "web", service("Config")).await.unwrap();
    let (pods, secrets) = (bench.operated.api::<Pod>(), bench.operated.api::<Secret>());
    let is_over = Arc::new(AtomicBool::new(false));
    let kubelet = tokio::spawn(play_kubelet(pods.clone(), secrets, is_over.clone()));
    let of_web = ListParams::default().labels("peristyle.dev/service=web");
    let has_ready_pod = async || {
        let pods = pods.list(&of_web).await?.items;
        let is_ready = |pod: &Pod| {
            let conditions = pod.status.iter().flat_map(|status| status.conditions.iter().flatten());
            conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
        };
        ensure!(pods.len() == 1 && is_ready(&pods[0]), "{} pods", pods.len());
        Ok(pods[0].name_any())
    };
    let replaced = async |before: &str| {
        wait::until("another pod has taken its place", PATIENCE, async || {
            let now = has_ready_pod().await?;
            ensure!(now != before, "{before} is still there");
            Ok(now)
        })
        .await
    };
    let mut pod = wait::until("the pod is ready", PATIENCE, has_ready_pod).await.unwrap();
    let mut slot = bench.writer("orders").await.unwrap().active_slot.unwrap();
    for nonce in ["one", "two"] {
        bench.rotate("orders", nonce).await.unwrap();
        let next = bench.rotated("orders", nonce).await.unwrap();
        assert_eq!(next, slot.other());
        pod = replaced(&pod).await.unwrap();
        bench.retired("orders", next).await.unwrap();
        slot = next;
    }

    // Whose pods nobody replaces, keeps its login, and is named.
    bench.apply("Service", "web", service("Never")).await.unwrap();
    replaced(&pod).await.unwrap();
    bench.rotate("orders", "three").await.unwrap();
    bench.rotated("orders", "three").await.unwrap();
    let named = wait::until("the Service is named", PATIENCE, async || {
        let (_, message) = bench.condition("orders", "CredentialsReady", "True").await?;
        ensure!(message.contains("stays open for pods") && message.contains("of Service web"), "{message}");
        let retiring = bench.writer("orders").await?.retiring.context("nothing retires")?;
        ensure!(retiring.slot == slot, "{retiring:?}");
        Ok(())
    });
    named.await.unwrap();

    is_over.store(true, Ordering::Relaxed);
    let (served, refused) = kubelet.await.unwrap().unwrap();
    assert_eq!(refused, Vec::<String>::new(), "after {served} that were served");
    assert!(served > 50, "only {served} connections were tried");
    println!("{served} logins of pods through 3 rotations, none refused");
}
