//! Greets people, stores every greeting, and asks caller for one external
//! answer that it can do without.

mod greeting;
mod service;

use std::sync::Arc;

use platform::{
    ConfigError, Database, Env, Module,
    upstream::{self, Upstream},
};
use sqlx::migrate::Migrator;
use tonic::service::Routes;

use crate::service::Greeter;

/// Version 1 of the contract.
#[allow(clippy::all, clippy::pedantic)]
pub mod v1 {
    tonic::include_proto!("greeter.v1");
}

/// Version 2 of the contract, served beside version 1.
#[allow(clippy::all, clippy::pedantic)]
pub mod v2 {
    tonic::include_proto!("greeter.v2");
}

/// The schema.
pub static MIGRATOR: Migrator = sqlx::migrate!();

const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

/// Builds the module. `GREETER_EXTERNAL_URL` is what caller is asked to
/// fetch; unset, no external call is made. caller is at `CALLER_URL`, or in
/// this process when `in_process` is given and the variable is unset.
///
/// # Errors
/// When a variable is missing or wrong; `CALLER_URL` is required as soon as
/// there is a URL to fetch.
pub fn module(env: &Env, in_process: Option<Upstream>) -> Result<Module, ConfigError> {
    let database = Database::from_env(env, "greeter", &MIGRATOR)?;
    let external = match env.get("GREETER_EXTERNAL_URL") {
        None => None,
        Some(url) => {
            let caller = match (env.get("CALLER_URL"), in_process) {
                (None, Some(caller)) => caller,
                _ => upstream::remote("CALLER_URL", env.required("CALLER_URL", "the URL of caller")?)?,
            };
            Some(service::External { url: url.to_owned(), caller })
        }
    };
    let greeter = Arc::new(Greeter::new(database.pool.clone(), external));
    Ok(Module {
        name: "greeter",
        grpc: Routes::new(v1::greeter_service_server::GreeterServiceServer::from_arc(greeter.clone()))
            .add_service(v2::greeter_service_server::GreeterServiceServer::from_arc(greeter)),
        descriptors: DESCRIPTORS,
        public: &[],
        http: None,
        database,
    })
}
