//! The issuer's public keys, fetched when needed.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use jsonwebtoken::jwk::{Jwk, JwkSet};
use reqwest::{Client, Url, redirect};

use super::Rejection;
use crate::config::ConfigError;

/// Keys older than this are fetched again; when that fails they are not used.
const FRESH: Duration = Duration::from_mins(5);
/// An unknown key id leads to a fetch at most this often: tokens with random
/// ids must not turn into load on the issuer.
const COOL_DOWN: Duration = Duration::from_secs(10);
/// After a failed fetch nobody waits for another for this long.
const BACK_OFF: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(2);
const MAX_BYTES: usize = 256 * 1024;

/// A cached key set.
pub struct Jwks {
    url: Url,
    client: Client,
    /// Held for a look only: who has a known key never waits for a fetch.
    cache: Mutex<Cache>,
    /// Held by the one who fetches.
    fetching: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct Cache {
    keys: Option<(JwkSet, Instant)>,
    attempted: Option<Instant>,
}

#[derive(Debug, PartialEq)]
enum Decision {
    Use(Box<Jwk>),
    Fetch,
    Reject(Rejection),
}

impl Cache {
    fn decide(&self, kid: &str, now: Instant) -> Decision {
        let waited = |pause| self.attempted.is_none_or(|at| now.duration_since(at) >= pause);
        let fresh = self.keys.as_ref().filter(|(_, at)| now.duration_since(*at) < FRESH);
        match fresh {
            Some((keys, _)) => match keys.find(kid) {
                Some(key) => Decision::Use(Box::new(key.clone())),
                None if waited(COOL_DOWN) => Decision::Fetch,
                None => Decision::Reject(Rejection::Invalid),
            },
            None if waited(BACK_OFF) => Decision::Fetch,
            None => Decision::Reject(Rejection::KeysUnavailable),
        }
    }
}

impl Jwks {
    /// Keys from this URL; nothing is fetched yet.
    ///
    /// # Errors
    /// When no HTTP client can be built, for want of root certificates.
    pub fn new(url: Url) -> Result<Self, ConfigError> {
        // A redirect would let whoever controls it choose our keys.
        let client = Client::builder().timeout(TIMEOUT).redirect(redirect::Policy::none()).build();
        let client = client.map_err(|_| ConfigError::Invalid {
            name: "JWT_JWKS_URL".into(),
            value: url.to_string(),
            expected: "a URL, in an image that has root certificates (ca-certificates)",
        })?;
        Ok(Self { url, client, cache: Mutex::default(), fetching: tokio::sync::Mutex::default() })
    }

    /// The key of this id. One fetch at a time; who needs it waits for it.
    ///
    /// # Errors
    /// [`Rejection::Invalid`] for an unknown id, [`Rejection::KeysUnavailable`]
    /// when the issuer does not answer.
    pub async fn key(&self, kid: &str) -> Result<Jwk, Rejection> {
        if let Some(found) = self.known(kid) {
            return found;
        }
        let _one = self.fetching.lock().await;
        // Somebody else may have fetched meanwhile.
        if let Some(found) = self.known(kid) {
            return found;
        }
        let fetched = self.fetch().await;
        let mut cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        cache.attempted = Some(Instant::now());
        let keys = fetched.map_err(|error| {
            tracing::error!(url = %self.url, ?error, "cannot fetch the JWKS");
            Rejection::KeysUnavailable
        })?;
        let found = keys.find(kid).cloned().ok_or(Rejection::Invalid);
        cache.keys = Some((keys, Instant::now()));
        found
    }

    /// What can be told without a fetch.
    fn known(&self, kid: &str) -> Option<Result<Jwk, Rejection>> {
        let cache = self.cache.lock().unwrap_or_else(PoisonError::into_inner);
        match cache.decide(kid, Instant::now()) {
            Decision::Use(key) => Some(Ok(*key)),
            Decision::Reject(rejection) => Some(Err(rejection)),
            Decision::Fetch => None,
        }
    }

    async fn fetch(&self) -> Result<JwkSet, FetchError> {
        let mut response = self.client.get(self.url.clone()).send().await?;
        if !response.status().is_success() {
            return Err(FetchError::Status(response.status().as_u16()));
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > MAX_BYTES {
                return Err(FetchError::TooLarge);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(serde_json::from_slice(&body)?)
    }
}

#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("the request failed")]
    Request(#[from] reqwest::Error),
    #[error("the answer has status {0}")]
    Status(u16),
    #[error("the answer is larger than {MAX_BYTES} bytes")]
    TooLarge,
    #[error("the answer is no JWKS")]
    Json(#[from] serde_json::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(age: Duration, attempted: Duration, now: Instant) -> Cache {
        let key = r#"{"keys":[{"kty":"RSA","kid":"known","n":"AQAB","e":"AQAB"}]}"#;
        let keys = serde_json::from_str(key).unwrap();
        Cache { keys: now.checked_sub(age).map(|at| (keys, at)), attempted: now.checked_sub(attempted) }
    }

    fn now() -> Instant {
        Instant::now() + Duration::from_hours(1)
    }

    #[test]
    fn a_fresh_known_key_is_used() {
        let now = now();
        let decision = cache(Duration::from_secs(1), Duration::from_secs(1), now).decide("known", now);
        assert!(matches!(decision, Decision::Use(_)));
    }

    #[test]
    fn an_unknown_id_is_looked_up_once_and_then_refused_for_a_while() {
        let now = now();
        let recent = cache(Duration::from_secs(30), Duration::from_secs(9), now);
        assert_eq!(recent.decide("other", now), Decision::Reject(Rejection::Invalid));
        let older = cache(Duration::from_secs(30), Duration::from_secs(10), now);
        assert_eq!(older.decide("other", now), Decision::Fetch);
    }

    #[test]
    fn stale_keys_are_never_used() {
        let now = now();
        let idle = cache(FRESH, Duration::from_mins(5), now);
        assert_eq!(idle.decide("known", now), Decision::Fetch);
        let failing = cache(FRESH, Duration::from_millis(500), now);
        assert_eq!(failing.decide("known", now), Decision::Reject(Rejection::KeysUnavailable));
    }

    #[tokio::test]
    async fn a_known_key_is_used_while_an_unknown_one_is_fetched() {
        // It is connected to and never answers.
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let jwks = Jwks::new(url).unwrap();
        let now = Instant::now();
        let keys = serde_json::from_str(r#"{"keys":[{"kty":"RSA","kid":"known","n":"AQAB","e":"AQAB"}]}"#);
        *jwks.cache.lock().unwrap() = Cache { keys: Some((keys.unwrap(), now)), attempted: None };
        let hanging = async {
            jwks.key("unknown").await.unwrap_err();
            panic!("the fetch has ended");
        };
        let known = async {
            let _connection = listener.accept().await.unwrap();
            jwks.key("known").await
        };
        let found = tokio::select! { biased; found = known => found, () = hanging => unreachable!() };
        assert!(found.is_ok());
    }
}
