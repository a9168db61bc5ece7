//! Who gets through the edge, and what the backend then sees: for gRPC and
//! for plain HTTP, on the full sandbox.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use e2e::calls::Answer;
use e2e::example::{AUTH, Example, GREETER, ISSUER, NAMESPACE, PROPAGATION, new_user};
use e2e::state::State;
use e2e::{stack, wait};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::Method;
use serde_json::{Value, json};
use tonic::Code;

const ECHO: &str = "echo.demo.apps.localhost";

/// Answers every request with its own head: what a backend sees.
const ECHO_SERVER: &str = r#"
use IO::Socket::INET;
my $s = IO::Socket::INET->new(LocalPort => $ENV{PORT}, Listen => 64, ReuseAddr => 1) or die $!;
while (my $c = $s->accept) {
  my $head = "";
  while (my $line = <$c>) { last if $line =~ /^\r?\n$/; $head .= $line }
  print $c "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: " . length($head) . "\r\n\r\n$head";
  close $c;
}
"#;

async fn example() -> Example {
    Example::start(&State::current().unwrap()).await.expect("charts installed by `cargo sandbox test`")
}

async fn code(example: &Example, token: Option<&str>) -> Code {
    match example.edge.greet(GREETER, token, "Ada").await {
        Ok(_) => Code::Ok,
        Err(status) => status.code(),
    }
}

async fn becomes(example: &Example, token: Option<&str>, expected: Code) -> Result<()> {
    wait::until(&format!("the call is answered {expected:?}"), PROPAGATION, async || {
        let code = code(example, token).await;
        ensure!(code == expected, "{code:?}");
        Ok(())
    })
    .await
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
    becomes(&example, Some(&token), Code::Ok).await.unwrap();

    assert_eq!(code(&example, None).await, Code::Unauthenticated);
    assert_eq!(
        code(&example, Some(&other_token)).await,
        Code::PermissionDenied,
        "a token without the relation"
    );
    assert_eq!(code(&example, Some("no.jwt.atall")).await, Code::Unauthenticated);

    let good = json!({"iss": ISSUER, "aud": ["greeter"], "sub": user, "iat": now(), "exp": now() + 600});
    let signed = sign(&example, &good).await.unwrap();
    assert_eq!(code(&example, Some(&signed)).await, Code::Ok, "the control: the same key and good claims");
    for (what, claim, value) in [
        ("a wrong issuer", "iss", json!("http://elsewhere")),
        ("a wrong audience", "aud", json!(["other"])),
        ("an expired token", "exp", json!(now() - 60)),
    ] {
        let mut claims = good.clone();
        claims[claim] = value;
        let token = sign(&example, &claims).await.unwrap();
        assert_eq!(code(&example, Some(&token)).await, Code::Unauthenticated, "{what}");
    }

    let forged = [("x-user", user.clone()), ("x_user", user.clone())];
    let answer = example.edge.greet_with(GREETER, &forged, "Ada").await;
    assert_eq!(
        answer.map(|_| ()).unwrap_err().code(),
        Code::Unauthenticated,
        "a forged X-User instead of a token"
    );
    let forged = [("authorization", format!("Bearer {other_token}")), ("x-user", user.clone())];
    let answer = example.edge.greet_with(GREETER, &forged, "Ada").await;
    assert_eq!(
        answer.map(|_| ()).unwrap_err().code(),
        Code::PermissionDenied,
        "a forged X-User beside a token"
    );

    let channel = example.edge.channel(GREETER).unwrap();
    let mut unnamed = tonic::Request::new(greeter::v2::GreetRequest::default());
    unnamed.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    let answer = greeter::v2::greeter_service_client::GreeterServiceClient::new(channel).greet(unnamed).await;
    assert_eq!(answer.map(|_| ()).unwrap_err().code(), Code::PermissionDenied, "a method that no rule names");

    example.allow(&[]).await.unwrap();
    becomes(&example, Some(&token), Code::PermissionDenied).await.unwrap();
}

async fn echo(example: &Example) -> Result<()> {
    let image = example.images.get("postgres").context("the sandbox has an image with perl")?;
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "peristyle.dev/v1alpha1", "kind": "Service", "metadata": {"name": "echo"}, "spec": {
            "image": image, "command": ["perl", "-e", ECHO_SERVER],
            "ports": [{"name": "http", "port": 8080, "protocol": "HTTP"}],
            "health": {"startup": {"tcp": {}}, "readiness": {"tcp": {}}, "liveness": {"tcp": {}}},
            "expose": [{"name": "public"}]}},
        {"apiVersion": "peristyle.dev/v1alpha1", "kind": "AuthPolicy", "metadata": {"name": "echo"}, "spec": {
            "targets": [{"service": "echo"}],
            "authentication": [{"name": "idp", "jwt": {"issuer": ISSUER, "audiences": ["greeter"]}}],
            "rules": [
                {"name": "open", "match": {"http": [{"path": {"prefix": "/open"}}]}, "public": {}},
                {"name": "mine", "match": {"http": [{"path": {"prefix": "/mine"}, "methods": ["GET", "POST"]}]}, "authentication": ["idp"]}
            ]}}
    ]});
    stack::apply(&example.cluster, NAMESPACE, &objects.to_string()).await?;
    example.wait_until_ready(NAMESPACE).await
}

async fn get(example: &Example, path: &str, headers: &[(&str, &str)]) -> Answer {
    example.edge.http(Method::GET, ECHO, path, headers, None).await.unwrap()
}

fn seen(answer: &Answer, header: &str) -> Vec<String> {
    let name = format!("{}:", header.to_lowercase());
    let lines = answer.body.lines().filter(|line| line.to_lowercase().starts_with(&name));
    lines.map(|line| line[name.len()..].trim().to_owned()).collect()
}

#[tokio::test]
async fn a_plain_http_call_gets_exactly_as_far_and_the_backend_sees_no_forged_identity() {
    let example = example().await;
    echo(&example).await.unwrap();
    let user = new_user("bob").unwrap();
    let token = example.token(&user).await.unwrap();
    let bearer = format!("Bearer {token}");
    wait::until("the echo answers", PROPAGATION, async || {
        let answer = get(&example, "/mine", &[("authorization", &bearer)]).await;
        ensure!(answer.status == 200, "{} {}", answer.status, answer.body);
        Ok(())
    })
    .await
    .unwrap();

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
}

#[tokio::test]
async fn a_host_answers_only_calls_that_it_serves() {
    let example = example().await;
    for host in ["caller.demo.apps.localhost", "nobody.demo.apps.localhost", AUTH] {
        let answer = example.edge.greet(host, None, "Ada").await;
        assert!(answer.is_err(), "{host} answered a call that it does not serve");
    }
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
        let code = code(example, None).await;
        if code != Code::Unauthenticated {
            bail!("the host was taken over: {code:?}");
        }
    }
    Ok(())
}
