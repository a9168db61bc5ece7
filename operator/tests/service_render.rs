//! What `peristyle render` prints: every child of every object.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use std::collections::BTreeSet;

use peristyle::commands::render::{input::Input, print};
use serde_json::Value;

/// What is printed of `input`: comments, documents, and what is told beside them.
fn printed(input: &Input) -> (Vec<String>, Vec<Value>, Vec<String>) {
    let mut out = Vec::new();
    let problems = print(input, 2, &mut out).unwrap();
    let text = String::from_utf8(out).unwrap();
    let comments = text.lines().take_while(|line| line.starts_with('#')).map(ToOwned::to_owned).collect();
    (comments, serde_saphyr::from_multiple(&text).unwrap(), problems)
}

fn example() -> Input {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/01-greeter");
    let mut input = Input::default();
    for file in std::fs::read_dir(folder).unwrap() {
        input.add(&std::fs::read_to_string(file.unwrap().path()).unwrap(), "demo").unwrap();
    }
    input
}

fn names(documents: &[Value]) -> BTreeSet<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let name = |document: &Value| {
        let metadata = &document["metadata"];
        format!("{} {}/{}", text(&document["kind"]), text(&metadata["namespace"]), text(&metadata["name"]))
    };
    documents.iter().map(name).collect()
}

#[test]
fn every_child_of_the_example_is_printed_or_named() {
    let (comments, documents, problems) = printed(&example());
    assert_eq!(problems, Vec::<String>::new());
    let names = names(&documents);
    assert_eq!(names.len(), documents.len(), "one is printed twice");
    for service in ["auth", "caller", "greeter"] {
        for kind in ["NetworkPolicy", "ServiceAccount", "Service", "PodDisruptionBudget", "Deployment"] {
            assert!(names.contains(&format!("{kind} demo/{service}")), "{kind} {service}: {names:#?}");
        }
        let jobs = names.iter().filter(|name| name.starts_with(&format!("Job demo/{service}-migrate-")));
        assert_eq!(jobs.count(), 1, "{names:#?}");
        // The auth service is exposed by HTTP, the greeter by gRPC and the caller not at all.
        for (kind, exposed) in [
            ("IngressRoute", &["auth", "greeter"][..]),
            ("Middleware", &["auth", "greeter"]),
            ("ServersTransport", &["greeter"]),
        ] {
            let found = names.iter().any(|name| name.starts_with(&format!("{kind} demo/{service}-public-")));
            assert_eq!(found, exposed.contains(&service), "{kind} {service}: {names:#?}");
        }
        let secret = format!(
            "# Secret demo/{service}-db (servicebinding.io/postgresql), keys database, host, jdbc-uri, password, \
             port, provider, sslmode, type, uri, username: made in the cluster, holds a password"
        );
        assert!(comments.contains(&secret), "{comments:#?}");
        for other in ["db-owner", "db-slots"] {
            let found = comments
                .iter()
                .filter(|line| line.starts_with(&format!("# Secret demo/{service}-{other} (")));
            assert_eq!(found.count(), 1, "{other}: {comments:#?}");
        }
    }
    assert_eq!(comments.len(), 9, "{comments:#?}");
    for map in ["oathkeeper-rules", "keto-namespaces"] {
        assert!(names.contains(&format!("ConfigMap peristyle-system/{map}")), "{names:#?}");
    }
    assert!(!documents.iter().any(|document| document["kind"] == "Secret"));
}

#[test]
fn the_rules_and_models_are_those_that_oathkeeper_and_keto_read() {
    let (_, documents, _) = printed(&example());
    let map = |name: &str, key: &str| {
        let found = documents.iter().find(|document| document["metadata"]["name"] == name).unwrap();
        assert_eq!(found["metadata"]["labels"]["peristyle.dev/auth-class"], "default");
        found["data"][key].as_str().unwrap().to_owned()
    };
    let rules: Vec<Value> = serde_json::from_str(&map("oathkeeper-rules", "rules.json")).unwrap();
    let ids: Vec<&str> = rules.iter().map(|rule| rule["id"].as_str().unwrap()).collect();
    for policy in ["demo.auth.login.", "demo.greeter.greet.", "peristyle."] {
        assert!(ids.iter().any(|id| id.starts_with(policy)), "{ids:?}");
    }
    assert!(map("keto-namespaces", "namespaces.keto.ts").contains("class Greeting implements Namespace"));
}

#[test]
fn a_policy_that_is_not_published_is_named_with_its_reason() {
    let mut input = example();
    for policy in &mut input.auth_policies {
        policy.spec.targets[0].service = "nobody".to_owned();
    }
    let (_, documents, problems) = printed(&input);
    let told = "AuthPolicy demo/greeter: spec.targets: Service nobody not found in this namespace";
    assert!(problems.iter().any(|problem| problem == told), "{problems:#?}");
    let rules = documents.iter().find(|document| document["metadata"]["name"] == "oathkeeper-rules").unwrap();
    assert!(!rules["data"]["rules.json"].as_str().unwrap().contains("demo.greeter"));
}

#[test]
fn classes_of_the_files_get_the_policies_that_name_them() {
    let mut input = example();
    for name in ["default", "partners"] {
        let class = format!(
            "{{apiVersion: peristyle.dev/v1alpha1, kind: AuthClass, metadata: {{name: {name}, annotations: \
             {{peristyle.dev/is-default-class: \"{}\"}}}}, spec: {{oathkeeper: {{namespace: edge, service: o, \
             rulesConfigMap: {name}-rules}}, keto: {{readURL: 'http://k', writeURL: 'http://k', oplURL: 'http://k', \
             namespacesConfigMap: {{namespace: edge, name: {name}-models, key: m.ts}}}}, issuers: [{{issuer: \
             'http://auth.demo.svc.cluster.local:8080', jwksURL: 'http://k'}}]}}}}",
            name == "default",
        );
        input.add(&class, "demo").unwrap();
    }
    input
        .auth_policies
        .iter_mut()
        .find(|policy| policy.metadata.name.as_deref() == Some("auth"))
        .unwrap()
        .spec
        .class_name = Some("partners".to_owned());
    let (_, documents, problems) = printed(&input);
    assert_eq!(problems, Vec::<String>::new());
    let rules = |name: &str| {
        let found = documents.iter().find(|document| document["metadata"]["name"] == name).unwrap();
        assert_eq!(found["metadata"]["namespace"], "edge");
        found["data"]["rules.json"].as_str().unwrap().to_owned()
    };
    let (default, partners) = (rules("default-rules"), rules("partners-rules"));
    assert!(default.contains("demo.greeter.greet.") && !default.contains("demo.auth."), "{default}");
    assert!(partners.contains("demo.auth.login.") && !partners.contains("demo.greeter."), "{partners}");
}
