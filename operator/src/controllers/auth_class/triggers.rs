//! What makes the AuthClasses and AuthPolicies be looked at again.

use std::{collections::HashMap, fmt::Debug};

use futures::{StreamExt, stream::BoxStream};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{
    Resource, ResourceExt,
    runtime::reflector::{ObjectRef, Store},
};
use peristyle_crds::v1alpha1::AuthClass;
use serde::de::DeserializeOwned;

use super::pods;
use crate::watch::Watched;

/// An event for each object of `watched` that comes, goes or gets another spec.
/// Changes of status, which the operator itself writes, are not among them.
#[must_use]
pub fn spec_changes<K>(watched: &Watched<K>) -> BoxStream<'static, ()>
where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let store = watched.store().clone();
    let mut seen = HashMap::new();
    watched
        .changes()
        .filter_map(move |object| {
            let reference = ObjectRef::from_obj(&*object);
            let mark = (object.uid(), object.meta().generation, object.meta().deletion_timestamp.is_some());
            let is_news = if store.get(&reference).is_none() {
                seen.remove(&reference);
                true
            } else {
                seen.insert(reference, mark.clone()) != Some(mark)
            };
            std::future::ready(is_news.then_some(()))
        })
        .boxed()
}

/// Every object of `store` for every event; the queue keeps each once.
#[must_use]
pub fn all<K>(store: &Store<K>, events: BoxStream<'static, ()>) -> BoxStream<'static, ObjectRef<K>>
where
    K: Resource<DynamicType = ()> + Clone + Send + Sync + 'static,
{
    let store = store.clone();
    events
        .flat_map(move |()| {
            let references: Vec<_> = store.state().iter().map(|o| ObjectRef::from_obj(&**o)).collect();
            futures::stream::iter(references)
        })
        .boxed()
}

/// The classes whose Oathkeeper is behind a slice that changed.
#[must_use]
pub fn pods(
    classes: &Store<AuthClass>,
    slices: &Watched<EndpointSlice>,
) -> BoxStream<'static, ObjectRef<AuthClass>> {
    let classes = classes.clone();
    slices
        .changes()
        .flat_map(move |slice| {
            let references: Vec<_> = classes
                .state()
                .iter()
                .filter(|class| pods::is_of(&slice, &class.spec.oathkeeper.service))
                .map(|class| ObjectRef::from_obj(&**class))
                .collect();
            futures::stream::iter(references)
        })
        .boxed()
}
