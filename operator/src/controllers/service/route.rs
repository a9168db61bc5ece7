//! The routes of a Service and how each stands. Pure, and it never fails: what
//! is wrong with a route withholds that route and says so.

use std::collections::BTreeSet;

use kube::ResourceExt;
use peristyle_crds::{
    class::ClassError,
    condition::{Reason, types},
    v1alpha1::{
        Service,
        service::{AuthMode, Expose, Protocol, RouteUrl},
    },
};

use super::{
    observe::{ExposeView, HostView, Observed},
    validate::ports,
};
use crate::{
    conditions::{self, Finding, State},
    edge::{
        claims::Refusal,
        route::{Backend, Guard, Host, Route, RoutePath, RouteProtection, Speaks},
    },
};

const CONDITION: &str = types::ROUTES_PROGRAMMED;

/// The routes of a Service.
#[derive(Clone, Debug, Default)]
pub struct Routes {
    /// One for each host of each expose entry.
    pub routes: Vec<Route>,
    /// Addresses of those that let callers in.
    pub urls: Vec<RouteUrl>,
    /// What is wrong, the worst first in weight, else the first in order.
    pub problems: Vec<Finding>,
    /// Whether it is not known yet what protects one of them, as for a moment
    /// after the operator has started.
    pub is_provisional: bool,
}

impl Routes {
    /// How all routes stand, as one condition.
    #[must_use]
    pub fn finding(&self) -> Finding {
        if let Some(worst) = conditions::worst(&self.problems) {
            return worst.clone();
        }
        if self.routes.is_empty() {
            return Finding {
                condition: CONDITION,
                state: State::Good,
                reason: Reason::NotExposed,
                message: "nothing is exposed".to_owned(),
            };
        }
        Finding::good(CONDITION, "every exposed route is served")
    }
}

/// The routes that the spec asks for, each with what may pass it now.
#[must_use]
pub fn routes(service: &Service, observed: &Observed) -> Routes {
    let mut routes = Routes::default();
    if service.spec.expose.is_empty() {
        return routes;
    }
    if !observed.has_traefik {
        routes.problems.push(Finding::waiting(
            CONDITION,
            Reason::Unavailable,
            "traefik.io/v1alpha1 cannot be watched; install Traefik's CustomResourceDefinitions, \
            or grant what the operator's /readyz names",
        ));
        // Or one of its kinds is late: what is served goes on meanwhile.
        routes.is_provisional = true;
        return routes;
    }
    if observed.edge_errors.is_none() {
        routes.problems.push(Finding::waiting(
            CONDITION,
            Reason::Unavailable,
            "no pod of edge-errors is ready: refused gRPC calls would not be answered as gRPC",
        ));
    }
    let mut taken = BTreeSet::new();
    for (index, expose) in service.spec.expose.iter().enumerate() {
        let entry = Entry { service, expose, field: format!("spec.expose[{index}]") };
        entry.add(observed, &mut routes, &mut taken);
    }
    routes
}

/// Class, host and path that an entry of this Service already has.
type Taken = BTreeSet<(String, Host, RoutePath)>;

struct Entry<'a> {
    service: &'a Service,
    expose: &'a Expose,
    field: String,
}

