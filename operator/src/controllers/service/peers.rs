//! Which Services may call which. Pure.

use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::ResourceExt;
use peristyle_crds::{
    names::SERVICE_LABEL,
    v1alpha1::{Service, service::AccessMode},
};

/// Stands for every pod of a namespace.
pub const EVERY_POD: &str = "*";

/// Whether `caller` names `target` in its `dependsOn`.
#[must_use]
pub fn depends(caller: &Service, target: &Service) -> bool {
    let name = target.name_any();
    caller.spec.depends_on.iter().any(|dependency| {
        dependency.service.as_ref() == Some(&name)
            && dependency.namespace.as_ref().or(caller.metadata.namespace.as_ref())
                == target.metadata.namespace.as_ref()
    })
}

/// Whether `target` lets in what the Service `name` of `namespace` declares:
/// one team owns a namespace, everybody else needs to be listed.
#[must_use]
pub fn admits(target: &Service, namespace: &str, name: &str) -> bool {
    if target.namespace().as_deref() == Some(namespace) || target.spec.access_mode() == AccessMode::Open {
        return true;
    }
    let listed = target.spec.access.iter().flat_map(|access| &access.inbound);
    listed.into_iter().any(|inbound| {
        inbound.namespace.as_deref() == Some(namespace)
            && (inbound.service == name || inbound.service == EVERY_POD)
    })
}

/// Whether `policy` lets in the pods of the Service `name` of its own namespace.
#[must_use]
pub fn lists(policy: &NetworkPolicy, name: &str) -> bool {
    let ingress = policy.spec.iter().flat_map(|spec| spec.ingress.iter().flatten());
    let own = Some(policy.namespace().unwrap_or_default());
    ingress.flat_map(|rule| rule.from.iter().flatten()).any(|peer| {
        let label = |selector: &Option<_>, key: &str| -> Option<String> {
            let selector: &k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector =
                selector.as_ref()?;
            selector.match_labels.as_ref()?.get(key).cloned()
        };
        label(&peer.pod_selector, SERVICE_LABEL).as_deref() == Some(name)
            && label(&peer.namespace_selector, super::build::access::NAMESPACE_LABEL) == own
    })
}
