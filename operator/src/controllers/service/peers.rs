//! Which Services may call which. Pure.

use kube::ResourceExt;
use peristyle_crds::v1alpha1::{Service, service::AccessMode};

/// Stands for every pod of a namespace.
pub const EVERY_POD: &str = "*";

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
