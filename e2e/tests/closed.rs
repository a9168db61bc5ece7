//! Whatever is deleted while calls run, not one gets through without a token.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Result, ensure};
use e2e::example::{Example, GREETER, NAMESPACE, PROPAGATION, new_user};
use e2e::state::State;
use e2e::{stack, wait};
use tonic::Code;

/// Calls without a token, one after the other, until told to stop.
struct Prober {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    task: tokio::task::JoinHandle<Option<String>>,
}

impl Prober {
    fn start(example: &Example) -> Self {
        let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (edge, stopped, counted) = (example.edge.clone(), stop.clone(), calls.clone());
        let task = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                counted.fetch_add(1, Ordering::Relaxed);
                if let Ok(answer) = edge.greet(GREETER, None, "prober").await {
                    return Some(answer.message);
                }
            }
            None
        });
        Self { stop, calls, task }
    }

    async fn finish(self) -> Result<u64> {
        self.stop.store(true, Ordering::Relaxed);
        let leak = self.task.await?;
        ensure!(leak.is_none(), "a call without a token was answered: {leak:?}");
        Ok(self.calls.load(Ordering::Relaxed))
    }
}

async fn becomes(example: &Example, token: &str, expected: Code) -> Result<()> {
    wait::until(&format!("the call with a token is answered {expected:?}"), PROPAGATION, async || {
        let code =
            example.edge.greet(GREETER, Some(token), "Ada").await.map_or_else(|s| s.code(), |_| Code::Ok);
        ensure!(code == expected, "{code:?}");
        Ok(())
    })
    .await
}

/// The names of objects of `kind` that belong to the greeter.
async fn names(example: &Example, kind: &str) -> Result<Vec<String>> {
    let listed = example
        .cluster
        .kubectl(&["get", kind, "-n", NAMESPACE, "-l", "peristyle.dev/service=greeter", "-o", "name"])
        .await?;
    Ok(listed.lines().map(str::to_owned).collect())
}

#[tokio::test]
async fn deleting_any_part_of_a_protected_route_never_opens_it() {
    let state = State::current().unwrap();
    let example = Example::start(&state).await.unwrap();
    let user = new_user("carol").unwrap();
    let token = example.token(&user).await.unwrap();
    example.allow(&[&user]).await.unwrap();
    becomes(&example, &token, Code::Ok).await.unwrap();

    let mut victims = Vec::new();
    for kind in ["middlewares.traefik.io", "ingressroutes.traefik.io", "services"] {
        let found = names(&example, kind).await.unwrap();
        assert!(!found.is_empty(), "the greeter has no {kind}");
        victims.extend(found);
    }
    let prober = Prober::start(&example);
    for victim in &victims {
        example.cluster.kubectl(&["delete", "-n", NAMESPACE, victim]).await.unwrap();
        wait::until(&format!("{victim} is back"), PROPAGATION, async || {
            example.cluster.kubectl(&["get", "-n", NAMESPACE, victim]).await
        })
        .await
        .unwrap();
        becomes(&example, &token, Code::Ok).await.unwrap();
    }
    example.cluster.kubectl(&["delete", "-n", NAMESPACE, "apol", "greeter"]).await.unwrap();
    becomes(&example, &token, Code::Unavailable).await.unwrap();
    let manifests = stack::example("01-greeter", &example.images).unwrap();
    stack::apply(&example.cluster, NAMESPACE, &manifests).await.unwrap();
    example.allow(&[&user]).await.unwrap();
    becomes(&example, &token, Code::Ok).await.unwrap();
    let calls = prober.finish().await.unwrap();
    println!("{calls} calls without a token while {} objects were deleted, none answered", victims.len() + 1);
    assert!(calls > 20, "only {calls} calls were made");
}
