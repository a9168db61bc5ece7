//! Clients of the systems that the operator configures.

pub mod http;
pub mod keto;
pub mod oathkeeper;
pub mod postgres;
