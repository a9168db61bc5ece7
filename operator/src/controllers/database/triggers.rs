//! What makes the operator look at a Database again, besides its own changes.

use std::sync::Arc;

use futures::{
    StreamExt,
    stream::{BoxStream, iter, select},
};
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use peristyle_crds::{
    names::DATABASE_LABEL,
    v1alpha1::{Database, Service},
};

use super::observe::are_namesakes;
use crate::{controllers::service::named, stores::Stores};

/// All of them.
#[must_use]
pub fn all(stores: &Stores) -> Vec<BoxStream<'static, ObjectRef<Database>>> {
    vec![
        // A Database without a class may be waiting for this one to become the default.
        stores.database_classes.concerning(&stores.databases, |class, database| {
            database.spec.class_name.as_ref().is_none_or(|name| *name == class.name_any())
        }),
        bound(stores),
        // The name may be free now.
        stores.databases.concerning(&stores.databases, are_namesakes),
        stores.secrets.owners(DATABASE_LABEL),
    ]
}

/// Databases that a changed Service binds, or did: a rotation waits for its pods.
fn bound(stores: &Stores) -> BoxStream<'static, ObjectRef<Database>> {
    let bindings = |service: &Service| named::databases(service).map(ToOwned::to_owned).collect::<Vec<_>>();
    let news = stores.services.news(bindings).map(|(service, bindings)| (service, bindings.concat()));
    let all = stores.services.changes().map(move |service| {
        let bindings = bindings(&service);
        (service, bindings)
    });
    let databases = stores.databases.store().clone();
    let references = move |(service, names): (Arc<Service>, Vec<String>)| {
        let namespace = service.namespace().unwrap_or_default();
        let named = names.into_iter().map(|name| ObjectRef::new(&name).within(&namespace));
        iter(named.filter(|database| databases.get(database).is_some()).collect::<Vec<_>>())
    };
    select(news, all).flat_map(references).boxed()
}
