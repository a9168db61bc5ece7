//! Writing children: server-side apply with one field manager, an ownership
//! guard and no request when nothing would change.

pub mod drift;
pub mod ownership;
mod record;

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, Preconditions},
    core::{NamespaceResourceScope, PartialObjectMeta},
};
use peristyle_crds::{FIELD_MANAGER, condition::Reason};
use serde::Serialize;

use self::{
    drift::{Conflict, Drift},
    record::{Hash, Record, fingerprint, version},
};
use crate::{
    events::Events,
    metadata::{controller, is_controlled_by, is_of_predecessor},
    retry::{self, Class, Classified, bounded},
    watch::Cached,
};

/// Kinds that protect something: they are never left to anybody else.
const PROTECTING: [&str; 6] =
    ["NetworkPolicy", "IngressRoute", "Middleware", "ServersTransport", "Secret", "ConfigMap"];

/// A resource version that no object has: that of a store in which nothing was
/// ever written.
const OF_NO_OBJECT: &str = "1";

/// A kind in a namespace, as far as the caches keep it.
pub trait Namespaced: Cached + Resource<Scope = NamespaceResourceScope> {}
impl<K> Namespaced for K where K: Cached + Resource<Scope = NamespaceResourceScope> {}

/// A namespaced kind that the operator writes.
pub trait Child: Namespaced + Serialize {}
impl<K> Child for K where K: Namespaced + Serialize {}

/// What is kept of a live `K`: all of it, or its metadata. Which of its fields
/// are as they were applied, the metadata tell.
pub trait Live<K>: Namespaced {}
impl<K: Child> Live<K> for K {}
impl<K: Child> Live<K> for PartialObjectMeta<K> {}

/// Why a child could not be written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The name is taken by an object of somebody else.
    #[error("{kind} {name} exists and is not controlled by this object; rename or delete it")]
    NameConflict {
        /// Kind of the child.
        kind: String,
        /// Name of the child.
        name: String,
    },
    /// The name is taken by what an object of the same name left behind.
    #[error("{kind} {name} belongs to a deleted object of the same name; waiting until it is cleared away")]
    Remains {
        /// Kind of the child.
        kind: String,
        /// Name of the child.
        name: String,
    },
    /// Somebody else changes the object as often as it is changed back.
    #[error(
        "{kind} {name}: {conflict} more often than it was changed back; left alone for now. \
        Remove the other manager, or label the object peristyle.dev/ignore=true"
    )]
    ForeignManager {
        /// Kind of the child.
        kind: String,
        /// Name of the child.
        name: String,
        /// Who changes what.
        conflict: Conflict,
    },
    /// The API server refused or did not answer.
    #[error("failed to {verb} {kind} {name}: {source}")]
    Request {
        /// What was tried.
        verb: &'static str,
        /// Kind of the child.
        kind: String,
        /// Name of the child.
        name: String,
        /// Why not.
        #[source]
        source: Box<kube::Error>,
    },
    /// The owner was deleted meanwhile.
    #[error("{kind} {name} is gone; its children are not created again")]
    OwnerGone {
        /// Kind of the owner.
        kind: String,
        /// Name of the owner.
        name: String,
    },
    /// The child is not valid JSON; a bug.
    #[error("failed to encode {0}")]
    Encode(String, #[source] serde_json::Error),
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            Self::NameConflict { .. } => Class::Terminal,
            Self::Remains { .. } => Class::Wait,
            Self::ForeignManager { .. } | Self::OwnerGone { .. } => Class::Conflict,
            Self::Request { source, .. } => retry::classify(source),
            Self::Encode(..) => Class::Bug,
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::NameConflict { .. } => Reason::NameConflict,
            Self::ForeignManager { .. } => Reason::ForeignManager,
            Self::Remains { .. } | Self::Request { .. } | Self::OwnerGone { .. } | Self::Encode(..) => {
                retry::reason(self.class())
            }
        }
    }
}

/// Writes children and remembers what it wrote.
pub struct Applier {
    client: Client,
    /// By [`place`]. One flat map: a table for each owner would take several
    /// times the memory of what is in it.
    applied: Mutex<BTreeMap<Box<str>, Record>>,
    drift: Drift,
    events: Option<Events>,
}

