//! The caches of all watched kinds.

use k8s_openapi::api::{
    apps::v1::{Deployment, StatefulSet},
    batch::v1::Job,
    core::v1::{ConfigMap, Namespace, Secret, Service as CoreService, ServiceAccount},
    discovery::v1::EndpointSlice,
};
use kube::{Api, Client, core::PartialObjectMeta, runtime::watcher};
use peristyle_crds::{
    names::{MANAGED_BY, MANAGED_BY_LABEL},
    v1alpha1::{AuthClass, AuthPolicy, Database, DatabaseClass, EdgeClass, Service},
};

use crate::watch::Watched;

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
    /// All Secrets, metadata only: references of workloads, credentials of ours.
    pub secrets: Watched<PartialObjectMeta<Secret>>,
    /// All ConfigMaps, metadata only.
    pub config_maps: Watched<PartialObjectMeta<ConfigMap>>,
    /// EndpointSlices that the operator keeps for the edge's error backend.
    pub endpoint_slices: Watched<EndpointSlice>,
    /// EndpointSlices in the operator's namespace: pods of Oathkeeper and of the error backend.
    pub system_endpoint_slices: Watched<EndpointSlice>,
}

impl Stores {
    /// Starts all watches.
    #[must_use]
    pub fn start(client: &Client, namespace: &str) -> Self {
        let all = watcher::Config::default;
        let ours = || all().labels(&format!("{MANAGED_BY_LABEL}={MANAGED_BY}"));
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
            secrets: Watched::start(Api::all(c()), all()),
            config_maps: Watched::start(Api::all(c()), all()),
            endpoint_slices: Watched::start(Api::all(c()), ours()),
            system_endpoint_slices: Watched::start(Api::namespaced(c(), namespace), all()),
        }
    }

    /// Waits until every cache holds its first list.
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
            self.secrets.ready(),
            self.config_maps.ready(),
            self.endpoint_slices.ready(),
            self.system_endpoint_slices.ready(),
        );
    }
}
