//! What makes the operator look at a Service again, besides its own changes.

use futures::stream::BoxStream;
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use peristyle_crds::{
    names::SERVICE_LABEL,
    v1alpha1::{Database, Service},
};

use super::observe::{Reference, SLICE_SERVICE_LABEL, references};
use crate::{auth::publications::Publications, stores::Stores, watch::concerned};

/// All of them.
#[must_use]
pub fn all(
    stores: &Stores,
    publications: &Publications,
    edge_errors: &str,
) -> Vec<BoxStream<'static, ObjectRef<Service>>> {
    let edge_errors = edge_errors.to_owned();
    let services = &stores.services;
    vec![
        stores.deployments.owners(SERVICE_LABEL),
        stores.core_services.owners(SERVICE_LABEL),
        stores.service_accounts.owners(SERVICE_LABEL),
        stores.jobs.owners(SERVICE_LABEL),
        stores.endpoint_slices.owners(SERVICE_LABEL),
        stores.pods.owners(SERVICE_LABEL),
        stores.ingress_routes.owners(SERVICE_LABEL),
        stores.middlewares.owners(SERVICE_LABEL),
        stores.servers_transports.owners(SERVICE_LABEL),
        stores.databases.concerning(services, uses),
        stores.services.concerning(services, calls),
        // A host may have been claimed or given up.
        concerned(stores.services.spec_changes(), services, |(), service| is_exposed(service)),
        stores.secrets.concerning(services, |secret, service| {
            is_local(secret, service) && references(service).contains(&Reference::Secret(secret.name_any()))
        }),
        stores.config_maps.concerning(services, |map, service| {
            is_local(map, service) && references(service).contains(&Reference::ConfigMap(map.name_any()))
        }),
        // Also those that a policy no longer targets.
        stores
            .auth_policies
            .concerning(services, |policy, service| is_local(policy, service) && is_exposed(service)),
        stores.auth_classes.concerning(services, |_, service| is_exposed(service)),
        concerned(publications.changes(), services, |policy, service| {
            policy.namespace == service.metadata.namespace && is_exposed(service)
        }),
        stores.edge_classes.concerning(services, |_, service| is_exposed(service)),
        stores.namespaces.concerning(services, |_, service| is_exposed(service)),
        stores.system_endpoint_slices.concerning(services, move |slice, service| {
            slice.labels().get(SLICE_SERVICE_LABEL) == Some(&edge_errors) && is_exposed(service)
        }),
    ]
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

/// Whether `service` calls `changed`.
fn calls(changed: &Service, service: &Service) -> bool {
    let name = changed.name_any();
    service.spec.depends_on.iter().any(|dependency| {
        dependency.service.as_ref() == Some(&name)
            && dependency.namespace.as_ref().or(service.metadata.namespace.as_ref())
                == changed.metadata.namespace.as_ref()
    })
}
