//! Whether the edge does what was published: every pod of it has the routes
//! and the addresses of the workload, and refuses a call without credentials.
//! Asks only while something is open or has changed.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use peristyle_crds::{
    condition::{Reason, types},
    v1alpha1::{EdgeClass, Service},
};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::{observe::SLICE_SERVICE_LABEL, route::Routes};
use crate::{
    auth::witness::witnesses,
    backoff::jitter,
    conditions::{Finding, is_true},
    context::Context,
    edge::{
        claims::ServiceKey,
        proofs::{Known, Object, Proof, Verdict},
        route::{Guard, Route},
        traefik::{
            Edge,
            readback::{Expected, expected, middlewares},
        },
    },
    external::{
        probe::{self, Target},
        traefik::{Loaded, Traefik},
    },
    metadata::Owner,
    watch::Watched,
};

/// First and longest wait before an edge that has not followed is asked again.
const POLL: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(15));

/// Adds to `routes` what is not proved of them yet. Returns when to look again.
pub async fn gather(
    ctx: &Context,
    service: &Service,
    owner: &Owner,
    edge: &Edge,
    routes: &mut Routes,
) -> Option<Duration> {
    let key = ServiceKey::of(service);
    let classes: Vec<_> = classes(ctx, routes);
    if classes.is_empty() {
        ctx.proofs.replace(&key, None);
        return None;
    }
    let look = Look { ctx, owner, edge };
    let Some(Published { mark, objects }) = look.published(routes, &classes) else {
        // The event that brings the rest of them into the cache comes back here.
        routes.problems.push(waiting(Reason::PropagatingRoutes, "the routes are being published".to_owned()));
        return None;
    };
    let uid = service.uid().unwrap_or_default();
    let before = ctx.proofs.of(&key, &uid).unwrap_or_default();
    let ready = look.ready_addresses();
    let is_same = before.mark == mark && before.waits == 0;
    let has_servers = ready.is_empty() || !before.servers.is_disjoint(&ready);
    if is_same && has_servers {
        return None;
    }

    let mut known = Known { uid, mark, ..Known::default() };
    let (mut problems, mut is_unknown) = (Vec::new(), false);
    let status = service.status.clone().unwrap_or_default();
    // What was said before the operator restarted is said until it is known better.
    let was_programmed = is_true(&status.conditions, types::ROUTES_PROGRAMMED, service.metadata.generation);
    let of_others = ctx.proofs.may_be_of_others(&key, &objects, Instant::now());
    let mut settles = None;
    for class in &classes {
        match ctx.proofs.patience.ask(&class.name_any(), look.loaded(class, &ready)).await {
            Ok(Ok(_))
                if let Some(left) = of_others
                    && api_url(class).is_some() =>
            {
                settles = Some(left);
                let what = "Traefik may still have the routes before these, which are gone";
                problems.push(waiting(Reason::PropagatingRoutes, what.to_owned()));
            }
            Ok(Ok(servers)) => known.servers.extend(servers),
            Ok(Err(problem)) | Err(problem) => problems.push(waiting(Reason::PropagatingRoutes, problem)),
        }
        for route in routes.routes.iter().filter(|route| route.class == class.name_any()) {
            match look.proof(class, route, problems.is_empty()).await {
                None => {}
                Some(Ok(proof)) => {
                    problems.extend(problem(&proof));
                    known.proofs.push(proof);
                }
                Some(Err(unknown)) => {
                    is_unknown = true;
                    if !was_programmed {
                        problems.push(waiting(Reason::PolicyNotProgrammed, unknown));
                    }
                }
            }
        }
    }
    let again = (is_unknown || !problems.is_empty()).then(|| {
        known.waits = before.waits + 1;
        settles.unwrap_or_else(|| jitter(POLL.0.saturating_mul(1 << before.waits.min(10)).min(POLL.1)))
    });
    routes.problems.extend(problems);
    ctx.proofs.replace(&key, Some(known));
    again
}

