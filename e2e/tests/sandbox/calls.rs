//! Who gets through the edge, and what the backend then sees: for gRPC and
//! for plain HTTP, on the full sandbox.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use e2e::calls::Answer;
use e2e::example::{AUTH, ECHO, Example, GREETER, ISSUER, PROPAGATION, new_user};
use e2e::state::State;
use e2e::{stack, wait};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::Method;
use serde_json::{Value, json};
use tonic::Code;

async fn example() -> Example {
    Example::start(&State::current().unwrap()).await.expect("charts installed by `cargo sandbox test`")
}

const ALLOWED: (Code, &str) = (Code::Ok, "");
/// The edge's own words: the greeter, which asks for a token itself, has others.
const NO_TOKEN: (Code, &str) = (Code::Unauthenticated, "authentication required");
const NO_RELATION: (Code, &str) = (Code::PermissionDenied, "permission denied");
const NO_KETO: (Code, &str) = (Code::Unavailable, "authorization unavailable");

type Verdict = (Code, String);

async fn call(example: &Example, headers: &[(&'static str, String)]) -> Verdict {
    match example.edge.greet_with(GREETER, headers, "Ada").await {
        Ok(_) => (Code::Ok, String::new()),
        Err(status) => (status.code(), status.message().to_owned()),
    }
}

async fn call_with(example: &Example, token: &str) -> Verdict {
    call(example, &[("authorization", format!("Bearer {token}"))]).await
}

#[track_caller]
fn assert_verdict((code, message): &Verdict, expected: (Code, &str), what: &str) {
    assert_eq!((*code, message.as_str()), expected, "{what}");
}

async fn becomes(example: &Example, token: &str, expected: (Code, &str)) -> Result<()> {
    wait::until(&format!("the call is answered {expected:?}"), PROPAGATION, async || {
        let (code, message) = call_with(example, token).await;
        ensure!((code, message.as_str()) == expected, "{code:?}: {message}");
        Ok(())
    })
    .await
}

async fn echo_becomes(example: &Example, path: &str, token: &str, expected: u16) -> Result<()> {
    wait::until(&format!("GET {path} is answered {expected}"), PROPAGATION, async || {
        let answer = example.get_echo(path, &[("authorization", &format!("Bearer {token}"))]).await?;
        ensure!(answer.status == expected, "{} {}", answer.status, answer.body);
        Ok(())
    })
    .await
}

/// Tokens of the right key with one wrong claim each, the first with none.
async fn tokens(example: &Example, user: &str) -> Result<Vec<(&'static str, String)>> {
    let good = json!({"iss": ISSUER, "aud": ["greeter"], "sub": user, "iat": now(), "exp": now() + 600});
    let mut tokens = vec![("good claims", sign(example, &good).await?)];
    for (what, claim, value) in [
        ("a wrong issuer", "iss", json!("http://elsewhere")),
        ("a wrong audience", "aud", json!(["other"])),
        ("an expired token", "exp", json!(now() - 60)),
    ] {
        let mut claims = good.clone();
        claims[claim] = value;
        tokens.push((what, sign(example, &claims).await?));
    }
    Ok(tokens)
}

/// Signs `claims` with the key of the auth service itself.
async fn sign(example: &Example, claims: &Value) -> Result<String> {
    let row = "select kid || ' ' || private_pem from app.signing_keys order by created_at desc limit 1";
    let row = stack::query(&example.cluster, "demo_auth", row).await?;
    let (kid, pem) = row.split_once(' ').context("the auth service has no key")?;
    let header = Header { kid: Some(kid.to_owned()), ..Header::new(Algorithm::RS256) };
    Ok(jsonwebtoken::encode(&header, claims, &EncodingKey::from_rsa_pem(pem.as_bytes())?)?)
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

#[tokio::test]
async fn a_grpc_call_gets_exactly_as_far_as_its_token_and_relation_carry_it() {
    let example = example().await;
    let (user, other) = (new_user("alice").unwrap(), new_user("mallory").unwrap());
    let (token, other_token) = (example.token(&user).await.unwrap(), example.token(&other).await.unwrap());
    example.allow(&[&user]).await.unwrap();
    becomes(&example, &token, ALLOWED).await.unwrap();

    assert_verdict(&call(&example, &[]).await, NO_TOKEN, "no token");
    assert_verdict(&call_with(&example, "no.jwt.atall").await, NO_TOKEN, "garbage");
    assert_verdict(&call_with(&example, &other_token).await, NO_RELATION, "a token without the relation");
    for (what, token) in tokens(&example, &user).await.unwrap() {
        let expected = if what == "good claims" { ALLOWED } else { NO_TOKEN };
        assert_verdict(&call_with(&example, &token).await, expected, what);
    }

    let forged = [("x-user", user.clone()), ("x_user", user.clone())];
    assert_verdict(&call(&example, &forged).await, NO_TOKEN, "a forged X-User instead of a token");
    let forged = [("authorization", format!("Bearer {other_token}")), ("x-user", user.clone())];
    assert_verdict(&call(&example, &forged).await, NO_RELATION, "a forged X-User beside a token");

    let channel = example.edge.channel(GREETER).unwrap();
    let mut unnamed = tonic::Request::new(greeter::v2::GreetRequest::default());
    unnamed.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    let answer = greeter::v2::greeter_service_client::GreeterServiceClient::new(channel).greet(unnamed).await;
    let status = answer.map(|_| ()).unwrap_err();
    let verdict = (status.code(), status.message().to_owned());
    assert_verdict(&verdict, NO_RELATION, "a method that no rule names");

    example.allow(&[]).await.unwrap();
    becomes(&example, &token, NO_RELATION).await.unwrap();
}

#[tokio::test]
async fn without_keto_nobody_gets_where_a_relation_is_asked_for() {
    let example = example().await;
    example.start_echo().await.unwrap();
    let user = new_user("dave").unwrap();
    let token = example.token(&user).await.unwrap();
    example.allow(&[&user]).await.unwrap();
    becomes(&example, &token, ALLOWED).await.unwrap();
    echo_becomes(&example, "/ours", &token, 200).await.unwrap();

    example.scale("keto", 0).await.unwrap();
    becomes(&example, &token, NO_KETO).await.unwrap();
    echo_becomes(&example, "/ours", &token, 500).await.unwrap();
    let answer = example.get_echo("/mine", &[("authorization", &format!("Bearer {token}"))]).await.unwrap();
    assert_eq!(answer.status, 200, "a rule without a relation does not need Keto");

    example.scale("keto", 1).await.unwrap();
    becomes(&example, &token, ALLOWED).await.unwrap();
    echo_becomes(&example, "/ours", &token, 200).await.unwrap();
    example.stop_echo().await.unwrap();
}

async fn get(example: &Example, path: &str, headers: &[(&str, &str)]) -> Answer {
    example.get_echo(path, headers).await.unwrap()
}

fn seen(answer: &Answer, header: &str) -> Vec<String> {
    let name = format!("{}:", header.to_lowercase());
    let lines = answer.body.lines().filter(|line| line.to_lowercase().starts_with(&name));
    lines.map(|line| line[name.len()..].trim().to_owned()).collect()
}

#[tokio::test]
async fn a_plain_http_call_gets_exactly_as_far_and_the_backend_sees_no_forged_identity() {
    let example = example().await;
    example.start_echo().await.unwrap();
    let user = new_user("bob").unwrap();
    let token = example.token(&user).await.unwrap();
    let bearer = format!("Bearer {token}");
    example.allow(&[]).await.unwrap();
    echo_becomes(&example, "/mine", &token, 200).await.unwrap();
    echo_becomes(&example, "/ours", &token, 403).await.unwrap();
    example.allow(&[&user]).await.unwrap();
    echo_becomes(&example, "/ours", &token, 200).await.unwrap();
    for (what, token) in tokens(&example, &user).await.unwrap() {
        let expected = if what == "good claims" { 200 } else { 401 };
        let answer = get(&example, "/ours", &[("authorization", &format!("Bearer {token}"))]).await;
        assert_eq!(answer.status, expected, "{what}: {}", answer.body);
    }

    for (what, path, headers, status) in [
        ("no token", "/mine/x", vec![], 401),
        ("a token", "/mine/x", vec![("authorization", bearer.as_str())], 200),
        ("garbage", "/mine/x", vec![("authorization", "Bearer x")], 401),
        ("a forged identity", "/mine/x", vec![("x-user", "root")], 401),
        ("a public path", "/open/x", vec![], 200),
        ("a public path with a bad token", "/open/x", vec![("authorization", "Bearer x")], 200),
        ("a path that no rule names", "/other", vec![("authorization", bearer.as_str())], 403),
        ("a neighbour of the prefix", "/openly", vec![], 403),
        ("an encoded way out of the prefix", "/open/..%2fmine", vec![], 400),
        ("a plain way out of the prefix", "/open/%2e%2e/mine", vec![], 401),
        ("a segment with a semicolon", "/open/..;/mine", vec![], 403),
    ] {
        let answer = get(&example, path, &headers).await;
        assert_eq!(answer.status, status, "{what}: GET {path}: {}", answer.body);
    }
    let unlisted =
        example.edge.http(Method::DELETE, ECHO, "/mine/x", &[("authorization", &bearer)], None).await;
    assert_eq!(unlisted.unwrap().status, 403, "a method that no rule lists");

    let forged = [
        ("authorization", bearer.as_str()),
        ("x-user", "root"),
        ("x_user", "root"),
        ("forwarded", "for=1.2.3.4"),
        ("x-forwarded-user", "root"),
        ("x_forwarded_for", "1.2.3.4"),
    ];
    let answer = get(&example, "/mine", &forged).await;
    assert_eq!(seen(&answer, "x-user"), [user.as_str()], "{}", answer.body);
    for stripped in ["x_user", "forwarded", "x_forwarded_for"] {
        assert_eq!(seen(&answer, stripped), [""; 0], "{stripped} reached the backend: {}", answer.body);
    }
    let answer = get(&example, "/open", &[("x-user", "root"), ("x_user", "root")]).await;
    let values = seen(&answer, "x-user").into_iter().chain(seen(&answer, "x_user")).collect::<String>();
    assert_eq!(values, "", "a public call carries an identity: {}", answer.body);
    example.stop_echo().await.unwrap();
}

#[tokio::test]
async fn a_host_answers_only_calls_that_it_serves() {
    let example = example().await;
    for host in ["caller.demo.apps.localhost", "nobody.demo.apps.localhost"] {
        let answer = example.edge.http(Method::GET, host, "/", &[], None).await.unwrap();
        assert_eq!(answer.status, 404, "{host}: {}", answer.body);
    }
    let status = example.edge.greet(AUTH, None, "Ada").await.map(|_| ()).unwrap_err();
    assert!(status.message().contains("403 Forbidden"), "a gRPC call to an HTTP host: {status:?}");
    let answer = example.edge.http(Method::GET, GREETER, "/", &[], None).await.unwrap();
    assert!(matches!(answer.status, 401 | 403), "a plain call to a gRPC host: {}", answer.status);
}

#[tokio::test]
async fn a_route_of_a_stranger_for_our_host_is_not_served_and_the_edge_label_is_the_operators() {
    let example = example().await;
    let stranger = |labels: Value| {
        json!({"apiVersion": "traefik.io/v1alpha1", "kind": "IngressRoute", "metadata": {"name": "thief", "namespace": "default", "labels": labels},
            "spec": {"entryPoints": ["web"], "routes": [{"kind": "Rule", "match": format!("Host(`{GREETER}`)"), "priority": 9_000_000,
                "services": [{"name": "noop@internal", "kind": "TraefikService"}]}]}})
        .to_string()
    };
    let apply = ["apply", "--server-side", "-f", "-"];
    let refused =
        example.cluster.kubectl_with_input(&apply, &stranger(json!({"peristyle.dev/edge": "public"}))).await;
    let Err(error) = refused else { panic!("a stranger may set the operator's label") };
    assert!(format!("{error:#}").contains("peristyle.dev/edge"), "{error:#}");

    example.cluster.kubectl_with_input(&apply, &stranger(json!({}))).await.unwrap();
    let outcome = watch_for_theft(&example).await;
    example.cluster.kubectl(&["delete", "ingressroute", "thief", "-n", "default"]).await.unwrap();
    outcome.unwrap();
}

/// Twice the edge's own delay without anybody else answering for the host.
async fn watch_for_theft(example: &Example) -> Result<()> {
    let end = tokio::time::Instant::now() + Duration::from_secs(5);
    while tokio::time::Instant::now() < end {
        let (code, message) = call(example, &[]).await;
        if (code, message.as_str()) != NO_TOKEN {
            bail!("the host was taken over: {code:?} {message}");
        }
    }
    Ok(())
}
