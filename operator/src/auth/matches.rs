//! What each rule of a policy matches, and that no two match the same request.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use peristyle_crds::{
    condition::Reason,
    v1alpha1::auth_policy::{AccessRule, HttpMethod},
};

use super::{
    pattern::{Pattern, is_identifier},
    rejection::Rejection,
};

/// Every HTTP method that rules can speak of; a request with another method
/// matches no rule and is refused.
pub const METHODS: [HttpMethod; 7] = [
    HttpMethod::Get,
    HttpMethod::Head,
    HttpMethod::Post,
    HttpMethod::Put,
    HttpMethod::Patch,
    HttpMethod::Delete,
    HttpMethod::Options,
];

/// Paths by HTTP method.
pub type Requests = BTreeMap<HttpMethod, BTreeSet<Pattern>>;

/// The method as it stands in a request.
#[must_use]
pub const fn word(method: HttpMethod) -> &'static str {
    match method {
        HttpMethod::Get => "GET",
        HttpMethod::Head => "HEAD",
        HttpMethod::Post => "POST",
        HttpMethod::Put => "PUT",
        HttpMethod::Patch => "PATCH",
        HttpMethod::Delete => "DELETE",
        HttpMethod::Options => "OPTIONS",
    }
}

/// The requests that `rule` matches.
///
/// # Errors
/// When a path or name cannot be matched, or the rule matches nothing.
pub fn requests(rule: &AccessRule) -> Result<Requests, Rejection> {
    let field = |kind: &str, index: usize| format!("spec.rules[{}].match.{kind}[{index}]", rule.name);
    let mut requests = Requests::new();
    for (index, grpc) in rule.matches.grpc.iter().enumerate() {
        let refused = |error| Rejection::invalid(format!("{}: {error}", field("grpc", index)));
        let posts = requests.entry(HttpMethod::Post).or_default();
        if grpc.methods.is_empty() {
            posts.insert(Pattern::service(&grpc.service).map_err(refused)?);
        }
        for method in &grpc.methods {
            posts.insert(Pattern::method(&grpc.service, method).map_err(refused)?);
        }
    }
    for (index, http) in rule.matches.http.iter().enumerate() {
        let pattern = Pattern::path(&http.path)
            .map_err(|error| Rejection::invalid(format!("{}.path: {error}", field("http", index))))?;
        let methods = if http.methods.is_empty() {
            &[HttpMethod::Get, HttpMethod::Head]
        } else {
            http.methods.as_slice()
        };
        for method in methods {
            requests.entry(*method).or_default().insert(pattern.clone());
        }
    }
    let both = !rule.matches.grpc.is_empty() && !rule.matches.http.is_empty();
    if requests.is_empty() || both {
        return Err(Rejection::invalid(format!(
            "spec.rules[{}].match: set exactly one of grpc and http",
            rule.name
        )));
    }
    Ok(requests)
}

/// Methods with the same set of paths, together: one Oathkeeper rule each.
/// The groups of one value are disjoint because their methods are.
#[must_use]
pub fn grouped(requests: &Requests) -> Vec<(Vec<HttpMethod>, BTreeSet<Pattern>)> {
    let mut groups: BTreeMap<&BTreeSet<Pattern>, Vec<HttpMethod>> = BTreeMap::new();
    for (method, patterns) in requests {
        groups.entry(patterns).or_default().push(*method);
    }
    groups.into_iter().map(|(patterns, methods)| (methods, patterns.clone())).collect()
}

/// The rules that have claimed each path, by method.
#[derive(Default)]
struct Claimed<'a> {
    exact: HashMap<&'a str, &'a str>,
    prefix: HashMap<&'a str, &'a str>,
    service: HashMap<&'a str, &'a str>,
}

impl<'a> Claimed<'a> {
    fn insert(&mut self, pattern: &'a Pattern, rule: &'a str) {
        match pattern {
            Pattern::Exact(path) => self.exact.insert(path, rule),
            Pattern::Prefix(path) => self.prefix.insert(path, rule),
            Pattern::Service(name) => self.service.insert(name, rule),
        };
    }

    /// A rule that matches a request of `pattern` too. Asked of every pattern
    /// once all are claimed, so that it is enough to look upwards.
    fn other(&self, pattern: &Pattern, rule: &str) -> Option<&'a str> {
        let other = |found: Option<&&'a str>| found.copied().filter(|found| *found != rule);
        let above = |path: &str| ancestors(path).find_map(|path| other(self.prefix.get(path)));
        let methods_of = |path: &str| {
            let (service, method) = path.strip_prefix('/')?.split_once('/')?;
            is_identifier(method).then(|| other(self.service.get(service)))?
        };
        match pattern {
            Pattern::Exact(path) => above(path).or_else(|| methods_of(path)),
            Pattern::Prefix(path) => above(path).or_else(|| methods_of(path)),
            Pattern::Service(name) => above(&format!("/{name}")),
        }
    }
}

/// The path itself without a trailing slash, then each prefix above it.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    let path = path.strip_suffix('/').filter(|p| !p.is_empty()).unwrap_or(path);
    std::iter::successors(Some(path), |path| match path.rfind('/') {
        Some(0) if *path == "/" => None,
        Some(0) => Some("/"),
        Some(at) => Some(&path[..at]),
        None => None,
    })
}

/// Proves that no request is matched by two of `rules`.
///
/// # Errors
/// [`Reason::OverlappingRules`], naming two rules and a request.
pub fn disjoint(rules: &[(&str, Requests)]) -> Result<(), Rejection> {
    let overlap = |method, pattern: &Pattern, one: &str, two: &str| {
        let (one, two) = if one < two { (one, two) } else { (two, one) };
        Rejection::stalled(
            Reason::OverlappingRules,
            format!(
                "spec.rules[{one}] and spec.rules[{two}] both match {} {pattern}; remove it from one of them",
                word(method)
            ),
        )
    };
    for method in METHODS {
        let mut claimed = Claimed::default();
        let patterns = || {
            rules.iter().flat_map(|(rule, requests)| {
                requests.get(&method).into_iter().flatten().map(move |p| (*rule, p))
            })
        };
        for (rule, pattern) in patterns() {
            let twin = match pattern {
                Pattern::Exact(path) => claimed.exact.get(path.as_str()),
                Pattern::Prefix(path) => claimed.prefix.get(path.as_str()),
                Pattern::Service(name) => claimed.service.get(name.as_str()),
            };
            if let Some(twin) = twin {
                return Err(overlap(method, pattern, twin, rule));
            }
            claimed.insert(pattern, rule);
        }
        for (rule, pattern) in patterns() {
            if let Some(other) = claimed.other(pattern, rule) {
                return Err(overlap(method, pattern, other, rule));
            }
        }
    }
    Ok(())
}
