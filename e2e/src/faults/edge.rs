//! Watches the routes and asks the real Oathkeeper what a caller without
//! credentials would get. What Traefik makes of the objects is known from
//! tests with the real one; here it is derived from them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use serde_json::Value;

use super::journal::Journal;
use crate::operated::NAMESPACE;

/// How often callers try although nothing changed.
const TICK: Duration = Duration::from_millis(10);
/// The workload that no one may reach without credentials.
const WORKLOAD: &str = "greeter";
const METHOD: &str = "/greeter.v1.GreeterService/Greet";

/// Whether a caller without credentials may get in.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Access {
    /// Never.
    #[default]
    Refused,
    /// The user asked for that.
    Allowed,
    /// Until it has been refused once: the user took it back, and the operator
    /// has to look first.
    AllowedUntilRefused,
}

/// What the prober shares with the runner.
#[derive(Default)]
pub struct Gate {
    access: Mutex<Access>,
    rounds: AtomicU64,
    calls: AtomicU64,
}

impl Gate {
    /// What holds from now on.
    pub fn set(&self, access: Access) {
        *self.lock() = access;
    }

    /// How often all ways in were looked at, and every question was answered.
    #[must_use]
    pub fn rounds(&self) -> u64 {
        self.rounds.load(Ordering::SeqCst)
    }

    /// How many calls without credentials were answered.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::SeqCst)
    }

    fn lock(&self) -> MutexGuard<'_, Access> {
        self.access.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is a violation that somebody was let in just now.
    fn forbids(&self, is_open: bool) -> bool {
        let mut access = self.lock();
        if *access == Access::AllowedUntilRefused && !is_open {
            *access = Access::Refused;
        }
        is_open && *access == Access::Refused
    }
}

/// Everything that the prober looks at.
pub struct Prober {
    pub http: reqwest::Client,
    /// `host:port` of the decision API.
    pub oathkeeper: String,
    pub journal: Arc<Journal>,
    pub gate: Arc<Gate>,
}

type Objects = std::collections::BTreeMap<String, DynamicObject>;

/// The ways to the workload that were protected at the last look.
type Published = BTreeSet<String>;

impl Prober {
    /// Probes until it is aborted.
    pub async fn run(self, client: Client) {
        let events = |kind| {
            let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("traefik.io", "v1alpha1", kind));
            let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), NAMESPACE, &resource);
            watcher::watcher(api, watcher::Config::default()).default_backoff().boxed()
        };
        let (mut routes, mut middlewares) = (Objects::new(), Objects::new());
        let (mut route_events, mut middleware_events) = (events("IngressRoute"), events("Middleware"));
        let mut published = Published::new();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(Ok(event)) = route_events.next() => note(&mut routes, event),
                Some(Ok(event)) = middleware_events.next() => note(&mut middlewares, event),
                _ = tick.tick() => {}
            }
            published = self.probe(&routes, &middlewares, &published).await;
        }
    }

    /// Tries every way to the workload. Of one that was not `before` among the
    /// protected, the rules must be live already: Oathkeeper knows that it
    /// refuses, and does not only lack a rule.
    async fn probe(&self, routes: &Objects, middlewares: &Objects, before: &Published) -> Published {
        let mut published = Published::new();
        let mut open = Vec::new();
        let mut is_answered = true;
        for (name, route) in routes.iter().filter(|(_, route)| leads_to_workload(route)) {
            let Some(parent) = parent(route, routes) else {
                if route.data["spec"]["parentRefs"].as_array().is_none_or(Vec::is_empty) {
                    open.push(format!("route {name} is open: it has no parent"));
                }
                // Traefik drops a child whose parent is missing.
                continue;
            };
            let protection = protection(parent, middlewares);
            if protection == Protection::None {
                open.push(format!("route {name} is open: no decision is asked for"));
                continue;
            }
            let Some(host) = host(parent) else { continue };
            for path in [METHOD, "/"] {
                let status = self.decide(&host, path).await;
                is_answered &= status.is_some();
                if status.is_some_and(|status| (200..300).contains(&status)) {
                    open.push(format!(
                        "route {name} is open: Oathkeeper lets a caller without credentials to {host}{path}"
                    ));
                }
                if path != METHOD || protection != Protection::Decided {
                    continue;
                }
                if let Some(status) = status {
                    if !before.contains(name) && !matches!(status, 401 | 403) {
                        self.journal.violation(format!(
                            "route {name} was published before its rules were live: Oathkeeper answers {status}"
                        ));
                    }
                    published.insert(name.clone());
                }
            }
        }
        if self.gate.forbids(!open.is_empty()) {
            for violation in open {
                self.journal.violation(violation);
            }
        }
        self.gate.rounds.fetch_add(u64::from(is_answered), Ordering::SeqCst);
        published
    }

    async fn decide(&self, host: &str, path: &str) -> Option<u16> {
        let answer = self
            .http
            .get(format!("http://{}/decisions", self.oathkeeper))
            .header("X-Forwarded-Method", "POST")
            .header("X-Forwarded-Proto", "http")
            .header("X-Forwarded-Host", host)
            .header("X-Forwarded-Uri", path)
            .send()
            .await;
        let status = answer.ok()?.status().as_u16();
        self.gate.calls.fetch_add(1, Ordering::SeqCst);
        Some(status)
    }
}

