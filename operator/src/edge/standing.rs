//! Which routes stand at the edge: what answers a host, whoever it belongs to.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use kube::ResourceExt;
use peristyle_crds::{names::EDGE_LABEL, v1alpha1::Service};

use super::traefik::{objects::IngressRoute, rule::Rule};
use crate::metadata;

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
            // Several routers of one object match the same host.
            for host in hosts(route).collect::<HashSet<_>>() {
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

/// The hosts that `route` is a way in for; none of what hangs on another.
pub fn hosts(route: &IngressRoute) -> impl Iterator<Item = &str> {
    let is_root = route.spec.parent_refs.is_empty();
    route.spec.routes.iter().filter(move |_| is_root).filter_map(|router| Rule::host_in(&router.rule))
}

fn controller(route: &IngressRoute) -> Option<&str> {
    metadata::controller(route).map(|owner| owner.uid.as_str())
}
