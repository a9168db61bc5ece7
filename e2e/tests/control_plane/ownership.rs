//! What belongs to others stays theirs: children that somebody else made or
//! took over, and the specs that people write.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::controllers::rendered;
use crate::server::{Account, Server};
use anyhow::{Context, Result, ensure};
use e2e::operated::{NAMESPACE, Operated};
use e2e::{stack::SYSTEM_NAMESPACE, unasked_edge, wait};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams},
};
use peristyle_crds::v1alpha1::{Database, Service};
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(90);
/// Everything that a Service can have as a child.
const KINDS: [&str; 10] = [
    "Deployment",
    "EndpointSlice",
    "IngressRoute",
    "Job",
    "Middleware",
    "NetworkPolicy",
    "PodDisruptionBudget",
    "ServersTransport",
    "Service",
    "ServiceAccount",
];

/// An operator with an edge and a database server.
struct Bench {
    operated: Operated,
    server: Server,
    /// The owner of what was taken over.
    other: ConfigMap,
}

impl Bench {
    async fn start() -> Result<Self> {
        let server = Server::start().await;
        let mut operated = Operated::prepare().await?;
        operated.operate("first").await?;
        let other: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "other"}}))?;
        let other = operated.api::<ConfigMap>().create(&PostParams::default(), &other).await?;
        let bench = Self { operated, server, other };
        let Account { user, password } = bench.server.creator();
        let default = json!({"peristyle.dev/is-default-class": "true"});
        let external = json!({"endpoints": {"write": bench.server.endpoint("127.0.0.1").to_string()},
            "adminSecret": {"name": "pg-admin"}, "tls": {"mode": "Disabled", "allowInsecure": "Enabled"}});
        let items = json!([
            {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "pg-admin", "namespace": SYSTEM_NAMESPACE},
             "stringData": {"username": user, "password": password}},
            {"apiVersion": "peristyle.dev/v1alpha1", "kind": "DatabaseClass",
             "metadata": {"name": "pg", "annotations": default},
             "spec": {"engine": "PostgreSQL", "provider": "External", "external": external}}
        ]);
        let list = json!({"apiVersion": "v1", "kind": "List", "items": items}).to_string();
        bench.operated.plane.kubectl_with_input(&["apply", "--server-side", "-f", "-"], &list).await?;
        unasked_edge::create(&bench.operated.client).await?;
        Ok(bench)
    }

    async fn apply(&self, kind: &str, name: &str, spec: &Value) -> Result<()> {
        let object = json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": kind,
            "metadata": {"name": name}, "spec": spec});
        let params = PatchParams::apply("team").force();
        self.api("peristyle.dev/v1alpha1", kind).patch(name, &params, &Patch::Apply(&object)).await?;
        Ok(())
    }

    fn api(&self, api_version: &str, kind: &str) -> Api<DynamicObject> {
        self.api_in(NAMESPACE, api_version, kind)
    }

    fn api_in(&self, namespace: &str, api_version: &str, kind: &str) -> Api<DynamicObject> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        Api::namespaced_with(self.operated.client.clone(), namespace, &resource)
    }

    /// Waits until `Ready` of an object has this reason; its message.
    async fn ready(&self, kind: &str, name: &str, reason: &str) -> Result<String> {
        wait::until(&format!("{kind} {name}: Ready is {reason}"), PATIENCE, async || {
            let object = self.api("peristyle.dev/v1alpha1", kind).get(name).await?;
            let conditions = object.data["status"]["conditions"].as_array().context("no status yet")?.clone();
            let ready = conditions.iter().find(|c| c["type"] == "Ready").context("no condition yet")?;
            ensure!(ready["reason"] == reason, "{ready}");
            Ok(ready["message"].as_str().unwrap_or_default().to_owned())
        })
        .await
    }

    /// Waits until a Service says that a child is somebody else's. A route that
    /// the edge loads for its host holds up the host before its name matters.
    async fn conflict(&self, service: &str, child: &Child) -> Result<()> {
        let Child { kind, name, .. } = child;
        wait::until(&format!("Service {service} tells of {kind} {name}"), PATIENCE, async || {
            let object = self.api("peristyle.dev/v1alpha1", "Service").get(service).await?;
            let conditions = object.data["status"]["conditions"].as_array().context("no status yet")?.clone();
            let tells = |condition: &Value| match condition["type"].as_str() {
                Some("Ready") => {
                    let message = condition["message"].as_str().unwrap_or_default();
                    condition["reason"] == "NameConflict"
                        && message.starts_with(&format!("{kind} {name} exists"))
                }
                Some("RoutesProgrammed") => kind == "IngressRoute" && condition["reason"] == "HostConflict",
                _ => false,
            };
            ensure!(conditions.iter().any(tells), "{conditions:?}");
            Ok(())
        })
        .await
    }

    /// Gives a child to another owner, who is there, so that nothing clears it away.
    async fn take_over(&self, child: &Child) -> Result<DynamicObject> {
        let api = self.api(&child.api_version, &child.kind);
        wait::until(&format!("{} {} exists", child.kind, child.name), PATIENCE, async || {
            Ok(api.get(&child.name).await.map(drop)?)
        })
        .await?;
        let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": self.other.name_any(),
            "uid": self.other.uid(), "controller": true});
        let patch = Patch::Merge(json!({"metadata": {"ownerReferences": [owner]}}));
        let vandal = PatchParams { field_manager: Some("vandal".to_owned()), ..PatchParams::default() };
        Ok(api.patch(&child.name, &vandal, &patch).await?)
    }

    /// Whether `taken` is as it was but for what Kubernetes itself says of it.
    async fn is_as_it_was(&self, child: &Child, taken: &DynamicObject) -> Result<()> {
        let namespace = taken.namespace().unwrap_or_default();
        let now = self.api_in(&namespace, &child.api_version, &child.kind).get(&child.name).await?;
        let content = |object: &DynamicObject| {
            let mut content = object.clone();
            content.metadata.resource_version = None;
            content.metadata.managed_fields = None;
            content.metadata.annotations.get_or_insert_default().remove("deployment.kubernetes.io/revision");
            if let Some(fields) = content.data.as_object_mut() {
                fields.remove("status");
            }
            content
        };
        ensure!(content(&now) == content(taken), "{} {} was written", child.kind, child.name);
        Ok(())
    }
}

