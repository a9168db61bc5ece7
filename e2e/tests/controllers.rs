//! The operator against a real API server: what it owns, what it restores,
//! what it leaves alone. No node, so nothing runs here.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use e2e::{command, control_plane::ControlPlane, stack, wait};
use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{ConfigMap, Namespace, Service as CoreService, ServiceAccount},
};
use kube::{
    Api, Client, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
        PostParams,
    },
};
use peristyle::{config::Config, run};
use peristyle_crds::v1alpha1::{EdgeClass, Service};
use serde_json::json;
use tokio::{process::Command, task::JoinHandle};

const PATIENCE: Duration = Duration::from_secs(60);
const NAMESPACE: &str = "shop";

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    config: Config,
}

/// A control plane with all definitions and one operator.
struct Bench {
    client: Client,
    operator: Option<JoinHandle<()>>,
    plane: ControlPlane,
}

impl Bench {
    async fn start() -> Result<Self> {
        let plane = ControlPlane::start().await?;
        let kubectl = async |arguments: &[&str]| {
            let mut kubectl = Command::new(plane.state().program("kubectl"));
            command::output(kubectl.arg("--kubeconfig").arg(plane.kubeconfig()).args(arguments)).await
        };
        stack::install_definitions(kubectl).await?;
        let client = plane.client().await?;
        for name in [stack::SYSTEM_NAMESPACE, NAMESPACE] {
            let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
            Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await?;
        }
        let class: EdgeClass = serde_json::from_value(json!({
            "apiVersion": "peristyle.dev/v1alpha1", "kind": "EdgeClass",
            "metadata": {"name": "public", "annotations": {"peristyle.dev/is-default-class": "true"}},
            "spec": {"provider": "Traefik", "traefik": {"entryPoints": ["web"]},
                     "hosts": {"template": "{service}.{namespace}.example.com"}}
        }))?;
        Api::<EdgeClass>::all(client.clone()).create(&PostParams::default(), &class).await?;
        let mut bench = Self { client, operator: None, plane };
        bench.operate("first").await?;
        Ok(bench)
    }

