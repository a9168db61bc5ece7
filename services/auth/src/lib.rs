//! Accounts and access tokens, over HTTP and gRPC.
//!
//! A token's `sub` is the account's name in lower case. Names are unique,
//! never change and are never given to somebody else, so that a relation
//! tuple can say `alice` and mean her.
//!
//! Signing keys live in the database, not in a process: every replica signs
//! with the same key and publishes the same set. The private key is stored in
//! the clear there; whoever reads the table `signing_keys` can sign tokens.

mod accounts;
mod credentials;
mod grpc;
mod http;
mod keys;
mod tokens;

use std::{sync::Arc, time::Duration};

use platform::{ConfigError, Database, Env, Module, jwt::Policy, module::Http};
use sqlx::migrate::Migrator;
use tonic::service::Routes;

use crate::{accounts::Accounts, keys::KeyStore, tokens::Tokens};

/// The contract.
#[allow(clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("auth.v1");
}

/// The schema.
pub static MIGRATOR: Migrator = sqlx::migrate!();

const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
const MIN_COST: u32 = 10;
const MAX_COST: u32 = 16;

/// Builds the module. `JWT_ISSUER` and `JWT_AUDIENCE` (a list) are written
/// into tokens, which live for `JWT_TTL` (15m); `BCRYPT_COST` is 12, at least
/// 10 and at most 16.
///
/// # Errors
/// When a variable is missing or wrong.
pub fn module(env: &Env) -> Result<Module, ConfigError> {
    let database = Database::from_env(env, "auth", &MIGRATOR)?;
    let issuer = env.required("JWT_ISSUER", "the URL of this service, such as http://auth:8080")?.to_owned();
    env.required("JWT_AUDIENCE", "the audience of the tokens, or a list of them")?;
    let policy = Policy { issuer, audiences: env.list("JWT_AUDIENCE") };
    let expected = "a number from 10 to 16";
    let cost = env.or("BCRYPT_COST", 12, expected)?;
    if !(MIN_COST..=MAX_COST).contains(&cost) {
        return Err(ConfigError::Invalid { name: "BCRYPT_COST".into(), value: cost.to_string(), expected });
    }
    let tokens = Tokens {
        keys: KeyStore::new(database.pool.clone()),
        policy,
        ttl: env.duration("JWT_TTL", Duration::from_mins(15))?,
    };
    let accounts = Arc::new(Accounts::new(database.pool.clone(), tokens, cost));
    Ok(Module {
        name: "auth",
        grpc: Routes::new(v1::auth_service_server::AuthServiceServer::new(grpc::Auth(accounts.clone()))),
        descriptors: DESCRIPTORS,
        public: &["auth.v1.AuthService"],
        http: Some(Http { routes: http::routes(accounts), names: http::NAMES, public: http::PATHS }),
        database,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_weak_hash_is_no_option() {
        let env = |cost: &'static str| {
            Env::from_iter([
                ("DATABASE_URL", "postgres://a@b/c"),
                ("JWT_ISSUER", "http://auth"),
                ("JWT_AUDIENCE", "demo"),
                ("BCRYPT_COST", cost),
            ])
        };
        let error = module(&env("9")).err().unwrap();
        assert_eq!(error.to_string(), r#"BCRYPT_COST="9" is not valid: set it to a number from 10 to 16"#);
        assert!(module(&env("10")).is_ok());
    }
}
