//! A pass looks only at what is near, and only at whom a change concerns:
//! nobody may be decided in another way than by a look at everything.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test ends by panicking")]

use std::{collections::BTreeSet, sync::Arc};

use kube::ResourceExt;
use peristyle::{
    auth::{
        compile::compile,
        id_token,
        key::PolicyKey,
        protection::decide,
        publications::Publications,
        reach::{Change, aimed_at, targets},
        relations::Refusals,
        world::Snapshot,
    },
    edge::{
        claims::{ServiceKey, names},
        traefik::objects::IngressRoute,
    },
};
use peristyle_crds::v1alpha1::{AuthPolicy, Service};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

const CASES: usize = 2_000;
const NAMESPACES: [&str; 2] = ["a", "a-b"];
const HOSTS: [&str; 4] = ["w.shop.test", "v.shop.test", "x-a.test", "not.allowed"];

fn object<T: DeserializeOwned>(value: Value) -> Arc<T> {
    Arc::new(serde_json::from_value(value).unwrap())
}

fn some<'a>(random: &mut StdRng, of: &[&'a str], most: usize) -> Vec<&'a str> {
    let count = random.random_range(0..=most);
    of.sample(random, count).copied().collect()
}

fn one<'a>(random: &mut StdRng, of: &[&'a str]) -> &'a str {
    of.choose(random).unwrap()
}

/// One of few moments, so that some objects have the same age.
fn moment(random: &mut StdRng) -> String {
    format!("2026-01-0{}T00:00:00Z", random.random_range(1..4))
}

fn service(random: &mut StdRng, namespace: &str, name: &str) -> Arc<Service> {
    let exposes = some(random, &["p", "q"], 2).into_iter().map(|expose| {
        let class = one(random, &["public", "internal", ""]);
        let mut expose = json!({"name": expose, "hosts": some(random, &HOSTS, 2)});
        if !class.is_empty() {
            expose["className"] = json!(class);
        }
        if random.random_range(0..4) == 0 {
            expose["auth"] = json!({"mode": "Public"});
        }
        expose
    });
    let spec = json!({"image": "x:1", "expose": exposes.collect::<Vec<_>>()});
    let uid = format!("{namespace}/{name}");
    object(
        json!({"metadata": {"namespace": namespace, "name": name, "uid": uid, "creationTimestamp": moment(random)}, "spec": spec}),
    )
}

fn policy(random: &mut StdRng, namespace: &str, name: &str) -> Arc<AuthPolicy> {
    let mut services = some(random, &["x", "y", "z", "missing"], 2);
    services.push(one(random, &["x", "y", "z"]));
    let aims = services.into_iter().map(|service| match one(random, &["p", "", ""]) {
        "" => json!({"service": service}),
        expose => json!({"service": service, "expose": expose}),
    });
    let mut spec = json!({
        "targets": aims.collect::<Vec<_>>(),
        "authentication": [{"name": "idp", "jwt": {"issuer": "https://idp/", "audiences": ["x"]}}],
        "rules": [{"name": "all", "match": {"http": [{"path": {"prefix": "/"}}]}, "authentication": ["idp"]}],
    });
    if random.random_range(0..3) == 0 {
        let relation = json!({"namespace": one(random, &["A", "B"]), "object": "o", "relation": "r"});
        spec["rules"][0]["authorization"] = json!({"relation": relation});
    }
    if random.random_range(0..3) == 0 {
        let class =
            |name: &str| format!("class {name} implements Namespace {{ related: {{ r: {name}[] }} }}\n");
        let classes: String = ["A", "B"].iter().filter(|_| random.random()).map(|name| class(name)).collect();
        let import = "import { Namespace } from \"@ory/keto-namespace-types\"\n";
        spec["relations"] = json!({"model": format!("{import}{classes}")});
    }
    if random.random_range(0..5) == 0 {
        spec["className"] = json!("other");
    }
    object(
        json!({"metadata": {"namespace": namespace, "name": name, "creationTimestamp": moment(random)}, "spec": spec}),
    )
}

