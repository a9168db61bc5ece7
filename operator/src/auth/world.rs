//! Everything that decides what a policy governs, seen at one moment.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::Arc,
};

use k8s_openapi::api::core::v1::Namespace;
use kube::{ResourceExt, core::PartialObjectMeta};
use peristyle_crds::{
    class,
    condition::Reason,
    v1alpha1::{
        AuthClass, AuthPolicy, EdgeClass, Service,
        auth_policy::Target,
        service::{AuthMode, Expose},
    },
};

use super::{
    key::{PolicyKey, age},
    reach::{aimed_at, asking, asks_for_relations},
    rejection::Rejection,
    relations::{Namespaces, Refusals},
};
use crate::{
    edge::{
        claims::{Claims, Names, ServiceKey, names},
        standing::{self, Standing},
        traefik::objects::IngressRoute,
        wanted,
    },
    stores::Stores,
};

/// A copy of the caches; cheap, the objects are shared.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// AuthPolicies.
    pub policies: Vec<Arc<AuthPolicy>>,
    /// AuthClasses.
    pub classes: Vec<Arc<AuthClass>>,
    /// Services.
    pub services: Vec<Arc<Service>>,
    /// EdgeClasses.
    pub edge_classes: Vec<Arc<EdgeClass>>,
    /// Namespaces, for their labels.
    pub namespaces: Vec<Arc<PartialObjectMeta<Namespace>>>,
    /// Routes that stand.
    pub routes: Vec<Arc<IngressRoute>>,
}

impl Snapshot {
    /// What the caches hold now.
    #[must_use]
    pub fn take(stores: &Stores) -> Self {
        Self {
            policies: stores.auth_policies.store().state(),
            classes: stores.auth_classes.store().state(),
            services: stores.services.store().state(),
            edge_classes: stores.edge_classes.store().state(),
            namespaces: stores.namespaces.store().state(),
            routes: stores.ingress_routes.store().state(),
        }
    }

    /// What decides about these Services and about the policies that target
    /// them, and little else. About nobody else may it be asked.
    ///
    /// A policy is accepted for all of its targets or for none, and a host goes
    /// to one of all who ask for it, whose policies decide which of them governs it.
    #[must_use]
    pub fn around<'a>(&'a self, services: impl IntoIterator<Item = Names<'a>>) -> Self {
        let mut near: HashSet<Names> = services.into_iter().collect();
        let aims_near =
            |policy: &AuthPolicy, near: &HashSet<Names>| aimed_at(policy).any(|aim| near.contains(&aim));
        let theirs: Vec<_> = self.policies.iter().filter(|policy| aims_near(policy, &near)).collect();
        near.extend(theirs.iter().flat_map(|policy| aimed_at(policy)));
        let ask_for_relations = theirs.iter().any(|policy| asks_for_relations(policy));
        let exposing = self.services.iter().filter(|service| near.contains(&names(service)));
        let hosts: BTreeSet<String> = exposing
            .flat_map(|service| wanted::hosts(&self.edge_classes, names(service), &service.spec.expose))
            .collect();
        near.extend(asking(&hosts, &self.edge_classes, &self.services));

        let is_near = |policy: &AuthPolicy| {
            (ask_for_relations && policy.spec.relations.is_some()) || aims_near(policy, &near)
        };
        let namespaces: HashSet<&str> = near.iter().map(|(namespace, _)| *namespace).collect();
        Self {
            policies: chosen(&self.policies, is_near),
            classes: self.classes.clone(),
            services: chosen(&self.services, |service| near.contains(&names(service))),
            edge_classes: self.edge_classes.clone(),
            namespaces: chosen(&self.namespaces, |namespace| {
                namespace.metadata.name.as_deref().is_some_and(|name| namespaces.contains(name))
            }),
            routes: chosen(&self.routes, |route| standing::hosts(route).any(|host| hosts.contains(host))),
        }
    }

    /// The owner of every host.
    #[must_use]
    pub fn claims(&self) -> Claims<'_> {
        Claims::settle_held(
            self.services.iter().map(|o| &**o),
            self.edge_classes.iter().map(|o| &**o),
            self.namespaces.iter().map(|o| &**o),
            Standing::of(&self.routes),
        )
    }

    /// The world of these objects.
    #[must_use]
    pub fn world<'a>(&'a self, claims: &'a Claims<'a>) -> World<'a> {
        World::new(
            self.policies.iter().map(|o| &**o),
            self.classes.iter().map(|o| &**o),
            self.services.iter().map(|o| &**o),
            claims,
        )
    }
}

