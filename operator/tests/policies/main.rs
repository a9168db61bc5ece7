//! Policies through the compiler: what comes out, what is refused, and that
//! every request is decided by exactly one rule.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    dead_code,
    reason = "a test ends by panicking, and shares its support with other tests"
)]

#[path = "../support/decide.rs"]
mod decide;
#[path = "../support/objects.rs"]
mod objects;
mod properties;

use std::collections::BTreeSet;

use objects::Objects;
use peristyle::auth::{
    key::PolicyKey,
    plan::Plan,
    protection::{Protection, decide},
    publications::{Publication, Publications, Ruleset, Standing},
    relations::Refusals,
};
use peristyle_crds::{condition::Reason, v1alpha1::auth_policy::OnTighten};
use rstest::rstest;
use serde_json::{Value, json};

const SHOP: &str = include_str!("../fixtures/auth/shop.yaml");

fn documents() -> Vec<Value> {
    serde_saphyr::from_multiple(SHOP).expect("the fixture is YAML")
}

/// The fixture with one value of the policy replaced.
fn with(pointer: &str, value: &Value) -> Objects {
    let mut documents = documents();
    let policy = documents.iter_mut().find(|d| d["kind"] == "AuthPolicy").unwrap();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = policy.pointer_mut(parent).unwrap_or_else(|| panic!("{pointer}"));
    match parent {
        Value::Array(list) if key == "-" => list.push(value.clone()),
        Value::Array(list) => list[key.parse::<usize>().unwrap()] = value.clone(),
        parent => parent[key] = value.clone(),
    }
    Objects::from_documents(&documents)
}

/// The fixture with more documents.
fn and(more: &str) -> Objects {
    Objects::read(&format!("{SHOP}---\n{more}"))
}

#[test]
fn a_policy_of_every_feature_compiles_to_these_rules() {
    let plan = Objects::read(SHOP).plan(&Refusals::new());
    let rules: Value = serde_json::from_str(&plan.rules_file().text).unwrap();
    insta::assert_snapshot!("rules", serde_json::to_string_pretty(&rules).unwrap());
    insta::assert_snapshot!("namespaces", plan.namespaces_file().text);
}

#[test]
fn a_rules_file_is_never_empty_and_a_namespaces_file_declares_a_class() {
    let documents: Vec<Value> = documents().into_iter().filter(|d| d["kind"] != "AuthPolicy").collect();
    let plan = Objects::from_documents(&documents).plan(&Refusals::new());
    assert_eq!(plan.rules_file().ids.len(), 1);
    assert!(plan.rules_file().text.contains("peristyle\\\\.invalid"));
    let expected: BTreeSet<String> = ["PeristyleNone".to_owned()].into();
    assert_eq!(plan.namespaces_file().namespaces, expected);
}

#[test]
fn every_change_of_content_gives_another_id_and_tuples_give_the_same() {
    let before = Objects::read(SHOP).compile("orders").unwrap();
    let tuples = with("/spec/relations/tuples", &json!([])).compile("orders").unwrap();
    assert_eq!(before.hash, tuples.hash);
    let after = with("/spec/authentication/0/jwt/audiences", &json!(["other"])).compile("orders").unwrap();
    assert_ne!(before.hash, after.hash);
    let ids = |compiled: &peristyle::auth::compile::Compiled, name: &str| {
        compiled.ids.iter().find(|rule| rule.name == name).unwrap().ids.clone()
    };
    assert!(ids(&before, "read").iter().all(|id| !ids(&after, "read").contains(id)));
    assert_eq!(ids(&before, "health"), ids(&after, "health"));
    assert!(before.rules.iter().all(|rule| rule.id.len() <= 190));
}

#[rstest]
#[case::issuer("/spec/authentication/0/jwt/issuer", json!("https://evil/"), Reason::IssuerNotAllowed,
    "spec.authentication[idp].jwt.issuer: AuthClass default does not trust \"https://evil/\"; name one of its spec.issuers or have it added there")]
#[case::audience("/spec/authentication/0/jwt/audiences", json!([]), Reason::Invalid,
    "spec.authentication[idp].jwt.audiences: name at least one, or a token for any other service would do")]
#[case::unknown_authentication("/spec/rules/0/authentication", json!(["nobody"]), Reason::Invalid,
    "spec.rules[read].authentication: \"nobody\" is not in spec.authentication; add it there or name another")]
