//! The real Oathkeeper, with a key set and a relation check beside it.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _},
};
use axum::{Json, Router, http::StatusCode, routing};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use peristyle::external::{http, oathkeeper::Oathkeeper};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::program::{binary, own_address};

/// The configuration that the chart ships.
const CONFIG: &str = include_str!("../../../charts/peristyle-stack/files/oathkeeper.yaml");
const DEADLINE: Duration = Duration::from_secs(20);

/// A token issuer.
pub struct Issuer {
    key: EcdsaKeyPair,
}

impl Issuer {
    pub fn new() -> Self {
        let document =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document.as_ref()).unwrap();
        Self { key }
    }

    fn jwks(&self) -> Value {
        // 0x04, x, y
        let point = self.key.public_key().as_ref();
        json!({"keys": [{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "k1",
            "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..])}]})
    }

    /// A signed token with these claims.
    pub fn token(&self, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(&json!({"alg": "ES256", "typ": "JWT", "kid": "k1"})), part(claims));
        let signature = self.key.sign(&SystemRandom::new(), text.as_bytes()).unwrap();
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

/// Oathkeeper and what it asks; ends with the value.
pub struct Running {
    process: Child,
    directory: TempDir,
    /// Address of its API.
    pub base: String,
    /// Address of the key set and of the relation check.
    pub backend: String,
    pub issuer: Arc<Issuer>,
    pub client: reqwest::Client,
    pub oathkeeper: Oathkeeper,
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing to do about a process that is gone already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn check(Json(question): Json<Value>) -> (StatusCode, Json<Value>) {
    let is_allowed = question["subject_id"] == "alice" && question["object"] == "orders";
    if question["object"] == "hang" {
        tokio::time::sleep(Duration::from_secs(60)).await;
    }
    let status = if is_allowed { StatusCode::OK } else { StatusCode::FORBIDDEN };
    (status, Json(json!({"allowed": is_allowed})))
}

impl Running {
    /// Starts Oathkeeper without rules.
    pub async fn start() -> Self {
        let issuer = Arc::new(Issuer::new());
        let keys = issuer.clone();
        let router = Router::new()
            .route("/jwks.json", routing::get(async move || Json(keys.jwks())))
            .route("/relation-tuples/check", routing::post(check));
        let listener = tokio::net::TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let backend = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });

        let directory = tempfile::tempdir().unwrap();
        let rules = directory.path().join("rules.json");
        fs::write(&rules, "[]").unwrap();
        let address = own_address();
        let replaced = BTreeMap::from([
            ("host: 0.0.0.0, port: 4456".to_owned(), format!("host: {address}, port: 4456")),
            ("host: 127.0.0.1, port: 4455".to_owned(), format!("host: {address}, port: 4455")),
            ("host: 0.0.0.0, port: 9000".to_owned(), format!("host: {address}, port: 9000")),
            ("/etc/rules/rules.json".to_owned(), rules.display().to_string()),
            (
                "/etc/id-token/jwks.json".to_owned(),
                directory.path().join("id-token.json").display().to_string(),
            ),
        ]);
        let config = replaced.iter().fold(CONFIG.to_owned(), |config, (from, to)| {
            assert!(config.contains(from), "the chart's configuration has no {from:?} any more");
            config.replace(from, to)
        });
        let path = directory.path().join("config.yaml");
        fs::write(&path, config).unwrap();
        let log = fs::File::create(directory.path().join("log")).unwrap();
        let process = Command::new(binary("oathkeeper"))
            .args(["serve", "--sqa-opt-out", "--config"])
            .arg(&path)
            .env("LOG_LEVEL", "error")
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let client = http::client().unwrap();
        let mut running = Self {
            process,
            directory,
            base: format!("http://{address}:4456"),
            backend,
            issuer,
            oathkeeper: Oathkeeper::new(client.clone()),
            client,
        };
        let started = Instant::now();
        while running.oathkeeper.rules(&running.base).await.is_err() {
            running.give_up_after(started, "Oathkeeper did not start");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        running
    }

    fn give_up_after(&mut self, started: Instant, problem: &str) {
        let is_over = self.process.try_wait().unwrap().is_some() || started.elapsed() > DEADLINE;
        let log = || fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        assert!(!is_over, "{problem}:\n{}", log());
    }

    /// Replaces the rules in one step and waits until `ids` are loaded.
    pub async fn load<'a>(&mut self, text: &str, ids: impl IntoIterator<Item = &'a String>) {
        let file = self.directory.path().join("rules.json");
        let temporary = self.directory.path().join("rules.new");
        fs::write(&temporary, text).unwrap();
        fs::rename(&temporary, &file).unwrap();
        let wanted = ids.into_iter().cloned().collect();
        let started = Instant::now();
        while self.oathkeeper.rules(&self.base).await.unwrap() != wanted {
            self.give_up_after(started, "the rules were not loaded");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Mounts a key set to sign tokens with.
    pub fn mount_keys(&self, text: &str) {
        fs::write(self.directory.path().join("id-token.json"), text).unwrap();
    }

    /// What Oathkeeper decides of a request: status and the identity it sets.
    pub async fn decide(&self, method: &str, url: &str, headers: &[(&str, &str)]) -> (u16, Option<String>) {
        let (status, headers) = self.decide_whole(method, url, headers).await;
        let user = headers.get("X-User").map(|value| value.to_str().unwrap().to_owned());
        (status, user)
    }

    /// What Oathkeeper decides of a request: status and headers.
    pub async fn decide_whole(
        &self,
        method: &str,
        url: &str,
        headers: &[(&str, &str)],
    ) -> (u16, reqwest::header::HeaderMap) {
        let (scheme, rest) = url.split_once("://").unwrap();
        let (host, path) = rest.split_at(rest.find('/').unwrap());
        let mut request = self
            .client
            .get(format!("{}/decisions", self.base))
            .header("X-Forwarded-Method", method)
            .header("X-Forwarded-Proto", scheme)
            .header("X-Forwarded-Host", host)
            .header("X-Forwarded-Uri", path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        (answer.status().as_u16(), answer.headers().clone())
    }
}
