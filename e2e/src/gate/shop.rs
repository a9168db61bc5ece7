//! Two workloads behind the gate, one over plain HTTP and one over gRPC, each
//! with something for everyone and something for those with a token.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use super::{Gate, ISSUER, PATIENCE};
use crate::wait;

/// Name of the Service over plain HTTP: `/open` for everyone, `/mine` with a token.
pub const ECHO: &str = "echo";
/// Its host.
pub const ECHO_HOST: &str = "echo.shop.example.com";
/// Name of the Service over gRPC: the greeter with a token, [`OPEN_CALL`] for everyone.
pub const CALLS: &str = "calls";
/// Its host.
pub const CALLS_HOST: &str = "calls.shop.example.com";
/// Path of the call that needs a token.
pub const MY_CALL: &str = "/greeter.v1.GreeterService/Greet";
/// Path of the call that is for everyone.
pub const OPEN_CALL: &str = "/grpc.health.v1.Health/Check";
/// Whom the tokens name.
pub const USER: &str = "alice";

/// What the edge says to a call without a token; a workload would not say it.
pub const REFUSAL: &str = "authentication required";

/// The echo's Service.
#[must_use]
pub fn echo() -> Value {
    json!({"image": "x:1", "ports": [{"name": "http", "port": 8080, "protocol": "HTTP"}],
        "expose": [{"name": "public"}]})
}

/// The echo's policy.
#[must_use]
pub fn echo_policy() -> Value {
    let matching = |path: &str| json!({"http": [{"path": {"prefix": path}, "methods": ["GET", "POST"]}]});
    json!({"targets": [{"service": ECHO}], "authentication": authentication(), "rules": [
        {"name": "open", "match": matching("/open"), "public": {}},
        {"name": "mine", "match": matching("/mine"), "authentication": ["idp"]}
    ]})
}

fn calls() -> Value {
    json!({"image": "x:1", "ports": [{"name": "grpc", "port": 50051, "protocol": "GRPC"}],
        "expose": [{"name": "public"}]})
}

fn calls_policy() -> Value {
    let matching = |service: &str| json!({"grpc": [{"service": service}]});
    json!({"targets": [{"service": CALLS}], "authentication": authentication(), "rules": [
        {"name": "open", "match": matching("grpc.health.v1.Health"), "public": {}},
        {"name": "mine", "match": matching("greeter.v1.GreeterService"), "authentication": ["idp"]}
    ]})
}

fn authentication() -> Value {
    json!([{"name": "idp", "jwt": {"issuer": ISSUER, "audiences": [ECHO], "algorithms": ["ES256"]}}])
}

/// The gate with the echo, programmed.
///
/// # Errors
/// When something does not start or become programmed.
pub async fn with_echo() -> Result<Gate> {
    let gate = Gate::start().await?;
    gate.apply("Service", ECHO, &echo()).await?;
    gate.apply("AuthPolicy", ECHO, &echo_policy()).await?;
    gate.serve(ECHO, "http").await?;
    gate.becomes("Service", ECHO, "RoutesProgrammed", "True", "Succeeded").await?;
    Ok(gate)
}

/// The gate with both workloads, programmed, and a token that is served by both.
///
/// # Errors
/// When something does not start or become programmed.
pub async fn with_both() -> Result<(Gate, String)> {
    let gate = with_echo().await?;
    gate.apply("Service", CALLS, &calls()).await?;
    gate.apply("AuthPolicy", CALLS, &calls_policy()).await?;
    gate.serve_grpc(CALLS, "grpc").await?;
    gate.becomes("Service", CALLS, "RoutesProgrammed", "True", "Succeeded").await?;
    let token = token(&gate)?;
    are_served(&gate, &token).await?;
    drop(gate.reached.take());
    Ok((gate, token))
}

/// A token for both workloads, good for an hour.
///
/// # Errors
/// When it cannot be signed.
pub fn token(gate: &Gate) -> Result<String> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    gate.token(&json!({"iss": ISSUER, "aud": [ECHO], "sub": USER, "exp": now + 3600}))
}

/// Waits until calls with a token get to the echo. Oathkeeper fetches the
/// issuer's keys when they are first needed.
///
/// # Errors
/// At the deadline.
pub async fn echo_is_served(gate: &Gate, token: &str) -> Result<()> {
    let bearer = format!("Bearer {token}");
    wait::until("HTTP calls with a token are served", PATIENCE, async || {
        let headers = [("authorization", bearer.as_str())];
        let answer = gate.edge.http(Method::GET, ECHO_HOST, "/mine", &headers, None).await?;
        ensure!(answer.status == 200, "{}", answer.status);
        Ok(())
    })
    .await
}

/// Waits until calls with a token get to both workloads.
///
/// # Errors
/// At the deadline.
pub async fn are_served(gate: &Gate, token: &str) -> Result<()> {
    echo_is_served(gate, token).await?;
    wait::until("gRPC calls with a token are served", PATIENCE, async || {
        gate.edge.greet(CALLS_HOST, Some(token), "Ada").await?;
        Ok(())
    })
    .await
}

/// Requests for what needs a token that came without one, or came by another
/// way than the edge's.
#[must_use]
pub fn leaks(heads: &[String]) -> Vec<&String> {
    let is_leak = |head: &&String| {
        let path = head.split(['?', ' ']).nth(1).unwrap_or_default();
        let is_open = path.starts_with("/open") || path.ends_with(OPEN_CALL);
        let has_token = head.lines().any(|line| line.to_lowercase().starts_with("authorization: bearer "));
        !is_open && !has_token
    };
    heads.iter().filter(is_leak).collect()
}
