//! What must hold for the routes of every spec, whatever the policies say.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;
use peristyle::{
    controllers::service::{
        build,
        observe::{EdgeErrors, ExposeView, HostView, Observed},
        route,
    },
    edge::{
        route::{Guard, Host, RoutePath, RouteProtection},
        traefik::{
            Edge,
            objects::{IngressRoute, Reference, Router},
            rule::Rule,
        },
    },
    metadata::Owner,
};
use peristyle_crds::{
    condition::Reason,
    names::{EDGE_LABEL, EXPOSE_LABEL, SERVICE_LABEL},
    v1alpha1::{
        PathMatch, Service,
        service::{AuthMode, Expose, ExposeAuth, Port, Protocol},
    },
};
use proptest::{collection::vec, prelude::*, sample::select};

/// What has a meaning in a rule.
const SYNTAX: [char; 10] = ['`', '\'', '"', '\\', '(', ')', '|', '&', '{', ' '];
const DECISIONS: &str = "http://oathkeeper-api.auth.svc.cluster.local:4456/decisions";

fn protection() -> impl Strategy<Value = RouteProtection> {
    prop_oneof![
        Just(RouteProtection::None),
        Just(RouteProtection::Unknown { hash: "h1".to_owned(), decisions_url: DECISIONS.to_owned() }),
        Just(RouteProtection::Pending {
            reason: Reason::PropagatingRules,
            message: "1 of 2 pods".to_owned()
        }),
        select(vec!["a.test", "b.test"]).prop_map(|host| RouteProtection::Changing {
            hash: "h1".to_owned(),
            hosts: [host.to_owned()].into(),
            decisions_url: DECISIONS.to_owned(),
            reason: Reason::PropagatingRules,
            message: "1 of 2 pods".to_owned()
        }),
        Just(RouteProtection::Live { hash: "h1".to_owned(), decisions_url: DECISIONS.to_owned() }),
    ]
}

fn serving() -> impl Strategy<Value = Option<Guard>> {
    let decided = |hash: &str| Guard::Decided { decisions_url: DECISIONS.to_owned(), hash: hash.to_owned() };
    select(vec![None, Some(decided("h1")), Some(decided("h0"))])
}

fn path() -> impl Strategy<Value = PathMatch> {
    (any::<bool>(), "(/[a-c]{1,2}){0,3}/?").prop_map(|(is_prefix, text)| {
        let text = if text.is_empty() { "/".to_owned() } else { text };
        let (prefix, exact) = if is_prefix { (Some(text), None) } else { (None, Some(text)) };
        PathMatch { prefix, exact }
    })
}

fn expose() -> impl Strategy<Value = (Expose, ExposeView)> {
    let hosts = proptest::collection::btree_map(select(vec!["a.test", "b.test", "c.test"]), serving(), 0..3);
    (
        "[a-z]([-a-z0-9]{0,38}[a-z0-9])?",
        select(vec!["grpc", "http"]),
        select(vec![None, Some(AuthMode::Public), Some(AuthMode::Required)]),
        vec(path(), 0..4),
        hosts,
        select(vec!["public", "internal"]),
        protection(),
    )
        .prop_map(|(name, port, auth, paths, hosts, class, protection)| {
            let expose = Expose {
                name,
                port: Some(port.to_owned()),
                auth: auth.map(|mode| ExposeAuth { mode }),
                paths,
                ..Expose::default()
            };
            let host = |(name, serving): (&str, Option<Guard>)| {
                let url = format!("https://{name}");
                (name.to_owned(), HostView { url, serving })
            };
            let view = ExposeView::Served {
                class: class.to_owned(),
                hosts: hosts.into_iter().map(host).collect(),
                refused: Vec::new(),
                entry_points: vec!["websecure".to_owned()],
                protection,
            };
            (expose, view)
        })
}

