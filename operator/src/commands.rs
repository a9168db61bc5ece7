//! The commands besides `run`, one module each.

pub mod agent;
pub mod edge_errors;
pub mod render;
