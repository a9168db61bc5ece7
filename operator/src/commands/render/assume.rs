//! What rendering takes to be there where the files do not say.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::{api::core::v1::Namespace, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{ResourceExt, core::PartialObjectMeta};
use peristyle_crds::{
    class::DEFAULT_CLASS_ANNOTATION,
    v1alpha1::{
        AuthClass, AuthClassSpec, EdgeClass, EdgeClassSpec, Service,
        auth_class::{ConfigMapKey, IdToken, Issuer, Keto, Oathkeeper},
        database::{Role, RoleName},
        edge_class::{AllowedHosts, Hosts, NamespaceSelector, Provider, Traefik},
        service::Expose,
    },
};

use super::input::Input;
use crate::{
    auth::{
        id_token::{self, Tokens},
        protection::{self, Protection},
        publications::Publications,
        world::World,
    },
    controllers::service::{
        named,
        observe::{self, DatabaseView, DependencyView, EdgeErrors, ExposeView, HostView, Observed},
    },
    edge::{
        claims::{Claims, ServiceKey},
        route::RouteProtection,
    },
};

/// The class of routes that name none, when the files hold no class: entry
/// point `websecure`, hosts `<service>.<namespace>.example.com`.
const CLASS: &str = "public";
const ENTRY_POINT: &str = "websecure";
const TEMPLATE: &str = "{service}.{namespace}.example.com";
/// Namespace of the operator, and what the stack chart installs there.
const SYSTEM: &str = "peristyle-system";
const SERVER: (&str, i32) = ("postgres.peristyle-system.svc.cluster.local", 5432);
const AUTH_CLASS: &str = "default";
const OATHKEEPER: &str = "oathkeeper-api";
const RULES: &str = "oathkeeper-rules";
const NAMESPACES: (&str, &str) = ("keto-namespaces", "namespaces.keto.ts");
/// Where an issuer keeps its keys, when no AuthClass says.
const JWKS: &str = ".well-known/jwks.json";

/// All that the Service refers to, ready.
#[must_use]
pub fn observed(input: &Input, service: &Service, default_replicas: i32) -> Observed {
    let namespace = service.namespace().unwrap_or_default();
    let databases = service.spec.databases.iter().map(|binding| {
        let name = binding.database.clone();
        (name.clone(), database(input, &namespace, &name))
    });
    let dependencies = service.spec.depends_on.iter().filter_map(|dependency| {
        let name = dependency.service.clone()?;
        let namespace = dependency.namespace.clone().unwrap_or_else(|| namespace.clone());
        let is_target = |s: &&Service| s.name_any() == name && s.namespace().as_ref() == Some(&namespace);
        let view = input.services.iter().find(is_target).map(DependencyView::of).unwrap_or_default();
        Some(((namespace, name), view))
    });
    let callers = input
        .services
        .iter()
        .filter(|caller| caller.namespace() == service.namespace())
        .filter(|caller| named::dependencies(caller).contains(&ServiceKey::of(service)));
    let edges = classes(input);
    let (exposes, tokens) = exposes(input, service);
    Observed {
        default_replicas,
        databases: databases.collect(),
        dependencies: dependencies.collect(),
        callers: callers.map(ResourceExt::name_any).collect::<BTreeSet<_>>().into_iter().collect(),
        edges: edges.iter().map(|class| (class.name_any(), observe::edge(class, SYSTEM))).collect(),
        missing: Vec::new(),
        exposes,
        tokens,
        // Which pods answer is the cluster's matter.
        edge_errors: Some(EdgeErrors { address_type: "IPv4".to_owned(), addresses: Vec::new() }),
        has_traefik: true,
    }
}

fn database(input: &Input, namespace: &str, name: &str) -> DatabaseView {
    let found =
        input.databases.iter().find(|d| d.name_any() == name && d.namespace().as_deref() == Some(namespace));
    let roles = found.and_then(|database| database.spec.roles.clone()).unwrap_or_default();
    let secret = |role: Option<Role>, default: &str| {
        role.and_then(|role| role.secret_name).unwrap_or_else(|| format!("{name}-{default}"))
    };
    DatabaseView {
        message: String::new(),
        outage: None,
        secrets: [
            (RoleName::Writer, secret(roles.writer, "db")),
            (RoleName::Reader, secret(roles.reader, "db-ro")),
            (RoleName::Owner, secret(roles.owner, "db-owner")),
        ]
        .into(),
        server: Some(SERVER.0.to_owned()).zip(Some(SERVER.1)),
    }
}

fn exposes(input: &Input, service: &Service) -> (BTreeMap<String, ExposeView>, Tokens) {
    let classes = classes(input);
    let namespaces = namespaces(input);
    let auth_classes = auth_classes(input);
    let claims = Claims::settle(&input.services, &classes, &namespaces);
    let world = World::new(&input.auth_policies, &auth_classes, &input.services, &claims);
    let view = |expose: &Expose| match claims.hosts(service, expose) {
        Err(refusal) => ExposeView::Refused(refusal),
        Ok(hosts) => {
            let spec = claims.class(&hosts.class).map(|class| class.spec.clone()).unwrap_or_default();
            let granted = hosts.granted.into_iter().map(|host| {
                let url = spec.url(&host);
                (host, HostView { url, serving: None })
            });
            ExposeView::Served {
                class: hosts.class,
                hosts: granted.collect(),
                refused: hosts.refused,
                protection: protection(&world, service, expose),
                entry_points: spec.traefik.map(|traefik| traefik.entry_points).unwrap_or_default(),
            }
        }
    };
    let views = service.spec.expose.iter().map(|expose| (expose.name.clone(), view(expose)));
    (views.collect(), id_token::tokens(&world, service))
}

