//! The real edge without a node: Traefik as the stack chart starts it,
//! Oathkeeper with the chart's configuration and its agent, and the error
//! backend, on a control plane with an operator. Workloads are servers of the
//! test, so that it sees whatever reaches them.

mod decisions;
pub mod frames;
mod issuer;
mod oathkeeper;
pub mod shop;
mod traefik;
mod workload;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::{core::v1::Secret, discovery::v1::EndpointSlice};
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use kube::{Api, Client, ResourceExt};
use peristyle_crds::v1alpha1::{AuthClass, EdgeClass};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::calls::Edge;
use crate::operated::{NAMESPACE, Operated};
use crate::progress::Progress;
use crate::stack::SYSTEM_NAMESPACE;
use crate::substrate::{self, Component};
use crate::team::Team;
use crate::{daemon, ports, replica, wait};
use issuer::Issuer;
use traefik::Traefik;

pub use decisions::{Decisions, Fault};
pub use oathkeeper::Oathkeeper;
pub use workload::{Reached, SMUGGLED, answer};

/// Issuer that the AuthClass trusts.
pub const ISSUER: &str = "http://idp.test";
/// Issuer of the tokens that Oathkeeper signs for workloads.
pub const GATE_ISSUER: &str = "http://gate.test";
/// Secret with the keys that it signs with.
pub const KEYS_SECRET: &str = "oathkeeper-id-token";
/// The core Service by which Keto is known; outside of a cluster it resolves all the same.
pub const KETO_SERVICE: &str = "localhost";
const PATIENCE: Duration = Duration::from_secs(60);
/// How long an answer may take; longer than the edge's own limits.
const ANSWER: Duration = Duration::from_secs(20);
/// Port of the error backend's pods, which the operator writes into its slices.
const EDGE_ERRORS_PORT: u16 = 8080;

/// The edge with all that it asks.
pub struct Gate {
    pub operated: Operated,
    /// As clients reach it.
    pub edge: Edge,
    /// Address of this machine that API objects may hold; a loopback address may not.
    pub address: IpAddr,
    /// What reached the workloads, head by head.
    pub reached: Reached,
    /// The way from the edge to Oathkeeper.
    pub decisions: Decisions,
    /// The one pod of the decision service that the edge asks.
    pub oathkeeper: Oathkeeper,
    traefik: Traefik,
    issuer: Issuer,
    dir: TempDir,
}

impl Gate {
    /// Starts everything with an operator and classes that lead here.
    ///
    /// # Errors
    /// When a program is missing or does not start.
    pub async fn start() -> Result<Self> {
        let mut operated = Operated::prepare().await?;
        let programs = [Component::Traefik, Component::Oathkeeper, Component::Helm];
        let programs = substrate::build(&programs, &Progress::default()).await?;
        let dir = tempfile::Builder::new().prefix("gate-").tempdir()?;
        let address = ports::own_address()?;
        let [web, api, way, keto] = ports::free()?;
        // Oathkeeper fetches keys from private addresses and the loopback, not from any other special range.
        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        let issuer = Issuer::new()?;
        serve_relations(loopback, keto, issuer.jwks()).await?;
        operated.operate("first").await?;
        classes(&operated, web, api, keto).await?;

        let state = operated.plane().state();
        let program = programs.get(&Component::Oathkeeper).context("Oathkeeper was not built")?;
        mount_keys(&operated.client, &oathkeeper::keys_file(dir.path())).await?;
        let oathkeeper = Oathkeeper::start(state, program, dir.path(), address, "oathkeeper")?;
        oathkeeper.follow(state, &operated.plane().kubeconfig())?;
        let way = SocketAddr::new(address, way);
        let decisions = Decisions::start(way, SocketAddr::new(address, oathkeeper.port)).await?;
        start_edge_errors(&operated, address).await?;
        let traefik = Traefik::new(&programs, &operated, web, api, way).await?;
        traefik.start(state, true).await?;

        let gate = Self {
            edge: Edge::on(web),
            address,
            reached: Reached::default(),
            decisions,
            traefik,
            issuer,
            dir,
            operated,
            oathkeeper,
        };
        gate.slice(SYSTEM_NAMESPACE, "edge-errors", "http", EDGE_ERRORS_PORT).await?;
        gate.slice(SYSTEM_NAMESPACE, "oathkeeper-api", "api", gate.oathkeeper.port).await?;
        Ok(gate)
    }

    /// Where Oathkeeper publishes the keys of its tokens.
    #[must_use]
    pub fn jwks_url(&self) -> String {
        format!("http://{}:{}/.well-known/jwks.json", self.address, self.oathkeeper.port)
    }

    /// Brings the signing keys that the Secret holds now to Oathkeeper.
    ///
    /// # Errors
    /// When the operator does not make the Secret, or the file cannot be written.
    pub async fn mount_keys(&self) -> Result<()> {
        mount_keys(&self.operated.client, &oathkeeper::keys_file(self.dir.path())).await
    }

