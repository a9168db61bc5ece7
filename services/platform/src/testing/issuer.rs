//! An issuer of tokens with one RSA key.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der},
    rsa::{KeyPair, KeySize},
};
use axum::{Json, Router, routing::get};
use jsonwebtoken::{
    Algorithm, EncodingKey, Header, encode,
    jwk::{Jwk, JwkSet, ThumbprintHash},
};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::server;

/// An issuer with a fresh key.
pub struct Issuer {
    key: EncodingKey,
    jwk: Jwk,
}

impl Default for Issuer {
    fn default() -> Self {
        Self::new()
    }
}

impl Issuer {
    /// Generates a key.
    ///
    /// # Panics
    /// When no key can be generated.
    #[must_use]
    pub fn new() -> Self {
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let der: Pkcs8V1Der<'_> = pair.as_der().unwrap();
        let key = EncodingKey::from_rsa_der(der.as_ref());
        let mut jwk = Jwk::from_encoding_key(&key, Algorithm::RS256).unwrap();
        jwk.common.key_id = Some(jwk.thumbprint(ThumbprintHash::SHA256).unwrap());
        Self { key, jwk }
    }

    /// The public key.
    #[must_use]
    pub fn jwk(&self) -> Jwk {
        self.jwk.clone()
    }

    /// The key's id.
    #[must_use]
    pub fn kid(&self) -> String {
        self.jwk.common.key_id.clone().unwrap_or_default()
    }

    /// Signs claims as they are.
    ///
    /// # Panics
    /// When the claims are no JSON object.
    #[must_use]
    pub fn sign(&self, claims: &Value) -> String {
        let header = Header { kid: Some(self.kid()), ..Header::new(Algorithm::RS256) };
        encode(&header, claims, &self.key).unwrap()
    }

    /// Serves the public key until the runtime ends; returns where, and how
    /// often it was fetched.
    ///
    /// # Panics
    /// When no port is free.
    pub async fn serve(&self) -> (SocketAddr, Arc<AtomicUsize>) {
        let keys = JwkSet { keys: vec![self.jwk()] };
        let fetched = Arc::new(AtomicUsize::new(0));
        let count = fetched.clone();
        let answer = move || {
            count.fetch_add(1, Ordering::SeqCst);
            let keys = keys.clone();
            async move { Json(keys) }
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(server::serve(
            listener,
            Router::new().route("/jwks", get(answer)),
            CancellationToken::new(),
        ));
        (addr, fetched)
    }
}
