//! Who calls, as a workload behind the real Traefik and the real Oathkeeper
//! learns it: from one token, which the gate signed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::gate::{GATE_ISSUER, Gate, ISSUER, KEYS_SECRET};
use e2e::operated::NAMESPACE;
use e2e::stack::SYSTEM_NAMESPACE;
use e2e::wait;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams};
use peristyle::controllers::auth_class::signing_keys;
use platform::jwt::{Policy, jwks::Jwks, key_id};
use reqwest::Method;
use serde_json::{Value, json};

const HOST: &str = "echo.shop.example.com";
const PATIENCE: Duration = Duration::from_secs(90);

async fn started() -> Gate {
    let gate = Gate::start().await.unwrap();
    let matching = |path: &str| json!({"http": [{"path": {"prefix": path}}]});
    let service = json!({"image": "x:1", "ports": [{"name": "http", "port": 8080, "protocol": "HTTP"}],
        "expose": [{"name": "public"}]});
    let policy = json!({
        "targets": [{"service": "echo"}],
        "authentication": [{"name": "idp", "jwt": {"issuer": ISSUER, "audiences": ["echo"], "algorithms": ["ES256"]}}],
        "rules": [
            {"name": "open", "match": matching("/open"), "public": {}},
            {"name": "mine", "match": matching("/mine"), "authentication": ["idp"]}
        ]
    });
    gate.apply("Service", "echo", &service).await.unwrap();
    gate.apply("AuthPolicy", "echo", &policy).await.unwrap();
    gate.serve("echo", "http").await.unwrap();
    gate.becomes("Service", "echo", "RoutesProgrammed", "True", "Succeeded").await.unwrap();
    let bearer = bearer(&gate, "alice");
    wait::until("calls with a token are served", PATIENCE, async || {
        let headers = [("authorization", bearer.as_str())];
        let answer = gate.edge.http(Method::GET, HOST, "/mine", &headers, None).await?;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
        Ok(())
    })
    .await
    .unwrap();
    gate
}

/// What a client of that name sends.
fn bearer(gate: &Gate, subject: &str) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let claims = json!({"iss": ISSUER, "aud": ["echo"], "sub": subject, "exp": now + 3600});
    format!("Bearer {}", gate.token(&claims).unwrap())
}

/// The check that the chassis of the reference services makes, with its cache.
struct Verifier {
    jwks: Jwks,
    policy: Policy,
}

impl Verifier {
    /// As the operator tells the workload `echo`.
    fn new(gate: &Gate) -> Self {
        let policy = Policy { issuer: GATE_ISSUER.to_owned(), audiences: vec![format!("echo.{NAMESPACE}")] };
        Self { jwks: Jwks::new(gate.jwks_url().parse().unwrap()).unwrap(), policy }
    }

    async fn subject(&self, authorization: &str) -> Result<String> {
        let token = authorization.strip_prefix("Bearer ").context("no bearer token")?;
        Ok(self.policy.verify(token, &self.jwks.key(&key_id(token)?).await?)?)
    }
}

/// Values of a header in the head of a request.
fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let headers = head.lines().filter_map(|line| line.split_once(':'));
    headers.filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_workload_sees_the_gates_token_and_nothing_of_the_clients_whatever_it_sends() {
    let gate = started().await;
    let verifier = Verifier::new(&gate);
    let send = async |path: &str, headers: &[&str]| {
        drop(gate.reached.take());
        let host = format!("Host: {HOST}");
        let first = [format!("GET {path} HTTP/1.1"), host, "Connection: close".to_owned()];
        let lines: Vec<&str> = first.iter().map(String::as_str).chain(headers.iter().copied()).collect();
        let request = format!("{}\r\n\r\n", lines.join("\r\n"));
        let answer = gate.send(request.as_bytes()).await.unwrap();
        (gate.reached.take(), answer)
    };
    let [good, other] = ["alice", "mallory"].map(|user| format!("Authorization: {}", bearer(&gate, user)));
    let strange = "Authorization: Bearer a.b.c";
    for headers in [
        vec![good.as_str()],
        vec![&good, &other],
        vec![&good, strange],
        vec![&good, "authorization: Basic cm9vdDpyb290", "X-User: root"],
    ] {
        let (heads, answer) = send("/mine/x", &headers).await;
        let [head] = &heads[..] else { panic!("{headers:?}: {answer}") };
        let tokens = values(head, "authorization");
        let [token] = tokens[..] else { panic!("{headers:?}: {} tokens", tokens.len()) };
        assert_eq!(verifier.subject(token).await.unwrap(), "alice", "{headers:?}");
        assert_eq!(values(head, "x-user"), ["alice"], "{headers:?}");
    }
    // The first one counts, and it must be good.
    for headers in [vec![strange, &good], vec![strange], vec![]] {
        let (heads, answer) = send("/mine/x", &headers).await;
        assert!(heads.is_empty() && answer.starts_with("HTTP/1.1 401"), "{headers:?}: {answer}");
    }
    // Where nobody is asked who calls, nobody says so either.
    for headers in [vec![good.as_str()], vec![&good, &other, "X-User: root"], vec![]] {
        let (heads, answer) = send("/open/x", &headers).await;
        let [head] = &heads[..] else { panic!("{headers:?}: {answer}") };
        assert!(values(head, "authorization").is_empty(), "{headers:?}: {head}");
        assert!(values(head, "x-user").iter().all(|user| user.is_empty()), "{headers:?}: {head}");
    }
    // The gate's own token leads nowhere but to the workload.
    let (heads, _) = send("/mine/x", &[&good]).await;
    let token = format!("Authorization: {}", values(&heads[0], "authorization")[0]);
    let (heads, answer) = send("/mine/x", &[&token]).await;
    assert!(heads.is_empty() && answer.starts_with("HTTP/1.1 401"), "{answer}");
}

