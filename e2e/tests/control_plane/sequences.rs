//! What a tool that waits (kubectl wait, Flux, Argo CD) sees of an object from
//! its first sight on: never "current" before it is.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::server::{Account, Server};
use anyhow::{Context, Result, ensure};
use e2e::gate::Gate;
use e2e::operated::{NAMESPACE, Operated};
use e2e::{stack::SYSTEM_NAMESPACE, wait};
use futures::TryStreamExt;
use k8s_openapi::api::{apps::v1::Deployment, core::v1::Secret};
use kube::{
    Api, Client, ResourceExt,
    api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, WatchEvent, WatchParams},
};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(90);

/// The states of kstatus that a living object can have.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Status {
    InProgress,
    Failed,
    Current,
}

/// As kstatus computes it for a kind that it does not know.
fn kstatus(object: &DynamicObject) -> Status {
    let status = &object.data["status"];
    let observed = status["observedGeneration"].as_i64();
    if observed.is_some_and(|observed| Some(observed) != object.metadata.generation) {
        return Status::InProgress;
    }
    let empty = Vec::new();
    let conditions = status["conditions"].as_array().unwrap_or(&empty);
    let is =
        |type_: &str, status: &str| conditions.iter().any(|c| c["type"] == type_ && c["status"] == status);
    if is("Stalled", "True") {
        Status::Failed
    } else if is("Reconciling", "True") || is("Ready", "False") || is("Ready", "Unknown") {
        Status::InProgress
    } else {
        Status::Current
    }
}

/// Everything that a watch of one kind has shown.
#[derive(Clone)]
struct Seen {
    kind: &'static str,
    api: Api<DynamicObject>,
    versions: Arc<Mutex<Vec<DynamicObject>>>,
}

impl Seen {
    fn of(client: &Client, kind: &'static str, plural: &str) -> Self {
        let gvk = GroupVersionKind::gvk("peristyle.dev", "v1alpha1", kind);
        let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
        let api: Api<DynamicObject> = if kind.ends_with("Class") {
            Api::all_with(client.clone(), &resource)
        } else {
            Api::namespaced_with(client.clone(), NAMESPACE, &resource)
        };
        let seen = Self { kind, api: api.clone(), versions: Arc::default() };
        let versions = seen.versions.clone();
        tokio::spawn(async move {
            let watch = api.watch(&WatchParams::default(), "0").await.unwrap();
            watch
                .try_for_each(|event| {
                    if let WatchEvent::Added(object) | WatchEvent::Modified(object) = event {
                        versions.lock().unwrap().push(object);
                    }
                    std::future::ready(Ok(()))
                })
                .await
                .unwrap();
        });
        seen
    }

    async fn apply(&self, name: &str, spec: Value) -> Result<()> {
        let object = json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": self.kind, "spec": spec, "metadata": {
            "name": name, "annotations": {"peristyle.dev/is-default-class": "true"}}});
        self.api.patch(name, &PatchParams::apply("team").force(), &Patch::Apply(&object)).await?;
        Ok(())
    }

    /// The states of an object so far, each once in a row, with the reasons of `Ready`.
    fn states(&self, name: &str) -> Vec<(Status, String)> {
        let versions = self.versions.lock().unwrap();
        let mut states: Vec<_> = versions
            .iter()
            .filter(|object| object.name_any() == name)
            .map(|object| {
                let ready = object.data["status"]["conditions"][0]["reason"].as_str().unwrap_or("-");
                (kstatus(object), ready.to_owned())
            })
            .collect();
        states.dedup();
        states
    }

    /// Waits until the last state of an object is `status`; all of them.
    async fn becomes(&self, name: &str, wanted: Status) -> Result<Vec<(Status, String)>> {
        wait::until(&format!("{} {name} is {wanted:?}", self.kind), PATIENCE, async || {
            let states = self.states(name);
            ensure!(states.last().is_some_and(|(last, _)| *last == wanted), "{states:?}");
            Ok(states)
        })
        .await
    }

    fn was_current(&self, name: &str) -> bool {
        self.states(name).iter().any(|(status, _)| *status == Status::Current)
    }
}

