//! Name, labels and owner of every child.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};
use peristyle_crds::names::{IGNORE_LABEL, MANAGED_BY, MANAGED_BY_LABEL};

use crate::telemetry;

/// The label that ties a child to its owner, and the owner.
#[derive(Clone, Debug)]
pub struct Owner {
    /// Namespace of the owner's children.
    pub namespace: String,
    /// Name of the owner.
    pub name: String,
    /// Label key that carries the owner's name on its children.
    pub label: &'static str,
    /// Reference to the owner; makes it the controller of its children.
    pub reference: OwnerReference,
    /// The trace of whoever changed the owner; its children carry it too.
    pub traceparent: Option<String>,
}

impl Owner {
    /// The owner `object`, whose children live in `namespace` and carry `label`.
    ///
    /// An object that never was in a cluster (`peristyle render`) has an empty UID.
    pub fn new<K: Resource<DynamicType = ()>>(object: &K, namespace: &str, label: &'static str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            name: object.name_any(),
            label,
            reference: OwnerReference {
                api_version: K::api_version(&()).into_owned(),
                kind: K::kind(&()).into_owned(),
                name: object.name_any(),
                uid: object.uid().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            },
            traceparent: telemetry::traceparent(object.meta()).map(ToOwned::to_owned),
        }
    }

    /// Labels of every child.
    #[must_use]
    pub fn labels(&self) -> BTreeMap<String, String> {
        [
            ("app.kubernetes.io/name", self.name.as_str()),
            ("app.kubernetes.io/instance", self.name.as_str()),
            ("app.kubernetes.io/part-of", self.namespace.as_str()),
            (MANAGED_BY_LABEL, MANAGED_BY),
            (self.label, self.name.as_str()),
        ]
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .into()
    }

    /// Labels that select the owner's pods; immutable, so never a version.
    #[must_use]
    pub fn selector(&self) -> BTreeMap<String, String> {
        [("app.kubernetes.io/instance", self.name.as_str()), (self.label, self.name.as_str())]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into()
    }

    /// Metadata of the child `name`.
    #[must_use]
    pub fn child(&self, name: impl Into<String>) -> ObjectMeta {
        ObjectMeta {
            name: Some(name.into()),
            namespace: Some(self.namespace.clone()),
            labels: Some(self.labels()),
            owner_references: Some(vec![self.reference.clone()]),
            annotations: self
                .traceparent
                .clone()
                .map(|trace| [(telemetry::TRACEPARENT.to_owned(), trace)].into()),
            ..ObjectMeta::default()
        }
    }
}

/// Whether `object` has `uid` as its controlling owner.
#[must_use]
pub fn is_controlled_by<K: Resource>(object: &K, uid: &str) -> bool {
    controller(object).is_some_and(|controller| controller.uid == uid)
}

/// The controller of `object`; the API server lets it have one.
pub fn controller<K: Resource>(object: &K) -> Option<&OwnerReference> {
    object.meta().owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// Whether `version` of an object was before another one. Versions of one kind
/// can be compared as numbers (KEP-5504).
#[must_use]
pub fn is_older(version: Option<&str>, than: Option<&str>) -> bool {
    let number = |version: Option<&str>| version.and_then(|version| version.parse::<u128>().ok());
    number(version).zip(number(than)).is_some_and(|(version, than)| version < than)
}

/// Whether `object` belonged to an object of the owner's name that is gone,
/// since there is another now; the cluster has only not cleared it away yet.
#[must_use]
pub fn is_of_predecessor<K: Resource>(object: &K, owner: &OwnerReference) -> bool {
    object.meta().owner_references.iter().flatten().any(|found| {
        found.controller == Some(true)
            && found.api_version == owner.api_version
            && found.kind == owner.kind
            && found.name == owner.name
            && found.uid != owner.uid
    })
}

/// Whether somebody asked that the operator leave `object` alone.
#[must_use]
pub fn is_ignored<K: Resource>(object: &K) -> bool {
    object.meta().labels.as_ref().and_then(|labels| labels.get(IGNORE_LABEL)).is_some_and(|v| v == "true")
}
