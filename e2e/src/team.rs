//! Objects of ours in one namespace.

use std::time::Duration;

use anyhow::Result;
use kube::api::{Patch, PatchParams};
use kube::core::DynamicObject;
use kube::discovery::ApiResource;
use kube::{Api, Client};
use serde_json::{Value, json};

use crate::wait;

/// How long the operator may take on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Who applies objects of ours in a namespace and looks at them.
pub struct Team {
    client: Client,
    namespace: String,
}

impl Team {
    /// A team that works in `namespace`.
    #[must_use]
    pub fn new(client: Client, namespace: &str) -> Self {
        Self { client, namespace: namespace.to_owned() }
    }

    /// Applies an object.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn apply(&self, kind: &str, name: &str, spec: &Value) -> Result<()> {
        let object = json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
        let params = PatchParams::apply("team").force();
        self.objects(kind).patch(name, &params, &Patch::Apply(&object)).await?;
        Ok(())
    }

    /// Objects of a kind.
    #[must_use]
    pub fn objects(&self, kind: &str) -> Api<DynamicObject> {
        let plural = match kind {
            "AuthPolicy" => "authpolicies".to_owned(),
            kind => format!("{}s", kind.to_lowercase()),
        };
        let resource = ApiResource {
            group: "peristyle.dev".to_owned(),
            version: "v1alpha1".to_owned(),
            api_version: "peristyle.dev/v1alpha1".to_owned(),
            kind: kind.to_owned(),
            plural,
        };
        Api::namespaced_with(self.client.clone(), &self.namespace, &resource)
    }

    /// Waits until a condition has this status and reason for the present spec; its message.
    ///
    /// # Errors
    /// At the deadline, with the object.
    pub async fn becomes(
        &self,
        kind: &str,
        name: &str,
        type_: &str,
        status: &str,
        reason: &str,
    ) -> Result<String> {
        self.becomes_within(PATIENCE, kind, name, type_, (status, reason)).await
    }

    /// The same where it counts how long that may take.
    ///
    /// # Errors
    /// At the deadline, with the object.
    pub async fn becomes_within(
        &self,
        patience: Duration,
        kind: &str,
        name: &str,
        type_: &str,
        (status, reason): (&str, &str),
    ) -> Result<String> {
        let what = format!("{kind} {name} is {type_}={status} ({reason})");
        let message = |object: &DynamicObject| {
            let conditions = object.data["status"]["conditions"].as_array();
            let found = conditions.into_iter().flatten().find(|condition| {
                condition["type"] == type_
                    && condition["status"] == status
                    && condition["reason"] == reason
                    && condition["observedGeneration"].as_i64() >= object.metadata.generation
            });
            found.map(|condition| condition["message"].as_str().unwrap_or_default().to_owned())
        };
        let is_so = |object: &DynamicObject| message(object).is_some();
        let object = wait::object(&self.objects(kind), name, &what, patience, is_so).await?;
        Ok(message(&object).unwrap_or_default())
    }
}
