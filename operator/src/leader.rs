//! One writer at a time: a Lease in the operator's namespace.
//!
//! As in client-go: who finds the Lease unchanged for as long as it holds takes
//! it over, by a write that names the version it saw, so that of two candidates
//! one fails. Only the monotonic clock of the own process is compared with
//! itself; the times in the Lease are for people.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};
use peristyle_crds::FIELD_MANAGER;
use rand::distr::{Alphanumeric, SampleString};

use crate::{backoff::jitter, config::Config, fence::Fence, retry::bounded};

/// Name of the Lease.
const LEASE: &str = "peristyle-operator";
/// How long a Lease holds without renewal.
const DURATION: Duration = Duration::from_secs(15);
/// For how long after a renewal the holder writes. The rest of [`DURATION`] is
/// for what it has begun by then.
const WRITES: Duration = Duration::from_secs(10);
/// How often the holder renews it.
const RENEWAL: Duration = Duration::from_secs(2);
/// How often a candidate looks at it: how soon it notices a release.
const LOOK: Duration = Duration::from_millis(500);
/// For how long a candidate whose caches are out of date leaves a free Lease to
/// others. A watch is tried again sooner; a right that is missing may never come.
const STALE: Duration = Duration::from_secs(15);

/// A candidate, and the holder once [`Leadership::acquire`] returns.
pub struct Leadership {
    leases: Api<Lease>,
    identity: String,
    fence: Fence,
    held: Option<Lease>,
    /// Whether a write of the Lease has begun and its end is not known.
    is_in_doubt: bool,
}

/// A Lease as it was when it last changed.
struct Seen {
    spec: LeaseSpec,
    since: Instant,
}

/// The fence of a process that competes for the Lease.
#[must_use]
pub fn fence() -> Fence {
    Fence::new(DURATION.saturating_sub(WRITES))
}

impl Leadership {
    /// A candidate that opens `fence` while it leads. `client` must not be behind that fence.
    #[must_use]
    pub fn new(client: Client, config: &Config, fence: Fence) -> Self {
        // A restarted container has the name of the one before, which may still be writing.
        let suffix = Alphanumeric.sample_string(&mut rand::rng(), 8);
        Self {
            leases: Api::namespaced(client, &config.namespace),
            identity: format!("{}_{suffix}", config.identity),
            fence,
            held: None,
            is_in_doubt: false,
        }
    }

    /// Who this is in the Lease.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.identity
    }

    /// Waits until this process holds the Lease. It takes a free one only while
    /// `is_current` says that its caches show what is, or after a while in which
    /// no other candidate did.
    pub async fn acquire(&mut self, is_current: impl Fn() -> bool) {
        let mut seen: Option<Seen> = None;
        let mut free_since: Option<Instant> = None;
        loop {
            match bounded(self.leases.get_opt(LEASE)).await {
                Ok(lease) => {
                    let spec = lease.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default();
                    if seen.as_ref().is_none_or(|seen| seen.spec != spec) {
                        seen = Some(Seen { spec, since: Instant::now() });
                    }
                    let is_free = seen.as_ref().is_some_and(|seen| is_free(&seen.spec, seen.since.elapsed()));
                    free_since = is_free.then(|| free_since.unwrap_or_else(Instant::now));
                    let may_take = free_since.is_some_and(|since| is_current() || since.elapsed() >= STALE);
                    if may_take && self.write(lease).await {
                        return;
                    }
                }
                Err(error) => tracing::warn!(%error, "the Lease cannot be read"),
            }
            tokio::time::sleep(jitter(LOOK)).await;
        }
    }

    /// Renews the Lease; returns when it is lost or could not be renewed in time.
    pub async fn keep(&mut self) {
        let mut renewed = Instant::now();
        let mut tick = tokio::time::interval(RENEWAL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let left = WRITES.saturating_sub(renewed.elapsed());
            let renewal = async {
                tick.tick().await;
                // After a pause of the whole process another may hold it.
                if renewed.elapsed() < WRITES { self.renew().await } else { Renewal::Lost }
            };
            match tokio::time::timeout(left, renewal).await {
                Ok(Renewal::Done(at)) => renewed = at,
                Ok(Renewal::Failed) => {}
                Ok(Renewal::Lost) | Err(_) => return self.fence.close(),
            }
        }
    }

    async fn renew(&mut self) -> Renewal {
        let before = Instant::now();
        if self.write(self.held.clone()).await {
            return Renewal::Done(before);
        }
        // Somebody edited it, or the answer to a renewal was lost.
        match bounded(self.leases.get_opt(LEASE)).await {
            Ok(Some(lease)) if holder(lease.spec.as_ref()) == Some(&self.identity) => {
                self.held = Some(lease);
                Renewal::Failed
            }
            Ok(_) => Renewal::Lost,
            Err(_) => Renewal::Failed,
        }
    }

    /// Gives the Lease to whoever comes first, also one that an
    /// [`Leadership::acquire`] that was cut off may have got. Before, the fence
    /// must be closed and what has begun be over.
    pub async fn release(&mut self) {
        if self.is_in_doubt {
            let found = bounded(self.leases.get_opt(LEASE)).await.ok().flatten();
            self.held = found.filter(|lease| holder(lease.spec.as_ref()) == Some(&self.identity));
        }
        let Some(mut lease) = self.held.take() else { return };
        if let Some(spec) = &mut lease.spec {
            spec.holder_identity = None;
            spec.renew_time = Some(MicroTime(Timestamp::now()));
        }
        match bounded(self.leases.replace(LEASE, &params(), &lease)).await {
            Ok(_) => tracing::info!("released the Lease"),
            Err(error) => tracing::warn!(%error, "the Lease runs out instead of being released"),
        }
    }

    /// Makes this process the holder if the Lease is still as `seen`.
    async fn write(&mut self, seen: Option<Lease>) -> bool {
        let before = Instant::now();
        let now = MicroTime(Timestamp::now());
        let old = seen.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default();
        let is_ours = holder(Some(&old)) == Some(&self.identity);
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: if is_ours { old.acquire_time.clone() } else { Some(now.clone()) },
            renew_time: Some(now),
            lease_transitions: Some(old.lease_transitions.unwrap_or(0) + i32::from(!is_ours)),
            ..old
        };
        self.is_in_doubt = true;
        let written = if let Some(lease) = seen {
            let lease = Lease { spec: Some(spec), ..lease };
            bounded(self.leases.replace(LEASE, &params(), &lease)).await
        } else {
            let metadata = ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() };
            bounded(self.leases.create(&params(), &Lease { metadata, spec: Some(spec) })).await
        };
        self.is_in_doubt = false;
        match written {
            Ok(lease) => {
                self.fence.open_until(before + WRITES);
                self.held = Some(lease);
                true
            }
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => false,
            Err(error) => {
                tracing::warn!(%error, "the Lease cannot be written");
                false
            }
        }
    }
}

