//! Which routes stand at the edge: what answers a host, whoever it belongs to.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use futures::{StreamExt, stream::BoxStream};
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use peristyle_crds::{names::EDGE_LABEL, v1alpha1::Service};

use super::traefik::{objects::IngressRoute, rule::Rule};
use crate::stores::Stores;

/// A way in for a host: a fence or a parent.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Way {
    /// UID of its controller; `None` when it has none any more.
    pub uid: Option<String>,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Every way in, by EdgeClass and host.
#[derive(Clone, Debug, Default)]
pub struct Standing(HashMap<String, HashMap<String, Vec<Way>>>);

impl Standing {
    /// The ways in among `routes`.
    #[must_use]
    pub fn of(routes: &[Arc<IngressRoute>]) -> Self {
        let mut standing = Self::default();
        for route in routes {
            let Some(class) = route.labels().get(EDGE_LABEL) else {
                continue;
            };
            for host in hosts(route) {
                let ways = standing.0.entry(class.clone()).or_default().entry(host.to_owned()).or_default();
                ways.push(Way {
                    uid: controller(route).map(ToOwned::to_owned),
                    namespace: route.namespace().unwrap_or_default(),
                    name: route.name_any(),
                });
            }
        }
        standing
    }

    /// Whether `service` has a way in for `host`: its fence at least, which
    /// stands as long as the host is granted, even while nobody is let in.
    #[must_use]
    pub fn is_held_by(&self, class: &str, host: &str, service: &Service) -> bool {
        let uid = service.uid();
        uid.is_some() && self.ways(class, host).iter().any(|way| way.uid == uid)
    }

    /// A way in for `host` that is not one of `service`.
    #[must_use]
    pub fn before(&self, class: &str, host: &str, service: &Service) -> Option<&Way> {
        let uid = service.uid();
        self.ways(class, host).iter().find(|way| way.uid.is_none() || way.uid != uid)
    }

    fn ways(&self, class: &str, host: &str) -> &[Way] {
        self.0.get(class).and_then(|hosts| hosts.get(host)).map_or(&[], Vec::as_slice)
    }
}

/// The hosts that `route` is a way in for, each once; none of what hangs on another.
fn hosts(route: &IngressRoute) -> HashSet<&str> {
    let is_root = route.spec.parent_refs.is_empty();
    route.spec.routes.iter().filter(|_| is_root).filter_map(|router| Rule::host_in(&router.rule)).collect()
}

fn controller(route: &IngressRoute) -> Option<&str> {
    let mut owners = route.owner_references().iter();
    owners.find(|owner| owner.controller == Some(true)).map(|owner| owner.uid.as_str())
}

/// An event for each Service that comes, goes or is exposed in another way: what
/// hosts and policies depend on. Most changes of a Service are none.
#[must_use]
pub fn claimed(stores: &Stores) -> BoxStream<'static, ()> {
    let present = stores.services.store().clone();
    let mut seen = HashMap::new();
    let news = move |service: Arc<Service>| {
        let reference = ObjectRef::from_obj(&*service);
        let is_news = if present.get(&reference).is_none() {
            seen.remove(&reference);
            true
        } else {
            let is_leaving = service.metadata.deletion_timestamp.is_some();
            let mark = (service.uid(), is_leaving, service.spec.expose.clone());
            seen.insert(reference, mark.clone()) != Some(mark)
        };
        std::future::ready(is_news.then_some(()))
    };
    stores.services.changes().filter_map(news).boxed()
}

/// The hosts of each way in that is gone from now on: they may pass to another.
#[must_use]
pub fn freed(stores: &Stores) -> BoxStream<'static, Vec<String>> {
    let present = stores.ingress_routes.store().clone();
    let gone = move |route: Arc<IngressRoute>| {
        let is_gone = present.get(&ObjectRef::from_obj(&*route)).is_none();
        let hosts: Vec<String> = hosts(&route).into_iter().map(ToOwned::to_owned).collect();
        std::future::ready((is_gone && !hosts.is_empty()).then_some(hosts))
    };
    stores.ingress_routes.changes().filter_map(gone).boxed()
}
