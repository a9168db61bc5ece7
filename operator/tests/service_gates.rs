//! What holds a rollout back, and what never does.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use peristyle::{
    conditions::{Finding, State},
    controllers::service::{
        observe::{DatabaseView, DependencyView, Observed, ready_addresses},
        references::{Reference, required},
        validate::{Validated, access::peers, validate},
    },
    edge::route::{Guard, Host, RouteProtection},
};
use peristyle_crds::{
    condition::{Reason, types},
    v1alpha1::{Database, Service, database::RoleName},
};
use rstest::rstest;
use serde_json::json;

fn service(spec: &str) -> Service {
    let text = format!("{{metadata: {{name: orders, namespace: shop}}, spec: {{image: x, {spec}}}}}");
    serde_saphyr::from_str(&text).unwrap()
}

fn database(roles: &[RoleName]) -> Observed {
    let view = DatabaseView {
        message: "server down".to_owned(),
        outage: None,
        secrets: roles.iter().map(|role| (*role, format!("{role:?}").to_lowercase())).collect(),
        server: None,
    };
    Observed { databases: [("o".to_owned(), view)].into(), ..Observed::default() }
}

const BOUND: &str = "databases: [{name: main, database: o}]";
const HOOKED: &str =
    "databases: [{name: main, database: o}], hooks: {preRollout: [{name: m, command: [a], database: main}]}";

fn held(validated: &Validated) -> Option<(Reason, String)> {
    assert_eq!(validated.workload.is_none(), !validated.holds.is_empty());
    let hold = validated.holds.first()?;
    Some((hold.reason, hold.message.clone()))
}

#[rstest]
#[case::absent(
    BOUND,
    Observed::default(),
    "Database o does not exist; create it, or change the entry of spec.databases that names it"
)]
#[case::not_ready(BOUND, database(&[]), "Database o is not ready: server down")]
#[case::no_writer(BOUND, database(&[RoleName::Owner]), "Database o has no credentials for role Writer")]
#[case::no_owner_for_the_hook(HOOKED, database(&[RoleName::Writer]), "Database o has no credentials for role Owner")]
fn a_database_without_credentials_holds_the_rollout(
    #[case] spec: &str,
    #[case] observed: Observed,
    #[case] message: &str,
) {
    let validated = validate(&service(spec), &observed).unwrap();
    assert_eq!(held(&validated), Some((Reason::DatabaseNotReady, message.to_owned())));
    assert_eq!(validated.databases.state, State::Waiting);
    assert_eq!(validated.databases.condition, types::DATABASES_READY);
}

/// A Database whose status speaks of an older spec or of a server that is away.
#[rstest]
#[case::edited("True", "all is as the spec says")]
#[case::away("Unknown", "no answer")]
#[case::refused("False", "spec.name: is immutable")]
fn a_database_that_was_ready_once_holds_nothing_back(#[case] ready: &str, #[case] message: &str) {
    let validated = bound_to(["Ready", ready, "Any"], message);
    assert_eq!(held(&validated), None);
    assert_eq!(validated.databases.state, State::Good);
}

#[rstest]
#[case::away("Unknown", "ServerUnreachable", Reason::ServerUnreachable)]
#[case::shut_to_us("False", "InsufficientPrivileges", Reason::InsufficientPrivileges)]
#[case::in_words_of_another_version("Unknown", "Asleep", Reason::ServerUnreachable)]
fn a_server_that_cannot_be_used_is_told_by_the_service_and_touches_nothing(
    #[case] status: &str,
    #[case] word: &str,
    #[case] told: Reason,
) {
    let validated = bound_to(["ServerReachable", status, word], "pg:5432 does not answer");
    assert_eq!(held(&validated), None);
    let Finding { condition, state, reason, message } = validated.databases;
    assert_eq!((condition, state, reason), (types::DATABASES_READY, State::Unknown, told));
    assert_eq!(message, "Database o: pg:5432 does not answer");
}

/// A Service bound to a Database that was ready once, of which one condition says something else now.
fn bound_to([condition, status, reason]: [&str; 3], message: &str) -> Validated {
    let database: Database = serde_json::from_value(json!({
        "metadata": {"name": "o", "namespace": "shop", "generation": 2},
        "spec": {"className": "postgres"},
        "status": {
            "observedGeneration": 1,
            "roles": [{"role": "Writer", "secretName": "o-db", "activeSlot": "A"}],
            "conditions": [{"type": condition, "status": status, "reason": reason, "message": message,
                "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"}]
        }
    }))
    .unwrap();
    let databases = [("o".to_owned(), DatabaseView::of(&database))].into();
    validate(&service(BOUND), &Observed { databases, ..Observed::default() }).unwrap()
}

