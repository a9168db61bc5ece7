//! From a route to Traefik's objects.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use peristyle_crds::names::{EDGE_LABEL, EXPOSE_LABEL, POLICY_HASH_ANNOTATION};

use super::{
    Edge,
    objects::{
        Errors, ForwardAuth, Headers, IngressRoute, IngressRouteSpec, Middleware, MiddlewareSpec, Reference,
        Router, RouterService, ServersTransport, ServersTransportSpec, Timeouts,
    },
    rule::Rule,
};
use crate::{
    edge::route::{Guard, Host, Route, RoutePath, Speaks},
    metadata::Owner,
    names,
};

/// Port of the error backend, of its Services and of its pods.
pub const EDGE_ERRORS_PORT: i32 = 8080;

/// Above whatever the length of a rule would give.
const BASE_PRIORITY: i64 = 1_000_000;
/// For each kind of traffic: its fence, and the two ways in above it.
const PRIORITIES_PER_TRAFFIC: i64 = 3;
/// Two kinds of traffic.
const PRIORITIES_PER_PATH: i64 = 2 * PRIORITIES_PER_TRAFFIC;

/// What identifies the caller or the request, and what could be mistaken for
/// it: clients may not send these.
const STRIPPED_HEADERS: [&str; 14] = [
    "Forwarded",
    "Remote-User",
    "X-Auth-Request-User",
    "X-Forwarded-User",
    "X-Http-Method",
    "X-Http-Method-Override",
    "X-Method-Override",
    "X-Original-Host",
    "X-Original-Method",
    "X-Original-Uri",
    "X-Original-Url",
    "X-Remote-User",
    "X-Rewrite-Url",
    "X-User",
];

/// What Traefik sets itself. Their aliases are the client's.
const OWN_HEADERS: [&str; 9] = [
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Method",
    "X-Forwarded-Port",
    "X-Forwarded-Prefix",
    "X-Forwarded-Proto",
    "X-Forwarded-Server",
    "X-Forwarded-Uri",
    "X-Real-Ip",
];

/// Every header that is removed. Underscores reach workloads that read
/// CGI-like names, where `_` and `-` are the same.
fn stripped_headers() -> BTreeMap<String, String> {
    let own = OWN_HEADERS.iter().flat_map(|name| aliases(name).into_iter().filter(|a| a.contains('_')));
    let all = STRIPPED_HEADERS.iter().flat_map(|name| aliases(name)).chain(own);
    all.map(|name| (name, String::new())).collect()
}

/// `name` with every choice of `-` and `_`, in Go's canonical spelling: a
/// letter is a capital at the beginning and after `-` only.
fn aliases(name: &str) -> Vec<String> {
    name.split('-').skip(1).fold(vec![name.split('-').take(1).collect()], |heads: Vec<String>, word| {
        let small = word.to_lowercase();
        heads.iter().flat_map(|head| [format!("{head}-{word}"), format!("{head}_{small}")]).collect()
    })
}

/// Name of the core Service through which routes of `service` reach the error backend.
#[must_use]
pub fn edge_errors_name(service: &str) -> String {
    format!("{service}-edge-errors")
}

/// Name of the object that plays `role` for a host of an expose entry.
///
/// Traefik knows objects as `<namespace>-<name>`, where namespace `a` with name
/// `b-c` and namespace `a-b` with name `c` are the same. The hash over all
/// parts keeps one from replacing the other.
#[must_use]
pub fn object_name(owner: &Owner, expose: &str, host: &Host, role: &str) -> String {
    let hash = names::hash([owner.namespace.as_str(), &owner.name, expose, host.as_str(), role]);
    names::with_ending(&format!("{}-{expose}", owner.name), &format!("{role}-{hash}"))
}

/// The objects of one route.
#[must_use]
pub fn build(owner: &Owner, route: &Route) -> Edge {
    let shape = Shape { owner, route };
    let mut edge = Edge { fences: vec![shape.fence()], ..Edge::default() };
    if route.guard == Guard::Withheld {
        return edge;
    }
    edge.middlewares.extend([shape.strip(), shape.keep_protocol()]);
    if let Guard::Decided { decisions_url, .. } = &route.guard {
        edge.middlewares.push(shape.authn(decisions_url));
    }
    if route.backend.speaks == Speaks::Grpc {
        edge.transports.push(shape.transport());
        edge.middlewares.push(shape.errors());
    }
    edge.children.extend([shape.child(), shape.rest()]);
    edge.parents.push(shape.parent());
    edge
}

