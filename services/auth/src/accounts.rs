//! Accounts: what HTTP and gRPC both do.

use std::sync::Arc;

use platform::database;
use secrecy::{ExposeSecret, SecretString};
use sqlx::PgPool;
use tokio::sync::Semaphore;
use uuid::Uuid;

use crate::{
    credentials::{self, Rule},
    keys::KeyError,
    tokens::Tokens,
};

/// A new account.
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) id: Uuid,
    pub(crate) username: String,
}

/// A new token.
pub(crate) struct Login {
    pub(crate) token: SecretString,
    pub(crate) expires_in: u64,
}

/// Why there is no account or token. The text is for the caller.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AccountError {
    #[error(transparent)]
    Rule(#[from] Rule),
    #[error("the username is taken")]
    Taken,
    /// One text for unknown name and wrong password.
    #[error("username or password is wrong")]
    Denied,
    #[error("accounts are not available now: try again later")]
    Unavailable,
    #[error("internal error")]
    Internal,
}

impl From<sqlx::Error> for AccountError {
    fn from(error: sqlx::Error) -> Self {
        tracing::error!(%error, "the database failed");
        if database::is_unavailable(&error) { Self::Unavailable } else { Self::Internal }
    }
}

impl From<KeyError> for AccountError {
    fn from(error: KeyError) -> Self {
        match error {
            KeyError::Database(error) => error.into(),
            KeyError::Key => {
                tracing::error!(%error, "no token can be signed");
                Self::Internal
            }
        }
    }
}

pub(crate) struct Accounts {
    pool: PgPool,
    pub(crate) tokens: Tokens,
    cost: u32,
    /// Hashing is slow by intent: it gets the processors there are and no
    /// more threads than that.
    hashing: Arc<Semaphore>,
}

impl Accounts {
    pub(crate) fn new(pool: PgPool, tokens: Tokens, cost: u32) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { pool, tokens, cost, hashing: Arc::new(Semaphore::new(processors)) }
    }

    pub(crate) async fn register(
        &self,
        username: &str,
        password: SecretString,
    ) -> Result<Account, AccountError> {
        let username = credentials::username(username)?;
        credentials::check_password(&username, &password)?;
        let cost = self.cost;
        let hash = self.hashed(move || bcrypt::non_truncating_hash(password.expose_secret(), cost)).await?;
        let id = Uuid::now_v7();
        let inserted = sqlx::query(
            "insert into users (id, username, password_hash) values ($1, $2, $3) on conflict (username) do nothing",
        )
        .bind(id)
        .bind(&username)
        .bind(hash)
        .execute(&self.pool)
        .await?;
        if inserted.rows_affected() == 0 { Err(AccountError::Taken) } else { Ok(Account { id, username }) }
    }

    pub(crate) async fn login(&self, username: &str, password: SecretString) -> Result<Login, AccountError> {
        let username = credentials::username(username).map_err(|_| AccountError::Denied)?;
        let query = sqlx::query_scalar("select password_hash from users where username = $1").bind(&username);
        let stored: Option<String> = query.fetch_optional(&self.pool).await?;
        let cost = self.cost;
        let matches = self
            .hashed(move || match stored {
                Some(hash) => bcrypt::verify(password.expose_secret(), &hash),
                // As much work for an unknown name: time must not tell.
                None => bcrypt::hash(password.expose_secret(), cost).map(|_| false),
            })
            .await?;
        if !matches {
            return Err(AccountError::Denied);
        }
        let token = self.tokens.issue(&username).await?;
        Ok(Login { token, expires_in: self.tokens.ttl.as_secs() })
    }

    async fn hashed<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> bcrypt::BcryptResult<T> + Send + 'static,
    ) -> Result<T, AccountError> {
        // Never closed.
        let permit = self.hashing.clone().acquire_owned().await.map_err(|_| AccountError::Internal)?;
        let result = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        match result.await {
            Ok(Ok(value)) => Ok(value),
            _ => {
                tracing::error!("a password cannot be hashed");
                Err(AccountError::Internal)
            }
        }
    }
}