#[test]
fn two_bindings_of_one_database_report_one_problem() {
    let spec = "databases: [{name: a, database: o, inject: {env: A_URL}}, {name: b, database: o, inject: {env: B_URL}}]";
    let validated = validate(&service(spec), &Observed::default()).unwrap();
    assert_eq!(
        validated.databases.message,
        "Database o does not exist; create it, or change the entry of spec.databases that names it"
    );
}

#[test]
fn the_owner_is_not_needed_where_no_hook_asks_for_it() {
    let validated = validate(&service(BOUND), &database(&[RoleName::Writer])).unwrap();
    assert_eq!(held(&validated), None);
    assert_eq!(validated.databases.state, State::Good);
}

#[test]
fn a_hook_has_the_owners_credentials_and_the_workload_has_not() {
    let observed = database(&[RoleName::Writer, RoleName::Owner]);
    let workload = validate(&service(HOOKED), &observed).unwrap().workload.unwrap();
    let secret = |env: &[k8s_openapi::api::core::v1::EnvVar]| {
        let variable = env.iter().find(|v| v.name == "DATABASE_URL").unwrap();
        let source = variable.value_from.clone().unwrap();
        source.secret_key_ref.unwrap().name
    };
    assert_eq!(secret(&workload.hooks[0].env), "owner");
    assert_eq!(secret(&workload.env), "writer");
}

#[test]
fn a_missing_dependency_holds_the_rollout_and_is_named() {
    let spec = "dependsOn: [{name: pay, service: payments, namespace: billing}]";
    let validated = validate(&service(spec), &Observed::default()).unwrap();
    let (reason, message) = held(&validated).unwrap();
    assert_eq!(reason, Reason::DependencyMissing);
    assert_eq!(
        message,
        "Service billing/payments, on which this one depends as pay, \
         does not exist or does not list service orders of namespace shop in its spec.access.inbound"
    );
}

#[test]
fn a_dependency_is_called_at_the_port_of_its_core_service() {
    let observed = Observed {
        dependencies: [(
            ("shop".to_owned(), "payments".to_owned()),
            DependencyView { service_port: 80, ..DependencyView::default() },
        )]
        .into(),
        ..Observed::default()
    };
    let spec = "dependsOn: [{name: pay-er, service: payments}]";
    let workload = validate(&service(spec), &observed).unwrap().workload.unwrap();
    let variable = workload.env.iter().find(|v| v.name == "PAY_ER_URL").unwrap();
    assert_eq!(variable.value.as_deref(), Some("http://payments.shop.svc.cluster.local:80"));
}

#[test]
fn a_mistake_elsewhere_in_the_spec_keeps_nobody_s_access_from_being_known() {
    let access = "access: {inbound: [{service: web}]}";
    let broken = format!("env: [{{name: PORT, value: '1'}}], {access}");
    let observed = Observed::default();
    assert!(validate(&service(&broken), &observed).is_err());
    let sound = validate(&service(access), &observed).unwrap().peers;
    assert!(sound.is_some());
    assert_eq!(peers(&service(&broken), &observed), sound);
    assert_eq!(peers(&service("access: {mode: Open}"), &observed), None);
}

#[test]
fn only_required_references_count() {
    let spec = "env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: k}}}, \
        {name: B, valueFrom: {configMapKeyRef: {name: c, key: k, optional: true}}}, \
        {name: C, valueFrom: {secretKeyRef: {name: s, key: l}}}], \
        envFrom: [{configMapRef: {name: m}}, {secretRef: {name: t, optional: true}}]";
    let expected = [Reference::Secret("s".to_owned()), Reference::ConfigMap("m".to_owned())];
    assert_eq!(required(&service(spec)), expected);
}

#[test]
fn a_missing_secret_holds_the_rollout() {
    let observed = Observed { missing: vec!["Secret s".to_owned()], ..Observed::default() };
    let validated = validate(&service(""), &observed).unwrap();
    let expected = (
        Reason::ReferenceMissing,
        "Secret s does not exist; create it, or change the spec.env or spec.envFrom that names it".to_owned(),
    );
    assert_eq!(held(&validated), Some(expected));
}

