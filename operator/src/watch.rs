//! One watch per kind, shared by all controllers.

use std::{fmt::Debug, hash::Hash, sync::Arc, time::Duration};

use futures::{StreamExt, stream::BoxStream};
use kube::{
    Api, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        reflector::{self, Store},
        watcher,
    },
};
use serde::de::DeserializeOwned;
use tokio::sync::broadcast;
use tokio_stream::wrappers::{BroadcastStream, errors::BroadcastStreamRecvError};

/// Changes that a slow controller may be behind before it looks at everything again.
const BUFFER: usize = 1024;

/// A cache of one kind and the stream of what changes in it.
pub struct Watched<K>
where
    K: Resource + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    store: Store<K>,
    changes: broadcast::Sender<Arc<K>>,
}

impl<K> Watched<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Default + Eq + Hash + Clone + Send + Sync,
{
    /// Watches `api` for the life of the process.
    #[must_use]
    pub fn start(api: Api<K>, config: watcher::Config) -> Self {
        let (store, writer) = reflector::store();
        let (changes, _) = broadcast::channel(BUFFER);
        let sender = changes.clone();
        let mut events = watcher(api, config)
            .default_backoff()
            .modify(|object| object.managed_fields_mut().clear())
            .reflect(writer)
            .touched_objects()
            .boxed();
        tokio::spawn(async move {
            while let Some(event) = events.next().await {
                match event {
                    // An error means that nobody listens (yet): the cache is enough.
                    Ok(object) => drop(sender.send(Arc::new(object))),
                    Err(error) => {
                        tracing::warn!(kind = %K::kind(&K::DynamicType::default()), %error, "watch failed, retrying");
                    }
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
        let mut key = reflector::ObjectRef::<K>::new_with(name, K::DynamicType::default());
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
}
