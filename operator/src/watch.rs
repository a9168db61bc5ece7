//! One watch per kind, shared by all controllers.

mod guarded;
pub mod health;
pub mod index;

use std::{
    collections::HashMap,
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{Stream, StreamExt, TryStreamExt, stream::BoxStream};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client, Resource, ResourceExt,
    runtime::{
        WatchStreamExt,
        reflector::{self, ObjectRef, Store, store::Writer},
        watcher::{self, Event, watcher},
    },
};
use peristyle_crds::class::DEFAULT_CLASS_ANNOTATION;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::UnboundedReceiverStream;

pub use self::guarded::InvalidObject;
use self::{
    guarded::Guarded,
    health::Health,
    index::{Index, Keys},
};
use crate::{apply::ownership, backoff::WatchBackoff};

/// A kind of which there can be a cache.
pub trait Cached:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}
impl<K> Cached for K where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}

/// An object of the API server, if the types can read it.
type Read<K> = Result<K, Box<InvalidObject>>;

/// What the types cannot read, by name.
type Unreadable<K> = HashMap<ObjectRef<K>, InvalidObject>;

/// A cache of one kind and the stream of what changes in it.
#[derive(Clone)]
pub struct Watched<K: Cached> {
    store: Store<K>,
    /// A reader only passes on which object is to be looked at; what is behind
    /// it keeps one entry per object, so no queue here grows.
    readers: Arc<Mutex<Vec<mpsc::UnboundedSender<Arc<K>>>>>,
    index: Arc<Index<K>>,
    unreadable: watch::Receiver<Unreadable<K>>,
}

/// Starts watches and keeps how each of them stands.
pub struct Watches {
    client: Client,
    healths: Vec<Health>,
}

impl Watches {
    /// No watch yet.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client, healths: Vec::new() }
    }

    /// How each watch stands.
    #[must_use]
    pub fn healths(&self) -> &[Health] {
        &self.healths
    }

    /// Watches the objects of `scope` for the life of the process. They are found by `keys`.
    pub fn start<K: Cached>(
        &mut self,
        scope: impl Fn(Client) -> Api<K>,
        config: watcher::Config,
        keys: Keys<K>,
    ) -> Watched<K> {
        let (events, health) = self.watch(scope, config, forget_managers);
        Watched::follow(events.map(|event| event.map(|event| each(event, Ok))), health, keys)
    }

    /// The same for children, of which the cache also keeps what the operator owns in them.
    pub fn children<K: Cached>(
        &mut self,
        scope: impl Fn(Client) -> Api<K>,
        config: watcher::Config,
        keys: Keys<K>,
    ) -> Watched<K> {
        let (events, health) = self.watch(scope, config, ownership::keep);
        Watched::follow(events.map(|event| event.map(|event| each(event, Ok))), health, keys)
    }

    /// The same for kinds that people write: an object that the types cannot
    /// read does not keep the others out of the cache. Of such an object the
    /// cache keeps the last version that could be read.
    pub fn guarded<K: Cached>(
        &mut self,
        scope: impl Fn(Client) -> Api<Guarded<K>>,
        config: watcher::Config,
        keys: Keys<K>,
    ) -> Watched<K> {
        let (events, health) = self.watch(scope, config, forget_managers);
        let read = |Guarded(object)| object;
        Watched::follow(events.map(move |event| event.map(|event| each(event, read))), health, keys)
    }

    fn watch<T>(
        &mut self,
        scope: impl Fn(Client) -> Api<T>,
        config: watcher::Config,
        prune: fn(&mut ObjectMeta),
    ) -> (BoxStream<'static, watcher::Result<Event<T>>>, Health)
    where
        T: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
    {
        let health = Health::new(scope(self.client.clone()).resource_url());
        self.healths.push(health.clone());
        let backoff = WatchBackoff::default();
        let gone = backoff.gone();
        let events = watcher(scope(health.listening(&self.client)), config)
            .inspect_err(move |error| gone.note(health::is_gone(error)))
            .backoff(backoff)
            .modify(move |object| prune(object.meta_mut()));
        (events.boxed(), health)
    }
}

