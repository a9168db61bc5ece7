//! What holds of every policy and request.

use peristyle::auth::{
    matches::{METHODS, word},
    tighten::tightens,
};
use peristyle_crds::condition::Reason;
use proptest::prelude::*;
use serde_json::{Value, json};

use crate::{decide, documents, objects::Objects};

/// A request path from a small alphabet of names and of what servers read differently.
fn path() -> impl Strategy<Value = String> {
    let segment = prop::sample::select(vec![
        "a", "b", "p.A", "p.B", "Get", "List", "_x1", "1x", "", ".", "..", "...", ".a", "%2e%2e", "a%2fb",
        "a;b", "a\\b", "é", "a b", "A", "x:y@z", "*",
    ]);
    prop::collection::vec(segment, 0..4).prop_map(|segments| format!("/{}", segments.join("/")))
}

fn rule(index: usize) -> impl Strategy<Value = Value> {
    let name = prop::sample::select(vec!["p.A", "p.B", "a"]);
    let methods = prop::sample::subsequence(vec!["Get", "List", "_x1"], 0..3);
    let grpc = (name, methods).prop_map(|(service, methods)| json!({"service": service, "methods": methods}));
    let path = prop::sample::select(vec![
        json!({"prefix": "/"}),
        json!({"prefix": "/a"}),
        json!({"prefix": "/a/"}),
        json!({"prefix": "/a/b"}),
        json!({"prefix": "/p.A"}),
        json!({"prefix": "/p.A/Get"}),
        json!({"exact": "/a"}),
        json!({"exact": "/a/"}),
        json!({"exact": "/"}),
        json!({"exact": "/p.B/Get"}),
        json!({"exact": "/a/b/_x1"}),
    ]);
    let verbs = prop::sample::subsequence(vec!["GET", "POST", "PUT", "DELETE"], 0..3);
    let http = (path, verbs).prop_map(|(path, methods)| json!({"path": path, "methods": methods}));
    prop_oneof![
        prop::collection::vec(grpc, 1..3).prop_map(|m| json!({"grpc": m})),
        prop::collection::vec(http, 1..3).prop_map(|m| json!({"http": m})),
    ]
    .prop_map(move |matches| json!({"name": format!("r{index}"), "match": matches, "public": {}}))
}

