//! Routes while an operator that starts does not see them yet.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use anyhow::{Result, ensure};
use e2e::faults::http::disturbance::Disturbance;
use e2e::faults::http::{HttpProxy, Upstream};
use e2e::faults::journal::Journal;
use e2e::faults::names;
use e2e::faults::operator::Operator;
use e2e::{replica, unasked_edge};
use kube::{ResourceExt, api::ListParams};
use serde_json::json;

use super::{Bench, PATIENCE};

/// Kind, name and UID of everything that Traefik reads.
async fn objects(bench: &Bench) -> Result<Vec<(String, Option<String>)>> {
    let mut found = Vec::new();
    for kind in ["IngressRoute", "Middleware", "ServersTransport"] {
        let objects = bench.traefik(kind).list(&ListParams::default()).await?;
        ensure!(!objects.items.is_empty(), "no {kind} yet");
        found.extend(objects.iter().map(|object| (format!("{kind} {}", object.name_any()), object.uid())));
    }
    found.sort();
    Ok(found)
}

#[tokio::test]
async fn routes_that_are_listed_late_keep_their_middlewares_and_transports() {
    let mut bench = Bench::start().await.unwrap();
    unasked_edge::create(&bench.0.client).await.unwrap();
    let exposed =
        json!({"image": "x:1", "replicas": 0, "expose": [{"name": "public", "auth": {"mode": "Public"}}]});
    bench.apply("orders", exposed).await.unwrap();
    bench.says("orders", "RoutesProgrammed", ("True", "Succeeded"), PATIENCE).await.unwrap();
    let before = objects(&bench).await.unwrap();

    // It ends no operator: only the plans of `cargo sandbox faults` do that.
    let state = bench.0.plane.state();
    let operator =
        Operator::new(replica::binary().unwrap(), bench.0.plane.kubeconfig(), state.log("late")).unwrap();
    let journal = Arc::new(Journal::new(Arc::new(operator)));
    let upstream = Upstream::Kubernetes(bench.0.client.clone());
    let here = IpAddr::from(Ipv4Addr::LOCALHOST);
    let proxy = HttpProxy::start(here, upstream, journal, (names::api_write, names::api_effects));
    let proxy = proxy.await.unwrap();
    proxy.disturb(|seen| {
        let error = http::StatusCode::INTERNAL_SERVER_ERROR;
        seen.path.contains("/ingressroutes").then(|| Disturbance::status(error, "InternalError", "not now"))
    });
    let address = format!("http://{}", proxy.address()).parse().unwrap();
    bench.0.operate_through("second", kube::Config::new(address)).unwrap();
    bench.says("orders", "RoutesProgrammed", ("Unknown", "Unavailable"), PATIENCE).await.unwrap();
    bench.quiet("late").await.unwrap();
    assert_eq!(objects(&bench).await.unwrap(), before, "what routes need was taken from them");

    proxy.calm();
    bench.says("orders", "RoutesProgrammed", ("True", "Succeeded"), PATIENCE).await.unwrap();
    assert_eq!(objects(&bench).await.unwrap(), before);
}
