//! Whatever happens to the decision service, to its rules or to a part of a
//! route: not one call without a token reaches a workload.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::audit::{self, Request};
use e2e::gate::shop::{CALLS, CALLS_HOST, ECHO, ECHO_HOST, REFUSAL, leaks};
use e2e::gate::{Fault, Gate, shop};
use e2e::prober::{Prober, Target};
use e2e::wait;
use kube::api::DeleteParams;
use reqwest::Method;
use serde_json::Value;
use tokio::task::JoinSet;
use tonic::Code;

const PATIENCE: Duration = Duration::from_secs(60);
/// Calls of each kind that meet a fault.
const CALLS_PER_FAULT: u64 = 10;
/// Calls without a token that each deletion is watched by.
const CALLS_PER_DELETION: u64 = 100;

fn targets() -> [Target; 2] {
    [
        Target::Greeter { host: CALLS_HOST.to_owned(), refusal: REFUSAL },
        Target::Page { host: ECHO_HOST.to_owned(), path: "/mine" },
    ]
}

#[track_caller]
fn assert_no_leak(gate: &Gate, when: &str) {
    let heads = gate.reached.take();
    let leaks = leaks(&heads);
    assert!(leaks.is_empty(), "{when}: {leaks:?}");
}

/// Calls of all kinds at once: over HTTP and gRPC, with a token and without.
fn call(gate: &Gate, token: &str) -> JoinSet<()> {
    let mut calls = JoinSet::new();
    for _ in 0..CALLS_PER_FAULT {
        for token in [None, Some(token.to_owned())] {
            let (edge, bearer) = (gate.edge.clone(), token.as_ref().map(|token| format!("Bearer {token}")));
            calls.spawn(async move {
                let headers: Vec<_> =
                    bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
                // What is answered does not count, but what reaches the workload.
                drop(edge.http(Method::GET, ECHO_HOST, "/mine", &headers, None).await);
            });
            let edge = gate.edge.clone();
            calls.spawn(async move { drop(edge.greet(CALLS_HOST, token.as_deref(), "Ada").await) });
        }
    }
    calls
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_the_decision_service_broken_in_any_way_nothing_reaches_a_workload_until_it_is_mended() {
    let (mut gate, token) = shop::with_both().await.unwrap();
    let faults = [Fault::Refused, Fault::Error, Fault::Redirect, Fault::Silent, Fault::Cut];
    for fault in faults {
        gate.decisions.set(Some(fault)).await.unwrap();
        let calls = call(&gate, &token);
        if fault == Fault::Silent {
            // They wait until the edge or they themselves give up.
            wait::until("every call waits for its decision", PATIENCE, async || {
                let (asked, all) = (gate.decisions.asked(), 4 * CALLS_PER_FAULT);
                ensure!(asked >= all, "{asked} of {all}");
                Ok(())
            })
            .await
            .unwrap();
            assert_eq!(gate.reached.take(), [""; 0], "{fault:?}");
        } else {
            calls.join_all().await;
            assert_eq!(gate.reached.take(), [""; 0], "{fault:?}");
            let status = gate.edge.greet(CALLS_HOST, Some(&token), "Ada").await.unwrap_err();
            if fault != Fault::Redirect {
                let said = (status.code(), status.message());
                assert_eq!(said, (Code::Unavailable, "authorization unavailable"), "{fault:?}");
            }
            assert!(fault == Fault::Refused || gate.decisions.asked() >= 4 * CALLS_PER_FAULT, "{fault:?}");
        }
        gate.decisions.set(None).await.unwrap();
        shop::are_served(&gate, &token).await.unwrap();
        assert_no_leak(&gate, &format!("after {fault:?}"));
    }

    // A name that leads nowhere: the way to the service is known to nobody.
    gate.restart_edge(false).await.unwrap();
    wait::until("the edge has its routes again", PATIENCE, async || {
        let answer = gate.edge.http(Method::GET, ECHO_HOST, "/mine", &[], None).await?;
        ensure!(answer.status == 500, "{}", answer.status);
        Ok(())
    })
    .await
    .unwrap();
    call(&gate, &token).join_all().await;
    assert_eq!(gate.reached.take(), [""; 0], "a name that leads nowhere");
    gate.restart_edge(true).await.unwrap();
    shop::are_served(&gate, &token).await.unwrap();
    assert_no_leak(&gate, "after a name that led nowhere");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_route_is_served_only_while_every_pod_of_the_decision_service_knows_its_rules() {
    let gate = shop::with_echo().await.unwrap();
    let status =
        async |path: &str| gate.edge.http(Method::GET, ECHO_HOST, path, &[], None).await.unwrap().status;
    assert_eq!(status("/open").await, 200);
    // One that knows nothing at all.
    let late = gate.second_oathkeeper().await.unwrap();
    gate.becomes("AuthPolicy", ECHO, "Programmed", "Unknown", "PropagatingRules").await.unwrap();
    gate.becomes("Service", ECHO, "RoutesProgrammed", "Unknown", "PropagatingRules").await.unwrap();
    is_withheld(&gate, "/open").await.unwrap();
    late.learn_from(&gate.oathkeeper).unwrap();
    gate.becomes("AuthPolicy", ECHO, "Programmed", "True", "Succeeded").await.unwrap();
    gate.becomes("Service", ECHO, "RoutesProgrammed", "True", "Succeeded").await.unwrap();
    assert_eq!(status("/open").await, 200);

    // One that still knows the rule that is taken away.
    let mut policy = shop::echo_policy();
    policy["rules"].as_array_mut().unwrap().remove(0);
    gate.apply("AuthPolicy", ECHO, &policy).await.unwrap();
    gate.becomes("AuthPolicy", ECHO, "Programmed", "Unknown", "PropagatingRules").await.unwrap();
    is_withheld(&gate, "/mine").await.unwrap();
    wait::until("the first pod knows the new rules", PATIENCE, async || {
        late.learn_from(&gate.oathkeeper)?;
        gate.becomes("AuthPolicy", ECHO, "Programmed", "True", "Succeeded").await
    })
    .await
    .unwrap();
    gate.becomes("Service", ECHO, "RoutesProgrammed", "True", "Succeeded").await.unwrap();
    drop(gate.reached.take());
    assert_eq!([status("/open").await, status("/mine").await], [403, 401]);
    assert_eq!(gate.reached.take(), [""; 0]);
}

/// Waits until the fence answers for the host.
async fn is_withheld(gate: &Gate, path: &str) -> Result<()> {
    wait::until("the route is withheld", PATIENCE, async || {
        let answer = gate.edge.http(Method::GET, ECHO_HOST, path, &[], None).await?;
        ensure!(answer.status == 503 && answer.body.contains("route unavailable"), "{answer:?}");
        Ok(())
    })
    .await
}

/// The writes of the operator since `position` that withdraw a route or a rule, in their order.
fn withdrawals(gate: &Gate, position: u64) -> Result<Vec<Request>> {
    let mut requests = audit::since(gate.operated.plane().state(), position)?;
    requests.retain(|request| {
        let is_route = request.resource == "ingressroutes" && request.verb == "delete";
        let is_rule = request.resource == "configmaps" && request.name == "oathkeeper-rules";
        request.is_write() && (is_route || is_rule)
    });
    requests.sort_by(|one, two| one.at.total_cmp(&two.at));
    Ok(requests)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_policy_that_is_deleted_under_calls_closes_its_route_and_opens_nothing() {
    let (gate, token) = shop::with_both().await.unwrap();
    for name in [ECHO, CALLS] {
        let position = audit::position(gate.operated.plane().state()).unwrap();
        let prober = Prober::start(&gate.edge, &targets()).unwrap();
        let mut honest = JoinSet::new();
        for _ in 0..20 {
            let (edge, bearer) = (gate.edge.clone(), format!("Bearer {token}"));
            honest.spawn(async move {
                for _ in 0..20 {
                    let headers = [("authorization", bearer.as_str())];
                    drop(edge.http(Method::GET, ECHO_HOST, "/mine", &headers, None).await);
                }
            });
        }
        prober.more(CALLS_PER_DELETION).await.unwrap();
        gate.objects("AuthPolicy").delete(name, &DeleteParams::default()).await.unwrap();
        gate.becomes("Service", name, "RoutesProgrammed", "Unknown", "NoAuthPolicy").await.unwrap();
        prober.more(CALLS_PER_DELETION).await.unwrap();
        honest.join_all().await;
        println!("AuthPolicy {name}: {}", prober.finish().await.unwrap());
        assert_no_leak(&gate, name);
        let order = wait::until("the rules are withdrawn", PATIENCE, async || {
            let order = withdrawals(&gate, position)?;
            ensure!(order.iter().any(|request| request.resource == "configmaps"), "{order:?}");
            Ok(order)
        })
        .await
        .unwrap();
        let shown = order.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n");
        let is_parent = |request: &Request| request.name.contains("-parent-");
        let route = order.iter().position(is_parent).expect(&shown);
        let rules = order.iter().position(|request| request.resource == "configmaps").expect(&shown);
        assert!(route < rules, "the rules went before the route that asks for them:\n{shown}");
    }
}

/// Every object that the edge serves the Services by.
async fn parts(gate: &Gate) -> Result<Vec<String>> {
    let kinds = "ingressroutes.traefik.io,middlewares.traefik.io,serverstransports.traefik.io,services";
    let label = "peristyle.dev/service in (echo,calls)";
    let listed =
        gate.operated.plane().kubectl(&["get", kinds, "-n", "shop", "-l", label, "-o", "name"]).await?;
    let parts: Vec<String> = listed.lines().map(str::to_owned).collect();
    // Per host: 4 or 5 routes, 2 or 3 middlewares and so on.
    ensure!(parts.len() > 15, "{parts:?}");
    Ok(parts)
}

async fn delete(gate: &Gate, part: &str) -> Result<()> {
    gate.operated.plane().kubectl(&["delete", "-n", "shop", part]).await.map(drop)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn each_part_of_a_route_that_is_deleted_comes_back_and_nothing_opens_meanwhile() {
    let (gate, token) = shop::with_both().await.unwrap();
    let parts = parts(&gate).await.unwrap();
    let prober = Prober::start(&gate.edge, &targets()).unwrap();
    for part in &parts {
        delete(&gate, part).await.unwrap();
        prober.more(CALLS_PER_DELETION).await.unwrap();
        wait::until(&format!("{part} is back"), PATIENCE, async || {
            gate.operated.plane().kubectl(&["get", "-n", "shop", part]).await
        })
        .await
        .unwrap();
        shop::are_served(&gate, &token).await.unwrap();
        assert_no_leak(&gate, part);
    }
    println!("{} deletions: {}", parts.len(), prober.finish().await.unwrap());
}

/// Nothing comes back, and the edge has all the time to load the gap: what
/// refuses now are the fences.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn with_the_operator_away_each_missing_part_keeps_the_route_closed() {
    let (mut gate, token) = shop::with_both().await.unwrap();
    let parts = parts(&gate).await.unwrap();
    gate.operated.cut_off();
    let plane = gate.operated.plane();
    for part in &parts {
        let saved = plane.kubectl(&["get", "-n", "shop", part, "-o", "json"]).await.unwrap();
        let mut saved: Value = serde_json::from_str(&saved).unwrap();
        for field in ["resourceVersion", "uid", "creationTimestamp", "generation"] {
            saved["metadata"].as_object_mut().unwrap().remove(field);
        }
        let prober = Prober::start(&gate.edge, &targets()).unwrap();
        delete(&gate, part).await.unwrap();
        prober.more(CALLS_PER_DELETION).await.unwrap();
        println!("without {part}: {}", prober.finish().await.unwrap());
        assert_no_leak(&gate, part);
        plane.kubectl_with_input(&["create", "-f", "-"], &saved.to_string()).await.unwrap();
        shop::are_served(&gate, &token).await.unwrap();
        assert_no_leak(&gate, part);
    }
}