/// The classes of the files, and those that routes name besides.
pub(super) fn classes(input: &Input) -> Vec<EdgeClass> {
    let mut classes = input.edge_classes.clone();
    let entries = || input.services.iter().flat_map(|service| &service.spec.expose);
    let hosts: BTreeSet<String> = entries().flat_map(|expose| expose.hosts.clone()).collect();
    let assumed = |name: &str, is_default: bool| {
        let mut class = EdgeClass::new(
            name,
            EdgeClassSpec {
                provider: Provider::Traefik,
                traefik: Some(Traefik { entry_points: vec![ENTRY_POINT.to_owned()], ..Traefik::default() }),
                hosts: Hosts {
                    template: TEMPLATE.to_owned(),
                    // A class that is not there to be asked allows what is written.
                    allow: vec![AllowedHosts {
                        namespaces: NamespaceSelector::default(),
                        suffixes: hosts.iter().cloned().collect(),
                    }],
                },
                address: None,
                probe: None,
            },
        );
        if is_default {
            class.metadata.annotations =
                Some([(DEFAULT_CLASS_ANNOTATION.to_owned(), "true".to_owned())].into());
        }
        class
    };
    let has_default = classes
        .iter()
        .any(|class| class.annotations().get(DEFAULT_CLASS_ANNOTATION).is_some_and(|v| v == "true"));
    let named: BTreeSet<String> = entries().filter_map(|expose| expose.class_name.clone()).collect();
    for name in named {
        if !classes.iter().any(|class| class.name_any() == name) {
            classes.push(assumed(&name, !has_default && name == CLASS));
        }
    }
    if !has_default && !classes.iter().any(|class| class.name_any() == CLASS) {
        classes.push(assumed(CLASS, true));
    }
    classes
}

/// The namespaces of the files, and those that Services live in besides.
pub(super) fn namespaces(input: &Input) -> Vec<PartialObjectMeta<Namespace>> {
    let mut namespaces = input.namespaces.clone();
    for service in &input.services {
        let name = service.namespace();
        if !namespaces.iter().any(|namespace| namespace.metadata.name == name) {
            namespaces.push(PartialObjectMeta {
                metadata: ObjectMeta { name, ..ObjectMeta::default() },
                ..PartialObjectMeta::default()
            });
        }
    }
    namespaces
}

/// The AuthClasses of the files, else one of the stack chart's shape that
/// trusts every issuer that a policy names. Each has a UID, by which policies
/// are told apart.
pub(super) fn auth_classes(input: &Input) -> Vec<AuthClass> {
    if !input.auth_classes.is_empty() {
        return input.auth_classes.iter().cloned().map(identified).collect();
    }
    let policies = &input.auth_policies;
    let issuers: BTreeSet<String> = policies
        .iter()
        .flat_map(|policy| &policy.spec.authentication)
        .map(|authentication| authentication.jwt.issuer.clone())
        .collect();
    let mut names: BTreeSet<&str> =
        policies.iter().filter_map(|policy| policy.spec.class_name.as_deref()).collect();
    names.insert(AUTH_CLASS);
    let trusted = |issuer: &String| Issuer {
        issuer: issuer.clone(),
        jwks_url: format!("{}/{JWKS}", issuer.trim_end_matches('/')),
    };
    let class = |name: &str| {
        // Two classes cannot write one ConfigMap.
        let of_class = |map: &str| match name {
            AUTH_CLASS => map.to_owned(),
            other => format!("{map}-{other}"),
        };
        let mut class = AuthClass::new(
            name,
            AuthClassSpec {
                oathkeeper: Oathkeeper {
                    namespace: SYSTEM.to_owned(),
                    service: OATHKEEPER.to_owned(),
                    rules_config_map: of_class(RULES),
                },
                keto: Keto {
                    read_url: format!("http://keto-read.{SYSTEM}.svc.cluster.local:4466"),
                    write_url: format!("http://keto-write.{SYSTEM}.svc.cluster.local:4467"),
                    opl_url: format!("http://keto-opl.{SYSTEM}.svc.cluster.local:4469"),
                    namespaces_config_map: ConfigMapKey {
                        namespace: SYSTEM.to_owned(),
                        name: of_class(NAMESPACES.0),
                        key: NAMESPACES.1.to_owned(),
                    },
                },
                issuers: issuers.iter().map(trusted).collect(),
                id_token: Some(IdToken {
                    issuer: format!("http://{OATHKEEPER}.{SYSTEM}.svc.cluster.local:4456"),
                    ..IdToken::default()
                }),
            },
        );
        if name == AUTH_CLASS {
            class.metadata.annotations =
                Some([(DEFAULT_CLASS_ANNOTATION.to_owned(), "true".to_owned())].into());
        }
        identified(class)
    };
    names.into_iter().map(class).collect()
}

fn identified(mut class: AuthClass) -> AuthClass {
    class.metadata.uid.get_or_insert_with(|| class.metadata.name.clone().unwrap_or_default());
    class
}

/// A policy that compiles is taken to be live.
fn protection(world: &World<'_>, service: &Service, expose: &Expose) -> RouteProtection {
    // Of a policy that compiles, nothing is published without a cluster.
    let decided = protection::decide(world, &Publications::default(), service, expose);
    let class = world.targeting(service, expose).and_then(|policy| world.class(policy).ok());
    match (decided, class) {
        (Protection::Unknown { hash, .. }, Some(class)) => {
            RouteProtection::Live { hash, decisions_url: protection::decisions_url(class) }
        }
        (decided, _) => decided.into(),
    }
}