/// Takes an event into `objects`.
fn note(objects: &mut Objects, event: watcher::Event<DynamicObject>) {
    match event {
        watcher::Event::Apply(object) | watcher::Event::InitApply(object) => {
            objects.insert(object.name_any(), object);
        }
        watcher::Event::Delete(object) => {
            objects.remove(&object.name_any());
        }
        watcher::Event::Init => objects.clear(),
        watcher::Event::InitDone => {}
    }
}

fn routers(route: &DynamicObject) -> impl Iterator<Item = &Value> {
    route.data["spec"]["routes"].as_array().into_iter().flatten()
}

fn leads_to_workload(route: &DynamicObject) -> bool {
    routers(route).any(|router| {
        router["services"].as_array().into_iter().flatten().any(|service| service["name"] == WORKLOAD)
    })
}

fn parent<'a>(route: &DynamicObject, routes: &'a Objects) -> Option<&'a DynamicObject> {
    routes.get(route.data["spec"]["parentRefs"][0]["name"].as_str()?)
}

/// What stands before the routers of a parent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Protection {
    /// One of them asks for no decision.
    None,
    /// One of them is dropped by Traefik because its middleware is missing, which leaves the fence.
    Dropped,
    /// All of them ask for a decision.
    Decided,
}

fn protection(parent: &DynamicObject, middlewares: &Objects) -> Protection {
    let asks = |reference: &Value| {
        let found = reference["name"].as_str().and_then(|name| middlewares.get(name));
        found.is_some_and(|middleware| middleware.data["spec"]["forwardAuth"]["address"].is_string())
    };
    let is_missing =
        |reference: &Value| reference["name"].as_str().is_none_or(|name| !middlewares.contains_key(name));
    let of_router = |router: &Value| {
        let references = router["middlewares"].as_array().cloned().unwrap_or_default();
        if references.iter().any(is_missing) {
            Protection::Dropped
        } else if references.iter().any(asks) {
            Protection::Decided
        } else {
            Protection::None
        }
    };
    let all: Vec<Protection> = routers(parent).map(of_router).collect();
    let worst = [Protection::None, Protection::Dropped].into_iter().find(|worst| all.contains(worst));
    worst.unwrap_or(Protection::Decided)
}

