//! The real Traefik and the real Oathkeeper under an operator: what Ready and
//! Enforced promise, and what gets through.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::gate::{Gate, ISSUER};
use e2e::wait;
use kube::Api;
use kube::api::{Patch, PatchParams};
use peristyle_crds::v1alpha1::EdgeClass;
use reqwest::Method;
use serde_json::{Value, json};

const HOST: &str = "echo.shop.example.com";
const PATIENCE: Duration = Duration::from_secs(60);

fn service() -> Value {
    json!({"image": "x:1", "ports": [{"name": "http", "port": 8080, "protocol": "HTTP"}],
        "expose": [{"name": "public"}]})
}

fn policy() -> Value {
    let matching = |path: &str| json!({"http": [{"path": {"prefix": path}, "methods": ["GET", "POST"]}]});
    json!({
        "targets": [{"service": "echo"}],
        "authentication": [{"name": "idp", "jwt": {"issuer": ISSUER, "audiences": ["echo"], "algorithms": ["ES256"]}}],
        "rules": [
            {"name": "open", "match": matching("/open"), "public": {}},
            {"name": "mine", "match": matching("/mine"), "authentication": ["idp"]}
        ]
    })
}

fn bearer(gate: &Gate) -> String {
    let exp = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() + 3600;
    let claims = json!({"iss": ISSUER, "aud": ["echo"], "sub": "alice", "exp": exp});
    format!("Bearer {}", gate.token(&claims).unwrap())
}

/// The echo behind its policy, programmed.
async fn started() -> Gate {
    let gate = Gate::start().await.unwrap();
    gate.apply("Service", "echo", &service()).await.unwrap();
    gate.apply("AuthPolicy", "echo", &policy()).await.unwrap();
    gate.serve("echo", "http").await.unwrap();
    gate.becomes("Service", "echo", "RoutesProgrammed", "True", "Succeeded").await.unwrap();
    gate
}

