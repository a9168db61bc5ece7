//! Two teams at one edge: a host belongs to whoever had it first, and what the
//! edge loads is the operator's alone.

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::gate::shop::ECHO;
use e2e::gate::{Gate, shop};
use e2e::operated::{NAMESPACE, Operated};
use e2e::replica::{self, Replica};
use e2e::team::Team;
use e2e::wait;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use peristyle_crds::v1alpha1::EdgeClass;
use reqwest::Method;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);
/// How soon an allowance that is taken back must be in force.
const REVOKED: Duration = Duration::from_secs(30);
const RIVAL: &str = "rival";
const HOST: &str = "www.wares.test";

/// Lets namespaces with the label claim hosts below `wares.test`, or nobody.
async fn allow(client: &Client, is_allowed: bool) -> Result<()> {
    let allowance =
        json!({"namespaces": {"selector": {"matchLabels": {"tier": "shops"}}}, "suffixes": ["wares.test"]});
    let allow = if is_allowed { vec![allowance] } else { Vec::new() };
    let classes: Api<EdgeClass> = Api::all(client.clone());
    let patch = Patch::Merge(json!({"spec": {"hosts": {"allow": allow}}}));
    classes.patch("public", &PatchParams::default(), &patch).await?;
    Ok(())
}

async fn label(client: &Client, namespace: &str) -> Result<()> {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let patch = Patch::Merge(json!({"metadata": {"labels": {"tier": "shops"}}}));
    namespaces.patch(namespace, &PatchParams::default(), &patch).await?;
    Ok(())
}

fn exposed(hosts: &[&str]) -> Value {
    let mut service = shop::echo();
    service["expose"][0]["hosts"] = json!(hosts);
    service
}

async fn status(gate: &Gate, path: &str) -> Result<u16> {
    Ok(gate.edge.http(Method::GET, HOST, path, &[], None).await?.status)
}

/// The message of a refusal tells nothing of the other team.
async fn is_refused(team: &Team, name: &str, reason: &str) -> String {
    let message = team.becomes("Service", name, "RoutesProgrammed", "False", reason).await.unwrap();
    for secret in ["shop", ECHO] {
        assert!(!message.contains(secret), "{secret} is nothing that they should know: {message}");
    }
    message
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_host_stays_with_its_first_owner_and_goes_with_the_allowance() {
    let gate = Gate::start().await.unwrap();
    let client = gate.operated.client.clone();
    let rivals: Namespace = serde_json::from_value(json!({"metadata": {"name": RIVAL}})).unwrap();
    Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &rivals).await.unwrap();
    for namespace in [NAMESPACE, RIVAL] {
        label(&client, namespace).await.unwrap();
    }
    allow(&client, true).await.unwrap();
    gate.apply("Service", ECHO, &exposed(&[HOST])).await.unwrap();
    gate.apply("AuthPolicy", ECHO, &shop::echo_policy()).await.unwrap();
    gate.serve(ECHO, "http").await.unwrap();
    gate.becomes("Service", ECHO, "RoutesProgrammed", "True", "Succeeded").await.unwrap();
    assert_eq!([status(&gate, "/open").await.unwrap(), status(&gate, "/mine").await.unwrap()], [200, 401]);

    // Who comes later gets neither the host nor a rule for it, nor learns whose it is.
    let rival = gate.team(RIVAL);
    rival.apply("Service", "copy", &exposed(&[HOST])).await.unwrap();
    let mut open = shop::echo_policy();
    open["targets"] = json!([{"service": "copy"}]);
    open["rules"] = json!([{"name": "all", "match": {"http": [{"path": {"prefix": "/"}}]}, "public": {}}]);
    rival.apply("AuthPolicy", "copy", &open).await.unwrap();
    let message = is_refused(&rival, "copy", "HostConflict").await;
    assert!(message.contains(HOST) && message.contains("another namespace"), "{message}");
    let message = rival.becomes("AuthPolicy", "copy", "Programmed", "Unknown", "NotExposed").await.unwrap();
    assert!(!message.contains("shop"), "{message}");
    assert_eq!([status(&gate, "/open").await.unwrap(), status(&gate, "/mine").await.unwrap()], [200, 401]);
    gate.becomes("Service", ECHO, "RoutesProgrammed", "True", "Succeeded").await.unwrap();

    // Neither a host that is nobody's to claim, nor the one that another's template gives.
    for host in ["wares.test.evil.test", "evilwares.test", "echo.shop.example.com"] {
        rival.apply("Service", "thief", &exposed(&[host])).await.unwrap();
        let params = DeleteParams::default();
        rival.becomes("Service", "thief", "RoutesProgrammed", "False", "HostNotAllowed").await.unwrap();
        rival.objects("Service").delete("thief", &params).await.unwrap();
    }
    for host in
        ["*.wares.test", "*", "www.wares.test`) || Host(`a.test", "WWW.wares.test", "www.wares.test:80"]
    {
        let error = rival.apply("Service", "thief", &exposed(&[host])).await.unwrap_err();
        assert!(format!("{error:#}").contains("spec.expose[0].hosts[0]"), "{host}: {error:#}");
    }

    // Taken back, the host is nobody's.
    drop(gate.reached.take());
    allow(&client, false).await.unwrap();
    wait::until("the host is served no more", REVOKED, async || {
        let status = status(&gate, "/open").await?;
        ensure!(status == 404, "{status}");
        Ok(())
    })
    .await
    .unwrap();
    gate.becomes("Service", ECHO, "RoutesProgrammed", "False", "HostNotAllowed").await.unwrap();
    drop(gate.reached.take());
    status(&gate, "/open").await.unwrap();
    assert_eq!(gate.reached.take(), [""; 0]);

    // Given anew, it is again the first one's.
    allow(&client, true).await.unwrap();
    gate.becomes("Service", ECHO, "RoutesProgrammed", "True", "Succeeded").await.unwrap();
    is_refused(&rival, "copy", "HostConflict").await;
    assert_eq!([status(&gate, "/open").await.unwrap(), status(&gate, "/mine").await.unwrap()], [200, 401]);
}

