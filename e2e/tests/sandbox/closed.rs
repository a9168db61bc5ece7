//! Whatever is deleted while calls run, not one gets through without a token.

use anyhow::{Result, ensure};
use e2e::example::{ECHO, Example, GREETER, NAMESPACE, PROPAGATION, new_user};
use e2e::prober::{Prober, Target};
use e2e::state::State;
use e2e::{stack, wait};
use tonic::Code;

/// What the edge says to a call without a token. The greeter, which asks for a
/// token of its own, has other words for the same code: they would be a leak.
const REFUSAL: &str = "authentication required";
/// Calls without a token that each deletion is watched by.
const CALLS_PER_DELETION: u64 = 300;

fn prober(example: &Example) -> Prober {
    let greeter = Target::Greeter { host: GREETER.to_owned(), refusal: REFUSAL };
    let echo = Target::Page { host: ECHO.to_owned(), path: "/mine" };
    Prober::start(&example.edge, &[greeter, echo]).unwrap()
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

/// Waits until the edge has noticed what `service` lacks.
async fn is_cut_off(example: &Example, token: &str, service: &str) -> Result<()> {
    wait::until(&format!("{service} is cut off"), PROPAGATION, async || {
        let is_served = if service == "greeter" {
            code(example, token).await == Code::Ok
        } else {
            let bearer = format!("Bearer {token}");
            example.get_echo("/mine", &[("authorization", &bearer)]).await?.status == 200
        };
        ensure!(!is_served, "calls with a token are still served");
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
    let prober = prober(&example);
    for victim in &victims {
        example.cluster.kubectl(&["delete", "-n", NAMESPACE, victim]).await.unwrap();
        prober.more(CALLS_PER_DELETION).await.unwrap();
        wait::until(&format!("{victim} is back"), PROPAGATION, async || {
            example.cluster.kubectl(&["get", "-n", NAMESPACE, victim]).await
        })
        .await
        .unwrap();
        is_served(&example, &token).await.unwrap();
    }
    example.cluster.kubectl(&["delete", "-n", NAMESPACE, "apol/greeter", "apol/echo"]).await.unwrap();
    for service in ["greeter", "echo"] {
        is_cut_off(&example, &token, service).await.unwrap();
    }
    prober.more(CALLS_PER_DELETION).await.unwrap();
    let manifests = stack::example("01-greeter", &example.images).unwrap();
    stack::apply(&example.cluster, NAMESPACE, &manifests).await.unwrap();
    example.start_echo().await.unwrap();
    example.allow(&[&user]).await.unwrap();
    is_served(&example, &token).await.unwrap();
    let calls = prober.finish().await.unwrap();
    println!("{calls}, while {} objects were deleted", victims.len() + 2);
    example.stop_echo().await.unwrap();
}

/// With the operator away nothing comes back, and the edge has all the time to
/// load the gap: what refuses now are the fences.
#[tokio::test]
async fn with_the_operator_away_each_missing_part_keeps_the_route_closed() {
    let (example, _, token) = setup().await;
    for (service, parts) in [
        ("greeter", &["-authn-", "-headers-", "-grpc-errors-", "-parent-", "service/greeter"][..]),
        ("echo", &["-authn-", "-headers-", "-parent-", "service/echo"]),
    ] {
        for part in parts {
            let kinds = "middlewares.traefik.io,ingressroutes.traefik.io,services";
            let mut found = names(&example, kinds, service).await.unwrap();
            found.retain(|name| name == part || (part.starts_with('-') && name.contains(part)));
            assert_eq!(found.len(), 1, "{service} {part}: {found:?}");
            example.scale("peristyle", 0).await.unwrap();
            let prober = prober(&example);
            example.cluster.kubectl(&["delete", "-n", NAMESPACE, &found[0]]).await.unwrap();
            is_cut_off(&example, &token, service).await.unwrap();
            prober.more(CALLS_PER_DELETION).await.unwrap();
            example.scale("peristyle", 2).await.unwrap();
            is_served(&example, &token).await.unwrap();
            println!("{service} without {part}: {}", prober.finish().await.unwrap());
        }
    }
    example.stop_echo().await.unwrap();
}