/// Says of a Deployment what a node's kubelet would.
async fn make_available(deployments: &Api<Deployment>, name: &str) -> Result<()> {
    let exists = wait::object(deployments, name, "the Deployment exists", PATIENCE, |_| true).await?;
    let wanted = exists.spec.and_then(|spec| spec.replicas).context("no replicas")?;
    wait::until("the Deployment is available", PATIENCE, async || {
        // Its controller counts pods, of which there are none, so it is told again.
        let live = deployments.get(name).await?;
        let now = jiff::Timestamp::now();
        let condition = |type_: &str, reason: &str| json!({"type": type_, "status": "True", "reason": reason,
            "message": "", "lastTransitionTime": now, "lastUpdateTime": now});
        let status = json!({"status": {"observedGeneration": live.metadata.generation, "replicas": wanted,
            "updatedReplicas": wanted, "readyReplicas": wanted, "availableReplicas": wanted, "unavailableReplicas": null,
            "conditions": [condition("Available", "MinimumReplicasAvailable"), condition("Progressing", "NewReplicaSetAvailable")]}});
        deployments.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await?;
        Ok(())
    })
    .await
}

/// The generations of which an object was shown as current.
fn current_generations(seen: &Seen, name: &str) -> Vec<i64> {
    let versions = seen.versions.lock().unwrap();
    let of_name = versions.iter().filter(|object| object.name_any() == name);
    let mut generations: Vec<i64> =
        of_name.filter(|o| kstatus(o) == Status::Current).filter_map(|o| o.metadata.generation).collect();
    generations.dedup();
    generations
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_policy_reads_as_current_only_while_it_is_enforced() {
    let gate = Gate::start().await.unwrap();
    let policies = Seen::of(&gate.operated.client, "AuthPolicy", "authpolicies");
    let classes = Seen::of(&gate.operated.client, "AuthClass", "authclasses");
    let policy = |path: &str| {
        let matching = json!({"http": [{"path": {"prefix": path}, "methods": ["GET"]}]});
        json!({"targets": [{"service": "echo"}], "rules": [{"name": "open", "match": matching, "public": {}}]})
    };
    gate.apply("AuthPolicy", "echo", &policy("/open")).await.unwrap();
    let service = json!({"image": "x:1", "ports": [{"name": "http", "port": 8080, "protocol": "HTTP"}],
        "expose": [{"name": "public"}]});
    gate.apply("Service", "echo", &service).await.unwrap();
    gate.serve("echo", "http").await.unwrap();
    let first = policies.becomes("echo", Status::Current).await.unwrap();
    assert_eq!(first[0].0, Status::InProgress, "{first:?}");
    classes.becomes("default", Status::Current).await.unwrap();

    gate.apply("AuthPolicy", "echo", &policy("/other")).await.unwrap();
    wait::until("the changed policy is current", PATIENCE, async || {
        let generations = current_generations(&policies, "echo");
        ensure!(generations == [1, 2], "{generations:?}: {:?}", policies.states("echo"));
        Ok(())
    })
    .await
    .unwrap();
    // Whatever was current was said to be enforced for that very spec.
    let versions = policies.versions.lock().unwrap();
    for object in versions.iter().filter(|object| kstatus(object) == Status::Current) {
        let conditions = object.data["status"]["conditions"].as_array().unwrap();
        for type_ in ["Accepted", "Programmed", "Enforced"] {
            let condition = conditions.iter().find(|condition| condition["type"] == type_).unwrap();
            let generation = condition["observedGeneration"].as_i64();
            assert!(condition["status"] == "True" && generation == object.metadata.generation, "{condition}");
        }
    }
}

#[tokio::test]
async fn no_kind_reads_as_current_before_it_is() {
    let server = Server::start().await;
    let mut operated = Operated::prepare().await.unwrap();
    let client = operated.client.clone();
    // Its Deployments' status is written by this test.
    operated.plane.stop_controllers().unwrap();
    let edges = Seen::of(&client, "EdgeClass", "edgeclasses");
    let auths = Seen::of(&client, "AuthClass", "authclasses");
    let servers = Seen::of(&client, "DatabaseClass", "databaseclasses");
    let databases = Seen::of(&client, "Database", "databases");
    let policies = Seen::of(&client, "AuthPolicy", "authpolicies");
    let services = Seen::of(&client, "Service", "services");

    // Before there is an operator nothing is current.
    let edge = json!({"provider": "Traefik", "traefik": {"entryPoints": ["web"]},
        "hosts": {"template": "{service}.{namespace}.example.com"}});
    edges.apply("public", edge).await.unwrap();
    databases.apply("orders", json!({})).await.unwrap();
    services
        .apply("orders", json!({"image": "x:1", "databases": [{"name": "main", "database": "orders"}]}))
        .await
        .unwrap();
    let rule = json!({"name": "r", "match": {"grpc": [{"service": "a.v1.A"}]}, "public": {}});
    policies.apply("orders", json!({"targets": [{"service": "orders"}], "rules": [rule]})).await.unwrap();
    for seen in [&edges, &databases, &services, &policies] {
        let name = if seen.kind == "EdgeClass" { "public" } else { "orders" };
        let states = seen.becomes(name, Status::InProgress).await.unwrap();
        assert_eq!(states.len(), 1, "{}: {states:?}", seen.kind);
    }

    operated.operate("operator").await.unwrap();
    edges.becomes("public", Status::Current).await.unwrap();
    // Its class is missing: it waits, and so does what it serves.
    wait::until("the Database waits for a class", PATIENCE, async || {
        let states = databases.states("orders");
        ensure!(states.iter().any(|(_, reason)| reason == "ClassNotFound"), "{states:?}");
        Ok(())
    })
    .await
    .unwrap();
    let Account { user, password } = server.creator();
    let admin = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "pg-admin"},
        "stringData": {"username": user, "password": password}});
    let secrets: Api<Secret> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    secrets.patch("pg-admin", &PatchParams::apply("team"), &Patch::Apply(&admin)).await.unwrap();
    assert!(!databases.was_current("orders") && !services.was_current("orders"));
    let external = json!({"endpoints": {"write": server.endpoint("127.0.0.1").to_string()},
        "adminSecret": {"name": "pg-admin"}, "tls": {"mode": "Disabled", "allowInsecure": "Enabled"}});
    let class = json!({"engine": "PostgreSQL", "provider": "External", "external": external});
    servers.apply("pg", class).await.unwrap();
    servers.becomes("pg", Status::Current).await.unwrap();
    let states = databases.becomes("orders", Status::Current).await.unwrap();
    assert_eq!(states.iter().filter(|(status, _)| *status == Status::Current).count(), 1, "{states:?}");
    let secrets: Api<Secret> = Api::namespaced(client.clone(), NAMESPACE);
    assert!(secrets.get_opt("orders-db").await.unwrap().is_some(), "current without credentials");

    let deployments: Api<Deployment> = Api::namespaced(client.clone(), NAMESPACE);
    wait::object(&deployments, "orders", "the Deployment exists", PATIENCE, |_| true).await.unwrap();
    assert!(!services.was_current("orders"), "current without a pod: {:?}", services.states("orders"));
    make_available(&deployments, "orders").await.unwrap();
    let first = services.becomes("orders", Status::Current).await.unwrap();

    // A change: not current from its first sight until the new pods are there.
    services
        .apply("orders", json!({"image": "x:2", "databases": [{"name": "main", "database": "orders"}]}))
        .await
        .unwrap();
    let runs_new = |deployment: &Deployment| deployment.metadata.generation > Some(1);
    wait::object(&deployments, "orders", "the Deployment is changed", PATIENCE, runs_new).await.unwrap();
    let states = services.becomes("orders", Status::InProgress).await.unwrap();
    assert_eq!(states[..first.len()], first[..]);
    assert!(states[first.len()..].iter().all(|(status, _)| *status != Status::Current), "{states:?}");
    make_available(&deployments, "orders").await.unwrap();
    services.becomes("orders", Status::Current).await.unwrap();

    // Nobody enforces the policy, since there is no class.
    let states = policies.states("orders");
    assert!(!policies.was_current("orders"), "{states:?}");
    let configured = json!({"namespace": SYSTEM_NAMESPACE, "name": "namespaces", "key": "n.ts"});
    let class = json!({"oathkeeper": {"namespace": SYSTEM_NAMESPACE, "service": "o", "rulesConfigMap": "r"},
        "keto": {"readURL": "http://127.0.0.1:1", "writeURL": "http://127.0.0.1:1", "oplURL": "http://127.0.0.1:1",
                 "namespacesConfigMap": configured}});
    auths.apply("standard", class).await.unwrap();
    wait::until("the AuthClass says that no Oathkeeper is there", PATIENCE, async || {
        let states = auths.states("standard");
        ensure!(states.iter().any(|(_, reason)| reason.ends_with("Unavailable")), "{states:?}");
        Ok(())
    })
    .await
    .unwrap();
    assert!(!auths.was_current("standard") && !policies.was_current("orders"));
}
