//! What every reconcile may use.

use kube::Client;

use crate::{
    apply::Applier, auth::publications::Publications, backoff::Backoff, config::Config, edge::proofs::Proofs,
    events::Events, external::postgres::Servers, metrics::Metrics, stores::Stores,
};

/// Shared by all controllers of the process.
pub struct Context {
    /// Client of the API server.
    pub client: Client,
    /// Client of everything else that speaks HTTP.
    pub http: reqwest::Client,
    /// Settings.
    pub config: Config,
    /// Caches of all watched kinds.
    pub stores: Stores,
    /// Which rule sets are live.
    pub publications: Publications,
    /// What is proved of published routes.
    pub proofs: Proofs,
    /// Database servers: how many connections, when to try again.
    pub servers: Servers,
    /// Writer of children.
    pub applier: Applier,
    /// Writer of events.
    pub events: Events,
    /// Delay before the next try of each object that fails.
    pub backoff: Backoff,
    /// Metrics of the process.
    pub metrics: Metrics,
}