/// A Service with what was observed of it.
fn world() -> impl Strategy<Value = (Service, Observed)> {
    let name = "[a-z]([-a-z0-9]{0,48}[a-z0-9])?";
    (name, vec(expose(), 0..5)).prop_map(|(name, entries)| {
        let by_name: BTreeMap<String, (Expose, ExposeView)> =
            entries.into_iter().map(|entry| (entry.0.name.clone(), entry)).collect();
        let mut service = Service::new(&name, peristyle_crds::v1alpha1::ServiceSpec::default());
        service.metadata.namespace = Some("shop".to_owned());
        service.metadata.uid = Some("uid".to_owned());
        let port = |name: &str, port, protocol| Port {
            name: name.to_owned(),
            port,
            protocol: Some(protocol),
            service_port: None,
        };
        service.spec.ports = vec![port("grpc", 50051, Protocol::Grpc), port("http", 8080, Protocol::Http)];
        service.spec.expose = by_name.values().map(|(expose, _)| expose.clone()).collect();
        let observed = Observed {
            exposes: by_name.into_iter().map(|(name, (_, view))| (name, view)).collect(),
            edge_errors: Some(EdgeErrors::default()),
            has_traefik: true,
            ..Observed::default()
        };
        (service, observed)
    })
}

/// The same with routes that are not served yet, each with `protection` by the same policy.
fn restarted(observed: &Observed, protection: impl Fn(String) -> RouteProtection) -> Observed {
    let mut observed = observed.clone();
    for view in observed.exposes.values_mut() {
        if let ExposeView::Served { hosts, protection: found, .. } = view {
            *found = protection("h1".to_owned());
            for host in hosts.values_mut() {
                host.serving = None;
            }
        }
    }
    observed
}

fn edge(service: &Service, observed: &Observed) -> Edge {
    let owner = Owner::new(service, "shop", SERVICE_LABEL);
    build::edge(&owner, &route::routes(service, observed))
}

fn leads_to(router: &Router, service: &str) -> bool {
    router.services.iter().any(|backend| backend.name == service)
}

/// Whether every way in through `root` asks for a decision.
fn asks(edge: &Edge, root: &IngressRoute) -> bool {
    root.spec.routes.iter().all(|router| {
        router.middlewares.iter().any(|reference| {
            edge.middlewares.iter().any(|middleware| {
                let asks = |auth: &peristyle::edge::traefik::objects::ForwardAuth| {
                    auth.address == DECISIONS
                        && !auth.trust_forward_header
                        && !auth.auth_request_headers.is_empty()
                };
                middleware.name_any() == reference.name
                    && middleware.spec.forward_auth.as_ref().is_some_and(asks)
            })
        })
    })
}

