//! The real Traefik and the real Oathkeeper under an operator: what Ready and
//! Enforced promise, and what gets through.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};
use e2e::gate::{Gate, KETO_SERVICE, shop};
use e2e::wait;
use kube::Api;
use kube::api::{Patch, PatchParams};
use peristyle_crds::v1alpha1::{AuthClass, EdgeClass};
use reqwest::Method;
use serde_json::{Value, json};
use shop::ECHO_HOST as HOST;

const PATIENCE: Duration = Duration::from_secs(60);

async fn point_probe_at(gate: &Gate, address: &str) -> Result<()> {
    let classes: Api<EdgeClass> = Api::all(gate.operated.client.clone());
    let patch = json!({"spec": {"probe": {"address": address}}});
    classes.patch("public", &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_programmed_route_is_served_at_once_and_enforced_means_that_strangers_are_refused() {
    let gate = shop::with_echo().await.unwrap();
    let token = shop::token(&gate).unwrap();
    let call = async |path: &str| gate.edge.http(Method::GET, HOST, path, &[], None).await.unwrap().status;
    // No retry: whoever waits for the condition needs none.
    assert_eq!([call("/open").await, call("/mine").await, call("/none").await], [200, 401, 403]);
    shop::echo_is_served(&gate, &token).await.unwrap();
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

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_edited_or_deleted_by_hand_at_the_auth_class_is_restored() {
    let gate = shop::with_echo().await.unwrap();
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
    let token = shop::token(&gate).unwrap();
    shop::echo_is_served(&gate, &token).await.unwrap();
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
    let mut policy = shop::echo_policy();
    // With the methods of the policy that is there, so that the first change forbids nothing.
    let matching = |path: &str| json!({"http": [{"path": {"prefix": path}, "methods": ["GET", "POST"]}]});
    let public = |(index, path): (usize, &&str)| json!({"name": format!("open{index}"), "match": matching(path), "public": {}});
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
    let gate = shop::with_echo().await.unwrap();
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
    // Looser several times, each at once after the one before: the route still bears
    // the hash of older rules. Then stricter and looser together with Serve, then stricter.
    let paths = ["/open", "/more", "/other", "/a", "/b", "/c"];
    for allowed in 3..=paths.len() {
        change(&gate, &opening(&paths[..allowed], None)).await;
    }
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
    // Of the Service the status may still be that from before the change, which is none of its spec.
    gate.becomes("AuthPolicy", "echo", "Enforced", "True", "Succeeded").await.unwrap();
    assert_eq!([status("/open").await, status("/third").await], [200, 403]);
    assert!(!closed.finish().await.contains_key(&200), "a call that no rule allows got through");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_loss_of_every_keto_pod_is_seen_and_its_return_too() {
    let gate = shop::with_echo().await.unwrap();
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
