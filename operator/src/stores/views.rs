//! Kinds of which the operator reads a part. The rest, most of their size, is
//! neither decoded nor kept.

use std::collections::BTreeMap;

use k8s_openapi::{
    Metadata, NamespaceResourceScope, Resource,
    api::{
        apps::{
            self,
            v1::{DeploymentStatus, StatefulSetStatus},
        },
        batch::{self, v1::JobStatus},
        core::{self, v1::PodStatus},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use serde::Deserialize;

use crate::apply::Live;

/// A Deployment without most of what its pods are made of.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Deployment {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// How many pods, and of what.
    pub spec: Spec,
    /// What the Deployment controller says.
    pub status: DeploymentStatus,
}

/// Part of its spec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Spec {
    /// Pods that should run.
    pub replicas: Option<i32>,
    /// What they are made of.
    pub template: Template,
}

/// Part of the template of its pods.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Template {
    metadata: TemplateMeta,
    spec: PodSpec,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct TemplateMeta {
    annotations: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct PodSpec {
    containers: Vec<Container>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
struct Container {
    name: String,
    image: String,
}

impl Template {
    /// An annotation of the pods.
    #[must_use]
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.metadata.annotations.get(key).map(String::as_str)
    }

    /// The image of a container.
    #[must_use]
    pub fn image(&self, container: &str) -> Option<&str> {
        let mut containers = self.spec.containers.iter();
        containers.find(|found| found.name == container).map(|found| found.image.as_str())
    }
}

/// A StatefulSet without its spec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct StatefulSet {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What the StatefulSet controller says.
    pub status: StatefulSetStatus,
}

/// A Job without its spec.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Job {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What the Job controller says.
    pub status: JobStatus,
}

/// A pod without what it is made of.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Pod {
    /// Metadata.
    pub metadata: ObjectMeta,
    /// What the kubelet and the scheduler say.
    pub status: Option<PodStatus>,
}

/// Makes a view of a kind as good as the kind for whoever only reads.
macro_rules! view {
    ($view:ty, $kind:ty) => {
        impl Resource for $view {
            const API_VERSION: &'static str = <$kind as Resource>::API_VERSION;
            const GROUP: &'static str = <$kind as Resource>::GROUP;
            const KIND: &'static str = <$kind as Resource>::KIND;
            const VERSION: &'static str = <$kind as Resource>::VERSION;
            const URL_PATH_SEGMENT: &'static str = <$kind as Resource>::URL_PATH_SEGMENT;
            type Scope = NamespaceResourceScope;
        }

        impl Metadata for $view {
            type Ty = ObjectMeta;

            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

view!(Deployment, apps::v1::Deployment);
view!(StatefulSet, apps::v1::StatefulSet);
view!(Job, batch::v1::Job);
view!(Pod, core::v1::Pod);

impl Live<apps::v1::Deployment> for Deployment {}
impl Live<apps::v1::StatefulSet> for StatefulSet {}
impl Live<batch::v1::Job> for Job {}
