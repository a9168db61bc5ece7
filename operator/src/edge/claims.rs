//! Which Service a host belongs to. Routes and policies ask the same function,
//! so that neither a route nor a rule exists for a host that is somebody else's.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::{ResourceExt, core::PartialObjectMeta, runtime::reflector::ObjectRef};
use peristyle_crds::{
    class::{self, ClassError},
    v1alpha1::{EdgeClass, Service, service::Expose},
};

use super::{
    standing::{Standing, Way},
    wanted::template,
};

/// A Service by namespace and name.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ServiceKey {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// The same, borrowed: what is asked of every Service at each change copies nothing.
pub type Names<'a> = (&'a str, &'a str);

/// Namespace and name of `service`.
#[must_use]
pub fn names(service: &Service) -> Names<'_> {
    let meta = &service.metadata;
    (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

impl ServiceKey {
    /// The key of `service`.
    #[must_use]
    pub fn of(service: &Service) -> Self {
        names(service).into()
    }

    /// The same, borrowed.
    #[must_use]
    pub fn names(&self) -> Names<'_> {
        (&self.namespace, &self.name)
    }

    /// The key as the queue of a controller wants it.
    #[must_use]
    pub fn reference(&self) -> ObjectRef<Service> {
        ObjectRef::new(&self.name).within(&self.namespace)
    }
}

impl From<Names<'_>> for ServiceKey {
    fn from((namespace, name): Names<'_>) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

/// Why a host cannot be served for a route.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// No class to serve it.
    #[error("{0}")]
    Class(ClassError),
    /// The class does not allow the host in this namespace.
    #[error(
        "host {host:?} is not allowed for namespace {namespace} by EdgeClass {class}; use a host under its hosts.allow or its template"
    )]
    NotAllowed {
        /// The host.
        host: String,
        /// Namespace of the Service.
        namespace: String,
        /// Name of the class.
        class: String,
    },
    /// Another Service has it. Its name is told only within the namespace.
    #[error("host {host:?} belongs to {}", owner.as_deref().unwrap_or("a Service in another namespace"))]
    Taken {
        /// The host.
        host: String,
        /// The owner, if the reader may know it.
        owner: Option<String>,
    },
    /// Routes of somebody who does not have it any more still stand. Calls would
    /// go to either, and be let in by the rules of the other.
    #[error("host {host:?} is still answered by {}", route.as_ref().map_or_else(
        || "a route in another namespace; wait until it is gone".to_owned(),
        |route| format!("IngressRoute {route} of another Service, or one that is gone; wait until it is gone, or delete it"),
    ))]
    Standing {
        /// The host.
        host: String,
        /// The route, if the reader may know it.
        route: Option<String>,
    },
}

/// A route's hosts and what is wrong with some of them.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Hosts {
    /// Name of the EdgeClass.
    pub class: String,
    /// Hosts that belong to this Service, sorted.
    pub granted: Vec<String>,
    /// Hosts that do not, and why.
    pub refused: Vec<Refusal>,
}

/// The owner of every claimed host, by class.
#[derive(Debug, Default)]
pub struct Claims<'a> {
    classes: Vec<&'a EdgeClass>,
    namespaces: HashMap<&'a str, BTreeMap<String, String>>,
    owners: HashMap<(String, String), ServiceKey>,
    standing: Standing,
}

impl<'a> Claims<'a> {
    /// [`Self::settle_held`] where no route stands yet.
    #[must_use]
    pub fn settle(
        services: impl IntoIterator<Item = &'a Service>,
        classes: impl IntoIterator<Item = &'a EdgeClass>,
        namespaces: impl IntoIterator<Item = &'a PartialObjectMeta<Namespace>>,
    ) -> Self {
        Self::settle_held(services, classes, namespaces, Standing::default())
    }

