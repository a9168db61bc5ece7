//! What a Service names, as keys of the cache: whom a change concerns is looked
//! up, and not asked of every Service. Pure.

use std::collections::BTreeSet;

use kube::{Resource, ResourceExt};
use peristyle_crds::v1alpha1::{Database, Service};

use super::references::{self, Reference};
use crate::edge::claims::ServiceKey;

/// Every object that `service` names.
#[must_use]
pub fn keys(service: &Service) -> Vec<String> {
    let namespace = service.namespace().unwrap_or_default();
    let called = dependencies(service).into_iter().map(|target| called(&target.namespace, &target.name));
    let bound = databases(service).map(|name| bound(&namespace, name));
    let read = references::all(service).into_iter().map(|reference| match reference {
        Reference::Secret(name) => key("Secret", &namespace, &name),
        Reference::ConfigMap(name) => key("ConfigMap", &namespace, &name),
    });
    called.chain(bound).chain(read).collect()
}

/// The Services that `service` calls.
#[must_use]
pub fn dependencies(service: &Service) -> BTreeSet<ServiceKey> {
    let own = service.namespace().unwrap_or_default();
    let named = service.spec.depends_on.iter().filter_map(|dependency| {
        let namespace = dependency.namespace.as_ref().unwrap_or(&own).clone();
        Some(ServiceKey { namespace, name: dependency.service.clone()? })
    });
    named.collect()
}

/// The Databases of its namespace that `service` binds.
pub fn databases(service: &Service) -> impl Iterator<Item = &str> {
    service.spec.databases.iter().map(|binding| binding.database.as_str())
}

/// Key of the Services that call this one.
#[must_use]
pub fn called(namespace: &str, name: &str) -> String {
    key(&Service::kind(&()), namespace, name)
}

/// Key of the Services that bind this Database.
#[must_use]
pub fn bound(namespace: &str, name: &str) -> String {
    key(&Database::kind(&()), namespace, name)
}

/// Key of the Services that name `object`.
#[must_use]
pub fn naming<K: Resource<DynamicType = ()>>(object: &K) -> String {
    key(&K::kind(&()), &object.namespace().unwrap_or_default(), &object.name_any())
}

fn key(kind: &str, namespace: &str, name: &str) -> String {
    format!("{kind}/{namespace}/{name}")
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{ConfigMap, Secret};
    use kube::core::{ObjectMeta, PartialObjectMeta};
    use serde_json::json;

    use super::*;

    fn meta(namespace: &str, name: &str) -> ObjectMeta {
        ObjectMeta {
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            ..ObjectMeta::default()
        }
    }

    #[test]
    fn a_service_is_found_by_everything_that_it_names() {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"namespace": "shop", "name": "orders"},
            "spec": {
                "image": "i",
                "dependsOn": [
                    {"name": "stock", "service": "stock"},
                    {"name": "mail", "service": "mail", "namespace": "post"},
                    {"name": "bank", "url": "https://bank.test"}
                ],
                "databases": [{"name": "main", "database": "orders"}],
                "envFrom": [{"secretRef": {"name": "all"}}],
                "env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "some", "key": "a"}}}]
            }
        }))
        .unwrap();
        let secret =
            |name| PartialObjectMeta::<Secret> { metadata: meta("shop", name), ..Default::default() };
        let map = ConfigMap { metadata: meta("shop", "some"), ..ConfigMap::default() };
        let mut expected = [
            called("shop", "stock"),
            called("post", "mail"),
            bound("shop", "orders"),
            naming(&secret("all")),
            naming(&map),
        ];
        let mut found = keys(&service);
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
    }
}