#[case::two_authentications("/spec/rules/0/authentication", json!(["idp", "partners"]), Reason::Invalid,
    "spec.rules[read]: set public, or authentication with exactly one entry; Oathkeeper decides a token by the first entry alone")]
#[case::no_authentication("/spec/rules/0/authentication", json!([]), Reason::Invalid,
    "spec.rules[read]: set public, or authentication with exactly one entry; Oathkeeper decides a token by the first entry alone")]
#[case::dots("/spec/rules/2/match/http/0/path/prefix", json!("/files/../admin"), Reason::Invalid,
    "spec.rules[files].match.http[0].path: \"/files/../admin\" has an empty, '.' or '..' segment; write the path as the server sees it after cleaning")]
#[case::empty_segment("/spec/rules/2/match/http/2/path/exact", json!("/v1//me"), Reason::Invalid,
    "spec.rules[files].match.http[2].path: \"/v1//me\" has an empty, '.' or '..' segment; write the path as the server sees it after cleaning")]
#[case::pattern_in_a_path("/spec/rules/2/match/http/0/path/prefix", json!("/<.*>"), Reason::Invalid,
    "spec.rules[files].match.http[0].path: \"/<.*>\" must begin with '/' and may hold letters, digits, '/', '.', '_', '~' and '-'")]
#[case::pattern_in_a_method("/spec/rules/0/match/grpc/0/methods/0", json!(".*"), Reason::Invalid,
    "spec.rules[read].match.grpc[0]: \".*\" is not a protobuf name; write it as in the .proto file, for example orders.v1.Orders")]
#[case::same_method("/spec/rules/1/match/grpc/-", json!({"service": "orders.v1.Orders", "methods": ["Get"]}), Reason::OverlappingRules,
    "spec.rules[admin] and spec.rules[read] both match POST /orders.v1.Orders/Get; remove it from one of them")]
#[case::whole_service("/spec/rules/1/match/grpc/-", json!({"service": "orders.v1.Orders"}), Reason::OverlappingRules,
    "spec.rules[admin] and spec.rules[read] both match POST /orders.v1.Orders/Get; remove it from one of them")]
#[case::prefix_over_a_service("/spec/rules/2/match/http/-", json!({"path": {"prefix": "/"}, "methods": ["POST"]}), Reason::OverlappingRules,
    "spec.rules[files] and spec.rules[read] both match POST /orders.v1.Orders/Get; remove it from one of them")]
#[case::missing_service("/spec/targets/0/service", json!("nobody"), Reason::TargetNotFound,
    "spec.targets: Service nobody not found in this namespace")]
#[case::missing_expose("/spec/targets/0/expose", json!("nowhere"), Reason::TargetNotFound,
    "spec.targets: expose nowhere of Service orders not found in this namespace")]
#[case::public_expose("/spec/targets/0/expose", json!("open"), Reason::Invalid,
    "spec.targets[0].expose: \"open\" of Service orders is Public; remove the target or set its auth.mode to Required")]
#[case::class("/spec/className", json!("other"), Reason::ClassNotFound,
    "spec.className: class \"other\" does not exist; create it or name another")]
#[case::empty_model("/spec/relations/model", json!(" // nothing\n"), Reason::Invalid,
    "spec.relations.model: line 1: declares no class; write `class X implements Namespace { … }` or leave the model out")]
#[case::undeclared_namespace("/spec/rules/0/authorization/relation/namespace", json!("Invoices"), Reason::ReferenceMissing,
    "spec.rules[read].authorization.relation.namespace: no policy of this namespace and AuthClass declares class Invoices; declare it in spec.relations.model")]
#[case::undeclared_relation("/spec/rules/0/authorization/relation/relation", json!("burn"), Reason::Invalid,
    "spec.rules[read].authorization.relation.relation: class Orders has no \"burn\"; it has owners, read, readers, write")]
#[case::tuple_relation("/spec/relations/tuples/0/relation", json!("burners"), Reason::Invalid,
    "spec.relations.tuples[0].relation: class Orders has no \"burners\"; it has owners, read, readers, write")]
#[case::tuple_twice("/spec/relations/tuples/1", json!({"namespace": "Orders", "object": "orders", "relation": "readers", "subject": "alice"}), Reason::Invalid,
    "spec.relations.tuples[1]: stands there twice; remove one")]
