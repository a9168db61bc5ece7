//! From what was validated to children. Pure: the operator, `peristyle render`
//! and the tests get the same from the same.

pub mod access;
pub mod availability;
pub mod deployment;
pub mod job;
pub mod network;
pub mod pod;

use k8s_openapi::api::{
    apps::v1::Deployment,
    batch::v1::Job,
    core::v1::{Service as CoreService, ServiceAccount},
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::ResourceExt;
use peristyle_crds::v1alpha1::{Service, service::InventoryItem};

use super::{observe::EdgeErrors, references::ConfigStamp, route::Routes, validate::Validated};
use crate::{
    edge::traefik::{self, Edge},
    metadata::Owner,
};

/// Every child of a Service. Destructured without `..` wherever all of them
/// matter, so that a new kind of child cannot be forgotten.
#[derive(Clone, Debug)]
pub struct Desired {
    /// Who may connect to and from the pods; `None`: everything may.
    pub network_policy: Option<NetworkPolicy>,
    /// Identity of the pods.
    pub service_account: ServiceAccount,
    /// How others in the cluster reach the pods.
    pub core_service: CoreService,
    /// How routes reach the error backend; only with routes.
    pub edge_errors: Option<network::EdgeErrorsBackend>,
    /// What slows down the drain of nodes; only with two pods or more.
    pub disruption_budget: Option<PodDisruptionBudget>,
    /// Hooks and pods; `None` while something that they need is missing.
    pub workload: Option<Workload>,
    /// Routes.
    pub edge: Edge,
}

/// What runs.
#[derive(Clone, Debug)]
pub struct Workload {
    /// What must have succeeded before the Deployment is applied, in order.
    pub hooks: Vec<Job>,
    /// The pods.
    pub deployment: Deployment,
}

/// The routes as objects of the edge.
#[must_use]
pub fn edge(owner: &Owner, routes: &Routes) -> Edge {
    let mut edge = Edge { is_provisional: routes.is_provisional, ..Edge::default() };
    for route in &routes.routes {
        edge.extend(traefik::build::build(owner, route));
    }
    edge
}

/// All children.
#[must_use]
pub fn build(
    owner: &Owner,
    service: &Service,
    validated: &Validated,
    edge: Edge,
    edge_errors: Option<&EdgeErrors>,
    config: Option<&ConfigStamp>,
) -> Desired {
    Desired {
        network_policy: validated.peers.as_ref().map(|peers| access::network_policy(owner, peers)),
        disruption_budget: validated.is_budgeted.then(|| availability::disruption_budget(owner)),
        service_account: network::service_account(owner),
        core_service: network::core_service(owner, &validated.ports),
        edge_errors: (!edge.fences.is_empty()).then(|| network::edge_errors(owner, edge_errors)),
        workload: validated.workload.as_ref().map(|workload| Workload {
            hooks: workload.hooks.iter().map(|hook| job::job(owner, service, hook)).collect(),
            deployment: deployment::deployment(owner, service, validated, workload, config),
        }),
        edge,
    }
}

/// An object's kind, name and content.
fn entry<K>(object: &K) -> Result<(InventoryItem, serde_json::Value), serde_json::Error>
where
    K: kube::Resource<DynamicType = ()> + serde::Serialize,
{
    let item = InventoryItem {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: object.name_any(),
    };
    let mut value = serde_json::to_value(object)?;
    if let Some(fields) = value.as_object_mut() {
        fields.insert("apiVersion".to_owned(), item.api_version.clone().into());
        fields.insert("kind".to_owned(), item.kind.clone().into());
    }
    Ok((item, value))
}

impl Desired {
    /// Every child with its content, in the order in which they are applied.
    ///
    /// # Errors
    /// When a child cannot be written as JSON, which would be a bug.
    pub fn objects(&self) -> Result<Vec<(InventoryItem, serde_json::Value)>, serde_json::Error> {
        let Self {
            network_policy,
            service_account,
            core_service,
            edge_errors,
            disruption_budget,
            workload,
            edge,
        } = self;
        let mut objects = Vec::new();
        if let Some(policy) = network_policy {
            objects.push(entry(policy)?);
        }
        objects.extend([entry(service_account)?, entry(core_service)?]);
        if let Some(network::EdgeErrorsBackend { service, endpoint_slice }) = edge_errors {
            objects.push(entry(service)?);
            if let Some(slice) = endpoint_slice {
                objects.push(entry(slice)?);
            }
        }
        if let Some(budget) = disruption_budget {
            objects.push(entry(budget)?);
        }
        if let Some(Workload { hooks, deployment }) = workload {
            for hook in hooks {
                objects.push(entry(hook)?);
            }
            objects.push(entry(deployment)?);
        }
        for transport in &edge.transports {
            objects.push(entry(transport)?);
        }
        for middleware in &edge.middlewares {
            objects.push(entry(middleware)?);
        }
        for route in edge.routes() {
            objects.push(entry(route)?);
        }
        Ok(objects)
    }
}
