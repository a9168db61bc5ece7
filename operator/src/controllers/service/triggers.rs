//! What makes the operator look at a Service again, besides its own changes.

use std::{collections::BTreeSet, sync::Arc};

use futures::{
    StreamExt,
    stream::{BoxStream, iter},
};
use k8s_openapi::api::{core::v1::Secret, discovery::v1::EndpointSlice};
use kube::{ResourceExt, core::PartialObjectMeta, runtime::reflector::ObjectRef};
use peristyle_crds::{
    names::{DATABASE_LABEL, SERVICE_LABEL},
    v1alpha1::{EdgeClass, Service},
};

use super::{evidence::edge_services, named, observe::SLICE_SERVICE_LABEL};
use crate::{
    auth::{publications::Publications, reach::targets},
    controllers::Reaches,
    edge::claims::ServiceKey,
    stores::Stores,
    watch::{Cached, Watched, concerned},
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
        naming(stores.databases.changes(), services),
        naming(services.spec_changes(), services),
        called(services),
        // A host may have been claimed or given up, or its policy be another one.
        reaches
            .flat_map(|reach| iter(reach.services.iter().map(ServiceKey::reference).collect::<Vec<_>>()))
            .boxed(),
        naming(stores.secrets.changes(), services),
        holding_credentials(stores),
        naming(stores.config_maps.changes(), services),
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

fn is_exposed(service: &Service) -> bool {
    !service.spec.expose.is_empty()
}

/// Services that name a changed object.
fn naming<K: Cached>(
    changes: BoxStream<'static, Arc<K>>,
    services: &Watched<Service>,
) -> BoxStream<'static, ObjectRef<Service>> {
    let services = services.clone();
    let naming = move |object: Arc<K>| iter(references(&services.by(&named::naming(&*object))));
    changes.flat_map(naming).boxed()
}

/// Services that bind the Database whose credentials a changed Secret holds.
fn holding_credentials(stores: &Stores) -> BoxStream<'static, ObjectRef<Service>> {
    let services = stores.services.clone();
    let binding = move |secret: Arc<PartialObjectMeta<Secret>>| {
        let namespace = secret.namespace().unwrap_or_default();
        let database = secret.labels().get(DATABASE_LABEL);
        let found = database.map(|database| services.by(&named::bound(&namespace, database)));
        iter(references(&found.unwrap_or_default()))
    };
    stores.secrets.changes().flat_map(binding).boxed()
}

/// Services that another one of their namespace begins or ceases to call: their
/// NetworkPolicy lists it.
fn called(services: &Watched<Service>) -> BoxStream<'static, ObjectRef<Service>> {
    let calls = |service: &Service| {
        let is_leaving = service.metadata.deletion_timestamp.is_some();
        if is_leaving { BTreeSet::new() } else { named::dependencies(service) }
    };
    let news = services.news(calls).map(|(caller, calls)| {
        let mut targets: Vec<ServiceKey> = match &calls[..] {
            [before, now] => before.symmetric_difference(now).cloned().collect(),
            one => one.iter().flatten().cloned().collect(),
        };
        targets.retain(|target| Some(&target.namespace) == caller.metadata.namespace.as_ref());
        targets
    });
    news.flat_map(iter).map(|target| target.reference()).boxed()
}

fn references(services: &[Arc<Service>]) -> Vec<ObjectRef<Service>> {
    services.iter().map(|service| ObjectRef::from_obj(&**service)).collect()
}