/// A kind of traffic that has a router of its own.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Traffic {
    /// gRPC calls to a gRPC port: errors are answered as gRPC does.
    Grpc,
    /// Everything else: HTTP statuses stay as they are.
    Plain,
}

/// What a client wants its connection to become.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Wish {
    /// Nothing but what it is, or WebSocket.
    Usual,
    /// Another protocol. HTTP clients offer `h2c` by themselves over plain
    /// HTTP; a server may ignore it (RFC 9110, 7.8), and this edge does.
    Another,
}

struct Shape<'a> {
    owner: &'a Owner,
    route: &'a Route,
}

impl Shape<'_> {
    fn traffic(&self) -> &'static [Traffic] {
        match self.route.backend.speaks {
            Speaks::Grpc => &[Traffic::Grpc, Traffic::Plain],
            Speaks::Http => &[Traffic::Plain],
        }
    }

    fn name(&self, role: &str) -> String {
        object_name(self.owner, &self.route.expose, &self.route.host, role)
    }

    fn metadata(&self, role: &str) -> ObjectMeta {
        let mut metadata = self.owner.child(self.name(role));
        metadata.labels.get_or_insert_default().extend([
            (EDGE_LABEL.to_owned(), self.route.class.clone()),
            (EXPOSE_LABEL.to_owned(), self.route.expose.clone()),
        ]);
        metadata
    }

    fn reference(&self, role: &str) -> Reference {
        Reference { name: self.name(role) }
    }

    fn edge_errors(&self) -> RouterService {
        RouterService {
            name: edge_errors_name(&self.owner.name),
            port: EDGE_ERRORS_PORT,
            scheme: "h2c".to_owned(),
            servers_transport: None,
        }
    }

    /// Routers for what `host` matches, for every path and kind of traffic,
    /// `above` higher than the fence's.
    fn entry(&self, host: &Rule, above: i64, router: impl Fn(Traffic) -> Router) -> Vec<Router> {
        let mut routers = Vec::new();
        for path in &self.route.paths {
            let rule = match path {
                RoutePath::All => host.clone(),
                path => host.and(&Rule::path(path)),
            };
            for traffic in self.traffic() {
                let (rule, step) = match traffic {
                    Traffic::Grpc => (rule.and(&Rule::grpc()), PRIORITIES_PER_TRAFFIC),
                    Traffic::Plain => (rule.clone(), 0),
                };
                routers.push(Router {
                    kind: "Rule".to_owned(),
                    rule: rule.to_string(),
                    priority: BASE_PRIORITY + PRIORITIES_PER_PATH * specificity(path) + step + above,
                    ..router(*traffic)
                });
            }
        }
        routers
    }

    fn fence(&self) -> IngressRoute {
        let routes = self.entry(&Rule::host(&self.route.host), 0, |_| Router {
            services: vec![self.edge_errors()],
            ..Router::default()
        });
        self.ingress_route(
            "fence",
            IngressRouteSpec {
                entry_points: self.route.entry_points.clone(),
                parent_refs: Vec::new(),
                routes,
            },
        )
    }

    fn parent(&self) -> IngressRoute {
        let host = Rule::host(&self.route.host);
        let routes = [Wish::Another, Wish::Usual].into_iter().zip(1..).flat_map(|(wish, above)| {
            // Right after the host: a rule that is narrowed by a path must begin like the wider one.
            let host = host.and(&match wish {
                Wish::Another => Rule::asks_for_another_protocol(),
                Wish::Usual => Rule::keeps_connection(),
            });
            self.entry(&host, above, |traffic| Router {
                middlewares: self.gate(traffic, wish),
                ..Router::default()
            })
        });
        let routes = routes.collect();
        let mut parent = self.ingress_route(
            "parent",
            IngressRouteSpec {
                entry_points: self.route.entry_points.clone(),
                parent_refs: Vec::new(),
                routes,
            },
        );
        if let Guard::Decided { hash, .. } = &self.route.guard {
            parent.metadata.annotations = Some([(POLICY_HASH_ANNOTATION.to_owned(), hash.clone())].into());
        }
        parent
    }

    /// Outermost first: a refusal must still pass the one that makes it gRPC.
    fn gate(&self, traffic: Traffic, wish: Wish) -> Vec<Reference> {
        let roles = [
            (traffic == Traffic::Grpc).then_some("grpc-errors"),
            Some("headers"),
            (wish == Wish::Another).then_some("keep-protocol"),
            matches!(self.route.guard, Guard::Decided { .. }).then_some("authn"),
        ];
        roles.into_iter().flatten().map(|role| self.reference(role)).collect()
    }

    fn child(&self) -> IngressRoute {
        let backend = &self.route.backend;
        let scheme = match backend.speaks {
            Speaks::Grpc => "h2c",
            Speaks::Http => "http",
        };
        let router = |path: &RoutePath| Router {
            kind: "Rule".to_owned(),
            rule: Rule::path(path).to_string(),
            priority: 100 + specificity(path),
            middlewares: Vec::new(),
            services: vec![RouterService {
                name: backend.service.clone(),
                port: backend.port,
                scheme: scheme.to_owned(),
                servers_transport: None,
            }],
        };
        self.ingress_route(
            "child",
            IngressRouteSpec {
                entry_points: Vec::new(),
                parent_refs: vec![self.reference("parent")],
                routes: self.route.paths.iter().map(router).collect(),
            },
        )
    }

    /// An object of its own: in one object two routers with the same match are
    /// one, and the last would win over the workload's.
    fn rest(&self) -> IngressRoute {
        self.ingress_route(
            "rest",
            IngressRouteSpec {
                entry_points: Vec::new(),
                parent_refs: vec![self.reference("parent")],
                routes: vec![Router {
                    kind: "Rule".to_owned(),
                    rule: Rule::path(&RoutePath::All).to_string(),
                    priority: 1,
                    middlewares: Vec::new(),
                    services: vec![self.edge_errors()],
                }],
            },
        )
    }

    fn ingress_route(&self, role: &str, spec: IngressRouteSpec) -> IngressRoute {
        IngressRoute { metadata: self.metadata(role), spec }
    }

    fn authn(&self, decisions_url: &str) -> Middleware {
        let forward_auth = ForwardAuth {
            address: decisions_url.to_owned(),
            trust_forward_header: false,
            auth_request_headers: ["Authorization", "Cookie"].map(ToOwned::to_owned).into(),
            // The client's are removed, whether or not the decision sets them: its own token
            // goes no further than the gate.
            auth_response_headers: ["Authorization", "X-User"].map(ToOwned::to_owned).into(),
            // A longer answer is a refusal, 401. One that is cut is not, if its head was a permission:
            // the head is all that counts, and Oathkeeper's permissions have no body
            // (pkg/middlewares/auth/forward.go of Traefik 3.6.12).
            max_response_body_size: 65_536,
        };
        self.middleware(
            "authn",
            MiddlewareSpec { forward_auth: Some(forward_auth), ..MiddlewareSpec::default() },
        )
    }

    fn errors(&self) -> Middleware {
        let errors = Errors {
            status: ["400-499", "500-599"].map(ToOwned::to_owned).into(),
            status_rewrites: [("400-599".to_owned(), 200)].into(),
            query: "/grpc/{originalStatus}".to_owned(),
            service: RouterService { servers_transport: Some(self.name("transport")), ..self.edge_errors() },
        };
        self.middleware("grpc-errors", MiddlewareSpec { errors: Some(errors), ..MiddlewareSpec::default() })
    }

    fn strip(&self) -> Middleware {
        self.remove("headers", stripped_headers())
    }

    /// Without the wish the workload has nothing to agree to.
    fn keep_protocol(&self) -> Middleware {
        self.remove("keep-protocol", [("Upgrade".to_owned(), String::new())].into())
    }

    fn remove(&self, role: &str, custom_request_headers: BTreeMap<String, String>) -> Middleware {
        let headers = Some(Headers { custom_request_headers });
        self.middleware(role, MiddlewareSpec { headers, ..MiddlewareSpec::default() })
    }

    fn middleware(&self, role: &str, spec: MiddlewareSpec) -> Middleware {
        Middleware { metadata: self.metadata(role), spec }
    }

    /// Without limits a denied call would wait for the client's deadline.
    fn transport(&self) -> ServersTransport {
        ServersTransport {
            metadata: self.metadata("transport"),
            spec: ServersTransportSpec {
                forwarding_timeouts: Timeouts {
                    dial_timeout: "300ms".to_owned(),
                    response_header_timeout: "1s".to_owned(),
                },
            },
        }
    }
}

fn specificity(path: &RoutePath) -> i64 {
    i64::try_from(path.specificity()).unwrap_or(i64::MAX / 8)
}
