//! The gRPC face.

use std::{fmt, sync::Arc};

use secrecy::{ExposeSecret, SecretString};
use tonic::{Request, Response, Status};

use crate::{
    accounts::{AccountError, Accounts},
    v1::{LoginRequest, LoginResponse, RegisterRequest, RegisterResponse, auth_service_server::AuthService},
};

pub(crate) struct Auth(pub(crate) Arc<Accounts>);

impl From<AccountError> for Status {
    fn from(error: AccountError) -> Self {
        let text = error.to_string();
        match error {
            AccountError::Rule(_) => Self::invalid_argument(text),
            AccountError::Taken => Self::already_exists(text),
            AccountError::Denied => Self::unauthenticated(text),
            AccountError::Unavailable => Self::unavailable(text),
            AccountError::Internal => Self::internal(text),
        }
    }
}

#[tonic::async_trait]
impl AuthService for Auth {
    async fn register(
        &self,
        request: Request<RegisterRequest>,
    ) -> Result<Response<RegisterResponse>, Status> {
        let RegisterRequest { username, password } = request.into_inner();
        let account = self.0.register(&username, SecretString::from(password)).await?;
        Ok(Response::new(RegisterResponse { user_id: account.id.to_string(), username: account.username }))
    }

    async fn login(&self, request: Request<LoginRequest>) -> Result<Response<LoginResponse>, Status> {
        let LoginRequest { username, password } = request.into_inner();
        let login = self.0.login(&username, SecretString::from(password)).await?;
        Ok(Response::new(LoginResponse {
            access_token: login.token.expose_secret().to_owned(),
            token_type: "Bearer".to_owned(),
            expires_in: login.expires_in.cast_signed(),
        }))
    }
}

impl fmt::Debug for RegisterRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegisterRequest").field("username", &self.username).finish_non_exhaustive()
    }
}

impl fmt::Debug for LoginRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginRequest").field("username", &self.username).finish_non_exhaustive()
    }
}

impl fmt::Debug for LoginResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginResponse").field("expires_in", &self.expires_in).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_hides_passwords_and_tokens() {
        let request = LoginRequest { username: "ada".into(), password: "hunter2".into() };
        assert_eq!(format!("{request:?}"), r#"LoginRequest { username: "ada", .. }"#);
        let response = LoginResponse { access_token: "hunter2".into(), ..LoginResponse::default() };
        assert!(!format!("{response:?}").contains("hunter2"));
    }
}
