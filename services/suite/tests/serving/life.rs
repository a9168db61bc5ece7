use std::{
    process::{Command, Output, Stdio},
    time::Duration,
};

use axum::{
    Router,
    body::{Bytes, to_bytes},
    extract::Request,
};
use greeter::v2::{GreetRequest, GreetStreamRequest, greeter_service_client::GreeterServiceClient};
use platform::testing::{eventually, postgres::Postgres};
use suite::Name;
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, transport::Channel};

use crate::fixture::{database, serve};

#[tokio::test]
async fn a_stream_that_runs_at_the_end_is_finished_and_no_new_call_begins() {
    let postgres = Postgres::shared().await;
    let (_, env) = database(postgres, Name::Greeter).await;
    let app = serve(&[Name::Greeter], &env).await;
    let mut client = GreeterServiceClient::new(app.channel().await);
    let mut stream = client.greet_stream(GreetStreamRequest::default()).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap().unwrap().part, 1);
    app.stop.cancel();
    let grpc = app.grpc.clone();
    eventually("no new connections", || async {
        Channel::from_shared(grpc.clone()).unwrap().connect().await.is_err()
    })
    .await;
    let (status, text) = app.get("/readyz").await;
    assert!(status == 503 && text.contains("draining"), "{status} {text}");
    assert_eq!(stream.message().await.unwrap().unwrap().part, 2);
    assert_eq!(stream.message().await.unwrap().unwrap().part, 3);
    assert!(stream.message().await.unwrap().is_none());
    tokio::time::timeout(Duration::from_secs(5), app.task).await.unwrap().unwrap();
}

fn run(args: &[&str], env: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_suite"));
    command.args(args).env_clear().envs(env.iter().copied()).output().unwrap()
}

#[test]
fn the_binary_names_the_variable_that_is_wrong_and_hides_its_secret() {
    let database = ("DATABASE_URL", "postgres://a:hunter2@127.0.0.1:1/b");
    for (args, env, expected) in [
        (&["serve", "greeter"], vec![], "DATABASE_URL is missing"),
        (&["serve", "greeter"], vec![("DATABASE_URL", "hunter2")], "DATABASE_URL is not valid"),
        (&["serve", "greeter"], vec![database, ("PORT", "http")], r#"PORT="http" is not valid"#),
        (&["serve", "greeter"], vec![database, ("ACCESS_LOG", "Some")], "All, Abnormal or Off"),
        (
            &["serve", "greeter"],
            vec![database, ("GREETER_EXTERNAL_URL", "http://a/")],
            "CALLER_URL is missing",
        ),
        (&["serve", "auth"], vec![database], "JWT_ISSUER is missing"),
        (&["migrate", "greeter"], vec![], "DATABASE_URL is missing"),
    ] {
        let output = run(args, &env);
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(expected), "{expected} in {text}");
        assert!(!text.contains("hunter2"), "{text}");
    }
}

/// Starts `suite serve greeter` without a database; calls it once it serves,
/// asks it to end and returns its log.
async fn serve_once(extra: &[(&str, &str)]) -> String {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_suite"));
    command
        .args(["serve", "greeter"])
        .env_clear()
        .kill_on_drop(true)
        .stdout(Stdio::piped())
        .envs([("DATABASE_URL", "postgres://a:hunter2@127.0.0.1:1/b"), ("DB_ACQUIRE_TIMEOUT", "100ms")])
        .envs([("PORT", "0"), ("METRICS_PORT", "0")])
        .envs(extra.iter().copied());
    let mut child = command.spawn().unwrap();
    let pid = child.id().unwrap().to_string();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut log = String::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        if event["message"] == "serving" {
            let port = event["grpc"].as_str().unwrap().rsplit_once(':').unwrap().1.to_owned();
            let mut client = GreeterServiceClient::connect(format!("http://127.0.0.1:{port}")).await.unwrap();
            let error = client.greet(GreetRequest::default()).await.unwrap_err();
            assert_eq!(error.code(), Code::Unavailable);
            assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        }
        log += &line;
        log.push('\n');
    }
    let status = tokio::time::timeout(Duration::from_secs(10), child.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status} {log}");
    log
}

#[tokio::test]
async fn the_binary_serves_without_its_database_and_ends_on_sigterm() {
    let log = serve_once(&[]).await;
    assert!(log.contains("stopped") && !log.contains("hunter2"), "{log}");
}

#[tokio::test]
async fn spans_go_to_the_collector_when_there_is_one() {
    let (sender, mut exports) = mpsc::unbounded_channel();
    let collector = Router::new().fallback(move |request: Request| {
        let sender = sender.clone();
        async move {
            let path = request.uri().path().to_owned();
            let body = to_bytes(request.into_body(), 1024 * 1024).await.unwrap();
            sender.send((path, body)).unwrap();
            // An empty message.
            let headers = [("content-type", "application/grpc"), ("grpc-status", "0")];
            (headers, Bytes::from_static(&[0, 0, 0, 0, 0]))
        }
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(platform::server::serve(listener, collector, CancellationToken::new()));
    serve_once(&[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint), ("OTEL_SERVICE_NAME", "greeter-here")]).await;
    let (path, body) = exports.recv().await.unwrap();
    assert_eq!(path, "/opentelemetry.proto.collector.trace.v1.TraceService/Export");
    let holds = |text: &str| body.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds("greeter-here") && holds("/greeter.v2.GreeterService/Greet"));
}
