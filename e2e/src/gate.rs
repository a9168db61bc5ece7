//! The real edge without a node: Traefik as the stack chart starts it,
//! Oathkeeper with the chart's configuration and its agent, and the error
//! backend, on a control plane with an operator. Workloads are servers of the
//! test, so that it sees whatever reaches them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use k8s_openapi::api::{core::v1::Secret, discovery::v1::EndpointSlice};
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::DynamicObject;
use kube::discovery::ApiResource;
use kube::{Api, ResourceExt};
use peristyle_crds::v1alpha1::{AuthClass, EdgeClass};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::Command;

use crate::calls::Edge;
use crate::operated::{NAMESPACE, Operated};
use crate::progress::Progress;
use crate::stack::SYSTEM_NAMESPACE;
use crate::substrate::{self, Component, Programs};
use crate::{command, daemon, ports, replica, wait};

/// Issuer that the AuthClass trusts.
pub const ISSUER: &str = "http://idp.test";
/// Issuer of the tokens that Oathkeeper signs for workloads.
pub const GATE_ISSUER: &str = "http://gate.test";
/// Secret with the keys that it signs with.
pub const KEYS_SECRET: &str = "oathkeeper-id-token";
/// The core Service by which Keto is known; outside of a cluster it resolves all the same.
pub const KETO_SERVICE: &str = "localhost";
const PATIENCE: Duration = Duration::from_secs(60);
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
    /// Where Oathkeeper publishes the keys of its tokens.
    pub jwks_url: String,
    issuer: Issuer,
    dir: TempDir,
}

/// Heads of requests that a workload got.
#[derive(Clone, Debug, Default)]
pub struct Reached(Arc<Mutex<Vec<String>>>);

impl Reached {
    /// All heads since the last look.
    #[must_use]
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn add(&self, head: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(head.to_owned());
    }
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
        let [web, api, oathkeeper, keto] = ports::free()?;
        // Oathkeeper fetches keys from private addresses and the loopback, not from any other special range.
        let loopback = IpAddr::from(Ipv4Addr::LOCALHOST);
        let reached = Reached::default();
        let issuer = Issuer::new()?;
        serve_relations(loopback, keto, issuer.jwks()).await?;

