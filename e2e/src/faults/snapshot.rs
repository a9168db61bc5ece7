//! The end state of a step: objects, catalog, tuples, rules. What differs from
//! run to run is left out, so that two equal snapshots mean the same outcome.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use kube::core::discovery::Scope;
use kube::{Client, Discovery, ResourceExt};
use peristyle_crds::names::{CONFIG_HASH_ANNOTATION, CONFIG_VERSIONS_ANNOTATION};
use serde_json::Value;

use super::names::stable;
use super::postgres::Postgres;
use super::programs::Addresses;
use crate::operated::NAMESPACE;
use crate::stack::SYSTEM_NAMESPACE;

/// How long the systems may take to answer.
const DEADLINE: Duration = Duration::from_secs(10);

/// What comes and goes by itself or is told to people only.
const LEFT_OUT: [&str; 9] = [
    "events",
    "leases",
    "pods",
    "replicasets",
    "controllerrevisions",
    "endpoints",
    "bindings",
    "localsubjectaccessreviews",
    "podtemplates",
];

/// Fields and annotations that count revisions, or hash passwords and versions.
const VOLATILE: [&str; 4] = [
    "observedGeneration",
    "deployment.kubernetes.io/revision",
    CONFIG_HASH_ANNOTATION,
    CONFIG_VERSIONS_ANNOTATION,
];

/// One line or object by its name.
pub type Snapshot = BTreeMap<String, Value>;

/// Takes snapshots.
pub struct Camera {
    client: Client,
    resources: Vec<(ApiResource, Scope)>,
    http: reqwest::Client,
    /// Of the systems themselves, not of the proxies before them.
    addresses: Addresses,
}

impl Camera {
    /// Finds out which kinds there are.
    ///
    /// # Errors
    /// When the API server does not answer.
    pub async fn new(client: Client, addresses: Addresses) -> Result<Self> {
        let discovery = Discovery::new(client.clone()).run().await?;
        let mut resources = Vec::new();
        for group in discovery.groups() {
            for (resource, capabilities) in group.recommended_resources() {
                let is_listed = capabilities.operations.iter().any(|operation| operation == "list");
                let is_ours = capabilities.scope == Scope::Namespaced || resource.group == "peristyle.dev";
                if is_listed && is_ours && !LEFT_OUT.contains(&resource.plural.as_str()) {
                    resources.push((resource, capabilities.scope));
                }
            }
        }
        let http = reqwest::Client::builder().no_proxy().timeout(DEADLINE).build()?;
        Ok(Self { client, resources, http, addresses })
    }

    /// Objects, catalog, tuples and what Keto and Oathkeeper have loaded.
    ///
    /// # Errors
    /// When one of the systems does not answer within 10 s.
    pub async fn take(&self, postgres: &Postgres) -> Result<Snapshot> {
        in_time(self.picture(postgres)).await
    }

    async fn picture(&self, postgres: &Postgres) -> Result<Snapshot> {
        let mut snapshot = Snapshot::new();
        let lists = self.resources.iter().map(|(resource, scope)| self.list(resource, scope));
        for (key, value) in try_join_all(lists).await?.into_iter().flatten() {
            snapshot.insert(key, value);
        }
        for line in postgres.catalog().await? {
            snapshot.insert(format!("PostgreSQL {line}"), Value::Null);
        }
        for tuple in self.tuples().await? {
            // Keto stores copies, and a copy would be one write too many.
            let count = snapshot.entry(format!("Keto {tuple}")).or_insert_with(|| 0.into());
            *count = (count.as_i64().unwrap_or_default() + 1).into();
        }
        for (key, value) in self.loaded().await? {
            snapshot.insert(key, value);
        }
        Ok(snapshot)
    }

    /// What can only be looked at when nothing is about to be dropped: the
    /// contents of databases, and whether the credentials in Secrets work.
    ///
    /// # Errors
    /// When one of the systems does not answer within 10 s.
    pub async fn look_inside(&self, postgres: &Postgres, snapshot: &mut Snapshot) -> Result<()> {
        in_time(self.inside(postgres, snapshot)).await
    }