enum Renewal {
    Done(Instant),
    /// Not this time, and nobody else holds it.
    Failed,
    /// Somebody else holds it, or nobody.
    Lost,
}

fn params() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() }
}

fn holder(spec: Option<&LeaseSpec>) -> Option<&String> {
    spec?.holder_identity.as_ref().filter(|holder| !holder.is_empty())
}

/// Whether a Lease that has been like this for `unchanged` may be taken.
fn is_free(spec: &LeaseSpec, unchanged: Duration) -> bool {
    let seconds = spec.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    holder(Some(spec)).is_none() || unchanged >= seconds.map_or(DURATION, Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use kube::client::Body;
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_held_lease_is_free_only_after_it_stayed_the_same_for_its_duration() {
        let held = LeaseSpec {
            holder_identity: Some("other".to_owned()),
            lease_duration_seconds: Some(15),
            // What its clock says does not count.
            renew_time: Some(MicroTime(Timestamp::UNIX_EPOCH)),
            ..LeaseSpec::default()
        };
        assert!(!is_free(&held, Duration::ZERO));
        assert!(!is_free(&held, Duration::from_millis(14_999)));
        assert!(is_free(&held, Duration::from_secs(15)));
    }

    #[test]
    fn a_released_lease_and_one_that_never_was_held_are_free_at_once() {
        assert!(is_free(&LeaseSpec::default(), Duration::ZERO));
        let released = LeaseSpec { holder_identity: Some(String::new()), ..LeaseSpec::default() };
        assert!(is_free(&released, Duration::ZERO));
    }

    /// A Lease at a server that loses the answer to its first write.
    #[derive(Clone, Default)]
    struct Server(Arc<Mutex<(Option<Value>, u32)>>);

    impl Server {
        fn client(&self) -> Client {
            let server = self.clone();
            let service = tower::service_fn(move |request: http::Request<Body>| {
                let server = server.clone();
                async move { server.answer(request).await }
            });
            Client::new(service, "peristyle-system")
        }

        async fn answer(
            &self,
            request: http::Request<Body>,
        ) -> Result<http::Response<Body>, std::convert::Infallible> {
            let is_read = request.method() == http::Method::GET;
            let body = request.into_body().collect_bytes().await.unwrap();
            if !is_read {
                let written = {
                    let mut server = self.0.lock().unwrap();
                    server.0 = Some(serde_json::from_slice(&body).unwrap());
                    server.1 += 1;
                    server.1
                };
                if written == 1 {
                    std::future::pending::<()>().await;
                }
            }
            let missing = || json!({"code": 404, "reason": "NotFound", "message": ""});
            let lease = self.0.lock().unwrap().0.clone();
            let code = if lease.is_some() { 200 } else { 404 };
            let body = Body::from(lease.unwrap_or_else(missing).to_string().into_bytes());
            Ok(http::Response::builder().status(code).body(body).unwrap())
        }

        fn holder(&self) -> Option<String> {
            let server = self.0.lock().unwrap();
            server.0.as_ref()?["spec"]["holderIdentity"].as_str().map(ToOwned::to_owned)
        }
    }

    fn candidate(server: &Server) -> Leadership {
        Leadership {
            leases: Api::default_namespaced(server.client()),
            identity: "a".to_owned(),
            fence: fence(),
            held: None,
            is_in_doubt: false,
        }
    }

    #[tokio::test]
    async fn a_lease_whose_taking_was_cut_off_is_released() {
        let server = Server::default();
        let mut leadership = candidate(&server);
        let taken = async {
            while server.holder().is_none() {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            () = leadership.acquire(|| true) => panic!("there was no answer"),
            () = taken => {}
        }
        assert_eq!(server.holder().as_deref(), Some("a"));
        leadership.release().await;
        assert_eq!(server.holder(), None);
    }

    #[tokio::test]
    async fn a_candidate_with_old_caches_leaves_a_free_lease_until_they_are_current() {
        let server = Server::default();
        server.0.lock().unwrap().1 = 1;
        let mut leadership = candidate(&server);
        let asked = std::cell::Cell::new(0);
        let is_current = || {
            asked.set(asked.get() + 1);
            assert_eq!(server.holder(), None, "taken with old caches");
            asked.get() == 2
        };
        leadership.acquire(is_current).await;
        assert_eq!((asked.get(), server.holder().as_deref()), (2, Some("a")));
    }
}
