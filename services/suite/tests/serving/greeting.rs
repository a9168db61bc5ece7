use std::time::{Duration, Instant};

use greeter::{v1, v2};
use platform::testing::{eventually, postgres::Postgres};
use sqlx::{Connection, PgConnection, Row};
use suite::Name;
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};
use v1::greeter_service_client::GreeterServiceClient;
use v2::greeter_service_client::GreeterServiceClient as GreeterV2;

use crate::fixture::{access_line, database, serve, traced, vars, web};

fn hello(name: &str) -> v1::GreetRequest {
    v1::GreetRequest { name: name.into() }
}

#[tokio::test]
async fn a_greeting_is_answered_stored_and_seen_by_logs_and_metrics() {
    let postgres = Postgres::shared().await;
    let (greetings, mut env) = database(postgres, Name::Greeter).await;
    let (calls, caller_env) = database(postgres, Name::Caller).await;
    let port = web("hello").await;
    env.extend(caller_env);
    env.extend(vars([
        ("GREETER_EXTERNAL_URL", &format!("http://localhost:{port}/x?token=s3cret")),
        ("CALLER_ALLOWED_INTERNAL_HOSTS", &format!("localhost:{port}")),
    ]));
    let app = serve(&[Name::Greeter, Name::Caller], &env).await;
    app.ready().await;
    let mut client = GreeterServiceClient::new(app.channel().await);

    let (mut request, trace) = traced(1, hello("Ada"));
    request.metadata_mut().insert("x-user", "ada".parse().unwrap());
    let answer = client.greet(request).await.unwrap().into_inner();
    assert_eq!(answer.message, "Hello Ada from greeter-service!");
    assert_eq!((answer.external_status, answer.external_body_length), (200, 5));
    let line = access_line(&trace).await;
    assert_eq!(line["method"], "/greeter.v1.GreeterService/Greet");
    assert_eq!((&line["code"], &line["subject"]), (&"OK".into(), &"ada".into()));
    assert!(
        line["peer"].as_str().unwrap().starts_with("127.0.0.1:") && line["ms"].as_f64().unwrap() > 0.0,
        "{line}"
    );

    let world = client.greet(hello(" ")).await.unwrap().into_inner();
    assert_eq!(world.message, "Hello World from greeter-service!");
    let long = client.greet(hello(&"x".repeat(201))).await.unwrap_err();
    assert_eq!(long.code(), Code::InvalidArgument);

    let mut db = PgConnection::connect(&greetings.admin).await.unwrap();
    let row = sqlx::query(
        "select subject, external_status, context->>'trace_id' from app.greetings where name = 'Ada'",
    )
    .fetch_one(&mut db)
    .await
    .unwrap();
    assert_eq!(
        (row.get::<&str, _>(0), row.get::<i32, _>(1), row.get::<&str, _>(2)),
        ("ada", 200, trace.as_str())
    );
    let mut db = PgConnection::connect(&calls.admin).await.unwrap();
    let row = sqlx::query("select url, outcome, trace_id from app.call_logs order by created_at limit 1")
        .fetch_one(&mut db)
        .await
        .unwrap();
    assert_eq!(row.get::<String, _>(0), format!("http://localhost:{port}/x"));
    assert_eq!((row.get::<&str, _>(1), row.get::<&str, _>(2)), ("answered", trace.as_str()));

    let (status, metrics) = app.get("/metrics").await;
    assert_eq!(status, 200);
    for line in [
        r#"grpc_server_started_total{service="greeter.v1.GreeterService",method="Greet"} 3"#,
        r#"grpc_server_handled_total{service="greeter.v1.GreeterService",method="Greet",code="OK"} 2"#,
        r#"grpc_server_handled_total{service="greeter.v1.GreeterService",method="Greet",code="INVALID_ARGUMENT"} 1"#,
        r#"grpc_server_handling_seconds_count{service="greeter.v1.GreeterService",method="Greet"} 3"#,
        r#"db_pool_connections{module="greeter",state="max"} 10"#,
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
}

#[tokio::test]
async fn version_2_adds_languages_trace_and_a_stream_that_is_logged_at_its_end() {
    let postgres = Postgres::shared().await;
    let (_, env) = database(postgres, Name::Greeter).await;
    let app = serve(&[Name::Greeter], &env).await;
    let mut client = GreeterV2::new(app.channel().await);

    let (request, trace) = traced(2, v2::GreetRequest { name: "Ada".into(), locale: "de-AT".into() });
    let answer = client.greet(request).await.unwrap().into_inner();
    assert_eq!(answer.message, "Hallo Ada vom greeter-service!");
    assert_eq!((answer.locale, answer.trace_id, answer.external_status), ("de".into(), trace, 0));

    let ask = || v2::GreetStreamRequest { name: "Ada".into(), locale: String::new() };
    let (request, trace) = traced(3, ask());
    let started = Instant::now();
    let mut stream = client.greet_stream(request).await.unwrap().into_inner();
    let mut text = String::new();
    while let Some(part) = stream.message().await.unwrap() {
        text += &part.text;
        assert_eq!(part.trace_id, trace);
    }
    assert_eq!(text, "Hello Ada from greeter-service!");
    assert!(started.elapsed() >= Duration::from_millis(400));
    let line = access_line(&trace).await;
    assert_eq!(line["code"], "OK");
    assert!(line["ms"].as_f64().unwrap() >= 400.0, "{line}");

    // A deadline ends a stream too.
    let (mut request, trace) = traced(4, ask());
    request.set_timeout(Duration::from_millis(250));
    let mut stream = client.greet_stream(request).await.unwrap().into_inner();
    let end = loop {
        match stream.message().await {
            Ok(Some(_)) => {}
            end => break end,
        }
    };
    assert_eq!(end.unwrap_err().code(), Code::DeadlineExceeded);
    assert_eq!(access_line(&trace).await["code"], "DEADLINE_EXCEEDED");

    // A caller who goes away is logged as well.
    let (request, trace) = traced(5, ask());
    let mut stream = client.greet_stream(request).await.unwrap().into_inner();
    stream.message().await.unwrap();
    drop(stream);
    assert_eq!(access_line(&trace).await["code"], "CANCELLED");
}

#[tokio::test]
async fn reflection_and_health_know_the_services_and_nothing_else_is_answered() {
    let postgres = Postgres::shared().await;
    let (_, env) = database(postgres, Name::Greeter).await;
    let app = serve(&[Name::Greeter], &env).await;
    app.ready().await;
    let channel = app.channel().await;

    let ask = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let stream = once(ask);
    let mut answers = ServerReflectionClient::new(channel.clone())
        .server_reflection_info(stream)
        .await
        .unwrap()
        .into_inner();
    let Some(MessageResponse::ListServicesResponse(list)) =
        answers.message().await.unwrap().unwrap().message_response
    else {
        panic!("no list of services")
    };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for name in ["greeter.v1.GreeterService", "greeter.v2.GreeterService", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|found| found == name), "{name} in {names:?}");
    }

    let mut health = HealthClient::new(channel.clone());
    for service in ["", "liveness", "readiness", "greeter.v1.GreeterService", "greeter.v2.GreeterService"] {
        let answer = health.check(HealthCheckRequest { service: service.into() }).await.unwrap();
        assert_eq!(answer.into_inner().status, 1, "{service:?} serves");
    }

    let mut other = caller::v1::caller_service_client::CallerServiceClient::new(channel);
    let (request, trace) = traced(6, caller::v1::CallExternalRequest::default());
    assert_eq!(other.call_external(request).await.unwrap_err().code(), Code::Unimplemented);
    let line = access_line(&trace).await;
    assert_eq!(
        (&line["code"], &line["method"]),
        (&"UNIMPLEMENTED".into(), &"/caller.v1.CallerService/CallExternal".into())
    );
}

