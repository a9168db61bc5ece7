//! Verifies the token that the gate signed: a request that goes around the gate
//! is refused, whatever else it carries. Tokens of clients end at the gate.

pub mod jwks;

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::{IntoResponse, Response},
};
use http::{
    HeaderMap, StatusCode,
    header::{AUTHORIZATION, WWW_AUTHENTICATE},
};
use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    jwk::{AlgorithmParameters, Jwk},
};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use tonic::Status;

use self::jwks::Jwks;
use crate::{
    config::{ConfigError, Env},
    observe::Subject,
};

const JWKS_URL: &str = "ID_TOKEN_JWKS_URL";
const ISSUER: &str = "ID_TOKEN_ISSUER";
const AUDIENCE: &str = "ID_TOKEN_AUDIENCE";
/// Seconds that clocks may differ.
const LEEWAY: u64 = 5;

/// Why a token is refused. The caller learns no more than this.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    #[error("a bearer token is required")]
    Missing,
    #[error("more than one authorization header")]
    Ambiguous,
    #[error("the token is not valid")]
    Invalid,
    #[error("the token cannot be verified now")]
    KeysUnavailable,
}

impl From<Rejection> for Status {
    fn from(rejection: Rejection) -> Self {
        match rejection {
            Rejection::KeysUnavailable => Self::unavailable(rejection.to_string()),
            _ => Self::unauthenticated(rejection.to_string()),
        }
    }
}

impl IntoResponse for Rejection {
    fn into_response(self) -> Response {
        let text = self.to_string();
        match self {
            Self::KeysUnavailable => (StatusCode::SERVICE_UNAVAILABLE, text).into_response(),
            _ => (StatusCode::UNAUTHORIZED, [(WWW_AUTHENTICATE, "Bearer")], text).into_response(),
        }
    }
}

/// A token that was verified; an extension of the request.
#[derive(Clone, Debug)]
pub struct VerifiedToken {
    /// The token's `sub`.
    pub subject: String,
    /// The token itself, for calls made on the caller's behalf.
    pub token: SecretString,
}

/// The one bearer token of a request.
///
/// # Errors
/// [`Rejection::Missing`] without one, [`Rejection::Ambiguous`] with several
/// `Authorization` headers: proxies and servers disagree on which one counts.
pub fn bearer(headers: &HeaderMap) -> Result<&str, Rejection> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let value = values.next().ok_or(Rejection::Missing)?;
    if values.next().is_some() {
        return Err(Rejection::Ambiguous);
    }
    let (scheme, token) =
        value.to_str().ok().and_then(|value| value.split_once(' ')).ok_or(Rejection::Missing)?;
    if scheme.eq_ignore_ascii_case("bearer") { Ok(token.trim()) } else { Err(Rejection::Missing) }
}

/// Which tokens are accepted.
#[derive(Clone, Debug)]
pub struct Policy {
    /// The only accepted `iss`.
    pub issuer: String,
    /// One of these must be in `aud`.
    pub audiences: Vec<String>,
}

#[derive(Deserialize)]
struct Claims {
    sub: String,
}

