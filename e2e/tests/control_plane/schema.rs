//! What the API server itself accepts and refuses: schema and CEL rules, on a
//! real control plane.

use std::time::Duration;

use e2e::{control_plane::ControlPlane, wait};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

async fn install(client: &Client) -> anyhow::Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in peristyle_crds::crd::all() {
        let name = crd.metadata.name.clone().unwrap_or_default();
        api.patch(&name, &PatchParams::apply("test"), &Patch::Apply(&crd)).await?;
        wait::object(&api, &name, "the CRD is established", Duration::from_secs(60), |crd| {
            let conditions = crd.status.as_ref().and_then(|s| s.conditions.as_ref());
            conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Established" && c.status == "True"))
        })
        .await?;
    }
    Ok(())
}

fn api(client: &Client, kind: &str, plural: &str) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk("peristyle.dev", "v1alpha1", kind);
    let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
    if kind.ends_with("Class") {
        return Api::all_with(client.clone(), &resource);
    }
    Api::namespaced_with(client.clone(), "default", &resource)
}

fn object(kind: &str, name: &str, spec: &Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "peristyle.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec
    }))
    .unwrap()
}

/// Creates in a dry run; the answer is what the API server says to a user.
async fn create(api: &Api<DynamicObject>, object: &DynamicObject) -> Result<(), String> {
    let params = PostParams { dry_run: true, field_manager: Some("test".to_owned()) };
    api.create(&params, object).await.map(|_| ()).map_err(|error| error.to_string())
}

struct Case {
    what: &'static str,
    spec: Value,
    /// A part of the refusal; `None` when the object is accepted.
    refusal: Option<&'static str>,
}

fn good(what: &'static str, spec: Value) -> Case {
    Case { what, spec, refusal: None }
}

fn bad(what: &'static str, spec: Value, refusal: &'static str) -> Case {
    Case { what, spec, refusal: Some(refusal) }
}

async fn check(client: &Client, kind: &str, plural: &str, cases: Vec<Case>) {
    let api = api(client, kind, plural);
    for case in cases {
        let answer = create(&api, &object(kind, "x", &case.spec)).await;
        match (case.refusal, answer) {
            (None, answer) => assert_eq!(answer, Ok(()), "{kind}: {}", case.what),
            (Some(_), Ok(())) => panic!("{kind}: {} was accepted", case.what),
            (Some(part), Err(message)) => {
                assert!(message.contains(part), "{kind}: {}: {message:?} does not say {part:?}", case.what);
            }
        }
    }
}

