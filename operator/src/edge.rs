//! Hosts, routes and the edges that serve them.

pub mod claims;
pub mod patience;
pub mod proofs;
pub mod route;
pub mod standing;
pub mod traefik;
pub mod wanted;
