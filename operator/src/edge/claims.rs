//! Which Service a host belongs to. Routes and policies ask the same function,
//! so that neither a route nor a rule exists for a host that is somebody else's.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::{ResourceExt, core::PartialObjectMeta};
use peristyle_crds::{
    class::{self, ClassError},
    v1alpha1::{EdgeClass, EdgeClassSpec, Service, service::Expose},
};

/// A Service by namespace and name.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ServiceKey {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ServiceKey {
    /// The key of `service`.
    #[must_use]
    pub fn of(service: &Service) -> Self {
        Self { namespace: service.namespace().unwrap_or_default(), name: service.name_any() }
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
}

impl<'a> Claims<'a> {
    /// [`Self::settle_held`] where nobody holds a host yet.
    #[must_use]
    pub fn settle(
        services: impl IntoIterator<Item = &'a Service>,
        classes: impl IntoIterator<Item = &'a EdgeClass>,
        namespaces: impl IntoIterator<Item = &'a PartialObjectMeta<Namespace>>,
    ) -> Self {
        Self::settle_held(services, classes, namespaces, |_, _, _| false)
    }

    /// Settles the claims of all Services. Who holds a host keeps it; else the
    /// oldest Service has it, of equals the one with the smaller UID. `holds`:
    /// whether a route of the Service for the host exists. It is asked of
    /// contested hosts only.
    #[must_use]
    pub fn settle_held(
        services: impl IntoIterator<Item = &'a Service>,
        classes: impl IntoIterator<Item = &'a EdgeClass>,
        namespaces: impl IntoIterator<Item = &'a PartialObjectMeta<Namespace>>,
        holds: impl Fn(&Service, &Expose, &str) -> bool,
    ) -> Self {
        // The claim that each owner won by, to ask whether it holds.
        let mut won: HashMap<(String, String), (&Service, &Expose)> = HashMap::new();
        let mut claims = Self {
            classes: classes.into_iter().collect(),
            namespaces: namespaces
                .into_iter()
                .filter_map(|n| Some((n.metadata.name.as_deref()?, n.labels().clone())))
                .collect(),
            owners: HashMap::new(),
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
                    let is_won = match won.get(&key) {
                        None => true,
                        Some((owner, _)) if ServiceKey::of(owner) == ServiceKey::of(service) => false,
                        Some((owner, claim)) => {
                            holds(service, expose, &key.1) && !holds(owner, claim, &key.1)
                        }
                    };
                    if is_won {
                        claims.owners.insert(key.clone(), ServiceKey::of(service));
                        won.insert(key, (service, expose));
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
                _ => hosts.granted.push(host),
            }
        }
        hosts.granted.sort();
        hosts.granted.dedup();
        Ok(hosts)
    }

    fn wanted(&self, service: &Service, expose: &Expose) -> Result<(&'a EdgeClass, Vec<String>), ClassError> {
        let class = class::choose(self.classes.iter().copied(), expose.class_name.as_deref())?;
        let hosts =
            if expose.hosts.is_empty() { vec![template(&class.spec, service)] } else { expose.hosts.clone() };
        Ok((class, hosts))
    }

    fn is_allowed(&self, class: &EdgeClass, service: &Service, expose: &Expose, host: &str) -> bool {
        if expose.hosts.is_empty() || host == template(&class.spec, service) {
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

fn template(class: &EdgeClassSpec, service: &Service) -> String {
    class
        .hosts
        .template
        .replace("{service}", &service.name_any())
        .replace("{namespace}", &service.namespace().unwrap_or_default())
}

fn created(service: &Service) -> Timestamp {
    service.creation_timestamp().map_or(Timestamp::MAX, |time| time.0)
}

#[cfg(test)]
mod tests {
    use super::*;

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

    #[test]
    fn an_older_service_cannot_take_a_host_that_is_held() {
        let services = [
            service("a", "held", "2026-01-02T00:00:00Z", &["w.shop.test"]),
            service("a", "older", "2026-01-01T00:00:00Z", &["w.shop.test"]),
            service("a", "oldest", "2025-01-01T00:00:00Z", &["w.shop.test"]),
        ];
        let (classes, namespaces) = ([class()], [namespace("a", "shop")]);
        let owner = |holder: &str| {
            let holds = |service: &Service, _: &Expose, _: &str| service.name_any() == holder;
            let claims = Claims::settle_held(&services, &classes, &namespaces, holds);
            let granted = |service: &&Service| {
                !claims.hosts(service, &service.spec.expose[0]).unwrap().granted.is_empty()
            };
            let owners: Vec<String> = services.iter().filter(granted).map(ResourceExt::name_any).collect();
            owners.join(" ")
        };
        assert_eq!([owner("held"), owner("older"), owner("nobody")], ["held", "older", "oldest"]);
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
