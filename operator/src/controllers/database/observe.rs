//! What the caches say about a Database's surroundings.

use std::sync::Arc;

use kube::ResourceExt;
use peristyle_crds::v1alpha1::{Database, DatabaseClass, service::BindingRole};

use crate::context::Context;

/// Namespace whose UID tells one cluster from another.
const CLUSTER_NAMESPACE: &str = "kube-system";

/// Everything that validation needs to know besides the object.
#[derive(Clone, Debug)]
pub struct Observed {
    /// What tells this cluster from others; absent until the cache has it.
    pub cluster: Option<String>,
    /// All classes.
    pub classes: Vec<Arc<DatabaseClass>>,
    /// Whether a Service of the namespace binds the role Reader.
    pub is_reader_bound: bool,
    /// Namespace of the operator.
    pub system_namespace: String,
}

/// Reads the caches; sends no request.
#[must_use]
pub fn observe(ctx: &Context, database: &Database) -> Observed {
    let name = database.name_any();
    let reads = ctx.stores.services.store().state_filter(|service| {
        service.namespace() == database.namespace()
            && service
                .spec
                .databases
                .iter()
                .any(|binding| binding.database == name && binding.role() == BindingRole::Reader)
    });
    Observed {
        cluster: ctx.stores.namespaces.get("", CLUSTER_NAMESPACE).and_then(|namespace| namespace.uid()),
        classes: ctx.stores.database_classes.store().state(),
        is_reader_bound: !reads.is_empty(),
        system_namespace: ctx.config.namespace.clone(),
    }
}