impl Applier {
    /// An applier that has written nothing yet.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client, applied: Mutex::default(), drift: Drift::default(), events: None }
    }

    /// Tells of what is changed back by events of the owner.
    #[must_use]
    pub fn telling(self, events: Events) -> Self {
        Self { events: Some(events), ..self }
    }

    /// Forgets the children of an owner that is gone.
    pub fn forget(&self, kind: &str, namespace: &str, name: &str) {
        let mut children = format!("{kind}/{name}/");
        // The children of an owner without a namespace may be in any.
        if !namespace.is_empty() {
            children.extend([namespace, "/"]);
        }
        let mut applied = self.lock();
        // Names without an owner are asked for often, and there are many records.
        let from = applied.range::<str, _>((Bound::Included(children.as_str()), Bound::Unbounded));
        let places = from.map(|(place, _)| place).take_while(|place| place.starts_with(&children));
        for place in places.cloned().collect::<Vec<_>>() {
            applied.remove(&place);
        }
    }

    /// Makes the live object match `desired`, which must name its controller.
    ///
    /// `live` is the object as the cache has it. Sends nothing when it is what
    /// the last apply of the same `desired` left behind, also that of an earlier
    /// process, and reads it when the cache does not show that apply yet. Fields
    /// that `desired` does not name are left to their owners.
    ///
    /// Returns what the API server answered, `None` when it was not asked.
    ///
    /// # Errors
    /// [`Error::NameConflict`] when an object of that name exists that is not
    /// ours; [`Error::Remains`] while it is one of an owner before;
    /// [`Error::Request`] when the API server refuses.
    pub async fn apply<K: Child, L: Live<K>>(
        &self,
        live: Option<&L>,
        desired: &K,
    ) -> Result<Option<L>, Error> {
        let name = desired.name_any();
        let owner = desired.owner_references().first();
        let api: Api<L> = Api::namespaced(self.client.clone(), &desired.namespace().unwrap_or_default());
        let digest_of_wanted = fingerprint(desired)?;
        let known = self.remembered(desired);
        let applied = known.as_ref().filter(|known| known.desired == digest_of_wanted);
        let mut read = None;
        if applied.is_some_and(|applied| applied.is_ahead_of(live)) {
            // Rare, so on the heap: it would make the future of every pass larger.
            let answer = Box::pin(bounded(api.get_opt(&name))).await;
            read = Some(answer.map_err(|error| Error::request::<K>("get", &name, error))?.map(Box::new));
        }
        let live = read.as_ref().map_or(live, Option::as_deref);
        if let Some(live) = live {
            guard(live, owner)?;
            if let Some(applied) = applied.filter(|applied| applied.made(live)) {
                if applied.version != version(live) {
                    self.remember(desired, Record::of(digest_of_wanted, live));
                }
                return Ok(read.flatten().map(|read| *read));
            }
        }
        let mut wanted = encode(desired)?;
        annotate::<K>(&mut wanted, &digest_of_wanted);
        let is_drift = live.is_some_and(|live| applied.is_some() || is_named(live, &wanted));
        let uid = if let Some(live) = live {
            if known.is_none() && is_as_applied(live, &wanted) {
                self.remember(desired, Record::of(digest_of_wanted, live));
                return Ok(None);
            }
            live.uid()
        } else {
            if let Some(created) = self.create(&api, desired, &wanted).await? {
                self.remember(desired, Record::of(digest_of_wanted, &created));
                return Ok(Some(created));
            }
            // The caches hold only what carries our label: an object of somebody
            // else is invisible there, and a forced apply would take it over.
            let found = bounded(api.get_metadata_opt(&name)).await;
            let found = found.map_err(|error| Error::request::<K>("get", &name, error))?;
            found.as_ref().map_or(Ok(()), |found| guard(found, owner))?;
            found.and_then(|found| found.uid())
        };
        // Whatever has the name by now: only the object that was seen is written.
        if let Some(uid) = uid {
            wanted["metadata"]["uid"] = uid.into();
        }
        let patch = Patch::Apply(with_type::<K>(wanted));
        let applied = self.patch(&api, desired, &patch, is_drift).await?;
        self.remember(desired, Record::of(digest_of_wanted, &applied));
        Ok(Some(applied))
    }

    /// Creates the object unless something has its name: `None` then.
    ///
    /// A create would do, but what it sets it owns by another operation than an
    /// apply, so that a later apply could not remove a field. An apply that
    /// names a version meets no object but of that version, and none has this one.
    async fn create<K: Child, L: Live<K>>(
        &self,
        api: &Api<L>,
        desired: &K,
        wanted: &serde_json::Value,
    ) -> Result<Option<L>, Error> {
        let name = desired.name_any();
        let mut wanted = wanted.clone();
        wanted["metadata"]["resourceVersion"] = OF_NO_OBJECT.into();
        let patch = Patch::Apply(with_type::<K>(wanted));
        match bounded(api.patch(&name, &PatchParams::apply(FIELD_MANAGER).force(), &patch)).await {
            Ok(created) => Ok(Some(created)),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(None),
            Err(error) => Err(Error::request::<K>("apply", &name, error)),
        }
    }

    async fn patch<K: Child, L: Live<K>>(
        &self,
        api: &Api<L>,
        desired: &K,
        patch: &Patch<serde_json::Value>,
        is_drift: bool,
    ) -> Result<L, Error> {
        let name = desired.name_any();
        let refused = |error| Error::request::<K>("apply", &name, error);
        let params = PatchParams::apply(FIELD_MANAGER);
        if is_drift {
            if let Some(conflict) = self.drift.left_to(&key(desired), Instant::now()) {
                return Err(given_up(desired, conflict));
            }
            // Not by force at first: only a refusal names who changed what.
            let answer = bounded(api.patch(&name, &params, patch)).await;
            let conflict = match &answer {
                Err(kube::Error::Api(status)) => Conflict::of(status),
                _ => None,
            };
            let Some(conflict) = conflict else { return answer.map_err(refused) };
            self.dispute(desired, conflict).await?;
        }
        bounded(api.patch(&name, &params.force(), patch)).await.map_err(refused)
    }

    /// Tells of a change that is reverted now, or that it was reverted often enough.
    async fn dispute<K: Child>(&self, desired: &K, conflict: Conflict) -> Result<(), Error> {
        let kind = K::kind(&());
        let is_protecting = PROTECTING.contains(&&*kind);
        if !is_protecting && !self.drift.may_revert(&key(desired), &conflict, Instant::now()) {
            return Err(given_up(desired, conflict));
        }
        let note = format!("{kind} {}: {conflict}; changed back", desired.name_any());
        tracing::info!(namespace = ?desired.namespace(), "{note}");
        if let (Some(events), Some(owner)) = (&self.events, desired.owner_references().first()) {
            events.changed_back(owner, desired.namespace(), &note).await;
        }
        Ok(())
    }

    /// Deletes `live` if it is controlled by `owner` and still the object that was seen.
    ///
    /// # Errors
    /// [`Error::Request`] when the API server refuses; an object that is gone is no error.
    pub async fn delete<K: Namespaced>(&self, live: &K, owner: &str) -> Result<(), Error> {
        let name = live.name_any();
        if !is_controlled_by(live, owner) {
            return Err(Error::NameConflict { kind: K::kind(&()).into_owned(), name });
        }
        let api: Api<K> = Api::namespaced(self.client.clone(), &live.namespace().unwrap_or_default());
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: live.uid(), resource_version: None }),
            ..DeleteParams::background()
        };
        self.lock().remove(&place(live));
        match bounded(api.delete(&name, &params)).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() => Ok(()),
            Err(error) => Err(Error::request::<K>("delete", &name, error)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Box<str>, Record>> {
        self.applied.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remembered<K: Child>(&self, child: &K) -> Option<Record> {
        self.lock().get(&place(child)).cloned()
    }

    fn remember<K: Child>(&self, child: &K, record: Record) {
        self.lock().insert(place(child), record);
    }
}

/// Kind and name of the owner, then namespace, kind and name of the child, so
/// that an owner is forgotten with all of its children; none has a slash in it.
fn place<K: Resource<DynamicType = ()>>(child: &K) -> Box<str> {
    let (kind, name) = controller(child).map(|owner| (&*owner.kind, &*owner.name)).unwrap_or_default();
    let namespace = child.namespace().unwrap_or_default();
    format!("{kind}/{name}/{namespace}/{}/{}", K::kind(&()), child.name_any()).into()
}

/// Whether `live` is what an apply of `wanted` left behind.
fn is_as_applied(live: &impl Resource, wanted: &serde_json::Value) -> bool {
    is_named(live, wanted) && ownership::is_complete(live.meta(), wanted)
}

/// Whether the annotation of `live` names `wanted` as what was applied last.
fn is_named(live: &impl Resource, wanted: &serde_json::Value) -> bool {
    let applied = live.annotations().get(ownership::APPLIED);
    let asked = wanted["metadata"]["annotations"][ownership::APPLIED].as_str();
    applied.is_some() && applied.map(String::as_str) == asked
}

/// Writes down on the child what it was made from.
fn annotate<K: Child>(wanted: &mut serde_json::Value, digest: &Hash) {
    // A Secret's annotations are shown where its content is not.
    if K::kind(&()) != "Secret" {
        wanted["metadata"]["annotations"][ownership::APPLIED] = hex::encode(digest).into();
    }
}

impl Error {
    pub(crate) fn request<K: Resource<DynamicType = ()>>(
        verb: &'static str,
        name: &str,
        source: kube::Error,
    ) -> Self {
        Self::Request {
            verb,
            kind: K::kind(&()).into_owned(),
            name: name.to_owned(),
            source: Box::new(source),
        }
    }
}

fn given_up<K: Child>(child: &K, conflict: Conflict) -> Error {
    Error::ForeignManager { kind: K::kind(&()).into_owned(), name: child.name_any(), conflict }
}

/// Makes sure that `owner` controls `live`.
///
/// # Errors
/// [`Error::NameConflict`] when it does not; [`Error::Remains`] when one of its name did that is gone.
pub fn guard<K: Resource>(live: &K, owner: Option<&OwnerReference>) -> Result<(), Error>
where
    K::DynamicType: Default,
{
    if owner.is_some_and(|owner| is_controlled_by(live, &owner.uid)) {
        return Ok(());
    }
    let (kind, name) = (K::kind(&K::DynamicType::default()).into_owned(), live.name_any());
    if owner.is_some_and(|owner| is_of_predecessor(live, owner)) {
        return Err(Error::Remains { kind, name });
    }
    Err(Error::NameConflict { kind, name })
}

fn key<K: Resource<DynamicType = ()>>(object: &K) -> String {
    format!("{}/{}/{}", K::kind(&()), object.namespace().unwrap_or_default(), object.name_any())
}

fn encode<K: Child>(object: &K) -> Result<serde_json::Value, Error> {
    serde_json::to_value(object).map_err(|e| Error::Encode(key(object), e))
}

/// An apply needs `apiVersion` and `kind`; most types of a store lack them.
fn with_type<K: Child>(mut value: serde_json::Value) -> serde_json::Value {
    if let Some(object) = value.as_object_mut() {
        object.insert("apiVersion".to_owned(), K::api_version(&()).into_owned().into());
        object.insert("kind".to_owned(), K::kind(&()).into_owned().into());
    }
    value
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::api::core::v1::ConfigMap;
    use serde_json::json;

    use super::*;

    fn child(namespace: &str, name: &str, kind: &str, owner: &str) -> ConfigMap {
        let reference =
            json!({"apiVersion": "v1", "kind": kind, "name": owner, "uid": "u", "controller": true});
        let metadata = json!({"namespace": namespace, "name": name, "ownerReferences": [reference]});
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    #[test]
    fn a_name_is_taken_for_good_only_by_an_object_of_somebody_else() {
        let reference = |name: &str, uid: &str| OwnerReference {
            api_version: "v1".to_owned(),
            kind: "Service".to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
            controller: Some(true),
            block_owner_deletion: None,
        };
        let live = child("a", "x", "Service", "orders");
        let class = |owner: Option<&OwnerReference>| guard(&live, owner).map_err(|error| error.class());
        assert_eq!(class(Some(&reference("orders", "u"))), Ok(()));
        assert_eq!(class(Some(&reference("orders", "later"))), Err(Class::Wait));
        assert_eq!(class(Some(&reference("other", "v"))), Err(Class::Terminal));
        assert_eq!(class(None), Err(Class::Terminal));
        assert_eq!(
            guard(&ConfigMap::default(), Some(&reference("orders", "u"))).unwrap_err().class(),
            Class::Terminal
        );
    }

    fn applier() -> Applier {
        let service = tower::service_fn(async |_: http::Request<kube::client::Body>| {
            Ok::<_, std::convert::Infallible>(http::Response::new(kube::client::Body::empty()))
        });
        Applier::new(Client::new(service, "default"))
    }

    /// An applier whose API server has what it was sent last, and what it is asked.
    fn served() -> (Applier, Arc<Mutex<Vec<String>>>) {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let stored = Arc::new(Mutex::new(None::<serde_json::Value>));
        let noted = asked.clone();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (noted, stored) = (noted.clone(), stored.clone());
            async move {
                let method = request.method().to_string();
                let body = request.into_body().collect_bytes().await?;
                let mut stored = stored.lock().unwrap();
                if method == "PATCH" {
                    let mut object: serde_json::Value = serde_json::from_slice(&body).unwrap();
                    object["metadata"]["uid"] = json!("of-the-child");
                    object["metadata"]["resourceVersion"] = json!("10");
                    let ours = json!({"manager": FIELD_MANAGER, "operation": "Apply", "fieldsV1": {}});
                    object["metadata"]["managedFields"] = json!([ours]);
                    *stored = Some(object);
                }
                noted.lock().unwrap().push(method);
                let gone = json!({"kind": "Status", "code": 404, "reason": "NotFound", "message": ""});
                let code = if stored.is_some() { 200 } else { 404 };
                let answer = stored.clone().unwrap_or(gone).to_string();
                let body = kube::client::Body::from(answer.into_bytes());
                Ok::<_, kube::Error>(http::Response::builder().status(code).body(body).unwrap())
            }
        });
        (Applier::new(Client::new(service, "default")), asked)
    }

    #[tokio::test]
    async fn what_was_applied_is_not_applied_again_because_the_cache_does_not_show_it() {
        let (applier, asked) = served();
        let desired = child("a", "x", "Service", "orders");
        let made: ConfigMap = applier.apply(None, &desired).await.unwrap().unwrap();
        let take = || std::mem::take(&mut *asked.lock().unwrap());
        assert_eq!(take(), ["PATCH"]);
        let mut before = made.clone();
        before.metadata.resource_version = Some("9".to_owned());
        for behind in [None, Some(&before)] {
            applier.apply(behind, &desired).await.unwrap();
            assert_eq!(take(), ["GET"]);
        }
        applier.apply(Some(&made), &desired).await.unwrap();
        assert!(take().is_empty(), "the cache is up to date");
        let mut drifted = made.clone();
        drifted.metadata.resource_version = Some("11".to_owned());
        drifted.metadata.managed_fields = None;
        applier.apply(Some(&drifted), &desired).await.unwrap();
        assert_eq!(take(), ["PATCH"], "what is later than the apply is no lag");
    }

    #[tokio::test]
    async fn what_is_remembered_goes_with_its_owner_and_no_other() {
        let applier = applier();
        let record = Record::of([0; 16], &ConfigMap::default());
        let gone = child("a", "x", "Service", "orders");
        let namesake = child("b", "x", "Service", "orders");
        let of_class = child("system", "y", "AuthClass", "orders");
        let longer = child("a", "x", "Service", "orders-api");
        let elsewhere = child("ab", "x", "Service", "orders");
        let all = [&gone, &namesake, &of_class, &longer, &elsewhere];
        for child in all {
            applier.remember(child, record.clone());
        }
        applier.forget("Service", "a", "orders");
        let left = all.map(|child| applier.remembered(child).is_some());
        assert_eq!(left, [false, true, true, true, true]);
        applier.forget("AuthClass", "", "orders");
        let left = all.map(|child| applier.remembered(child).is_some());
        assert_eq!(left, [false, true, false, true, true]);
        for (namespace, name) in [("b", "orders"), ("a", "orders-api"), ("ab", "orders")] {
            applier.forget("Service", namespace, name);
        }
        assert!(applier.lock().is_empty(), "something is kept for ever");
    }
}
