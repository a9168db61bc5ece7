//! What makes the operator look at a Database again, besides its own changes.

use futures::stream::BoxStream;
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use peristyle_crds::{names::DATABASE_LABEL, v1alpha1::Database};

use super::observe::are_namesakes;
use crate::stores::Stores;

/// All of them.
#[must_use]
pub fn all(stores: &Stores) -> Vec<BoxStream<'static, ObjectRef<Database>>> {
    vec![
        // A Database without a class may be waiting for this one to become the default.
        stores.database_classes.concerning(&stores.databases, |class, database| {
            database.spec.class_name.as_ref().is_none_or(|name| *name == class.name_any())
        }),
        // All of the namespace: a binding that was removed is not in the Service any more.
        stores.services.concerning(&stores.databases, |service, database| {
            database.metadata.namespace == service.metadata.namespace
        }),
        // The name may be free now.
        stores.databases.concerning(&stores.databases, are_namesakes),
        stores.secrets.owners(DATABASE_LABEL),
    ]
}