    async fn inside(&self, postgres: &Postgres, snapshot: &mut Snapshot) -> Result<()> {
        for line in postgres.contents().await? {
            snapshot.insert(format!("PostgreSQL {line}"), Value::Null);
        }
        let secrets: Api<k8s_openapi::api::core::v1::Secret> =
            Api::namespaced(self.client.clone(), NAMESPACE);
        for secret in secrets.list(&ListParams::default()).await? {
            let name = secret.name_any();
            let data = secret.data.unwrap_or_default();
            let text = |key: &str| data.get(key).and_then(|value| String::from_utf8(value.0.clone()).ok());
            let (Some(user), Some(password), Some(database)) =
                (text("username"), text("password"), text("database"))
            else {
                continue;
            };
            let is_let_in = postgres.login(&user, &password, &database).await.is_ok();
            snapshot.insert(format!("login with Secret {name}"), is_let_in.into());
        }
        Ok(())
    }

    async fn list(&self, resource: &ApiResource, scope: &Scope) -> Result<Vec<(String, Value)>> {
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), resource);
        let objects = api
            .list(&ListParams::default())
            .await
            .with_context(|| format!("cannot list {}", resource.plural))?;
        let is_ours = |object: &DynamicObject| match scope {
            Scope::Cluster => true,
            Scope::Namespaced => object
                .namespace()
                .is_some_and(|namespace| [NAMESPACE, SYSTEM_NAMESPACE].contains(&namespace.as_str())),
        };
        let is_of_a_controller = |object: &DynamicObject| {
            object.labels().contains_key("endpointslice.kubernetes.io/managed-by")
                && object.labels()["endpointslice.kubernetes.io/managed-by"].ends_with("k8s.io")
        };
        let named = objects.items.into_iter().filter(|object| is_ours(object) && !is_of_a_controller(object));
        named
            .map(|object| {
                let namespace = object.namespace().unwrap_or_default();
                let kind = format!("{}.{}", resource.plural, resource.group);
                let kind = kind.trim_end_matches('.');
                let key = stable(&format!("{kind} {namespace}/{}", object.name_any()));
                let mut value = serde_json::to_value(&object)?;
                settle(&mut value, resource);
                Ok((key, value))
            })
            .collect()
    }

    async fn tuples(&self) -> Result<Vec<String>> {
        let page = self.get(&self.addresses.keto_read, "/relation-tuples?page_size=1000").await?;
        Ok(page["relation_tuples"].as_array().into_iter().flatten().map(Value::to_string).collect())
    }

    /// The namespaces that Keto knows and the rules that Oathkeeper decides by:
    /// their ConfigMaps only say what shall be.
    async fn loaded(&self) -> Result<Vec<(String, Value)>> {
        let namespaces = self.get(&self.addresses.keto_read, "/namespaces").await?;
        let rules = self.get(&self.addresses.oathkeeper, "/rules?limit=500").await?;
        let namespace = |namespace: &Value| (format!("Keto namespace {}", namespace["name"]), Value::Null);
        let rule = |rule: &Value| {
            let mut rule = rule.clone();
            strip(&mut rule);
            (format!("Oathkeeper rule {}", rule["id"]), rule)
        };
        let namespaces = namespaces["namespaces"].as_array().into_iter().flatten().map(namespace);
        Ok(namespaces.chain(rules.as_array().into_iter().flatten().map(rule)).collect())
    }

    async fn get(&self, address: &str, path: &str) -> Result<Value> {
        let url = format!("http://{address}{path}");
        let text = self.http.get(&url).send().await?.error_for_status()?.text().await?;
        Ok(serde_json::from_str(&text)?)
    }
}

async fn in_time<T>(looking: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(DEADLINE, looking).await.context("the systems did not answer in 10 s")?
}

