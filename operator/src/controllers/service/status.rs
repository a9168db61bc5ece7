//! From what was applied to the status. Pure but for the cache of pods.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use peristyle_crds::{
    names::SERVICE_LABEL,
    v1alpha1::{Service, ServiceStatus},
};

use super::{apply::Applied, route::Routes, validate::Validated, workload};
use crate::{context::Context, reconcile::Outcome};

/// The status and how each aspect stands.
#[must_use]
pub fn outcome(
    ctx: &Context,
    service: &Service,
    validated: &Validated,
    routes: &Routes,
    applied: &Applied,
) -> Outcome<ServiceStatus> {
    let namespace = service.namespace().unwrap_or_default();
    let pods = ctx.stores.pods.labelled(&namespace, SERVICE_LABEL, &service.name_any());
    let pods: Vec<&Pod> = pods.iter().map(|pod| &**pod).collect();
    let workload = workload::finding(
        applied.deployment.as_ref(),
        &applied.hooks,
        &validated.holds,
        &service.spec.image,
        &pods,
    );
    let ready = applied
        .deployment
        .as_ref()
        .and_then(|deployment| deployment.status.as_ref())
        .and_then(|status| status.ready_replicas)
        .unwrap_or(0);
    let status = ServiceStatus {
        replicas: Some(validated.replicas),
        ready_replicas: Some(ready),
        url: routes.urls.first().map(|url| url.url.clone()),
        urls: routes.urls.clone(),
        inventory: applied.inventory.clone(),
        ..ServiceStatus::default()
    };
    let findings = vec![validated.databases.clone(), workload, routes.finding()];
    Outcome::new(status, findings)
}