fn chosen<K>(of: &[Arc<K>], is_chosen: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
    of.iter().filter(|object| is_chosen(object)).cloned().collect()
}

/// What a policy governs.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Territory {
    /// Hosts that belong to the targeted Services.
    pub hosts: BTreeSet<String>,
    /// The Services behind each host: one for each EdgeClass that serves it.
    pub behind: BTreeMap<String, BTreeSet<String>>,
    /// Those of them whose EdgeClass can be asked for proof.
    pub probed: BTreeSet<String>,
    /// Targets that do not exist.
    pub missing: Vec<String>,
    /// Targeted routes, whether or not a host belongs to them.
    pub routes: usize,
}

/// Policies with the classes, Services and hosts around them.
pub struct World<'a> {
    /// Oldest first.
    policies: Vec<&'a AuthPolicy>,
    classes: Vec<&'a AuthClass>,
    services: HashMap<ServiceKey, &'a Service>,
    claims: &'a Claims<'a>,
    /// The oldest policy that targets each host. Two policies for one host
    /// would be two rules for one request, which Oathkeeper answers with 500;
    /// it does not see EdgeClasses, hence one owner over all of them.
    governors: HashMap<String, PolicyKey>,
}

impl<'a> World<'a> {
    /// Settles which policy governs which host. A policy that is being deleted
    /// governs nothing; an invalid one keeps its hosts closed.
    #[must_use]
    pub fn new(
        policies: impl IntoIterator<Item = &'a AuthPolicy>,
        classes: impl IntoIterator<Item = &'a AuthClass>,
        services: impl IntoIterator<Item = &'a Service>,
        claims: &'a Claims<'a>,
    ) -> Self {
        let mut policies: Vec<&AuthPolicy> =
            policies.into_iter().filter(|policy| policy.metadata.deletion_timestamp.is_none()).collect();
        policies.sort_by_cached_key(|policy| age(policy));
        let mut world = Self {
            policies,
            classes: classes.into_iter().collect(),
            services: services.into_iter().map(|s| (ServiceKey::of(s), s)).collect(),
            claims,
            governors: HashMap::new(),
        };
        for policy in world.policies.clone() {
            for host in world.territory(policy).hosts {
                world.governors.entry(host).or_insert_with(|| PolicyKey::of(policy));
            }
        }
        world
    }

    /// All policies, oldest first.
    #[must_use]
    pub fn policies(&self) -> &[&'a AuthPolicy] {
        &self.policies
    }