impl<K: Cached> Watched<K> {
    fn follow<S>(events: S, health: Health, keys: Keys<K>) -> Self
    where
        S: Stream<Item = watcher::Result<Event<Read<K>>>> + Send + 'static,
    {
        let (store, writer) = reflector::store();
        let readers = Arc::new(Mutex::new(Vec::new()));
        let (bad, unreadable) = watch::channel(Unreadable::new());
        let index = Arc::new(Index::by(keys));
        let mut cache = Cache { store: store.clone(), writer, index: index.clone(), bad, before: Vec::new() };
        let told = readers.clone();
        tokio::spawn(async move {
            let mut events = events.boxed();
            while let Some(event) = events.next().await {
                let touched = match event {
                    Ok(event) => cache.take(event),
                    Err(error) => {
                        tracing::warn!(path = health.path(), %error, "watch failed, retrying");
                        health.failed(&error);
                        continue;
                    }
                };
                let mut readers = told.lock().unwrap_or_else(PoisonError::into_inner);
                for object in touched {
                    readers
                        .retain(|reader: &mpsc::UnboundedSender<Arc<K>>| reader.send(object.clone()).is_ok());
                }
            }
        });
        Self { store, readers, index, unreadable }
    }

    /// What the types cannot read, and each change of it.
    #[must_use]
    pub fn unreadable(&self) -> watch::Receiver<Unreadable<K>> {
        self.unreadable.clone()
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
    /// deleted. No reader misses one, however slow it is.
    #[must_use]
    pub fn changes(&self) -> BoxStream<'static, Arc<K>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        futures::stream::iter(self.store.state()).chain(UnboundedReceiverStream::new(receiver)).boxed()
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
        self.by(&index::labelled(namespace, label, value))
    }

    /// Every cached object that the object with this UID controls.
    #[must_use]
    pub fn controlled_by(&self, uid: &str) -> Vec<Arc<K>> {
        self.by(uid)
    }

    /// Every cached object that has `key`.
    #[must_use]
    pub fn by(&self, key: &str) -> Vec<Arc<K>> {
        let found = self.index.of(key).into_iter();
        let live = found.filter_map(|(namespace, name)| self.get(&namespace, &name));
        live.filter(|object| self.index.has(object, key)).collect()
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

    /// Each object that comes, goes or gets another spec. Changes of status,
    /// which the operator itself writes, are not among them.
    #[must_use]
    pub fn spec_changes(&self) -> BoxStream<'static, Arc<K>> {
        let spec = |object: &K| {
            // Which class is the default stands in an annotation, without a generation.
            let default = object.annotations().get(DEFAULT_CLASS_ANNOTATION).cloned();
            (object.meta().generation, object.meta().deletion_timestamp.is_some(), default)
        };
        self.news(spec).map(|(object, _)| object).boxed()
    }

    /// Each object that comes, goes, or of which `part` differs, with what that
    /// was before and what it is now, as far as there was and is one.
    pub fn news<T>(&self, part: impl Fn(&K) -> T + Send + 'static) -> BoxStream<'static, (Arc<K>, Vec<T>)>
    where
        T: Clone + PartialEq + Send + 'static,
    {
        let present = self.store.clone();
        // By namespace and name as one text: a reference takes several times the memory.
        let mut seen: HashMap<Box<str>, (Option<String>, T)> = HashMap::new();
        let changed = move |object: Arc<K>| {
            let key = format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any());
            let live = present.get(&ObjectRef::from_obj(&*object));
            let now = live.map(|live| (live.uid(), part(&live)));
            let before = match now.clone() {
                Some(now) => seen.insert(key.into(), now),
                None => seen.remove(&*key),
            };
            // One that came and went between two looks is told as gone.
            let is_news = now.is_none() || before != now;
            let parts = before.into_iter().chain(now).map(|(_, part)| part).collect();
            std::future::ready(is_news.then_some((object, parts)))
        };
        self.changes().filter_map(changed).boxed()
    }
}

/// The writing end of a cache.
struct Cache<K: Cached> {
    store: Store<K>,
    writer: Writer<K>,
    index: Arc<Index<K>>,
    bad: watch::Sender<Unreadable<K>>,
    /// What was there before a list that is not complete yet.
    before: Vec<Arc<K>>,
}

