//! What the platform team sets for the operator, by flag or environment.

use std::net::SocketAddr;

use clap::Args;

/// Settings of `peristyle run`; the chart sets each of them.
#[derive(Args, Clone, Debug)]
pub struct Config {
    /// Namespace of the operator: its Lease, administrators' Secrets, embedded servers.
    #[arg(long, env = "PERISTYLE_NAMESPACE", default_value = "peristyle-system")]
    pub namespace: String,

    /// Pods of a Service that does not say how many.
    #[arg(long, env = "PERISTYLE_DEFAULT_REPLICAS", default_value_t = 2, value_parser = clap::value_parser!(i32).range(0..=1000))]
    pub default_replicas: i32,

    /// Core Service in the operator's namespace that answers denied gRPC calls (`peristyle edge-errors`).
    #[arg(long, env = "PERISTYLE_EDGE_ERRORS_SERVICE", default_value = "edge-errors")]
    pub edge_errors_service: String,

    /// Address of probes and metrics: `/livez`, `/readyz`, `/metrics`.
    #[arg(long, env = "PERISTYLE_ADMIN_ADDRESS", default_value = "0.0.0.0:8080")]
    pub admin_address: SocketAddr,

    /// Who holds the Lease; the pod's name.
    #[arg(long, env = "POD_NAME", default_value = "peristyle")]
    pub identity: String,

    /// Log filter, as of the crate `tracing-subscriber`.
    #[arg(long, env = "PERISTYLE_LOG", default_value = "info")]
    pub log: String,
}