/// The classes of routes that let calls in and of which something can be asked.
fn classes(ctx: &Context, routes: &Routes) -> Vec<Arc<EdgeClass>> {
    let open = routes.routes.iter().filter(|route| route.guard != Guard::Withheld);
    let names: BTreeSet<&String> = open.map(|route| &route.class).collect();
    let classes = names.into_iter().filter_map(|name| ctx.stores.edge_classes.get("", name));
    classes.filter(|class| class.spec.probe.is_some() || api_url(class).is_some()).collect()
}

fn api_url(class: &EdgeClass) -> Option<&str> {
    class.spec.traefik.as_ref()?.api_url.as_deref()
}

fn waiting(reason: Reason, message: String) -> Finding {
    Finding::waiting(types::ROUTES_PROGRAMMED, reason, message)
}

fn problem(proof: &Proof) -> Option<Finding> {
    let host = &proof.host;
    match &proof.verdict {
        Verdict::Refused => None,
        Verdict::Unproven(what) => Some(waiting(Reason::ProbeFailed, format!("host {host}: {what}"))),
        Verdict::LetIn(what) => Some(Finding::failed(
            types::ROUTES_PROGRAMMED,
            Reason::Overridden,
            format!("host {host}: {what}"),
        )),
    }
}

/// The core Services in `system`, the operator's namespace, at which an edge of
/// `class` is asked. What lies elsewhere is not seen.
#[must_use]
pub fn edge_services(class: &EdgeClass, system: &str) -> BTreeSet<String> {
    let api = api_url(class).and_then(|url| url.split_once("://")).map(|(_, address)| address);
    let probe = class.spec.probe.as_ref().map(|probe| probe.address.as_str());
    let service = |address: &str| {
        let mut labels = address.rsplit_once(':').map_or(address, |(host, _)| host).split('.');
        let service = labels.next()?.to_owned();
        labels.next().is_none_or(|namespace| namespace == system).then_some(service)
    };
    api.into_iter().chain(probe).filter_map(service).collect()
}

/// Host and port of every ready pod behind a core Service, as the edge writes them.
fn addresses(slices: &Watched<EndpointSlice>, namespace: &str, service: &str) -> BTreeSet<String> {
    let slices = slices.labelled(namespace, SLICE_SERVICE_LABEL, service);
    let mut addresses = BTreeSet::new();
    for slice in &slices {
        let ports: Vec<i32> = slice.ports.iter().flatten().filter_map(|port| port.port).collect();
        let ready = slice.endpoints.iter().filter(|endpoint| {
            endpoint.conditions.as_ref().is_none_or(|conditions| conditions.ready.unwrap_or(true))
        });
        for address in ready.flat_map(|endpoint| &endpoint.addresses) {
            let host = if address.contains(':') { format!("[{address}]") } else { address.clone() };
            addresses.extend(ports.iter().map(|port| format!("{host}:{port}")));
        }
    }
    addresses
}

/// What of the edge's objects is in the caches.
struct Published {
    /// A hash of all that the evidence depends on.
    mark: String,
    /// The routes.
    objects: Vec<Object>,
}

struct Look<'a> {
    ctx: &'a Context,
    owner: &'a Owner,
    edge: &'a Edge,
}

