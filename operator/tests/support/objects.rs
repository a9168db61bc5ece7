//! Objects of a YAML file, as the caches would hold them.

use k8s_openapi::api::core::v1::Namespace;
use kube::{ResourceExt, core::PartialObjectMeta};
use peristyle::{
    auth::{
        compile::{Compiled, compile},
        plan::Plan,
        rejection::Rejection,
        relations::Refusals,
        world::World,
    },
    edge::claims::Claims,
};
use peristyle_crds::v1alpha1::{AuthClass, AuthPolicy, EdgeClass, Service};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// A cluster's worth of objects.
#[derive(Default)]
pub struct Objects {
    pub policies: Vec<AuthPolicy>,
    pub classes: Vec<AuthClass>,
    pub services: Vec<Service>,
    pub edge_classes: Vec<EdgeClass>,
    pub namespaces: Vec<PartialObjectMeta<Namespace>>,
}

fn typed<K: DeserializeOwned>(document: &Value) -> K {
    serde_json::from_value(document.clone()).unwrap_or_else(|error| panic!("{error}: {document}"))
}

impl Objects {
    /// The objects of `yaml`.
    pub fn read(yaml: &str) -> Self {
        let documents: Vec<Value> = serde_saphyr::from_multiple(yaml).expect("the fixture is YAML");
        Self::from_documents(&documents)
    }

    /// The objects of `documents`.
    pub fn from_documents(documents: &[Value]) -> Self {
        let mut objects = Self::default();
        for document in documents {
            match document["kind"].as_str() {
                Some("AuthPolicy") => objects.policies.push(typed(document)),
                Some("AuthClass") => objects.classes.push(typed(document)),
                Some("Service") => objects.services.push(typed(document)),
                Some("EdgeClass") => objects.edge_classes.push(typed(document)),
                Some("Namespace") => objects.namespaces.push(typed(document)),
                other => panic!("unexpected kind {other:?}"),
            }
        }
        objects
    }

    /// What `look` sees in the world of these objects.
    pub fn world<R>(&self, look: impl FnOnce(&World<'_>) -> R) -> R {
        let claims = Claims::settle(&self.services, &self.edge_classes, &self.namespaces);
        look(&World::new(&self.policies, &self.classes, &self.services, &claims))
    }

    /// The policy of that name.
    pub fn policy(&self, name: &str) -> &AuthPolicy {
        let found = self.policies.iter().find(|policy| policy.name_any() == name);
        found.unwrap_or_else(|| panic!("no policy {name}"))
    }

    /// Compiles the policy of that name.
    pub fn compile(&self, name: &str) -> Result<Compiled, Rejection> {
        let policy = self.policy(name);
        self.world(|world| {
            let class = world.class(policy)?;
            let namespaces = world.namespaces(class, &Refusals::new());
            compile(world, class, &namespaces, policy)
        })
    }

    /// The plan of the only class.
    pub fn plan(&self, refusals: &Refusals) -> Plan {
        self.world(|world| Plan::new(world, &self.classes[0], refusals))
    }
}
