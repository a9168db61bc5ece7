//! What the user does: each step applies objects or deletes them, and every
//! loop of steps ends where it began, with the greeter created.

use anyhow::{Context, Result};
use k8s_openapi::jiff::Timestamp;
use kube::Client;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams};
use peristyle_crds::names::ROTATE_ANNOTATION;
use serde_json::{Value, json};

use super::edge::Access;
use crate::operated::NAMESPACE;

const MANIFESTS: &str = include_str!("../../manifests/faults/greeter.yaml");
const MOVED: &str = "greeter.moved.test";

/// One thing that the user does.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Step {
    /// Everything is created.
    Create,
    /// The route moves to another host.
    Move,
    /// The route moves back.
    MoveBack,
    /// The route needs no policy any more.
    Open,
    /// The route needs its policy again.
    Protect,
    /// The passwords change, to the other login of each role.
    Rotate,
    /// The passwords change back to the first logins.
    RotateBack,
    /// Everything is deleted.
    Delete,
}

/// Steps that lead from the created greeter back to it. A rotation leaves a
/// second login behind, so that a new beginning follows.
pub const LOOPS: [&[Step]; 3] = [
    &[Step::Move, Step::MoveBack],
    &[Step::Open, Step::Protect],
    &[Step::Rotate, Step::RotateBack, Step::Delete, Step::Create],
];

/// The shortest way to a creation.
pub const ANEW: &[Step] = &[Step::Delete, Step::Create];

impl Step {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Move => "move",
            Self::MoveBack => "move-back",
            Self::Open => "open",
            Self::Protect => "protect",
            Self::Rotate => "rotate",
            Self::RotateBack => "rotate-back",
            Self::Delete => "delete",
        }
    }

    /// Whether a request without credentials may succeed meanwhile.
    #[must_use]
    pub fn access(self) -> Access {
        match self {
            Self::Open => Access::Allowed,
            Self::Protect => Access::AllowedUntilRefused,
            _ => Access::Refused,
        }
    }

    /// Whether one may succeed afterwards.
    #[must_use]
    pub fn access_afterwards(self) -> Access {
        if self == Self::Open { Access::Allowed } else { Access::Refused }
    }

    /// Does it.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn act(self, client: &Client) -> Result<()> {
        let expose = match self {
            Self::Move => json!({"name": "public", "hosts": [MOVED]}),
            Self::Open => json!({"name": "public", "auth": {"mode": "Public"}}),
            _ => json!({"name": "public"}),
        };
        // The order of a deletion too: what the Service needs goes before it.
        let objects = serde_saphyr::from_multiple::<Value>(MANIFESTS)?;
        for mut object in objects {
            let kind = object["kind"].as_str().context("a manifest without kind")?.to_owned();
            let name = object["metadata"]["name"].as_str().context("a manifest without name")?.to_owned();
            let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("peristyle.dev", "v1alpha1", &kind));
            let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), NAMESPACE, &resource);
            if self == Self::Delete {
                api.delete(&name, &DeleteParams::default()).await?;
                continue;
            }
            if kind == "Database" && matches!(self, Self::Rotate | Self::RotateBack) {
                // Any value that was not there before; one that every run leaves out of comparison.
                let now = Timestamp::now().to_string();
                object["metadata"]["annotations"] = json!({ROTATE_ANNOTATION: now});
            }
            if kind == "Service" {
                object["spec"]["expose"] = json!([expose]);
            }
            api.patch(&name, &PatchParams::apply("team").force(), &Patch::Apply(&object)).await?;
        }
        Ok(())
    }
}
