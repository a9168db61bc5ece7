//! Watches the routes and asks the real Oathkeeper what a caller without
//! credentials would get. What Traefik makes of the objects is known from
//! tests with the real one; here it is derived from them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use serde_json::Value;

use super::journal::Journal;
use crate::operated::NAMESPACE;

/// How often callers try although nothing changed.
const TICK: Duration = Duration::from_millis(20);
/// The workload that no one may reach without credentials.
const WORKLOAD: &str = "greeter";
const METHOD: &str = "/greeter.v1.GreeterService/Greet";

/// What the prober shares with the runner.
#[derive(Default)]
pub struct Gate {
    open_is_fine: AtomicBool,
}

impl Gate {
    /// Whether an open route is what the user asked for, now.
    pub fn may_be_open(&self, fine: bool) {
        self.open_is_fine.store(fine, Ordering::SeqCst);
    }
}

/// Everything that the prober looks at.
pub struct Prober {
    pub client: Client,
    pub http: reqwest::Client,
    /// `host:port` of the decision API.
    pub oathkeeper: String,
    pub journal: Arc<Journal>,
    pub gate: Arc<Gate>,
}

type Objects = std::collections::BTreeMap<String, DynamicObject>;

impl Prober {
    /// Probes until it is aborted.
    pub async fn run(self) {
        let events = |kind| {
            let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("traefik.io", "v1alpha1", kind));
            let api: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), NAMESPACE, &resource);
            watcher::watcher(api, watcher::Config::default()).default_backoff().boxed()
        };
        let (mut routes, mut middlewares) = (Objects::new(), Objects::new());
        let (mut route_events, mut middleware_events) = (events("IngressRoute"), events("Middleware"));
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut published = None;
            tokio::select! {
                Some(Ok(event)) = route_events.next() => published = note(&mut routes, event),
                Some(Ok(event)) = middleware_events.next() => drop(note(&mut middlewares, event)),
                _ = tick.tick() => {}
            }
            self.probe(&routes, &middlewares, published.as_deref()).await;
        }
    }

    /// `published` is a route that has just appeared.
    async fn probe(&self, routes: &Objects, middlewares: &Objects, published: Option<&str>) {
        for (name, route) in routes.iter().filter(|(_, route)| leads_to_workload(route)) {
            let Some(parent) = parent(route, routes) else {
                if route.data["spec"]["parentRefs"].as_array().is_none_or(Vec::is_empty) {
                    self.open(name, "it has no parent");
                }
                // Traefik drops a child whose parent is missing.
                continue;
            };
            if !is_decided(parent, middlewares) {
                self.open(name, "no decision is asked for");
                continue;
            }
            let Some(host) = host(parent) else { continue };
            for path in [METHOD, "/"] {
                let status = self.decide(&host, path).await;
                if status.is_some_and(|status| (200..300).contains(&status)) {
                    self.open(name, &format!("Oathkeeper lets a caller without credentials to {host}{path}"));
                }
                if published == Some(name) && path == METHOD && !matches!(status, Some(401 | 403)) {
                    self.journal.violation(format!(
                        "route {name} was published before its rules were live: Oathkeeper answers {status:?}"
                    ));
                }
            }
        }
    }

    fn open(&self, route: &str, why: &str) {
        if !self.gate.open_is_fine.load(Ordering::SeqCst) {
            self.journal.violation(format!("route {route} is open: {why}"));
        }
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
        answer.ok().map(|answer| answer.status().as_u16())
    }
}

/// Takes an event into `objects`; the name of an object that was not there before.
fn note(objects: &mut Objects, event: watcher::Event<DynamicObject>) -> Option<String> {
    match event {
        watcher::Event::Apply(object) => {
            let name = object.name_any();
            objects.insert(name.clone(), object).is_none().then_some(name)
        }
        watcher::Event::Delete(object) => {
            objects.remove(&object.name_any());
            None
        }
        watcher::Event::Init => {
            objects.clear();
            None
        }
        watcher::Event::InitApply(object) => {
            objects.insert(object.name_any(), object);
            None
        }
        watcher::Event::InitDone => None,
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

/// Whether every router of `parent` has a middleware that exists and asks for a decision.
fn is_decided(parent: &DynamicObject, middlewares: &Objects) -> bool {
    let asks = |reference: &Value| {
        let found = reference["name"].as_str().and_then(|name| middlewares.get(name));
        found.is_some_and(|middleware| middleware.data["spec"]["forwardAuth"]["address"].is_string())
    };
    // Traefik drops a router whose middleware is missing, which leaves the fence.
    let is_dropped =
        |reference: &Value| reference["name"].as_str().is_none_or(|name| !middlewares.contains_key(name));
    routers(parent).all(|router| {
        let references = router["middlewares"].as_array().cloned().unwrap_or_default();
        references.iter().any(|r| asks(r) || is_dropped(r))
    })
}

fn host(parent: &DynamicObject) -> Option<String> {
    let rule = routers(parent).next()?["match"].as_str()?;
    let (_, rest) = rule.split_once("Host(`")?;
    Some(rest.split_once('`')?.0.to_owned())
}
