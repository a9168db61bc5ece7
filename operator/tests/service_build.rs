//! From YAML to children, by the functions that the operator uses itself.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use peristyle::commands::render::{Rendered, input::Input, render};
use rstest::rstest;

fn rendered(text: &str) -> Vec<(String, Result<Rendered, String>)> {
    let mut input = Input::default();
    input.add(text, "shop").unwrap();
    let services = input.services.iter();
    services
        .map(|service| {
            let name = service.metadata.name.clone().unwrap();
            (name, render(&input, service, 2).map_err(|error| error.to_string()))
        })
        .collect()
}

/// The one Service of `text`.
fn one(text: &str) -> Result<Rendered, String> {
    rendered(text).remove(0).1
}

fn service(spec: &str) -> String {
    format!(
        "{{apiVersion: peristyle.dev/v1alpha1, kind: Service, metadata: {{name: orders}}, spec: {{image: x, {spec}}}}}"
    )
}

#[rstest]
#[case::minimal(include_str!("fixtures/minimal.yaml"), "minimal")]
#[case::orders(include_str!("fixtures/orders.yaml"), "orders")]
#[case::web(include_str!("fixtures/web.yaml"), "web")]
#[case::steady(include_str!("fixtures/steady.yaml"), "steady")]
fn the_children_of_a_service(#[case] text: &str, #[case] name: &str) {
    for (service, rendered) in rendered(text) {
        let rendered = rendered.unwrap();
        insta::assert_yaml_snapshot!(format!("{name}.{service}"), rendered.objects);
        insta::assert_yaml_snapshot!(format!("{name}.{service}.problems"), rendered.problems);
    }
}

#[rstest]
#[case::user_variable_named_port(
    "env: [{name: PORT, value: '1'}]",
    "spec.env[0].name: PORT is already set for the first port; choose another name"
)]
#[case::user_variable_of_a_database(
    "databases: [{name: main, database: o}], env: [{name: DATABASE_URL}]",
    "spec.env[0].name: DATABASE_URL is already set for database main; choose another name"
)]
#[case::two_databases_in_one_variable(
    "databases: [{name: a, database: o}, {name: b, database: o}]",
    "spec.databases[1].inject.env: DATABASE_URL is already set for database a; choose another name"
)]
#[case::dependency_named_database(
    "databases: [{name: a, database: o}], dependsOn: [{name: database, url: 'http://x'}]",
    "spec.dependsOn[0].name: DATABASE_URL is already set for database a; choose another name"
)]
#[case::user_variable_of_a_dependency(
    "dependsOn: [{name: pay-ments, url: 'http://x'}], env: [{name: PAY_MENTS_URL}]",
    "spec.env[0].name: PAY_MENTS_URL is already set for dependency pay-ments; choose another name"
)]
#[case::two_ports_with_one_number(
    "ports: [{name: a, port: 80}, {name: b, port: 80, protocol: HTTP}]",
    "spec.ports[1].port: 80 is also the port of \"a\"; a container listens once on a port; remove one of the two"
)]
#[case::two_ports_with_one_service_port(
    "ports: [{name: a, port: 80}, {name: b, port: 81, servicePort: 80}]",
    "spec.ports[1].servicePort: 80 is also the service port of \"a\"; set another servicePort"
)]
#[case::two_hooks_with_one_name(
    "hooks: {preRollout: [{name: m, command: [a]}, {name: m, command: [b]}]}",
    "spec.hooks.preRollout[1].name: m is also the name of an earlier hook; choose another name"
)]
#[case::hook_with_an_unknown_database(
    "hooks: {preRollout: [{name: m, command: [a], database: x}]}",
    "spec.hooks.preRollout[0].database: x is not the name of one of spec.databases; name one of them or add it"
)]
#[case::hook_shorter_than_a_second(
    "hooks: {preRollout: [{name: m, command: [a], timeout: 500ms}]}",
    "spec.hooks.preRollout[0].timeout: 500ms is not a number of whole seconds; write for example 5s or 1m"
)]
#[case::sleep_as_long_as_the_grace(
    "shutdown: {grace: 20s, preStop: {sleep: 20s}}",
    "spec.shutdown.preStop.sleep: 20s is not shorter than spec.shutdown.grace, 20s; the container would be killed without SIGTERM; shorten the sleep or lengthen grace"
)]
#[case::grace_as_short_as_the_sleep_that_is_the_default(
    "shutdown: {grace: 5s}",
    "spec.shutdown.preStop.sleep: 5s is not shorter than spec.shutdown.grace, 5s; the container would be killed without SIGTERM; shorten the sleep or lengthen grace"
)]
#[case::probe_of_an_unknown_port(
    "health: {readiness: {tcp: {port: x}}}",
    "spec.health.readiness.tcp.port: \"x\" is no port of spec.ports that can be checked so; name one of spec.ports"
)]
#[case::http_probe_without_an_http_port(
    "health: {liveness: {http: {path: /}}}",
    "spec.health.liveness.http.port: the default is no port of spec.ports that can be checked so; name one of spec.ports"
)]
fn a_contradiction_is_refused_with_field_value_and_remedy(#[case] spec: &str, #[case] message: &str) {
    assert_eq!(one(&service(spec)).unwrap_err(), message);
}