fn mode(service: &Service, route: &IngressRoute) -> AuthMode {
    let name = &route.labels()[EXPOSE_LABEL];
    let expose = service.spec.expose.iter().find(|expose| expose.name == *name);
    expose.unwrap().auth_mode()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_way_to_the_workload_without_a_decision_unless_public((service, observed) in world()) {
        let edge = edge(&service, &observed);
        let name = service.name_any();
        for route in edge.routes().filter(|route| route.spec.routes.iter().any(|r| leads_to(r, &name))) {
            prop_assert_eq!(route.spec.parent_refs.len(), 1);
            prop_assert!(route.spec.entry_points.is_empty());
            let is_parent = |root: &&IngressRoute| root.name_any() == route.spec.parent_refs[0].name;
            let parent = edge.parents.iter().find(is_parent).unwrap();
            prop_assert!(parent.spec.parent_refs.is_empty());
            prop_assert!(parent.spec.routes.iter().all(|router| router.services.is_empty()));
            prop_assert!(mode(&service, route) == AuthMode::Public || asks(&edge, parent));
        }
    }

    #[test]
    fn a_required_route_is_there_only_for_a_policy_that_is_live_or_goes_on((service, observed) in world()) {
        for route in &route::routes(&service, &observed).routes {
            let expose = service.spec.expose.iter().find(|expose| expose.name == route.expose).unwrap();
            let ExposeView::Served { protection, hosts, .. } = &observed.exposes[&route.expose] else { continue };
            let host = route.host.as_str();
            let goes_on = || match (&hosts[host].serving, protection) {
                (Some(Guard::Decided { hash: served, .. }), RouteProtection::Unknown { hash, .. }) => served == hash,
                (Some(Guard::Decided { .. }), RouteProtection::Changing { hosts, .. }) => hosts.contains(host),
                _ => false,
            };
            match &route.guard {
                Guard::Open => prop_assert_eq!(expose.auth_mode(), AuthMode::Public),
                Guard::Decided { .. } => {
                    let is_live = matches!(protection, RouteProtection::Live { .. });
                    prop_assert!(is_live || goes_on());
                }
                Guard::Withheld => prop_assert_eq!(expose.auth_mode(), AuthMode::Required),
            }
        }
    }

    #[test]
    fn under_every_router_with_a_middleware_stands_a_fence((service, observed) in world()) {
        let edge = edge(&service, &observed);
        let errors = format!("{}-edge-errors", service.name_any());
        for route in edge.routes() {
            for router in route.spec.routes.iter().filter(|router| !router.middlewares.is_empty()) {
                let rule = without_wish(&router.rule);
                let is_fence = |fence: &IngressRoute| {
                    fence.spec.entry_points == route.spec.entry_points
                        && fence.labels()[EDGE_LABEL] == route.labels()[EDGE_LABEL]
                        && fence.spec.routes.iter().any(|below| {
                            below.rule == rule && rule != router.rule
                                && (router.priority - 2..router.priority).contains(&below.priority)
                                && below.middlewares.is_empty()
                                && leads_to(below, &errors)
                        })
                };
                prop_assert!(edge.fences.iter().any(is_fence), "{}", router.rule);
            }
        }
    }

    #[test]
    fn a_parent_always_has_a_child_that_matches_everything((service, observed) in world()) {
        let edge = edge(&service, &observed);
        let errors = format!("{}-edge-errors", service.name_any());
        for parent in &edge.parents {
            let catches = edge.children.iter().any(|child| {
                child.spec.parent_refs[0].name == parent.name_any()
                    && child.spec.routes.iter().any(|router| {
                        router.rule == "PathPrefix(`/`)" && router.priority == 1 && leads_to(router, &errors)
                    })
            });
            prop_assert!(catches);
        }
    }

    #[test]
    fn every_way_in_strips_the_headers_that_name_the_caller((service, observed) in world()) {
        let edge = edge(&service, &observed);
        for router in edge.parents.iter().flat_map(|parent| &parent.spec.routes) {
            let strips = router.middlewares.iter().any(|reference| {
                let middleware = edge.middlewares.iter().find(|m| m.name_any() == reference.name).unwrap();
                middleware.spec.headers.as_ref().is_some_and(|headers| {
                    ["X-User", "X_user", "X-Forwarded_for", "X_forwarded_for"].iter().all(|name| headers.custom_request_headers[*name].is_empty())
                })
            });
            prop_assert!(strips);
        }
    }

    #[test]
    fn no_way_in_leaves_the_connection_to_who_asks_for_another_protocol((service, observed) in world()) {
        let edge = edge(&service, &observed);
        for router in edge.parents.iter().flat_map(|parent| &parent.spec.routes) {
            let asks_for = |wish: Rule| router.rule.contains(&format!("`) && {wish}"));
            let removes_wish = router.middlewares.iter().any(|reference| {
                let middleware = edge.middlewares.iter().find(|m| m.name_any() == reference.name).unwrap();
                middleware.spec.headers.as_ref().is_some_and(|headers| {
                    headers.custom_request_headers.get("Upgrade").is_some_and(String::is_empty)
                })
            });
            prop_assert!(asks_for(Rule::keeps_connection()) || removes_wish, "{}", router.rule);
            prop_assert_eq!(asks_for(Rule::asks_for_another_protocol()), removes_wish, "WebSocket must pass");
        }
    }

    #[test]
    fn every_name_resolves_is_unique_and_short((service, observed) in world()) {
        let edge = edge(&service, &observed);
        let mut names = BTreeSet::new();
        for name in edge.routes().map(|r| format!("r {}", r.name_any()))
            .chain(edge.middlewares.iter().map(|m| format!("m {}", m.name_any())))
            .chain(edge.transports.iter().map(|t| format!("t {}", t.name_any())))
        {
            prop_assert!(name.len() <= 65, "{name}");
            prop_assert!(names.insert(name.clone()), "{name}");
        }
        for reference in edge.routes().flat_map(|r| &r.spec.routes).flat_map(|r| &r.middlewares) {
            let name = format!("m {}", reference.name);
            prop_assert!(names.contains(&name));
        }
        for errors in edge.middlewares.iter().filter_map(|m| m.spec.errors.as_ref()) {
            let transport = errors.service.servers_transport.clone().unwrap();
            let name = format!("t {transport}");
            prop_assert!(names.contains(&name));
        }
    }

    #[test]
    fn no_two_routers_of_a_class_have_the_same_match_or_priority_on_a_host((service, observed) in world()) {
        let edge = edge(&service, &observed);
        let mut rules = BTreeSet::new();
        for (kind, roots) in [("fence", &edge.fences), ("parent", &edge.parents)] {
            for root in roots {
                let mut seen = BTreeSet::new();
                for router in &root.spec.routes {
                    prop_assert!(rules.insert((kind, root.labels()[EDGE_LABEL].clone(), router.rule.clone())));
                    prop_assert!(router.priority > 1_000_000 - 1);
                    seen.insert(router.rule.clone());
                }
                prop_assert_eq!(seen.len(), root.spec.routes.len());
            }
        }
    }

    #[test]
    fn what_a_restart_finds_of_a_route_is_kept_but_its_ways_in((service, observed) in world()) {
        let before = edge(&service, &restarted(&observed, |hash| RouteProtection::Live { hash, decisions_url: DECISIONS.to_owned() }));
        let after = edge(&service, &restarted(&observed, |hash| RouteProtection::Unknown { hash, decisions_url: DECISIONS.to_owned() }));
        let is_required = service.spec.expose.iter().any(|expose| expose.auth_mode() == AuthMode::Required);
        prop_assert!(!before.is_provisional);
        prop_assert_eq!(after.is_provisional, is_required);
        let name = service.name_any();
        for route in before.routes().filter(|route| route.spec.routes.iter().any(|r| leads_to(r, &name))) {
            let is_public = mode(&service, route) == AuthMode::Public;
            prop_assert_eq!(after.is_stricter_than(route), !is_public);
        }
    }

    #[test]
    fn the_same_spec_gives_the_same_routes((service, observed) in world()) {
        prop_assert_eq!(edge(&service, &observed), edge(&service, &observed));
    }

    #[test]
    fn what_is_rendered_is_never_withdrawn_and_what_lost_its_protection_always_is((service, observed) in world()) {
        let edge = edge(&service, &observed);
        for route in edge.routes() {
            prop_assert!(!edge.is_stricter_than(route));
            let mut open = route.clone();
            open.metadata.name = Some("other".to_owned());
            prop_assert!(edge.is_stricter_than(&open));
        }
        for parent in &edge.parents {
            let mut open = parent.clone();
            open.spec.routes[0].middlewares.clear();
            prop_assert!(edge.is_stricter_than(&open));
        }
        for child in &edge.children {
            let mut open = child.clone();
            open.spec.parent_refs.clear();
            prop_assert!(edge.is_stricter_than(&open));
        }
        // What matched more, listened elsewhere or was another edge's lets in more.
        let wider = |route: &IngressRoute| {
            let [mut more, mut elsewhere, mut other] = [route.clone(), route.clone(), route.clone()];
            let router = Router { rule: "Host(`more.test`)".to_owned(), ..route.spec.routes[0].clone() };
            more.spec.routes.push(router);
            elsewhere.spec.entry_points.push("web".to_owned());
            other.metadata.labels.as_mut().unwrap().insert(EDGE_LABEL.to_owned(), "elsewhere".to_owned());
            [more, elsewhere, other]
        };
        for parent in &edge.parents {
            prop_assert!(wider(parent).iter().all(|wider| edge.is_stricter_than(wider)));
            let mut handing_over = parent.clone();
            for router in &mut handing_over.spec.routes {
                router.rule = without_wish(&router.rule);
            }
            prop_assert!(edge.is_stricter_than(&handing_over));
            for (number, router) in parent.spec.routes.iter().enumerate() {
                // The shape of a refusal lets nobody in.
                let refuses = |middleware: &&Reference| !middleware.name.contains("-grpc-errors-");
                for middleware in router.middlewares.iter().filter(refuses) {
                    let mut lacking = parent.clone();
                    lacking.spec.routes[number].middlewares.retain(|kept| kept != middleware);
                    prop_assert!(edge.is_stricter_than(&lacking), "{} without {middleware:?}", router.rule);
                }
            }
        }
        for fence in &edge.fences {
            prop_assert!(!wider(fence).iter().any(|wider| edge.is_stricter_than(wider)), "it refuses, meanwhile");
        }
        for fence in &edge.fences {
            let mut open = fence.clone();
            open.spec.routes[0].services[0].name = service.name_any();
            prop_assert!(edge.is_stricter_than(&open));
        }
    }

    #[test]
    fn no_host_ends_the_literal_that_it_stands_in(text in "\\PC{0,40}|[a-z.`)|&]{0,12}") {
        if let Ok(host) = Host::parse(&text) {
            prop_assert_eq!(Rule::host(&host).to_string(), format!("Host(`{text}`)"));
            prop_assert!(!text.contains(SYNTAX));
        }
    }

    #[test]
    fn no_path_ends_the_literal_that_it_stands_in(text in "/?(\\PC{0,40}|[a-z/.`)|&]{0,12})", is_prefix: bool) {
        let (prefix, exact) = if is_prefix { (Some(text.clone()), None) } else { (None, Some(text.clone())) };
        if let Ok(path) = RoutePath::parse(&PathMatch { prefix, exact }) {
            let rule = Rule::path(&path).to_string();
            let literals = if matches!(path, RoutePath::Prefix(_)) { 2 } else { 1 };
            prop_assert_eq!(rule.matches('`').count(), 2 * literals);
            prop_assert!(!text.contains(SYNTAX));
        }
    }
}

