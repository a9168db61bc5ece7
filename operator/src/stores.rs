//! The caches of all watched kinds.

use std::time::Duration;

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    batch::v1::Job,
    core::v1::{ConfigMap, Namespace, Pod, Secret, Service as CoreService, ServiceAccount},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{Api, Client, core::PartialObjectMeta, runtime::watcher};
use peristyle_crds::{
    names::{EDGE_LABEL, MANAGED_BY, MANAGED_BY_LABEL},
    v1alpha1::{AuthClass, AuthPolicy, Database, DatabaseClass, EdgeClass, Service},
};

use crate::{
    edge::traefik::objects::{IngressRoute, Middleware, ServersTransport},
    watch::Watched,
};

/// How long a start waits for kinds that may not be installed.
const OPTIONAL: Duration = Duration::from_secs(5);

/// One cache per kind. Children are selected by our label, so that the
/// operator holds nothing of others; of Secrets and ConfigMaps it holds
/// metadata only.
pub struct Stores {
    /// `services.peristyle.dev`.
    pub services: Watched<Service>,
    /// Databases.
    pub databases: Watched<Database>,
    /// Authorization policies.
    pub auth_policies: Watched<AuthPolicy>,
    /// Edge classes.
    pub edge_classes: Watched<EdgeClass>,
    /// Authorization classes.
    pub auth_classes: Watched<AuthClass>,
    /// Database classes.
    pub database_classes: Watched<DatabaseClass>,
    /// Namespaces, for their labels.
    pub namespaces: Watched<PartialObjectMeta<Namespace>>,
    /// Our Deployments.
    pub deployments: Watched<Deployment>,
    /// Our StatefulSets (embedded database servers).
    pub stateful_sets: Watched<StatefulSet>,
    /// Our core Services.
    pub core_services: Watched<CoreService>,
    /// Our ServiceAccounts.
    pub service_accounts: Watched<ServiceAccount>,
    /// Our hook Jobs.
    pub jobs: Watched<Job>,
    /// Our NetworkPolicies.
    pub network_policies: Watched<NetworkPolicy>,
    /// Our PodDisruptionBudgets.
    pub disruption_budgets: Watched<PodDisruptionBudget>,
    /// Our pods, for what keeps them from running.
    pub pods: Watched<Pod>,
    /// All Secrets, metadata only: references of workloads, credentials of ours.
    pub secrets: Watched<PartialObjectMeta<Secret>>,
    /// All ConfigMaps, metadata only.
    pub config_maps: Watched<PartialObjectMeta<ConfigMap>>,
    /// EndpointSlices that the operator keeps for the edge's error backend.
    pub endpoint_slices: Watched<EndpointSlice>,
    /// EndpointSlices in the operator's namespace: pods of Oathkeeper and of the error backend.
    pub system_endpoint_slices: Watched<EndpointSlice>,
    /// Our routes at Traefik.
    pub ingress_routes: Watched<IngressRoute>,
    /// Our middlewares at Traefik.
    pub middlewares: Watched<Middleware>,
    /// Our transports at Traefik.
    pub servers_transports: Watched<ServersTransport>,
}

impl Stores {
    /// Starts all watches.
    #[must_use]
    pub fn start(client: &Client, namespace: &str) -> Self {
        let all = watcher::Config::default;
        let ours = || all().labels(&format!("{MANAGED_BY_LABEL}={MANAGED_BY}"));
        let at_the_edge = || all().labels(EDGE_LABEL);
        let c = || client.clone();
        Self {
            services: Watched::start(Api::all(c()), all()),
            databases: Watched::start(Api::all(c()), all()),
            auth_policies: Watched::start(Api::all(c()), all()),
            edge_classes: Watched::start(Api::all(c()), all()),
            auth_classes: Watched::start(Api::all(c()), all()),
            database_classes: Watched::start(Api::all(c()), all()),
            namespaces: Watched::start(Api::all(c()), all()),
            deployments: Watched::start(Api::all(c()), ours()),
            stateful_sets: Watched::start(Api::all(c()), ours()),
            core_services: Watched::start(Api::all(c()), ours()),
            service_accounts: Watched::start(Api::all(c()), ours()),
            jobs: Watched::start(Api::all(c()), ours()),
            network_policies: Watched::start(Api::all(c()), ours()),
            disruption_budgets: Watched::start(Api::all(c()), ours()),
            pods: Watched::start(Api::all(c()), ours()),
            secrets: Watched::start(Api::all(c()), all()),
            config_maps: Watched::start(Api::all(c()), all()),
            endpoint_slices: Watched::start(Api::all(c()), ours()),
            system_endpoint_slices: Watched::start(Api::namespaced(c(), namespace), all()),
            ingress_routes: Watched::start(Api::all(c()), at_the_edge()),
            middlewares: Watched::start(Api::all(c()), at_the_edge()),
            servers_transports: Watched::start(Api::all(c()), at_the_edge()),
        }
    }

    /// Waits until every cache holds its first list; for kinds that may not
    /// be installed only a few seconds.
    pub async fn ready(&self) {
        tokio::join!(
            self.services.ready(),
            self.databases.ready(),
            self.auth_policies.ready(),
            self.edge_classes.ready(),
            self.auth_classes.ready(),
            self.database_classes.ready(),
            self.namespaces.ready(),
            self.deployments.ready(),
            self.stateful_sets.ready(),
            self.core_services.ready(),
            self.service_accounts.ready(),
            self.jobs.ready(),
            self.network_policies.ready(),
            self.disruption_budgets.ready(),
            self.pods.ready(),
            self.secrets.ready(),
            self.config_maps.ready(),
            self.endpoint_slices.ready(),
            self.system_endpoint_slices.ready(),
            self.traefik_is_ready_within(OPTIONAL),
        );
    }

    /// Whether the caches of Traefik's kinds hold their first list within
    /// `wait`. They do not as long as its CustomResourceDefinitions are missing.
    pub async fn traefik_is_ready_within(&self, wait: Duration) -> bool {
        let (routes, middlewares, transports) = tokio::join!(
            self.ingress_routes.is_ready_within(wait),
            self.middlewares.is_ready_within(wait),
            self.servers_transports.is_ready_within(wait),
        );
        routes && middlewares && transports
    }
}
