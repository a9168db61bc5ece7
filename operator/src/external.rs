//! Clients of the systems that the operator configures.

pub mod postgres;
