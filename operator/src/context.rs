//! What every reconcile may use.

use kube::Client;
use tokio_util::task::TaskTracker;

use crate::{
    apply::Applier,
    auth::publications::Publications,
    backoff::Backoff,
    client,
    config::Config,
    edge::proofs::Proofs,
    events::Events,
    external::{http, postgres::Servers},
    fence::Fence,
    metrics::Metrics,
    reconcile::unseen::Unseen,
    stores::Stores,
};

/// Shared by all controllers of the process.
pub struct Context {
    /// Client of the API server; writes only while `fence` is open.
    pub client: Client,
    /// Open while this replica leads.
    pub fence: Fence,
    /// The passes that run. When it is closed no other begins.
    pub passes: TaskTracker,
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
    /// Statuses that the caches do not show yet.
    pub unseen: Unseen,
    /// Metrics of the process.
    pub metrics: Metrics,
}

impl Context {
    /// The context of a process that writes while `fence` is open; starts all watches.
    ///
    /// # Errors
    /// When TLS for calls to other systems cannot be set up.
    pub fn new(client: Client, config: Config, fence: Fence) -> anyhow::Result<Self> {
        let client = client::fenced(client, fence.clone());
        let events = Events::new(client.clone(), &config.identity);
        Ok(Self {
            stores: Stores::start(&client, &config.namespace),
            http: http::client()?,
            publications: Publications::default(),
            proofs: Proofs::default(),
            servers: Servers::behind(fence.clone()),
            applier: Applier::new(client.clone()).telling(events.clone()),
            events,
            backoff: Backoff::default(),
            unseen: Unseen::default(),
            metrics: Metrics::default(),
            passes: TaskTracker::new(),
            config,
            fence,
            client,
        })
    }
}