async fn point_probe_at(gate: &Gate, address: &str) -> Result<()> {
    let classes: Api<EdgeClass> = Api::all(gate.operated.client.clone());
    let patch = json!({"spec": {"probe": {"address": address}}});
    classes.patch("public", &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

#[tokio::test]
async fn a_programmed_route_is_served_at_once_and_enforced_means_that_strangers_are_refused() {
    let gate = started().await;
    let bearer = bearer(&gate);
    let call = async |headers: &[(&str, &str)]| {
        gate.edge.http(Method::GET, HOST, "/mine", headers, None).await.unwrap().status
    };
    // No retry: whoever waits for the condition needs none.
    assert_eq!(call(&[("authorization", &bearer)]).await, 200);
    assert_eq!(call(&[]).await, 401);
    gate.becomes("AuthPolicy", "echo", "Enforced", "True", "Succeeded").await.unwrap();

    // Something that lets everyone in.
    let open = tokio::net::TcpListener::bind((gate.address, 0)).await.unwrap();
    let address = open.local_addr().unwrap().to_string();
    e2e::gate::answer(open, |_| String::new());
    point_probe_at(&gate, &address).await.unwrap();
    gate.becomes("AuthPolicy", "echo", "Enforced", "False", "Overridden").await.unwrap();
    gate.becomes("Service", "echo", "RoutesProgrammed", "False", "Overridden").await.unwrap();

    // Nobody.
    point_probe_at(&gate, "127.0.0.1:1").await.unwrap();
    gate.becomes("AuthPolicy", "echo", "Enforced", "Unknown", "ProbeFailed").await.unwrap();
    gate.becomes("Service", "echo", "RoutesProgrammed", "Unknown", "ProbeFailed").await.unwrap();

    point_probe_at(&gate, &gate.edge.address().to_string()).await.unwrap();
    gate.becomes("AuthPolicy", "echo", "Enforced", "True", "Succeeded").await.unwrap();
    gate.becomes("Service", "echo", "RoutesProgrammed", "True", "Succeeded").await.unwrap();
}

/// A request and whether it may reach the workload.
struct Attempt {
    request: Vec<u8>,
    may_pass: bool,
}

fn request(method: &str, target: &[u8], headers: &[&str]) -> Vec<u8> {
    let mut request = format!("{method} ").into_bytes();
    request.extend_from_slice(target);
    request.extend_from_slice(format!(" HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n").as_bytes());
    for header in headers {
        request.extend_from_slice(format!("{header}\r\n").as_bytes());
    }
    request.extend_from_slice(b"\r\n");
    request
}

/// Headers by which a client could pretend to be somebody, or somewhere, else.
const SPOOFS: [&str; 32] = [
    "X-User: root",
    "X_User: root",
    "x-USER: root",
    "X-Forwarded-User: root",
    "X_Forwarded_User: root",
    "X-Auth-Request-User: root",
    "Remote-User: root",
    "X-Remote-User: root",
    "Forwarded: for=127.0.0.1;host=admin",
    "X-Forwarded-For: 127.0.0.1",
    "X_Forwarded_For: 127.0.0.1",
    "X-Forwarded-Host: public.test",
    "X_Forwarded_Host: public.test",
    "X-Forwarded-Proto: https",
    "X-Forwarded-Port: 1",
    "X-Forwarded-Server: a",
    "X-Forwarded-Prefix: /open",
    "X_Forwarded_Prefix: /open",
    "X-Forwarded-Uri: /open",
    "X_Forwarded_Uri: /open",
    "X-Forwarded-Method: OPTIONS",
    "X_Forwarded_Method: OPTIONS",
    "X-Original-Uri: /open",
    "X_Original_Uri: /open",
    "X-Original-Url: /open",
    "X-Original-Method: OPTIONS",
    "X-Rewrite-Url: /open",
    "X-Real-Ip: 127.0.0.1",
    "X_Real_Ip: 127.0.0.1",
    "X-Http-Method-Override: OPTIONS",
    "Connection: close, X-User",
    "Upgrade: h2c",
];

/// Ways to write `/mine/secret` so that it might be taken for something below `/open`.
const PATHS: [&[u8]; 34] = [
    b"/mine/secret",
    b"//mine/secret",
    b"/mine//secret",
    b"/./mine/secret",
    b"/open/../mine/secret",
    b"/open/%2e%2e/mine/secret",
    b"/open/.%2e/mine/secret",
    b"/open/%2E%2E/mine/secret",
    b"/open/..%2fmine/secret",
    b"/open/..%5cmine/secret",
    b"/open/..\\mine\\secret",
    b"/open/..;/mine/secret",
    b"/open;/../mine/secret",
    b"/open/%252e%252e/mine/secret",
    b"/open/..%252fmine/secret",
    b"/open%2f..%2fmine/secret",
    b"/%6dine/secret",
    b"/m%69ne/secret",
    b"/mine%2fsecret",
    b"/mine/secret%00",
    b"/mine/secret%0a",
    b"/mine/secret?x=/open",
    b"/mine/secret#/open",
    b"/mine/secret;/open",
    b"/open/%c0%ae%c0%ae/mine/secret",
    b"/open/%ef%bc%8f../mine/secret",
    b"/open\x00/../mine/secret",
    b"/MINE/secret",
    b"/mine",
    b"/mine/",
    b"mine/secret",
    b"http://echo.shop.example.com/mine/secret",
    b"http://other.test/mine/secret",
    b"*",
];

fn attempts(bearer: &str) -> Vec<Attempt> {
    let mut attempts = Vec::new();
    for path in PATHS {
        for method in ["GET", "POST"] {
            let headers: &[&str] = if method == "POST" { &["Content-Length: 0"] } else { &[] };
            attempts.push(Attempt { request: request(method, path, headers), may_pass: false });
        }
    }
    for spoof in SPOOFS {
        attempts.push(Attempt { request: request("GET", b"/mine/secret", &[spoof]), may_pass: false });
        attempts.push(Attempt { request: request("GET", b"/nowhere", &[spoof]), may_pass: false });
        attempts.push(Attempt { request: request("GET", b"/open/x", &[spoof]), may_pass: true });
        let token = format!("Authorization: {bearer}");
        attempts.push(Attempt { request: request("GET", b"/mine/secret", &[&token, spoof]), may_pass: true });
    }
    for method in ["HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT", "PROPFIND", "get", "FOO"]
    {
        attempts.push(Attempt { request: request(method, b"/mine/secret", &[]), may_pass: false });
        attempts.push(Attempt { request: request(method, b"/open/x", &[]), may_pass: false });
    }
    for token in [
        "Bearer",
        "Bearer x",
        "Bearer a.b.c",
        "Basic cm9vdDpyb290",
        "bearer null",
        "Bearer eyJhbGciOiJub25lIn0.e30.",
    ] {
        let header = format!("Authorization: {token}");
        attempts.push(Attempt { request: request("GET", b"/mine/secret", &[&header]), may_pass: false });
        let twice = [header.as_str(), "Cookie: session=root"];
        attempts.push(Attempt { request: request("GET", b"/mine/secret", &twice), may_pass: false });
    }
    attempts
}

/// What a workload must never see of a client's own: identity and where a request came from.
fn forged(head: &str) -> Option<&str> {
    head.lines().skip(1).find(|line| {
        let (name, value) = line.split_once(':').unwrap_or((line, ""));
        let (name, value) = (name.to_lowercase().replace('_', "-"), value.trim());
        let is_identity =
            name.contains("user") && value != "alice" && !value.is_empty() && name != "user-agent";
        let is_alias = line.split(':').next().is_some_and(|name| name.contains('_'));
        let is_origin = ["x-forwarded-for", "x-real-ip", "x-forwarded-host"].contains(&name.as_str())
            && (value == "public.test" || value.contains("127.0.0.1, "));
        let is_rewrite = [
            "forwarded",
            "x-forwarded-uri",
            "x-forwarded-method",
            "x-forwarded-prefix",
            "x-original-uri",
            "x-original-url",
            "x-original-method",
            "x-rewrite-url",
            "x-http-method-override",
        ]
        .contains(&name.as_str())
            && !value.is_empty();
        is_identity || is_alias || is_origin || is_rewrite
    })
}

#[tokio::test]
async fn no_request_of_the_matrix_gets_past_its_rule_or_brings_an_identity_of_its_own() {
    let gate = started().await;
    let bearer = bearer(&gate);
    drop(gate.reached.take());
    let attempts = attempts(&bearer);
    let mut wrong = Vec::new();
    for Attempt { request, may_pass } in &attempts {
        let shown = String::from_utf8_lossy(request).into_owned();
        let answer = gate.send(request).await.unwrap();
        let heads = gate.reached.take();
        if heads.is_empty() == *may_pass {
            let first = answer.lines().next().unwrap_or_default();
            wrong.push(format!(
                "{} but must {}: {shown} → {first}",
                if *may_pass { "refused" } else { "passed" },
                if *may_pass { "pass" } else { "not" }
            ));
        }
        for head in heads {
            wrong.extend(forged(&head).map(|line| format!("brought {line:?} to the workload: {shown}")));
            let tokens =
                head.lines().filter(|line| line.to_lowercase().starts_with("authorization:")).count();
            if tokens > 1 {
                wrong.push(format!("brought {tokens} tokens: {shown}"));
            }
        }
    }
    println!("{} requests, {} wrong", attempts.len(), wrong.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn what_is_edited_or_deleted_by_hand_at_the_auth_class_is_restored() {
    let gate = started().await;
    let system = || -> Api<k8s_openapi::api::core::v1::ConfigMap> {
        Api::namespaced(gate.operated.client.clone(), e2e::stack::SYSTEM_NAMESPACE)
    };
    for (name, key) in [("oathkeeper-rules", "rules.json"), ("keto-namespaces", "namespaces.keto.ts")] {
        let before = system().get(name).await.unwrap().data.unwrap()[key].clone();
        let is_back = async || {
            let data = system().get(name).await?.data.unwrap_or_default();
            ensure!(data.get(key) == Some(&before), "{name}: {data:?}");
            Ok(())
        };
        let edit = json!({"data": {(key): "[]"}});
        system().patch(name, &PatchParams::default(), &Patch::Merge(edit)).await.unwrap();
        wait::until(&format!("{name} is restored after an edit"), PATIENCE, is_back).await.unwrap();
        system().delete(name, &kube::api::DeleteParams::default()).await.unwrap();
        wait::until(&format!("{name} is restored after its deletion"), PATIENCE, is_back).await.unwrap();
    }
    let bearer = bearer(&gate);
    wait::until("the route is served as before", PATIENCE, async || {
        let answer = gate.edge.http(Method::GET, HOST, "/mine", &[("authorization", &bearer)], None).await?;
        ensure!(answer.status == 200, "{}", answer.status);
        Ok(())
    })
    .await
    .unwrap();
}