fn service_cases() -> Vec<Case> {
    let with = |extra: Value| {
        let mut spec = json!({"image": "x"});
        spec.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        spec
    };
    vec![
        good("an image alone", with(json!({}))),
        bad("no image", json!({}), "spec.image: Required"),
        good("an expose of the default port", with(json!({"expose": [{"name": "a", "port": "grpc"}]}))),
        bad(
            "an expose of a missing port",
            with(json!({"expose": [{"name": "a", "port": "http"}]})),
            "must be the name of one of spec.ports",
        ),
        bad(
            "two ports of one name",
            with(json!({"ports": [{"name": "a", "port": 1}, {"name": "a", "port": 2}]})),
            "Duplicate value",
        ),
        bad("a port out of range", with(json!({"ports": [{"name": "a", "port": 70000}]})), "65535"),
        bad("a negative replica count", with(json!({"replicas": -1})), "spec.replicas"),
        bad(
            "a value and a source",
            with(
                json!({"env": [{"name": "A", "value": "b", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]}),
            ),
            "set value or valueFrom, not both",
        ),
        bad(
            "two sources",
            with(
                json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}, "secretKeyRef": {"name": "a", "key": "b"}}}]}),
            ),
            "set exactly one of",
        ),
        bad(
            "a probe with two checks",
            with(json!({"health": {"liveness": {"tcp": {}, "grpc": {}}}})),
            "at most one of grpc, http, tcp and exec",
        ),
        bad(
            "a probe that is off and has a check",
            with(json!({"health": {"liveness": {"mode": "None", "tcp": {}}}})),
            "mode None switches the probe off",
        ),
        bad(
            "a dependency on nothing",
            with(json!({"dependsOn": [{"name": "a"}]})),
            "exactly one of service and url",
        ),
        bad(
            "a path that is both",
            with(json!({"expose": [{"name": "a", "paths": [{"prefix": "/a", "exact": "/a"}]}]})),
            "exactly one of prefix and exact",
        ),
        bad(
            "a path with a back-tick",
            with(json!({"expose": [{"name": "a", "paths": [{"prefix": "/`) || Host(`x"}]}]})),
            "spec.expose[0].paths[0].prefix",
        ),
        good(
            "paths with dots and a slash at the end",
            with(exposed(&["/", "/a/", "/.well-known/x", "/a/..b/...", "/a.b/c."])),
        ),
        bad(
            "a path with an empty segment",
            with(exposed(&["/a", "/a//b"])),
            "spec.expose[0].paths[1].prefix",
        ),
        bad("a path of two slashes", with(exposed(&["//"])), SEGMENTS),
        bad("a path with two slashes at the end", with(exposed(&["/a//"])), SEGMENTS),
        bad("a path with a dot", with(exposed(&["/a/./b"])), SEGMENTS),
        bad("a path with a dot at the end", with(exposed(&["/a/."])), SEGMENTS),
        bad("a path with two dots", with(exposed(&["/../a"])), SEGMENTS),
        bad("a path with two dots at the end", with(exposed(&["/a/.."])), SEGMENTS),
        bad(
            "an exact path with two dots",
            with(json!({"expose": [{"name": "a", "paths": [{"exact": "/a/../b"}]}]})),
            SEGMENTS,
        ),
        bad(
            "a host with a back-tick",
            with(json!({"expose": [{"name": "a", "hosts": ["x`y.test"]}]})),
            "spec.expose[0].hosts[0]",
        ),
        bad(
            "a hook for a database that is not bound",
            with(json!({"hooks": {"preRollout": [{"name": "m", "command": ["m"], "database": "main"}]}})),
            "must be the name of one of spec.databases",
        ),
        bad(
            "a timeout that is no duration",
            with(json!({"hooks": {"preRollout": [{"name": "m", "command": ["m"], "timeout": "5 minutes"}]}})),
            "timeout",
        ),
    ]
}

/// What is told about a path that would be cleaned.
const SEGMENTS: &str = "must have no empty, '.' or '..' segment; write the path as it is after cleaning";

fn exposed(prefixes: &[&str]) -> Value {
    let paths: Vec<Value> = prefixes.iter().map(|prefix| json!({ "prefix": prefix })).collect();
    json!({"expose": [{"name": "a", "paths": paths}]})
}

