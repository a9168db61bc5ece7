//! What users see of the example on the full sandbox: real nodes, charts,
//! images, gateway and databases.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

mod calls;
mod closed;
mod converge;
mod embedded;
mod existing;
mod pods;
mod quiet;
mod secrets;