fn host(parent: &DynamicObject) -> Option<String> {
    let rule = routers(parent).next()?["match"].as_str()?;
    let (_, rest) = rule.split_once("Host(`")?;
    Some(rest.split_once('`')?.0.to_owned())
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use http::StatusCode;
    use serde_json::json;

    use super::super::http::{HttpProxy, Upstream, disturbance::Disturbance};
    use super::super::{names, operator::Operator};
    use super::*;

    /// A prober and the Oathkeeper that it asks, which answers `status` to everything.
    async fn prober(status: StatusCode) -> (Prober, HttpProxy) {
        let journal = Arc::new(Journal::new(Arc::new(Operator::never_started())));
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let upstream = Upstream::Plain { address: String::new(), client: http.clone() };
        let named = (names::keto_write as _, names::no_effects as _);
        let proxy = HttpProxy::start(Ipv4Addr::LOCALHOST.into(), upstream, journal.clone(), named).await;
        let proxy = proxy.unwrap();
        proxy.disturb(move |_| Some(Disturbance::status(status, "", "")));
        let oathkeeper = proxy.address().to_string();
        (Prober { http, oathkeeper, journal, gate: Arc::default() }, proxy)
    }

    fn object(kind: &str, name: &str, spec: &Value) -> DynamicObject {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("traefik.io", "v1alpha1", kind));
        DynamicObject::new(name, &resource).data(json!({ "spec": spec }))
    }

    fn child() -> DynamicObject {
        let spec =
            json!({"parentRefs": [{"name": "parent"}], "routes": [{"services": [{"name": WORKLOAD}]}]});
        object("IngressRoute", "child", &spec)
    }

    fn parent_with(middlewares: &Value) -> DynamicObject {
        let router = json!({"match": "Host(`a.test`) && PathPrefix(`/`)", "middlewares": middlewares});
        object("IngressRoute", "parent", &json!({ "routes": [router] }))
    }

    /// What the operator writes, in its order; each look comes after one more object.
    async fn publish(prober: &Prober) -> Published {
        let authn = object("Middleware", "authn", &json!({"forwardAuth": {"address": "http://oathkeeper"}}));
        let middlewares: Objects = [("authn".to_owned(), authn)].into();
        let fence = object("IngressRoute", "fence", &json!({"routes": [{"match": "Host(`a.test`)"}]}));
        let (mut routes, mut published) = (Objects::new(), Published::new());
        for object in [fence, child(), parent_with(&json!([{"name": "authn"}]))] {
            note(&mut routes, watcher::Event::Apply(object));
            published = prober.probe(&routes, &middlewares, &published).await;
        }
        published
    }

    #[tokio::test]
    async fn a_route_that_is_published_before_its_rules_are_live_is_told() {
        // Oathkeeper answers so when it has no rule for a request.
        let (prober, _oathkeeper) = prober(StatusCode::NOT_FOUND).await;
        publish(&prober).await;
        let violations = prober.journal.entries().violations;
        assert_eq!(
            violations,
            ["route child was published before its rules were live: Oathkeeper answers 404"]
        );
    }

    #[tokio::test]
    async fn a_route_whose_rules_are_live_is_fine_and_every_look_counts() {
        let (prober, _oathkeeper) = prober(StatusCode::UNAUTHORIZED).await;
        let published = publish(&prober).await;
        assert_eq!(prober.journal.entries().violations, [""; 0]);
        assert_eq!(published, Published::from(["child".to_owned()]));
        assert_eq!((prober.gate.rounds(), prober.gate.calls()), (3, 2));
    }

    #[tokio::test]
    async fn a_look_that_oathkeeper_does_not_answer_does_not_count() {
        let (prober, oathkeeper) = prober(StatusCode::OK).await;
        oathkeeper.disturb(|_| Some(Disturbance::Close));
        publish(&prober).await;
        assert_eq!((prober.gate.rounds(), prober.gate.calls()), (2, 0));
    }

    #[tokio::test]
    async fn who_is_let_in_is_told_unless_the_user_wants_it_and_again_once_it_was_refused() {
        let (prober, _oathkeeper) = prober(StatusCode::UNAUTHORIZED).await;
        let is_told = async |access: Option<Access>, is_open: bool| {
            if let Some(access) = access {
                prober.gate.set(access);
            }
            let mut routes = Objects::new();
            note(&mut routes, watcher::Event::Apply(child()));
            if is_open {
                note(&mut routes, watcher::Event::Apply(parent_with(&json!([]))));
            }
            prober.journal.begin(None);
            prober.probe(&routes, &Objects::new(), &Published::new()).await;
            !prober.journal.entries().violations.is_empty()
        };
        assert!(is_told(Some(Access::Refused), true).await);
        assert!(!is_told(Some(Access::Allowed), true).await);
        assert!(!is_told(None, false).await);
        assert!(!is_told(None, true).await);
        assert!(!is_told(Some(Access::AllowedUntilRefused), true).await, "the operator has not looked yet");
        assert!(!is_told(None, false).await);
        assert!(is_told(None, true).await, "opened again");
    }
}