    /// Settles the claims of all Services. Who has a route for a host keeps it;
    /// else the oldest Service has it, of equals the one with the smaller UID.
    /// Nobody is granted a host before the routes of all others are gone.
    #[must_use]
    pub fn settle_held(
        services: impl IntoIterator<Item = &'a Service>,
        classes: impl IntoIterator<Item = &'a EdgeClass>,
        namespaces: impl IntoIterator<Item = &'a PartialObjectMeta<Namespace>>,
        standing: Standing,
    ) -> Self {
        let mut won: HashMap<(String, String), &Service> = HashMap::new();
        let mut claims = Self {
            classes: classes.into_iter().collect(),
            namespaces: namespaces
                .into_iter()
                .filter_map(|n| Some((n.metadata.name.as_deref()?, n.labels().clone())))
                .collect(),
            owners: HashMap::new(),
            standing,
        };
        let mut services: Vec<&Service> =
            services.into_iter().filter(|service| !service.spec.expose.is_empty()).collect();
        services.sort_by_key(|service| (created(service), service.uid()));
        for service in services {
            for expose in &service.spec.expose {
                let Ok((class, hosts)) = claims.wanted(service, expose) else {
                    continue;
                };
                for host in hosts {
                    if !claims.is_allowed(class, service, expose, &host) {
                        continue;
                    }
                    let key = (class.name_any(), host);
                    let holds = |service: &Service| claims.standing.is_held_by(&key.0, &key.1, service);
                    let is_won = match won.get(&key) {
                        None => true,
                        Some(owner) if ServiceKey::of(owner) == ServiceKey::of(service) => false,
                        Some(owner) => holds(service) && !holds(owner),
                    };
                    if is_won {
                        claims.owners.insert(key.clone(), ServiceKey::of(service));
                        won.insert(key, service);
                    }
                }
            }
        }
        claims
    }

    /// The class by its name.
    #[must_use]
    pub fn class(&self, name: &str) -> Option<&'a EdgeClass> {
        self.classes.iter().find(|class| class.name_any() == name).copied()
    }

    /// The hosts of one route of `service`, split into those that are its own
    /// and those that are refused.
    ///
    /// # Errors
    /// [`Refusal::Class`] when no class can be chosen.
    pub fn hosts(&self, service: &Service, expose: &Expose) -> Result<Hosts, Refusal> {
        let (class, wanted) = self.wanted(service, expose).map_err(Refusal::Class)?;
        let me = ServiceKey::of(service);
        let mut hosts = Hosts { class: class.name_any(), ..Hosts::default() };
        for host in wanted {
            if !self.is_allowed(class, service, expose, &host) {
                hosts.refused.push(Refusal::NotAllowed {
                    host,
                    namespace: me.namespace.clone(),
                    class: class.name_any(),
                });
                continue;
            }
            match self.owners.get(&(class.name_any(), host.clone())) {
                Some(owner) if *owner != me => hosts.refused.push(Refusal::Taken {
                    owner: (owner.namespace == me.namespace).then(|| format!("Service {}", owner.name)),
                    host,
                }),
                _ => match self.standing.before(&class.name_any(), &host, service) {
                    Some(Way { namespace, name, .. }) => hosts.refused.push(Refusal::Standing {
                        route: (*namespace == me.namespace).then(|| name.clone()),
                        host,
                    }),
                    None => hosts.granted.push(host),
                },
            }
        }
        hosts.granted.sort();
        hosts.granted.dedup();
        Ok(hosts)
    }

    fn wanted(&self, service: &Service, expose: &Expose) -> Result<(&'a EdgeClass, Vec<String>), ClassError> {
        let class = class::choose(self.classes.iter().copied(), expose.class_name.as_deref())?;
        let hosts = if expose.hosts.is_empty() {
            vec![template(&class.spec, names(service))]
        } else {
            expose.hosts.clone()
        };
        Ok((class, hosts))
    }

    fn is_allowed(&self, class: &EdgeClass, service: &Service, expose: &Expose, host: &str) -> bool {
        if expose.hosts.is_empty() || host == template(&class.spec, names(service)) {
            return true;
        }
        let labels = self.namespaces.get(service.namespace().unwrap_or_default().as_str());
        class.spec.hosts.allow.iter().any(|allow| {
            let selected = labels.is_some_and(|labels| {
                allow
                    .namespaces
                    .selector
                    .match_labels
                    .iter()
                    .all(|(key, value)| labels.get(key) == Some(value))
            });
            selected
                && allow.suffixes.iter().any(|suffix| {
                    host == suffix
                        || host.strip_suffix(suffix.as_str()).is_some_and(|rest| rest.ends_with('.'))
                })
        })
    }
}