#[case::subject_set("/spec/relations/tuples/1/subjectSet/relation", json!("friends"), Reason::Invalid,
    "spec.relations.tuples[1].subjectSet.relation: class Team has no \"friends\"; it has members")]
fn a_wrong_policy_is_refused_with_field_value_and_remedy(
    #[case] pointer: &str,
    #[case] value: Value,
    #[case] reason: Reason,
    #[case] message: &str,
) {
    let rejection = with(pointer, &value).compile("orders").unwrap_err();
    assert_eq!((rejection.message.as_str(), rejection.reason), (message, reason));
}

const YOUNGER: &str = "
kind: AuthPolicy
metadata: {name: younger, namespace: shop, creationTimestamp: \"2026-02-01T00:00:00Z\"}
spec:
  targets: [{service: orders, expose: public}]
  rules: [{name: all, match: {http: [{path: {prefix: /}, methods: [GET, POST]}]}, public: {}}]
";

#[test]
fn the_older_policy_governs_a_host_and_stays_in_charge_while_it_is_invalid() {
    let objects = and(YOUNGER);
    assert!(objects.compile("orders").is_ok());
    let rejection = objects.compile("younger").unwrap_err();
    assert_eq!(rejection.reason, Reason::Conflicted);
    assert_eq!(
        rejection.message,
        "spec.targets: host \"o.shop.test\" is governed by AuthPolicy orders, which is older; remove the target from one of the two"
    );
    let invalid =
        Objects::read(&format!("{SHOP}---\n{YOUNGER}").replace("audiences: [orders]", "audiences: []"));
    assert!(invalid.compile("orders").is_err());
    assert_eq!(invalid.compile("younger").unwrap_err().reason, Reason::Conflicted);
}

#[test]
fn a_host_that_belongs_to_somebody_else_gets_no_rule() {
    let objects = and("
kind: Service
metadata: {name: thief, namespace: evil, uid: thief, creationTimestamp: \"2026-03-01T00:00:00Z\"}
spec:
  image: x
  expose: [{name: public, hosts: [o.shop.test, thief.evil.example.com]}]
---
kind: AuthPolicy
metadata: {name: thief, namespace: evil, creationTimestamp: \"2020-01-01T00:00:00Z\"}
spec:
  targets: [{service: thief}]
  rules: [{name: all, match: {http: [{path: {prefix: /}}]}, public: {}}]
");
    let compiled = objects.compile("thief").unwrap();
    assert_eq!(Vec::from_iter(&compiled.territory.hosts), ["thief.evil.example.com"]);
    assert!(compiled.rules.iter().all(|rule| !rule.url().contains("shop")));
}

#[test]
fn another_team_may_neither_declare_a_namespace_again_nor_grant_itself_relations_in_it() {
    let evil = |relations: &str| {
        let text = format!(
            "
kind: AuthPolicy
metadata: {{name: evil, namespace: evil, creationTimestamp: \"2026-03-01T00:00:00Z\"}}
spec:
  targets: [{{service: nobody}}]
  rules: [{{name: all, match: {{http: [{{path: {{prefix: /}}}}]}}, public: {{}}}}]
  relations: {relations}
"
        );
        let plan = and(&text).plan(&Refusals::new());
        assert!(plan.tuples.keys().all(|key| key.namespace == "shop"));
        assert!(plan.models.iter().all(|(key, _)| key.namespace == "shop"));
    };
    evil(r#"{model: "class Orders implements Namespace {}"}"#);
    evil("{tuples: [{namespace: Orders, object: orders, relation: owners, subject: mallory}]}");
    // Keto's parser would take the second class for one of its own.
    evil(
        r#"{model: "class A implements Namespace { permits = { a: (ctx) => } class Orders implements Namespace { related: { readers: A[] } } }"}"#,
    );
    evil(r#"{model: "class A implements Namespace {} /*"}"#);
}

/// Asks and grants by class Orders, which the fixture's policy declares.
const DEPENDENT: &str = "
kind: AuthPolicy
metadata: {name: dependent, namespace: shop, creationTimestamp: \"2026-02-01T00:00:00Z\"}
spec:
  targets: [{service: nobody}, {service: orders, expose: second}]
  authentication: [{name: idp, jwt: {issuer: \"https://idp/\", audiences: [orders]}}]
  rules:
  - name: get
    match: {http: [{path: {prefix: /}}]}
    authentication: [idp]
    authorization: {relation: {namespace: Orders, object: orders, relation: read}}
---
kind: AuthPolicy
metadata: {name: evil, namespace: evil, creationTimestamp: \"2026-02-01T00:00:00Z\"}
spec:
  targets: [{service: nobody}]
  rules: [{name: all, match: {http: [{path: {prefix: /}}]}, public: {}}]
  relations:
    model: |
      class Orders implements Namespace { related: { read: Orders[], members: Orders[] } }
    tuples: [{namespace: Orders, object: orders, relation: read, subject: mallory}]
";

#[test]
fn a_rule_never_asks_a_relation_of_another_team_even_when_its_own_teams_model_breaks() {
    let refused = |objects: &Objects| {
        let rejection = objects.compile("dependent").unwrap_err();
        (rejection.reason, rejection.message)
    };
    let absent = (
        Reason::ReferenceMissing,
        "spec.rules[get].authorization.relation.namespace: no policy of this namespace and AuthClass declares class Orders; declare it in spec.relations.model"
            .to_owned(),
    );
    let text = format!("{SHOP}---\n{DEPENDENT}")
        .replace("  - {name: open,", "  - {name: second, hosts: [second.shop.test]}\n  - {name: open,");
    let text = text.replace("targets: [{service: orders}]", "targets: [{service: orders, expose: public}]");
    assert!(Objects::read(&text).compile("dependent").is_ok(), "a policy of the same namespace declares it");
    // A typo: the model owns nothing, and the class passes to the other team.
    let broken = Objects::read(&text.replace("class Person implements Namespace {}", "clas Person {}"));
    assert_eq!(refused(&broken), absent);
    // Made again: its model is younger than the other team's now.
    let born = "metadata: {name: orders, namespace: shop, creationTimestamp: \"2026-01-01";
    let again = "metadata: {name: orders, namespace: shop, creationTimestamp: \"2026-03-01";
    let readers = text.rfind(born).expect("the fixture's policy");
    let younger = format!("{}{}", &text[..readers], text[readers..].replacen(born, again, 1));
    assert_eq!(refused(&Objects::read(&younger)), absent);
    let alone: Vec<&str> = text.split("---\n").filter(|part| !part.contains("namespace: evil")).collect();
    let alone = alone.join("---\n").replace("class Orders", "class Other");
    assert_eq!(
        refused(&Objects::read(&alone.replace(
            "namespace: Orders, object: orders, relation: readers",
            "namespace: Other, object: orders, relation: readers"
        )))
        .0,
        Reason::ReferenceMissing
    );
}

#[test]
fn a_class_of_another_team_reads_as_absent_in_every_place_that_names_one() {
    let evil = |tuple: &str| {
        let policy = "
kind: AuthPolicy
metadata: {name: evil, namespace: evil, creationTimestamp: \"2026-03-01T00:00:00Z\"}
spec:
  targets: [{service: nobody}]
  rules: [{name: all, match: {http: [{path: {prefix: /}}]}, public: {}}]
  relations: {model: \"class Mine implements Namespace { related: { a: Mine[] } }\", tuples: [TUPLE]}
";
        let objects = and(&policy.replace("TUPLE", tuple));
        objects
            .world(|world| {
                world.namespaces(&objects.classes[0], &Refusals::new()).tuples(objects.policy("evil"))
            })
            .unwrap_err()
            .message
    };
    for (theirs, absent) in [("Orders", "Absent"), ("Team", "Absent")] {
        let tuple = |class: &str| format!("{{namespace: {class}, object: o, relation: x, subject: mallory}}");
        assert_eq!(evil(&tuple(theirs)).replace(theirs, absent), evil(&tuple(absent)));
        for relation in ["\"\"", "members"] {
            let set = |class: &str| {
                format!(
                    "{{namespace: Mine, object: o, relation: a, subjectSet: {{namespace: {class}, object: o, relation: {relation}}}}}"
                )
            };
            assert_eq!(evil(&set(theirs)).replace(theirs, absent), evil(&set(absent)));
        }
    }
}

#[test]
fn what_keto_refuses_is_left_out_with_its_tuples_and_dependents() {
    let objects = Objects::read(SHOP);
    let key = PolicyKey { namespace: "shop".to_owned(), name: "orders".to_owned() };
    let source = objects.policy("orders").spec.relations.as_ref().unwrap().model.clone().unwrap();
    let plan = objects.plan(&[(key.clone(), (source, "line 3: no such type".to_owned()))].into());
    assert!(plan.models.is_empty() && plan.tuples.is_empty());
    let rejection = plan.policies[0].1.clone().unwrap_err();
    assert_eq!(rejection.message, "spec.relations.model: line 3: no such type");
    let outdated = objects.plan(&[(key, ("an older text".to_owned(), String::new()))].into());
    assert!(outdated.policies[0].1.is_ok(), "a refusal of another text says nothing");
}

#[test]
fn a_line_of_the_namespaces_file_leads_back_to_its_policy() {
    let objects = and("
kind: AuthPolicy
metadata: {name: second, namespace: shop, creationTimestamp: \"2026-03-01T00:00:00Z\"}
spec:
  targets: [{service: nobody}]
  rules: [{name: all, match: {http: [{path: {prefix: /}}]}, public: {}}]
  relations: {model: \"class Second implements Namespace {\\n related: { a: Nobody[] } }\"}
");
    let plan: Plan = objects.plan(&Refusals::new());
    let text = plan.namespaces_file().text;
    let line = text.lines().position(|line| line.contains("Nobody")).unwrap() + 1;
    let (key, inner) = plan.author(line).unwrap();
    assert_eq!((key.name.as_str(), inner), ("second", 2));
    assert_eq!(plan.author(1), None, "the import belongs to nobody");
}

#[test]
fn the_root_as_an_exact_path_is_the_root_alone() {
    let root = json!([{"name": "root", "match": {"http": [{"path": {"exact": "/"}}]}, "public": {}}]);
    let compiled = with("/spec/rules", &root).compile("orders").unwrap();
    let decided = |path: &str| {
        let url = format!("http://o.shop.test{path}");
        let found = decide::matching(&compiled.rules, "GET", &url);
        assert_eq!(found.len(), 1, "{path}");
        found[0].id.contains(".root.")
    };
    assert_eq!(["/", "/a", "//", "/."].map(decided), [true, false, false, false]);
}

/// The protection of the first or second route of the fixture's Service.
fn protected(objects: &Objects, publications: &Publications, route: usize) -> Protection {
    let service = &objects.services[0];
    objects.world(|world| decide(world, publications, service, &service.spec.expose[route]))
}

#[test]
fn a_route_is_protected_only_by_the_rules_that_its_policy_compiles_to_now() {
    let objects = Objects::read(SHOP);
    let publications = Publications::default();
    let hash = objects.compile("orders").unwrap().hash;
    let policy = "orders".to_owned();
    let decisions_url = "http://oathkeeper-api.peristyle-system.svc.cluster.local:4456/decisions".to_owned();
    let unknown = Protection::Unknown {
        policy: policy.clone(),
        hash: hash.clone(),
        decisions_url: decisions_url.clone(),
    };
    assert_eq!(protected(&objects, &publications, 0), unknown);
    assert_eq!(protected(&objects, &publications, 1), Protection::None, "no policy governs a public route");

    let key = PolicyKey { namespace: "shop".to_owned(), name: "orders".to_owned() };
    let allowed = objects.compile("orders").unwrap().allowed;
    let publish = |hash: &str, standing: Standing| {
        let rules = Ruleset { hash: hash.to_owned(), allowed: allowed.clone(), ..Ruleset::default() };
        let publication = Publication { rules, standing, ..Publication::unknown(hash) };
        publications.replace("class", [(key.clone(), publication)].into(), Refusals::new());
    };
    publish(&hash, Standing::Live);
    assert_eq!(
        protected(&objects, &publications, 0),
        Protection::Live { policy, hash: hash.clone(), decisions_url }
    );

    // Whatever was live before a change says nothing about the rules after it.
    let reason = |objects: &Objects| match protected(objects, &publications, 0) {
        Protection::Pending { reason, .. } => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        reason(&with("/spec/authentication/0/jwt/audiences", &json!(["other"]))),
        Reason::PropagatingRules
    );
    assert_eq!(
        reason(&with("/spec/authentication/0/jwt/issuer", &json!("https://evil/"))),
        Reason::IssuerNotAllowed
    );
    publish("older", Standing::Unknown);
    assert_eq!(reason(&objects), Reason::PropagatingRules);
    let gone = with("/metadata/deletionTimestamp", &json!("2026-04-01T00:00:00Z"));
    publish(&hash, Standing::Live);
    assert_eq!(protected(&gone, &publications, 0), Protection::None);
    let elsewhere = with("/spec/targets/0/expose", &json!("other"));
    assert_eq!(protected(&elsewhere, &publications, 0), Protection::None);
}

#[test]
fn a_policy_that_is_being_deleted_governs_nothing() {
    let objects = with("/metadata/deletionTimestamp", &json!("2026-04-01T00:00:00Z"));
    assert!(objects.plan(&Refusals::new()).policies.is_empty());
}

#[test]
fn the_largest_policy_of_the_schema_is_refused_by_size_and_not_by_a_timeout() {
    let rules: Vec<Value> = (0..64)
        .map(|rule| {
            let services: Vec<Value> = (0..32)
                .map(|service| {
                    let methods: Vec<String> = (0..64).map(|method| format!("M{method}")).collect();
                    json!({"service": format!("a{rule}.b{service}"), "methods": methods})
                })
                .collect();
            json!({"name": format!("r{rule}"), "match": {"grpc": services}, "public": {}})
        })
        .collect();
    let started = std::time::Instant::now();
    let rejection = with("/spec/rules", &json!(rules)).compile("orders").unwrap_err();
    assert_eq!(rejection.reason, Reason::Invalid);
    assert!(started.elapsed() < std::time::Duration::from_secs(60), "{:?}", started.elapsed());
}

#[test]
fn a_route_stays_up_while_rules_change_only_if_nothing_is_forbidden_or_the_policy_says_so() {
    let publications = Publications::default();
    let before = Objects::read(SHOP).compile("orders").unwrap();
    let key = PolicyKey { namespace: "shop".to_owned(), name: "orders".to_owned() };
    let publication = Publication {
        rules: (&before).into(),
        standing: Standing::Live,
        ..Publication::unknown(&before.hash)
    };
    publications.replace("class", [(key.clone(), publication.clone())].into(), Refusals::new());
    let more = json!({"name": "more", "match": {"grpc": [{"service": "more.v1.More"}]}, "public": {}});
    let stays_up = |objects: &Objects, publications: &Publications| match protected(objects, publications, 0)
    {
        Protection::Changing { hash, hosts, .. } => hash == before.hash && hosts == before.territory.hosts,
        Protection::Pending { .. } => false,
        other => panic!("{other:?}"),
    };
    let looser = with("/spec/rules/-", &more);
    let stricter = with("/spec/rules/3/match/grpc/0/methods", &json!(["Check"]));
    assert!(stays_up(&looser, &publications));
    assert!(!stays_up(&stricter, &publications));
    let mut serve = Objects::read(SHOP);
    serve.policies[0].spec = stricter.policies[0].spec.clone();
    serve.policies[0].spec.on_tighten = Some(OnTighten::Serve);
    assert!(stays_up(&serve, &publications));

    // A pod may already decide by the looser rules: to go back from them is a tightening.
    let on_the_way = |hosts: &BTreeSet<String>| Publication {
        rules: Ruleset { hosts: hosts.clone(), ..(&looser.compile("orders").unwrap()).into() },
        standing: Standing::Pending { reason: Reason::PropagatingRules, message: String::new() },
        earlier: publication.before("looser"),
        ..Publication::unknown("looser")
    };
    let publish =
        |publication| publications.replace("class", [(key.clone(), publication)].into(), Refusals::new());
    publish(on_the_way(&before.territory.hosts));
    assert!(stays_up(&looser, &publications));
    let renamed = with("/spec/rules/3/name", &json!("healthy"));
    assert!(!stays_up(&renamed, &publications));

    // Of a host that it did not have meanwhile nobody knows whose rules a pod decides by.
    let both = json!([{"service": "more.v1.More"}, {"service": "another.v1.Another"}]);
    let looser_still = with("/spec/rules/-", &json!({"name": "more", "match": {"grpc": both}, "public": {}}));
    assert!(stays_up(&looser_still, &publications));
    publish(on_the_way(&BTreeSet::new()));
    assert!(!stays_up(&looser_still, &publications));
}
