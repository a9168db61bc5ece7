//! Who may connect to whom, judged from the rendered NetworkPolicies.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

#[path = "support/connectivity.rs"]
mod connectivity;

use connectivity::{End, is_allowed};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use peristyle::commands::render::{input::Input, render};
use rstest::rstest;

const SERVICES: &str = include_str!("fixtures/access.yaml");

fn policies() -> Vec<NetworkPolicy> {
    let mut input = Input::default();
    input.add(SERVICES, "shop").unwrap();
    let rendered = input.services.iter().flat_map(|service| render(&input, service, 2).unwrap().objects);
    let policies = rendered.filter(|object| object["kind"] == "NetworkPolicy");
    policies.map(|policy| serde_json::from_value(policy).unwrap()).collect()
}

fn pod(namespace: &str, labels: &[(&str, &str)]) -> End {
    End {
        namespace: Some(namespace.to_owned()),
        labels: labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        address: "10.42.0.1".parse().unwrap(),
    }
}

/// An end by the name that the table gives it.
fn end(name: &str) -> End {
    let service = |namespace: &str, name: &str| {
        pod(namespace, &[("app.kubernetes.io/instance", name), ("peristyle.dev/service", name)])
    };
    match name.split_once('/') {
        Some(("shop" | "billing" | "evil", _)) => {
            let (namespace, name) = name.split_once('/').unwrap();
            service(namespace, name)
        }
        _ => match name {
            "hook of orders" => pod(
                "shop",
                &[("app.kubernetes.io/instance", "orders-migrate-1"), ("peristyle.dev/service", "orders")],
            ),
            "pod of the team" => pod("shop", &[("app", "debug")]),
            "pod of batch" => pod("batch", &[("app", "report")]),
            "edge" => pod("peristyle-system", &[("app.kubernetes.io/name", "traefik")]),
            "gatekeeper" => pod("peristyle-system", &[("app.kubernetes.io/name", "oathkeeper")]),
            "false edge" => pod("evil", &[("app.kubernetes.io/name", "traefik")]),
            "postgres" => pod("peristyle-system", &[("app.kubernetes.io/name", "postgres")]),
            "keto" => pod("peristyle-system", &[("app.kubernetes.io/name", "keto")]),
            "dns" => pod("kube-system", &[("k8s-app", "kube-dns")]),
            "false dns" => pod("evil", &[("k8s-app", "kube-dns")]),
            "kube-proxy" => pod("kube-system", &[("k8s-app", "kube-proxy")]),
            address => End { namespace: None, labels: [].into(), address: address.parse().unwrap() },
        },
    }
}

#[rstest]
// The edge reaches what is exposed, on the exposed port.
#[case::edge_to_exposed("edge", "shop/web", "TCP", 8080, true)]
#[case::edge_to_another_port("edge", "shop/web", "TCP", 9090, false)]
#[case::edge_to_internal("edge", "shop/orders", "TCP", 50051, false)]
#[case::no_other_pod_of_its_namespace("gatekeeper", "shop/web", "TCP", 8080, false)]
#[case::labels_of_the_edge_elsewhere("false edge", "shop/web", "TCP", 8080, false)]
#[case::past_the_edge("203.0.113.7", "shop/web", "TCP", 8080, false)]
// Inside a namespace what is declared by the caller.
#[case::declared("shop/web", "shop/orders", "TCP", 50051, true)]
#[case::not_declared("shop/orders", "shop/web", "TCP", 8080, false)]
#[case::undeclared_port("shop/web", "shop/orders", "TCP", 22, false)]
#[case::undeclared_protocol("shop/web", "shop/orders", "UDP", 50051, false)]
#[case::other_pods_of_the_team("pod of the team", "shop/orders", "TCP", 50051, false)]
#[case::pods_of_hooks_are_isolated_too("pod of the team", "hook of orders", "TCP", 50051, false)]
// Across namespaces what the called one lists.
#[case::listed("shop/orders", "billing/payments", "TCP", 50051, true)]
#[case::not_listed("shop/web", "billing/payments", "TCP", 50051, false)]
#[case::same_name_in_a_third_namespace("evil/orders", "billing/payments", "TCP", 50051, false)]
#[case::declared_and_not_listed("evil/spy", "billing/payments", "TCP", 50051, false)]
#[case::listed_and_not_declared("billing/payments", "shop/orders", "TCP", 50051, false)]
#[case::everybody_of_a_namespace("pod of batch", "billing/ledger", "TCP", 50051, true)]
#[case::everybody_of_that_namespace_only("pod of the team", "billing/ledger", "TCP", 50051, false)]
// What everything needs, and no more of it.
#[case::dns("shop/orders", "dns", "UDP", 53, true)]
#[case::dns_over_tcp("shop/orders", "dns", "TCP", 53, true)]
#[case::cache_of_the_node("shop/orders", "169.254.20.10", "UDP", 53, true)]
#[case::neighbour_of_dns("shop/orders", "kube-proxy", "UDP", 53, false)]
#[case::labels_of_dns_elsewhere("shop/orders", "false dns", "UDP", 53, false)]
#[case::database("shop/orders", "postgres", "TCP", 5432, true)]
#[case::database_for_the_hook("hook of orders", "postgres", "TCP", 5432, true)]
#[case::no_database_is_bound("shop/web", "postgres", "TCP", 5432, false)]
#[case::neighbour_of_the_database("shop/orders", "keto", "TCP", 4467, false)]
#[case::keys_of_the_gate("shop/guarded", "gatekeeper", "TCP", 4456, true)]
#[case::nothing_else_of_the_gate("shop/guarded", "gatekeeper", "TCP", 9000, false)]
#[case::nothing_comes_through_the_gate("shop/web", "gatekeeper", "TCP", 4456, false)]
#[case::gate_elsewhere("shop/guarded", "false edge", "TCP", 4456, false)]
// To the outside what is declared.
#[case::outbound("billing/payments", "198.51.100.9", "TCP", 443, true)]
#[case::outbound_port("billing/payments", "198.51.100.9", "TCP", 80, false)]
#[case::outbound_address("billing/payments", "203.0.113.7", "TCP", 443, false)]
#[case::metadata_of_the_cloud("billing/payments", "169.254.169.254", "TCP", 80, false)]
#[case::url("shop/web", "192.0.2.10", "TCP", 8443, true)]
#[case::url_port("shop/web", "192.0.2.10", "TCP", 443, false)]
// Open means open, on its own side.
#[case::to_an_open_one("pod of the team", "shop/open", "TCP", 50051, true)]
#[case::from_an_open_one("shop/open", "203.0.113.7", "TCP", 25, true)]
#[case::an_open_one_opens_nobody_else("shop/open", "shop/orders", "TCP", 50051, false)]
fn a_connection_is_allowed_only_where_it_is_declared(
    #[case] from: &str,
    #[case] to: &str,
    #[case] protocol: &str,
    #[case] port: i32,
    #[case] expected: bool,
) {
    let policies = policies();
    let allowed = is_allowed(&policies, &end(from), &end(to), protocol, port);
    assert_eq!(allowed, expected, "{from} to {to}:{port} by {policies:#?}");
}

#[test]
fn an_open_service_has_no_policy_and_every_other_one_has() {
    let names: Vec<_> = policies().iter().map(|policy| policy.metadata.name.clone().unwrap()).collect();
    assert_eq!(names, ["web", "orders", "guarded", "payments", "ledger", "spy"]);
}
