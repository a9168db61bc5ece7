//! What the caches say about a Database's surroundings.

use std::sync::Arc;

use kube::ResourceExt;
use peristyle_crds::v1alpha1::{Database, DatabaseClass, service::BindingRole};

use crate::{context::Context, controllers::service::named, sql::names::default_name};

/// Namespace whose UID tells one cluster from another.
const CLUSTER_NAMESPACE: &str = "kube-system";

/// Everything that validation needs to know besides the object.
#[derive(Clone, Debug)]
pub struct Observed {
    /// What tells this cluster from others; absent until the cache has it.
    pub cluster: Option<String>,
    /// UID of the Database's namespace; absent until the cache has it.
    pub namespace: Option<String>,
    /// Other Databases that would have the same name on a server.
    pub namesakes: Vec<Arc<Database>>,
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
    let services = ctx.stores.services.by(&named::naming(database));
    let mut bindings = services.iter().flat_map(|service| &service.spec.databases);
    let is_reader_bound =
        bindings.any(|binding| binding.database == name && binding.role() == BindingRole::Reader);
    let uid_of = |namespace: &str| ctx.stores.namespaces.get("", namespace).and_then(|found| found.uid());
    Observed {
        cluster: cluster(ctx),
        namespace: uid_of(&database.namespace().unwrap_or_default()),
        namesakes: ctx.stores.databases.store().state_filter(|other| are_namesakes(other, database)),
        classes: ctx.stores.database_classes.store().state(),
        is_reader_bound,
        system_namespace: ctx.config.namespace.clone(),
    }
}

/// What tells this cluster from others; absent until the cache has it.
#[must_use]
pub fn cluster(ctx: &Context) -> Option<String> {
    ctx.stores.namespaces.get("", CLUSTER_NAMESPACE).and_then(|found| found.uid())
}

/// Whether both are called the same on the server. Two default names never are.
#[must_use]
pub fn are_namesakes(one: &Database, other: &Database) -> bool {
    (one.spec.name.is_some() || other.spec.name.is_some())
        && one.uid() != other.uid()
        && name_on_server(one) == name_on_server(other)
}

/// The name that the spec gives, or the default.
#[must_use]
pub fn name_on_server(database: &Database) -> String {
    let namespace = database.namespace().unwrap_or_default();
    database.spec.name.clone().unwrap_or_else(|| default_name(&namespace, &database.name_any()))
}
