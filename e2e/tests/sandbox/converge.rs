//! One commit in any order converges, and what `render` prints is what the
//! API server takes.

use std::time::Duration;

use anyhow::bail;
use e2e::example::{Example, NAMESPACE, new_user};
use e2e::stack::{self, SYSTEM_NAMESPACE};
use e2e::state::State;
use e2e::{command, replica, wait};
use tokio::process::Command;

async fn example() -> Example {
    Example::start(&State::current().unwrap()).await.expect("charts installed by `cargo sandbox test`")
}

#[tokio::test]
async fn all_objects_in_one_apply_converge_backwards_too_and_leave_with_their_namespace() {
    let example = example().await;
    // What a namespace of an earlier run left behind belongs to that one.
    let another = new_user("backwards").unwrap();
    let another = another.as_str();
    // A Keto namespace belongs to the first policy that declares it, and the
    // example in its own namespace was first.
    let manifests = stack::example("01-greeter", &example.images).unwrap();
    let manifests = manifests.replace("Greeting", "Salute").replace("User", "Person");
    let mut documents: Vec<&str> = manifests.split("---\n").collect();
    documents.reverse();
    stack::apply(&example.cluster, another, &documents.join("---\n")).await.unwrap();
    example.wait_until_ready(another).await.unwrap();

    example.cluster.kubectl(&["delete", "namespace", another, "--wait=false"]).await.unwrap();
    wait::until("the namespace is gone", Duration::from_secs(120), async || {
        let left = example
            .cluster
            .kubectl(&["get", "namespace", another, "--ignore-not-found", "-o", "yaml"])
            .await?;
        if !left.is_empty() {
            bail!("it is still there:\n{left}");
        }
        Ok(())
    })
    .await
    .unwrap();
    let name = another.replace('-', "_");
    let count = format!("select count(*) from pg_database where position('{name}_' in datname) > 0");
    let kept = stack::query(&example.cluster, "postgres", &count).await.unwrap();
    assert_eq!(kept, "3", "reclaimPolicy Retain lost a database");
}

#[tokio::test]
async fn every_object_of_the_example_says_that_it_is_ready() {
    let example = example().await;
    let shown = example.cluster.kubectl(&["get", "peristyle", "-n", NAMESPACE]).await.unwrap();
    for name in ["greeter", "caller", "auth"] {
        assert!(shown.contains(name), "{shown}");
    }
    let hostname =
        example.cluster.kubectl(&["get", "psvc", "greeter", "-n", NAMESPACE, "-o", "jsonpath={.status.url}"]);
    assert_eq!(hostname.await.unwrap(), "http://greeter.demo.apps.localhost:8080");
}

#[tokio::test]
async fn render_prints_the_children_without_a_cluster_and_the_api_server_takes_them() {
    let example = example().await;
    let mut render = Command::new(replica::binary().unwrap());
    render.args(["render", "-n", "rendered", "-f", "examples/01-greeter"]).current_dir(e2e::workspace());
    render.env_clear();
    let children = command::output(&mut render).await.unwrap();
    for kind in [
        "kind: Deployment",
        "kind: Service\n",
        "kind: ServiceAccount",
        "kind: Job",
        "kind: IngressRoute",
        "kind: Middleware",
        "kind: ConfigMap",
        "# Secret rendered/greeter-db ",
    ] {
        assert!(children.contains(kind), "no {kind} in:\n{children}");
    }
    let namespace =
        serde_json::json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "rendered"}});
    let apply = ["apply", "--server-side", "-f", "-"];
    example.cluster.kubectl_with_input(&apply, &namespace.to_string()).await.unwrap();
    // As the operator: nobody else may set the label that the edge loads by.
    let operator = format!("--as=system:serviceaccount:{SYSTEM_NAMESPACE}:peristyle");
    // Under its name, too: what it has published is there already.
    let manager = "--field-manager=peristyle";
    let dry_run = ["apply", "--server-side", "--dry-run=server", manager, &operator, "-f", "-"];
    let said = example.cluster.kubectl_with_input(&dry_run, &children).await;
    example.cluster.kubectl(&["delete", "namespace", "rendered", "--wait=false"]).await.unwrap();
    said.unwrap();
}