        let gate = Self {
            edge: Edge::on(web),
            address,
            reached,
            jwks_url: format!("http://{address}:{oathkeeper}/.well-known/jwks.json"),
            issuer,
            dir,
            operated: {
                operated.operate("first").await?;
                operated
            },
        };
        gate.classes(web, api, keto).await?;
        gate.mount_keys().await?;
        gate.start_oathkeeper(&programs, gate.dir.path(), oathkeeper).await?;
        gate.start_traefik(&programs, web, api, oathkeeper).await?;
        gate.slice(SYSTEM_NAMESPACE, "edge-errors", "http", EDGE_ERRORS_PORT).await?;
        gate.slice(SYSTEM_NAMESPACE, "oathkeeper-api", "api", oathkeeper).await?;
        Ok(gate)
    }

    /// Does what the kubelet does: the file of Oathkeeper becomes what the
    /// Secret holds, once there is one.
    ///
    /// # Errors
    /// When the operator does not make it, or the file cannot be written.
    pub async fn mount_keys(&self) -> Result<()> {
        let secrets: Api<Secret> = Api::namespaced(self.operated.client.clone(), SYSTEM_NAMESPACE);
        let keys = wait::until("the signing keys exist", PATIENCE, async || {
            let data = secrets.get(KEYS_SECRET).await?.data.unwrap_or_default();
            data.get("jwks.json").cloned().context("no jwks.json")
        })
        .await?;
        let file = self.keys_file();
        // In one step: half a file would be read as none.
        std::fs::write(file.with_extension("new"), keys.0)?;
        std::fs::rename(file.with_extension("new"), file)?;
        Ok(())
    }

    fn keys_file(&self) -> PathBuf {
        self.dir.path().join("id-token.json")
    }

    /// A workload that answers 200 with the head of each request, behind the
    /// port `port` of the core Service `service`.
    ///
    /// # Errors
    /// When it cannot listen or the API server refuses.
    pub async fn serve(&self, service: &str, port: &str) -> Result<()> {
        let listener = tokio::net::TcpListener::bind((self.address, 0)).await?;
        let number = listener.local_addr()?.port();
        let reached = self.reached.clone();
        answer(listener, move |head| {
            reached.add(head);
            head.to_owned()
        });
        self.slice(NAMESPACE, service, port, number).await
    }

    /// Applies an object of ours in the tests' namespace.
    ///
    /// # Errors
    /// When the API server refuses.
    pub async fn apply(&self, kind: &str, name: &str, spec: &Value) -> Result<()> {
        let object = json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec});
        let params = PatchParams::apply("team").force();
        self.objects(kind).patch(name, &params, &Patch::Apply(&object)).await?;
        Ok(())
    }

    /// Objects of ours in the tests' namespace.
    #[must_use]
    pub fn objects(&self, kind: &str) -> Api<DynamicObject> {
        let plural = match kind {
            "AuthPolicy" => "authpolicies".to_owned(),
            kind => format!("{}s", kind.to_lowercase()),
        };
        let resource = ApiResource {
            group: "peristyle.dev".to_owned(),
            version: "v1alpha1".to_owned(),
            api_version: "peristyle.dev/v1alpha1".to_owned(),
            kind: kind.to_owned(),
            plural,
        };
        Api::namespaced_with(self.operated.client.clone(), NAMESPACE, &resource)
    }

    /// Waits until a condition has this status and reason for the present spec.
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
        let what = format!("{kind} {name} is {type_}={status} ({reason})");
        let is_so = |object: &DynamicObject| {
            let conditions = object.data["status"]["conditions"].as_array();
            conditions.into_iter().flatten().any(|condition| {
                condition["type"] == type_
                    && condition["status"] == status
                    && condition["reason"] == reason
                    && condition["observedGeneration"].as_i64() >= object.metadata.generation
            })
        };
        wait::object(&self.objects(kind), name, &what, PATIENCE, is_so).await.map(drop)
    }

    /// A token of the trusted issuer.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn token(&self, claims: &Value) -> Result<String> {
        self.issuer.token(claims)
    }

    /// Sends the text of a request as it is and returns the answer as it is.
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
        tokio::time::timeout(PATIENCE, exchange).await.context("the edge does not answer")?
    }

    async fn classes(&self, web: u16, api: u16, keto: u16) -> Result<()> {
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
        let client = || self.operated.client.clone();
        Api::<EdgeClass>::all(client()).create(&PostParams::default(), &edge).await?;
        Api::<AuthClass>::all(client()).create(&PostParams::default(), &auth).await?;
        Ok(())
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
        let family = if self.address.is_ipv4() { "IPv4" } else { "IPv6" };
        let slice: EndpointSlice = serde_json::from_value(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": format!("{service}-bench"), "labels": {
                "kubernetes.io/service-name": service,
                // Kubernetes copies the labels of the core Service.
                "app.kubernetes.io/managed-by": "peristyle", "peristyle.dev/service": service}},
            "addressType": family,
            "ports": [{"name": port, "port": number, "protocol": "TCP"}],
            "endpoints": [{"addresses": [self.address], "conditions": {"ready": is_ready},
                "targetRef": {"kind": "Pod", "name": format!("{service}-0"), "namespace": namespace}}]
        }))?;
        let slices: Api<EndpointSlice> = Api::namespaced(self.operated.client.clone(), namespace);
        slices.patch(&slice.name_any(), &PatchParams::apply("bench").force(), &Patch::Apply(&slice)).await?;
        Ok(())
    }

    async fn start_oathkeeper(&self, programs: &Programs, dir: &Path, port: u16) -> Result<()> {
        let chart = crate::workspace().join("charts/peristyle-stack/files/oathkeeper.yaml");
        let rules = dir.join("rules.json");
        std::fs::write(&rules, "[]")?;
        let mut config = std::fs::read_to_string(&chart)?;
        let address = self.address;
        let [proxy, metrics, agent] = ports::free()?;
        for (from, to) in [
            ("host: 0.0.0.0, port: 4456", format!("host: {address}, port: {port}")),
            ("host: 127.0.0.1, port: 4455", format!("host: {address}, port: {proxy}")),
            ("host: 0.0.0.0, port: 9000", format!("host: {address}, port: {metrics}")),
            ("/etc/rules/rules.json", rules.display().to_string()),
            ("/etc/id-token/jwks.json", self.keys_file().display().to_string()),
        ] {
            ensure!(config.contains(from), "the chart's configuration has no {from:?} any more");
            config = config.replace(from, &to);
        }
        let file = dir.join("oathkeeper.yaml");
        std::fs::write(&file, config)?;
        let program = programs.get(&Component::Oathkeeper).context("Oathkeeper was not built")?;
        let state = self.operated.plane().state();
        let words = |words: &[&str]| words.iter().map(|&word| word.to_owned()).collect::<Vec<_>>();
        let (program, file) = (program.display().to_string(), file.display().to_string());
        daemon::start(
            state,
            "oathkeeper",
            &words(&["env", "LOG_LEVEL=warn", &program, "serve", "--sqa-opt-out", "--config", &file]),
        )?;
        let peristyle = replica::binary()?.display().to_string();
        let kubeconfig = format!("KUBECONFIG={}", self.operated.plane().kubeconfig().display());
        let (rules, check) = (rules.display().to_string(), format!("http://{address}:{port}"));
        daemon::start(
            state,
            "agent",
            &words(&[
                "env",
                &kubeconfig,
                &peristyle,
                "agent",
                "--component=oathkeeper",
                "--namespace",
                SYSTEM_NAMESPACE,
                "--config-map=oathkeeper-rules",
                "--key=rules.json",
                "--file",
                &rules,
                "--check",
                &check,
                "--listen",
                &format!("{address}:{agent}"),
            ]),
        )?;
        let listen = SocketAddr::new(address, EDGE_ERRORS_PORT).to_string();
        // A gate of another process may have it for a while.
        wait::until("nobody listens on the error backend's port", PATIENCE, async || {
            TcpListener::bind((address, EDGE_ERRORS_PORT)).with_context(|| format!("{listen} is taken"))
        })
        .await?;
        daemon::start(state, "edge-errors", &words(&[&peristyle, "edge-errors", "--listen", &listen]))?;
        wait::until("the error backend listens", PATIENCE, async || {
            daemon::check(state).map_err(wait::Never)?;
            Ok(TcpStream::connect(&listen).await?)
        })
        .await?;
        Ok(())
    }

    /// With the arguments of the chart but for the addresses. Outside of a
    /// cluster no name leads to Oathkeeper: it is reached as the HTTP proxy of
    /// everything that is no address.
    async fn start_traefik(&self, programs: &Programs, web: u16, api: u16, oathkeeper: u16) -> Result<()> {
        let helm = programs.get(&Component::Helm).context("helm was not built")?;
        let chart = crate::workspace().join("charts/peristyle-stack");
        let mut template = Command::new(helm);
        template.arg("template").arg("stack").arg(chart);
        template.args([
            "--show-only",
            "templates/traefik.yaml",
            "--kube-version",
            substrate::KUBERNETES_VERSION,
        ]);
        let documents: Vec<Value> = serde_saphyr::from_multiple(&command::output(&mut template).await?)?;
        let deployment = documents.iter().find(|d| d["kind"] == "Deployment").context("no Deployment")?;
        let arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"].as_array();
        let [secure, internal] = ports::free()?;
        let numbers = [(":8000", web), (":8443", secure), (":8080", internal), (":8082", api)];
        let arguments: Vec<String> = arguments
            .context("no arguments")?
            .iter()
            .filter_map(Value::as_str)
            .map(|argument| {
                let found = numbers.iter().find(|(port, _)| argument.ends_with(&format!("address={port}")));
                match found {
                    Some((port, number)) => argument.replace(port, &format!("127.0.0.1:{number}")),
                    None => argument.to_owned(),
                }
            })
            .collect();
        let state = self.operated.plane().state();
        let mut words = vec!["env".to_owned()];
        words.push(format!("KUBECONFIG={}", self.operated.plane().kubeconfig().display()));
        words.push(format!("HTTP_PROXY=http://{}:{oathkeeper}", self.address));
        words.push(format!("NO_PROXY={}", self.address));
        words.push(programs.get(&Component::Traefik).context("Traefik was not built")?.display().to_string());
        words.extend(arguments);
        daemon::start(state, "traefik", &words)?;
        wait::until("Traefik answers", PATIENCE, async || {
            daemon::check(state).map_err(wait::Never)?;
            TcpStream::connect(self.edge.address()).await?;
            Ok(TcpStream::connect((Ipv4Addr::LOCALHOST, api)).await?)
        })
        .await?;
        Ok(())
    }
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