impl<K: Cached> Cache<K> {
    /// Stores what an event brings, and returns the objects that it touches.
    fn take(&mut self, event: Event<Read<K>>) -> Vec<Arc<K>> {
        match event {
            Event::Apply(object) => {
                let Some(object) = self.readable(object) else { return Vec::new() };
                let reference = ObjectRef::from_obj(&object);
                let before = self.store.get(&reference);
                self.index.add(&object);
                self.writer.apply_watcher_event(&Event::Apply(object));
                // The same allocation as in the cache.
                let now = self.store.get(&reference);
                before.inspect(|before| self.index.remove(before, now.as_deref()));
                now.into_iter().collect()
            }
            Event::Delete(object) => {
                let reference = match &object {
                    Ok(object) => ObjectRef::from_obj(object),
                    Err(invalid) => reference_to(invalid),
                };
                self.forget(&reference);
                let last = self.store.get(&reference);
                let Some(object) = object.ok().map(Arc::new).or_else(|| last.clone()) else {
                    return Vec::new();
                };
                self.writer.apply_watcher_event(&Event::Delete((*object).clone()));
                last.inspect(|last| self.index.remove(last, None));
                vec![object]
            }
            // The cache shows the new list only when it is complete, and
            // what was deleted meanwhile is told by nothing but its absence.
            Event::Init => {
                self.before = self.store.state();
                self.bad.send_if_modified(|bad| !std::mem::take(bad).is_empty());
                self.writer.apply_watcher_event(&Event::Init);
                Vec::new()
            }
            Event::InitApply(object) => {
                if let Some(object) = self.readable(object) {
                    self.index.add(&object);
                    self.writer.apply_watcher_event(&Event::InitApply(object));
                }
                Vec::new()
            }
            Event::InitDone => {
                self.writer.apply_watcher_event(&Event::InitDone);
                let mut gone = std::mem::take(&mut self.before);
                gone.retain(|before| {
                    let now = self.store.get(&ObjectRef::from_obj(&**before));
                    self.index.remove(before, now.as_deref());
                    now.is_none()
                });
                self.store.state().into_iter().chain(gone).collect()
            }
        }
    }

    /// The object, or the last version of it that could be read.
    fn readable(&self, object: Read<K>) -> Option<K> {
        match object {
            Ok(object) => {
                self.forget(&ObjectRef::from_obj(&object));
                Some(object)
            }
            Err(invalid) => {
                let reference = reference_to(&invalid);
                tracing::warn!(kind = %K::kind(&()), object = %reference, error = invalid.error, "unreadable object");
                let last = self.store.get(&reference);
                self.bad.send_modify(|bad| drop(bad.insert(reference, *invalid)));
                last.map(|last| (*last).clone())
            }
        }
    }

    fn forget(&self, reference: &ObjectRef<K>) {
        self.bad.send_if_modified(|bad| bad.remove(reference).is_some());
    }
}

fn reference_to<K: Cached>(invalid: &InvalidObject) -> ObjectRef<K> {
    let mut reference = ObjectRef::new(invalid.metadata.name.as_deref().unwrap_or_default());
    reference.namespace.clone_from(&invalid.metadata.namespace);
    reference
}

/// `event` with `change` made to each object.
fn each<K, L>(event: Event<K>, change: impl Fn(K) -> L) -> Event<L> {
    match event {
        Event::Apply(object) => Event::Apply(change(object)),
        Event::Delete(object) => Event::Delete(change(object)),
        Event::Init => Event::Init,
        Event::InitApply(object) => Event::InitApply(change(object)),
        Event::InitDone => Event::InitDone,
    }
}

