//! The example that demo and tests call, as it runs in the cluster.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use crate::calls::Edge;
use crate::cluster::Cluster;
use crate::images::References;
use crate::stack::{self, EDGE_PORT};
use crate::state::State;

/// Namespace of the example.
pub const NAMESPACE: &str = "demo";
/// Host of the greeter, as the EdgeClass's template names it.
pub const GREETER: &str = "greeter.demo.apps.localhost";
/// Host of the auth service.
pub const AUTH: &str = "auth.demo.apps.localhost";
/// Issuer of the auth service's tokens.
pub const ISSUER: &str = "http://auth.demo.svc.cluster.local:8080";
/// How long a change may take until every component follows it.
pub const PROPAGATION: Duration = Duration::from_secs(60);

const READY: Duration = Duration::from_secs(300);

/// `examples/01-greeter` in the namespace `demo`, ready.
#[derive(Debug)]
pub struct Example {
    pub cluster: Cluster,
    pub edge: Edge,
    pub images: References,
}

impl Example {
    /// Applies the example and waits until all of it is ready. The charts must
    /// be installed.
    ///
    /// # Errors
    /// When something does not become ready, with what `kubectl get` shows.
    pub async fn start(state: &State) -> Result<Self> {
        let cluster = Cluster::of(state)?;
        let images = stack::images(state).await?;
        stack::apply(&cluster, NAMESPACE, &stack::example("01-greeter", &images)?).await?;
        let example = Self { cluster, edge: Edge::on(EDGE_PORT), images };
        example.wait_until_ready(NAMESPACE).await?;
        Ok(example)
    }

    /// Waits as a user would: `kubectl wait --for=condition=Ready`.
    ///
    /// # Errors
    /// At the deadline, with what `kubectl get` shows.
    pub async fn wait_until_ready(&self, namespace: &str) -> Result<()> {
        let timeout = format!("--timeout={}s", READY.as_secs());
        let arguments =
            ["wait", "-n", namespace, "--for=condition=Ready", "psvc,psdb,apol", "--all", &timeout];
        if let Err(error) = self.cluster.kubectl(&arguments).await {
            let shown =
                self.cluster.kubectl(&["get", "-n", namespace, "peristyle,pods,jobs", "-o", "wide"]).await?;
            bail!("{error:#}\n{shown}");
        }
        Ok(())
    }

    /// A token of `user`, who is registered with a new password.
    ///
    /// # Errors
    /// When the name is taken or the auth service refuses.
    pub async fn token(&self, user: &str) -> Result<String> {
        let credentials = json!({"username": user, "password": stack::password()?});
        let answer = self.edge.http(Method::POST, AUTH, "/auth/register", &[], Some(&credentials)).await?;
        ensure!(answer.status == 201, "register {user}: {} {}", answer.status, answer.body);
        let answer = self.edge.http(Method::POST, AUTH, "/auth/login", &[], Some(&credentials)).await?;
        ensure!(answer.status == 200, "log in {user}: {} {}", answer.status, answer.body);
        let parsed: Value = serde_json::from_str(&answer.body)?;
        parsed["access_token"]
            .as_str()
            .map(str::to_owned)
            .context("the answer to a login has no access_token")
    }

    /// Makes `users` the only ones who may greet.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn allow(&self, users: &[&str]) -> Result<()> {
        let tuple = |user| json!({"namespace": "Greeting", "object": "greeter", "relation": "greeters", "subject": user});
        let tuples: Vec<Value> = users.iter().map(tuple).collect();
        let patch = json!({"spec": {"relations": {"tuples": tuples}}}).to_string();
        self.cluster
            .kubectl(&["patch", "-n", NAMESPACE, "apol", "greeter", "--type=merge", "-p", &patch])
            .await?;
        Ok(())
    }
}

/// A user name that no run before has taken.
///
/// # Errors
/// When the system has no randomness.
pub fn new_user(name: &str) -> Result<String> {
    Ok(format!("{name}-{}", &stack::password()?[..8]))
}
