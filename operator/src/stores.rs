//! The caches of all watched kinds.

pub mod views;

use std::time::Duration;

use k8s_openapi::api::{
    core::v1::{ConfigMap, Namespace, Secret, Service as CoreService, ServiceAccount},
    discovery::v1::EndpointSlice,
    networking::v1::NetworkPolicy,
    policy::v1::PodDisruptionBudget,
};
use kube::{Api, Client, core::PartialObjectMeta, runtime::watcher};
use peristyle_crds::{
    names::{DATABASE_CLASS_LABEL, DATABASE_LABEL, EDGE_LABEL, MANAGED_BY, MANAGED_BY_LABEL, SERVICE_LABEL},
    v1alpha1::{AuthClass, AuthPolicy, Database, DatabaseClass, EdgeClass, Service},
};

use self::views::{Deployment, Job, Pod, StatefulSet};
use crate::{
    controllers::service::{named, observe::SLICE_SERVICE_LABEL},
    edge::traefik::objects::{IngressRoute, Middleware, ServersTransport},
    watch::{
        Watched, Watches,
        health::Health,
        index::{controller, labels, nothing},
    },
};

/// How long a start waits for kinds that may not be installed.
const OPTIONAL: Duration = Duration::from_secs(5);

/// One cache per kind. Children are selected by our label, so that the
/// operator holds nothing of others. Of what nobody here reads the content of
/// it holds the metadata, which tell whether a child is as it was applied.
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
    pub core_services: Watched<PartialObjectMeta<CoreService>>,
    /// Our ServiceAccounts.
    pub service_accounts: Watched<PartialObjectMeta<ServiceAccount>>,
    /// Our hook Jobs.
    pub jobs: Watched<Job>,
    /// Our NetworkPolicies.
    pub network_policies: Watched<PartialObjectMeta<NetworkPolicy>>,
    /// Our PodDisruptionBudgets.
    pub disruption_budgets: Watched<PartialObjectMeta<PodDisruptionBudget>>,
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
    pub servers_transports: Watched<PartialObjectMeta<ServersTransport>>,
    watches: Watches,
}

impl Stores {
    /// Starts all watches.
    #[must_use]
    pub fn start(client: &Client, namespace: &str) -> Self {
        let all = watcher::Config::default;
        let ours = || all().labels(&format!("{MANAGED_BY_LABEL}={MANAGED_BY}"));
        let at_the_edge = || all().labels(EDGE_LABEL);
        let mut watches = Watches::new(client.clone());
        Self {
            services: watches.guarded(Api::all, all(), named::keys),
            databases: watches.guarded(Api::all, all(), nothing),
            auth_policies: watches.guarded(Api::all, all(), nothing),
            edge_classes: watches.guarded(Api::all, all(), nothing),
            auth_classes: watches.guarded(Api::all, all(), nothing),
            database_classes: watches.guarded(Api::all, all(), nothing),
            namespaces: watches.start(Api::all, all(), nothing),
            deployments: watches.children(Api::all, ours(), controller),
            stateful_sets: watches.children(Api::all, ours(), controller),
            core_services: watches.children(Api::all, ours(), controller),
            service_accounts: watches.children(Api::all, ours(), controller),
            jobs: watches.children(Api::all, ours(), controller),
            network_policies: watches.children(Api::all, ours(), controller),
            disruption_budgets: watches.children(Api::all, ours(), controller),
            pods: watches.start(Api::all, ours(), |pod| labels(pod, &[SERVICE_LABEL, DATABASE_CLASS_LABEL])),
            secrets: watches.start(Api::all, all(), |secret| labels(secret, &[DATABASE_LABEL])),
            config_maps: watches.start(Api::all, all(), nothing),
            endpoint_slices: watches
                .children(Api::all, ours(), |slice| [controller(slice), of_service(slice)].concat()),
            system_endpoint_slices: watches.start(
                |client| Api::namespaced(client, namespace),
                all(),
                of_service,
            ),
            ingress_routes: watches.children(Api::all, at_the_edge(), controller),
            middlewares: watches.children(Api::all, at_the_edge(), controller),
            servers_transports: watches.children(Api::all, at_the_edge(), controller),
            watches,
        }
    }

    /// How each watch stands.
    #[must_use]
    pub fn healths(&self) -> &[Health] {
        self.watches.healths()
    }

    /// Whether every cache shows what is: each watch that failed, as in an
    /// outage of the API server, was answered since.
    #[must_use]
    pub fn are_current(&self) -> bool {
        self.healths().iter().all(Health::is_current)
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

/// The core Service whose endpoints `slice` lists.
fn of_service(slice: &EndpointSlice) -> Vec<String> {
    labels(slice, &[SLICE_SERVICE_LABEL])
}
