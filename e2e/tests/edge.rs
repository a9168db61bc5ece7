//! The real Traefik and the real Oathkeeper under an operator: what Ready and
//! Enforced promise, and what gets through.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::gate::{Gate, ISSUER, KETO_SERVICE};
use e2e::wait;
use kube::Api;
use kube::api::{Patch, PatchParams};
use peristyle_crds::v1alpha1::{AuthClass, EdgeClass};
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

/// Waits: Oathkeeper fetches the issuer's keys when they are first needed.
async fn is_served(gate: &Gate, bearer: &str) -> Result<()> {
    wait::until("calls with a token are served", PATIENCE, async || {
        let answer = gate.edge.http(Method::GET, HOST, "/mine", &[("authorization", bearer)], None).await?;
        ensure!(answer.status == 200, "{}", answer.status);
        Ok(())
    })
    .await
}

async fn point_probe_at(gate: &Gate, address: &str) -> Result<()> {
    let classes: Api<EdgeClass> = Api::all(gate.operated.client.clone());
    let patch = json!({"spec": {"probe": {"address": address}}});
    classes.patch("public", &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_programmed_route_is_served_at_once_and_enforced_means_that_strangers_are_refused() {
    let gate = started().await;
    let bearer = bearer(&gate);
    let call = async |path: &str| gate.edge.http(Method::GET, HOST, path, &[], None).await.unwrap().status;
    // No retry: whoever waits for the condition needs none.
    assert_eq!([call("/open").await, call("/mine").await, call("/none").await], [200, 401, 403]);
    is_served(&gate, &bearer).await.unwrap();
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
const SPOOFS: [&str; 36] = [
    "X-Forwarded_For: 127.0.0.1",
    "X_Original-URI: /open",
    "X-Method-Override: DELETE",
    "X_HTTP_Method: DELETE",
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
        // Oathkeeper takes a method in any case.
        let may_pass = method == "get";
        attempts.push(Attempt { request: request(method, b"/open/x", &[]), may_pass });
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

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_request_of_the_matrix_gets_past_its_rule_or_brings_an_identity_of_its_own() {
    let gate = started().await;
    let bearer = bearer(&gate);
    is_served(&gate, &bearer).await.unwrap();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
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
    is_served(&gate, &bearer(&gate)).await.unwrap();
}

/// Calls one path without a token, again and again, and keeps each answer.
struct Caller {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<BTreeMap<u16, u64>>,
}

impl Caller {
    fn start(gate: &Gate, path: &'static str) -> Self {
        let (edge, stop) = (gate.edge.clone(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let mut answers = BTreeMap::new();
            while !stopped.load(Ordering::Relaxed) {
                let answer = edge.http(Method::GET, HOST, path, &[], None).await;
                *answers.entry(answer.map_or(0, |answer| answer.status)).or_default() += 1;
            }
            answers
        });
        Self { stop, task }
    }

    /// How often each status was answered; 0 stands for no answer.
    async fn finish(self) -> BTreeMap<u16, u64> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// The policy with these public prefixes besides the protected one.
fn opening(prefixes: &[&str], on_tighten: Option<&str>) -> Value {
    let mut policy = policy();
    let public = |(index, path): (usize, &&str)| json!({"name": format!("open{index}"), "match": {"http": [{"path": {"prefix": path}}]}, "public": {}});
    let mine = policy["rules"][1].clone();
    policy["rules"] = prefixes.iter().enumerate().map(public).chain([mine]).collect();
    if let Some(on_tighten) = on_tighten {
        policy["onTighten"] = json!(on_tighten);
    }
    policy
}

async fn change(gate: &Gate, policy: &Value) {
    gate.apply("AuthPolicy", "echo", policy).await.unwrap();
    gate.becomes("AuthPolicy", "echo", "Programmed", "True", "Succeeded").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn routes_stay_up_while_rules_loosen_or_the_policy_says_so_and_what_is_forbidden_stays_forbidden() {
    let gate = started().await;
    change(&gate, &opening(&["/open", "/more"], None)).await;
    gate.becomes("Service", "echo", "RoutesProgrammed", "True", "Succeeded").await.unwrap();
    let status = async |path: &str| gate.edge.http(Method::GET, HOST, path, &[], None).await.unwrap().status;
    wait::until("the new rule is served", PATIENCE, async || {
        ensure!(status("/more").await == 200, "not yet");
        Ok(())
    })
    .await
    .unwrap();

    let (kept, closed) = (Caller::start(&gate, "/open"), Caller::start(&gate, "/secret"));
    // Looser, then stricter and looser at once with Serve, then stricter.
    change(&gate, &opening(&["/open", "/more", "/other"], None)).await;
    change(&gate, &opening(&["/open", "/other", "/third"], Some("Serve"))).await;
    // Programmed is said after every pod has the rules: no call is decided by the old ones.
    assert_eq!([status("/more").await, status("/third").await], [403, 200]);
    change(&gate, &opening(&["/open", "/third"], Some("Serve"))).await;
    assert_eq!(status("/other").await, 403);
    let (kept, closed) = (kept.finish().await, closed.finish().await);
    println!("allowed before and after: {kept:?}; never allowed: {closed:?}");
    assert_eq!(kept.keys().collect::<Vec<_>>(), [&200], "a call that old and new rules allow was refused");
    assert!(!closed.contains_key(&200), "a call that no rule allows got through");

    // Without Serve a stricter change withholds the route, and then is in force.
    let closed = Caller::start(&gate, "/secret");
    change(&gate, &opening(&["/open"], None)).await;
    assert_ne!(status("/third").await, 200);
    gate.becomes("Service", "echo", "RoutesProgrammed", "True", "Succeeded").await.unwrap();
    assert_eq!([status("/open").await, status("/third").await], [200, 403]);
    assert!(!closed.finish().await.contains_key(&200), "a call that no rule allows got through");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_loss_of_every_keto_pod_is_seen_and_its_return_too() {
    let gate = started().await;
    let classes: Api<AuthClass> = Api::all(gate.operated.client.clone());
    let becomes = async |status: &str, reason: &str| {
        let what = format!("AuthClass default is Published={status} ({reason})");
        let is_so = |class: &AuthClass| {
            let conditions = class.status.iter().flat_map(|status| &status.conditions);
            conditions.into_iter().any(|c| c.type_ == "Published" && c.status == status && c.reason == reason)
        };
        wait::object(&classes, "default", &what, PATIENCE, is_so).await.unwrap();
    };
    becomes("True", "Succeeded").await;
    let keto = async |is_ready| {
        gate.pods(e2e::stack::SYSTEM_NAMESPACE, KETO_SERVICE, "read", 4466, is_ready).await.unwrap();
    };
    keto(true).await;
    keto(false).await;
    becomes("Unknown", "KetoUnavailable").await;
    gate.becomes("AuthPolicy", "echo", "Programmed", "True", "Succeeded").await.unwrap();
    keto(true).await;
    becomes("True", "Succeeded").await;
}