    /// The class of `policy`.
    ///
    /// # Errors
    /// When no class can be chosen.
    pub fn class(&self, policy: &AuthPolicy) -> Result<&'a AuthClass, Rejection> {
        self.class_named(policy.spec.class_name.as_deref())
    }

    /// The class called `name`, without a name the default one.
    ///
    /// # Errors
    /// When no class can be chosen.
    pub fn class_named(&self, name: Option<&str>) -> Result<&'a AuthClass, Rejection> {
        Ok(class::choose(self.classes.iter().copied(), name)?)
    }

    /// Whether the Service of that name is the one with this UID.
    #[must_use]
    pub fn has(&self, service: &ServiceKey, uid: &str) -> bool {
        self.services.get(service).is_some_and(|service| service.metadata.uid.as_deref() == Some(uid))
    }

    /// The policies of `class`, oldest first.
    pub fn of_class(&self, class: &AuthClass) -> impl Iterator<Item = &'a AuthPolicy> {
        let uid = class.uid();
        self.policies
            .iter()
            .copied()
            .filter(move |policy| self.class(policy).is_ok_and(|class| class.uid() == uid))
    }

    /// The namespaces of the models of `class`.
    #[must_use]
    pub fn namespaces(&self, class: &AuthClass, refusals: &Refusals) -> Namespaces {
        Namespaces::settle(self.of_class(class), refusals)
    }

    /// What `policy` targets, whoever governs it.
    #[must_use]
    pub fn territory(&self, policy: &AuthPolicy) -> Territory {
        let mut territory = Territory::default();
        for target in &policy.spec.targets {
            let key = ServiceKey {
                namespace: policy.namespace().unwrap_or_default(),
                name: target.service.clone(),
            };
            let Some(service) = self.services.get(&key) else {
                territory.missing.push(format!("Service {}", target.service));
                continue;
            };
            if let Some(name) = &target.expose
                && !service.spec.expose.iter().any(|expose| expose.name == *name)
            {
                territory.missing.push(format!("expose {name} of Service {}", target.service));
            }
            for expose in service.spec.expose.iter().filter(|expose| aims(target, expose)) {
                territory.routes += 1;
                if let Ok(hosts) = self.claims.hosts(service, expose) {
                    if self.claims.class(&hosts.class).is_some_and(|class| class.spec.probe.is_some()) {
                        territory.probed.extend(hosts.granted.iter().cloned());
                    }
                    for host in &hosts.granted {
                        territory.behind.entry(host.clone()).or_default().insert(target.service.clone());
                    }
                    territory.hosts.extend(hosts.granted);
                }
            }
        }
        territory
    }

    /// The oldest policy that targets the route.
    #[must_use]
    pub fn targeting(&self, service: &Service, expose: &Expose) -> Option<&'a AuthPolicy> {
        let name = service.name_any();
        self.policies.iter().copied().find(|policy| {
            policy.namespace() == service.namespace()
                && policy.spec.targets.iter().any(|target| target.service == name && aims(target, expose))
        })
    }

    /// Checks that `policy` may govern all of `territory`.
    ///
    /// # Errors
    /// When nothing of it exists, an older policy governs a host, or it names a
    /// route that is open to everyone.
    pub fn admit(&self, policy: &AuthPolicy, territory: &Territory) -> Result<(), Rejection> {
        let me = PolicyKey::of(policy);
        for (index, target) in policy.spec.targets.iter().enumerate() {
            let key = ServiceKey { namespace: me.namespace.clone(), name: target.service.clone() };
            let exposes = self.services.get(&key).map_or(&[][..], |s| s.spec.expose.as_slice());
            if exposes.iter().any(|expose| {
                target.expose.as_deref() == Some(expose.name.as_str())
                    && expose.auth_mode() == AuthMode::Public
            }) {
                return Err(Rejection::invalid(format!(
                    "spec.targets[{index}].expose: {:?} of Service {} is Public; remove the target or set its auth.mode to Required",
                    target.expose.as_deref().unwrap_or_default(),
                    target.service
                )));
            }
        }
        if let Some((host, governor)) = territory
            .hosts
            .iter()
            .filter_map(|host| Some((host, self.governors.get(host)?)))
            .find(|(_, governor)| **governor != me)
        {
            return Err(Rejection::stalled(
                Reason::Conflicted,
                format!(
                    "spec.targets: host {host:?} is governed by {}, which is older; remove the target from one of the two",
                    governor.told_to(&me)
                ),
            ));
        }
        if territory.routes == 0 && !territory.missing.is_empty() {
            return Err(Rejection::waiting(Reason::TargetNotFound, territory.not_found()));
        }
        Ok(())
    }
}

impl Territory {
    /// Says which targets do not exist.
    #[must_use]
    pub fn not_found(&self) -> String {
        format!("spec.targets: {} not found in this namespace", self.missing.join(", "))
    }
}

/// Whether `target`, which names the Service, means this route of it.
fn aims(target: &Target, expose: &Expose) -> bool {
    expose.auth_mode() == AuthMode::Required
        && target.expose.as_deref().is_none_or(|name| name == expose.name)
}