/// `rule` for all requests, whatever they want their connection to become: that of the fence.
fn without_wish(rule: &str) -> String {
    let wishes = [Rule::keeps_connection(), Rule::asks_for_another_protocol()];
    wishes.iter().fold(rule.to_owned(), |rule, wish| rule.replacen(&format!(" && {wish}"), "", 1))
}

fn exposed(text: &str) -> (Service, Observed) {
    let text = format!("{{metadata: {{name: orders, namespace: shop, uid: u}}, spec: {{image: x, {text}}}}}");
    let service: Service = serde_saphyr::from_str(&text).unwrap();
    let view = |protection: RouteProtection| ExposeView::Served {
        class: "public".to_owned(),
        hosts: [("h.test".to_owned(), HostView::default())].into(),
        refused: Vec::new(),
        entry_points: vec!["web".to_owned()],
        protection,
    };
    let live = RouteProtection::Live { hash: "h1".to_owned(), decisions_url: DECISIONS.to_owned() };
    let entries = service.spec.expose.iter().map(|expose| (expose.name.clone(), view(live.clone())));
    let observed = Observed {
        exposes: entries.collect(),
        edge_errors: Some(EdgeErrors::default()),
        has_traefik: true,
        ..Observed::default()
    };
    (service, observed)
}

#[test]
fn a_required_entry_that_cannot_be_served_is_refused_and_does_not_fall_through_to_a_public_one() {
    const PORTS: &str =
        "ports: [{name: http, port: 80, protocol: HTTP}, {name: raw, port: 81, protocol: TCP}]";
    let spec = |port: &str| {
        format!(
            "{PORTS}, expose: [{{name: open, port: http, auth: {{mode: Public}}}}, {{name: admin, port: {port}, paths: [{{prefix: /admin}}]}}]"
        )
    };
    for port in ["raw", "absent"] {
        let (service, observed) = exposed(&spec(port));
        let routes = route::routes(&service, &observed);
        assert!(routes.finding().message.starts_with("spec.expose[1].port"), "{}", routes.finding().message);
        let edge = edge(&service, &observed);
        let (before, seen) = exposed(&spec("http"));
        for fence in self::edge(&before, &seen).fences {
            let fenced: Vec<&str> = fence.spec.routes.iter().map(|router| router.rule.as_str()).collect();
            let still = edge.fences.iter().find(|still| still.name_any() == fence.name_any()).unwrap();
            let rules: Vec<&str> = still.spec.routes.iter().map(|router| router.rule.as_str()).collect();
            assert!(fenced.iter().all(|rule| rules.contains(rule)), "{fenced:?} {rules:?}");
            assert!(!edge.is_stricter_than(&fence), "the fence is not withdrawn");
        }
        assert_eq!(edge.parents.len(), 1, "only the public entry lets anybody in");
    }
}

