use std::{
    process::{Command, Output},
    time::Duration,
};

use greeter::v2::{GreetStreamRequest, greeter_service_client::GreeterServiceClient};
use platform::testing::{eventually, postgres::Postgres};
use suite::Name;
use tonic::transport::Channel;

use crate::fixture::{database, serve};

#[tokio::test]
async fn a_stream_that_runs_at_the_end_is_finished_and_no_new_call_begins() {
    let postgres = Postgres::start().await;
    let (_, env) = database(&postgres, Name::Greeter).await;
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

#[tokio::test]
async fn the_binary_serves_without_its_database_and_ends_on_sigterm() {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_suite"));
    command.args(["serve", "greeter"]).env_clear().kill_on_drop(true).stdout(std::process::Stdio::piped());
    command.envs([
        ("DATABASE_URL", "postgres://a:hunter2@127.0.0.1:1/b"),
        ("PORT", "0"),
        ("METRICS_PORT", "0"),
    ]);
    let mut child = command.spawn().unwrap();
    let pid = child.id().unwrap().to_string();
    let mut lines =
        tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(child.stdout.take().unwrap()));
    let mut log = String::new();
    while let Some(line) = lines.next_line().await.unwrap() {
        let event: serde_json::Value = serde_json::from_str(&line).unwrap();
        if event["message"] == "serving" {
            assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        }
        log += &line;
    }
    let status = tokio::time::timeout(Duration::from_secs(5), child.wait()).await.unwrap().unwrap();
    assert!(status.success(), "{status} {log}");
    assert!(log.contains("stopped") && !log.contains("hunter2"), "{log}");
}
