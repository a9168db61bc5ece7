//! Names at the edge, where one namespace must never replace or claim what is
//! another's. Many cases, each of them cheap.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use std::collections::{BTreeSet, HashMap, HashSet};

use k8s_openapi::{api::core::v1::Namespace, apimachinery::pkg::apis::meta::v1::ObjectMeta};
use kube::core::PartialObjectMeta;
use peristyle::{
    edge::{claims::Claims, route::Host, traefik::build::object_name},
    metadata::Owner,
};
use peristyle_crds::v1alpha1::{
    EdgeClass, Service,
    service::{Expose, ServiceSpec},
};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};

const CASES: usize = 100_000;
const ROLES: [&str; 8] = ["fence", "parent", "child", "rest", "authn", "headers", "grpc-errors", "transport"];
/// Joined by `-`, they make the same text in many ways; the long ones are cut.
const WORDS: [&str; 4] = ["a", "b", "a-b", "a-word-of-many-letters-that-fills-half-a-name"];

fn label(random: &mut StdRng, longest: usize) -> String {
    let count = random.random_range(1..3);
    let words: Vec<&str> = (0..count).map(|_| *WORDS.choose(random).unwrap()).collect();
    let mut label = words.join("-");
    label.truncate(longest);
    label.trim_end_matches('-').to_owned()
}

fn owner(namespace: &str, name: &str) -> Owner {
    let mut service = Service::new(name, ServiceSpec::default());
    service.metadata.namespace = Some(namespace.to_owned());
    service.metadata.uid = Some("u".to_owned());
    Owner::new(&service, namespace, "peristyle.dev/service")
}

/// How Traefik names an object: namespace and name, with every run of other
/// characters as one `-`.
fn known_to_traefik(namespace: &str, name: &str) -> String {
    let whole = format!("{namespace}-{name}");
    let words = whole.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-")
}

#[test]
fn no_two_objects_of_a_hundred_thousand_have_one_name_for_traefik() {
    let mut random = StdRng::seed_from_u64(4);
    let mut routes = BTreeSet::new();
    while routes.len() < CASES {
        let host = format!("h{}.test", random.random_range(0..1000));
        let role = *ROLES.choose(&mut random).unwrap();
        let (namespace, service) = (label(&mut random, 63), label(&mut random, 50));
        routes.insert((namespace, service, label(&mut random, 40), host, role));
    }
    let mut seen = HashMap::new();
    let mut texts = HashSet::new();
    for route in &routes {
        let (namespace, service, expose, host, role) = route;
        let name = object_name(&owner(namespace, service), expose, &Host::parse(host).unwrap(), role);
        assert!(name.len() <= 63 && !name.ends_with('-'), "{name}");
        let known = known_to_traefik(namespace, &name);
        texts.insert(known.rsplit_once('-').unwrap().0.to_owned());
        if let Some(other) = seen.insert(known, route) {
            panic!("{route:?} and {other:?} are one for Traefik");
        }
    }
    // Only the hash keeps most of them apart.
    assert!(texts.len() < CASES / 2, "{} texts of {CASES} names: the cases are too different", texts.len());
}

fn class(template: &str) -> EdgeClass {
    serde_json::from_value(serde_json::json!({
        "metadata": {"name": "public", "annotations": {"peristyle.dev/is-default-class": "true"}},
        "spec": {"provider": "Traefik", "traefik": {"entryPoints": ["web"]}, "hosts": {"template": template}}
    }))
    .unwrap()
}

fn exposed(namespace: &str, name: &str) -> Service {
    let expose = Expose { name: "public".to_owned(), ..Expose::default() };
    let mut service = Service::new(name, ServiceSpec { expose: vec![expose], ..ServiceSpec::default() });
    service.metadata = ObjectMeta {
        namespace: Some(namespace.to_owned()),
        uid: Some(format!("{namespace}/{name}")),
        ..service.metadata
    };
    service
}

/// The hosts that `template` gives to a hundred thousand Services, by who has them.
fn template_hosts(template: &str) -> (usize, usize) {
    let mut random = StdRng::seed_from_u64(9);
    let mut pairs = BTreeSet::new();
    while pairs.len() < CASES {
        let namespace = format!("{}-{}", label(&mut random, 50), random.random_range(0..2000));
        pairs.insert((namespace, label(&mut random, 50)));
    }
    let services: Vec<Service> = pairs.iter().map(|(namespace, name)| exposed(namespace, name)).collect();
    let (classes, namespaces) = ([class(template)], Vec::<PartialObjectMeta<Namespace>>::new());
    let claims = Claims::settle(&services, &classes, &namespaces);
    let (mut granted, mut refused) = (HashSet::new(), 0);
    for service in &services {
        let hosts = claims.hosts(service, &service.spec.expose[0]).unwrap();
        refused += hosts.refused.len();
        for host in hosts.granted {
            assert!(granted.insert(host.clone()), "{host} is granted twice");
        }
    }
    (granted.len(), refused)
}

#[test]
fn the_template_gives_a_hundred_thousand_services_as_many_hosts() {
    assert_eq!(template_hosts("{service}.{namespace}.example.com"), (CASES, 0));
}

#[test]
fn where_the_template_gives_two_services_one_host_only_one_of_them_has_it() {
    let (granted, refused) = template_hosts("{service}-{namespace}.example.com");
    assert_eq!(granted + refused, CASES);
    assert!(refused > 0, "no two Services came to one host: the cases are too different");
}