#[test]
fn a_stricter_spec_withdraws_what_lets_in_more_and_has_the_fence_ready() {
    let spec = |paths: &str, more: &str| {
        format!(
            "ports: [{{name: http, port: 80, protocol: HTTP}}], expose: [{{name: open, paths: [{paths}], auth: {{mode: Public}}}}{more}]"
        )
    };
    let edge_of = |text: &str| {
        let (service, observed) = exposed(text);
        edge(&service, &observed)
    };
    let before = edge_of(&spec("", ""));
    let narrower = edge_of(&spec("{prefix: /pub}", ""));
    assert!(narrower.is_stricter_than(&before.parents[0]), "all paths were open");
    assert!(!before.is_stricter_than(&narrower.parents[0]));
    let admin = edge_of(&spec("", ", {name: admin, paths: [{prefix: /admin}]}"));
    assert!(!admin.is_stricter_than(&before.parents[0]), "it stays, behind the fence of what is new");
    let open = before.parents[0].spec.routes[0].priority;
    assert!(admin.fences.iter().flat_map(|fence| &fence.spec.routes).any(|r| r.priority > open));
}

#[test]
fn while_traefiks_kinds_are_not_all_in_the_caches_nothing_is_taken_back() {
    let (service, observed) = exposed("expose: [{name: open}]");
    let late = Observed { has_traefik: false, ..observed };
    assert!(edge(&service, &late).is_provisional);
    let (nothing, observed) = exposed("expose: []");
    assert!(!edge(&nothing, &Observed { has_traefik: false, ..observed }).is_provisional);
}