/// A way in for a host, of somebody or of nobody any more.
fn route(random: &mut StdRng, name: &str) -> Arc<IngressRoute> {
    let owner = format!("{}/{}", one(random, &NAMESPACES), one(random, &["x", "y", "gone"]));
    let mut metadata = json!({"namespace": one(random, &NAMESPACES), "name": name,
        "labels": {"peristyle.dev/edge": one(random, &["public", "internal"])}});
    if random.random() {
        metadata["ownerReferences"] = json!([{"apiVersion": "peristyle.dev/v1alpha1", "kind": "Service",
            "name": "s", "uid": owner, "controller": true}]);
    }
    let rule = format!("Host(`{}`)", one(random, &["w.shop.test", "v.shop.test", "x-a.test", "x.a.test"]));
    object(json!({"metadata": metadata, "spec": {"routes": [{"match": rule}]}}))
}

fn surroundings(random: &mut StdRng) -> Snapshot {
    let edge_class = |name: &str, template: &str, is_default: &str| {
        let allow = json!([{"namespaces": {"selector": {"matchLabels": {"tier": "shop"}}}, "suffixes": ["shop.test"]}]);
        object(
            json!({"metadata": {"name": name, "annotations": {"peristyle.dev/is-default-class": is_default}},
            "spec": {"provider": "Traefik", "traefik": {"entryPoints": ["web"]}, "hosts": {"template": template, "allow": allow}}}),
        )
    };
    let auth_class = |name: &str, is_default: &str| {
        object(
            json!({"metadata": {"name": name, "uid": name, "annotations": {"peristyle.dev/is-default-class": is_default}},
            "spec": {
                "oathkeeper": {"namespace": "system", "service": name, "rulesConfigMap": "rules"},
                "keto": {"readURL": "http://r", "writeURL": "http://w", "oplURL": "http://o",
                    "namespacesConfigMap": {"namespace": "system", "name": "n", "key": "k"}},
                "issuers": [{"issuer": "https://idp/", "jwksURL": "https://idp/keys"}],
                "idToken": {"issuer": "https://gate", "jwksSecret": "keys"},
            }}),
        )
    };
    let namespace =
        |name: &str, tier: &str| object(json!({"metadata": {"name": name, "labels": {"tier": tier}}}));
    let mut world = Snapshot {
        classes: vec![auth_class("default", "true"), auth_class("other", "false")],
        edge_classes: vec![
            edge_class("public", "{service}.{namespace}.test", "true"),
            edge_class("internal", "{service}-{namespace}.test", "false"),
        ],
        namespaces: vec![namespace("a", "shop"), namespace("a-b", one(random, &["shop", "other"]))],
        ..Snapshot::default()
    };
    for namespace in NAMESPACES {
        for name in some(random, &["x", "y", "z"], 3) {
            world.services.push(service(random, namespace, name));
        }
        for name in some(random, &["k", "l", "m"], 3) {
            world.policies.push(policy(random, namespace, name));
        }
    }
    world.routes = some(random, &["r", "s"], 2).into_iter().map(|name| route(random, name)).collect();
    world
}

/// All that is decided about a Service, in words.
fn about_service(world: &Snapshot, service: &Service) -> String {
    let claims = world.claims();
    let world = world.world(&claims);
    let publications = Publications::default();
    let about = service.spec.expose.iter().map(|expose| {
        let protection = decide(&world, &publications, service, expose);
        format!("{:?} {protection:?}", claims.hosts(service, expose))
    });
    format!("{:?} {:?}", about.collect::<Vec<_>>(), id_token::tokens(&world, service))
}

/// All that is decided about a policy, in words.
fn about_policy(world: &Snapshot, policy: &AuthPolicy) -> String {
    let claims = world.claims();
    let world = world.world(&claims);
    let compiled = world.class(policy).and_then(|class| {
        let namespaces = world.namespaces(class, &Refusals::new());
        compile(&world, class, &namespaces, policy)
    });
    format!("{compiled:?}")
}

