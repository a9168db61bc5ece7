//! Charts and examples in a cluster, installed exactly as the README tells a
//! user of any cluster; only the images are the sandbox's own.

use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::cluster::Cluster;
use crate::command;
use crate::images::{self, References};
use crate::progress::Progress;
use crate::state::{Kind, State};
use crate::substrate::{Component, Programs};

/// Namespace of the operator and of the evaluation stack.
pub const SYSTEM_NAMESPACE: &str = "peristyle-system";
/// Port of 127.0.0.1 that leads to the edge of the sandbox, unless another is named.
pub const EDGE_PORT: u16 = 8080;
/// Image of the workloads in the examples.
const SUITE_IMAGE: &str = "ghcr.io/peristyle/suite:0.1.0";
const CHARTS: [&str; 3] = ["peristyle-crds", "peristyle", "peristyle-stack"];

/// The sandbox's own images; none for a cluster that exists, which pulls those of the charts.
///
/// # Errors
/// When an image cannot be built or imported.
pub async fn images(state: &State, progress: &Progress) -> Result<References> {
    match state.settings()?.map(|settings| settings.cluster) {
        Some(Kind::Existing { .. }) => Ok(References::new()),
        _ => images::build_and_import(state, progress).await,
    }
}

/// Installs or upgrades Traefik's definitions and the three charts, and waits
/// until every pod of them is ready.
///
/// # Errors
/// When an image, a chart or a rollout fails.
pub async fn install(state: &State, progress: &Progress) -> Result<Cluster> {
    let cluster = Cluster::of(state)?;
    let images = images(state, progress).await?;
    let port = if images.is_empty() { EDGE_PORT } else { state.edge_port()? };
    progress.step("charts", charts(&cluster, &images, port)).await?;
    Ok(cluster)
}

async fn charts(cluster: &Cluster, images: &References, edge_port: u16) -> Result<()> {
    let definitions = traefik_definitions().await?;
    cluster.kubectl(&["apply", "--server-side", "--force-conflicts", "-f", &definitions]).await?;
    helm(cluster, "peristyle-crds", &[], &json!({})).await?;
    helm(cluster, "peristyle", &[], &operator_values(images)).await?;
    let demo = format!("{}/charts/peristyle-stack/values-demo.yaml", crate::workspace().display());
    helm(cluster, "peristyle-stack", &[&demo], &stack_values(images, edge_port)).await
}

async fn helm(cluster: &Cluster, chart: &str, files: &[&str], values: &Value) -> Result<()> {
    let folder = format!("{}/charts/{chart}", crate::workspace().display());
    let own = tempfile::NamedTempFile::new()?;
    fs::write(own.path(), values.to_string())?;
    let own = own.path().display().to_string();
    let mut arguments = vec!["upgrade", "--install", chart, &folder, "--namespace", SYSTEM_NAMESPACE];
    arguments.extend(["--create-namespace", "--wait", "--timeout", "5m"]);
    for file in files.iter().chain([&own.as_str()]) {
        arguments.extend(["--values", file]);
    }
    if let Err(error) = cluster.helm(&arguments).await {
        let pods = cluster.kubectl(&["get", "pods,events", "-n", SYSTEM_NAMESPACE, "-o", "wide"]).await;
        let pods = pods.unwrap_or_else(|error| format!("{error:#}"));
        return Err(error.context(format!("chart {chart} did not become ready; the namespace:\n{pods}")));
    }
    Ok(())
}

fn image(images: &References, name: &str) -> Value {
    images.get(name).map_or(json!({}), |reference| json!({"image": {"ref": reference}}))
}

/// One pod of each where a second one proves nothing on one node.
fn operator_values(images: &References) -> Value {
    if images.is_empty() {
        return json!({});
    }
    let mut values = image(images, "peristyle");
    merge(&mut values, json!({"defaultReplicas": 1}));
    values
}

fn stack_values(images: &References, edge_port: u16) -> Value {
    if images.is_empty() {
        return json!({});
    }
    let mut values = json!({
        "agent": image(images, "peristyle"),
        "traefik": {"web": {"hostPort": edge_port}},
        "postgres": {"binDir": "/usr/lib/postgresql/15/bin", "user": 100, "group": 102},
    });
    for name in ["traefik", "oathkeeper", "keto", "postgres"] {
        merge(&mut values, json!({name: image(images, name)}));
    }
    values
}

