//! Fetches URLs for services that must not reach the outside themselves.

mod fetch;
mod service;
mod target;

use platform::{ConfigError, Database, Env, Module};
use sqlx::migrate::Migrator;
use tonic::service::Routes;

use crate::{fetch::Fetcher, service::Caller, target::AllowList};

/// The contract.
#[allow(clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("caller.v1");
}

/// The schema.
pub static MIGRATOR: Migrator = sqlx::migrate!();

const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Builds the module. `CALLER_ALLOWED_HOSTS` lists the hosts on the internet
/// that may be called, `CALLER_ALLOWED_INTERNAL_HOSTS` those that may resolve
/// to internal addresses; both are empty by default, and nothing can be
/// called. Items are `host` (ports 80 and 443) or `host:port`.
///
/// # Errors
/// When a variable is missing or wrong.
pub fn module(env: &Env) -> Result<Module, ConfigError> {
    let database = Database::from_env(env, "caller", &MIGRATOR)?;
    let fetcher = Fetcher::new(AllowList::from_env(env)?).map_err(|_| ConfigError::Invalid {
        name: "CALLER_ALLOWED_HOSTS".into(),
        value: env.get("CALLER_ALLOWED_HOSTS").unwrap_or_default().into(),
        expected: "hosts, in an image that has root certificates (ca-certificates)",
    })?;
    let caller = Caller::new(database.pool.clone(), fetcher);
    Ok(Module {
        name: "caller",
        grpc: Routes::new(v1::caller_service_server::CallerServiceServer::new(caller)),
        descriptors: DESCRIPTORS,
        public: &[],
        http: None,
        database,
    })
}
