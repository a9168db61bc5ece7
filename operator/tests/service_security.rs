//! Whatever a team writes, its pods are as Pod Security "restricted" wants them,
//! run under their own identity without a token, and stay in their namespace.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking, in its helpers too")]

#[path = "support/pod_security.rs"]
mod pod_security;

#[path = "support/generator.rs"]
mod generator;

use std::collections::BTreeMap;

use generator::Generator;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;
use peristyle::commands::render::{input::Input, render};
use peristyle_crds::v1alpha1::Service;
use pod_security::violations;
use rstest::rstest;
use serde_json::{Value, json};

/// Specs whose pods are judged, by all threads together.
const CASES: usize = 100_000;
const THREADS: usize = 2;

fn schema() -> JSONSchemaProps {
    let crd = peristyle_crds::crd::all().into_iter().find(|crd| crd.spec.names.kind == "Service").unwrap();
    let schema = crd.spec.versions[0].schema.clone().unwrap().open_api_v3_schema.unwrap();
    schema.properties.unwrap().remove("spec").unwrap()
}

/// Everything that must hold for the children of a Service `orders` in `shop`.
fn check(objects: &[Value]) -> Result<(), String> {
    let kinds = [
        "NetworkPolicy",
        "ServiceAccount",
        "Service",
        "PodDisruptionBudget",
        "Job",
        "Deployment",
        "ServersTransport",
        "Middleware",
        "IngressRoute",
    ];
    for object in objects {
        let kind = object["kind"].as_str().unwrap();
        let metadata = &object["metadata"];
        ensure(kinds.contains(&kind) || kind == "EndpointSlice", || format!("a child of kind {kind}"))?;
        ensure(metadata["namespace"] == "shop", || format!("{kind} in another namespace"))?;
        let managed_by = &metadata["labels"]["app.kubernetes.io/managed-by"];
        ensure(managed_by == "peristyle", || format!("{kind} without our label"))?;
        if matches!(kind, "Deployment" | "Job") {
            check_pods(kind, &object["spec"]["template"])?;
        }
        if kind == "Deployment" {
            let selector = &object["spec"]["selector"]["matchLabels"];
            let expected = json!({"app.kubernetes.io/instance": "orders", "peristyle.dev/service": "orders"});
            ensure(*selector == expected, || format!("selector {selector}"))?;
        }
    }
    Ok(())
}

fn check_pods(kind: &str, template: &Value) -> Result<(), String> {
    let forbidden = violations(template);
    ensure(forbidden.is_empty(), || format!("pods of the {kind} are not restricted: {forbidden:?}"))?;
    let spec = &template["spec"];
    ensure(spec["serviceAccountName"] == "orders", || "a foreign identity".to_owned())?;
    ensure(spec["automountServiceAccountToken"] == false, || "a token".to_owned())?;
    ensure(spec["enableServiceLinks"] == false, || "service links".to_owned())?;
    ensure(!spec["volumes"].to_string().contains("serviceAccountToken"), || "a projected token".to_owned())?;
    ensure(spec["nodeName"].is_null(), || "a node".to_owned())
}

