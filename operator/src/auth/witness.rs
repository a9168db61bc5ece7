//! Requests without credentials that a policy must refuse: sent through the
//! edge they prove that it asks, and that the answer counts.

use peristyle_crds::v1alpha1::auth_policy::HttpMethod;

use super::{compile::Allowed, matches::METHODS, pattern::Pattern};
use crate::edge::route::{RoutePath, Speaks};

/// A segment that no rule can match, because of its `;`.
const NOWHERE: &str = "peristyle;probe";
/// A method of a gRPC service that is matched as a whole.
const ANY_METHOD: &str = "Probe";

/// A request that must be refused.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Witness {
    /// HTTP method.
    pub method: HttpMethod,
    /// Path.
    pub path: String,
    /// Whether it is a gRPC call.
    pub is_grpc: bool,
    /// The decision: 401 where a token is asked for, 403 where nobody may call.
    pub status: u16,
}

/// What proves that a route with these paths is closed: a request that no rule
/// allows and one that needs a token, as far as there are such.
#[must_use]
pub fn witnesses(rules: &[Allowed], paths: &[RoutePath], speaks: Speaks) -> Vec<Witness> {
    let is_grpc = speaks == Speaks::Grpc;
    let method = if is_grpc { HttpMethod::Post } else { HttpMethod::Get };
    let mut witnesses: Vec<Witness> = Vec::new();
    for path in paths {
        match path {
            RoutePath::Exact(path) => witnesses.extend(closed(rules, path, is_grpc)),
            RoutePath::All | RoutePath::Prefix(_) => {
                let path = format!("{}/{NOWHERE}", path.as_str());
                witnesses.push(Witness { method, path: path.clone(), is_grpc, status: 403 });
                if is_grpc {
                    // Such a port answers calls that are not gRPC through a router of their own.
                    witnesses.push(Witness { method: HttpMethod::Get, path, is_grpc: false, status: 403 });
                }
            }
        }
    }
    witnesses.extend(asking(rules, paths, is_grpc));
    witnesses
}

/// The first request that some rule allows with a token only.
fn asking(rules: &[Allowed], paths: &[RoutePath], is_grpc: bool) -> Option<Witness> {
    let protected = rules.iter().filter(|rule| !rule.is_public);
    let patterns =
        protected.flat_map(|rule| &rule.requests).flat_map(|(method, p)| p.iter().map(|p| (*method, p)));
    patterns
        .filter(|(method, _)| !is_grpc || *method == HttpMethod::Post)
        .map(|(method, pattern)| Witness { method, path: example(pattern), is_grpc, status: 401 })
        .find(|witness| paths.iter().any(|path| contains(path, &witness.path)))
}

/// A method with which `path` may not be called without credentials.
fn closed(rules: &[Allowed], path: &str, is_grpc: bool) -> Option<Witness> {
    let methods = if is_grpc { &[HttpMethod::Post][..] } else { &METHODS[..] };
    let matching = |method: HttpMethod| {
        let is_match = |rule: &&Allowed| {
            rule.requests.get(&method).is_some_and(|patterns| patterns.iter().any(|p| p.contains(path)))
        };
        rules.iter().find(is_match)
    };
    methods.iter().copied().find_map(|method| {
        let status = match matching(method) {
            Some(rule) if rule.is_public => return None,
            Some(_) => 401,
            None => 403,
        };
        Some(Witness { method, path: path.to_owned(), is_grpc, status })
    })
}

/// A path in the set.
fn example(pattern: &Pattern) -> String {
    match pattern {
        Pattern::Exact(path) | Pattern::Prefix(path) => path.clone(),
        Pattern::Service(name) => format!("/{name}/{ANY_METHOD}"),
    }
}

fn contains(route: &RoutePath, path: &str) -> bool {
    match route {
        RoutePath::All => true,
        RoutePath::Exact(exact) => exact == path,
        RoutePath::Prefix(prefix) => Pattern::Prefix(prefix.clone()).contains(path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(method: HttpMethod, pattern: Pattern, is_public: bool) -> Allowed {
        Allowed { requests: [(method, [pattern].into())].into(), is_public }
    }

    fn shown(witnesses: &[Witness]) -> Vec<String> {
        let line = |w: &Witness| {
            let kind = if w.is_grpc { "grpc" } else { "http" };
            format!("{kind} {:?} {} {}", w.method, w.path, w.status)
        };
        witnesses.iter().map(line).collect()
    }

    #[test]
    fn a_grpc_route_is_asked_for_a_call_without_a_rule_and_for_one_that_needs_a_token() {
        let rules = [
            rule(HttpMethod::Post, Pattern::Service("grpc.health.v1.Health".to_owned()), true),
            rule(HttpMethod::Post, Pattern::Exact("/a.A/Get".to_owned()), false),
        ];
        let found = witnesses(&rules, &[RoutePath::All], Speaks::Grpc);
        assert_eq!(
            shown(&found),
            ["grpc Post /peristyle;probe 403", "http Get /peristyle;probe 403", "grpc Post /a.A/Get 401"]
        );
    }

    #[test]
    fn what_is_asked_lies_below_the_paths_of_the_route() {
        let rules = [
            rule(HttpMethod::Put, Pattern::Prefix("/b".to_owned()), false),
            rule(HttpMethod::Put, Pattern::Prefix("/a/x".to_owned()), false),
        ];
        let found = witnesses(&rules, &[RoutePath::Prefix("/a".to_owned())], Speaks::Http);
        assert_eq!(shown(&found), ["http Get /a/peristyle;probe 403", "http Put /a/x 401"]);
    }

    #[test]
    fn a_single_path_is_asked_with_a_method_that_is_closed_and_not_at_all_when_none_is() {
        let path = || Pattern::Exact("/p".to_owned());
        let route = [RoutePath::Exact("/p".to_owned())];
        let one = [rule(HttpMethod::Get, path(), true)];
        assert_eq!(shown(&witnesses(&one, &route, Speaks::Http)), ["http Head /p 403"]);
        let all: Vec<Allowed> = METHODS.iter().map(|method| rule(*method, path(), true)).collect();
        assert!(witnesses(&all, &route, Speaks::Http).is_empty());
    }
}
