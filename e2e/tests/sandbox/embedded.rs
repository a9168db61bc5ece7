//! A database server that the operator runs itself, for development.

use anyhow::{Result, ensure};
use e2e::example::{Example, PROPAGATION};
use e2e::stack::{self, SYSTEM_NAMESPACE};
use e2e::state::State;
use e2e::wait;
use serde_json::json;

const NAMESPACE: &str = "embedded";

#[tokio::test]
async fn an_embedded_server_starts_serves_a_database_and_ends_with_its_class() {
    let example =
        Example::start(&State::current().unwrap()).await.expect("charts installed by `cargo sandbox test`");
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "peristyle.dev/v1alpha1", "kind": "DatabaseClass", "metadata": {"name": "embedded"}, "spec": {
            "engine": "PostgreSQL", "provider": "Embedded",
            "embedded": {"image": example.images["postgres"], "binDir": "/usr/lib/postgresql/15/bin", "user": 100}}},
        {"apiVersion": "peristyle.dev/v1alpha1", "kind": "Database", "metadata": {"name": "orders", "namespace": NAMESPACE}, "spec": {
            "className": "embedded", "reclaimPolicy": "Delete", "deletionProtection": "Disabled"}}
    ]});
    stack::apply(&example.cluster, NAMESPACE, &objects.to_string()).await.unwrap();
    let ready = ["wait", "-n", NAMESPACE, "--for=condition=Ready", "psdb/orders", "--timeout=180s"];
    if let Err(error) = example.cluster.kubectl(&ready).await {
        let shown =
            example.cluster.kubectl(&["get", "dbclass,psdb,pods,events", "-A", "-o", "wide"]).await.unwrap();
        panic!("{error:#}\n{shown}");
    }
    // Ready says that a login with the Secret's password has worked.
    let host = example.cluster.kubectl(&[
        "get",
        "psdb",
        "orders",
        "-n",
        NAMESPACE,
        "-o",
        "jsonpath={.status.server.host}",
    ]);
    assert!(host.await.unwrap().contains("embedded-postgres"));

    example.cluster.kubectl(&["delete", "psdb", "orders", "-n", NAMESPACE, "--timeout=60s"]).await.unwrap();
    example.cluster.kubectl(&["delete", "dbclass", "embedded", "--timeout=60s"]).await.unwrap();
    wait::until("nothing of the server is left", PROPAGATION, async || -> Result<()> {
        let kinds = "statefulsets,services,secrets,pods";
        let label = "peristyle.dev/database-class=embedded";
        let left = example
            .cluster
            .kubectl(&["get", kinds, "-n", SYSTEM_NAMESPACE, "-l", label, "-o", "name"])
            .await?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
    .await
    .unwrap();
    example.cluster.kubectl(&["delete", "namespace", NAMESPACE, "--wait=false"]).await.unwrap();
}
