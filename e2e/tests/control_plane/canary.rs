//! No password leaves its Secret: not into a log at its most talkative, a
//! metric, an event, a status or what the API server records of who owns what.

use std::time::Duration;

use crate::server::{Account, Server};
use anyhow::{Context, Result, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use e2e::operated::{NAMESPACE, Operated};
use e2e::replica::{self, Replica};
use e2e::{stack::SYSTEM_NAMESPACE, wait};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api,
    api::{DeleteParams, ListParams},
};
use peristyle_crds::v1alpha1::Database;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until the Database has credentials and nothing is to be done.
async fn ready(operated: &Operated) -> Result<()> {
    wait::until("the Database is ready", PATIENCE, async || {
        let database = operated.api::<Database>().get("orders").await?;
        let conditions = database.status.context("no status yet")?.conditions;
        let ready = conditions.iter().find(|c| c.type_ == "Ready").context("no Ready yet")?;
        ensure!(ready.status == "True", "{ready:?}");
        ensure!(operated.api::<Secret>().get_opt("orders-db").await?.is_some(), "no Secret");
        Ok(())
    })
    .await
}

async fn passwords(operated: &Operated, found: &mut Vec<String>) -> Result<()> {
    for namespace in [NAMESPACE, SYSTEM_NAMESPACE] {
        let secrets: Api<Secret> = Api::namespaced(operated.client.clone(), namespace);
        for secret in secrets.list(&ListParams::default()).await? {
            let data = secret.data.unwrap_or_default();
            found.extend(data.get("password").map(|p| String::from_utf8_lossy(&p.0).into_owned()));
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_password_is_found_in_no_log_metric_event_status_or_record_of_owners() {
    let server = Server::start().await;
    let operated = Operated::prepare().await.unwrap();
    replica::grant(&operated.plane).await.unwrap();
    let variables = [("PERISTYLE_LOG", "debug")];
    let operator = Replica::start_with(&operated.plane, "talkative", &variables).await.unwrap();
    operator.wait_until_leading().await.unwrap();
    let Account { user, password } = server.creator();
    let admin = password.clone();
    let items: [Value; 3] = [
        json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "pg-admin", "namespace": SYSTEM_NAMESPACE},
            "stringData": {"username": user, "password": password}}),
        json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": "DatabaseClass",
            "metadata": {"name": "pg", "annotations": {"peristyle.dev/is-default-class": "true"}},
            "spec": {"engine": "PostgreSQL", "provider": "External", "external": {
                "endpoints": {"write": server.endpoint("127.0.0.1").to_string()},
                "adminSecret": {"name": "pg-admin"},
                "tls": {"mode": "Disabled", "allowInsecure": "Enabled"}}}}),
        json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": "Database", "spec": {},
            "metadata": {"name": "orders", "namespace": NAMESPACE}}),
    ];
    let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
    operated.plane.kubectl_with_input(&["apply", "--server-side", "-f", "-"], &list).await.unwrap();
    ready(&operated).await.unwrap();
    let mut canaries = Vec::new();
    passwords(&operated, &mut canaries).await.unwrap();
    // Another password goes through the same code, and one whose Secret is lost.
    let secrets = operated.api::<Secret>();
    let login =
        async || anyhow::Ok(secrets.get("orders-db").await?.data.unwrap_or_default().remove("username"));
    let first = login().await.unwrap();
    operated
        .plane
        .kubectl(&["annotate", "psdb/orders", "-n", NAMESPACE, "peristyle.dev/rotate=1"])
        .await
        .unwrap();
    wait::until("the other login is published", PATIENCE, async || {
        ensure!(login().await? != first, "still the first");
        Ok(())
    })
    .await
    .unwrap();
    secrets.delete("orders-db", &DeleteParams::default()).await.unwrap();
    wait::until("the Secret is made again", PATIENCE, async || login().await).await.unwrap();
    ready(&operated).await.unwrap();
    // The administrator's goes wrong: the server refuses it in its own words.
    let wrong = json!({"stringData": {"password": "canary-that-no-server-takes"}}).to_string();
    let patch = ["patch", "secret", "pg-admin", "-n", SYSTEM_NAMESPACE, "--type=merge", "-p", &wrong];
    operated.plane.kubectl(&patch).await.unwrap();
    wait::until("the refusal is reported", PATIENCE, async || {
        let classes = operated.plane.kubectl(&["get", "dbclass", "pg", "-o", "yaml"]).await?;
        ensure!(classes.contains("28P01"), "{classes}");
        Ok(())
    })
    .await
    .unwrap();
    passwords(&operated, &mut canaries).await.unwrap();
    canaries.sort();
    canaries.dedup();
    assert!(canaries.len() >= 5, "owner, two writers, the administrator and a wrong one: {}", canaries.len());

    let objects = ["get", "-A", "--show-managed-fields", "-o", "yaml", "peristyle,dbclass,events,configmaps"];
    let sinks = [
        ("the log", operator.said()),
        ("the metrics", operator.metrics().await.unwrap()),
        ("objects and events", operated.plane.kubectl(&objects).await.unwrap()),
        ("the server's log", server.log()),
    ];
    assert!(
        sinks[0].1.contains("CREATE ROLE") || sinks[0].1.contains("executing"),
        "the log says too little"
    );
    assert!(
        sinks[2].1.contains("managedFields") && sinks[2].1.contains("kind: Event"),
        "objects are missing"
    );
    for (sink, text) in &sinks {
        // The test itself made the administrator, with a statement that its server logs.
        let canaries = canaries.iter().filter(|canary| *sink != "the server's log" || **canary != admin);
        for canary in canaries {
            assert!(!text.contains(canary.as_str()), "a password stands in {sink}");
            assert!(!text.contains(&STANDARD.encode(canary)), "a password stands encoded in {sink}");
        }
    }
}