/// Leaves out what the API server or other controllers give anew in each run.
fn settle(object: &mut Value, resource: &ApiResource) {
    let is_ours = resource.group == "peristyle.dev";
    if let Some(fields) = object.as_object_mut() {
        // Numbers of pods and times; what they mean for us is in our own status.
        if !is_ours {
            fields.remove("status");
        }
        if let Some(metadata) = fields.get_mut("metadata").and_then(Value::as_object_mut) {
            for key in ["managedFields", "resourceVersion", "generation", "creationTimestamp", "uid"] {
                metadata.remove(key);
            }
        }
        if resource.group.is_empty() && resource.plural == "secrets" {
            // Passwords are generated; whether they work is looked at by itself.
            for value in fields.get_mut("data").and_then(Value::as_object_mut).into_iter().flatten() {
                *value.1 = Value::Null;
            }
        }
        if let Some(spec) = fields.get_mut("spec").and_then(Value::as_object_mut) {
            for key in ["clusterIP", "clusterIPs"] {
                spec.remove(key);
            }
        }
        if let Some(conditions) = fields.get_mut("status").and_then(|status| status.get_mut("conditions"))
            && let Some(conditions) = conditions.as_array_mut()
        {
            conditions.sort_by_key(|condition| condition["type"].to_string());
        }
    }
    strip(object);
}

fn strip(value: &mut Value) {
    match value {
        Value::String(text) => *text = stable(text),
        Value::Array(items) => items.iter_mut().for_each(strip),
        Value::Object(fields) => {
            fields.retain(|key, _| !VOLATILE.contains(&key.as_str()));
            fields.values_mut().for_each(strip);
        }
        _ => {}
    }
}

/// What differs, one line each; empty when nothing does.
#[must_use]
pub fn differences(expected: &Snapshot, found: &Snapshot) -> Vec<String> {
    let mut lines = Vec::new();
    for (key, value) in expected {
        match found.get(key) {
            None => lines.push(format!("missing: {key}")),
            Some(other) => compare(key, value, other, &mut lines),
        }
    }
    lines.extend(found.keys().filter(|key| !expected.contains_key(*key)).map(|key| format!("extra: {key}")));
    lines
}

fn compare(path: &str, expected: &Value, found: &Value, lines: &mut Vec<String>) {
    match (expected, found) {
        (Value::Object(one), Value::Object(two)) => {
            let keys: std::collections::BTreeSet<_> = one.keys().chain(two.keys()).collect();
            for key in keys {
                let of =
                    |fields: &serde_json::Map<String, Value>| fields.get(key).cloned().unwrap_or(Value::Null);
                compare(&format!("{path}.{key}"), &of(one), &of(two), lines);
            }
        }
        (Value::Array(one), Value::Array(two)) if one.len() == two.len() => {
            for (index, (one, two)) in one.iter().zip(two).enumerate() {
                compare(&format!("{path}[{index}]"), one, two, lines);
            }
        }
        (one, two) if one == two => {}
        (one, two) => lines.push(format!("{path}: expected {one}, found {two}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_password_is_not_in_a_snapshot() {
        let mut secret = json!({"metadata": {"name": "a"}, "data": {"password": "c2VjcmV0"}});
        settle(&mut secret, &ApiResource::erase::<k8s_openapi::api::core::v1::Secret>(&()));
        assert_eq!(secret["data"], json!({"password": null}));
    }

    #[test]
    fn a_difference_is_told_with_its_path_and_what_is_volatile_is_none() {
        let mut one = json!({"metadata": {"uid": "x", "name": "a"}, "spec": {"hosts": ["a"]},
            "status": {"conditions": [{"type": "Ready", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
        let mut two = json!({"metadata": {"uid": "y", "name": "a"}, "spec": {"hosts": ["b"]},
            "status": {"conditions": [{"type": "Ready", "lastTransitionTime": "2026-01-01T00:00:07Z"}]}});
        let resource = ApiResource::erase::<peristyle_crds::v1alpha1::Service>(&());
        settle(&mut one, &resource);
        settle(&mut two, &resource);
        let expected = Snapshot::from([("a".to_owned(), one), ("gone".to_owned(), Value::Null)]);
        let found = Snapshot::from([("a".to_owned(), two), ("new".to_owned(), Value::Null)]);
        assert_eq!(
            differences(&expected, &found),
            ["a.spec.hosts[0]: expected \"a\", found \"b\"", "missing: gone", "extra: new"]
        );
    }
}