    /// A workload over HTTP/1.1 behind the port `port` of the core Service
    /// `service`. It lets everyone in and answers 200 with the head of each request.
    ///
    /// # Errors
    /// When it cannot listen or the API server refuses.
    pub async fn serve(&self, service: &str, port: &str) -> Result<()> {
        let listener = tokio::net::TcpListener::bind((self.address, 0)).await?;
        let number = listener.local_addr()?.port();
        workload::http(listener, self.reached.clone());
        self.slice(NAMESPACE, service, port, number).await
    }

    /// The same over gRPC: it answers every call with an empty message.
    ///
    /// # Errors
    /// When it cannot listen or the API server refuses.
    pub async fn serve_grpc(&self, service: &str, port: &str) -> Result<()> {
        let listener = tokio::net::TcpListener::bind((self.address, 0)).await?;
        let number = listener.local_addr()?.port();
        workload::grpc(listener, self.reached.clone());
        self.slice(NAMESPACE, service, port, number).await
    }

    /// Who applies objects of ours in a namespace.
    #[must_use]
    pub fn team(&self, namespace: &str) -> Team {
        Team::new(self.operated.client.clone(), namespace)
    }

    /// [`Team::apply`] in the tests' namespace.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn apply(&self, kind: &str, name: &str, spec: &Value) -> Result<()> {
        self.operated.team().apply(kind, name, spec).await
    }

    /// [`Team::objects`] in the tests' namespace.
    #[must_use]
    pub fn objects(&self, kind: &str) -> Api<DynamicObject> {
        self.operated.team().objects(kind)
    }

    /// [`Team::becomes`] in the tests' namespace.
    ///
    /// # Errors
    /// At the deadline, with the object.
    pub async fn becomes(
        &self,
        kind: &str,
        name: &str,
        type_: &str,
        status: &str,
        reason: &str,
    ) -> Result<()> {
        self.operated.team().becomes(kind, name, type_, status, reason).await.map(drop)
    }

    /// Starts the edge anew, with or without a way to the decision service:
    /// without, the service's name leads nowhere.
    ///
    /// # Errors
    /// When it does not end or does not start.
    pub async fn restart_edge(&self, finds_decisions: bool) -> Result<()> {
        let state = self.operated.plane().state();
        Traefik::stop(state)?;
        self.traefik.start(state, finds_decisions).await
    }

    /// A second pod of the decision service, without the agent that brings the
    /// rules: it knows those that the test gives it.
    ///
    /// # Errors
    /// When it does not start or the API server refuses.
    pub async fn second_oathkeeper(&self) -> Result<Oathkeeper> {
        let programs = substrate::build(&[Component::Oathkeeper], &Progress::default()).await?;
        let program = programs.get(&Component::Oathkeeper).context("Oathkeeper was not built")?;
        let state = self.operated.plane().state();
        let second = Oathkeeper::start(state, program, self.dir.path(), self.address, "oathkeeper-late")?;
        second.listens(state).await?;
        let (pod, port) = (("oathkeeper-late", true), ("api", second.port));
        self.pod(SYSTEM_NAMESPACE, "oathkeeper-api", pod, port).await?;
        Ok(second)
    }

    /// A token of the trusted issuer.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn token(&self, claims: &Value) -> Result<String> {
        self.issuer.token(claims)
    }

    /// Sends the text of a request as it is and returns the answer as it is, to
    /// its end: the request asks for the connection to be closed.
    ///
    /// # Errors
    /// When the edge does not answer.
    pub async fn send(&self, request: &[u8]) -> Result<String> {
        let exchange = async {
            let mut stream = TcpStream::connect(self.edge.address()).await?;
            stream.write_all(request).await?;
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).await?;
            anyhow::Ok(String::from_utf8_lossy(&answer).into_owned())
        };
        tokio::time::timeout(ANSWER, exchange).await.context("the edge does not answer")?
    }

    /// The same, but returns after the head of the answer.
    ///
    /// # Errors
    /// When the edge does not answer.
    pub async fn send_head(&self, request: &[u8]) -> Result<String> {
        let exchange = async {
            let mut stream = TcpStream::connect(self.edge.address()).await?;
            stream.write_all(request).await?;
            decisions::head(&mut stream).await
        };
        tokio::time::timeout(ANSWER, exchange).await.context("the edge does not answer")?
    }

    async fn slice(&self, namespace: &str, service: &str, port: &str, number: u16) -> Result<()> {
        self.pods(namespace, service, port, number, true).await
    }

    /// One pod of a core Service at this machine, as the control plane would
    /// tell of it.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn pods(
        &self,
        namespace: &str,
        service: &str,
        port: &str,
        number: u16,
        is_ready: bool,
    ) -> Result<()> {
        self.pod(namespace, service, (&format!("{service}-0"), is_ready), (port, number)).await
    }

    /// The pod of this name, ready or not, with a slice of its own.
    async fn pod(
        &self,
        namespace: &str,
        service: &str,
        (name, is_ready): (&str, bool),
        (port, number): (&str, u16),
    ) -> Result<()> {
        let family = if self.address.is_ipv4() { "IPv4" } else { "IPv6" };
        let slice: EndpointSlice = serde_json::from_value(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("{name}-bench"), "labels": {
                "kubernetes.io/service-name": service,
                // Kubernetes copies the labels of the core Service.
                "app.kubernetes.io/managed-by": "peristyle", "peristyle.dev/service": service}},
            "addressType": family,
            "ports": [{"name": port, "port": number, "protocol": "TCP"}],
            "endpoints": [{"addresses": [self.address], "conditions": {"ready": is_ready},
                "targetRef": {"kind": "Pod", "name": name, "namespace": namespace}}]
        }))?;
        let slices: Api<EndpointSlice> = Api::namespaced(self.operated.client.clone(), namespace);
        slices.patch(&slice.name_any(), &PatchParams::apply("bench").force(), &Patch::Apply(&slice)).await?;
        Ok(())
    }
}

