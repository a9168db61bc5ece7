//! The one loop of all controllers: queue, reconcile, status, retry.

mod unreadable;

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
use serde::{
    Serialize,
    de::{DeserializeOwned, IgnoredAny},
};
use tracing::Instrument;

use crate::{
    backoff::{delay, jitter},
    client,
    conditions::{self, Finding},
    context::Context,
    retry::{self, Class, Classified, Consequence, Retry, bounded, consequence},
    telemetry,
    watch::Watched,
};

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
    let unreadable = roots.unreadable();
    let pass = move |object: Arc<K>, ctx: Arc<Context>| {
        // What the cache has of it is old, and its status speaks of the present version.
        if unreadable.borrow().contains_key(&ObjectRef::from_obj(&*object)) {
            return std::future::ready(Ok(Action::await_change())).boxed();
        }
        let reconcile = reconcile.clone();
        async move { pass(object, ctx, reconcile).await }.boxed()
    };
    let retry = |object: Arc<K>, error: &StatusError, ctx: Arc<Context>| {
        let key = key(&*object);
        tracing::warn!(object = %key, %error, "retrying");
        Action::requeue(delay(ctx.backoff.fail(&key)).max(client::pause_asked_by(error).unwrap_or_default()))
    };
    let config = controller::Config::default().concurrency(16);
    let results = controller::applier(pass, retry, ctx.clone(), roots.store().clone(), queue, config);
    let passes = results.for_each(|result| {
        match result {
            Ok(_) | Err(controller::Error::ReconcilerFailed(..)) => {}
            // Its children follow by owner reference.
            Err(controller::Error::ObjectNotFound(gone)) => {
                let namespace = gone.namespace.as_deref().unwrap_or_default();
                ctx.backoff.reset(&key_of::<K>(namespace, &gone.name));
                ctx.applier.forget(&K::kind(&()), namespace, &gone.name);
            }
            Err(error) => tracing::error!(%error, "controller queue failed"),
        }
        std::future::ready(())
    });
    tokio::join!(passes, unreadable::report(&ctx, roots));
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
    if ctx.passes.is_closed() {
        return Ok(Action::await_change());
    }
    let generation = object.meta().generation;
    if let Some(left) = ctx.backoff.held(&key, generation) {
        return Ok(Action::requeue(left));
    }
    let _running = ctx.passes.token();
    let span = telemetry::pass_span(&K::kind(&()), &key, object.meta());
    async {
        let started = Instant::now();
        let work = AssertUnwindSafe(reconcile(object.clone(), ctx.clone())).catch_unwind();
        let result = match tokio::time::timeout(PASS_DEADLINE, work).await {
            Ok(Ok(result)) => result.map_err(|error| Failure::of(&key, &error)),
            Ok(Err(_)) => {
                tracing::error!(object = %key, "reconcile panicked");
                Err(Failure::panicked())
            }
            Err(_) => Err(Failure::late()),
        };
        ctx.metrics.reconciled(&K::kind(&()), result.as_ref().err().map(|f| f.class), started.elapsed());
        let (outcome, retry, failures, pause) = match result {
            Ok(outcome) => {
                let retry = retry::after(&outcome.findings, outcome.requeue);
                let failures = if retry == Retry::Backoff { ctx.backoff.fail(&key) } else { 0 };
                (Some(outcome), retry, failures, None)
            }
            Err(Failure { class, finding, pause }) => {
                let failures = ctx.backoff.fail(&key);
                let reason = finding.reason;
                let Consequence { shown, retry } = consequence(class, reason, failures);
                let outcome = shown.map(|state| failed(&*object, Finding { state, ..finding }));
                // Each try is one more refusal in the audit log, and no watch tells of a grant.
                if let (Reason::Forbidden, Retry::After(pause)) = (reason, retry) {
                    ctx.backoff.hold(&key, generation, jitter(pause));
                }
                (outcome, retry, failures, pause)
            }
        };
        if let Some(outcome) = outcome {
            write_status(&*object, &ctx, outcome).await?;
        }
        if failures == 0 {
            ctx.backoff.reset(&key);
        }
        Ok(match retry {
            Retry::OnChange => Action::await_change(),
            Retry::After(after) => Action::requeue(jitter(after)),
            Retry::Backoff => Action::requeue(delay(failures).max(pause.unwrap_or_default())),
        })
    }
    .instrument(span)
    .await
}

/// Why a pass did not come to its end.
struct Failure {
    class: Class,
    /// Its state is decided by the class.
    finding: Finding,
    /// How long the API server asked to be left alone.
    pause: Option<Duration>,
}

impl Failure {
    fn of<E: Classified>(key: &str, error: &E) -> Self {
        // Waiting is what the status says, not something to look into.
        if error.class() == Class::Wait {
            tracing::debug!(object = %key, %error, "waiting");
        } else {
            tracing::warn!(object = %key, %error, "reconcile failed");
        }
        let finding = Finding::failed(error.condition(), error.reason(), error.to_string());
        Self { class: error.class(), finding, pause: client::pause_asked_by(error) }
    }

    fn panicked() -> Self {
        let finding =
            Finding::failed(types::READY, Reason::InternalError, "a bug in the operator; see its log");
        Self { class: Class::Bug, finding, pause: None }
    }

    fn late() -> Self {
        let finding = Finding::failed(types::READY, Reason::Unavailable, "a pass took more than 2 minutes");
        Self { class: Class::Transient, finding, pause: None }
    }
}

/// The last status with one finding that says what went wrong.
fn failed<K: Reported>(object: &K, finding: Finding) -> Outcome<K::Status> {
    Outcome::new(object.reported().cloned().unwrap_or_default(), vec![finding])
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
    let is_transition = conditions::is_transition(previous, &next);
    K::set_observed(&mut status, generation, next);
    if stored == Some(&status) {
        return Ok(());
    }
    let object_uid = object.meta().uid.as_deref().unwrap_or_default();
    let namespace = object.namespace();
    match patch_status::<K, _>(ctx, namespace.as_deref(), &object.name_any(), object_uid, &status).await {
        Ok(()) => {}
        Err(kube::Error::Api(answer)) if answer.is_not_found() => return Ok(()),
        Err(error) => return Err(StatusError(Box::new(error))),
    }
    if is_transition {
        let finding = conditions::worst(&outcome.findings)
            .cloned()
            .unwrap_or_else(|| conditions::good(&outcome.findings));
        ctx.events.transition(&object.object_ref(&()), &finding).await;
    }
    Ok(())
}

/// Both scopes in one function, which the typed `Api` does not offer.
async fn patch_status<K: Root, S: Serialize + Debug>(
    ctx: &Context,
    namespace: Option<&str>,
    name: &str,
    uid: &str,
    status: &S,
) -> kube::Result<()>
where
    K::Status: DeserializeOwned,
{
    let patch = StatusPatch {
        api_version: &K::api_version(&()),
        kind: &K::kind(&()),
        metadata: Identity { uid },
        status,
    };
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let request = Request::new(K::url_path(&(), namespace))
        .patch_subresource("status", name, &params, &Patch::Apply(&patch))
        .map_err(kube::Error::BuildRequest)?;
    bounded(ctx.client.request::<IgnoredAny>(request)).await?;
    Ok(())
}

fn key<K: Resource<DynamicType = ()>>(object: &K) -> String {
    key_of::<K>(&object.namespace().unwrap_or_default(), &object.name_any())
}

fn key_of<K: Resource<DynamicType = ()>>(namespace: &str, name: &str) -> String {
    format!("{}/{namespace}/{name}", K::kind(&()))
}