impl Look<'_> {
    /// `None` while the caches do not show every object of the edge.
    fn published(&self, routes: &Routes, classes: &[Arc<EdgeClass>]) -> Option<Published> {
        let mut hasher = Sha256::new();
        let mut add = |text: &str| {
            hasher.update(text);
            hasher.update([0]);
        };
        let stores = &self.ctx.stores;
        let mut objects = Vec::new();
        for route in self.edge.routes() {
            let live = stores.ingress_routes.get(&self.owner.namespace, &route.name_any())?;
            add(&live.resource_version()?);
            objects.push(Object { name: live.name_any(), uid: live.uid()? });
        }
        for middleware in &self.edge.middlewares {
            let live = stores.middlewares.get(&self.owner.namespace, &middleware.name_any())?;
            add(&live.resource_version()?);
        }
        for route in &routes.routes {
            add(&format!("{:?}", route.guard));
        }
        for class in classes {
            add(&format!("{:?} {:?} {:?}", class.uid(), class.spec.probe, class.spec.traefik));
            // A pod that is new has shown nothing yet.
            let (slices, system) = (&stores.system_endpoint_slices, &self.ctx.config.namespace);
            for service in edge_services(class, system) {
                add(&format!("{:?}", addresses(slices, system, &service)));
            }
        }
        Some(Published { mark: hex::encode(hasher.finalize()), objects })
    }

    /// Host and port of every ready pod of the workload, as the edge writes them.
    fn ready_addresses(&self) -> BTreeSet<String> {
        addresses(&self.ctx.stores.endpoint_slices, &self.owner.namespace, &self.owner.name)
    }

    /// The addresses of the workload that every pod of the edge has.
    async fn loaded(&self, class: &EdgeClass, ready: &BTreeSet<String>) -> Result<BTreeSet<String>, String> {
        let Some(api) = api_url(class) else {
            return Ok(ready.clone());
        };
        let expected: Vec<Expected> = expected(self.edge, &class.name_any(), &self.owner.name);
        let middlewares = middlewares(self.edge, &class.name_any());
        let Some((scheme, name)) = api.split_once("://") else {
            return Err(format!("EdgeClass {}: spec.traefik.apiURL: {api:?} is no URL", class.name_any()));
        };
        let traefik = Traefik::new(self.ctx.http.clone());
        let mut servers: Option<BTreeSet<String>> = None;
        for address in probe::addresses(name).await? {
            let base = format!("{scheme}://{address}");
            match traefik.loaded(&base, &expected, &middlewares).await {
                Ok(Loaded::Missing(what)) => return Err(format!("Traefik at {address}: {what}")),
                Ok(Loaded::All(found)) => {
                    if !ready.is_empty() && found.is_disjoint(ready) {
                        return Err(format!("Traefik at {address} has no ready pod of the Service yet"));
                    }
                    servers = Some(match servers {
                        None => found,
                        Some(servers) => servers.intersection(&found).cloned().collect(),
                    });
                }
                Err(error) => return Err(format!("Traefik: {error}")),
            }
        }
        Ok(servers.unwrap_or_default())
    }

    /// What a call without credentials comes to; `None` for a route without a
    /// policy and where nobody says how to call.
    ///
    /// # Errors
    /// In words, while it is not known what the policy allows.
    async fn proof(&self, class: &EdgeClass, route: &Route, is_asked: bool) -> Option<Result<Proof, String>> {
        let probe = class.spec.probe.as_ref()?;
        let Guard::Decided { hash, .. } = &route.guard else {
            return None;
        };
        let host = route.host.as_str();
        let Some(allowed) = self.ctx.publications.allowed(hash) else {
            return Some(Err(format!("host {host}: whether its policy is live is not known yet")));
        };
        let verdict = if is_asked {
            let target = Target { address: &probe.address, scheme: class.spec.probe_scheme(), host };
            let witnesses = witnesses(&allowed, &route.paths, route.backend.speaks);
            let question = probe::ask(&target, &witnesses);
            let asked = self.ctx.proofs.patience.ask(&class.name_any(), question).await;
            asked.unwrap_or_else(Verdict::Unproven)
        } else {
            Verdict::Unproven("not asked before the edge has the routes".to_owned())
        };
        Some(Ok(Proof { host: host.to_owned(), hash: hash.clone(), verdict }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pods_of_an_edge_are_found_by_the_addresses_at_which_it_is_asked() {
        let class: EdgeClass = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "public"},
            "spec": {
                "provider": "Traefik", "hosts": {"template": "{service}.{namespace}.test"},
                "traefik": {"entryPoints": ["web"], "apiURL": "http://traefik-pods.system.svc.cluster.local:8082"},
                "probe": {"address": "traefik.elsewhere.svc:8000"}
            }
        }))
        .unwrap();
        assert_eq!(edge_services(&class, "system"), ["traefik-pods".to_owned()].into());
        assert_eq!(edge_services(&class, "elsewhere"), ["traefik".to_owned()].into());
    }
}
