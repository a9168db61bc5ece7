//! What rendering takes to be there where the files do not say.

use std::collections::BTreeSet;

use k8s_openapi::{api::core::v1::Namespace, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::{ResourceExt, core::PartialObjectMeta};
use peristyle_crds::{
    class::DEFAULT_CLASS_ANNOTATION,
    v1alpha1::{
        AuthPolicy, EdgeClass, EdgeClassSpec, Service,
        database::{Role, RoleName},
        edge_class::{AllowedHosts, Hosts, NamespaceSelector, Provider, Traefik},
        service::Expose,
    },
};

use super::input::Input;
use crate::{
    controllers::service::{
        observe::{DatabaseView, EdgeErrors, ExposeView, HostView, Observed, first_port},
        validate::DEFAULT_PORT,
    },
    edge::{claims::Claims, route::RouteProtection},
    names,
};

/// The class of routes that name none, when the files hold no class: entry
/// point `websecure`, hosts `<service>.<namespace>.example.com`.
const CLASS: &str = "public";
const ENTRY_POINT: &str = "websecure";
const TEMPLATE: &str = "{service}.{namespace}.example.com";
/// Where decisions are made, when the files hold no AuthClass: as the stack chart installs it.
const DECISIONS: (&str, &str) = ("oathkeeper-api", "peristyle-system");

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
        let port = input.services.iter().find(is_target).map_or(DEFAULT_PORT, first_port);
        Some(((namespace, name), port))
    });
    Observed {
        default_replicas,
        databases: databases.collect(),
        dependencies: dependencies.collect(),
        missing: Vec::new(),
        exposes: exposes(input, service).into_iter().collect(),
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
        is_ready: true,
        message: String::new(),
        secrets: [
            (RoleName::Writer, secret(roles.writer, "db")),
            (RoleName::Reader, secret(roles.reader, "db-ro")),
            (RoleName::Owner, secret(roles.owner, "db-owner")),
        ]
        .into(),
    }
}

fn exposes(input: &Input, service: &Service) -> Vec<(String, ExposeView)> {
    let classes = classes(input);
    let namespaces = namespaces(input);
    let claims = Claims::settle(&input.services, &classes, &namespaces);
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
                protection: protection(input, service, expose),
                entry_points: spec.traefik.map(|traefik| traefik.entry_points).unwrap_or_default(),
            }
        }
    };
    let entries = service.spec.expose.iter();
    entries.map(|expose| (expose.name.clone(), view(expose))).collect()
}

/// The classes of the files, and those that routes name besides.
fn classes(input: &Input) -> Vec<EdgeClass> {
    let mut classes = input.edge_classes.clone();
    let entries = || input.services.iter().flat_map(|service| &service.spec.expose);
    let hosts: BTreeSet<String> = entries().flat_map(|expose| expose.hosts.clone()).collect();
    let assumed = |name: &str, is_default: bool| {
        let mut class = EdgeClass::new(
            name,
            EdgeClassSpec {
                provider: Provider::Traefik,
                traefik: Some(Traefik { entry_points: vec![ENTRY_POINT.to_owned()] }),
                hosts: Hosts {
                    template: TEMPLATE.to_owned(),
                    // A class that is not there to be asked allows what is written.
                    allow: vec![AllowedHosts {
                        namespaces: NamespaceSelector::default(),
                        suffixes: hosts.iter().cloned().collect(),
                    }],
                },
                address: None,
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
fn namespaces(input: &Input) -> Vec<PartialObjectMeta<Namespace>> {
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

/// A policy of the files is taken to be live.
fn protection(input: &Input, service: &Service, expose: &Expose) -> RouteProtection {
    let targets = |policy: &&AuthPolicy| {
        policy.namespace() == service.namespace()
            && policy.spec.targets.iter().any(|target| {
                target.service == service.name_any()
                    && target.expose.as_ref().is_none_or(|name| *name == expose.name)
            })
    };
    let Some(policy) = input.auth_policies.iter().find(targets) else {
        return RouteProtection::None;
    };
    let (name, namespace) = input.auth_classes.first().map_or_else(
        || (DECISIONS.0.to_owned(), DECISIONS.1.to_owned()),
        |class| {
            let oathkeeper = &class.spec.oathkeeper;
            (oathkeeper.service.clone(), oathkeeper.namespace.clone())
        },
    );
    RouteProtection::Live {
        hash: names::hash8([format!("{:?}", policy.spec).as_str()]),
        decisions_url: format!("http://{name}.{namespace}.svc.cluster.local:4456/decisions"),
    }
}