#[rstest]
#[case::udp_port(
    "ports: [{name: dns, port: 53, protocol: UDP}], expose: [{name: x, auth: {mode: Public}}]",
    "spec.expose[0].port: \"dns\" speaks neither GRPC nor HTTP; only those can be exposed"
)]
#[case::same_path_twice(
    "expose: [{name: x, auth: {mode: Public}}, {name: z, paths: [{prefix: /}]}]",
    "spec.expose[1].paths: \"/\" on host orders.shop.example.com is served by another entry of this Service; give each entry paths of its own"
)]
#[case::no_policy(
    "expose: [{name: x}]",
    "expose x: no AuthPolicy targets it; create one or set auth.mode to Public"
)]
fn a_route_that_cannot_be_served_is_withheld_and_says_why(#[case] spec: &str, #[case] message: &str) {
    let rendered = one(&service(spec)).unwrap();
    assert!(rendered.problems.iter().any(|problem| problem == message), "{:#?}", rendered.problems);
}

#[test]
fn without_a_policy_the_only_route_is_one_that_refuses() {
    let rendered = one(&service("expose: [{name: x}]")).unwrap();
    let routes: Vec<_> = rendered.objects.iter().filter(|object| object["kind"] == "IngressRoute").collect();
    assert_eq!(routes.len(), 1);
    for router in routes[0]["spec"]["routes"].as_array().unwrap() {
        assert_eq!(router["services"][0]["name"], "orders-edge-errors");
    }
    assert!(!rendered.objects.iter().any(|object| object["kind"] == "Middleware"));
}

#[test]
fn the_user_may_name_the_service_for_telemetry() {
    let rendered = one(&service("env: [{name: OTEL_SERVICE_NAME, value: mine}]")).unwrap();
    let deployment = rendered.objects.iter().find(|object| object["kind"] == "Deployment").unwrap();
    let env = deployment["spec"]["template"]["spec"]["containers"][0]["env"].as_array().unwrap();
    let values: Vec<_> = env.iter().filter(|v| v["name"] == "OTEL_SERVICE_NAME").collect();
    assert_eq!(values.len(), 1);
    assert_eq!(values[0]["value"], "mine");
}

#[test]
fn a_sleep_of_nothing_is_none() {
    let rendered = one(&service("shutdown: {grace: 1s, preStop: {sleep: 0s}}")).unwrap();
    let deployment = rendered.objects.iter().find(|object| object["kind"] == "Deployment").unwrap();
    let pod = &deployment["spec"]["template"]["spec"];
    assert_eq!(pod["terminationGracePeriodSeconds"], 1);
    assert!(pod["containers"][0]["lifecycle"].is_null(), "{pod}");
}

#[test]
fn pods_of_hooks_are_not_selected_by_the_deployment_or_the_core_service() {
    let rendered = one(&service("hooks: {preRollout: [{name: m, command: [a]}]}")).unwrap();
    let find = |kind: &str| rendered.objects.iter().find(|object| object["kind"] == kind).unwrap();
    let labels = find("Job")["spec"]["template"]["metadata"]["labels"].as_object().unwrap();
    for selector in
        [&find("Deployment")["spec"]["selector"]["matchLabels"], &find("Service")["spec"]["selector"]]
    {
        let selector = selector.as_object().unwrap();
        assert!(selector.iter().any(|(key, value)| labels.get(key) != Some(value)), "{selector:?}");
    }
}

#[test]
fn a_hook_runs_again_for_another_image_or_command_and_only_then() {
    let job = |spec: &str| {
        let rendered = one(&service(spec)).unwrap();
        let job = rendered.objects.into_iter().find(|object| object["kind"] == "Job").unwrap();
        job["metadata"]["name"].as_str().unwrap().to_owned()
    };
    let hook = "hooks: {preRollout: [{name: m, command: [a, b]}]}";
    let first = job(hook);
    assert_eq!(first, job(&format!("replicas: 7, env: [{{name: X, value: v}}], {hook}")));
    assert_ne!(first, job("hooks: {preRollout: [{name: m, command: [ab]}]}"));
    assert_ne!(first, job("hooks: {preRollout: [{name: o, command: [a, b]}]}"));
    let other = service(hook).replace("image: x", "image: z");
    let rendered = one(&other).unwrap();
    let job = rendered.objects.into_iter().find(|object| object["kind"] == "Job").unwrap();
    assert_ne!(first, job["metadata"]["name"].as_str().unwrap());
}
