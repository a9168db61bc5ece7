//! The services as a client sees them, on a real PostgreSQL.

#![allow(clippy::unwrap_used, clippy::panic)]

mod accounts;
mod fixture;
mod greeting;
mod life;
mod schema;
mod tokens;
