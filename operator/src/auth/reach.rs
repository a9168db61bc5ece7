//! How far a change reaches: whose hosts, rules or routes may be decided in
//! another way since then. Whatever is not named here is decided as before.

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use futures::{
    StreamExt,
    stream::{BoxStream, select_all},
};
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use peristyle_crds::v1alpha1::{AuthPolicy, EdgeClass, Service, service::Expose};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::key::PolicyKey;
use crate::{
    edge::{
        claims::{Names, ServiceKey, names},
        standing,
        traefik::objects::IngressRoute,
        wanted,
    },
    stores::Stores,
    watch::Watched,
};

/// Changes that are looked at together when they come in a burst.
const BURST: usize = 64;

/// What changed.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Change {
    /// Services that came, went or are exposed in another way, and targets of
    /// policies that did.
    pub services: BTreeSet<ServiceKey>,
    /// Hosts that may get another owner or another policy.
    pub hosts: BTreeSet<String>,
    /// Whether a policy with relations came, went or changed: all models and
    /// tuples of an AuthClass share its names and its limits.
    pub relations: bool,
}

/// Whom it concerns.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Reach {
    /// Services, some of which may be gone.
    pub services: HashSet<ServiceKey>,
    /// AuthPolicies.
    pub policies: HashSet<PolicyKey>,
}

impl Change {
    /// A Service comes, goes or is exposed in another way: as in each of `versions`.
    #[must_use]
    pub fn of_service<'a>(
        classes: &[Arc<EdgeClass>],
        key: ServiceKey,
        versions: impl IntoIterator<Item = &'a [Expose]>,
    ) -> Self {
        let hosts =
            versions.into_iter().flat_map(|exposes| wanted::hosts(classes, key.names(), exposes)).collect();
        Self { hosts, services: [key].into(), relations: false }
    }

    /// A namespace comes, goes or is labelled in another way: what its Services may ask for.
    #[must_use]
    pub fn of_namespace(classes: &[Arc<EdgeClass>], namespace: &str, services: &[Arc<Service>]) -> Self {
        let theirs =
            services.iter().filter(|service| service.metadata.namespace.as_deref() == Some(namespace));
        let changes =
            theirs.map(|service| Self::of_service(classes, ServiceKey::of(service), [&*service.spec.expose]));
        changes.fold(Self::default(), Self::and)
    }

    /// A policy comes, goes or changes: it targets or targeted each of `targets`.
    #[must_use]
    pub fn of_policy(
        classes: &[Arc<EdgeClass>],
        targets: BTreeSet<ServiceKey>,
        find: impl Fn(&ServiceKey) -> Option<Arc<Service>>,
        relations: bool,
    ) -> Self {
        let found = targets.iter().filter_map(|key| Some((key, find(key)?)));
        let hosts = found
            .flat_map(|(key, service)| wanted::hosts(classes, key.names(), &service.spec.expose))
            .collect();
        Self { hosts, services: targets, relations }
    }

    /// A route stands no more: its hosts may pass to another.
    #[must_use]
    pub fn of_route(route: &IngressRoute) -> Self {
        let hosts = standing::hosts(route).map(ToOwned::to_owned).collect();
        Self { hosts, ..Self::default() }
    }

    fn and(mut self, other: Self) -> Self {
        self.services.extend(other.services);
        self.hosts.extend(other.hosts);
        self.relations |= other.relations;
        self
    }

    /// Whom it concerns among `services` and `policies`: whoever asks for one
    /// of the hosts, the policies of those, and what else these target, because
    /// the rules of a policy are accepted and confirmed together.
    #[must_use]
    pub fn reach(
        &self,
        classes: &[Arc<EdgeClass>],
        services: &[Arc<Service>],
        policies: &[Arc<AuthPolicy>],
    ) -> Reach {
        let mut reached: HashSet<Names> = self.services.iter().map(ServiceKey::names).collect();
        reached.extend(asking(&self.hosts, classes, services));
        let is_concerned = |policy: &AuthPolicy| {
            (self.relations && asks_for_relations(policy))
                || aimed_at(policy).any(|service| reached.contains(&service))
        };
        let concerned: Vec<_> = policies.iter().filter(|policy| is_concerned(policy)).collect();
        reached.extend(concerned.iter().flat_map(|policy| aimed_at(policy)));
        Reach {
            services: reached.into_iter().map(ServiceKey::from).collect(),
            policies: concerned.into_iter().map(|policy| PolicyKey::of(policy)).collect(),
        }
    }
}