fn ensure(holds: bool, what: impl Fn() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// Renders generated specs until `cases` had pods.
fn search(seed: u8, cases: usize) -> BTreeMap<String, usize> {
    let schema = schema();
    let mut generator = Generator::new(seed);
    let mut found = BTreeMap::new();
    let mut rendered = 0;
    while rendered < cases {
        let mut spec = generator.value(&schema);
        // Routes take ten times as long as all the rest, and pods know nothing of them.
        if rendered % 20 != 0 {
            spec.as_object_mut().unwrap().remove("expose");
        }
        let Some((spec, objects)) = accepted(spec) else {
            *found.entry("refused".to_owned()).or_default() += 1;
            continue;
        };
        // Where something is missing there are no pods to judge.
        rendered += usize::from(objects.iter().any(|object| object["kind"] == "Deployment"));
        if let Err(broken) = check(&objects) {
            panic!("{broken}, of {spec:#}");
        }
        for object in &objects {
            *found.entry(object["kind"].as_str().unwrap().to_owned()).or_default() += 1;
        }
    }
    found
}

/// The spec without what contradicts itself, and its children.
fn accepted(mut spec: Value) -> Option<(Value, Vec<Value>)> {
    loop {
        let object = json!({"metadata": {"name": "orders", "namespace": "shop"}, "spec": spec});
        let service: Service = serde_json::from_value(object).unwrap();
        let mut input = Input::default();
        input.services.push(service.clone());
        let error = match render(&input, &service, 2) {
            Ok(rendered) => return Some((spec, rendered.objects)),
            Err(error) => error.to_string(),
        };
        let field = error.strip_prefix("spec.")?.split(['.', '[', ':']).next()?;
        spec.as_object_mut()?.remove(field)?;
    }
}

#[test]
fn every_spec_that_the_schema_accepts_gives_restricted_pods() {
    let threads: Vec<_> = (0..THREADS)
        .map(|seed| std::thread::spawn(move || search(u8::try_from(seed).unwrap(), CASES / THREADS)))
        .collect();
    for thread in threads {
        let found = thread.join().unwrap();
        // What was never rendered was not tested.
        for kind in ["Deployment", "Job", "NetworkPolicy", "PodDisruptionBudget", "IngressRoute"] {
            assert!(found.get(kind).is_some_and(|count| *count > 100), "{kind}: {found:?}");
        }
        println!("{found:?}");
    }
}

fn restricted() -> Value {
    json!({"spec": {
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [{"name": "tmp", "emptyDir": {}}],
        "containers": [{"securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}}}]
    }})
}

#[test]
fn the_judge_accepts_a_restricted_pod() {
    assert_eq!(violations(&restricted()), Vec::<String>::new());
}

#[rstest]
#[case("/spec", json!({"hostNetwork": true}))]
#[case("/spec", json!({"hostPID": true}))]
#[case("/spec", json!({"volumes": [{"name": "x", "hostPath": {"path": "/"}}]}))]
#[case("/spec", json!({"initContainers": [{}]}))]
#[case("/spec/securityContext", json!({"runAsUser": 0}))]
#[case("/spec/securityContext", json!({"runAsNonRoot": null}))]
#[case("/spec/securityContext", json!({"seccompProfile": {"type": "Unconfined"}}))]
#[case("/spec/securityContext", json!({"seccompProfile": null}))]
#[case("/spec/securityContext", json!({"sysctls": [{"name": "kernel.msgmax", "value": "1"}]}))]
#[case("/spec/securityContext", json!({"seLinuxOptions": {"type": "spc_t"}}))]
#[case("/spec/containers/0/securityContext", json!({"privileged": true}))]
#[case("/spec/containers/0/securityContext", json!({"allowPrivilegeEscalation": null}))]
#[case("/spec/containers/0/securityContext", json!({"capabilities": {"drop": ["NET_RAW"]}}))]
#[case("/spec/containers/0/securityContext", json!({"capabilities": {"drop": ["ALL"], "add": ["SYS_ADMIN"]}}))]
#[case("/spec/containers/0/securityContext", json!({"runAsNonRoot": false}))]
#[case("/spec/containers/0/securityContext", json!({"procMount": "Unmasked"}))]
#[case("/spec/containers/0", json!({"ports": [{"containerPort": 80, "hostPort": 80}]}))]
#[case("/spec/containers/0", json!({"livenessProbe": {"httpGet": {"host": "169.254.169.254"}}}))]
fn the_judge_refuses_what_is_not_restricted(#[case] place: &str, #[case] change: Value) {
    let mut template = restricted();
    let target = template.pointer_mut(place).unwrap();
    for (key, value) in change.as_object().unwrap() {
        target[key] = value.clone();
    }
    assert!(!violations(&template).is_empty(), "{template:#}");
}
