//! The operator against a real API server: what it owns, what it restores,
//! what it leaves alone. No node, so nothing runs here.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::operated::{NAMESPACE, Operated};
use e2e::{stack, unasked_edge, wait};
use k8s_openapi::{
    api::{
        apps::v1::Deployment,
        core::v1::{ConfigMap, Service as CoreService, ServiceAccount},
    },
    apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry,
};
use kube::{
    Api, ResourceExt,
    api::{
        ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams,
        PostParams,
    },
};
use peristyle::commands::render::{input::Input, render};
use peristyle_crds::v1alpha1::Service;
use serde::de::DeserializeOwned;
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(60);
/// How soon a deletion is over, or says what it waits for.
const DELETED: Duration = Duration::from_secs(30);

/// An operator with an edge to serve.
struct Bench(Operated);

impl Bench {
    async fn start() -> Result<Self> {
        let mut operated = Operated::prepare().await?;
        unasked_edge::create(&operated.client).await?;
        operated.operate("first").await?;
        Ok(Self(operated))
    }

    async fn apply(&self, name: &str, spec: serde_json::Value) -> Result<()> {
        let object = json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": "Service", "metadata": {"name": name}, "spec": spec});
        self.0
            .api::<Service>()
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
        wait::object(&self.0.api::<Deployment>(), name, what, PATIENCE, condition).await
    }

    fn dynamic(&self, object: &DynamicObject) -> Api<DynamicObject> {
        let types = object.types.clone().unwrap_or_default();
        let (group, version) = types.api_version.split_once('/').unwrap_or(("", &types.api_version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, &types.kind));
        Api::namespaced_with(self.0.client.clone(), NAMESPACE, &resource)
    }

    fn routes(&self) -> Api<DynamicObject> {
        let resource =
            ApiResource::from_gvk(&GroupVersionKind::gvk("traefik.io", "v1alpha1", "IngressRoute"));
        Api::namespaced_with(self.0.client.clone(), NAMESPACE, &resource)
    }

    async fn route_names(&self, service: &str) -> Result<Vec<String>> {
        let ours = ListParams::default().labels(&format!("peristyle.dev/service={service}"));
        Ok(self.routes().list(&ours).await?.iter().map(ResourceExt::name_any).collect())
    }

    /// What changes when somebody writes one of the children.
    async fn versions(&self, name: &str) -> Result<Vec<(String, Option<String>)>> {
        // A Deployment's resource version moves with its status.
        let generation = self.0.api::<Deployment>().get(name).await?.metadata.generation;
        let mut versions =
            vec![("Deployment".to_owned(), generation.map(|generation| generation.to_string()))];
        versions
            .push(("Service".to_owned(), self.0.api::<CoreService>().get(name).await?.resource_version()));
        let routes = self.routes().list(&ListParams::default()).await?;
        versions.extend(routes.iter().map(|route| (route.name_any(), route.resource_version())));
        Ok(versions)
    }

