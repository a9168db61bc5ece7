//! The token of the gate: which rules mint it, and what workloads are told.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    dead_code,
    reason = "a test ends by panicking, and shares its support with other tests"
)]

#[path = "support/objects.rs"]
mod objects;

use std::collections::BTreeMap;

use objects::Objects;
use peristyle::{
    auth::relations::Refusals,
    commands::render::{Error, input::Input, render},
};
use rstest::rstest;
use serde_json::{Value, json};

const SHOP: &str = include_str!("fixtures/auth/shop.yaml");
const CLASS: &str = "
kind: AuthClass
apiVersion: peristyle.dev/v1alpha1
metadata: {name: default, annotations: {peristyle.dev/is-default-class: 'true'}}
spec:
  oathkeeper: {namespace: auth, service: oathkeeper-api, rulesConfigMap: rules}
  keto: {readURL: 'http://k', writeURL: 'http://k', oplURL: 'http://k', namespacesConfigMap: {namespace: auth, name: namespaces, key: k.ts}}
  idToken: {issuer: 'https://gate.test', jwksSecret: keys}
---
";

#[test]
fn a_protected_rule_mints_a_token_for_the_service_behind_its_host_and_no_other_rule_does() {
    let yaml = SHOP.replace(
        "  issuers:",
        "  idToken: {issuer: 'https://gate.test', jwksSecret: keys, ttl: 1m30s}\n  issuers:",
    );
    let file = Objects::read(&yaml).plan(&Refusals::new()).rules_file();
    let rules: Vec<Value> = serde_json::from_str(&file.text).unwrap();
    let mut mutators: BTreeMap<String, Value> = BTreeMap::new();
    for rule in rules {
        // Without the hash, which the id has for each content.
        let name = rule["id"].as_str().unwrap().rsplit_once('.').unwrap().0.to_owned();
        let before = mutators.insert(name.clone(), rule["mutators"].clone());
        assert!(before.is_none_or(|before| before == rule["mutators"]), "{name} for its two hosts");
    }
    let header = |user: &str| json!({"handler": "header", "config": {"headers": {"X-User": user}}});
    let token = json!({"handler": "id_token", "config": {
        "issuer_url": "https://gate.test", "claims": r#"{"aud":["orders.shop"]}"#, "ttl": "90s"}});
    let (protected, open) = (json!([header("{{ print .Subject }}"), token]), json!([header("")]));
    let nobody = json!([{"handler": "noop"}]);
    let expected = [
        ("peristyle", &nobody),
        ("shop.orders._deny", &nobody),
        ("shop.orders.admin", &protected),
        ("shop.orders.files", &protected),
        ("shop.orders.health", &open),
        ("shop.orders.read", &protected),
    ];
    assert_eq!(mutators, expected.map(|(name, mutators)| (name.to_owned(), mutators.clone())).into());
}

/// The variables of the gate in the only Service of `yaml`.
fn told(yaml: &str) -> Result<Vec<String>, Error> {
    let mut input = Input::default();
    input.add(yaml, "shop").unwrap();
    let rendered = render(&input, &input.services[0], 2)?;
    let deployment = rendered.objects.iter().find(|object| object["kind"] == "Deployment").unwrap();
    let env = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap().clone();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let told = env.iter().map(|variable| (text(&variable["name"]), text(&variable["value"])));
    Ok(told
        .filter(|(name, _)| name.starts_with("ID_TOKEN"))
        .map(|(name, value)| format!("{name}={value}"))
        .collect())
}

fn service(spec: &str) -> String {
    format!(
        "apiVersion: peristyle.dev/v1alpha1\nkind: Service\nmetadata: {{name: orders}}\nspec: {{image: 'r.test/a:1', {spec}}}\n"
    )
}

const TOLD: [&str; 3] = [
    "ID_TOKEN_JWKS_URL=http://oathkeeper-api.auth.svc.cluster.local:4456/.well-known/jwks.json",
    "ID_TOKEN_ISSUER=https://gate.test",
    "ID_TOKEN_AUDIENCE=orders.shop",
];

#[rstest]
#[case::protected("expose: [{name: public}]", &TOLD)]
#[case::beside_a_public_route("expose: [{name: open, auth: {mode: Public}}, {name: public}]", &TOLD)]
#[case::public("expose: [{name: open, auth: {mode: Public}}]", &[])]
#[case::not_exposed("", &[])]
#[case::said_by_the_user("expose: [{name: public}], env: [{name: ID_TOKEN_ISSUER, value: mine}]", &["ID_TOKEN_ISSUER=mine"])]
fn a_workload_behind_a_policy_is_told_how_to_verify_the_gates_tokens(
    #[case] spec: &str,
    #[case] expected: &[&str],
) {
    assert_eq!(told(&format!("{CLASS}{}", service(spec))).unwrap(), expected);
}

#[test]
fn a_class_that_mints_nothing_has_nothing_verified() {
    let class: Vec<&str> = CLASS.split_inclusive('\n').filter(|line| !line.contains("idToken")).collect();
    let class = class.concat();
    assert_eq!(told(&format!("{class}{}", service("expose: [{name: public}]"))).unwrap(), [""; 0]);
}

#[test]
fn no_dependency_takes_the_place_of_a_variable_of_the_gate() {
    let spec = "expose: [{name: public}], dependsOn: [{name: id-token-jwks, url: 'http://evil.test'}]";
    let error = told(&format!("{CLASS}{}", service(spec))).unwrap_err().to_string();
    assert!(error.contains("ID_TOKEN_JWKS_URL is already set for the tokens of the gate"), "{error}");
}

#[test]
fn tokens_of_a_second_class_are_not_verified_and_the_status_says_so() {
    let other = CLASS
        .replace("{name: default, annotations: {peristyle.dev/is-default-class: 'true'}}", "{name: other}");
    let policy = |name: &str, expose: &str, class: &str| {
        format!(
            "---\napiVersion: peristyle.dev/v1alpha1\nkind: AuthPolicy\nmetadata: {{name: {name}}}\nspec:\n  \
            className: {class}\n  targets: [{{service: orders, expose: {expose}}}]\n  \
            rules: [{{name: all, match: {{http: [{{path: {{prefix: /}}}}]}}, public: {{}}}}]\n"
        )
    };
    let yaml = [CLASS, &other, &service("expose: [{name: a}, {name: b}]")].concat();
    let problems = |second: &str| {
        let policies = policy("a", "a", "default") + &policy("b", "b", second);
        let mut input = Input::default();
        input.add(&format!("{yaml}{policies}"), "shop").unwrap();
        let rendered = render(&input, &input.services[0], 2).unwrap();
        rendered.problems.into_iter().filter(|problem| problem.contains("tokens")).collect::<Vec<_>>()
    };
    assert_eq!(problems("default"), [""; 0]);
    assert_eq!(
        problems("other"),
        [
            "spec.expose[1]: the workload does not verify the tokens that AuthClass other mints for it: it goes by \
        AuthClass default, that of its first route with a policy; use one AuthClass for all of them"
        ]
    );
}
