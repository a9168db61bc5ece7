//! Traefik 3.6: what one pod has loaded, by its API.

use std::collections::{BTreeMap, BTreeSet};

use reqwest::{Client, Method, StatusCode};
use serde::{Deserialize, de::DeserializeOwned};

use super::http::{Error, failed, unexpected};
use crate::edge::traefik::readback::{Content, Expected, PROVIDER};

/// A router as the API shows it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Router {
    status: String,
    middlewares: Vec<String>,
    parent_refs: Vec<String>,
    error: Vec<String>,
}

/// A middleware as the API shows it.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Middleware {
    status: String,
    error: Vec<String>,
    #[serde(flatten)]
    content: Content,
}

/// A service as the API shows it.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Service {
    /// By address; the field is absent when there is none.
    server_status: BTreeMap<String, String>,
}

/// Client of the API of one pod.
#[derive(Clone, Debug)]
pub struct Traefik(Client);

/// What a pod has loaded of some routers.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Loaded {
    /// All of them, and these addresses (host and port) behind those that lead to the workload.
    All(BTreeSet<String>),
    /// Not all: what is missing, in words.
    Missing(String),
}

impl Traefik {
    /// A client that uses `client`.
    #[must_use]
    pub const fn new(client: Client) -> Self {
        Self(client)
    }

    /// What the pod at `base` has loaded of `expected` and of `middlewares`.
    ///
    /// # Errors
    /// When the API does not answer as it should.
    pub async fn loaded(
        &self,
        base: &str,
        expected: &[Expected],
        middlewares: &BTreeMap<String, Content>,
    ) -> Result<Loaded, Error> {
        for (name, wanted) in middlewares {
            let Some(found) = self.get::<Middleware>(base, "middlewares", name).await? else {
                return Ok(Loaded::Missing(format!("middleware {name} is not loaded")));
            };
            if found.status != "enabled" {
                return Ok(Loaded::Missing(format!("middleware {name}: {}", found.error.join(", "))));
            }
            if found.content != *wanted {
                return Ok(Loaded::Missing(format!("middleware {name} is an older one")));
            }
        }
        let mut servers = None;
        for router in expected {
            let Some(found) = self.get::<Router>(base, "routers", &router.name).await? else {
                return Ok(Loaded::Missing(format!("router {} is not loaded", router.name)));
            };
            // Names inside an answer may or may not tell the provider.
            let plain = |name: String| name.strip_suffix(PROVIDER).map_or(name.clone(), ToOwned::to_owned);
            let mut parents: Vec<String> = found.parent_refs.into_iter().map(plain).collect();
            parents.sort();
            let middlewares: Vec<String> = found.middlewares.into_iter().map(plain).collect();
            if found.status == "disabled" {
                return Ok(Loaded::Missing(format!("router {}: {}", router.name, found.error.join(", "))));
            }
            if middlewares != router.middlewares || parents != router.parents {
                return Ok(Loaded::Missing(format!("router {} is an older one", router.name)));
            }
            if router.is_to_workload {
                let service = self.get::<Service>(base, "services", &router.name).await?.unwrap_or_default();
                let addresses: BTreeSet<String> = service
                    .server_status
                    .into_keys()
                    .map(|url| url.split_once("://").map_or(url.clone(), |(_, address)| address.to_owned()))
                    .collect();
                let common = |known: BTreeSet<String>| known.intersection(&addresses).cloned().collect();
                servers = Some(servers.map_or_else(|| addresses.clone(), common));
            }
        }
        Ok(Loaded::All(servers.unwrap_or_default()))
    }

    async fn get<T: DeserializeOwned>(&self, base: &str, kind: &str, name: &str) -> Result<Option<T>, Error> {
        let url = format!("{base}/api/http/{kind}/{name}{PROVIDER}");
        let failed = |error| failed(&Method::GET, &url, error);
        let answer = self.0.get(&url).send().await.map_err(failed)?;
        match answer.status() {
            StatusCode::OK => answer.json().await.map(Some).map_err(failed),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(unexpected(&Method::GET, &url, answer).await),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::{Json, Router as Routes, routing};
    use serde_json::{Value, json};

    use super::*;

    /// What is said of the middleware `shop-authn` by an edge that shows `shown` of it.
    async fn said(shown: Value) -> Loaded {
        let path = format!("/api/http/middlewares/shop-authn{PROVIDER}");
        let routes = Routes::new().route(&path, routing::get(async move || Json(shown)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, routes).await.unwrap() });
        let wanted =
            serde_json::from_value(json!({"forwardAuth": {"address": "http://o/decisions"}})).unwrap();
        let middlewares = BTreeMap::from([("shop-authn".to_owned(), wanted)]);
        Traefik::new(Client::new()).loaded(&base, &[], &middlewares).await.unwrap()
    }

    #[tokio::test]
    async fn a_middleware_counts_only_enabled_and_as_it_was_written() {
        let shown = |status: &str, address: &str| json!({"status": status, "error": ["why"], "forwardAuth": {"address": address}, "type": "forwardauth"});
        let missing = |what: &str| Loaded::Missing(format!("middleware shop-authn{what}"));
        assert_eq!(said(shown("enabled", "http://o/decisions")).await, Loaded::All(BTreeSet::new()));
        assert_eq!(said(shown("enabled", "http://elsewhere")).await, missing(" is an older one"));
        assert_eq!(said(shown("disabled", "http://o/decisions")).await, missing(": why"));
        assert_eq!(said(json!({"status": "enabled", "headers": {}})).await, missing(" is an older one"));
    }
}
