//! Compiled policies in the real Oathkeeper, with the chart's configuration.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    dead_code,
    reason = "a test ends by panicking, and shares its support with other tests"
)]

#[path = "support/decide.rs"]
mod decide;
#[path = "support/oathkeeper.rs"]
mod oathkeeper;
#[path = "support/objects.rs"]
mod objects;
#[path = "support/program.rs"]
mod program;

use std::{
    collections::BTreeSet,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use oathkeeper::{Issuer, Running};
use objects::Objects;
use peristyle::{
    auth::{plan::RulesFile, relations::Refusals},
    controllers::auth_class::signing_keys,
};
use serde_json::{Value, json};

const SHOP: &str = include_str!("fixtures/auth/shop.yaml");

/// The rules of the fixture with key set and relation check of this run.
fn rules(running: &Running) -> RulesFile {
    let yaml = SHOP
        .replace("https://idp/.well-known/jwks.json", &format!("{}/jwks.json", running.backend))
        .replace("readURL: http://keto-read:4466", &format!("readURL: {}", running.backend))
        .replace("audiences: [orders]}", "audiences: [orders], algorithms: [ES256]}")
        .replace("  issuers:", "  idToken: {issuer: \"https://gate/\", jwksSecret: keys}\n  issuers:");
    Objects::read(&yaml).plan(&Refusals::new()).rules_file()
}

async fn shop() -> Running {
    let mut running = Running::start().await;
    running.mount_keys(&signing_keys::set(&[signing_keys::generate().unwrap()]));
    let file = rules(&running);
    running.load(&file.text, &file.ids).await;
    running
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn claims(subject: &str) -> Value {
    json!({"iss": "https://idp/", "aud": ["orders"], "sub": subject, "exp": now() + 600})
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

const READ: &str = "http://o.shop.test/orders.v1.Orders/Get";

#[tokio::test]
async fn only_a_valid_token_with_the_relation_is_allowed() {
    let running = shop().await;
    let with = |claims: Value| bearer(&running.issuer.token(&claims));
    let without = |claim: &str, value: Value| {
        let mut claims = claims("alice");
        claims[claim] = value;
        with(claims)
    };
    let good = with(claims("alice"));
    let header = good.strip_prefix("Bearer ").unwrap().split('.').nth(1).unwrap();
    let cases: Vec<(&str, String, u16)> = vec![
        ("token and relation", good.clone(), 200),
        ("no relation", with(claims("mallory")), 403),
        ("a subject that is JSON", with(claims(r#"m","subject_id":"alice"#)), 403),
        ("no subject", without("sub", json!("")), 403),
        ("other issuer", without("iss", json!("https://evil/")), 401),
        ("other audience", without("aud", json!(["billing"])), 401),
        ("expired", without("exp", json!(now() - 60)), 401),
        ("not yet valid", without("nbf", json!(now() + 600)), 401),
        ("other key", bearer(&Issuer::new().token(&claims("alice"))), 401),
        ("unsigned", format!("Bearer eyJhbGciOiJub25lIn0.{header}."), 401),
        ("no JWT", "Bearer opaque".to_owned(), 401),
        ("other scheme", "Basic YTpi".to_owned(), 401),
    ];
    for (name, authorization, status) in cases {
        let (found, user) =
            running.decide("POST", READ, &[("Authorization", &authorization), ("X-User", "root")]).await;
        assert_eq!(found, status, "{name}");
        assert_eq!(user.as_deref(), (status == 200).then_some("alice"), "{name}");
    }
    assert_eq!(running.decide("POST", READ, &[("X-User", "alice")]).await, (401, None));
    for url in [READ.replace("http:", "https:"), READ.replace("o.shop.test", "O.Shop.Test:8443")] {
        let found = running.decide("POST", &url, &[("Authorization", &good)]).await;
        assert_eq!(found.0, 200, "{url}");
    }
}

/// Header and claims of a token that one of the published keys has signed.
async fn verified(running: &Running, authorization: &str) -> (Value, Value) {
    let token = authorization.strip_prefix("Bearer ").unwrap();
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).unwrap();
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let [header, claims] = [0, 1]
        .map(|part| serde_json::from_slice::<Value>(&decode(signed.split('.').nth(part).unwrap())).unwrap());
    let answer = running.client.get(format!("{}/.well-known/jwks.json", running.base)).send().await.unwrap();
    let set: Value = serde_json::from_str(&answer.text().await.unwrap()).unwrap();
    let keys = set["keys"].as_array().unwrap();
    assert!(keys.iter().all(|key| key.get("d").is_none()), "a private key is published");
    let key = keys.iter().find(|key| key["kid"] == header["kid"]).expect("the key is published");
    let [x, y] = ["x", "y"].map(|member| decode(key[member].as_str().unwrap()));
    let point = [vec![4], x, y].concat();
    let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point);
    key.verify(signed.as_bytes(), &decode(signature)).unwrap();
    (header, claims)
}

#[tokio::test]
async fn a_protected_call_goes_on_with_one_token_of_the_gate_and_a_public_one_with_none() {
    let running = shop().await;
    let good = bearer(&running.issuer.token(&claims("alice")));
    let (status, headers) = running.decide_whole("POST", READ, &[("Authorization", &good)]).await;
    assert_eq!(status, 200);
    let tokens: Vec<&str> = headers.get_all("Authorization").iter().map(|v| v.to_str().unwrap()).collect();
    let [token] = tokens[..] else { panic!("{} tokens", tokens.len()) };
    let (header, claims) = verified(&running, token).await;
    assert_eq!(header["alg"], "ES256");
    assert_eq!([&claims["iss"], &claims["sub"]], ["https://gate/", "alice"]);
    assert_eq!(claims["aud"], json!(["orders.shop"]));
    let left = claims["exp"].as_u64().unwrap() - now();
    assert!((240..=300).contains(&left), "{left} s");

    let public = "http://o.shop.test/grpc.health.v1.Health/Check";
    let (status, headers) = running.decide_whole("POST", public, &[("Authorization", &good)]).await;
    assert_eq!((status, headers.get("Authorization")), (200, None));
    // The token of the gate opens nothing at the gate.
    assert_eq!(running.decide("POST", READ, &[("Authorization", token)]).await, (401, None));
}

#[tokio::test]
async fn without_keys_protected_calls_fail_until_there_are_some_and_the_last_one_signs() {
    let mut running = Running::start().await;
    let file = rules(&running);
    running.load(&file.text, &file.ids).await;
    let good = bearer(&running.issuer.token(&claims("alice")));
    let decide = async || running.decide_whole("POST", READ, &[("Authorization", &good)]).await;
    assert_eq!(decide().await.0, 500);
    running.oathkeeper.signs(&running.base).await.unwrap_err();
    assert_eq!(running.decide("POST", "http://o.shop.test/grpc.health.v1.Health/Check", &[]).await.0, 200);

    let (new, old) = (signing_keys::generate().unwrap(), signing_keys::generate().unwrap());
    running.mount_keys(&signing_keys::set(&[new, old.clone()]));
    running.oathkeeper.signs(&running.base).await.unwrap();
    let (status, headers) = decide().await;
    assert_eq!(status, 200);
    let (header, _) = verified(&running, headers["Authorization"].to_str().unwrap()).await;
    assert_eq!(header["kid"], old["kid"]);
}

#[tokio::test]
async fn a_public_rule_lets_everyone_in_and_takes_the_identity_away() {
    let running = shop().await;
    let url = "http://o.shop.test/grpc.health.v1.Health/Check";
    for headers in [
        &[][..],
        &[("X-User", "root")],
        &[("Authorization", "Bearer a.b.c"), ("Authorization", "Basic x"), ("X-User", "root")],
    ] {
        assert_eq!(running.decide("POST", url, headers).await, (200, Some(String::new())), "{headers:?}");
    }
}

#[tokio::test]
async fn what_no_rule_matches_is_forbidden_whoever_asks() {
    let running = shop().await;
    let good = bearer(&running.issuer.token(&claims("alice")));
    let token = [("Authorization", good.as_str())];
    for (method, path) in [
        ("POST", "/orders.v1.Orders/Delete"),
        ("POST", "/orders.v1.Orders/Get/"),
        ("POST", "/orders.v1.Orders/get"),
        ("POST", "/orders.v1.OrdersX/Get"),
        ("POST", "/ordersXv1.Orders/Get"),
        ("GET", "/orders.v1.Orders/Get"),
        ("POST", "/orders.v1.Admin/"),
        ("POST", "/files/a"),
        ("PUT", "/files/a"),
        ("GET", "/filesystem"),
        ("GET", "/files/../admin"),
        ("GET", "/files/..%2fadmin"),
        ("GET", "/files/%2e%2e/admin"),
        ("GET", "/files/..;/admin"),
        ("GET", "/files/..\\admin"),
        ("GET", "/files//admin"),
        ("GET", "/files/."),
        ("DELETE", "/v1.0/~me/"),
        ("DELETE", "/v1x0/~me"),
        ("OPTIONS", "/"),
    ] {
        let url = format!("http://o.shop.test{path}");
        for headers in [&[][..], &token] {
            assert_eq!(
                running.decide(method, &url, headers).await.0,
                403,
                "{method} {path} {}",
                headers.len()
            );
        }
    }
    for (method, path) in
        [("GET", "/files"), ("HEAD", "/files/a.b/c/"), ("PUT", "/uploads/..a"), ("DELETE", "/v1.0/~me")]
    {
        let url = format!("http://o.shop.test{path}?q=../%2f");
        assert_eq!(running.decide(method, &url, &token).await.0, 200, "{method} {path}");
        assert_eq!(running.decide(method, &url, &[]).await.0, 401, "{method} {path}");
    }
    assert_eq!(running.decide("GET", "http://other.shop.test/", &token).await.0, 404, "no rule at all");
    assert_eq!(running.decide("TRACE", "http://o.shop.test/files", &token).await.0, 404, "no rule at all");
}

#[tokio::test]
async fn the_matcher_of_the_tests_agrees_with_oathkeeper() {
    let mut running = Running::start().await;
    let mut documents: Vec<Value> = serde_saphyr::from_multiple(SHOP).unwrap();
    let policy = documents.iter_mut().find(|d| d["kind"] == "AuthPolicy").unwrap();
    policy["spec"] = json!({"targets": [{"service": "orders"}], "rules": [
        {"name": "grpc", "public": {}, "match": {"grpc": [{"service": "p.A"}, {"service": "p.B", "methods": ["Get", "_x"]}]}},
        {"name": "http", "public": {}, "match": {"http": [
            {"path": {"prefix": "/a"}, "methods": ["POST", "GET"]}, {"path": {"exact": "/p.A/Get/b"}, "methods": ["POST"]}]}},
    ]});
    let objects = Objects::from_documents(&documents);
    let file = objects.plan(&Refusals::new()).rules_file();
    running.load(&file.text, &file.ids).await;
    let rules = objects.compile("orders").unwrap().rules;
    let segments =
        ["a", "b", "p.A", "p.B", "pXB", "Get", "_x", "1", "", ".", "..", ".a", "%41", "a;b", "a\\b"];
    let mut seen = BTreeSet::new();
    for first in segments {
        for second in segments {
            for third in ["", "/", "/b", "/..", "/Get"] {
                let url = format!("http://o.shop.test/{first}/{second}{third}");
                let expected = match decide::matching(&rules, "POST", &url).as_slice() {
                    [rule] if rule.id.contains("._deny.") => 403,
                    [_] => 200,
                    found => panic!("{url}: {found:?}"),
                };
                assert_eq!(running.decide("POST", &url, &[]).await.0, expected, "{url}");
                seen.insert(expected);
            }
        }
    }
    assert_eq!(seen, [200, 403].into());
}

#[tokio::test]
async fn a_broken_pattern_is_seen_by_the_sentinel_and_not_by_the_list_of_rules() {
    let mut running = Running::start().await;
    let file = rules(&running);
    running.load(&file.text, &file.ids).await;
    running.oathkeeper.decides(&running.base).await.unwrap();
    let broken = json!({"id": "broken", "upstream": {"url": ""}, "match": {"url": "http://x/<(>", "methods": ["PUT"]},
        "authenticators": [{"handler": "noop"}], "authorizer": {"handler": "allow"}, "mutators": [{"handler": "noop"}]});
    let text = format!("[{broken},{}", &file.text.trim_start()[1..]);
    let mut ids = file.ids.clone();
    ids.insert("broken".to_owned());
    running.load(&text, &ids).await;
    let error = running.oathkeeper.decides(&running.base).await.unwrap_err();
    assert!(error.to_string().contains("answered 500"), "{error}");
    running.load(&file.text, &file.ids).await;
    running.oathkeeper.decides(&running.base).await.unwrap();
}

#[tokio::test]
async fn a_rule_with_a_handler_that_is_switched_off_is_not_listed() {
    let mut running = Running::start().await;
    let file = rules(&running);
    let off = json!({"id": "off", "upstream": {"url": ""}, "match": {"url": "http://x/", "methods": ["PUT"]},
        "authenticators": [{"handler": "cookie_session"}], "authorizer": {"handler": "allow"}, "mutators": [{"handler": "noop"}]});
    let text = format!("[{off},{}", &file.text.trim_start()[1..]);
    running.load(&text, &file.ids).await;
}

#[tokio::test]
async fn without_keto_the_call_is_refused_within_seconds() {
    let mut running = Running::start().await;
    let object = |object: &str, backend: &str| {
        SHOP.replace("https://idp/.well-known/jwks.json", &format!("{}/jwks.json", running.backend))
            .replace("readURL: http://keto-read:4466", &format!("readURL: {backend}"))
            .replace("audiences: [orders]}", "audiences: [orders], algorithms: [ES256]}")
            .replace("object: orders, relation: read}", &format!("object: {object}, relation: read}}"))
    };
    let nobody = "http://127.0.0.1:9";
    let cases = [object("hang", &running.backend), object("orders", nobody)];
    let good = bearer(&running.issuer.token(&claims("alice")));
    for yaml in cases {
        let file = Objects::read(&yaml).plan(&Refusals::new()).rules_file();
        running.load(&file.text, &file.ids).await;
        let started = Instant::now();
        assert_eq!(running.decide("POST", READ, &[("Authorization", &good)]).await.0, 500);
        assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
    }
}

#[tokio::test]
async fn a_path_of_a_hundred_thousand_characters_is_decided_by_every_pattern() {
    const LENGTH: usize = 100_000;
    let running = shop().await;
    let good = bearer(&running.issuer.token(&claims("alice")));
    let token = [("Authorization", good.as_str())];
    // Each ends, or does not end, in what only the last character of a pattern refuses.
    for piece in
        ["a", "a/", ".", "..", "../", "..a/", ".a", "a.", "-", "~", "%", "/", "A_", "orders.v1.Orders/"]
    {
        for head in ["/", "/files/", "/uploads/", "/v1.0/~me/", "/orders.v1.Orders/", "/orders.v1.Admin/"] {
            for tail in ["", "%", "/", "\u{e9}"] {
                let path = format!("{head}{}{tail}", piece.repeat(LENGTH / piece.len()));
                for method in ["GET", "PUT", "POST", "DELETE", "OPTIONS"] {
                    let url = format!("http://o.shop.test{path}");
                    // The client's own deadline ends the test where this would take for ever.
                    let (status, _) = running.decide(method, &url, &token).await;
                    let shown = format!("{method} {head}{piece}…{tail}");
                    // Refused is refused: one of the rules asks for another audience.
                    assert!([200, 401, 403].contains(&status), "{shown}: {status}");
                }
            }
        }
    }
}
