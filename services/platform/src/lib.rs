//! The chassis of the reference services: everything a gRPC service needs
//! around its own code.
//!
//! A service builds a [`Module`] from its environment; [`App`] puts one or
//! more modules on their ports with logs, metrics, traces, health, deadlines,
//! limits, token verification and a graceful end. No service writes any of
//! that itself.

pub mod access_log;
pub mod app;
pub mod config;
pub mod database;
pub mod deadline;
pub mod health;
pub mod jwt;
pub mod metrics;
pub mod module;
pub mod observe;
pub mod server;
pub mod telemetry;
#[cfg(feature = "testing")]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
pub mod testing;
pub mod trace_context;
pub mod upstream;

pub use app::App;
pub use config::{ConfigError, Env};
pub use database::Database;
pub use module::Module;
