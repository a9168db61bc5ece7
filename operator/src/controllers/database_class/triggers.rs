//! What makes the operator look at a class again, besides its own changes.

use futures::stream::BoxStream;
use kube::{Resource, ResourceExt, runtime::reflector::ObjectRef};
use peristyle_crds::{names::DATABASE_CLASS_LABEL, v1alpha1::DatabaseClass};

use super::target::{self, Access};
use crate::context::Context;

/// All of them.
#[must_use]
pub fn all(ctx: &Context) -> Vec<BoxStream<'static, ObjectRef<DatabaseClass>>> {
    let stores = &ctx.stores;
    let namespace = ctx.config.namespace.clone();
    let reads_secret = move |secret: &_, class: &_| {
        refers(class, secret, &namespace, |access, name| access.admin_secret == name)
    };
    let namespace = ctx.config.namespace.clone();
    let reads_authorities = move |map: &_, class: &_| {
        refers(class, map, &namespace, |access, name| access.authorities.as_deref() == Some(name))
    };
    vec![
        stores.stateful_sets.cluster_owners(DATABASE_CLASS_LABEL),
        stores.pods.cluster_owners(DATABASE_CLASS_LABEL),
        stores.core_services.cluster_owners(DATABASE_CLASS_LABEL),
        stores.secrets.concerning(&stores.database_classes, reads_secret),
        stores.config_maps.concerning(&stores.database_classes, reads_authorities),
        // They are counted.
        stores.databases.concerning(&stores.database_classes, |database, class| {
            let server = database.status.as_ref().and_then(|status| status.server.as_ref());
            server.is_some_and(|server| server.class == class.name_any())
        }),
    ]
}

/// Whether `class` refers to an object of the operator's namespace.
fn refers<K: Resource>(
    class: &DatabaseClass,
    object: &K,
    namespace: &str,
    refers: impl Fn(&Access, &str) -> bool,
) -> bool {
    object.namespace().as_deref() == Some(namespace)
        && target::access(class, namespace).is_ok_and(|access| refers(&access, &object.name_any()))
}
