//! Commands besides the operator itself.

pub mod agent;