/// Puts the fields of `from` into `into`, object by object.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// Traefik's CRDs, from the Go module that its binary is built of.
async fn traefik_definitions() -> Result<String> {
    let module = crate::workspace().join("e2e/substrate/traefik");
    let package = "github.com/traefik/traefik/v3";
    let mut download = Command::new("go");
    download.current_dir(&module).args(["mod", "download", package]);
    command::output(&mut download).await?;
    let mut list = Command::new("go");
    list.current_dir(&module).args(["list", "-m", "-f", "{{.Dir}}", package]);
    let folder = command::output(&mut list).await?;
    Ok(format!(
        "{}/docs/content/reference/dynamic-configuration/kubernetes-crd-definition-v1.yml",
        folder.trim()
    ))
}

/// Installs what a control plane without nodes needs for the controllers: our
/// CRDs and Traefik's.
///
/// # Errors
/// When the API server refuses one.
pub async fn install_definitions(kubectl: impl AsyncFn(&[&str]) -> Result<String>) -> Result<()> {
    let ours = format!("{}/charts/peristyle-crds/templates", crate::workspace().display());
    let traefik = traefik_definitions().await?;
    kubectl(&["apply", "--server-side", "-f", &ours, "-f", &traefik]).await?;
    kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]).await?;
    Ok(())
}

/// All manifests of `examples/<name>`, with the sandbox's image of the workloads.
///
/// # Errors
/// When a file cannot be read.
pub fn example(name: &str, images: &References) -> Result<String> {
    let folder = crate::workspace().join("examples").join(name);
    let mut paths: Vec<_> = fs::read_dir(&folder)
        .with_context(|| format!("there is no example in {}", folder.display()))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    paths.sort();
    let texts = paths.iter().map(fs::read_to_string).collect::<Result<Vec<_>, _>>()?;
    let manifests = texts.join("---\n");
    Ok(match images.get("suite") {
        Some(reference) => manifests.replace(SUITE_IMAGE, reference),
        None => manifests,
    })
}

/// Applies manifests in a namespace, which is created if it does not exist.
///
/// # Errors
/// When the API server refuses one.
pub async fn apply(cluster: &Cluster, namespace: &str, manifests: &str) -> Result<()> {
    let object =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}).to_string();
    cluster.kubectl_with_input(&["apply", "--server-side", "-f", "-"], &object).await?;
    let arguments = ["apply", "--server-side", "--force-conflicts", "-n", namespace, "-f", "-"];
    cluster.kubectl_with_input(&arguments, manifests).await?;
    Ok(())
}

/// Runs one SQL statement as the administrator of the stack's server.
///
/// # Errors
/// When psql fails.
pub async fn query(cluster: &Cluster, database: &str, sql: &str) -> Result<String> {
    let mut arguments = vec!["exec", "-n", SYSTEM_NAMESPACE, "postgres-0", "-c", "postgres", "--"];
    arguments.extend(["psql", "-XAtq", "-v", "ON_ERROR_STOP=1", "-h", "/tmp", "-U", "postgres"]);
    arguments.extend(["-d", database, "-c", sql]);
    Ok(cluster.kubectl(&arguments).await?.trim().to_owned())
}

/// A password that nobody knows, strong enough for the auth service.
///
/// # Errors
/// When the system has no randomness.
pub fn password() -> Result<String> {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
    Ok(format!("{}-Aa1", hex::encode(bytes)))
}

/// `helm lint` of every chart.
///
/// # Errors
/// What helm finds.
pub async fn lint(programs: &Programs) -> Result<()> {
    let helm = programs.get(&Component::Helm).context("helm was not built")?;
    for chart in CHARTS {
        let mut lint = Command::new(helm);
        lint.arg("lint").arg("--strict").arg(crate::workspace().join("charts").join(chart));
        let said = command::output(&mut lint).await?;
        ensure!(said.contains("0 chart(s) failed"), "helm lint {chart}: {said}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_keeps_what_the_other_side_does_not_name() {
        let mut values = json!({"a": {"b": 1, "c": 2}});
        merge(&mut values, json!({"a": {"b": 3}, "d": 4}));
        assert_eq!(values, json!({"a": {"b": 3, "c": 2}, "d": 4}));
    }

    #[test]
    fn an_example_runs_the_image_of_the_sandbox() {
        let images = References::from([("suite".to_owned(), "peristyle.local/suite:1".to_owned())]);
        let manifests = example("01-greeter", &images).unwrap();
        assert!(manifests.contains("image: peristyle.local/suite:1") && !manifests.contains(SUITE_IMAGE));
        assert_eq!(example("01-greeter", &References::new()).unwrap().matches(SUITE_IMAGE).count(), 3);
    }
}
