//! Routes as objects of Traefik 3.6.
//!
//! A parent IngressRoute carries the middlewares and has no service; children
//! hang on exactly that parent. Traefik drops a router whose middleware,
//! Service or parent is missing and lets the next match answer: so below the
//! routers with a middleware stands a fence, which matches what all of them do
//! and refuses. One child matches everything, so that a parent is never without
//! children.

pub mod build;
pub mod objects;
pub mod readback;
pub mod rule;

use kube::ResourceExt;
use peristyle_crds::names::{EDGE_LABEL, POLICY_HASH_ANNOTATION};

use crate::edge::route::Guard;
use objects::{IngressRoute, Middleware, Router, ServersTransport};

/// What Traefik needs for the routes of one Service.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edge {
    /// Timeouts towards the error backend.
    pub transports: Vec<ServersTransport>,
    /// Protection, gRPC-shaped errors, removal of headers.
    pub middlewares: Vec<Middleware>,
    /// What refuses when a parent is not there.
    pub fences: Vec<IngressRoute>,
    /// The ways to the workload, and what answers other paths.
    pub children: Vec<IngressRoute>,
    /// The only ways in.
    pub parents: Vec<IngressRoute>,
    /// Whether a route is withheld only because it is not known yet what
    /// protects it: what it needs besides ways in is kept meanwhile.
    pub is_provisional: bool,
}

impl Edge {
    /// Every IngressRoute in the order in which they are published: what
    /// refuses before what lets in.
    pub fn routes(&self) -> impl Iterator<Item = &IngressRoute> {
        self.fences.iter().chain(&self.children).chain(&self.parents)
    }

    /// Adds the objects of another route.
    pub fn extend(&mut self, other: Self) {
        let Self { transports, middlewares, fences, children, parents, is_provisional } = other;
        self.transports.extend(transports);
        self.middlewares.extend(middlewares);
        self.fences.extend(fences);
        self.children.extend(children);
        self.parents.extend(parents);
        self.is_provisional |= is_provisional;
    }

    /// Whether `live` may let in requests that the rendered routes would not:
    /// it is not rendered at all, hangs elsewhere, leads elsewhere, matches
    /// more, or lacks a middleware that its rendered form passes. Such a route
    /// is withdrawn before anything else is done.
    #[must_use]
    pub fn is_stricter_than(&self, live: &IngressRoute) -> bool {
        let Some(wanted) = self.routes().find(|route| route.name_any() == live.name_any()) else {
            return true;
        };
        if wanted.spec.parent_refs != live.spec.parent_refs {
            return true;
        }
        let Some(first) = wanted.spec.routes.first() else {
            return true;
        };
        // Routers of a root all lead to the same, and nothing stands before them.
        let is_root = wanted.spec.parent_refs.is_empty();
        // A fence leads to a refusal: one that matches more only refuses more.
        let is_way_in = is_root && first.services.is_empty();
        if is_way_in && is_wider(live, wanted) {
            return true;
        }
        is_root && live.spec.routes.iter().any(|router| router.services != first.services)
    }
}

/// Whether `live` is loaded by another edge, listens elsewhere, or lets in what
/// `wanted` does not: other requests, or the same past fewer middlewares.
fn is_wider(live: &IngressRoute, wanted: &IngressRoute) -> bool {
    let (here, there) = (&live.spec, &wanted.spec);
    // Rules narrow the host by one condition after the other.
    let covers = |wide: &str, rule: &str| {
        rule.strip_prefix(wide).is_some_and(|rest| rest.is_empty() || rest.starts_with(" && "))
    };
    let is_wanted = |router: &Router| {
        there.routes.iter().any(|kept| {
            covers(&kept.rule, &router.rule)
                && kept.middlewares.iter().all(|middleware| router.middlewares.contains(middleware))
        })
    };
    live.labels().get(EDGE_LABEL) != wanted.labels().get(EDGE_LABEL)
        || !here.entry_points.iter().all(|point| there.entry_points.contains(point))
        || !here.routes.iter().all(is_wanted)
}

/// What protects the route whose objects are `parent` and `authn`, if that is
/// a decision service.
#[must_use]
pub fn guard(parent: &IngressRoute, authn: &Middleware) -> Option<Guard> {
    let hash = parent.annotations().get(POLICY_HASH_ANNOTATION)?.clone();
    let decisions_url = authn.spec.forward_auth.as_ref()?.address.clone();
    let name = authn.name_any();
    let is_everywhere =
        parent.spec.routes.iter().all(|router| router.middlewares.iter().any(|m| m.name == name));
    is_everywhere.then_some(Guard::Decided { decisions_url, hash })
}
