//! What the caches know about everything a Service refers to; reads only.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use peristyle_crds::{
    condition::{Reason, types},
    v1alpha1::{
        Database, EdgeClass, Service,
        database::RoleName,
        edge_class::EdgePods,
        service::{Expose, Port, Protocol},
    },
};

use super::{
    named, peers, references,
    references::Reference,
    validate::{DEFAULT_PORT, access::Peer, ports},
};
use crate::{
    auth::{
        id_token::{self, Tokens},
        protection::{self, Protection},
        world::Snapshot,
    },
    context::Context,
    edge::{
        claims::{Refusal, names},
        route::{Guard, Host, RouteProtection},
        traefik::{self, build::object_name},
    },
    metadata::Owner,
};

/// Label that ties an EndpointSlice to its core Service.
pub const SLICE_SERVICE_LABEL: &str = "kubernetes.io/service-name";

/// Everything a Service refers to, as plain data.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// Pods of a Service that does not say how many.
    pub default_replicas: i32,
    /// Databases of the namespace that are bound, by name; what is absent does not exist.
    pub databases: BTreeMap<String, DatabaseView>,
    /// Each dependency, by namespace and name; what is absent does not exist, or is in another
    /// namespace and does not list this Service.
    pub dependencies: BTreeMap<(String, String), DependencyView>,
    /// Services of the namespace that call this one, sorted.
    pub callers: Vec<String>,
    /// Pods of each EdgeClass that serves an expose entry, by its name.
    pub edges: BTreeMap<String, Peer>,
    /// Required Secrets and ConfigMaps that do not exist.
    pub missing: Vec<String>,
    /// For each expose entry, by name.
    pub exposes: BTreeMap<String, ExposeView>,
    /// What the workload gets of the gate, and verifies.
    pub tokens: Tokens,
    /// Pods of the error backend.
    pub edge_errors: Option<EdgeErrors>,
    /// Whether the API server serves Traefik's kinds.
    pub has_traefik: bool,
}

/// A Service that is called.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct DependencyView {
    /// Port of its core Service.
    pub service_port: i32,
    /// Port of its container.
    pub container_port: i32,
    /// What is spoken there.
    pub protocol: Protocol,
}

/// A bound Database.
#[derive(Clone, Debug, Default)]
pub struct DatabaseView {
    /// What its condition Ready says.
    pub message: String,
    /// Why its server could not be used, when it was asked last.
    pub outage: Option<Outage>,
    /// Secret of each role that the server once let in; none before it was provisioned. Kept by
    /// its status whatever happens later: a change of its spec, or an outage of the server, is no
    /// reason to touch who uses it.
    pub secrets: BTreeMap<RoleName, String>,
    /// Host and port of its server.
    pub server: Option<(String, i32)>,
}

/// What its condition says of a server that cannot be used.
#[derive(Clone, Debug)]
pub struct Outage {
    /// Its words.
    pub message: String,
    /// The word for it.
    pub reason: Reason,
}

/// An expose entry.
#[derive(Clone, Debug)]
pub enum ExposeView {
    /// No class serves it.
    Refused(Refusal),
    /// A class serves it.
    Served {
        /// Name of the EdgeClass.
        class: String,
        /// Addresses of hosts, as clients write them, for those that belong to this Service.
        hosts: BTreeMap<String, HostView>,
        /// What is wrong with other hosts.
        refused: Vec<Refusal>,
        /// Entry points of the edge.
        entry_points: Vec<String>,
        /// What the policies say.
        protection: RouteProtection,
    },
}

/// A host that belongs to the Service.
#[derive(Clone, Debug, Default)]
pub struct HostView {
    /// Scheme, host and port as clients write them.
    pub url: String,
    /// What protects it at this moment.
    pub serving: Option<Guard>,
}

/// Where the error backend is.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct EdgeErrors {
    /// `IPv4` or `IPv6`.
    pub address_type: String,
    /// Addresses of ready pods, sorted.
    pub addresses: Vec<String>,
}