/// A child by name.
struct Child {
    api_version: String,
    kind: String,
    name: String,
}

/// The children of a Service, as the operator would write them.
fn children(name: &str, spec: &Value) -> Vec<Child> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let child = |object: Value| Child {
        api_version: text(&object["apiVersion"]),
        kind: text(&object["kind"]),
        name: text(&object["metadata"]["name"]),
    };
    rendered(name, spec).into_iter().map(child).collect()
}

#[tokio::test]
async fn a_child_that_somebody_took_over_stays_theirs_whatever_kind_it_is() {
    let bench = Bench::start().await.unwrap();
    let plain = json!({"image": "x:1", "expose": [{"name": "public", "auth": {"mode": "Public"}}]});
    let mut hooked = plain.clone();
    hooked["hooks"] = json!({"preRollout": [{"name": "m", "command": ["a"]}]});
    let mut taken = Vec::new();
    let mut kinds = BTreeSet::new();
    for (spec, is_hooked) in [(plain, false), (hooked, true)] {
        for number in 0..children("orders", &spec).len() {
            let name = format!("{}{number}", if is_hooked { "h" } else { "p" });
            let child = children(&name, &spec).remove(number);
            // With a hook only the Job is new; the Deployment is never reached.
            if is_hooked != (child.kind == "Job") {
                continue;
            }
            bench.apply("Service", &name, &spec).await.unwrap();
            kinds.insert(child.kind.clone());
            let object = bench.take_over(&child).await.unwrap();
            taken.push((name, child, object));
        }
    }
    assert_eq!(kinds.iter().map(String::as_str).collect::<Vec<_>>(), KINDS);
    for (service, child, object) in &taken {
        bench.conflict(service, child).await.unwrap();
        bench.is_as_it_was(child, object).await.unwrap();
    }
    // Nor does it go with the Service that once made it.
    for (service, child, object) in &taken {
        bench.operated.api::<Service>().delete(service, &DeleteParams::default()).await.unwrap();
        wait::until(&format!("Service {service} is gone"), PATIENCE, async || {
            ensure!(bench.operated.api::<Service>().get_opt(service).await?.is_none(), "it is there");
            Ok(())
        })
        .await
        .unwrap();
        bench.is_as_it_was(child, object).await.unwrap();
    }
}