/// A control plane with the chart's rights and policies, an operator that has
/// them, and a Service with a route.
async fn operated() -> (Operated, Replica, String) {
    let operated = Operated::prepare().await.unwrap();
    replica::grant(&operated.plane).await.unwrap();
    let class: EdgeClass = serde_json::from_value(json!({
        "metadata": {"name": "public", "annotations": {"peristyle.dev/is-default-class": "true"}},
        "spec": {"provider": "Traefik", "traefik": {"entryPoints": ["web"]},
            "hosts": {"template": "{service}.{namespace}.example.com"}}
    }))
    .unwrap();
    let classes: Api<EdgeClass> = Api::all(operated.client.clone());
    classes.create(&PostParams::default(), &class).await.unwrap();
    let operator = Replica::start(&operated.plane, "first").await.unwrap();
    operator.wait_until_leading().await.unwrap();
    let service = json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": "Service",
        "metadata": {"name": ECHO, "namespace": NAMESPACE}, "spec": shop::echo()});
    let apply = ["apply", "--server-side", "-f", "-"];
    operated.plane.kubectl_with_input(&apply, &service.to_string()).await.unwrap();
    let fence = fence(&operated, "").await.unwrap();
    (operated, operator, fence)
}

/// The name of the fence of the one route, unless it is `not`.
async fn fence(operated: &Operated, not: &str) -> Result<String> {
    wait::until("there is a fence", PATIENCE, async || {
        let names = ["get", "ingressroutes", "-n", NAMESPACE, "-o", "name"];
        let names = operated.plane.kubectl(&names).await?;
        let fences: Vec<&str> = names.lines().filter(|name| name.contains("-fence-")).collect();
        ensure!(fences.len() == 1 && fences[0] != not, "{names}");
        Ok(fences[0].to_owned())
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_but_the_operator_makes_changes_or_unlabels_what_the_edge_loads() {
    let (operated, _operator, fence) = operated().await;
    let plane = &operated.plane;
    let refused = async |arguments: &[&str], input: &str, what: &str| {
        // The API server follows a new policy a moment after it was made.
        wait::until(&format!("{what} is refused"), PATIENCE, async || {
            let dry = [arguments, &["--dry-run=server", "-n", NAMESPACE]].concat();
            let Err(error) = plane.kubectl_with_input(&dry, input).await else {
                anyhow::bail!("it is not");
            };
            let said = format!("{error:#}");
            ensure!(said.contains("peristyle.dev/edge") && said.contains("may be made or changed"), "{said}");
            Ok(())
        })
        .await
        .unwrap();
    };
    let before = plane.kubectl(&["get", "-n", NAMESPACE, &fence, "-o", "yaml"]).await.unwrap();
    let patch = |patch: Value| patch.to_string();
    for (what, change) in [
        (
            "a change of the priority",
            patch(json!([{"op": "replace", "path": "/spec/routes/0/priority", "value": 1}])),
        ),
        (
            "a change of the rule",
            patch(json!([{"op": "replace", "path": "/spec/routes/0/match", "value": "Host(`a.test`)"}])),
        ),
        ("an unlabelling", patch(json!([{"op": "remove", "path": "/metadata/labels/peristyle.dev~1edge"}]))),
        (
            "another class",
            patch(json!([{"op": "replace", "path": "/metadata/labels/peristyle.dev~1edge", "value": "x"}])),
        ),
        (
            "an annotation",
            patch(json!([{"op": "add", "path": "/metadata/annotations", "value": {"a": "b"}}])),
        ),
        ("the loss of its owner", patch(json!([{"op": "remove", "path": "/metadata/ownerReferences"}]))),
    ] {
        refused(&["patch", &fence, "--type=json", "-p", &change], "", what).await;
    }
    let object = |kind: &str, labels: Value, spec: Value| {
        json!({"apiVersion": "traefik.io/v1alpha1", "kind": kind,
            "metadata": {"name": "thief", "namespace": NAMESPACE, "labels": labels}, "spec": spec})
        .to_string()
    };
    let label = || json!({"peristyle.dev/edge": "public"});
    let apply: &[&str] = &["apply", "--server-side", "-f", "-"];
    for (kind, spec) in [
        ("IngressRoute", json!({"entryPoints": ["web"], "routes": []})),
        ("Middleware", json!({})),
        ("ServersTransport", json!({})),
        ("TLSOption", json!({})),
        ("TraefikService", json!({})),
    ] {
        refused(apply, &object(kind, label(), spec), &format!("a {kind} with the label")).await;
    }
    // An object of their own stays their own, until it is to be loaded.
    let own = object("Middleware", json!({}), json!({}));
    plane.kubectl_with_input(apply, &own).await.unwrap();
    refused(apply, &object("Middleware", label(), json!({})), "a label for an object that exists").await;
    let after = plane.kubectl(&["get", "-n", NAMESPACE, &fence, "-o", "yaml"]).await.unwrap();
    assert_eq!(before, after);

    // The operator is not held up.
    let other = json!([{"op": "replace", "path": "/spec/expose/0/name", "value": "other"}]).to_string();
    let psvc = ["patch", "psvc", ECHO, "-n", NAMESPACE, "--type=json", "-p", &other];
    plane.kubectl(&psvc).await.unwrap();
    self::fence(&operated, &fence).await.unwrap();
}