fn created(service: &Service) -> Timestamp {
    service.creation_timestamp().map_or(Timestamp::MAX, |time| time.0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::edge::traefik::objects::IngressRoute;

    fn class() -> EdgeClass {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "public", "annotations": {"peristyle.dev/is-default-class": "true"}},
            "spec": {"provider": "Traefik", "traefik": {"entryPoints": ["web"]}, "hosts": {
                "template": "{service}.{namespace}.example.com",
                "allow": [{"namespaces": {"selector": {"matchLabels": {"tier": "shop"}}}, "suffixes": ["shop.test"]}]
            }}
        }))
        .unwrap()
    }

    fn service(namespace: &str, name: &str, created: &str, hosts: &[&str]) -> Service {
        serde_json::from_value(serde_json::json!({
            "metadata": {"namespace": namespace, "name": name, "uid": format!("{namespace}-{name}"), "creationTimestamp": created},
            "spec": {"image": "x", "expose": [{"name": "public", "hosts": hosts}]}
        }))
        .unwrap()
    }

    fn namespace(name: &str, tier: &str) -> PartialObjectMeta<Namespace> {
        serde_json::from_value(serde_json::json!({"metadata": {"name": name, "labels": {"tier": tier}}}))
            .unwrap()
    }

    fn hosts(services: &[Service], index: usize) -> Hosts {
        let (classes, namespaces) = ([class()], [namespace("a", "shop"), namespace("b", "other")]);
        let claims = Claims::settle(services, &classes, &namespaces);
        claims.hosts(&services[index], &services[index].spec.expose[0]).unwrap()
    }

    #[test]
    fn without_hosts_the_template_names_one() {
        assert_eq!(hosts(&[service("b", "x", "2026-01-01T00:00:00Z", &[])], 0).granted, ["x.b.example.com"]);
    }

    #[test]
    fn the_older_service_keeps_the_host_and_the_loser_learns_no_foreign_name() {
        let services = [
            service("a", "late", "2026-01-02T00:00:00Z", &["w.shop.test"]),
            service("a", "early", "2026-01-01T00:00:00Z", &["w.shop.test"]),
        ];
        assert_eq!(hosts(&services, 1).granted, ["w.shop.test"]);
        let refused = hosts(&services, 0).refused;
        assert_eq!(refused[0].to_string(), "host \"w.shop.test\" belongs to Service early");
        assert!(hosts(&services, 0).granted.is_empty());
    }

    fn fence(uid: &str, namespace: &str) -> Arc<IngressRoute> {
        Arc::new(
            serde_json::from_value(serde_json::json!({
                "metadata": {
                    "namespace": namespace, "name": "f", "labels": {"peristyle.dev/edge": "public"},
                    "ownerReferences": [{"apiVersion": "peristyle.dev/v1alpha1", "kind": "Service", "name": "x", "uid": uid, "controller": true}]
                },
                "spec": {"routes": [{"match": "Host(`w.shop.test`)"}]}
            }))
            .unwrap(),
        )
    }

    /// Names of those that are granted `w.shop.test` while these routes stand.
    fn owners(services: &[Service], routes: &[Arc<IngressRoute>]) -> String {
        let (classes, namespaces) = ([class()], [namespace("a", "shop")]);
        let claims = Claims::settle_held(services, &classes, &namespaces, Standing::of(routes));
        let granted =
            |service: &&Service| !claims.hosts(service, &service.spec.expose[0]).unwrap().granted.is_empty();
        let owners: Vec<String> = services.iter().filter(granted).map(ResourceExt::name_any).collect();
        owners.join(" ")
    }

    #[test]
    fn an_older_service_cannot_take_a_host_that_is_held() {
        let services = [
            service("a", "held", "2026-01-02T00:00:00Z", &["w.shop.test"]),
            service("a", "older", "2026-01-01T00:00:00Z", &["w.shop.test"]),
            service("a", "oldest", "2025-01-01T00:00:00Z", &["w.shop.test"]),
        ];
        let owner = |holder: &str| owners(&services, &[fence(&format!("a-{holder}"), "a")]);
        assert_eq!([owner("held"), owner("older")], ["held", "older"]);
        assert_eq!(owners(&services, &[]), "oldest");
    }

    #[test]
    fn nobody_gets_a_host_before_the_routes_of_who_had_it_are_gone() {
        let services = [
            service("a", "heir", "2026-01-02T00:00:00Z", &["w.shop.test"]),
            service("a", "moved", "2026-01-01T00:00:00Z", &["other.shop.test"]),
        ];
        let heir = |routes: &[Arc<IngressRoute>]| owners(&services[..1], routes);
        assert_eq!(heir(&[]), "heir");
        assert_eq!(heir(&[fence("a-heir", "a")]), "heir");
        assert_eq!(heir(&[fence("of the one before", "a")]), "", "deleted, and not collected yet");
        assert_eq!(heir(&[fence("a-heir", "a"), fence("of the one before", "a")]), "");
        assert_eq!(owners(&services, &[fence("a-moved", "a")]), "moved", "which has not given it up yet");
        let mut orphan = IngressRoute::clone(&fence("", "b"));
        orphan.metadata.owner_references = None;
        assert_eq!(heir(&[Arc::new(orphan.clone())]), "", "it has lost its owner");

        let (classes, namespaces) = ([class()], [namespace("a", "shop")]);
        let message = |route: IngressRoute| {
            let standing = Standing::of(&[Arc::new(route)]);
            let claims = Claims::settle_held(&services, &classes, &namespaces, standing);
            claims.hosts(&services[0], &services[0].spec.expose[0]).unwrap().refused[0].to_string()
        };
        assert_eq!(
            message(orphan.clone()),
            "host \"w.shop.test\" is still answered by a route in another namespace; wait until it is gone"
        );
        orphan.metadata.namespace = Some("a".to_owned());
        assert!(message(orphan).contains("IngressRoute f "), "its own namespace may know");
    }

    #[test]
    fn a_host_outside_the_allowance_is_refused_and_claims_nothing() {
        let services = [
            service("b", "thief", "2026-01-01T00:00:00Z", &["w.shop.test"]),
            service("a", "owner", "2026-01-02T00:00:00Z", &["w.shop.test", "evilshop.test"]),
        ];
        assert!(matches!(hosts(&services, 0).refused[0], Refusal::NotAllowed { .. }));
        assert_eq!(hosts(&services, 1).granted, ["w.shop.test"]);
        assert!(
            matches!(&hosts(&services, 1).refused[0], Refusal::NotAllowed { host, .. } if host == "evilshop.test")
        );
    }

    #[test]
    fn the_template_host_of_another_service_cannot_be_claimed() {
        let services = [
            service("a", "thief", "2026-01-01T00:00:00Z", &["victim.b.example.com"]),
            service("b", "victim", "2026-01-02T00:00:00Z", &[]),
        ];
        assert!(matches!(hosts(&services, 0).refused[0], Refusal::NotAllowed { .. }));
        assert_eq!(hosts(&services, 1).granted, ["victim.b.example.com"]);
    }
}