    /// Reason and message of a condition.
    async fn condition(&self, name: &str, type_: &str) -> Result<(String, String)> {
        let service = self.0.api::<Service>().get(name).await?;
        let status = service.status.context("no status yet")?;
        let found = status.conditions.iter().find(|c| c.type_ == type_).context("no such condition yet")?;
        Ok((found.reason.clone(), found.message.clone()))
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
    bench.0.api::<Deployment>().patch("orders", &PatchParams::default(), &Patch::Merge(edit)).await.unwrap();
    let restored =
        bench.deployment("orders", "replicas are restored", |d| replicas(d) == Some(3)).await.unwrap();
    assert_eq!(
        restored.labels().get("team").map(String::as_str),
        Some("blue"),
        "a label of others was removed"
    );

    comes_back_after_deletion::<CoreService>(&bench).await.unwrap();
    comes_back_after_deletion::<ServiceAccount>(&bench).await.unwrap();
    comes_back_after_deletion::<Deployment>(&bench).await.unwrap();
}

#[tokio::test]
async fn without_the_kinds_of_the_edge_a_service_goes_in_time_and_with_them_the_others_get_their_routes() {
    let bench = Bench::start().await.unwrap();
    let spec =
        || json!({"image": "x:1", "replicas": 0, "expose": [{"name": "public", "auth": {"mode": "Public"}}]});
    let has_routes = async |name: &str| {
        wait::until(&format!("Service {name} has its routes"), PATIENCE, async || {
            let names = bench.route_names(name).await?;
            ensure!(names.iter().any(|name| name.contains("-parent-")), "{names:?}");
            Ok(())
        })
        .await
    };
    for name in ["leaving", "staying"] {
        bench.apply(name, spec()).await.unwrap();
        has_routes(name).await.unwrap();
    }
    let kinds = ["middlewares.traefik.io", "ingressroutes.traefik.io", "serverstransports.traefik.io"];
    bench.0.plane.kubectl(&[&["delete", "crd"][..], &kinds].concat()).await.unwrap();
    // The children first, so that it is there for a while and the operator acts on it.
    let services = bench.0.api::<Service>();
    services.delete("leaving", &DeleteParams::foreground()).await.unwrap();
    wait::until("the Service is gone", DELETED, async || {
        ensure!(services.get_opt("leaving").await?.is_none(), "{:?}", services.get("leaving").await?);
        Ok(())
    })
    .await
    .unwrap();

    stack::install_definitions(async |arguments: &[&str]| bench.0.plane.kubectl(arguments).await)
        .await
        .unwrap();
    has_routes("staying").await.unwrap();
    bench.apply("leaving", spec()).await.unwrap();
    has_routes("leaving").await.unwrap();
}

async fn comes_back_after_deletion<K>(bench: &Bench) -> Result<()>
where
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + DeserializeOwned,
{
    let api = bench.0.api::<K>();
    let before = api.get("orders").await?.uid();
    api.delete("orders", &DeleteParams::default()).await?;
    wait::until(&format!("{} orders is back", K::kind(&())), PATIENCE, async || {
        ensure!(api.get("orders").await?.uid() != before, "it is still the old one");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn an_object_of_somebody_else_is_left_alone_and_reported() {
    let bench = Bench::start().await.unwrap();
    let foreign: CoreService = serde_json::from_value(json!({
        "metadata": {"name": "orders"}, "spec": {"ports": [{"port": 1234}], "selector": {"app": "legacy"}}
    }))
    .unwrap();
    let foreign = bench.0.api::<CoreService>().create(&PostParams::default(), &foreign).await.unwrap();
    bench.apply("orders", json!({"image": "x:1"})).await.unwrap();
    wait::until("the conflict is reported", PATIENCE, async || {
        let (reason, message) = bench.condition("orders", "Ready").await?;
        ensure!(reason == "NameConflict", "{reason}: {message}");
        ensure!(message.contains("Service orders"), "the message names no object: {message}");
        Ok(())
    })
    .await
    .unwrap();
    let now = bench.0.api::<CoreService>().get("orders").await.unwrap();
    assert_eq!(now.resource_version(), foreign.resource_version(), "the foreign object was written");

    bench.0.api::<Service>().delete("orders", &DeleteParams::default()).await.unwrap();
    wait::until("the Service object is gone", PATIENCE, async || {
        match bench.0.api::<Service>().get_opt("orders").await? {
            None => Ok(()),
            Some(_) => bail!("it is still there"),
        }
    })
    .await
    .unwrap();
    assert!(
        bench.0.api::<CoreService>().get_opt("orders").await.unwrap().is_some(),
        "the foreign object was deleted"
    );
}

#[tokio::test]
async fn a_removed_expose_removes_its_routes_and_a_protected_one_without_policy_reaches_no_workload() {
    let bench = Bench::start().await.unwrap();
    bench.apply("orders", json!({"image": "x:1", "expose": [{"name": "public"}]})).await.unwrap();
    wait::until("the host is fenced off", PATIENCE, async || {
        ensure!(!bench.route_names("orders").await?.is_empty(), "no route object");
        let (reason, message) = bench.condition("orders", "RoutesProgrammed").await?;
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
    // The status is written after everything else.
    wait::until("everything exists", PATIENCE, async || bench.condition("orders", "RoutesProgrammed").await)
        .await
        .unwrap();
    let before = bench.versions("orders").await.unwrap();
    assert!(before.len() > 2, "no routes: {before:?}");

    bench.0.operate("second").await.unwrap();
    // Proof that the second one works: it serves a new object.
    bench.apply("later", json!({"image": "x:1"})).await.unwrap();
    bench.deployment("later", "the second operator works", |_| true).await.unwrap();
    assert_eq!(before, bench.versions("orders").await.unwrap());
}

#[tokio::test]
async fn a_missing_reference_holds_the_first_rollout_back_until_it_appears() {
    let bench = Bench::start().await.unwrap();
    bench
        .apply("orders", json!({"image": "x:1", "envFrom": [{"configMapRef": {"name": "settings"}}]}))
        .await
        .unwrap();
    wait::until("the missing ConfigMap is named", PATIENCE, async || {
        let (reason, message) = bench.condition("orders", "Ready").await?;
        ensure!(reason == "ReferenceMissing" && message.contains("settings"), "{reason}: {message}");
        Ok(())
    })
    .await
    .unwrap();
    assert!(
        bench.0.api::<Deployment>().get_opt("orders").await.unwrap().is_none(),
        "pods that cannot start were made"
    );
    let settings: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "settings"}})).unwrap();
    bench.0.api::<ConfigMap>().create(&PostParams::default(), &settings).await.unwrap();
    bench.deployment("orders", "the rollout goes on", |_| true).await.unwrap();
}

/// The children of a Service, as the operator would write them.
pub fn rendered(name: &str, spec: &serde_json::Value) -> Vec<serde_json::Value> {
    let mut input = Input::default();
    let object = json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec});
    input.add(&object.to_string(), NAMESPACE).unwrap();
    render(&input, &input.services[0], 2).unwrap().objects
}