#[test]
fn the_number_of_pods_is_the_spec_s_or_the_platform_s() {
    let observed = Observed { default_replicas: 5, ..Observed::default() };
    assert_eq!(validate(&service(""), &observed).unwrap().replicas, 5);
    assert_eq!(validate(&service("replicas: 0"), &observed).unwrap().replicas, 0);
}

#[rstest]
#[case::grpc("", Some("grpc"))]
#[case::http("ports: [{name: h, port: 80, protocol: HTTP}]", Some("httpGet"))]
#[case::tcp("ports: [{name: t, port: 80, protocol: TCP}]", Some("tcpSocket"))]
#[case::udp("ports: [{name: u, port: 80, protocol: UDP}]", None)]
#[case::off("health: {readiness: {mode: None}}", None)]
fn the_readiness_check_follows_the_protocol(#[case] spec: &str, #[case] field: Option<&str>) {
    let workload = validate(&service(spec), &Observed::default()).unwrap().workload.unwrap();
    let probe = serde_json::to_value(workload.probes.readiness).unwrap();
    match field {
        Some(field) => assert!(probe[field].is_object(), "{probe}"),
        None => assert!(probe.is_null(), "{probe}"),
    }
}

#[test]
fn only_ready_pods_of_one_family_answer_for_the_edge() {
    let slice = |family: &str, endpoints: serde_json::Value| {
        serde_json::from_value(json!({"metadata": {}, "addressType": family, "endpoints": endpoints}))
            .unwrap()
    };
    let slices = [
        slice("IPv6", json!([{"addresses": ["fd00::1"]}])),
        slice(
            "IPv4",
            json!([{"addresses": ["10.0.0.2"], "conditions": {"ready": true}}, {"addresses": ["10.0.0.3"], "conditions": {"ready": false}}]),
        ),
        slice("IPv4", json!([{"addresses": ["10.0.0.1"]}])),
    ];
    let found = ready_addresses(slices.iter()).unwrap();
    assert_eq!(
        (found.address_type.as_str(), found.addresses),
        ("IPv4", vec!["10.0.0.1".to_owned(), "10.0.0.2".to_owned()])
    );
    assert_eq!(ready_addresses(slices[..0].iter()), None);
}

#[test]
fn a_route_goes_on_only_by_rules_that_are_known_to_decide_it() {
    let url = || "http://o/decisions".to_owned();
    let decided = |hash: &str| Guard::Decided { decisions_url: url(), hash: hash.to_owned() };
    let host = Host::parse("o.test").unwrap();
    let required = |protection: &RouteProtection, serving: Option<Guard>| {
        Guard::required(protection, &host, serving.as_ref())
    };
    let not_served = || [None, Some(Guard::Open), Some(Guard::Withheld)];

    let unknown = RouteProtection::Unknown { hash: "h1".to_owned(), decisions_url: url() };
    assert_eq!(required(&unknown, Some(decided("h1"))), decided("h1"));
    for serving in not_served().into_iter().chain([Some(decided("h0"))]) {
        assert_eq!(required(&unknown, serving), Guard::Withheld);
    }

    let changing = |hosts: &[&str]| RouteProtection::Changing {
        hash: "h1".to_owned(),
        hosts: hosts.iter().map(|host| (*host).to_owned()).collect(),
        decisions_url: url(),
        reason: Reason::PropagatingRules,
        message: String::new(),
    };
    for served in ["h1", "h0"] {
        assert_eq!(required(&changing(&["o.test", "p.test"]), Some(decided(served))), decided("h1"));
        assert_eq!(required(&changing(&["p.test"]), Some(decided(served))), Guard::Withheld, "a new host");
    }
    let elsewhere = Guard::Decided { decisions_url: "http://evil.test/".to_owned(), hash: "h1".to_owned() };
    for serving in not_served().into_iter().chain([Some(elsewhere)]) {
        assert_eq!(required(&changing(&["o.test"]), serving), Guard::Withheld);
    }

    let pending = RouteProtection::Pending { reason: Reason::PropagatingRules, message: String::new() };
    for protection in [RouteProtection::None, pending] {
        assert_eq!(required(&protection, Some(decided("h1"))), Guard::Withheld);
    }
}