fn once<T: Send + 'static>(item: T) -> impl tonic::IntoStreamingRequest<Message = T> {
    tonic::Request::new(tokio_stream::once(item))
}

#[tokio::test]
async fn a_greeting_does_without_caller_but_not_without_its_database() {
    let mut postgres = Postgres::start().await;
    let (_, mut env) = database(&postgres, Name::Greeter).await;
    env.extend(vars([
        ("GREETER_EXTERNAL_URL", "http://example.com/"),
        ("CALLER_URL", "http://127.0.0.1:1"),
        ("DB_ACQUIRE_TIMEOUT", "500ms"),
    ]));
    // The service starts before its database does.
    postgres.stop();
    let app = serve(&[Name::Greeter], &env).await;
    let mut client = GreeterServiceClient::new(app.channel().await);
    assert_eq!(app.get("/healthz").await.0, 200);
    let (status, text) = app.get("/readyz").await;
    assert!(status == 503 && text.contains("greeter"), "{status} {text}");
    let error = client.greet(hello("Ada")).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::Unavailable, "the database is not available"));

    postgres.resume().await;
    app.ready().await;
    let answer = client.greet(hello("Ada")).await.unwrap().into_inner();
    assert_eq!((answer.message.as_str(), answer.external_status), ("Hello Ada from greeter-service!", 0));

    postgres.stop();
    assert_eq!(client.greet(hello("Ada")).await.unwrap_err().code(), Code::Unavailable);
    eventually("not ready", || async { app.get("/readyz").await.0 == 503 }).await;
    let mut health = HealthClient::new(app.channel().await);
    for (service, status) in [("", 1), ("readiness", 2), ("greeter.v1.GreeterService", 2)] {
        let answer = health.check(HealthCheckRequest { service: service.into() }).await.unwrap();
        assert_eq!(answer.into_inner().status, status, "{service:?}");
    }
}

#[tokio::test]
async fn a_host_that_is_not_allowed_is_refused_and_remembered() {
    let postgres = Postgres::shared().await;
    let (calls, env) = database(postgres, Name::Caller).await;
    let app = serve(&[Name::Caller], &env).await;
    let mut client = caller::v1::caller_service_client::CallerServiceClient::new(app.channel().await);
    for (url, code) in [
        ("http://169.254.169.254/latest/meta-data", Code::PermissionDenied),
        ("http://localhost:9090/metrics", Code::PermissionDenied),
        ("not a url", Code::InvalidArgument),
    ] {
        let error =
            client.call_external(caller::v1::CallExternalRequest { url: url.into() }).await.unwrap_err();
        assert_eq!(error.code(), code, "{url}: {error}");
    }
    let mut db = PgConnection::connect(&calls.admin).await.unwrap();
    let outcomes: Vec<String> =
        sqlx::query_scalar("select outcome from app.call_logs").fetch_all(&mut db).await.unwrap();
    assert_eq!(outcomes, ["refused", "refused"]);
}