impl Policy {
    /// Checks signature, `iss`, `aud`, `exp` and `nbf`, and that `exp` and
    /// `sub` are there at all. Returns the subject.
    ///
    /// # Errors
    /// [`Rejection::Invalid`], whatever the fault.
    pub fn verify(&self, token: &str, key: &Jwk) -> Result<String, Rejection> {
        // The key decides the algorithm, never the token.
        let algorithm = match &key.algorithm {
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(_) => Algorithm::ES256,
            AlgorithmParameters::OctetKeyPair(_) => Algorithm::EdDSA,
            _ => return Err(Rejection::Invalid),
        };
        let mut validation = Validation::new(algorithm);
        validation.set_issuer(&[&self.issuer]);
        validation.set_audience(&self.audiences);
        validation.set_required_spec_claims(&["exp", "sub", "iss", "aud"]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY;
        let key = DecodingKey::from_jwk(key).map_err(|_| Rejection::Invalid)?;
        let claims = decode::<Claims>(token, &key, &validation).map_err(|_| Rejection::Invalid)?.claims;
        if claims.sub.is_empty() { Err(Rejection::Invalid) } else { Ok(claims.sub) }
    }
}

/// The key that a token names.
///
/// # Errors
/// [`Rejection::Invalid`] when it is no token or names none.
pub fn key_id(token: &str) -> Result<String, Rejection> {
    decode_header(token).ok().and_then(|header| header.kid).ok_or(Rejection::Invalid)
}

/// Verifies tokens with keys from a JWKS endpoint.
pub struct Verifier {
    policy: Policy,
    jwks: Jwks,
    public_services: Vec<String>,
    public_paths: Vec<&'static str>,
}

impl Verifier {
    /// Reads `ID_TOKEN_JWKS_URL`, `ID_TOKEN_ISSUER` and `ID_TOKEN_AUDIENCE`
    /// (a list), which Peristyle sets where a gate signs. `None` when all are
    /// unset.
    ///
    /// # Errors
    /// When only some of the three are set: half a token check is none.
    pub fn from_env(env: &Env) -> Result<Option<Self>, ConfigError> {
        let incomplete = |name, other, remedy| Err(ConfigError::Incomplete { name, other, remedy });
        let Some(url) = env.parse(JWKS_URL, "the URL of a JWKS")? else {
            return match [ISSUER, AUDIENCE].into_iter().find(|name| env.get(name).is_some()) {
                Some(name) => incomplete(name, JWKS_URL, "set both, or neither to leave tokens to the edge"),
                None => Ok(None),
            };
        };
        let audiences = env.list(AUDIENCE);
        let Some(issuer) = env.get(ISSUER) else {
            return incomplete(JWKS_URL, ISSUER, "set it to the `iss` of the tokens");
        };
        if audiences.is_empty() {
            return incomplete(JWKS_URL, AUDIENCE, "set it to the `aud` of the tokens");
        }
        let policy = Policy { issuer: issuer.to_owned(), audiences };
        Ok(Some(Self {
            policy,
            jwks: Jwks::new(url)?,
            public_services: Vec::new(),
            public_paths: Vec::new(),
        }))
    }

    /// Lets these gRPC services be called without a token, beside health and
    /// reflection, and these paths over HTTP, exactly as they are written.
    #[must_use]
    pub fn with_public(
        mut self,
        services: impl IntoIterator<Item = &'static str>,
        paths: impl IntoIterator<Item = &'static str>,
    ) -> Self {
        let services =
            services.into_iter().chain(["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"]);
        self.public_services.extend(services.map(|service| format!("/{service}/")));
        self.public_paths.extend(paths);
        self
    }

    async fn verify(&self, headers: &HeaderMap) -> Result<VerifiedToken, Rejection> {
        let token = bearer(headers)?;
        let key = self.jwks.key(&key_id(token)?).await?;
        let subject = self.policy.verify(token, &key)?;
        Ok(VerifiedToken { subject, token: SecretString::from(token) })
    }

    /// The request, with the caller that its token names.
    async fn admit(&self, mut request: Request) -> Result<Request, Rejection> {
        let token = self.verify(request.headers()).await?;
        if let Some(subject) = request.extensions().get::<Subject>() {
            subject.set(&token.subject);
        }
        request.extensions_mut().insert(token);
        Ok(request)
    }
}

/// Refuses gRPC calls without a valid token.
pub(crate) async fn require(State(verifier): State<Arc<Verifier>>, request: Request, next: Next) -> Response {
    let path = request.uri().path();
    if verifier.public_services.iter().any(|open| path.starts_with(open)) {
        return next.run(request).await;
    }
    match verifier.admit(request).await {
        Ok(request) => next.run(request).await,
        Err(rejection) => Status::from(rejection).into_http(),
    }
}

/// Refuses requests over HTTP without a valid token.
pub(crate) async fn require_over_http(
    State(verifier): State<Arc<Verifier>>,
    request: Request,
    next: Next,
) -> Response {
    if verifier.public_paths.contains(&request.uri().path()) {
        return next.run(request).await;
    }
    match verifier.admit(request).await {
        Ok(request) => next.run(request).await,
        Err(rejection) => rejection.into_response(),
    }
}

/// The `Authorization` value that repeats a verified token.
pub(crate) fn authorization(token: &VerifiedToken) -> Option<tonic::metadata::AsciiMetadataValue> {
    let mut value: tonic::metadata::AsciiMetadataValue =
        format!("Bearer {}", token.token.expose_secret()).parse().ok()?;
    value.set_sensitive(true);
    Some(value)
}

#[cfg(test)]
mod tests;