#[tokio::test]
async fn a_secret_of_somebody_else_is_neither_used_nor_changed() {
    let bench = Bench::start().await.unwrap();
    let roles = json!({"roles": {"reader": {}}});
    let secrets = ["db", "db-owner", "db-ro", "db-slots"];
    let child =
        |name: &str| Child { api_version: "v1".to_owned(), kind: "Secret".to_owned(), name: name.to_owned() };
    let mut taken = Vec::new();
    for (number, suffix) in secrets.iter().enumerate() {
        // Made before, once as it is and once in the operator's clothes.
        for is_disguised in [false, true] {
            let database = format!("v{number}{}", u8::from(is_disguised));
            let name = format!("{database}-{suffix}");
            let labels = if is_disguised {
                json!({"app.kubernetes.io/managed-by": "peristyle", "peristyle.dev/database": database})
            } else {
                json!({"app": "legacy"})
            };
            let data = json!({"username": "mallory", "password": "chosen-by-mallory"});
            let foreign: DynamicObject = serde_json::from_value(json!({"apiVersion": "v1", "kind": "Secret",
                "metadata": {"name": name, "labels": labels}, "stringData": data}))
            .unwrap();
            let object = bench.api("v1", "Secret").create(&PostParams::default(), &foreign).await.unwrap();
            bench.apply("Database", &database, &roles).await.unwrap();
            taken.push((database, child(&name), object));
        }
        // Made by the operator, and taken over.
        let database = format!("r{number}");
        bench.apply("Database", &database, &roles).await.unwrap();
        bench.ready("Database", &database, "Succeeded").await.unwrap();
        let secret = child(&format!("{database}-{suffix}"));
        let object = bench.take_over(&secret).await.unwrap();
        taken.push((database, secret, object));
    }
    for (database, secret, object) in &taken {
        let message = bench.ready("Database", database, "NameConflict").await.unwrap();
        assert!(message.contains(&format!("Secret {} exists", secret.name)), "{message}");
        bench.is_as_it_was(secret, object).await.unwrap();
    }
    // Nobody logs in with a password that somebody else chose.
    let superuser = bench.server.superuser("postgres").await;
    let roles =
        superuser.query("SELECT rolname FROM pg_authid WHERE rolname LIKE 'shop_v%'", &[]).await.unwrap();
    for role in roles {
        let role: String = role.get(0);
        let uri = format!(
            "postgresql://{role}:chosen-by-mallory@{}/postgres?sslmode=disable",
            bench.server.endpoint("127.0.0.1")
        );
        assert!(
            tokio_postgres::connect(&uri, tokio_postgres::NoTls).await.is_err(),
            "{role} lets mallory in"
        );
    }
}

