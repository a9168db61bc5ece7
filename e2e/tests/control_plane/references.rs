//! What a tenant learns of another namespace by naming things in it: nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::audit::{self, Request};
use e2e::operated::{NAMESPACE, Operated};
use e2e::replica::{self, Replica};
use e2e::wait;
use kube::{
    Api,
    api::{ApiResource, DynamicObject, GroupVersionKind},
};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);
/// The namespace of somebody else.
const VICTIM: &str = "bank";

/// Services of one tenant, each of which names one thing that is in another namespace, if anywhere.
fn nosy(round: &str) -> Vec<(&'static str, Value)> {
    let env = |source: &str, name: &str| json!([{"name": "KEY", "valueFrom": {source: {"name": name, "key": "k"}}}]);
    let spec = |field: &str, value: Value| {
        let mut spec = json!({"image": "x:1", "replicas": 0, "args": [round]});
        spec[field] = value;
        spec
    };
    let of_bank =
        |name: &str, service: &str| json!([{"name": name, "service": service, "namespace": VICTIM}]);
    vec![
        ("secret", spec("env", env("secretKeyRef", "keys"))),
        ("map", spec("env", env("configMapKeyRef", "settings"))),
        ("whole-secret", spec("envFrom", json!([{"secretRef": {"name": "keys"}}]))),
        ("optional", spec("envFrom", json!([{"secretRef": {"name": "keys", "optional": true}}]))),
        ("database", spec("databases", json!([{"name": "main", "database": "ledger"}]))),
        ("service", spec("dependsOn", of_bank("pay", "pay"))),
    ]
}

fn object(kind: &str, namespace: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": kind,
        "metadata": {"name": name, "namespace": namespace}, "spec": spec})
}

async fn apply(operated: &Operated, objects: &[Value]) -> Result<()> {
    let list = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
    let apply = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
    operated.plane.kubectl_with_input(&apply, &list).await.map(drop)
}

/// Status, reason and message of every condition, once the present spec was acted on.
async fn conditions(
    operated: &Operated,
    kind: &str,
    namespace: &str,
    name: &str,
) -> Result<BTreeMap<String, Value>> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("peristyle.dev", "v1alpha1", kind));
    let api: Api<DynamicObject> = Api::namespaced_with(operated.client.clone(), namespace, &resource);
    wait::until(&format!("{kind} {name} is acted on"), PATIENCE, async || {
        let object = api.get(name).await?;
        let status = &object.data["status"];
        ensure!(status["observedGeneration"].as_i64() == object.metadata.generation, "{status}");
        let conditions = status["conditions"].as_array().context("no conditions")?;
        ensure!(!conditions.iter().any(|condition| condition["reason"] == "RolloutInProgress"), "{status}");
        let said = conditions.iter().map(|condition| {
            let type_ = condition["type"].as_str().unwrap_or_default().to_owned();
            (type_, json!([condition["status"], condition["reason"], condition["message"]]))
        });
        Ok(said.collect())
    })
    .await
}

#[tokio::test]
async fn of_another_namespace_nothing_is_read_and_what_is_there_reads_like_what_is_not() {
    let operated = Operated::prepare().await.unwrap();
    replica::grant(&operated.plane).await.unwrap();
    let replica = Replica::start(&operated.plane, "first").await.unwrap();
    replica.wait_until_leading().await.unwrap();
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": VICTIM}});
    apply(&operated, &[namespace]).await.unwrap();
    let services = |round: &str| -> Vec<Value> {
        nosy(round).iter().map(|(name, spec)| object("Service", NAMESPACE, name, spec)).collect()
    };
    apply(&operated, &services("first")).await.unwrap();
    let mut absent = BTreeMap::new();
    for (name, _) in nosy("first") {
        absent.insert(name, conditions(&operated, "Service", NAMESPACE, name).await.unwrap());
    }
    for name in ["secret", "map", "whole-secret", "database", "service"] {
        assert_eq!(
            absent[name]["Ready"][0], "Unknown",
            "{name} does not wait for what is absent: {absent:?}"
        );
    }

    let core = |kind: &str, name: &str, field: &str| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": VICTIM}, field: {"k": "v"}});
    apply(
        &operated,
        &[
            core("Secret", "keys", "stringData"),
            core("ConfigMap", "settings", "data"),
            object("Database", VICTIM, "ledger", &json!({})),
            // Nobody is listed as a caller.
            object("Service", VICTIM, "pay", &json!({"image": "x:1", "replicas": 0})),
        ],
    )
    .await
    .unwrap();
    assert_eq!(conditions(&operated, "Service", VICTIM, "pay").await.unwrap()["Ready"][0], "True");
    assert_eq!(
        conditions(&operated, "Database", VICTIM, "ledger").await.unwrap()["Ready"][1],
        "ClassNotFound"
    );

    let position = audit::position(operated.plane.state()).unwrap();
    apply(&operated, &services("second")).await.unwrap();
    for (name, before) in &absent {
        let now = conditions(&operated, "Service", NAMESPACE, name).await.unwrap();
        assert_eq!(now, *before, "{name} tells what is in another namespace");
    }
    let requests = replica.requests(&operated.plane, position).unwrap();
    assert!(requests.iter().any(|request| request.namespace == NAMESPACE), "no request was logged");
    // An event of what the victim's own objects came to may be late.
    let is_asked = |request: &&Request| request.namespace == VICTIM && request.resource != "events";
    let of_victim: Vec<String> = requests.iter().filter(is_asked).map(ToString::to_string).collect();
    assert!(of_victim.is_empty(), "{of_victim:#?}");
}