/// What answers refused gRPC calls.
async fn start_edge_errors(operated: &Operated, address: IpAddr) -> Result<()> {
    let listen = SocketAddr::new(address, EDGE_ERRORS_PORT).to_string();
    // A gate of another process may have it for a while.
    wait::until("nobody listens on the error backend's port", PATIENCE, async || {
        TcpListener::bind((address, EDGE_ERRORS_PORT)).with_context(|| format!("{listen} is taken"))
    })
    .await?;
    let state = operated.plane().state();
    let peristyle = replica::binary()?.display().to_string();
    daemon::start(state, "edge-errors", &words(&[&peristyle, "edge-errors", "--listen", &listen]))?;
    wait::until("the error backend listens", PATIENCE, async || {
        daemon::check(state).map_err(wait::Never)?;
        Ok(TcpStream::connect(&listen).await?)
    })
    .await?;
    Ok(())
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.to_owned()).collect()
}

async fn classes(operated: &Operated, web: u16, api: u16, keto: u16) -> Result<()> {
    let default = json!({"peristyle.dev/is-default-class": "true"});
    let edge: EdgeClass = serde_json::from_value(json!({
        "metadata": {"name": "public", "annotations": default},
        "spec": {"provider": "Traefik",
            "traefik": {"entryPoints": ["web"], "apiURL": format!("http://127.0.0.1:{api}")},
            "hosts": {"template": "{service}.{namespace}.example.com"},
            "address": {"scheme": "http", "port": web},
            "probe": {"address": format!("127.0.0.1:{web}")}}
    }))?;
    let keto = format!("http://{KETO_SERVICE}:{keto}");
    let auth: AuthClass = serde_json::from_value(json!({
        "metadata": {"name": "default", "annotations": default},
        "spec": {
            "oathkeeper": {"namespace": SYSTEM_NAMESPACE, "service": "oathkeeper-api", "rulesConfigMap": "oathkeeper-rules"},
            "keto": {"readURL": keto, "writeURL": keto, "oplURL": keto,
                "namespacesConfigMap": {"namespace": SYSTEM_NAMESPACE, "name": "keto-namespaces", "key": "namespaces.keto.ts"}},
            "idToken": {"issuer": GATE_ISSUER, "jwksSecret": KEYS_SECRET},
            "issuers": [{"issuer": ISSUER, "jwksURL": format!("{}/jwks.json", keto.replace(KETO_SERVICE, "127.0.0.1"))}]}
    }))?;
    let client = || operated.client.clone();
    Api::<EdgeClass>::all(client()).create(&PostParams::default(), &edge).await?;
    Api::<AuthClass>::all(client()).create(&PostParams::default(), &auth).await?;
    Ok(())
}

/// Does what the kubelet does: the file of Oathkeeper becomes what the Secret
/// holds, once there is one.
async fn mount_keys(client: &Client, file: &Path) -> Result<()> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    let keys = wait::until("the signing keys exist", PATIENCE, async || {
        let data = secrets.get(KEYS_SECRET).await?.data.unwrap_or_default();
        data.get("jwks.json").cloned().context("no jwks.json")
    })
    .await?;
    // In one step: half a file would be read as none.
    std::fs::write(file.with_extension("new"), keys.0)?;
    Ok(std::fs::rename(file.with_extension("new"), file)?)
}

/// Answers what the operator asks of a Keto without models, and the issuer's keys.
async fn serve_relations(address: IpAddr, port: u16, jwks: Value) -> Result<()> {
    let listener = tokio::net::TcpListener::bind((address, port)).await?;
    answer(listener, move |head| {
        if head.contains("/namespaces") {
            return json!({"namespaces": [{"name": "PeristyleNone"}]}).to_string();
        }
        if head.contains("/jwks.json") {
            return jwks.to_string();
        }
        json!({"relation_tuples": []}).to_string()
    });
    Ok(())
}