    /// Starts an operator in this process, after the one before was cut off.
    async fn operate(&mut self, identity: &str) -> Result<()> {
        if let Some(operator) = self.operator.take() {
            operator.abort();
        }
        let config =
            Arguments::parse_from(["test", "--identity", identity, "--admin-address", "127.0.0.1:0"]).config;
        // A client of its own: cutting off the operator must not cut off the test.
        let client = self.plane.client().await?;
        self.operator = Some(tokio::spawn(async move {
            if let Err(error) = run::operate(client, config).await {
                eprintln!("the operator ended: {error:#}");
            }
        }));
        Ok(())
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    async fn apply(&self, name: &str, spec: serde_json::Value) -> Result<()> {
        let object = json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
        self.api::<Service>()
            .patch(name, &PatchParams::apply("team").force(), &Patch::Apply(&object))
            .await?;
        Ok(())
    }

    async fn deployment(
        &self,
        name: &str,
        what: &str,
        condition: impl Fn(&Deployment) -> bool,
    ) -> Result<Deployment> {
        wait::object(&self.api::<Deployment>(), name, what, PATIENCE, condition).await
    }

    fn routes(&self) -> Api<DynamicObject> {
        let resource =
            ApiResource::from_gvk(&GroupVersionKind::gvk("traefik.io", "v1alpha1", "IngressRoute"));
        Api::namespaced_with(self.client.clone(), NAMESPACE, &resource)
    }

    async fn route_names(&self, service: &str) -> Result<Vec<String>> {
        let ours = ListParams::default().labels(&format!("peristyle.dev/service={service}"));
        Ok(self.routes().list(&ours).await?.iter().map(ResourceExt::name_any).collect())
    }

    async fn ready_reason(&self, name: &str) -> Result<(String, String)> {
        let service = self.api::<Service>().get(name).await?;
        let status = service.status.context("no status yet")?;
        let ready =
            status.conditions.iter().find(|c| c.type_ == "Ready").context("no Ready condition yet")?;
        Ok((ready.reason.clone(), ready.message.clone()))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(operator) = self.operator.take() {
            operator.abort();
        }
    }
}

fn replicas(deployment: &Deployment) -> Option<i32> {
    deployment.spec.as_ref()?.replicas
}

#[tokio::test]
async fn what_is_edited_or_deleted_by_hand_is_restored_and_what_others_own_stays() {
    let bench = Bench::start().await.unwrap();
    bench.apply("orders", json!({"image": "x:1", "replicas": 3})).await.unwrap();
    bench.deployment("orders", "the Deployment exists", |d| replicas(d) == Some(3)).await.unwrap();

    let edit = json!({"metadata": {"labels": {"team": "blue"}}, "spec": {"replicas": 7}});
    bench.api::<Deployment>().patch("orders", &PatchParams::default(), &Patch::Merge(edit)).await.unwrap();
    let restored =
        bench.deployment("orders", "replicas are restored", |d| replicas(d) == Some(3)).await.unwrap();
    assert_eq!(
        restored.labels().get("team").map(String::as_str),
        Some("blue"),
        "a label of others was removed"
    );

    for delete in ["core service", "service account", "deployment"] {
        let params = DeleteParams::default();
        let uid = match delete {
            "core service" => bench
                .api::<CoreService>()
                .delete("orders", &params)
                .await
                .unwrap()
                .left()
                .and_then(|o| o.uid()),
            "service account" => bench
                .api::<ServiceAccount>()
                .delete("orders", &params)
                .await
                .unwrap()
                .left()
                .and_then(|o| o.uid()),
            _ => bench
                .api::<Deployment>()
                .delete("orders", &params)
                .await
                .unwrap()
                .left()
                .and_then(|o| o.uid()),
        };
        wait::until(&format!("the {delete} is back"), PATIENCE, async || {
            let now = match delete {
                "core service" => bench.api::<CoreService>().get("orders").await?.uid(),
                "service account" => bench.api::<ServiceAccount>().get("orders").await?.uid(),
                _ => bench.api::<Deployment>().get("orders").await?.uid(),
            };
            ensure!(now != uid, "it is still the old one");
            Ok(())
        })
        .await
        .unwrap();
    }
}

#[tokio::test]
async fn an_object_of_somebody_else_is_left_alone_and_reported() {
    let bench = Bench::start().await.unwrap();
    let foreign: CoreService = serde_json::from_value(json!({
        "metadata": {"name": "orders"}, "spec": {"ports": [{"port": 1234}], "selector": {"app": "legacy"}}
    }))
    .unwrap();
    let foreign = bench.api::<CoreService>().create(&PostParams::default(), &foreign).await.unwrap();
    bench.apply("orders", json!({"image": "x:1"})).await.unwrap();
    wait::until("the conflict is reported", PATIENCE, async || {
        let (reason, message) = bench.ready_reason("orders").await?;
        ensure!(reason == "NameConflict", "{reason}: {message}");
        ensure!(message.contains("Service orders"), "the message names no object: {message}");
        Ok(())
    })
    .await
    .unwrap();
    let now = bench.api::<CoreService>().get("orders").await.unwrap();
    assert_eq!(now.resource_version(), foreign.resource_version(), "the foreign object was written");

    bench.api::<Service>().delete("orders", &DeleteParams::default()).await.unwrap();
    wait::until("the Service object is gone", PATIENCE, async || {
        match bench.api::<Service>().get_opt("orders").await? {
            None => Ok(()),
            Some(_) => bail!("it is still there"),
        }
    })
    .await
    .unwrap();
    assert!(
        bench.api::<CoreService>().get_opt("orders").await.unwrap().is_some(),
        "the foreign object was deleted"
    );
}

#[tokio::test]
async fn a_removed_expose_removes_its_routes_and_a_protected_one_without_policy_reaches_no_workload() {
    let bench = Bench::start().await.unwrap();
    bench.apply("orders", json!({"image": "x:1", "expose": [{"name": "public"}]})).await.unwrap();
    wait::until("the host is fenced off", PATIENCE, async || {
        ensure!(!bench.route_names("orders").await?.is_empty(), "no route object");
        let (reason, message) = bench.ready_reason("orders").await?;
        ensure!(reason == "NoAuthPolicy", "{reason}: {message}");
        Ok(())
    })
    .await
    .unwrap();
    for route in bench.routes().list(&ListParams::default()).await.unwrap() {
        let text = serde_json::to_string(&route.data).unwrap();
        assert!(
            !text.contains("\"name\":\"orders\""),
            "a route reaches the workload without a policy: {text}"
        );
    }
    bench.apply("orders", json!({"image": "x:1"})).await.unwrap();
    wait::until("the routes are gone", PATIENCE, async || {
        let names = bench.route_names("orders").await?;
        ensure!(names.is_empty(), "still there: {names:?}");
        Ok(())
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn an_operator_that_starts_again_changes_nothing() {
    let mut bench = Bench::start().await.unwrap();
    bench
        .apply("orders", json!({"image": "x:1", "expose": [{"name": "public", "auth": {"mode": "Public"}}]}))
        .await
        .unwrap();
    bench.deployment("orders", "the Deployment exists", |_| true).await.unwrap();
    let versions = async || -> Result<Vec<Option<String>>> {
        let routes = bench.routes().list(&ListParams::default()).await?;
        ensure!(!routes.items.is_empty(), "no routes yet");
        let deployment = bench.api::<Deployment>().get("orders").await?;
        let mut versions = vec![bench.api::<CoreService>().get("orders").await?.resource_version()];
        versions.push(deployment.metadata.generation.map(|generation| generation.to_string()));
        versions.extend(routes.iter().map(ResourceExt::resource_version));
        Ok(versions)
    };
    let before = wait::until("everything exists", PATIENCE, versions).await.unwrap();

    bench.operate("second").await.unwrap();
    // Proof that the second one works: it serves a new object.
    bench.apply("later", json!({"image": "x:1"})).await.unwrap();
    bench.deployment("later", "the second operator works", |_| true).await.unwrap();
    let routes = bench.routes().list(&ListParams::default()).await.unwrap();
    let mut after = vec![bench.api::<CoreService>().get("orders").await.unwrap().resource_version()];
    let deployment = bench.api::<Deployment>().get("orders").await.unwrap();
    after.push(deployment.metadata.generation.map(|generation| generation.to_string()));
    after.extend(routes.iter().map(ResourceExt::resource_version));
    assert_eq!(before, after);
}

#[tokio::test]
async fn a_missing_reference_holds_the_first_rollout_back_until_it_appears() {
    let bench = Bench::start().await.unwrap();
    bench
        .apply("orders", json!({"image": "x:1", "envFrom": [{"configMapRef": {"name": "settings"}}]}))
        .await
        .unwrap();
    wait::until("the missing ConfigMap is named", PATIENCE, async || {
        let (reason, message) = bench.ready_reason("orders").await?;
        ensure!(reason == "ReferenceMissing" && message.contains("settings"), "{reason}: {message}");
        Ok(())
    })
    .await
    .unwrap();
    assert!(
        bench.api::<Deployment>().get_opt("orders").await.unwrap().is_none(),
        "pods that cannot start were made"
    );
    let settings: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "settings"}})).unwrap();
    bench.api::<ConfigMap>().create(&PostParams::default(), &settings).await.unwrap();
    bench.deployment("orders", "the rollout goes on", |_| true).await.unwrap();
}