/// Answers 200 with what `body` makes of the head of each request.
pub fn answer(
    listener: tokio::net::TcpListener,
    body: impl Fn(&str) -> String + Clone + Send + Sync + 'static,
) {
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let body = body.clone();
            tokio::spawn(async move {
                let mut read = Vec::new();
                let mut chunk = [0; 4096];
                let end = loop {
                    if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
                        break end;
                    }
                    match stream.read(&mut chunk).await {
                        Ok(count) if count > 0 => read.extend_from_slice(&chunk[..count]),
                        _ => return,
                    }
                };
                let body = body(&String::from_utf8_lossy(&read[..end]));
                let head = format!(
                    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
                    body.len()
                );
                // A client that is gone needs no answer.
                let _ = stream.write_all(format!("{head}{body}").as_bytes()).await;
            });
        }
    });
}

/// A token issuer.
struct Issuer(EcdsaKeyPair);

impl Issuer {
    fn new() -> Result<Self> {
        let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let document = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new());
        let document = document.map_err(|_| anyhow::anyhow!("the system gives no random bytes"))?;
        Ok(Self(EcdsaKeyPair::from_pkcs8(algorithm, document.as_ref()).map_err(|e| anyhow::anyhow!("{e}"))?))
    }

    fn jwks(&self) -> Value {
        // 0x04, x, y
        let point = self.0.public_key().as_ref();
        json!({"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "k1",
            "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..])}]})
    }

    fn token(&self, claims: &Value) -> Result<String> {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(&json!({"alg": "ES256", "typ": "JWT", "kid": "k1"})), part(claims));
        let signature = self.0.sign(&SystemRandom::new(), text.as_bytes());
        let signature = signature.map_err(|_| anyhow::anyhow!("signing failed"))?;
        Ok(format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}
