//! `cargo sandbox demo`: from nothing to the first protected call, with a
//! transcript of real calls. It may run again and again.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tonic::Code;

use crate::calls::Edge;
use crate::cluster::Cluster;
use crate::sandbox::{self, Wanted};
use crate::stack::{self, EDGE_PORT, SYSTEM_NAMESPACE};
use crate::state::State;
use crate::wait;

/// Namespace of the demo.
pub const NAMESPACE: &str = "demo";
/// Host of the greeter, as the EdgeClass's template names it.
pub const GREETER: &str = "greeter.demo.apps.localhost";
/// Host of the auth service.
pub const AUTH: &str = "auth.demo.apps.localhost";

const USER: &str = "alice";
const PATIENCE: Duration = Duration::from_secs(300);
/// How long a change of a policy may take to reach every component.
const PROPAGATION: Duration = Duration::from_secs(60);

/// Brings up sandbox, charts and example, makes the calls and leaves all running.
///
/// # Errors
/// The first step that failed or the first call that was not answered as it must be.
pub async fn run(state: &State) -> Result<()> {
    if Cluster::of(state).is_err() {
        sandbox::up(state, &Wanted::Full { network: None, published: vec![EDGE_PORT] }).await?;
    }
    let cluster = stack::install(state).await?;
    let manifests = stack::example("01-greeter", &stack::images(state).await?)?;
    stack::apply(&cluster, NAMESPACE, &manifests).await?;
    wait_until_ready(&cluster, NAMESPACE).await?;
    Transcript { cluster: &cluster, edge: Edge::on(EDGE_PORT) }.play().await?;
    println!(
        "\nThe sandbox stays up. Look around:\n\
         \n  export KUBECONFIG={}\n  {} get peristyle -n {NAMESPACE}\n  {} describe psvc greeter -n {NAMESPACE}\n\
         \n  URL    http://{GREETER}:{EDGE_PORT} (on 127.0.0.1)\
         \n  token  curl -s http://127.0.0.1:{EDGE_PORT}/auth/login -H 'Host: {AUTH}' -H 'Content-Type: application/json' \\\n\
         \x20          -d '{{\"username\":\"{USER}\",\"password\":\"…\"}}'\n\
         \n  cargo sandbox down   removes everything\n",
        cluster.kubeconfig().display(),
        state.program("kubectl").display(),
        state.program("kubectl").display(),
    );
    Ok(())
}

/// Waits as a user would: `kubectl wait --for=condition=Ready`.
///
/// # Errors
/// At the deadline, with what `kubectl get` shows.
pub async fn wait_until_ready(cluster: &Cluster, namespace: &str) -> Result<()> {
    let timeout = format!("--timeout={}s", PATIENCE.as_secs());
    let waited = cluster
        .kubectl(&["wait", "-n", namespace, "--for=condition=Ready", "psvc,psdb,apol", "--all", &timeout])
        .await;
    if let Err(error) = waited {
        let shown = cluster.kubectl(&["get", "-n", namespace, "peristyle,pods,jobs", "-o", "wide"]).await?;
        bail!("{error:#}\n{shown}");
    }
    Ok(())
}

struct Transcript<'a> {
    cluster: &'a Cluster,
    edge: Edge,
}

impl Transcript<'_> {
    async fn play(&self) -> Result<()> {
        println!("\n$ call greeter.v1.GreeterService/Greet at http://{GREETER}:{EDGE_PORT}");
        self.refused("without a token", None, Code::Unauthenticated).await?;

        // Made anew each time and held by this process only.
        let password = stack::password()?;
        let user = format!("{USER}-{}", &password[..8].to_lowercase());
        self.edge.register(AUTH, &user, &password).await?;
        println!("  POST /auth/register {user:<29} 201");
        let token = self.edge.login(AUTH, &user, &password).await?;
        println!("  POST /auth/login    {user:<29} 200, a token");

        self.refused("with the token, without the relation", Some(&token), Code::PermissionDenied).await?;
        self.add_relation(&user).await?;
        println!("  AuthPolicy greeter: tuple Greeting:greeter#greeters@{user} added");
        let before = self.stored_greetings().await?;
        self.greeted(&token).await?;
        let stored = self.stored_greetings().await?;
        ensure!(stored > before, "the greeting was not stored: {before} rows before, {stored} after");
        println!("  rows in greeter's database                        {stored}");

        self.scale_keto(0).await?;
        println!("  Keto stopped");
        self.refused("with token and relation", Some(&token), Code::Unavailable).await?;
        self.scale_keto(1).await?;
        println!("  Keto is back");
        self.greeted(&token).await
    }

    async fn refused(&self, what: &str, token: Option<&str>, code: Code) -> Result<()> {
        let status = wait::until(&format!("the call {what} is refused with {code:?}"), PROPAGATION, async || {
            match self.edge.greet(GREETER, token, "Ada").await {
                Err(status) if status.code() == code => Ok(status),
                Err(status) => bail!("answered {:?}: {}", status.code(), status.message()),
                Ok(response) => Err(wait::Never(anyhow::anyhow!("it was ALLOWED: {}", response.message)).into()),
            }
        })
        .await?;
        println!("  {what:<49} {}: {}", constant(status.code()), status.message());
        Ok(())
    }

    async fn greeted(&self, token: &str) -> Result<()> {
        let response = wait::until("the call is answered", PROPAGATION, async || {
            self.edge.greet(GREETER, Some(token), "Ada").await.context("the call was refused")
        })
        .await?;
        println!("  {:<49} OK: {}", "with token and relation", response.message);
        Ok(())
    }

    async fn add_relation(&self, user: &str) -> Result<()> {
        let tuple = json!({"namespace": "Greeting", "object": "greeter", "relation": "greeters", "subject": user});
        let patch = json!({"spec": {"relations": {"tuples": [tuple]}}}).to_string();
        self.cluster.kubectl(&["patch", "-n", NAMESPACE, "apol", "greeter", "--type=merge", "-p", &patch]).await?;
        Ok(())
    }

    async fn stored_greetings(&self) -> Result<u64> {
        stack::query(self.cluster, "demo_greeter", "select count(*) from app.greetings").await?.parse().context("no number")
    }

    async fn scale_keto(&self, replicas: u8) -> Result<()> {
        let replicas = format!("--replicas={replicas}");
        self.cluster.kubectl(&["scale", "-n", SYSTEM_NAMESPACE, "deployment/keto", &replicas]).await?;
        self.cluster
            .kubectl(&["rollout", "status", "-n", SYSTEM_NAMESPACE, "deployment/keto", "--timeout=120s"])
            .await?;
        Ok(())
    }
}

/// The status as gRPC's documentation writes it.
fn constant(code: Code) -> &'static str {
    match code {
        Code::Unauthenticated => "UNAUTHENTICATED",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::Unavailable => "UNAVAILABLE",
        _ => code.description(),
    }
}
