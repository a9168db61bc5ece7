//! ORY Oathkeeper 0.40: rules and decisions of one pod.

use std::collections::BTreeSet;

use reqwest::{Client, Method, StatusCode};
use serde::{Deserialize, de::IgnoredAny};

use super::http::{Error, failed, unexpected};
use crate::auth::{
    matches::{METHODS, word},
    rule::SENTINEL_HOST,
};

/// What `GET /rules` returns at most.
const PAGE: usize = 500;

#[derive(Deserialize)]
struct Listed {
    id: String,
}

/// Public keys; what they are is the verifiers' matter.
#[derive(Deserialize)]
struct Published {
    keys: Vec<IgnoredAny>,
}

/// Client of the API port.
#[derive(Clone, Debug)]
pub struct Oathkeeper(Client);

impl Oathkeeper {
    /// A client that uses `client`.
    #[must_use]
    pub const fn new(client: Client) -> Self {
        Self(client)
    }

    /// The ids of the rules that the pod at `base` decides by. A rule with a
    /// handler that is switched off is not among them.
    ///
    /// # Errors
    /// When the pod does not answer as it should.
    #[tracing::instrument(name = "call", skip_all, fields(otel.kind = "client", otel.name = "GET /rules", peer.service = "oathkeeper"))]
    pub async fn rules(&self, base: &str) -> Result<BTreeSet<String>, Error> {
        let mut ids = BTreeSet::new();
        for page in 0.. {
            let url = format!("{base}/rules?limit={PAGE}&offset={}", page * PAGE);
            let failed = |error| failed(&Method::GET, &url, error);
            let answer = self.0.get(&url).send().await.map_err(failed)?;
            if answer.status() != StatusCode::OK {
                return Err(unexpected(&Method::GET, &url, answer).await);
            }
            let listed: Vec<Listed> = answer.json().await.map_err(failed)?;
            let count = listed.len();
            ids.extend(listed.into_iter().map(|rule| rule.id));
            if count < PAGE {
                break;
            }
        }
        Ok(ids)
    }

    /// Whether the pod at `base` has a key to sign tokens for workloads with:
    /// without one every protected call fails.
    ///
    /// # Errors
    /// When the pod does not answer, or publishes no key.
    #[tracing::instrument(name = "call", skip_all, fields(otel.kind = "client", otel.name = "GET /.well-known/jwks.json", peer.service = "oathkeeper"))]
    pub async fn signs(&self, base: &str) -> Result<(), Error> {
        let url = format!("{base}/.well-known/jwks.json");
        let failed = |error| failed(&Method::GET, &url, error);
        let answer = self.0.get(&url).send().await.map_err(failed)?;
        let status = answer.status();
        if status != StatusCode::OK {
            return Err(unexpected(&Method::GET, &url, answer).await);
        }
        let published: Published = answer.json().await.map_err(failed)?;
        if published.keys.is_empty() {
            return Err(Error::Status { method: Method::GET, url, status, body: "no key".to_owned() });
        }
        Ok(())
    }

    /// Whether the pod at `base` decides: the sentinel rule is asked once per
    /// method, because one broken pattern fails every request of its methods
    /// while the list of rules looks well.
    ///
    /// # Errors
    /// When the pod does not answer, or answers anything but the refusal.
    #[tracing::instrument(name = "call", skip_all, fields(otel.kind = "client", otel.name = "GET /decisions", peer.service = "oathkeeper"))]
    pub async fn decides(&self, base: &str) -> Result<(), Error> {
        let url = format!("{base}/decisions");
        for method in METHODS {
            let answer = self
                .0
                .get(&url)
                .header("X-Forwarded-Method", word(method))
                .header("X-Forwarded-Proto", "http")
                .header("X-Forwarded-Host", SENTINEL_HOST)
                .header("X-Forwarded-Uri", "/")
                .send()
                .await
                .map_err(|error| failed(&Method::GET, &url, error))?;
            if answer.status() != StatusCode::FORBIDDEN {
                return Err(unexpected(&Method::GET, &url, answer).await);
            }
        }
        Ok(())
    }
}