#[test]
fn what_is_served_while_a_policy_is_unknown_must_ask_where_its_class_says() {
    let unknown = RouteProtection::Unknown { hash: "h1".to_owned(), decisions_url: DECISIONS.to_owned() };
    let serving = |url: &str| Guard::Decided { decisions_url: url.to_owned(), hash: "h1".to_owned() };
    let host = Host::parse("a.test").unwrap();
    assert_eq!(Guard::required(&unknown, &host, Some(&serving(DECISIONS))), serving(DECISIONS));
    assert_eq!(Guard::required(&unknown, &host, Some(&serving("http://evil.test/"))), Guard::Withheld);
}

#[test]
fn a_path_that_servers_clean_is_no_path_of_a_route() {
    let parse = |text: &str| {
        let both = [(Some(text.to_owned()), None), (None, Some(text.to_owned()))];
        both.map(|(prefix, exact)| RoutePath::parse(&PathMatch { prefix, exact }).is_ok())
    };
    for odd in ["//", "/a//b", "/a/../b", "/./a", "/..", "/a/.", "/a//"] {
        assert_eq!(parse(odd), [false, false], "{odd}");
    }
    for plain in ["/", "/a", "/a/", "/a/..b", "/.well-known/x", "/v1.0/~me"] {
        assert_eq!(parse(plain), [true, true], "{plain}");
    }
}

#[test]
fn namespaces_and_names_that_run_together_give_different_objects_at_the_edge() {
    let names = |namespace: &str, name: &str| -> BTreeSet<String> {
        let mut service = Service::new(name, peristyle_crds::v1alpha1::ServiceSpec::default());
        service.metadata.namespace = Some(namespace.to_owned());
        service.spec.expose = vec![Expose {
            name: "public".to_owned(),
            auth: Some(ExposeAuth { mode: AuthMode::Public }),
            ..Expose::default()
        }];
        let view = ExposeView::Served {
            class: "public".to_owned(),
            hosts: [("h.test".to_owned(), HostView::default())].into(),
            refused: Vec::new(),
            entry_points: Vec::new(),
            protection: RouteProtection::None,
        };
        let observed = Observed {
            exposes: [("public".to_owned(), view)].into(),
            has_traefik: true,
            ..Observed::default()
        };
        let owner = Owner::new(&service, namespace, SERVICE_LABEL);
        let edge = build::edge(&owner, &route::routes(&service, &observed));
        let names = edge.middlewares.iter().map(ResourceExt::name_any);
        let names = names.chain(edge.routes().map(ResourceExt::name_any));
        names.map(|name| format!("{namespace}-{name}")).collect()
    };
    let (one, other) = (names("v1", "x-y"), names("v1-x", "y"));
    assert!(!one.is_empty());
    assert!(one.is_disjoint(&other), "{one:?} {other:?}");
}
