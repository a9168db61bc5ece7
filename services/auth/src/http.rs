//! The HTTP face: JSON in, JSON out.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{DefaultBodyLimit, State, rejection::JsonRejection},
    http::{HeaderMap, StatusCode, header::CACHE_CONTROL},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use platform::jwt::{Rejection, bearer};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;
use serde_json::json;

use crate::accounts::{AccountError, Accounts};

/// Names of the routes in metrics.
pub(crate) const NAMES: &[&str] =
    &["POST /auth/register", "POST /auth/login", "GET /verify", "GET /.well-known/jwks.json"];
/// Nobody has a token of the gate here: `/verify` is asked about one of ours.
pub(crate) const PATHS: &[&str] = &["/auth/register", "/auth/login", "/verify", "/.well-known/jwks.json"];

const MAX_BODY: usize = 4 * 1024;

/// No Debug: it holds a password.
#[derive(Deserialize)]
struct Credentials {
    username: String,
    password: String,
}

type Body = Result<Json<Credentials>, JsonRejection>;

pub(crate) fn routes(accounts: Arc<Accounts>) -> Router {
    Router::new()
        .route("/auth/register", post(register))
        .route("/auth/login", post(login))
        .route("/verify", get(verify))
        .route("/.well-known/jwks.json", get(jwks))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(accounts)
}

impl IntoResponse for AccountError {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Rule(_) => StatusCode::BAD_REQUEST,
            Self::Taken => StatusCode::CONFLICT,
            Self::Denied => StatusCode::UNAUTHORIZED,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        };
        error(status, &self.to_string())
    }
}

fn error(status: StatusCode, message: &str) -> Response {
    (status, Json(json!({"error": message}))).into_response()
}

fn malformed() -> Response {
    // What serde says may repeat the input.
    error(StatusCode::BAD_REQUEST, "send a JSON object with the strings username and password")
}

async fn register(State(accounts): State<Arc<Accounts>>, body: Body) -> Response {
    let Ok(Json(Credentials { username, password })) = body else {
        return malformed();
    };
    match accounts.register(&username, SecretString::from(password)).await {
        Ok(account) => {
            let body = json!({"user_id": account.id, "username": account.username});
            (StatusCode::CREATED, Json(body)).into_response()
        }
        Err(error) => error.into_response(),
    }
}

async fn login(State(accounts): State<Arc<Accounts>>, body: Body) -> Response {
    let Ok(Json(Credentials { username, password })) = body else {
        return malformed();
    };
    match accounts.login(&username, SecretString::from(password)).await {
        Ok(login) => {
            let body = json!({
                "access_token": login.token.expose_secret(),
                "token_type": "Bearer",
                "expires_in": login.expires_in,
            });
            ([(CACHE_CONTROL, "no-store")], Json(body)).into_response()
        }
        Err(error) => error.into_response(),
    }
}

/// For edges that ask instead of verifying: 200 and `X-User-Id`, or 401.
async fn verify(State(accounts): State<Arc<Accounts>>, headers: HeaderMap) -> Response {
    let subject = match bearer(&headers) {
        Ok(token) => accounts.tokens.verify(token).await,
        Err(rejection) => Err(rejection),
    };
    match subject {
        Ok(subject) => [("x-user-id", subject)].into_response(),
        Err(Rejection::KeysUnavailable) => AccountError::Unavailable.into_response(),
        Err(rejection) => error(StatusCode::UNAUTHORIZED, &rejection.to_string()),
    }
}

async fn jwks(State(accounts): State<Arc<Accounts>>) -> Response {
    match accounts.tokens.keys.ring().await {
        Ok(ring) => ([(CACHE_CONTROL, "public, max-age=60")], Json(&ring.public)).into_response(),
        Err(error) => AccountError::from(error).into_response(),
    }
}
