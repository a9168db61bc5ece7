//! Whatever is deleted while calls run, not one gets through without a token.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Result, ensure};
use e2e::calls::Edge;
use e2e::example::{ECHO, Example, GREETER, NAMESPACE, PROPAGATION, new_user};
use e2e::state::State;
use e2e::{stack, wait};
use reqwest::Method;
use tonic::Code;

/// What the edge says to a call without a token. The greeter, which asks for a
/// token of its own, has other words for the same code: they would be a leak.
const REFUSAL: &str = "authentication required";

/// Calls without a token, one after the other, until told to stop.
struct Prober {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Option<String>>,
}

impl Prober {
    fn start(edge: &Edge) -> Self {
        let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (edge, stopped, counted) = (edge.clone(), stop.clone(), calls.clone());
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                if let Some(leak) = leak(&edge).await {
                    // Here, too: whoever waits for more calls fails first, and says nothing of it.
                    eprintln!("a call without a token got through: {leak}");
                    return Some(leak);
                }
                counted.fetch_add(1, Ordering::Relaxed);
            }
            None
        });
        Self { stop, calls, task }
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// Waits for so many more calls.
    async fn more(&self, calls: u64) -> Result<()> {
        let enough = self.calls() + calls;
        wait::until("more calls were made", PROPAGATION, async || {
            ensure!(!self.task.is_finished(), "the prober ended");
            ensure!(self.calls() >= enough, "{} of {enough}", self.calls());
            Ok(())
        })
        .await
    }

    async fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let leak = self.task.await?;
        ensure!(leak.is_none(), "a call without a token got through: {leak:?}");
        Ok(self.calls.load(Ordering::Relaxed))
    }
}

/// What a call without a token was answered, if the answer is a workload's:
/// the greeter greets or asks for a token in its own words, the echo says 200.
async fn leak(edge: &Edge) -> Option<String> {
    match edge.greet(GREETER, None, "prober").await {
        Ok(answer) => return Some(format!("the greeter answered {:?}", answer.message)),
        Err(status) if status.code() == Code::Unauthenticated && status.message() != REFUSAL => {
            return Some(format!("the greeter was reached: {}", status.message()));
        }
        Err(_) => {}
    }
    match edge.http(Method::GET, ECHO, "/mine", &[], None).await {
        Ok(answer) if answer.status == 200 => Some(format!("the echo answered: {}", answer.body)),
        _ => None,
    }
}

async fn code(example: &Example, token: &str) -> Code {
    example.edge.greet(GREETER, Some(token), "Ada").await.map_or_else(|status| status.code(), |_| Code::Ok)
}

async fn is_served(example: &Example, token: &str) -> Result<()> {
    wait::until("calls with a token are served", PROPAGATION, async || {
        let code = code(example, token).await;
        ensure!(code == Code::Ok, "{code:?}");
        let bearer = format!("Bearer {token}");
        let answer = example.get_echo("/mine", &[("authorization", &bearer)]).await?;
        ensure!(answer.status == 200, "echo: {}", answer.status);
        Ok(())
    })
    .await
}

async fn is_cut_off(example: &Example, token: &str) -> Result<()> {
    wait::until("the edge has noticed", PROPAGATION, async || {
        let code = code(example, token).await;
        ensure!(code != Code::Ok, "calls with a token are still served");
        Ok(())
    })
    .await
}

/// The objects of `kind` that belong to `service`.
async fn names(example: &Example, kind: &str, service: &str) -> Result<Vec<String>> {
    let label = format!("peristyle.dev/service={service}");
    let listed = example.cluster.kubectl(&["get", kind, "-n", NAMESPACE, "-l", &label, "-o", "name"]).await?;
    Ok(listed.lines().map(str::to_owned).collect())
}

async fn setup() -> (Example, String, String) {
    let example = Example::start(&State::current().unwrap()).await.unwrap();
    example.start_echo().await.unwrap();
    let user = new_user("carol").unwrap();
    let token = example.token(&user).await.unwrap();
    example.allow(&[&user]).await.unwrap();
    is_served(&example, &token).await.unwrap();
    (example, user, token)
}

#[tokio::test]
async fn what_is_deleted_comes_back_and_nothing_opens_meanwhile() {
    let (example, user, token) = setup().await;
    let mut victims = Vec::new();
    for kind in ["middlewares.traefik.io", "ingressroutes.traefik.io", "services"] {
        for service in ["greeter", "echo"] {
            let found = names(&example, kind, service).await.unwrap();
            assert!(!found.is_empty(), "{service} has no {kind}");
            victims.extend(found);
        }
    }
    let prober = Prober::start(&example.edge);
    for victim in &victims {
        example.cluster.kubectl(&["delete", "-n", NAMESPACE, victim]).await.unwrap();
        wait::until(&format!("{victim} is back"), PROPAGATION, async || {
            example.cluster.kubectl(&["get", "-n", NAMESPACE, victim]).await
        })
        .await
        .unwrap();
        is_served(&example, &token).await.unwrap();
    }
    example.cluster.kubectl(&["delete", "-n", NAMESPACE, "apol/greeter", "apol/echo"]).await.unwrap();
    is_cut_off(&example, &token).await.unwrap();
    prober.more(10).await.unwrap();
    let manifests = stack::example("01-greeter", &example.images).unwrap();
    stack::apply(&example.cluster, NAMESPACE, &manifests).await.unwrap();
    example.start_echo().await.unwrap();
    example.allow(&[&user]).await.unwrap();
    is_served(&example, &token).await.unwrap();
    let calls = prober.finish().await.unwrap();
    println!("{calls} pairs of calls without a token while {} objects were deleted", victims.len() + 2);
    example.stop_echo().await.unwrap();
}

/// With the operator away nothing comes back, and the edge has all the time to
/// load the gap: what refuses now are the fences.
#[tokio::test]
async fn with_the_operator_away_each_missing_part_keeps_the_route_closed() {
    let (example, _, token) = setup().await;
    let prober = Prober::start(&example.edge);
    for part in ["-authn-", "-grpc-errors-", "-parent-", "service/greeter"] {
        let mut found =
            names(&example, "middlewares.traefik.io,ingressroutes.traefik.io,services", "greeter")
                .await
                .unwrap();
        found.retain(|name| name == part || (part.starts_with('-') && name.contains(part)));
        assert_eq!(found.len(), 1, "{part}: {found:?}");
        example.scale("peristyle", 0).await.unwrap();
        example.cluster.kubectl(&["delete", "-n", NAMESPACE, &found[0]]).await.unwrap();
        is_cut_off(&example, &token).await.unwrap();
        prober.more(20).await.unwrap();
        example.scale("peristyle", 2).await.unwrap();
        is_served(&example, &token).await.unwrap();
    }
    let calls = prober.finish().await.unwrap();
    println!("{calls} pairs of calls without a token");
    example.stop_echo().await.unwrap();
}