/// Reads the caches.
pub async fn observe(ctx: &Context, service: &Service, owner: &Owner) -> Observed {
    let spec = &service.spec;
    let stores = &ctx.stores;
    let databases = spec.databases.iter().filter_map(|binding| {
        let database = stores.databases.get(&owner.namespace, &binding.database)?;
        Some((binding.database.clone(), DatabaseView::of(&database)))
    });
    let dependencies = spec.depends_on.iter().filter_map(|dependency| {
        let name = dependency.service.clone()?;
        let namespace = dependency.namespace.clone().unwrap_or_else(|| owner.namespace.clone());
        let target = stores.services.get(&namespace, &name)?;
        peers::admits(&target, &owner.namespace, &owner.name)
            .then(|| ((namespace, name), DependencyView::of(&target)))
    });
    let is_absent = |reference: &Reference| match reference {
        Reference::Secret(name) => stores.secrets.get(&owner.namespace, name).is_none(),
        Reference::ConfigMap(name) => stores.config_maps.get(&owner.namespace, name).is_none(),
    };
    let has_traefik = stores.traefik_is_ready_within(Duration::ZERO).await;
    let (exposes, tokens) = exposes(ctx, service, owner);
    Observed {
        default_replicas: ctx.config.default_replicas,
        databases: databases.collect(),
        dependencies: dependencies.collect(),
        callers: callers(ctx, service),
        edges: edges(ctx, service),
        missing: references::required(service)
            .into_iter()
            .filter(is_absent)
            .map(|reference| reference.to_string())
            .collect(),
        exposes,
        tokens,
        edge_errors: edge_errors(ctx),
        has_traefik,
    }
}

impl DependencyView {
    /// What dependents call of `service`: its first port.
    #[must_use]
    pub fn of(service: &Service) -> Self {
        ports(service).first().map(Self::from).unwrap_or_default()
    }
}

/// A Service that names no port.
impl Default for DependencyView {
    fn default() -> Self {
        Self { service_port: DEFAULT_PORT, container_port: DEFAULT_PORT, protocol: Protocol::default() }
    }
}

impl From<&Port> for DependencyView {
    fn from(port: &Port) -> Self {
        Self { service_port: port.service_port(), container_port: port.port, protocol: port.protocol() }
    }
}

impl DatabaseView {
    /// What the status of `database` says.
    #[must_use]
    pub fn of(database: &Database) -> Self {
        let status = database.status.clone().unwrap_or_default();
        let condition = |type_| status.conditions.iter().find(move |c| c.type_ == type_);
        let server = condition(types::SERVER_REACHABLE).filter(|c| c.status != "True");
        Self {
            message: condition(types::READY)
                .map_or_else(|| "not observed yet".to_owned(), |c| c.message.clone()),
            outage: server.map(|server| Outage {
                message: server.message.clone(),
                reason: Reason::named(&server.reason).unwrap_or(Reason::ServerUnreachable),
            }),
            secrets: status.roles.into_iter().map(|role| (role.role, role.secret_name)).collect(),
            server: status.server.map(|server| (server.host, server.port)),
        }
    }
}

fn callers(ctx: &Context, service: &Service) -> Vec<String> {
    let callers = ctx.stores.services.by(&named::naming(service)).into_iter().filter(|caller| {
        caller.metadata.namespace == service.metadata.namespace
            && caller.metadata.deletion_timestamp.is_none()
    });
    let mut names: Vec<String> = callers.map(|caller| caller.name_any()).collect();
    names.sort();
    names
}

/// Pods of the classes that the Service may be exposed by.
fn edges(ctx: &Context, service: &Service) -> BTreeMap<String, Peer> {
    if service.spec.expose.is_empty() {
        return BTreeMap::new();
    }
    let classes = ctx.stores.edge_classes.store().state();
    classes.iter().map(|class| (class.name_any(), edge(class, &ctx.config.namespace))).collect()
}

/// Pods of a class; `system` is the operator's namespace.
#[must_use]
pub fn edge(class: &EdgeClass, system: &str) -> Peer {
    let pods = class.spec.traefik.as_ref().and_then(|traefik| traefik.pods.clone());
    let pods = pods.unwrap_or_else(|| EdgePods {
        namespace: system.to_owned(),
        match_labels: [("app.kubernetes.io/name".to_owned(), "traefik".to_owned())].into(),
    });
    Peer::Pods { namespace: pods.namespace, labels: pods.match_labels }
}