fn policy_cases() -> Vec<Case> {
    let policy = |rule: Value| json!({"targets": [{"service": "x"}], "authentication": [{"name": "idp", "jwt": {"issuer": "i", "audiences": ["a"]}}], "rules": [rule]});
    let grpc = json!({"grpc": [{"service": "a.v1.A"}]});
    vec![
        good("an authenticated rule", policy(json!({"name": "r", "match": grpc, "authentication": ["idp"]}))),
        good("a public rule", policy(json!({"name": "r", "match": grpc, "public": {}}))),
        bad(
            "a rule for a path that would be cleaned",
            policy(json!({"name": "r", "match": {"http": [{"path": {"prefix": "/a/.."}}]}, "public": {}})),
            SEGMENTS,
        ),
        bad(
            "neither public nor authenticated",
            policy(json!({"name": "r", "match": grpc})),
            "exactly one of public and authentication",
        ),
        bad(
            "public and authenticated",
            policy(json!({"name": "r", "match": grpc, "public": {}, "authentication": ["idp"]})),
            "exactly one of public and authentication",
        ),
        bad(
            "an unknown authentication",
            policy(json!({"name": "r", "match": grpc, "authentication": ["nobody"]})),
            "must name entries of spec.authentication",
        ),
        bad(
            "an empty list of authentications",
            policy(json!({"name": "r", "match": grpc, "authentication": []})),
            "rules[0].authentication",
        ),
        bad(
            "gRPC and HTTP at once",
            policy(
                json!({"name": "r", "match": {"grpc": [{"service": "a.v1.A"}], "http": [{"path": {"exact": "/a"}}]}, "public": {}}),
            ),
            "exactly one of grpc and http",
        ),
        bad(
            "a gRPC service that is a pattern",
            policy(json!({"name": "r", "match": {"grpc": [{"service": "a.v1.<.*>"}]}, "public": {}})),
            "grpc[0].service",
        ),
        bad(
            "a method that is a pattern",
            policy(
                json!({"name": "r", "match": {"grpc": [{"service": "a.v1.A", "methods": ["Get|Set"]}]}, "public": {}}),
            ),
            "methods[0]",
        ),
        bad("no rule", json!({"targets": [{"service": "x"}], "rules": []}), "spec.rules"),
        bad(
            "no target",
            json!({"targets": [], "rules": [{"name": "r", "match": grpc, "public": {}}]}),
            "spec.targets",
        ),
        bad(
            "a symmetric algorithm",
            json!({"targets": [{"service": "x"}], "authentication": [{"name": "a", "jwt": {"issuer": "i", "audiences": ["a"], "algorithms": ["HS256"]}}], "rules": [{"name": "r", "match": grpc, "public": {}}]}),
            "Unsupported value: \"HS256\"",
        ),
        bad(
            "a tuple with two subjects",
            json!({"targets": [{"service": "x"}], "rules": [{"name": "r", "match": grpc, "public": {}}], "relations": {"tuples": [{"namespace": "A", "object": "a", "relation": "b", "subject": "c", "subjectSet": {"namespace": "A", "object": "a", "relation": "b"}}]}}),
            "exactly one of subject and subjectSet",
        ),
    ]
}

fn class_cases() -> [(&'static str, &'static str, Vec<Case>); 3] {
    let external = |tls: Value| json!({"engine": "PostgreSQL", "provider": "External", "external": {"endpoints": {"write": "pg:5432"}, "adminSecret": {"name": "a"}, "tls": tls}});
    let edge = |template: &str| json!({"provider": "Traefik", "traefik": {"entryPoints": ["web"]}, "hosts": {"template": template}});
    let keto = json!({"readURL": "http://k:4466", "writeURL": "http://k:4467", "oplURL": "http://k:4469", "namespacesConfigMap": {"namespace": "a", "name": "b", "key": "c"}});
    let oathkeeper = json!({"namespace": "a", "service": "b", "rulesConfigMap": "c"});
    [
        (
            "DatabaseClass",
            "databaseclasses",
            vec![
                good("verified TLS", external(json!({"mode": "VerifyFull", "caConfigMap": {"name": "ca"}}))),
                bad(
                    "verified TLS without authorities",
                    external(json!({"mode": "VerifyFull"})),
                    "caConfigMap goes with mode VerifyFull",
                ),
                good("no TLS, accepted", external(json!({"mode": "Disabled", "allowInsecure": "Enabled"}))),
                bad(
                    "no TLS by accident",
                    external(json!({"mode": "Disabled"})),
                    "set allowInsecure: Enabled",
                ),
                bad(
                    "external without a server",
                    json!({"engine": "PostgreSQL", "provider": "External"}),
                    "spec.external goes with provider External",
                ),
            ],
        ),
        (
            "EdgeClass",
            "edgeclasses",
            vec![
                good("a full template", edge("{service}.{namespace}.example.com")),
                bad(
                    "a template without the namespace",
                    edge("{service}.example.com"),
                    "must contain {service} and {namespace}",
                ),
                bad(
                    "a template that gives two Services one host",
                    edge("{service}-{namespace}.example.com"),
                    "must stand in different labels",
                ),
                bad(
                    "Traefik without its part",
                    json!({"provider": "Traefik", "hosts": {"template": "{service}.{namespace}.x"}}),
                    "spec.traefik goes with provider Traefik",
                ),
            ],
        ),
        (
            "AuthClass",
            "authclasses",
            vec![
                good("a pair", json!({"oathkeeper": oathkeeper, "keto": keto})),
                good(
                    "a pair that signs",
                    json!({"oathkeeper": oathkeeper, "keto": keto, "idToken": {"issuer": "http://g", "jwksSecret": "k", "ttl": "1m30s"}}),
                ),
                bad(
                    "a token for a day",
                    json!({"oathkeeper": oathkeeper, "keto": keto, "idToken": {"issuer": "http://g", "jwksSecret": "k", "ttl": "24h"}}),
                    "ttl: from 1m to 1h",
                ),
                bad(
                    "a token of nobody",
                    json!({"oathkeeper": oathkeeper, "keto": keto, "idToken": {"issuer": "", "jwksSecret": "k"}}),
                    "idToken.issuer",
                ),
                bad(
                    "an address that is none",
                    json!({"oathkeeper": oathkeeper, "keto": {"readURL": "keto", "writeURL": "http://k", "oplURL": "http://k", "namespacesConfigMap": {"namespace": "a", "name": "b", "key": "c"}}}),
                    "keto.readURL",
                ),
            ],
        ),
    ]
}

