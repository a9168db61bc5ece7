use std::sync::atomic::Ordering;

use greeter::v1::{GreetRequest, GreetResponse, greeter_service_client::GreeterServiceClient};
use platform::testing::{issuer::Issuer, logs, postgres::Postgres};
use serde_json::json;
use sqlx::{Connection, PgConnection};
use suite::Name;
use tonic::{Code, Request, Response, Status, transport::Channel};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::fixture::{Vars, access_line, database, serve, traced, vars, web};

fn claims(subject: &str) -> serde_json::Value {
    json!({"iss": "https://edge.test", "aud": ["demo"], "sub": subject, "exp": 4_000_000_000_u64})
}

async fn layer(issuer: &Issuer) -> (Vars, std::sync::Arc<std::sync::atomic::AtomicUsize>) {
    let (addr, fetched) = issuer.serve().await;
    let url = format!("http://{addr}/jwks");
    let layer = vars([
        ("ID_TOKEN_JWKS_URL", &url),
        ("ID_TOKEN_ISSUER", "https://edge.test"),
        ("ID_TOKEN_AUDIENCE", "demo"),
    ]);
    (layer, fetched)
}

async fn greet(
    client: &mut GreeterServiceClient<Channel>,
    mut request: Request<GreetRequest>,
    tokens: &[&str],
) -> Result<Response<GreetResponse>, Status> {
    for token in tokens {
        request.metadata_mut().append("authorization", format!("Bearer {token}").parse().unwrap());
    }
    client.greet(request).await
}

#[tokio::test]
async fn a_call_needs_one_valid_token_and_its_subject_is_the_tokens() {
    let postgres = Postgres::shared().await;
    let (greetings, mut env) = database(postgres, Name::Greeter).await;
    let issuer = Issuer::new();
    let (layer, fetched) = layer(&issuer).await;
    env.extend(layer);
    let app = serve(&[Name::Greeter], &env).await;
    let channel = app.channel().await;
    let client = &mut GreeterServiceClient::new(channel.clone());
    let ada = issuer.sign(&claims("ada"));
    let stranger = Issuer::new().sign(&claims("mallory"));

    for (number, tokens) in
        [(10, vec![]), (11, vec![&*stranger]), (12, vec![&*ada, &*ada]), (13, vec!["nonsense"])]
    {
        let (mut request, trace) = traced(number, GreetRequest::default());
        request.metadata_mut().insert("x-user", "root".parse().unwrap());
        let error = greet(client, request, &tokens).await.unwrap_err();
        assert_eq!(error.code(), Code::Unauthenticated, "{tokens:?}");
        let line = access_line(&trace).await;
        assert_eq!((&line["code"], &line["subject"]), (&"UNAUTHENTICATED".into(), &"".into()));
    }
    assert_eq!(fetched.load(Ordering::SeqCst), 1, "an unknown key is looked up once");

    let (mut request, trace) = traced(14, GreetRequest::default());
    request.metadata_mut().insert("x-user", "root".parse().unwrap());
    greet(client, request, &[&ada]).await.unwrap();
    assert_eq!(access_line(&trace).await["subject"], "ada");
    let mut db = PgConnection::connect(&greetings.admin).await.unwrap();
    let subjects: Vec<String> =
        sqlx::query_scalar("select subject from app.greetings").fetch_all(&mut db).await.unwrap();
    assert_eq!(subjects, ["ada"]);
    assert_eq!(fetched.load(Ordering::SeqCst), 1, "a known key is not fetched again");

    HealthClient::new(channel).check(HealthCheckRequest::default()).await.unwrap();
    assert!(!logs::text().contains(&ada), "no token in the log");
}

#[tokio::test]
async fn without_keys_no_call_passes() {
    let postgres = Postgres::shared().await;
    let (_, mut env) = database(postgres, Name::Greeter).await;
    env.extend(vars([
        ("ID_TOKEN_JWKS_URL", "http://127.0.0.1:1/jwks"),
        ("ID_TOKEN_ISSUER", "https://edge.test"),
        ("ID_TOKEN_AUDIENCE", "demo"),
    ]));
    let app = serve(&[Name::Greeter], &env).await;
    let client = &mut GreeterServiceClient::new(app.channel().await);
    let token = Issuer::new().sign(&claims("ada"));
    let error = greet(client, Request::new(GreetRequest::default()), &[&token]).await.unwrap_err();
    assert_eq!(error.code(), Code::Unavailable);
}

#[tokio::test]
async fn greeter_calls_caller_with_the_callers_token_and_trace() {
    let postgres = Postgres::shared().await;
    let (_, mut greeter_env) = database(postgres, Name::Greeter).await;
    let (calls, mut caller_env) = database(postgres, Name::Caller).await;
    let issuer = Issuer::new();
    let (layer, _) = layer(&issuer).await;
    let port = web("hello").await;
    caller_env.extend(layer.clone());
    caller_env.extend(vars([("CALLER_ALLOWED_INTERNAL_HOSTS", &format!("localhost:{port}"))]));
    let caller = serve(&[Name::Caller], &caller_env).await;
    greeter_env.extend(layer);
    greeter_env.extend(vars([
        ("CALLER_URL", &caller.grpc),
        ("GREETER_EXTERNAL_URL", &format!("http://localhost:{port}/")),
    ]));
    let app = serve(&[Name::Greeter], &greeter_env).await;
    let client = &mut GreeterServiceClient::new(app.channel().await);

    let (request, trace) = traced(20, GreetRequest::default());
    let answer = greet(client, request, &[&issuer.sign(&claims("ada"))]).await.unwrap().into_inner();
    assert_eq!(answer.external_status, 200);
    let mut db = PgConnection::connect(&calls.admin).await.unwrap();
    let rows: Vec<(String, String)> =
        sqlx::query_as("select subject, trace_id from app.call_logs").fetch_all(&mut db).await.unwrap();
    assert_eq!(rows, [("ada".to_owned(), trace)]);
}
