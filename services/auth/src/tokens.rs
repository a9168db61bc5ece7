//! Access tokens.

use std::time::Duration;

use jsonwebtoken::{Algorithm, Header, encode, get_current_timestamp};
use platform::jwt::{Policy, Rejection, key_id};
use secrecy::SecretString;
use serde::Serialize;
use uuid::Uuid;

use crate::keys::{KeyError, KeyStore};

/// Issues tokens and verifies its own.
pub(crate) struct Tokens {
    pub(crate) keys: KeyStore,
    /// `iss` and `aud` of the tokens.
    pub(crate) policy: Policy,
    pub(crate) ttl: Duration,
}

#[derive(Serialize)]
struct Claims<'a> {
    iss: &'a str,
    aud: &'a [String],
    sub: &'a str,
    iat: u64,
    exp: u64,
    jti: Uuid,
}

impl Tokens {
    pub(crate) async fn issue(&self, subject: &str) -> Result<SecretString, KeyError> {
        let ring = self.keys.ring().await?;
        let now = get_current_timestamp();
        let claims = Claims {
            iss: &self.policy.issuer,
            aud: &self.policy.audiences,
            sub: subject,
            iat: now,
            exp: now + self.ttl.as_secs().max(1),
            jti: Uuid::new_v4(),
        };
        let header = Header { kid: Some(ring.kid.clone()), ..Header::new(Algorithm::RS256) };
        encode(&header, &claims, &ring.signing).map(SecretString::from).map_err(|_| KeyError::Key)
    }

    /// The subject of a token that was issued here.
    pub(crate) async fn verify(&self, token: &str) -> Result<String, Rejection> {
        let kid = key_id(token)?;
        let ring = self.keys.ring().await.map_err(|error| {
            tracing::error!(%error, "a token cannot be verified");
            Rejection::KeysUnavailable
        })?;
        self.policy.verify(token, ring.public.find(&kid).ok_or(Rejection::Invalid)?)
    }
}
