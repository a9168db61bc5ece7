//! The one loop of all controllers: queue, reconcile, status, retry.

mod status;
mod unreadable;
pub mod unseen;

use std::{
    fmt::Debug,
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::{FutureExt, StreamExt, stream::BoxStream};
use kube::{
    Resource, ResourceExt,
    runtime::{
        controller::{self, Action},
        reflector::ObjectRef,
    },
};
use peristyle_crds::{
    condition::{Reason, types},
    v1alpha1::Reported,
};
use serde::{Serialize, de::DeserializeOwned};
use tracing::Instrument;

use crate::{
    backoff::{delay, jitter, respite},
    client,
    conditions::Finding,
    context::Context,
    retry::{self, Class, Classified, Consequence, Retry, consequence},
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
    let close = |_, _| std::future::ready(Ok(()));
    run_closing(ctx, roots, triggers, close, reconcile).await;
}

/// The same for a kind whose objects let somebody in: `close` takes back what
/// they may no longer grant, also while an object is left alone for a while.
pub async fn run_closing<K, C, Closed, F, Fut, E>(
    ctx: Arc<Context>,
    roots: &Watched<K>,
    triggers: Vec<BoxStream<'static, ObjectRef<K>>>,
    close: C,
    reconcile: F,
) where
    K: Root,
    K::Status: DeserializeOwned,
    C: Fn(Arc<K>, Arc<Context>) -> Closed + Clone + Send + Sync + 'static,
    Closed: Future<Output = Result<(), E>> + Send + 'static,
    F: Fn(Arc<K>, Arc<Context>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Outcome<K::Status>, E>> + Send + 'static,
    E: Classified,
{
    let (seen, cache) = (ctx.clone(), roots.store().clone());
    let own = roots.changes().filter_map(move |object| {
        let reference = ObjectRef::from_obj(&*object);
        // One that is gone has none there.
        let version = cache.get(&reference).and_then(|object| object.resource_version());
        let is_news = !seen.unseen.is_known(&key(&*object), version.as_deref());
        std::future::ready(is_news.then_some(reference))
    });
    let queue = futures::stream::select_all(triggers.into_iter().chain([own.boxed()]))
        .map(Ok::<ObjectRef<K>, std::convert::Infallible>);
    let unreadable = roots.unreadable();
    let pass = move |object: Arc<K>, ctx: Arc<Context>| {
        // What the cache has of it is old, and its status speaks of the present version.
        if unreadable.borrow().contains_key(&ObjectRef::from_obj(&*object)) {
            return std::future::ready(Ok(Action::await_change())).boxed();
        }
        let (close, reconcile) = (close.clone(), reconcile.clone());
        async move { pass(object, ctx, close, reconcile).await }.boxed()
    };
    let retry = |object: Arc<K>, error: &status::Error, ctx: Arc<Context>| {
        let key = key(&*object);
        tracing::warn!(object = %key, %error, "retrying");
        let generation = object.meta().generation;
        let failures = ctx.backoff.fail(&key, generation);
        let pause = client::pause_asked_by(error).unwrap_or_default();
        ctx.backoff.hold(&key, generation, respite(failures).max(pause));
        // Another spec is not held up by what failed with the one before.
        Action::requeue(if error.has_news { Duration::ZERO } else { delay(failures).max(pause) })
    };
    let config = controller::Config::default().concurrency(16);
    let results = controller::applier(pass, retry, ctx.clone(), roots.store().clone(), queue, config);
    let passes = results.for_each(|result| {
        match result {
            Ok(_) | Err(controller::Error::ReconcilerFailed(..)) => {}
            // Its children follow by owner reference.
            Err(controller::Error::ObjectNotFound(gone)) => {
                let namespace = gone.namespace.as_deref().unwrap_or_default();
                let key = key_of::<K>(namespace, &gone.name);
                ctx.backoff.reset(&key);
                ctx.backoff.reset(&closing(&key));
                ctx.unseen.forget(&key);
                ctx.applier.forget(&K::kind(&()), namespace, &gone.name);
            }
            Err(error) => tracing::error!(%error, "controller queue failed"),
        }
        std::future::ready(())
    });
    tokio::join!(passes, unreadable::report(&ctx, roots));
}

async fn pass<K, C, Closed, F, Fut, E>(
    object: Arc<K>,
    ctx: Arc<Context>,
    close: C,
    reconcile: F,
) -> Result<Action, status::Error>
where
    K: Root,
    K::Status: DeserializeOwned,
    C: Fn(Arc<K>, Arc<Context>) -> Closed,
    Closed: Future<Output = Result<(), E>> + Send,
    F: Fn(Arc<K>, Arc<Context>) -> Fut,
    Fut: Future<Output = Result<Outcome<K::Status>, E>> + Send,
    E: Classified,
{
    let key = key(&*object);
    if ctx.passes.is_closed() {
        return Ok(Action::await_change());
    }
    if let Some(action) = ctx.unseen.instead(&key, object.meta().resource_version.as_deref()) {
        return Ok(action);
    }
    let generation = object.meta().generation;
    let _running = ctx.passes.token();
    let span = telemetry::pass_span(&K::kind(&()), &key, object.meta());
    async {
        if let Some(left) = ctx.backoff.held(&key, generation) {
            let again = closed(&ctx, &key, generation, close(object.clone(), ctx.clone())).await;
            return Ok(Action::requeue(again.map_or(left, |again| again.min(left))));
        }
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
            // What it found may be bad; that the next error is the first one stays true.
            Ok(outcome) => {
                let retry = retry::after(&outcome.findings, outcome.requeue);
                (Some(outcome), retry, 0, None)
            }
            Err(Failure { class, finding, pause }) => {
                let failures = ctx.backoff.fail(&key, generation);
                let reason = finding.reason;
                let Consequence { shown, retry } = consequence(class, reason, failures);
                let outcome = shown.map(|state| failed(&*object, Finding { state, ..finding }));
                let asked = pause.unwrap_or_default();
                let alone = match (class, retry) {
                    // Each try is one more refusal in the audit log, and no watch tells of a grant.
                    (Class::Forbidden, Retry::After(grant)) => jitter(grant),
                    // Each piece of news would bring one more call to what does not answer.
                    (Class::Transient, _) => respite(failures).max(asked),
                    _ => asked,
                };
                ctx.backoff.hold(&key, generation, alone);
                (outcome, retry, failures, pause)
            }
        };
        let has_news = match outcome {
            Some(outcome) => status::write(&*object, &ctx, outcome).await?,
            None => false,
        };
        if failures == 0 {
            ctx.backoff.reset(&key);
        }
        if has_news {
            return Ok(Action::requeue(Duration::ZERO));
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

/// Does what no pause of an object holds up; when to try again before the pause is over.
async fn closed<E: Classified>(
    ctx: &Context,
    key: &str,
    generation: Option<i64>,
    close: impl Future<Output = Result<(), E>> + Send,
) -> Option<Duration> {
    // Its own refusals count apart: only they hold it up.
    let key = &closing(key);
    if let Some(left) = ctx.backoff.held(key, generation) {
        return Some(left);
    }
    let failure = match tokio::time::timeout(PASS_DEADLINE, AssertUnwindSafe(close).catch_unwind()).await {
        Ok(Ok(Ok(()))) => {
            ctx.backoff.reset(key);
            return None;
        }
        Ok(Ok(Err(error))) => Failure::of(key, &error),
        Ok(Err(_)) => {
            tracing::error!(object = %key, "closing panicked");
            Failure::panicked()
        }
        Err(_) => Failure::late(),
    };
    // Nothing tells of a grant, and the pause is as long as it takes to look for one again.
    if failure.class == Class::Forbidden {
        return None;
    }
    let failures = ctx.backoff.fail(key, generation);
    let pause = failure.pause.unwrap_or_default();
    ctx.backoff.hold(key, generation, pause);
    Some(delay(failures).max(pause))
}

/// Under which the refusals of what closes are counted.
fn closing(key: &str) -> String {
    format!("{key} closing")
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

fn key<K: Resource<DynamicType = ()>>(object: &K) -> String {
    key_of::<K>(&object.namespace().unwrap_or_default(), &object.name_any())
}

fn key_of<K: Resource<DynamicType = ()>>(namespace: &str, name: &str) -> String {
    format!("{}/{namespace}/{name}", K::kind(&()))
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use clap::Parser;
    use http::{Method, Response};
    use kube::{Client, client::Body};
    use peristyle_crds::v1alpha1::{Service, ServiceStatus};
    use serde_json::json;

    use super::*;
    use crate::{config::Config, fence::Fence};

    #[derive(Parser)]
    struct Settings {
        #[command(flatten)]
        config: Config,
    }

    #[derive(Debug, thiserror::Error)]
    #[error("the API server answered 500")]
    struct Broken;

    impl Classified for Broken {
        fn class(&self) -> Class {
            Class::Transient
        }

        fn reason(&self) -> Reason {
            Reason::Unavailable
        }
    }

    /// A context whose API server knows one Service, and the statuses that it was sent.
    fn context() -> (Arc<Context>, Arc<Mutex<Vec<String>>>) {
        let statuses = Arc::new(Mutex::new(Vec::new()));
        let sent = statuses.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let sent = sent.clone();
            async move {
                let is_status =
                    request.method() == Method::PATCH && request.uri().path().ends_with("/status");
                let body = request.into_body().collect_bytes().await?;
                if is_status {
                    sent.lock().unwrap().push(String::from_utf8_lossy(&body).into_owned());
                }
                let answer = json!({"metadata": {"name": "orders", "resourceVersion": "2"}});
                Ok::<_, kube::Error>(Response::new(Body::from(answer.to_string().into_bytes())))
            }
        });
        let fence = Fence::new(Duration::from_secs(5));
        fence.open_until(Instant::now() + Duration::from_secs(60));
        let config = Settings::parse_from(["test"]).config;
        (Arc::new(Context::new(Client::new(service, "default"), config, fence).unwrap()), statuses)
    }

    #[derive(Debug, thiserror::Error)]
    #[error("failed to apply: {0}")]
    struct Busy(#[source] client::Error);

    impl Busy {
        fn asks_for(after: Duration) -> Self {
            Self(client::Error::Throttled { status: http::StatusCode::TOO_MANY_REQUESTS, after })
        }
    }

    impl Classified for Busy {
        fn class(&self) -> Class {
            Class::Transient
        }

        fn reason(&self) -> Reason {
            Reason::Unavailable
        }
    }

    fn object(version: &str) -> Arc<Service> {
        let metadata = json!({"name": "orders", "namespace": "shop", "uid": "u", "generation": 1,
            "resourceVersion": version});
        Arc::new(serde_json::from_value(json!({"metadata": metadata, "spec": {"image": "x:1"}})).unwrap())
    }

    /// Closes nothing.
    async fn nothing<E>(_: Arc<Service>, _: Arc<Context>) -> Result<(), E> {
        Ok(())
    }

    fn crashing() -> Outcome<ServiceStatus> {
        let finding = Finding::failed(types::WORKLOAD_AVAILABLE, Reason::CrashLoopBackOff, "exit 1");
        Outcome::new(ServiceStatus::default(), vec![finding])
    }

    #[tokio::test]
    async fn one_error_after_many_passes_that_found_a_crash_loop_is_the_first_error() {
        let (ctx, statuses) = context();
        for version in 0..20 {
            let found = async |_, _| Ok::<_, Broken>(crashing());
            pass(object(&format!("1{version}")), ctx.clone(), nothing, found).await.unwrap();
        }
        let before = statuses.lock().unwrap().len();
        let broken = async |_, _| Err::<Outcome<ServiceStatus>, _>(Broken);
        let action = pass(object("30"), ctx.clone(), nothing, broken).await.unwrap();
        assert_eq!(statuses.lock().unwrap().len(), before, "one error was told at once");
        assert_ne!(action, Action::await_change());
        let failures = ctx.backoff.fail("Service/shop/orders", Some(1));
        assert_eq!(failures, 2, "passes without an error were counted as failures");
    }

    #[tokio::test]
    async fn whoever_asks_to_wait_is_left_alone_although_the_status_that_tells_so_is_a_change() {
        const PAUSE: Duration = Duration::from_secs(30);
        let (ctx, statuses) = context();
        // Those before were not told, and their pauses are over.
        ctx.backoff.fail("Service/shop/orders", Some(1));
        ctx.backoff.fail("Service/shop/orders", Some(1));
        let busy = async |_, _| Err::<Outcome<ServiceStatus>, _>(Busy::asks_for(PAUSE));
        let action = pass(object("1"), ctx.clone(), nothing, busy).await.unwrap();
        assert_eq!((statuses.lock().unwrap().len(), action), (1, Action::requeue(PAUSE)));
        let unexpected =
            async |_, _| -> Result<Outcome<ServiceStatus>, Busy> { panic!("the pause is not over") };
        let action = pass(object("2"), ctx.clone(), nothing, unexpected).await.unwrap();
        assert_ne!(action, Action::await_change(), "nobody would come back");
        assert_eq!(statuses.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn news_of_an_object_bring_no_call_right_after_one_that_failed() {
        let (ctx, _) = context();
        let broken = async |_, _| Err::<Outcome<ServiceStatus>, _>(Broken);
        pass(object("1"), ctx.clone(), nothing, broken).await.unwrap();
        let left = ctx.backoff.held("Service/shop/orders", Some(1));
        assert!(left.is_some_and(|left| left <= Duration::from_secs(1)), "{left:?}");
        let unexpected =
            async |_, _| -> Result<Outcome<ServiceStatus>, Broken> { panic!("it was asked at once") };
        let action = pass(object("2"), ctx, nothing, unexpected).await.unwrap();
        assert_ne!(action, Action::await_change(), "nobody would come back");
    }

    #[tokio::test]
    async fn no_pause_holds_up_what_closes() {
        let (ctx, _) = context();
        ctx.backoff.hold("Service/shop/orders", Some(1), Duration::from_secs(60));
        let tries = Arc::new(Mutex::new(0));
        let counted = tries.clone();
        let close = move |_, _| {
            *counted.lock().unwrap() += 1;
            std::future::ready(Ok::<(), Broken>(()))
        };
        let unexpected =
            async |_, _| -> Result<Outcome<ServiceStatus>, Broken> { panic!("the pause is not over") };
        let action = pass(object("1"), ctx.clone(), close, unexpected).await.unwrap();
        assert_eq!(*tries.lock().unwrap(), 1);
        assert_ne!(action, Action::await_change(), "nobody would come back");
    }

    #[tokio::test]
    async fn what_could_not_be_closed_is_tried_again_before_the_pause_is_over() {
        let (ctx, _) = context();
        let broken = std::future::ready(Err::<(), _>(Broken));
        let again = closed(&ctx, "Service/shop/orders", Some(1), broken).await;
        assert!(again.is_some_and(|again| again < Duration::from_secs(1)), "{again:?}");
        let closing = std::future::ready(Ok::<(), Broken>(()));
        assert_eq!(closed(&ctx, "Service/shop/orders", Some(1), closing).await, None);
    }

    #[tokio::test]
    async fn a_pass_before_the_cache_has_the_last_status_does_nothing() {
        let (ctx, statuses) = context();
        let found = async |_, _| Ok::<_, Broken>(crashing());
        pass(object("1"), ctx.clone(), nothing, found).await.unwrap();
        let action = pass(object("1"), ctx.clone(), nothing, found).await.unwrap();
        assert_eq!((statuses.lock().unwrap().len(), action), (1, Action::await_change()));
        pass(object("2"), ctx.clone(), nothing, found).await.unwrap();
        assert_eq!(statuses.lock().unwrap().len(), 2, "this version has no status");
    }
}