/// A class and the children that it would have, each by kind, name and what it is made of.
struct Class {
    kind: &'static str,
    spec: Value,
    children: Vec<(&'static str, &'static str, &'static str, Value)>,
}

/// `$` stands for the name of the class.
fn classes() -> [Class; 2] {
    let selector = json!({"app": "legacy"});
    let set = json!({"spec": {"replicas": 0, "serviceName": "legacy", "selector": {"matchLabels": selector},
        "template": {"metadata": {"labels": selector},
            "spec": {"containers": [{"name": "legacy", "image": "x:1"}]}}}});
    let tuples = r#"[{"namespace":"Wares","object":"all","relation":"buyers","subject_id":"alice"}]"#;
    [
        Class {
            kind: "DatabaseClass",
            spec: json!({"engine": "PostgreSQL", "provider": "Embedded",
                "embedded": {"image": "x:1", "binDir": "/usr/bin", "user": 100}}),
            children: vec![
                (
                    "v1",
                    "Secret",
                    "$-postgres",
                    json!({"stringData": {"username": "mallory", "password": "chosen-by-mallory"}}),
                ),
                ("v1", "Service", "$-postgres", json!({"spec": {"ports": [{"port": 5432}]}})),
                ("apps/v1", "StatefulSet", "$-postgres", set),
            ],
        },
        Class {
            kind: "AuthClass",
            // Nobody answers there: what is foreign is found before anything is asked.
            spec: json!({
                "oathkeeper": {"namespace": SYSTEM_NAMESPACE, "service": "oathkeeper-api", "rulesConfigMap": "$-rules"},
                "keto": {"readURL": "http://127.0.0.1:1", "writeURL": "http://127.0.0.1:1", "oplURL": "http://127.0.0.1:1",
                    "namespacesConfigMap": {"namespace": SYSTEM_NAMESPACE, "name": "$-namespaces", "key": "namespaces.keto.ts"}}}),
            children: vec![
                ("v1", "ConfigMap", "$-rules", json!({"data": {"rules.json": "[]"}})),
                ("v1", "ConfigMap", "$-namespaces", json!({"data": {"namespaces.keto.ts": ""}})),
                ("v1", "ConfigMap", "$-tuples", json!({"data": {"tuples.json": tuples}})),
            ],
        },
    ]
}

#[tokio::test]
async fn what_a_class_would_make_is_neither_used_nor_changed_where_somebody_else_has_it() {
    let bench = Bench::start().await.unwrap();
    let mut taken = Vec::new();
    for (number, Class { kind, spec, children }) in classes().into_iter().enumerate() {
        for (position, (api_version, child, name, content)) in children.into_iter().enumerate() {
            // Once as it is and once in the operator's clothes.
            for is_disguised in [false, true] {
                let class = format!("c{number}{position}{}", u8::from(is_disguised));
                let named = |text: &str| text.replace('$', &class);
                let name = named(name);
                // The record of tuples outlives its class: its label is all that says whose it is.
                let label = if kind == "AuthClass" { "auth-class" } else { "database-class" };
                let other = if name.ends_with("-tuples") { "other" } else { &class };
                let labels = if is_disguised {
                    json!({"app.kubernetes.io/managed-by": "peristyle", format!("peristyle.dev/{label}"): other})
                } else {
                    json!({"app": "legacy"})
                };
                let mut object = json!({"apiVersion": api_version, "kind": child,
                    "metadata": {"name": name, "labels": labels}});
                object.as_object_mut().unwrap().extend(content.as_object().unwrap().clone());
                let object: DynamicObject = serde_json::from_value(object).unwrap();
                let api = bench.api_in(SYSTEM_NAMESPACE, api_version, child);
                let object = api.create(&PostParams::default(), &object).await.unwrap();
                let spec: Value = serde_json::from_str(&named(&spec.to_string())).unwrap();
                let manifest = json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": kind,
                    "metadata": {"name": class}, "spec": spec});
                let manifest = manifest.to_string();
                bench.operated.plane.kubectl_with_input(&["apply", "-f", "-"], &manifest).await.unwrap();
                let child = Child { api_version: api_version.to_owned(), kind: child.to_owned(), name };
                taken.push((kind, class, child, object));
            }
        }
    }
    for (kind, class, child, object) in &taken {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("peristyle.dev", "v1alpha1", kind));
        let api: Api<DynamicObject> = Api::all_with(bench.operated.client.clone(), &resource);
        wait::until(
            &format!("{kind} {class} tells of {} {}", child.kind, child.name),
            PATIENCE,
            async || {
                let found = api.get(class).await?;
                let conditions =
                    found.data["status"]["conditions"].as_array().context("no status yet")?.clone();
                let ready = conditions.iter().find(|c| c["type"] == "Ready").context("no condition yet")?;
                let message = ready["message"].as_str().unwrap_or_default();
                let is_named = message.contains(&format!("{} {} exists", child.kind, child.name));
                ensure!(ready["reason"] == "NameConflict" && is_named, "{ready}");
                Ok(())
            },
        )
        .await
        .unwrap();
        bench.is_as_it_was(child, object).await.unwrap();
        if child.kind == "Secret" {
            let sets = bench.api_in(SYSTEM_NAMESPACE, "apps/v1", "StatefulSet");
            assert!(
                sets.get_opt(&child.name).await.unwrap().is_none(),
                "a server with a password of mallory"
            );
        }
    }
}

#[tokio::test]
async fn of_what_people_write_the_operator_changes_no_spec() {
    let bench = Bench::start().await.unwrap();
    bench.apply("Database", "orders", &json!({})).await.unwrap();
    let spec = json!({"image": "x:1", "replicas": 0, "databases": [{"name": "main", "database": "orders"}],
        "expose": [{"name": "public", "auth": {"mode": "Public"}}]});
    bench.apply("Service", "orders", &spec).await.unwrap();
    bench.ready("Database", "orders", "Succeeded").await.unwrap();
    bench.ready("Service", "orders", "Succeeded").await.unwrap();
    let database = bench.operated.api::<Database>().get("orders").await.unwrap();
    let service = bench.operated.api::<Service>().get("orders").await.unwrap();
    for (kind, metadata) in [("Database", database.metadata), ("Service", service.metadata)] {
        let fields = metadata.managed_fields.unwrap_or_default();
        let ours: Vec<_> = fields.iter().filter(|f| f.manager.as_deref() == Some("peristyle")).collect();
        assert!(!ours.is_empty(), "{kind}: {fields:?}");
        for entry in ours {
            let owned = &entry.fields_v1.as_ref().unwrap().0;
            assert!(owned.get("f:spec").is_none(), "{kind}: {owned}");
        }
    }
    let secret = bench.operated.api::<Secret>().get("orders-db").await.unwrap();
    assert!(secret.data.is_some_and(|data| data.contains_key("password")));
}