fn forget_managers(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use k8s_openapi::api::core::v1::ConfigMap;

    use super::*;

    fn map(name: &str) -> ConfigMap {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some("shop".to_owned()),
            ..ObjectMeta::default()
        };
        ConfigMap { metadata, ..ConfigMap::default() }
    }

    fn unreadable(name: &str) -> Box<InvalidObject> {
        Box::new(InvalidObject { metadata: map(name).metadata, error: "spec is no object".to_owned() })
    }

    fn watched() -> (Watched<ConfigMap>, mpsc::UnboundedSender<Event<Read<ConfigMap>>>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        let events = UnboundedReceiverStream::new(receiver).map(Ok);
        (Watched::follow(events, Health::new("/api/v1/configmaps"), index::controller), sender)
    }

    async fn names(changes: BoxStream<'static, Arc<ConfigMap>>, count: usize) -> BTreeSet<String> {
        changes.take(count).map(|object| object.name_any()).collect().await
    }

    #[tokio::test]
    async fn a_reader_that_is_far_behind_is_told_of_every_deletion() {
        const MANY: usize = 5_000;
        let (watched, events) = watched();
        let changes = watched.changes();
        for event in [Event::Init, Event::InitDone] {
            events.send(event).unwrap();
        }
        for number in 0..MANY {
            events.send(Event::Apply(Ok(map(&format!("a{number}"))))).unwrap();
            events.send(Event::Delete(Ok(map(&format!("a{number}"))))).unwrap();
        }
        assert_eq!(names(changes, 2 * MANY).await.len(), MANY);
        assert!(watched.store().is_empty());
    }

    #[tokio::test]
    async fn what_a_new_list_lacks_is_told_as_a_change() {
        let (watched, events) = watched();
        for event in [Event::Init, Event::InitApply(Ok(map("gone"))), Event::InitDone] {
            events.send(event).unwrap();
        }
        let mut changes = watched.changes();
        assert_eq!(changes.next().await.unwrap().name_any(), "gone");
        for event in [Event::Init, Event::InitApply(Ok(map("new"))), Event::InitDone] {
            events.send(event).unwrap();
        }
        assert_eq!(names(changes, 2).await, BTreeSet::from(["gone".to_owned(), "new".to_owned()]));
        assert!(watched.get("shop", "gone").is_none() && watched.get("shop", "new").is_some());
    }

    fn owned(name: &str, uid: &str) -> ConfigMap {
        let owner = serde_json::from_value(serde_json::json!({"apiVersion": "peristyle.dev/v1alpha1",
            "kind": "Service", "name": "orders", "uid": uid, "controller": true}));
        let mut map = map(name);
        map.metadata.owner_references = Some(vec![owner.unwrap()]);
        map
    }

    #[tokio::test]
    async fn an_owner_has_what_the_cache_holds_of_it_and_nothing_that_is_gone_or_of_others() {
        let (watched, events) = watched();
        let mut changes = watched.changes();
        for event in [
            Event::Init,
            Event::InitApply(Ok(owned("listed", "u"))),
            Event::InitApply(Ok(owned("foreign", "v"))),
            Event::InitDone,
            Event::Apply(Ok(owned("later", "u"))),
            Event::Apply(Ok(owned("given-away", "u"))),
            Event::Apply(Ok(owned("given-away", "v"))),
            Event::Delete(Ok(owned("later", "u"))),
            Event::Apply(Ok(owned("last", "u"))),
        ] {
            events.send(event).unwrap();
        }
        while changes.next().await.unwrap().name_any() != "last" {}
        let of = |uid| watched.controlled_by(uid).iter().map(|o| o.name_any()).collect::<BTreeSet<_>>();
        assert_eq!(of("u"), BTreeSet::from(["last".to_owned(), "listed".to_owned()]));
        assert_eq!(of("v"), BTreeSet::from(["foreign".to_owned(), "given-away".to_owned()]));
        for event in [Event::Init, Event::InitApply(Ok(owned("relisted", "u"))), Event::InitDone] {
            events.send(event).unwrap();
        }
        while changes.next().await.unwrap().name_any() != "relisted" {}
        assert_eq!(of("u"), BTreeSet::from(["relisted".to_owned()]));
        assert!(of("v").is_empty());
    }

    #[tokio::test]
    async fn an_object_that_cannot_be_read_keeps_none_of_the_others_out() {
        let (watched, events) = watched();
        let changes = watched.changes();
        for event in [
            Event::Init,
            Event::InitApply(Err(unreadable("bad"))),
            Event::InitApply(Ok(map("good"))),
            Event::InitDone,
            Event::Apply(Ok(map("later"))),
            Event::Apply(Err(unreadable("later"))),
        ] {
            events.send(event).unwrap();
        }
        let seen = names(changes, 3).await;
        assert_eq!(seen, BTreeSet::from(["good".to_owned(), "later".to_owned()]));
        let mut unreadable = watched.unreadable();
        let is_unreadable = |name| unreadable.borrow().contains_key(&ObjectRef::new(name).within("shop"));
        assert!(is_unreadable("bad") && is_unreadable("later"));
        assert!(watched.get("shop", "later").is_some(), "the version that could be read is kept");
        assert!(watched.get("shop", "bad").is_none());

        events.send(Event::Apply(Ok(map("bad")))).unwrap();
        unreadable.wait_for(|unreadable| unreadable.len() == 1).await.unwrap();
        assert!(watched.get("shop", "bad").is_some());
    }
    #[tokio::test]
    async fn an_object_that_never_could_be_read_is_forgotten_when_it_is_deleted() {
        let (watched, events) = watched();
        let changes = watched.changes();
        for event in [
            Event::Init,
            Event::InitApply(Err(unreadable("bad"))),
            Event::InitApply(Ok(map("worse"))),
            Event::InitDone,
            Event::Apply(Err(unreadable("worse"))),
        ] {
            events.send(event).unwrap();
        }
        let mut bad = watched.unreadable();
        bad.wait_for(|bad| bad.len() == 2).await.unwrap();
        for name in ["bad", "worse"] {
            events.send(Event::Delete(Err(unreadable(name)))).unwrap();
        }
        bad.wait_for(Unreadable::is_empty).await.unwrap();
        assert_eq!(names(changes, 3).await, BTreeSet::from(["worse".to_owned()]));
        assert!(watched.store().is_empty(), "the version that could be read outlived the object");
    }
}
