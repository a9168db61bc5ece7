//! What pods read at their start.

use std::collections::BTreeMap;

use anyhow::ensure;
use e2e::wait;
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Secret},
};
use kube::{
    ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use super::{Bench, PATIENCE};

#[tokio::test]
async fn pods_are_replaced_when_what_they_read_changes_and_only_then() {
    let mut bench = Bench::start().await.unwrap();
    let secret: Secret =
        serde_json::from_value(json!({"metadata": {"name": "s"}, "stringData": {"k": "one", "other": "a"}}))
            .unwrap();
    bench.0.api::<Secret>().create(&PostParams::default(), &secret).await.unwrap();
    let reads = json!([{"name": "K", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]);
    bench.apply("orders", json!({"image": "x:1", "replicas": 0, "env": reads.clone()})).await.unwrap();
    bench
        .apply("still", json!({"image": "x:1", "replicas": 0, "env": reads, "restartOn": "Never"}))
        .await
        .unwrap();
    bench.says("orders", "Ready", ("True", "Succeeded"), PATIENCE).await.unwrap();
    bench.says("still", "Ready", ("True", "Succeeded"), PATIENCE).await.unwrap();
    let first = bench.template("orders").await.unwrap();
    let hash = first["metadata"]["annotations"]["peristyle.dev/config-hash"].as_str();
    assert!(hash.is_some_and(|hash| !hash.contains("one")), "{first}");
    let still = bench.template("still").await.unwrap();

    let change = async |bench: &Bench, change: Value| {
        let params = PatchParams::default();
        bench.0.api::<Secret>().patch("s", &params, &Patch::Merge(change)).await.unwrap();
    };
    change(&bench, json!({"metadata": {"labels": {"a": "b"}}})).await;
    change(&bench, json!({"stringData": {"other": "b"}})).await;
    // Both have been seen once the Deployment remembers the last version.
    let version =
        |deployment: &Deployment| deployment.annotations().get("peristyle.dev/config-versions").cloned();
    let before = version(&bench.0.api::<Deployment>().get("orders").await.unwrap());
    bench.0.operate("second").await.unwrap();
    bench.quiet("second").await.unwrap();
    assert_eq!(bench.template("orders").await.unwrap(), first, "nothing that is read has changed");

    change(&bench, json!({"stringData": {"k": "two"}})).await;
    wait::until("the template changes", PATIENCE, async || {
        ensure!(bench.template("orders").await? != first, "it is as before");
        Ok(())
    })
    .await
    .unwrap();
    let after = version(&bench.0.api::<Deployment>().get("orders").await.unwrap());
    assert_ne!(before, after);
    assert_eq!(bench.template("still").await.unwrap(), still, "restartOn is Never");
}

/// Waits until just the pods of `expected` are replaced; `templates` follows.
async fn replaced(bench: &Bench, templates: &mut BTreeMap<&str, Value>, expected: &[&str]) {
    for name in expected {
        wait::until(&format!("the pods of {name} are replaced"), PATIENCE, async || {
            ensure!(bench.template(name).await? != templates[name], "they are as before");
            Ok(())
        })
        .await
        .unwrap();
    }
    bench.quiet(&expected.join("-")).await.unwrap();
    for (name, before) in templates.iter_mut() {
        let now = bench.template(name).await.unwrap();
        assert_eq!(now != *before, expected.contains(name), "{name}: {before} became {now}");
        *before = now;
    }
}

#[tokio::test]
async fn every_way_to_read_a_secret_or_a_config_map_counts() {
    let bench = Bench::start().await.unwrap();
    let (maps, secrets) = (bench.0.api::<ConfigMap>(), bench.0.api::<Secret>());
    let map = json!({"metadata": {"name": "c"}, "data": {"k": "one", "other": "a"}});
    maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap()).await.unwrap();
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"k": "one"}});
    secrets.create(&PostParams::default(), &serde_json::from_value(secret).unwrap()).await.unwrap();
    let key = json!([{"name": "K", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "k"}}}]);
    let mut templates = BTreeMap::new();
    for (name, field, reads) in [
        ("key", "env", key),
        ("map", "envFrom", json!([{"configMapRef": {"name": "c"}}])),
        ("secret", "envFrom", json!([{"secretRef": {"name": "s"}}])),
        ("later", "envFrom", json!([{"configMapRef": {"name": "m", "optional": true}}])),
    ] {
        bench.apply(name, json!({"image": "x:1", "replicas": 0, field: reads})).await.unwrap();
        bench.says(name, "Ready", ("True", "Succeeded"), PATIENCE).await.unwrap();
        templates.insert(name, bench.template(name).await.unwrap());
    }
    let params = PatchParams::default();
    let change = |change: Value| Patch::Merge(change);
    maps.patch("c", &params, &change(json!({"data": {"other": "b"}}))).await.unwrap();
    replaced(&bench, &mut templates, &["map"]).await;
    maps.patch("c", &params, &change(json!({"data": {"k": "two"}}))).await.unwrap();
    replaced(&bench, &mut templates, &["key", "map"]).await;
    secrets.patch("s", &params, &change(json!({"stringData": {"new": "b"}}))).await.unwrap();
    replaced(&bench, &mut templates, &["secret"]).await;
    let map = json!({"metadata": {"name": "m"}, "data": {"k": "one"}});
    maps.create(&PostParams::default(), &serde_json::from_value(map).unwrap()).await.unwrap();
    replaced(&bench, &mut templates, &["later"]).await;
}
