//! The one loop of all controllers: queue, reconcile, status, retry.

use std::{
    fmt::Debug,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, stream::BoxStream};
use jiff::Timestamp;
use kube::{
    Resource, ResourceExt,
    api::{Patch, PatchParams, Request},
    runtime::{
        controller::{self, Action},
        reflector::ObjectRef,
    },
};
use peristyle_crds::{
    FIELD_MANAGER,
    condition::{Reason, types},
    v1alpha1::Reported,
};
use serde::{Serialize, de::DeserializeOwned};

use crate::{
    backoff::jitter,
    conditions::{self, Finding, State},
    context::Context,
    retry::{Class, Classified, bounded},
    watch::Watched,
};

/// How often a healthy object is looked at although nothing changed.
const RESYNC: Duration = Duration::from_secs(6 * 3600);
/// How often an object that waits is looked at although nothing changed.
const WAIT: Duration = Duration::from_secs(45);
/// Bound on one pass; every call inside has its own, shorter deadline.
const PASS_DEADLINE: Duration = Duration::from_secs(120);

/// What one pass over an object found.
#[derive(Debug)]
pub struct Outcome<S> {
    /// The status, without conditions and observed generation.
    pub status: S,
    /// How each aspect stands.
    pub findings: Vec<Finding>,
    /// Look again after this long although nothing changed. Default: hours when
    /// all is good, 45 s while waiting.
    pub requeue: Option<Duration>,
}

impl<S> Outcome<S> {
    /// An outcome with the usual interval.
    pub fn new(status: S, findings: Vec<Finding>) -> Self {
        Self { status, findings, requeue: None }
    }
}

/// A kind with a controller.
pub trait Root: Reported + Clone + Debug + DeserializeOwned + Serialize + Send + Sync + 'static
where
    Self::Status: DeserializeOwned,
{
}
impl<K> Root for K
where
    K: Reported + Clone + Debug + DeserializeOwned + Serialize + Send + Sync + 'static,
    K::Status: DeserializeOwned,
{
}

#[derive(Debug, thiserror::Error)]
#[error("failed to write the status: {0}")]
struct StatusError(#[source] Box<kube::Error>);

/// Runs the controller of `K` until the process ends.
///
/// `triggers` are references to objects of `K` that should be looked at
/// besides those that change themselves.
pub async fn run<K, F, Fut, E>(
    ctx: Arc<Context>,
    roots: &Watched<K>,
    triggers: Vec<BoxStream<'static, ObjectRef<K>>>,
    reconcile: F,
) where
    K: Root,
    K::Status: DeserializeOwned,
    F: Fn(Arc<K>, Arc<Context>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Outcome<K::Status>, E>> + Send + 'static,
    E: Classified,
{
    let own = roots.changes().map(|object| ObjectRef::from_obj(&*object)).boxed();
    let queue = futures::stream::select_all(triggers.into_iter().chain([own]))
        .map(Ok::<ObjectRef<K>, std::convert::Infallible>);
    let pass = move |object: Arc<K>, ctx: Arc<Context>| {
        let reconcile = reconcile.clone();
        async move { pass(object, ctx, reconcile).await }.boxed()
    };
    let retry = |object: Arc<K>, error: &StatusError, ctx: Arc<Context>| {
        tracing::warn!(kind = %K::kind(&()), name = %object.name_any(), %error, "retrying");
        Action::requeue(ctx.backoff.fail(&key(&*object)))
    };
    let config = controller::Config::default().concurrency(16);
    controller::applier(pass, retry, ctx, roots.store().clone(), queue, config)
        .for_each(|result| async move {
            // An object that is gone needs nothing: its children follow by owner reference.
            if let Err(error) = result
                && !matches!(
                    error,
                    controller::Error::ObjectNotFound(_) | controller::Error::ReconcilerFailed(..)
                )
            {
                tracing::error!(%error, "controller queue failed");
            }
        })
        .await;
}

async fn pass<K, F, Fut, E>(object: Arc<K>, ctx: Arc<Context>, reconcile: F) -> Result<Action, StatusError>
where
    K: Root,
    K::Status: DeserializeOwned,
    F: Fn(Arc<K>, Arc<Context>) -> Fut,
    Fut: Future<Output = Result<Outcome<K::Status>, E>> + Send,
    E: Classified,
{
    let key = key(&*object);
    let started = Instant::now();
    let work = AssertUnwindSafe(reconcile(object.clone(), ctx.clone())).catch_unwind();
    let (outcome, class) = match tokio::time::timeout(PASS_DEADLINE, work).await {
        Ok(Ok(Ok(outcome))) => (outcome, None),
        Ok(Ok(Err(error))) => {
            let finding = Finding {
                condition: error.condition(),
                state: state(error.class()),
                reason: error.reason(),
                message: error.to_string(),
            };
            // Waiting is what the status says, not something to look into.
            if error.class() == Class::Wait {
                tracing::debug!(object = %key, %error, "waiting");
            } else {
                tracing::warn!(object = %key, %error, "reconcile failed");
            }
            (failed(&*object, finding), Some(error.class()))
        }
        Ok(Err(_)) => {
            let finding =
                Finding::failed(types::READY, Reason::InternalError, "a bug in the operator; see its log");
            (failed(&*object, finding), Some(Class::Bug))
        }
        Err(_) => {
            let finding =
                Finding::failed(types::READY, Reason::Unavailable, "a pass took more than 2 minutes");
            (failed(&*object, finding), Some(Class::Transient))
        }
    };
    ctx.metrics.reconciled(&K::kind(&()), class, started.elapsed());
    let requeue = outcome.requeue;
    let worst = conditions::worst(&outcome.findings);
    let standing = worst.map(|finding| finding.state);
    let is_name_conflict = worst.is_some_and(|finding| finding.reason == Reason::NameConflict);
    write_status(&*object, &ctx, outcome).await?;
    Ok(match class {
        // The caches do not show when the object of somebody else is gone.
        Some(Class::Terminal) if is_name_conflict => Action::requeue(jitter(WAIT)),
        Some(Class::Terminal) => Action::await_change(),
        Some(Class::Forbidden) => Action::requeue(ctx.backoff.fail(&key).max(Duration::from_secs(30))),
        Some(Class::Wait) => Action::requeue(jitter(WAIT)),
        Some(Class::Conflict | Class::Transient | Class::Bug) => Action::requeue(ctx.backoff.fail(&key)),
        None => match (requeue, standing) {
            (Some(after), Some(_)) => Action::requeue(after),
            (None, Some(State::Failed)) => Action::requeue(ctx.backoff.fail(&key)),
            (None, Some(State::Waiting)) => Action::requeue(jitter(WAIT)),
            (_, Some(State::Stalled)) => Action::await_change(),
            (after, None | Some(State::Good)) => {
                ctx.backoff.reset(&key);
                Action::requeue(jitter(after.unwrap_or(RESYNC)))
            }
        },
    })
}

/// The last status with one finding that says what went wrong.
fn failed<K: Reported>(object: &K, finding: Finding) -> Outcome<K::Status> {
    Outcome::new(object.reported().cloned().unwrap_or_default(), vec![finding])
}

const fn state(class: Class) -> State {
    match class {
        Class::Terminal => State::Stalled,
        Class::Wait | Class::Conflict | Class::Transient => State::Waiting,
        Class::Forbidden | Class::Bug => State::Failed,
    }
}

#[derive(Serialize, Debug)]
#[serde(rename_all = "camelCase")]
struct StatusPatch<'a, S> {
    api_version: &'a str,
    kind: &'a str,
    metadata: Identity<'a>,
    status: &'a S,
}

/// An object that was deleted and made anew meanwhile must not get this status.
#[derive(Serialize, Debug)]
struct Identity<'a> {
    uid: &'a str,
}

