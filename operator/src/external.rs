//! Clients of the systems around the cluster.

pub mod http;
pub mod keto;
pub mod oathkeeper;
pub mod postgres;
pub mod probe;
pub mod traefik;
