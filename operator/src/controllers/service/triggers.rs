//! What makes the operator look at a Service again, besides its own changes.

use std::sync::Arc;

use futures::{
    StreamExt,
    stream::{BoxStream, iter},
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use peristyle_crds::{
    names::{DATABASE_LABEL, SERVICE_LABEL},
    v1alpha1::{Database, EdgeClass, Service, service::AccessMode},
};

use super::{
    evidence::edge_services,
    observe::SLICE_SERVICE_LABEL,
    peers,
    references::{Reference, mentions},
};
use crate::{
    auth::{publications::Publications, reach::targets},
    controllers::Reaches,
    edge::claims::ServiceKey,
    stores::Stores,
    watch::concerned,
};

/// All of them.
#[must_use]
pub fn all(
    stores: &Stores,
    publications: &Publications,
    reaches: Reaches,
    edge_errors: &str,
) -> Vec<BoxStream<'static, ObjectRef<Service>>> {
    let edge_errors = edge_errors.to_owned();
    let edge_classes = stores.edge_classes.store().clone();
    let services = &stores.services;
    let policies = stores.auth_policies.store().clone();
    let exposed = |events| concerned(events, services, |(), service| is_exposed(service));
    vec![
        stores.deployments.owners(SERVICE_LABEL),
        stores.core_services.owners(SERVICE_LABEL),
        stores.service_accounts.owners(SERVICE_LABEL),
        stores.jobs.owners(SERVICE_LABEL),
        stores.network_policies.owners(SERVICE_LABEL),
        stores.disruption_budgets.owners(SERVICE_LABEL),
        stores.endpoint_slices.owners(SERVICE_LABEL),
        stores.pods.owners(SERVICE_LABEL),
        stores.ingress_routes.owners(SERVICE_LABEL),
        stores.middlewares.owners(SERVICE_LABEL),
        stores.servers_transports.owners(SERVICE_LABEL),
        stores.databases.concerning(services, uses),
        concerned(services.spec_changes(), services, |target, service| peers::depends(service, target)),
        called(stores),
        // A host may have been claimed or given up, or its policy be another one.
        reaches
            .flat_map(|reach| iter(reach.services.iter().map(ServiceKey::reference).collect::<Vec<_>>()))
            .boxed(),
        stores.secrets.concerning(services, |secret, service| {
            is_local(secret, service)
                && (mentions(service, &Reference::Secret(secret.name_any())) || reads(service, secret))
        }),
        stores.config_maps.concerning(services, |map, service| {
            is_local(map, service) && mentions(service, &Reference::ConfigMap(map.name_any()))
        }),
        exposed(stores.auth_classes.spec_changes().map(drop).boxed()),
        // Of a policy that is gone it was told what it targeted.
        publications
            .changes()
            .flat_map(move |policy| {
                iter(policies.get(&policy).iter().flat_map(|p| targets(p)).collect::<Vec<_>>())
            })
            .map(|key| key.reference())
            .boxed(),
        exposed(stores.edge_classes.spec_changes().map(drop).boxed()),
        stores.system_endpoint_slices.concerning(services, move |slice, service| {
            is_exposed(service)
                && slice.labels().get(SLICE_SERVICE_LABEL).is_some_and(|name| {
                    *name == edge_errors || is_of_an_edge(&edge_classes.state(), slice, name)
                })
        }),
    ]
}

/// Whether the core Service `name` of `slice` is one at which an edge is asked.
fn is_of_an_edge(classes: &[Arc<EdgeClass>], slice: &EndpointSlice, name: &str) -> bool {
    let system = slice.namespace().unwrap_or_default();
    classes.iter().any(|class| edge_services(class, &system).contains(name))
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

/// Whether `secret` holds credentials of a Database that `service` binds.
fn reads(service: &Service, secret: &impl kube::Resource) -> bool {
    let label = secret.meta().labels.as_ref().and_then(|labels| labels.get(DATABASE_LABEL));
    label.is_some_and(|name| service.spec.databases.iter().any(|binding| binding.database == *name))
}

/// Services whose NetworkPolicy lists a changed Service of the namespace
/// although it does not call them any more, or the other way round.
fn called(stores: &Stores) -> BoxStream<'static, ObjectRef<Service>> {
    let policies = stores.network_policies.store().clone();
    let present = stores.services.store().clone();
    concerned(stores.services.spec_changes(), &stores.services, move |changed, service| {
        if !is_local(&**changed, service) || service.spec.access_mode() == AccessMode::Open {
            return false;
        }
        let live = present.get(&ObjectRef::from_obj(&**changed));
        let is_caller = live
            .is_some_and(|live| live.metadata.deletion_timestamp.is_none() && peers::depends(&live, service));
        let namespace = service.namespace().unwrap_or_default();
        let policy = policies.get(&ObjectRef::new(&service.name_any()).within(&namespace));
        policy.is_some_and(|policy| peers::lists(&policy, &changed.name_any())) != is_caller
    })
}