#[test]
fn what_is_near_decides_as_everything_does() {
    let mut random = StdRng::seed_from_u64(7);
    let (mut left_out, mut live) = (0, 0);
    for _ in 0..CASES {
        let world = surroundings(&mut random);
        for service in &world.services {
            let near = world.around([names(service)]);
            left_out += world.services.len() - near.services.len();
            let about = about_service(&world, service);
            live += usize::from(about.contains("Unknown"));
            assert_eq!(about_service(&near, service), about, "{service:?} in {world:#?}");
        }
        for policy in &world.policies {
            let near = world.around(aimed_at(policy));
            assert_eq!(about_policy(&near, policy), about_policy(&world, policy), "{policy:?} in {world:#?}");
        }
    }
    assert!(left_out > CASES && live > CASES / 4, "{left_out} were left out, {live} policies compile");
}

/// The world after one change, and what is told of it.
fn changed(random: &mut StdRng, world: &Snapshot) -> (Snapshot, Change) {
    let mut after = world.clone();
    let classes = &world.edge_classes;
    let (namespace, is_removal) = (one(random, &NAMESPACES), random.random_range(0..3) == 0);
    let change = match random.random_range(0..4) {
        0 => {
            let name = one(random, &["x", "y", "z"]);
            let next = service(random, namespace, name);
            let key = ServiceKey::of(&next);
            let before = world.services.iter().find(|service| ServiceKey::of(service) == key);
            after.services.retain(|service| ServiceKey::of(service) != key);
            after.services.extend(Some(next.clone()).filter(|_| !is_removal));
            let versions = before.into_iter().chain([&next]).map(|service| service.spec.expose.as_slice());
            Change::of_service(classes, key, versions)
        }
        1 => {
            let name = one(random, &["k", "l", "m"]);
            let next = policy(random, namespace, name);
            let key = PolicyKey::of(&next);
            let before = world.policies.iter().find(|policy| PolicyKey::of(policy) == key);
            after.policies.retain(|policy| PolicyKey::of(policy) != key);
            after.policies.extend(Some(next.clone()).filter(|_| !is_removal));
            let versions: Vec<_> = before.into_iter().chain([&next]).collect();
            let aims: BTreeSet<_> = versions.iter().flat_map(|policy| targets(policy)).collect();
            let relations = versions.iter().any(|policy| policy.spec.relations.is_some());
            let find = |key: &ServiceKey| world.services.iter().find(|s| ServiceKey::of(s) == *key).cloned();
            Change::of_policy(classes, aims, find, relations)
        }
        2 => {
            let tier = one(random, &["shop", "other"]);
            after.namespaces.retain(|other| other.name_any() != namespace);
            after.namespaces.push(object(json!({"metadata": {"name": namespace, "labels": {"tier": tier}}})));
            Change::of_namespace(classes, namespace, &world.services)
        }
        _ => match after.routes.pop() {
            Some(route) => Change::of_route(&route),
            None => Change::default(),
        },
    };
    (after, change)
}

#[test]
fn whoever_is_decided_in_another_way_is_told() {
    let mut random = StdRng::seed_from_u64(8);
    let (mut moved, mut spared) = (0, 0);
    for _ in 0..CASES {
        let before = surroundings(&mut random);
        let (after, change) = changed(&mut random, &before);
        let reach = change.reach(&after.edge_classes, &after.services, &after.policies);
        for service in after.services.iter().filter(|service| before.services.contains(service)) {
            if reach.services.contains(&ServiceKey::of(service)) {
                moved += 1;
                continue;
            }
            spared += 1;
            let (then, now) = (about_service(&before, service), about_service(&after, service));
            assert_eq!(then, now, "{change:?} does not reach {service:?} in {before:#?}");
        }
        for policy in after.policies.iter().filter(|policy| before.policies.contains(policy)) {
            if !reach.policies.contains(&PolicyKey::of(policy)) {
                let (then, now) = (about_policy(&before, policy), about_policy(&after, policy));
                assert_eq!(then, now, "{change:?} does not reach {policy:?} in {before:#?}");
            }
        }
    }
    assert!(moved > CASES / 4 && spared > CASES / 4, "{moved} were told and {spared} were not");
}