/// Those of `services` that ask for one of `hosts`.
pub fn asking<'a>(
    hosts: &BTreeSet<String>,
    classes: &[Arc<EdgeClass>],
    services: &'a [Arc<Service>],
) -> impl Iterator<Item = Names<'a>> {
    let exposed = services.iter().filter(|service| !hosts.is_empty() && !service.spec.expose.is_empty());
    exposed
        .map(|service| (names(service), &service.spec.expose))
        .filter_map(|(service, exposes)| wanted::any_of(hosts, classes, service, exposes).then_some(service))
}

/// The Services that `policy` names, whether or not they exist.
pub fn targets(policy: &AuthPolicy) -> impl Iterator<Item = ServiceKey> {
    aimed_at(policy).map(ServiceKey::from)
}

/// The same, borrowed.
pub fn aimed_at(policy: &AuthPolicy) -> impl Iterator<Item = Names<'_>> {
    let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
    policy.spec.targets.iter().map(move |target| (namespace, target.service.as_str()))
}

/// Whether what `policy` comes to depends on models and tuples.
#[must_use]
pub fn asks_for_relations(policy: &AuthPolicy) -> bool {
    policy.spec.relations.is_some() || policy.spec.rules.iter().any(|rule| rule.authorization.is_some())
}

/// Each change from now on with those whom it concerns, to everyone who listens
/// for as long as the future is polled: whom it concerns is found out once.
pub fn reaches<const LISTENERS: usize>(
    stores: &Stores,
) -> (impl Future<Output = ()> + use<LISTENERS>, [BoxStream<'static, Arc<Reach>>; LISTENERS]) {
    let (classes, services, policies) = (
        stores.edge_classes.store().clone(),
        stores.services.store().clone(),
        stores.auth_policies.store().clone(),
    );
    let changes = [claimed(stores), labelled(stores), declared(stores), freed(&stores.ingress_routes)];
    let mut bursts = select_all(changes).ready_chunks(BURST);
    let mut senders = Vec::new();
    let listeners = std::array::from_fn(|_| {
        let (sender, listener) = mpsc::unbounded_channel();
        senders.push(sender);
        UnboundedReceiverStream::new(listener).boxed()
    });
    let telling = async move {
        while let Some(burst) = bursts.next().await {
            let change = burst.into_iter().fold(Change::default(), Change::and);
            let reach = Arc::new(change.reach(&classes.state(), &services.state(), &policies.state()));
            for listener in &senders {
                // Who does not listen any more is ending with the process.
                drop(listener.send(reach.clone()));
            }
        }
    };
    (telling, listeners)
}

/// Services that come, go or are exposed in another way. Most of their changes are none.
fn claimed(stores: &Stores) -> BoxStream<'static, Change> {
    let classes = stores.edge_classes.store().clone();
    let part =
        |service: &Service| (service.metadata.deletion_timestamp.is_some(), service.spec.expose.clone());
    stores
        .services
        .news(part)
        .map(move |(service, parts)| {
            let versions = parts.iter().map(|(_, exposes)| exposes.as_slice());
            Change::of_service(&classes.state(), ServiceKey::of(&service), versions)
        })
        .boxed()
}

/// Namespaces that come, go or get other labels.
fn labelled(stores: &Stores) -> BoxStream<'static, Change> {
    let (classes, services) = (stores.edge_classes.store().clone(), stores.services.store().clone());
    stores
        .namespaces
        .news(|namespace| namespace.labels().clone())
        .map(move |(namespace, _)| {
            Change::of_namespace(&classes.state(), &namespace.name_any(), &services.state())
        })
        .boxed()
}

/// Policies that come, go or get another spec.
fn declared(stores: &Stores) -> BoxStream<'static, Change> {
    let (classes, services) = (stores.edge_classes.store().clone(), stores.services.store().clone());
    let part = |policy: &AuthPolicy| {
        let mark = (policy.metadata.generation, policy.metadata.deletion_timestamp.is_some());
        (mark, targets(policy).collect::<BTreeSet<_>>(), policy.spec.relations.is_some())
    };
    stores
        .auth_policies
        .news(part)
        .map(move |(_, parts)| {
            let relations = parts.iter().any(|(_, _, relations)| *relations);
            let targets = parts.into_iter().flat_map(|(_, targets, _)| targets).collect();
            let find = |key: &ServiceKey| services.get(&key.reference());
            Change::of_policy(&classes.state(), targets, find, relations)
        })
        .boxed()
}

/// Ways in that are gone from now on.
fn freed(routes: &Watched<IngressRoute>) -> BoxStream<'static, Change> {
    let present = routes.store().clone();
    let gone = move |route: Arc<IngressRoute>| {
        let change = Change::of_route(&route);
        let is_news = !change.hosts.is_empty() && present.get(&ObjectRef::from_obj(&*route)).is_none();
        std::future::ready(is_news.then_some(change))
    };
    routes.changes().filter_map(gone).boxed()
}