impl Entry<'_> {
    fn add(&self, observed: &Observed, routes: &mut Routes, taken: &mut Taken) {
        let Some(view) = observed.exposes.get(&self.expose.name) else {
            return;
        };
        let (class, hosts, refused, entry_points, protection) = match view {
            ExposeView::Refused(refusal) => {
                routes.problems.push(self.refusal(refusal));
                return;
            }
            ExposeView::Served { class, hosts, refused, entry_points, protection } => {
                (class, hosts, refused, entry_points, protection)
            }
        };
        routes.is_provisional |= self.expose.auth_mode() == AuthMode::Required
            && matches!(protection, RouteProtection::Unknown { .. });
        routes.problems.extend(refused.iter().map(|refusal| self.refusal(refusal)));
        // What cannot be served is refused all the same: without its fence a call
        // would fall through to a wider entry of the host.
        let (paths, unsafe_path) = self.paths();
        let (backend, no_backend) = match self.backend() {
            Ok(backend) => (backend, None),
            Err(message) => (Backend::default(), Some(message)),
        };
        let unusable: Vec<String> = no_backend.into_iter().chain(unsafe_path).collect();
        let is_usable = unusable.is_empty();
        routes.problems.extend(unusable.into_iter().map(invalid));
        if paths.is_empty() {
            return;
        }
        let mut withheld = None;
        for (name, HostView { url, serving }) in hosts {
            let host = match Host::parse(name) {
                Ok(host) => host,
                Err(error) => {
                    routes.problems.push(invalid(format!("{}.hosts: {error}", self.field)));
                    continue;
                }
            };
            let claims = paths.iter().map(|path| (class.clone(), host.clone(), path.clone()));
            let conflict = claims.clone().find(|claim| taken.contains(claim));
            let guard = match (&conflict, self.expose.auth_mode()) {
                (Some((_, _, path)), _) => {
                    routes.problems.push(invalid(format!(
                        "{}.paths: {:?} on host {name} is served by another entry of this Service; give each entry paths of its own",
                        self.field,
                        shown(path),
                    )));
                    // Not even a fence: it would stand beside the other entry's.
                    continue;
                }
                (None, _) if !is_usable => Guard::Withheld,
                (None, AuthMode::Public) => Guard::Open,
                (None, AuthMode::Required) => Guard::required(protection, &host, serving.as_ref()),
            };
            taken.extend(claims);
            if guard != Guard::Withheld {
                routes.urls.push(RouteUrl {
                    name: self.expose.name.clone(),
                    url: format!("{url}{}", paths.first().map_or("", RoutePath::as_str)),
                    class: class.clone(),
                });
            } else if is_usable {
                withheld = self.withheld_because(protection);
            }
            routes.routes.push(Route {
                expose: self.expose.name.clone(),
                class: class.clone(),
                entry_points: entry_points.clone(),
                host,
                paths: paths.clone(),
                backend: backend.clone(),
                guard,
            });
        }
        routes.problems.extend(withheld);
    }

    fn withheld_because(&self, protection: &RouteProtection) -> Option<Finding> {
        let name = &self.expose.name;
        Some(match protection {
            RouteProtection::Live { .. } => return None,
            RouteProtection::None => Finding::waiting(
                CONDITION,
                Reason::NoAuthPolicy,
                format!("expose {name}: no AuthPolicy targets it; create one or set auth.mode to Public"),
            ),
            RouteProtection::Unknown { .. } => Finding::waiting(
                CONDITION,
                Reason::PolicyNotProgrammed,
                format!("expose {name}: whether its policy is live is not known yet"),
            ),
            RouteProtection::Pending { reason, message }
            | RouteProtection::Changing { reason, message, .. } => {
                Finding::waiting(CONDITION, *reason, format!("expose {name}: {message}"))
            }
        })
    }

    fn backend(&self) -> Result<Backend, String> {
        let ports = ports(self.service);
        let field = &self.field;
        let port = match &self.expose.port {
            None => ports.first(),
            Some(name) => ports.iter().find(|port| port.name == *name),
        };
        let port = port.ok_or_else(|| {
            format!(
                "{field}.port: {:?} is not the name of one of spec.ports",
                self.expose.port.as_deref().unwrap_or_default()
            )
        })?;
        let speaks = match port.protocol() {
            Protocol::Grpc => Speaks::Grpc,
            Protocol::Http => Speaks::Http,
            Protocol::Tcp | Protocol::Udp => {
                return Err(format!(
                    "{field}.port: {:?} speaks neither GRPC nor HTTP; only those can be exposed",
                    port.name
                ));
            }
        };
        Ok(Backend { service: self.service.name_any(), port: port.service_port(), speaks })
    }

    /// The paths that can be matched, and what is wrong with one that cannot.
    fn paths(&self) -> (Vec<RoutePath>, Option<String>) {
        if self.expose.paths.is_empty() {
            return (vec![RoutePath::All], None);
        }
        let (mut paths, mut problem) = (BTreeSet::new(), None);
        for path in &self.expose.paths {
            match RoutePath::parse(path) {
                Ok(path) => drop(paths.insert(path)),
                Err(error) => problem = Some(format!("{}.paths: {error}", self.field)),
            }
        }
        (paths.into_iter().collect(), problem)
    }

    fn refusal(&self, refusal: &Refusal) -> Finding {
        let message = format!("{}: {refusal}", self.field);
        match refusal {
            Refusal::Class(ClassError::NotFound(_)) => {
                Finding::waiting(CONDITION, Reason::ClassNotFound, message)
            }
            Refusal::Class(ClassError::Ambiguous(_)) => {
                Finding::stalled(CONDITION, Reason::ClassAmbiguous, message)
            }
            Refusal::NotAllowed { .. } => Finding::stalled(CONDITION, Reason::HostNotAllowed, message),
            // It goes with its owner, sooner or later.
            Refusal::Standing { .. } => Finding::waiting(CONDITION, Reason::HostConflict, message),
            Refusal::Taken { .. } => Finding::stalled(CONDITION, Reason::HostConflict, message),
        }
    }
}

fn shown(path: &RoutePath) -> &str {
    match path {
        RoutePath::All => "/",
        path => path.as_str(),
    }
}

fn invalid(message: String) -> Finding {
    Finding::stalled(CONDITION, Reason::Invalid, message)
}