/// Calls as somebody else each time, so that no token comes from a cache, and
/// verifies as a workload does.
struct Callers {
    stop: Arc<AtomicBool>,
    task: tokio::task::JoinHandle<(u32, Vec<String>)>,
}

impl Callers {
    fn start(gate: Arc<Gate>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let task = tokio::spawn(async move {
            let (verifier, mut count, mut refused) = (Verifier::new(&gate), 0, Vec::new());
            while !stopped.load(Ordering::Relaxed) {
                count += 1;
                if let Err(error) = call(&gate, &verifier, &format!("user-{count}")).await {
                    refused.push(format!("{error:#}"));
                }
            }
            (count, refused)
        });
        Self { stop, task }
    }

    async fn finish(self) -> (u32, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

/// The id of the key that signed the token of a call of `user`, which is verified.
async fn call(gate: &Gate, verifier: &Verifier, user: &str) -> Result<String> {
    let bearer = bearer(gate, user);
    let answer = gate.edge.http(Method::GET, HOST, "/mine", &[("authorization", &bearer)], None).await?;
    ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
    let tokens = values(&answer.body, "authorization");
    let token = *tokens.first().context("no token")?;
    ensure!(verifier.subject(token).await? == user, "somebody else");
    Ok(key_id(token.trim_start_matches("Bearer "))?)
}

fn secrets(gate: &Gate) -> Api<Secret> {
    Api::namespaced(gate.operated.client.clone(), SYSTEM_NAMESPACE)
}

async fn keys(gate: &Gate) -> Result<Vec<Value>> {
    let data = secrets(gate).get(KEYS_SECRET).await?.data.unwrap_or_default();
    let set: Value = serde_json::from_slice(&data.get("jwks.json").context("no jwks.json")?.0)?;
    Ok(set["keys"].as_array().context("no keys")?.clone())
}

async fn rotate(gate: &Gate, keys: &[Value]) {
    let patch = json!({"stringData": {"jwks.json": signing_keys::set(keys)}});
    secrets(gate).patch(KEYS_SECRET, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    gate.mount_keys().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_call_is_refused_while_the_keys_are_rotated_and_what_is_deleted_is_made_again() {
    let gate = Arc::new(started().await);
    let (old, new) = (keys(&gate).await.unwrap().remove(0), signing_keys::generate().unwrap());
    let callers = Callers::start(gate.clone());

    // As the chart's README says: published first, and signing when that is so everywhere.
    rotate(&gate, &[new.clone(), old.clone()]).await;
    wait::until("both keys are published", PATIENCE, async || {
        let set: Value = serde_json::from_str(&reqwest::get(&gate.jwks_url()).await?.text().await?)?;
        let keys = set["keys"].as_array().map_or(0, Vec::len);
        ensure!(keys == 2, "{keys} keys");
        Ok(())
    })
    .await
    .unwrap();
    let verifier = Verifier::new(&gate);
    assert_eq!(call(&gate, &verifier, "between").await.unwrap(), old["kid"], "the last key signs");
    rotate(&gate, &[old.clone(), new.clone()]).await;
    let mut number = 0;
    wait::until("the new key signs", PATIENCE, async || {
        number += 1;
        let kid = call(&gate, &verifier, &format!("later-{number}")).await?;
        ensure!(kid == new["kid"], "{kid}");
        Ok(())
    })
    .await
    .unwrap();
    let (count, refused) = callers.finish().await;
    println!("{count} calls, {} refused", refused.len());
    assert!(refused.is_empty(), "{count} calls, of which: {refused:#?}");

    assert_eq!(keys(&gate).await.unwrap(), [old.clone(), new.clone()], "the operator keeps what is there");
    secrets(&gate).delete(KEYS_SECRET, &DeleteParams::default()).await.unwrap();
    let made = wait::until("there are keys again", PATIENCE, async || keys(&gate).await).await.unwrap();
    assert!(made.len() == 1 && made[0]["kid"] != old["kid"] && made[0]["kid"] != new["kid"]);
}
