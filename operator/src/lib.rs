//! The Peristyle operator.
//!
//! Every object takes the same way: observe → validate → build → apply →
//! status. `validate` and `build` are pure and serve `peristyle render`, the
//! tests and the operator alike.

pub mod admin;
pub mod apply;
pub mod auth;
pub mod backoff;
pub mod cli;
pub mod client;
pub mod commands;
pub mod conditions;
pub mod config;
pub mod context;
pub mod controllers;
pub mod credentials;
pub mod edge;
pub mod events;
pub mod external;
pub mod fence;
pub mod leader;
pub mod metadata;
pub mod metrics;
pub mod names;
pub mod reconcile;
pub mod retry;
pub mod run;
pub mod sql;
pub mod stores;
pub mod telemetry;
pub mod watch;
