//! What the caches know about everything a Service refers to; reads only.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use peristyle_crds::{
    condition::types,
    v1alpha1::{
        Database, Service,
        database::RoleName,
        service::{EnvFrom, Expose, Port},
    },
};

use crate::{
    auth::{
        protection::{self, Protection},
        world::Snapshot,
    },
    conditions,
    context::Context,
    edge::{
        claims::Refusal,
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
    /// Port of the core Service of each dependency, by namespace and name; what is absent does not exist.
    pub dependencies: BTreeMap<(String, String), i32>,
    /// Required Secrets and ConfigMaps that do not exist.
    pub missing: Vec<String>,
    /// For each expose entry, by name.
    pub exposes: BTreeMap<String, ExposeView>,
    /// Pods of the error backend.
    pub edge_errors: Option<EdgeErrors>,
    /// Whether the API server serves Traefik's kinds.
    pub has_traefik: bool,
}

/// A bound Database.
#[derive(Clone, Debug, Default)]
pub struct DatabaseView {
    /// Whether its status says Ready for its present spec.
    pub is_ready: bool,
    /// Why not.
    pub message: String,
    /// Secret of each role that can log in.
    pub secrets: BTreeMap<RoleName, String>,
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
        Some((binding.database.clone(), view(&database)))
    });
    let dependencies = spec.depends_on.iter().filter_map(|dependency| {
        let name = dependency.service.clone()?;
        let namespace = dependency.namespace.clone().unwrap_or_else(|| owner.namespace.clone());
        let target = stores.services.get(&namespace, &name)?;
        Some(((namespace, name), first_port(&target)))
    });
    let is_absent = |reference: &Reference| match reference {
        Reference::Secret(name) => stores.secrets.get(&owner.namespace, name).is_none(),
        Reference::ConfigMap(name) => stores.config_maps.get(&owner.namespace, name).is_none(),
    };
    let has_traefik = stores.traefik_is_ready_within(Duration::ZERO).await;
    Observed {
        default_replicas: ctx.config.default_replicas,
        databases: databases.collect(),
        dependencies: dependencies.collect(),
        missing: references(service)
            .into_iter()
            .filter(is_absent)
            .map(|reference| reference.to_string())
            .collect(),
        exposes: exposes(ctx, service, owner),
        edge_errors: edge_errors(ctx),
        has_traefik,
    }
}

/// A required Secret or ConfigMap of the same namespace.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Reference {
    /// A Secret.
    Secret(String),
    /// A ConfigMap.
    ConfigMap(String),
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Secret(name) => write!(f, "Secret {name}"),
            Self::ConfigMap(name) => write!(f, "ConfigMap {name}"),
        }
    }
}

/// Secrets and ConfigMaps without which a pod would not start, sorted.
#[must_use]
pub fn references(service: &Service) -> Vec<Reference> {
    let from = |source: &EnvFrom| {
        let required = |optional: Option<bool>| optional != Some(true);
        let secret = source.secret_ref.iter().filter(|s| required(s.optional));
        let config_map = source.config_map_ref.iter().filter(|c| required(c.optional));
        secret
            .map(|s| Reference::Secret(s.name.clone()))
            .chain(config_map.map(|c| Reference::ConfigMap(c.name.clone())))
            .collect::<Vec<_>>()
    };
    let single = service.spec.env.iter().flat_map(|variable| {
        let source = variable.value_from.clone().unwrap_or_default();
        [
            (source.secret_key_ref, Reference::Secret as fn(String) -> Reference),
            (source.config_map_key_ref, Reference::ConfigMap),
        ]
        .into_iter()
        .filter_map(|(key, make)| key.filter(|k| k.optional != Some(true)).map(|k| make(k.name)))
        .collect::<Vec<_>>()
    });
    let mut all: Vec<_> = service.spec.env_from.iter().flat_map(from).chain(single).collect();
    all.sort();
    all.dedup();
    all
}

/// The port of the core Service that dependents call: the first one.
#[must_use]
pub fn first_port(service: &Service) -> i32 {
    service.spec.ports.first().map_or(super::validate::DEFAULT_PORT, Port::service_port)
}

fn view(database: &Database) -> DatabaseView {
    let status = database.status.clone().unwrap_or_default();
    let ready = status.conditions.iter().find(|c| c.type_ == types::READY);
    DatabaseView {
        is_ready: conditions::is_true(&status.conditions, types::READY, database.metadata.generation),
        message: ready.map_or_else(|| "not observed yet".to_owned(), |c| c.message.clone()),
        secrets: status.roles.into_iter().map(|role| (role.role, role.secret_name)).collect(),
    }
}

fn exposes(ctx: &Context, service: &Service, owner: &Owner) -> BTreeMap<String, ExposeView> {
    if service.spec.expose.is_empty() {
        return BTreeMap::new();
    }
    let snapshot = Snapshot::take(&ctx.stores);
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
    service.spec.expose.iter().map(|expose| (expose.name.clone(), view(expose))).collect()
}

/// The one place where the words of the policies become those of the routes.
impl From<Protection> for RouteProtection {
    fn from(protection: Protection) -> Self {
        match protection {
            Protection::None => Self::None,
            Protection::Unknown { policy: _, hash } => Self::Unknown { hash },
            Protection::Pending { policy, reason, message } => {
                Self::Pending { reason, message: format!("AuthPolicy {policy}: {message}") }
            }
            Protection::Changing { policy, hash, decisions_url, reason, message } => {
                let message = format!("AuthPolicy {policy}: {message}");
                Self::Changing { hash, decisions_url, reason, message }
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
