//! One watch per kind, shared by all controllers.

use std::{collections::HashMap, fmt::Debug, sync::Arc, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use kube::{
    Api, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store},
        watcher::{self, Event, watcher},
    },
};
use peristyle_crds::class::DEFAULT_CLASS_ANNOTATION;
use serde::de::DeserializeOwned;
use tokio::sync::broadcast;
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};

/// Changes that a slow controller may be behind before it looks at everything again.
const BUFFER: usize = 1024;

/// A kind of which there can be a cache.
pub trait Cached:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}
impl<K> Cached for K where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}

/// A cache of one kind and the stream of what changes in it.
pub struct Watched<K: Cached> {
    store: Store<K>,
    changes: broadcast::Sender<Arc<K>>,
}

impl<K: Cached> Watched<K> {
    /// Watches `api` for the life of the process.
    #[must_use]
    pub fn start(api: Api<K>, config: watcher::Config) -> Self {
        let (store, writer) = reflector::store();
        let (changes, _) = broadcast::channel(BUFFER);
        let sender = changes.clone();
        let cache = store.clone();
        let mut events = watcher(api, config)
            .default_backoff()
            .modify(|object| object.managed_fields_mut().clear())
            .reflect(writer)
            .boxed();
        tokio::spawn(async move {
            let mut before = Vec::new();
            while let Some(event) = events.next().await {
                let touched = match event {
                    Ok(Event::Apply(object) | Event::Delete(object)) => vec![Arc::new(object)],
                    // The cache shows the new list only when it is complete, and
                    // what was deleted meanwhile is told by nothing but its absence.
                    Ok(Event::Init) => {
                        before = cache.state();
                        continue;
                    }
                    Ok(Event::InitApply(_)) => continue,
                    Ok(Event::InitDone) => {
                        let is_gone = |object: &Arc<K>| cache.get(&ObjectRef::from_obj(&**object)).is_none();
                        let gone = std::mem::take(&mut before).into_iter().filter(is_gone);
                        cache.state().into_iter().chain(gone).collect()
                    }
                    Err(error) => {
                        tracing::warn!(kind = %K::kind(&()), %error, "watch failed, retrying");
                        continue;
                    }
                };
                for object in touched {
                    // An error means that nobody listens (yet): the cache is enough.
                    drop(sender.send(object));
                }
            }
        });
        Self { store, changes }
    }

    /// The cache.
    #[must_use]
    pub fn store(&self) -> &Store<K> {
        &self.store
    }

    /// Waits until the first list is in the cache.
    pub async fn ready(&self) {
        // The writer lives as long as the process; an error cannot happen before its end.
        if self.store.wait_until_ready().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Whether the first list arrives within `wait`; for kinds that may not be installed.
    pub async fn is_ready_within(&self, wait: Duration) -> bool {
        tokio::time::timeout(wait, self.store.wait_until_ready()).await.is_ok_and(|ready| ready.is_ok())
    }

    /// Everything in the cache, then each object that is added, changed or
    /// deleted. A reader that fell behind gets everything once more.
    #[must_use]
    pub fn changes(&self) -> BoxStream<'static, Arc<K>> {
        let store = self.store.clone();
        let live = BroadcastStream::new(self.changes.subscribe());
        let first = futures::stream::iter(store.state());
        let rest = live.flat_map(move |event| {
            let objects = match event {
                Ok(object) => vec![object],
                Err(BroadcastStreamRecvError::Lagged(_)) => store.state(),
            };
            futures::stream::iter(objects)
        });
        first.chain(rest).boxed()
    }

    /// The object of that name, if it is in the cache.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        let mut key = ObjectRef::<K>::new(name);
        if !namespace.is_empty() {
            key = key.within(namespace);
        }
        self.store.get(&key)
    }

    /// Every cached object of `namespace` that carries `label` with `value`.
    #[must_use]
    pub fn labelled(&self, namespace: &str, label: &str, value: &str) -> Vec<Arc<K>> {
        self.store.state_filter(|object| {
            object.namespace().as_deref() == Some(namespace)
                && object.labels().get(label).is_some_and(|v| v == value)
        })
    }

    /// For each object that changes, those of `roots` that it concerns.
    #[must_use]
    pub fn concerning<R: Cached>(
        &self,
        roots: &Watched<R>,
        concerns: impl Fn(&K, &R) -> bool + Send + 'static,
    ) -> BoxStream<'static, ObjectRef<R>> {
        concerned(self.changes(), roots, move |object, root| concerns(object, root))
    }

    /// The owner in the same namespace, for each child that changes.
    #[must_use]
    pub fn owners<R: Cached>(&self, label: &'static str) -> BoxStream<'static, ObjectRef<R>> {
        let owner = move |child: Arc<K>| {
            let name = owner_name::<R>(&*child, label).zip(child.namespace());
            std::future::ready(name.map(|(name, namespace)| ObjectRef::new(&name).within(&namespace)))
        };
        self.changes().filter_map(owner).boxed()
    }

    /// The owner without a namespace, for each child that changes.
    #[must_use]
    pub fn cluster_owners<R: Cached>(&self, label: &'static str) -> BoxStream<'static, ObjectRef<R>> {
        let owner = move |child: Arc<K>| {
            std::future::ready(owner_name::<R>(&*child, label).map(|name| ObjectRef::new(&name)))
        };
        self.changes().filter_map(owner).boxed()
    }

    /// An event for each object that comes, goes or gets another spec. Changes
    /// of status, which the operator itself writes, are not among them.
    #[must_use]
    pub fn spec_changes(&self) -> BoxStream<'static, ()> {
        let store = self.store.clone();
        let mut seen = HashMap::new();
        let news = move |object: Arc<K>| {
            let reference = ObjectRef::from_obj(&*object);
            // Which class is the default stands in an annotation, without a generation.
            let default = object.annotations().get(DEFAULT_CLASS_ANNOTATION).cloned();
            let meta = object.meta();
            let mark = (object.uid(), meta.generation, meta.deletion_timestamp.is_some(), default);
            let is_news = if store.get(&reference).is_none() {
                seen.remove(&reference);
                true
            } else {
                seen.insert(reference, mark.clone()) != Some(mark)
            };
            std::future::ready(is_news.then_some(()))
        };
        self.changes().filter_map(news).boxed()
    }
}

/// The controller of `child` if it is of kind `R`; else what its label says,
/// which anybody may edit.
fn owner_name<R: Cached>(child: &impl Resource, label: &str) -> Option<String> {
    let mut owners = child.meta().owner_references.iter().flatten();
    let controller = owners.find(|owner| {
        owner.controller == Some(true)
            && owner.kind == R::kind(&())
            && owner.api_version == R::api_version(&())
    });
    controller.map(|owner| owner.name.clone()).or_else(|| child.meta().labels.as_ref()?.get(label).cloned())
}

/// For each event, the objects of `roots` that it concerns.
pub fn concerned<T: Send + 'static, R: Cached>(
    events: BoxStream<'static, T>,
    roots: &Watched<R>,
    concerns: impl Fn(&T, &R) -> bool + Send + 'static,
) -> BoxStream<'static, ObjectRef<R>> {
    let roots = roots.store().clone();
    let references = move |event: T| {
        let found = roots.state().into_iter().filter(|root| concerns(&event, root));
        futures::stream::iter(found.map(|root| ObjectRef::from_obj(&*root)).collect::<Vec<_>>())
    };
    events.flat_map(references).boxed()
}
