//! What makes the operator look at a Database again, besides its own changes.

use std::sync::Arc;

use futures::{StreamExt, stream::BoxStream};
use kube::{
    ResourceExt,
    runtime::reflector::{ObjectRef, Store},
};
use peristyle_crds::{
    names::DATABASE_LABEL,
    v1alpha1::{Database, DatabaseClass, Service},
};

use crate::stores::Stores;

type Trigger = BoxStream<'static, ObjectRef<Database>>;

/// All of them.
#[must_use]
pub fn all(stores: &Stores) -> Vec<Trigger> {
    let databases = stores.databases.store().clone();
    let of_class = databases.clone();
    let credentials = stores.secrets.changes().filter_map(|secret| async move {
        Some(ObjectRef::new(secret.labels().get(DATABASE_LABEL)?).within(&secret.namespace()?))
    });
    vec![
        stores
            .database_classes
            .changes()
            .flat_map(move |class| matching(&of_class, |database| concerns(&class, database)))
            .boxed(),
        // All of the namespace: a binding that was removed is not in the Service any more.
        stores
            .services
            .changes()
            .flat_map(move |service: Arc<Service>| {
                matching(&databases, |database| database.namespace() == service.namespace())
            })
            .boxed(),
        credentials.boxed(),
    ]
}

fn matching(
    databases: &Store<Database>,
    concerns: impl Fn(&Database) -> bool,
) -> futures::stream::Iter<std::vec::IntoIter<ObjectRef<Database>>> {
    let found = databases.state().into_iter().filter(|database| concerns(database));
    let references: Vec<_> = found.map(|database| ObjectRef::from_obj(&*database)).collect();
    futures::stream::iter(references)
}

/// A Database without a class may be waiting for this one to become the default.
fn concerns(class: &DatabaseClass, database: &Database) -> bool {
    database.spec.class_name.as_ref().is_none_or(|name| *name == class.name_any())
}