#[tokio::test]
async fn a_name_that_somebody_took_before_stays_theirs_whatever_kind_it_is() {
    let bench = Bench::start().await.unwrap();
    let plain = json!({"image": "x:1", "expose": [{"name": "public", "auth": {"mode": "Public"}}]});
    let mut hooked = plain.clone();
    hooked["hooks"] = json!({"preRollout": [{"name": "m", "command": ["a"]}]});
    let mut taken = Vec::new();
    let mut kinds = std::collections::BTreeSet::new();
    for (index, spec) in [plain, hooked].iter().enumerate() {
        for (number, model) in rendered("orders", spec).iter().enumerate() {
            let kind = model["kind"].as_str().unwrap();
            // With a hook only the Job is new; the Deployment is never reached.
            if (index == 1) != (kind == "Job") {
                continue;
            }
            for disguise in [false, true] {
                let name = format!("v{number}-{index}{}", u8::from(disguise));
                let child = rendered(&name, spec).remove(number);
                let foreign = squat(&bench, child, disguise).await.unwrap();
                bench.apply(&name, spec.clone()).await.unwrap();
                kinds.insert(kind.to_owned());
                taken.push((name, kind.to_owned(), disguise, foreign));
            }
        }
    }
    let expected = [
        "Deployment",
        "EndpointSlice",
        "IngressRoute",
        "Job",
        "Middleware",
        "NetworkPolicy",
        "PodDisruptionBudget",
        "Service",
        "ServiceAccount",
    ];
    assert!(expected.iter().all(|kind| kinds.contains(*kind)), "{kinds:?}");
    for (service, kind, disguise, foreign) in taken {
        let child = foreign.name_any();
        wait::until(&format!("the conflict over {kind} {child} is reported"), PATIENCE, async || {
            if kind == "IngressRoute"
                && disguise
                && let Ok((reason, _)) = bench.condition(&service, "RoutesProgrammed").await
                && reason == "HostConflict"
            {
                // What the edge loads for the host is somebody else's: it is not even tried.
                return Ok(());
            }
            let (reason, message) = bench.condition(&service, "Ready").await?;
            ensure!(reason == "NameConflict", "{reason}: {message}");
            ensure!(message.contains(&format!("{kind} {child} ")), "{message}");
            Ok(())
        })
        .await
        .unwrap();
        let now = bench.dynamic(&foreign).get(&child).await.unwrap();
        assert_eq!(now.metadata.uid, foreign.metadata.uid, "{kind} {child} was replaced");
        let is_ours = |field: &ManagedFieldsEntry| field.manager.as_deref() == Some("peristyle");
        let fields = now.metadata.managed_fields.clone().unwrap_or_default();
        assert!(!fields.iter().any(is_ours), "{kind} {child} was written");
    }
}

/// Creates `child` for somebody else; in disguise it carries our labels.
async fn squat(bench: &Bench, mut child: serde_json::Value, disguise: bool) -> Result<DynamicObject> {
    if !disguise {
        child["metadata"]["labels"] = json!({"app": "legacy"});
    }
    let object: DynamicObject = serde_json::from_value(child)?;
    Ok(bench.dynamic(&object).create(&PostParams::default(), &object).await?)
}

#[tokio::test]
async fn of_a_service_object_the_operator_writes_the_status_and_nothing_else() {
    let bench = Bench::start().await.unwrap();
    bench
        .apply("orders", json!({"image": "x:1", "expose": [{"name": "public", "auth": {"mode": "Public"}}]}))
        .await
        .unwrap();
    wait::until("everything exists", PATIENCE, async || bench.condition("orders", "RoutesProgrammed").await)
        .await
        .unwrap();
    let service = bench.0.api::<Service>().get("orders").await.unwrap();
    let fields = service.metadata.managed_fields.unwrap_or_default();
    let ours: Vec<_> = fields.iter().filter(|f| f.manager.as_deref() == Some("peristyle")).collect();
    assert!(!ours.is_empty(), "{fields:?}");
    assert!(ours.iter().all(|f| f.subresource.as_deref() == Some("status")), "{ours:?}");
}
