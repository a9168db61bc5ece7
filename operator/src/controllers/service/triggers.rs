//! What makes the operator look at a Service again, besides its own changes.

use std::sync::Arc;

use futures::{StreamExt, stream::BoxStream};
use kube::{
    ResourceExt,
    runtime::reflector::{ObjectRef, Store},
};
use peristyle_crds::{
    condition::{Reason, types},
    names::SERVICE_LABEL,
    v1alpha1::{Database, Service},
};

use super::observe::{Reference, SLICE_SERVICE_LABEL, references};
use crate::{auth::publications::Publications, stores::Stores, watch::Watched};

type Trigger = BoxStream<'static, ObjectRef<Service>>;

/// All of them.
#[must_use]
pub fn all(stores: &Stores, publications: &Publications, edge_errors: &str) -> Vec<Trigger> {
    let edge_errors = edge_errors.to_owned();
    let concerning = Concerning(stores.services.store().clone());
    vec![
        children(&stores.deployments),
        children(&stores.core_services),
        children(&stores.service_accounts),
        children(&stores.jobs),
        children(&stores.endpoint_slices),
        children(&stores.pods),
        children(&stores.ingress_routes),
        children(&stores.middlewares),
        children(&stores.servers_transports),
        concerning.each(&stores.databases, uses),
        concerning.each(&stores.services, follows),
        concerning.each(&stores.secrets, |secret, service| {
            is_local(secret, service) && references(service).contains(&Reference::Secret(secret.name_any()))
        }),
        concerning.each(&stores.config_maps, |map, service| {
            is_local(map, service) && references(service).contains(&Reference::ConfigMap(map.name_any()))
        }),
        // Also those that a policy no longer targets.
        concerning
            .each(&stores.auth_policies, |policy, service| is_local(policy, service) && is_exposed(service)),
        concerning.each(&stores.auth_classes, |_, service| is_exposed(service)),
        concerning.of(publications.changes(), |policy, service| {
            policy.namespace == service.metadata.namespace && is_exposed(service)
        }),
        concerning.each(&stores.edge_classes, |_, service| is_exposed(service)),
        concerning.each(&stores.namespaces, |_, service| is_exposed(service)),
        concerning.each(&stores.system_endpoint_slices, move |slice, service| {
            slice.labels().get(SLICE_SERVICE_LABEL) == Some(&edge_errors) && is_exposed(service)
        }),
    ]
}

/// The owner of a child.
fn children<K>(watched: &Watched<K>) -> Trigger
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let owner = |child: Arc<K>| async move {
        let name = child.labels().get(SERVICE_LABEL)?;
        Some(ObjectRef::new(name).within(&child.namespace()?))
    };
    watched.changes().filter_map(owner).boxed()
}

/// The Services that an object of another kind concerns.
struct Concerning(Store<Service>);

impl Concerning {
    fn each<K>(
        &self,
        watched: &Watched<K>,
        concerns: impl Fn(&K, &Service) -> bool + Send + 'static,
    ) -> Trigger
    where
        K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
        K::DynamicType: Default + Eq + std::hash::Hash + Clone + Send + Sync,
    {
        self.of(watched.changes(), move |object, service| concerns(object, service))
    }

    fn of<T: Send + 'static>(
        &self,
        changes: BoxStream<'static, T>,
        concerns: impl Fn(&T, &Service) -> bool + Send + 'static,
    ) -> Trigger {
        let services = self.0.clone();
        let matching = move |changed: T| {
            let concerned: Vec<_> = services
                .state()
                .iter()
                .filter(|service| concerns(&changed, service))
                .map(|service| ObjectRef::from_obj(&**service))
                .collect();
            futures::stream::iter(concerned)
        };
        changes.flat_map(matching).boxed()
    }
}

fn is_local<K: kube::Resource>(object: &K, service: &Service) -> bool {
    object.meta().namespace == service.metadata.namespace
}

fn is_exposed(service: &Service) -> bool {
    !service.spec.expose.is_empty()
}

fn uses(database: &Database, service: &Service) -> bool {
    let name = database.name_any();
    is_local(database, service) && service.spec.databases.iter().any(|binding| binding.database == name)
}

/// Whether `service` calls `changed`, or competes with it for a host.
fn follows(changed: &Service, service: &Service) -> bool {
    let name = changed.name_any();
    let calls = service.spec.depends_on.iter().any(|dependency| {
        dependency.service.as_ref() == Some(&name)
            && dependency.namespace.as_ref().or(service.metadata.namespace.as_ref())
                == changed.metadata.namespace.as_ref()
    });
    calls || (changed.uid() != service.uid() && competes(changed, service))
}

fn competes(changed: &Service, service: &Service) -> bool {
    // The host that was lost may be free now, whoever gave it up.
    let lost_a_host = service
        .status
        .iter()
        .flat_map(|s| &s.conditions)
        .any(|c| c.type_ == types::ROUTES_PROGRAMMED && c.reason == Reason::HostConflict.as_str());
    let hosts = |service: &Service| -> Vec<String> {
        let entries = service.spec.expose.iter();
        entries.flat_map(|expose| expose.hosts.clone()).collect()
    };
    let wanted = hosts(service);
    lost_a_host || hosts(changed).iter().any(|host| wanted.contains(host))
}