async fn immutable_fields_stay(client: &Client) {
    let api = api(client, "Database", "databases");
    api.create(&PostParams::default(), &object("Database", "fixed", &json!({"className": "a"})))
        .await
        .unwrap();
    for (change, refusal) in [
        (json!({"className": "b"}), "spec.className is immutable"),
        (json!({"className": null}), "spec.className is immutable"),
        (json!({"name": "other"}), "spec.name is immutable"),
    ] {
        let answer =
            api.patch("fixed", &PatchParams::default(), &Patch::Merge(json!({"spec": change.clone()}))).await;
        let message = answer.expect_err("an immutable field was changed").to_string();
        assert!(message.contains(refusal), "{change}: {message}");
    }
    let stored = api.get("fixed").await.unwrap();
    assert_eq!(stored.data["status"], json!({"observedGeneration": -1}), "a new object is not Current");
}

#[tokio::test]
async fn the_api_server_refuses_what_cannot_work_and_says_why() {
    let plane = ControlPlane::start().await.expect("a control plane");
    let client = plane.client().await.unwrap();
    install(&client).await.unwrap();
    check(&client, "Service", "services", service_cases()).await;
    check(&client, "AuthPolicy", "authpolicies", policy_cases()).await;
    for (kind, plural, cases) in class_cases() {
        check(&client, kind, plural, cases).await;
    }
    immutable_fields_stay(&client).await;
    let long = object("Service", &"x".repeat(51), &json!({"image": "x"}));
    let message =
        create(&api(&client, "Service", "services"), &long).await.expect_err("a long name was accepted");
    assert!(message.contains("at most 50"), "{message}");
}

#[tokio::test]
async fn the_crds_are_structural_and_their_names_are_accepted() {
    let plane = ControlPlane::start().await.expect("a control plane");
    let client = plane.client().await.unwrap();
    install(&client).await.unwrap();
    for crd in peristyle_crds::crd::all() {
        let api: Api<CustomResourceDefinition> = Api::all(client.clone());
        let stored = api.get(crd.metadata.name.as_deref().unwrap()).await.unwrap();
        let conditions = stored.status.unwrap().conditions.unwrap_or_default();
        let problem = conditions
            .iter()
            .find(|c| c.type_ == "NonStructuralSchema" || (c.type_ == "NamesAccepted" && c.status != "True"));
        assert!(problem.is_none(), "{}: {problem:?}", crd.spec.names.kind);
    }
}