fn exposes(ctx: &Context, service: &Service, owner: &Owner) -> (BTreeMap<String, ExposeView>, Tokens) {
    if service.spec.expose.is_empty() {
        return Default::default();
    }
    let snapshot = Snapshot::take(&ctx.stores).around([names(service)]);
    let claims = snapshot.claims();
    let world = snapshot.world(&claims);
    let view = |expose: &Expose| {
        let hosts = match claims.hosts(service, expose) {
            Ok(hosts) => hosts,
            Err(refusal) => return ExposeView::Refused(refusal),
        };
        let class = claims.class(&hosts.class);
        let granted = hosts.granted.into_iter().map(|host| {
            let view = HostView {
                url: class.map(|class| class.spec.url(&host)).unwrap_or_default(),
                serving: serving(ctx, owner, expose, &host),
            };
            (host, view)
        });
        ExposeView::Served {
            hosts: granted.collect(),
            entry_points: class
                .and_then(|class| class.spec.traefik.as_ref())
                .map(|traefik| traefik.entry_points.clone())
                .unwrap_or_default(),
            class: hosts.class,
            refused: hosts.refused,
            protection: protection::decide(&world, &ctx.publications, service, expose).into(),
        }
    };
    let views = service.spec.expose.iter().map(|expose| (expose.name.clone(), view(expose)));
    (views.collect(), id_token::tokens(&world, service))
}

/// The one place where the words of the policies become those of the routes.
impl From<Protection> for RouteProtection {
    fn from(protection: Protection) -> Self {
        match protection {
            Protection::None => Self::None,
            Protection::Unknown { policy: _, hash, decisions_url } => Self::Unknown { hash, decisions_url },
            Protection::Pending { policy, reason, message } => {
                Self::Pending { reason, message: format!("AuthPolicy {policy}: {message}") }
            }
            Protection::Changing { policy, hash, hosts, decisions_url, reason, message } => {
                let message = format!("AuthPolicy {policy}: {message}");
                Self::Changing { hash, hosts, decisions_url, reason, message }
            }
            Protection::Live { policy: _, hash, decisions_url } => Self::Live { hash, decisions_url },
        }
    }
}

fn serving(ctx: &Context, owner: &Owner, expose: &Expose, host: &str) -> Option<Guard> {
    let host = Host::parse(host).ok()?;
    let name = |role| object_name(owner, &expose.name, &host, role);
    let parent = ctx.stores.ingress_routes.get(&owner.namespace, &name("parent"))?;
    let authn = ctx.stores.middlewares.get(&owner.namespace, &name("authn"))?;
    traefik::guard(&parent, &authn)
}

fn edge_errors(ctx: &Context) -> Option<EdgeErrors> {
    let slices = ctx.stores.system_endpoint_slices.labelled(
        &ctx.config.namespace,
        SLICE_SERVICE_LABEL,
        &ctx.config.edge_errors_service,
    );
    ready_addresses(slices.iter().map(|slice| &**slice))
}

/// Addresses of the ready endpoints; IPv4 where there are both families.
#[must_use]
pub fn ready_addresses<'a>(slices: impl Iterator<Item = &'a EndpointSlice>) -> Option<EdgeErrors> {
    let mut by_type: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for slice in slices {
        let ready = slice.endpoints.iter().filter(|endpoint| {
            endpoint.conditions.as_ref().is_none_or(|conditions| conditions.ready.unwrap_or(true))
        });
        by_type
            .entry(&slice.address_type)
            .or_default()
            .extend(ready.flat_map(|endpoint| endpoint.addresses.clone()));
    }
    let (address_type, mut addresses) = by_type.into_iter().find(|(_, addresses)| !addresses.is_empty())?;
    addresses.sort();
    addresses.dedup();
    Some(EdgeErrors { address_type: address_type.to_owned(), addresses })
}
