//! The example that demo and tests call, as it runs in the cluster.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use reqwest::Method;
use serde_json::{Value, json};

use crate::calls::{Answer, Edge};
use crate::cluster::Cluster;
use crate::forward::Forward;
use crate::images::References;
use crate::progress::Progress;
use crate::stack::{self, SYSTEM_NAMESPACE};
use crate::state::{Kind, State};
use crate::wait;

/// Namespace of the example.
pub const NAMESPACE: &str = "demo";
/// Host of the greeter, as the EdgeClass's template names it.
pub const GREETER: &str = "greeter.demo.apps.localhost";
/// Host of the auth service.
pub const AUTH: &str = "auth.demo.apps.localhost";
/// Host of the echo, see [`Example::start_echo`].
pub const ECHO: &str = "echo.demo.apps.localhost";
/// Issuer of the auth service's tokens.
pub const ISSUER: &str = "http://auth.demo.svc.cluster.local:8080";
/// How long a change may take until every component follows it.
pub const PROPAGATION: Duration = Duration::from_secs(60);

const READY: Duration = Duration::from_secs(300);

/// Answers every request with its own head: what a backend sees. It asks
/// nobody who calls, so that whatever reaches it was let in by the edge.
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

/// `examples/01-greeter` in the namespace `demo`, ready.
#[derive(Debug)]
pub struct Example {
    pub cluster: Cluster,
    pub edge: Edge,
    pub images: References,
    /// To the edge of a cluster that is not the sandbox's.
    _forward: Option<Forward>,
}

impl Example {
    /// Applies the example and waits until all of it is ready. The charts must
    /// be installed.
    ///
    /// # Errors
    /// When something does not become ready, with what `kubectl get` shows.
    pub async fn start(state: &State) -> Result<Self> {
        let cluster = Cluster::of(state)?;
        let images = stack::images(state, &Progress::default()).await?;
        let (edge, forward) = edge(state, &cluster).await?;
        stack::apply(&cluster, NAMESPACE, &stack::example("01-greeter", &images)?).await?;
        let example = Self { cluster, edge, images, _forward: forward };
        // A test that failed has left it, perhaps in a state that never gets ready.
        example.stop_echo().await?;
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
        // A ready pod reaches the edge's tables a moment later; until then it has no server.
        let answer = wait::until("the edge knows the auth service's pod", PROPAGATION, async || {
            let answer =
                self.edge.http(Method::POST, AUTH, "/auth/register", &[], Some(&credentials)).await?;
            ensure!(answer.status != 503, "503 {}", answer.body);
            Ok(answer)
        })
        .await?;
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

    /// A workload over plain HTTP beside the example: `/open` for everyone,
    /// `/mine` with a token, `/ours` with a token and the right to greet.
    ///
    /// # Errors
    /// When the sandbox has no image for it or it does not become ready.
    pub async fn start_echo(&self) -> Result<()> {
        let image = self.images.get("postgres").context("only the sandbox has an image with perl")?;
        let matching = |path: &str| json!({"http": [{"path": {"prefix": path}, "methods": ["GET", "POST"]}]});
        let greeters =
            json!({"relation": {"namespace": "Greeting", "object": "greeter", "relation": "greet"}});
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
                    {"name": "open", "match": matching("/open"), "public": {}},
                    {"name": "mine", "match": matching("/mine"), "authentication": ["idp"]},
                    {"name": "ours", "match": matching("/ours"), "authentication": ["idp"], "authorization": greeters}
                ]}}
        ]});
        stack::apply(&self.cluster, NAMESPACE, &objects.to_string()).await?;
        self.wait_until_ready(NAMESPACE).await
    }

    /// Removes the echo again.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn stop_echo(&self) -> Result<()> {
        self.cluster
            .kubectl(&["delete", "-n", NAMESPACE, "--ignore-not-found", "psvc/echo", "apol/echo"])
            .await?;
        Ok(())
    }

    /// The status of a plain GET to the echo.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn get_echo(&self, path: &str, headers: &[(&str, &str)]) -> Result<Answer> {
        self.edge.http(Method::GET, ECHO, path, headers, None).await
    }

    /// Scales a Deployment of the stack and waits until that is done: with none
    /// wanted, until the last pod has ended.
    ///
    /// # Errors
    /// When the API server refuses or the rollout does not end.
    pub async fn scale(&self, deployment: &str, replicas: u8) -> Result<()> {
        let (name, count) = (format!("deployment/{deployment}"), format!("--replicas={replicas}"));
        self.cluster.kubectl(&["scale", "-n", SYSTEM_NAMESPACE, &name, &count]).await?;
        self.cluster.kubectl(&["rollout", "status", "-n", SYSTEM_NAMESPACE, &name, "--timeout=120s"]).await?;
        if replicas == 0 {
            // A rollout to none is done while the pods still work off what they have in hand.
            let selector = self
                .cluster
                .kubectl(&[
                    "get",
                    "-n",
                    SYSTEM_NAMESPACE,
                    &name,
                    "-o",
                    "jsonpath={.spec.selector.matchLabels}",
                ])
                .await?;
            let labels: BTreeMap<String, String> = serde_json::from_str(&selector)?;
            let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let (pods, timeout) = (labels.join(","), "--timeout=120s");
            let wait = ["wait", "-n", SYSTEM_NAMESPACE, "--for=delete", "pods", "-l", &pods, timeout];
            self.cluster.kubectl(&wait).await?;
        }
        Ok(())
    }
}

/// The way to the edge: a port that the sandbox publishes, else through kubectl.
async fn edge(state: &State, cluster: &Cluster) -> Result<(Edge, Option<Forward>)> {
    if matches!(state.settings()?.map(|settings| settings.cluster), Some(Kind::Existing { .. })) {
        let forward = Forward::open(cluster).await?;
        return Ok((Edge::on(forward.port), Some(forward)));
    }
    Ok((Edge::on(state.edge_port()?), None))
}

/// A user name that no run before has taken.
///
/// # Errors
/// When the system has no randomness.
pub fn new_user(name: &str) -> Result<String> {
    Ok(format!("{name}-{}", &stack::password()?[..8]))
}