/// Whether the policy author meant this request, by the words of the documentation.
fn is_meant(rule: &Value, method: &str, path: &str) -> bool {
    let is_name = |text: &str| {
        text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let is_plain = |segment: &str| {
        !matches!(segment, "" | "." | "..")
            && segment.chars().all(|c| c.is_ascii_alphanumeric() || "._~-!$&'()*+,=:@".contains(c))
    };
    let grpc = rule["match"]["grpc"].as_array().into_iter().flatten().any(|m| {
        let Some(called) = path.strip_prefix(&format!("/{}/", m["service"].as_str().unwrap())) else {
            return false;
        };
        let methods = m["methods"].as_array().unwrap();
        method == "POST"
            && if methods.is_empty() { is_name(called) } else { methods.iter().any(|m| m == called) }
    });
    let http = rule["match"]["http"].as_array().into_iter().flatten().any(|m| {
        let verbs = m["methods"].as_array().unwrap();
        let is_verb = if verbs.is_empty() {
            ["GET", "HEAD"].contains(&method)
        } else {
            verbs.iter().any(|v| v == method)
        };
        let is_path = match (m["path"]["exact"].as_str(), m["path"]["prefix"].as_str()) {
            (Some(exact), _) => path == exact,
            (_, Some(prefix)) => {
                let prefix = prefix.trim_end_matches('/');
                path.strip_prefix(prefix).is_some_and(|rest| {
                    let rest = rest.strip_suffix('/').unwrap_or(rest);
                    rest.is_empty()
                        || rest.strip_prefix('/').is_some_and(|rest| rest.split('/').all(is_plain))
                })
            }
            _ => unreachable!(),
        };
        is_verb && is_path
    });
    grpc || http
}

fn policy(rules: &[Value]) -> Objects {
    let mut documents = documents();
    let policy = documents.iter_mut().find(|d| d["kind"] == "AuthPolicy").unwrap();
    let idp = json!({"name": "idp", "jwt": {"issuer": "https://idp/", "audiences": ["orders"]}});
    policy["spec"] = json!({"targets": [{"service": "orders"}], "authentication": [idp], "rules": rules});
    Objects::from_documents(&documents)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_request_is_decided_by_exactly_the_rule_that_means_it_or_denied(
        rules in (1_usize..5).prop_flat_map(|n| (0..n).map(rule).collect::<Vec<_>>()),
        requests in prop::collection::vec((prop::sample::select(METHODS.to_vec()), path()), 40),
        host in prop::sample::select(vec!["o.shop.test", "O.Shop.TEST:8443", "orders.shop.example.com"]),
    ) {
        let compiled = policy(&rules).compile("orders");
        let meant = |method: &str, path: &str| -> Vec<String> {
            let meant = rules.iter().filter(|rule| is_meant(rule, method, path));
            meant.map(|rule| rule["name"].as_str().unwrap().to_owned()).collect()
        };
        let compiled = match compiled {
            Ok(compiled) => compiled,
            Err(rejection) => {
                // The request that it names is really meant by both.
                prop_assert_eq!(rejection.reason, Reason::OverlappingRules);
                let words: Vec<&str> = rejection.message.split(' ').collect();
                let (one, two) = (&words[0][11..13], &words[2][11..13]);
                let path = words[6].trim_end_matches(';');
                let witnesses = [path.replace('*', ""), path.replace("/*", ""), path.replace('*', "Get")];
                let both = [one.to_owned(), two.to_owned()];
                let is_proved = witnesses.iter().any(|path| {
                    let meant = meant(words[5], path);
                    both.iter().all(|name| meant.contains(name))
                });
                prop_assert!(is_proved, "{}", rejection.message);
                return Ok(());
            }
        };
        for (method, path) in requests {
            let (method, url) = (word(method), format!("http://{host}{path}"));
            let found = decide::matching(&compiled.rules, method, &url);
            prop_assert_eq!(found.len(), 1, "{} {}: {:?}", method, url, found);
            let meant = meant(method, &path);
            prop_assert!(meant.len() <= 1, "not seen as an overlap: {} {} {:?}", method, path, meant);
            let name = meant.first().map_or("_deny", String::as_str);
            let prefix = format!("shop.orders.{name}.");
            prop_assert!(found[0].id.starts_with(&prefix), "{} {} by {}", method, url, found[0].id);
        }
    }

    #[test]
    fn what_is_no_tightening_refuses_nobody_whom_the_old_rules_let_pass(
        old in (1_usize..4).prop_flat_map(|n| (0..n).map(access).collect::<Vec<_>>()),
        changes in prop::collection::vec(prop::sample::select(vec!["keep", "keep", "keep", "open", "close", "drop"]), 4),
        more in prop::collection::vec(access(9), 0..2),
        requests in prop::collection::vec((prop::sample::select(METHODS.to_vec()), path()), 60),
    ) {
        let new: Vec<Value> = old.iter().zip(&changes).filter_map(|(rule, change)| changed(rule, change)).chain(more).collect();
        if new.is_empty() {
            return Ok(());
        }
        let (Ok(before), Ok(after)) = (policy(&old).compile("orders"), policy(&new).compile("orders")) else {
            return Ok(());
        };
        if tightens(&before.allowed, &after.allowed) {
            return Ok(());
        }
        for (method, path) in requests {
            let method = word(method);
            let (before, after) = (who(&old, method, &path), who(&new, method, &path));
            prop_assert!(before <= after, "{} {}: {} became {}", method, path, before, after);
        }
    }
}

/// A rule for everyone or for those with a token.
fn access(index: usize) -> impl Strategy<Value = Value> {
    (rule(index), any::<bool>())
        .prop_map(|(rule, is_public)| changed(&rule, if is_public { "open" } else { "close" }).unwrap())
}

fn changed(rule: &Value, change: &str) -> Option<Value> {
    let mut rule = rule.clone();
    let fields = rule.as_object_mut().unwrap();
    match change {
        "drop" => return None,
        "open" => {
            fields.remove("authentication");
            fields.insert("public".to_owned(), json!({}));
        }
        "close" => {
            fields.remove("public");
            fields.insert("authentication".to_owned(), json!(["idp"]));
        }
        _ => {}
    }
    Some(rule)
}

/// Who may send the request: 0 nobody, 1 those with a token, 2 everyone.
fn who(rules: &[Value], method: &str, path: &str) -> u8 {
    let meant = rules.iter().filter(|rule| is_meant(rule, method, path));
    meant.map(|rule| if rule["public"].is_object() { 2 } else { 1 }).max().unwrap_or(0)
}