/// Writes the status if it differs, and tells of a transition by an event.
async fn write_status<K>(object: &K, ctx: &Context, outcome: Outcome<K::Status>) -> Result<(), StatusError>
where
    K: Root,
    K::Status: DeserializeOwned,
{
    let stored = object.reported();
    let previous = stored.map(K::conditions).unwrap_or_default();
    let generation = object.meta().generation.unwrap_or_default();
    let mut status = outcome.status;
    let next = conditions::conditions(previous, &outcome.findings, generation, Timestamp::now());
    let ready = |conditions: &[peristyle_crds::condition::Condition]| {
        conditions.iter().find(|c| c.type_ == types::READY).map(|c| (c.status.clone(), c.reason.clone()))
    };
    let is_transition = ready(previous) != ready(&next);
    K::set_observed(&mut status, generation, next);
    if stored == Some(&status) {
        return Ok(());
    }
    let patch = StatusPatch {
        api_version: &K::api_version(&()),
        kind: &K::kind(&()),
        metadata: Identity { uid: object.meta().uid.as_deref().unwrap_or_default() },
        status: &status,
    };
    match bounded(patch_status(ctx, object, &patch)).await {
        Ok(_) => {}
        Err(kube::Error::Api(answer)) if answer.is_not_found() => return Ok(()),
        Err(error) => return Err(StatusError(Box::new(error))),
    }
    if is_transition {
        let finding = conditions::worst(&outcome.findings)
            .cloned()
            .unwrap_or_else(|| conditions::good(&outcome.findings));
        ctx.events.transition(object, &finding).await;
    }
    Ok(())
}

/// Both scopes in one function, which the typed `Api` does not offer.
async fn patch_status<K: Root>(
    ctx: &Context,
    object: &K,
    patch: &StatusPatch<'_, K::Status>,
) -> kube::Result<serde_json::Value>
where
    K::Status: DeserializeOwned,
{
    let request = Request::new(K::url_path(&(), object.namespace().as_deref()))
        .patch_subresource(
            "status",
            &object.name_any(),
            &PatchParams::apply(FIELD_MANAGER).force(),
            &Patch::Apply(patch),
        )
        .map_err(kube::Error::BuildRequest)?;
    ctx.client.request(request).await
}

fn key<K: Resource<DynamicType = ()>>(object: &K) -> String {
    format!("{}/{}/{}", K::kind(&()), object.namespace().unwrap_or_default(), object.name_any())
}
