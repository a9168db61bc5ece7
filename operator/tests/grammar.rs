//! What is written into other systems' grammars means what was meant, and what
//! is called disjoint is. Many cases, each of them cheap.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test ends by panicking")]

use std::sync::LazyLock;

use peristyle::{
    auth::{
        matches::{Requests, disjoint},
        pattern::{Pattern, escape},
        rule::Authorizer,
    },
    edge::{
        route::{Host, RoutePath},
        traefik::rule::Rule,
    },
};
use peristyle_crds::v1alpha1::{
    PathMatch,
    auth_policy::{HttpMethod, Relation},
};
use proptest::{prelude::*, sample::select, string::string_regex};
use regex::Regex;
use serde_json::Value;

const CASES: u32 = 100_000;

/// Every path of up to three segments, with and without a slash at the end.
static PATHS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let mut paths = vec![String::new()];
    let mut longest = paths.clone();
    for _ in 0..3 {
        longest = longest
            .iter()
            .flat_map(|path| ["a", "p.A", "1x"].map(|segment| format!("{path}/{segment}")))
            .collect();
        paths.extend(longest.iter().cloned());
    }
    let slashed: Vec<String> = paths.iter().map(|path| format!("{path}/")).collect();
    paths.remove(0);
    paths.extend(slashed);
    paths
});

fn pattern() -> impl Strategy<Value = Pattern> {
    let segment = || select(vec!["a", "p.A", "1x"]);
    let path = || prop::collection::vec(segment(), 0..4).prop_map(|s| format!("/{}", s.join("/")));
    prop_oneof![
        (path(), any::<bool>()).prop_map(|(path, slash)| {
            Pattern::Exact(if slash && path != "/" { format!("{path}/") } else { path })
        }),
        path().prop_map(Pattern::Prefix),
        select(vec!["a", "p.A"]).prop_map(|name| Pattern::Service(name.to_owned())),
    ]
}

/// Membership by the words of the documentation, segment by segment.
fn is_in(pattern: &Pattern, path: &str) -> bool {
    let segments = |path: &str| -> Vec<String> {
        path.trim_end_matches('/').split('/').skip(1).map(ToOwned::to_owned).collect()
    };
    match pattern {
        Pattern::Exact(exact) => exact == path,
        Pattern::Prefix(prefix) => segments(path).starts_with(&segments(prefix)),
        Pattern::Service(name) => {
            let called = segments(path);
            !path.ends_with('/')
                && called.len() == 2
                && called[0] == *name
                && !called[1].starts_with(|c: char| c.is_ascii_digit())
                && !called[1].contains('.')
        }
    }
}

/// The leaves of a Traefik rule, each as matcher and arguments; `None` when the
/// text is no rule.
fn leaves(rule: &str) -> Option<Vec<(String, Vec<String>)>> {
    let mut leaves = Vec::new();
    let rest = expression(rule, &mut leaves)?;
    rest.is_empty().then_some(leaves)
}

fn expression<'a>(text: &'a str, leaves: &mut Vec<(String, Vec<String>)>) -> Option<&'a str> {
    let mut rest = term(text, leaves)?;
    while let Some(more) = rest.strip_prefix(" && ").or_else(|| rest.strip_prefix(" || ")) {
        rest = term(more, leaves)?;
    }
    Some(rest)
}

fn term<'a>(text: &'a str, leaves: &mut Vec<(String, Vec<String>)>) -> Option<&'a str> {
    if let Some(inner) = text.strip_prefix('(') {
        return expression(inner, leaves)?.strip_prefix(')');
    }
    let (name, mut rest) = text.split_once('(')?;
    let plain = name.strip_prefix('!').unwrap_or(name);
    if plain.is_empty() || !plain.chars().all(|c| c.is_ascii_alphabetic()) {
        return None;
    }
    let mut arguments = Vec::new();
    loop {
        let (argument, after) = rest.strip_prefix('`')?.split_once('`')?;
        arguments.push(argument.to_owned());
        let Some(more) = after.strip_prefix(", ") else {
            leaves.push((name.to_owned(), arguments));
            return after.strip_prefix(')');
        };
        rest = more;
    }
}

/// Text with whatever ends a literal somewhere, and enough plain letters to be
/// accepted now and then.
fn hostile() -> impl Strategy<Value = String> {
    const CHARACTERS: &str = "abcabcabcabc///...---__~`'\"\\(){}<>|&!$^*+?,;:%#@= \n\r\t\0\u{7f}\u{e9}\u{2028}\u{ff0f}\u{202e}\u{1f600}";
    let characters: Vec<char> = CHARACTERS.chars().collect();
    prop::collection::vec(select(characters), 0..12).prop_map(|text| text.into_iter().collect())
}

/// A host that routes allow.
fn host() -> impl Strategy<Value = String> {
    const LABEL: &str = "[a-z0-9]([a-z0-9-]{0,6}[a-z0-9])?";
    string_regex(&format!("{LABEL}(\\.{LABEL}){{0,3}}")).unwrap()
}

/// A path that routes allow.
fn path() -> impl Strategy<Value = String> {
    string_regex(r"(/\.?[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,5}){1,3}").unwrap()
}

fn path_match(path: String, is_prefix: bool) -> PathMatch {
    let (prefix, exact) = if is_prefix { (Some(path), None) } else { (None, Some(path)) };
    PathMatch { prefix, exact }
}

/// The rule of a route must ask for exactly this host, this path and gRPC, and
/// for one wish for the connection.
fn check_leaves(host: &Host, path: &RoutePath) -> Result<(), TestCaseError> {
    for (wish, matcher) in
        [(Rule::keeps_connection(), "!HeaderRegexp"), (Rule::asks_for_another_protocol(), "HeaderRegexp")]
    {
        check_leaves_with(host, path, &wish, matcher)?;
    }
    Ok(())
}

fn check_leaves_with(host: &Host, path: &RoutePath, wish: &Rule, matcher: &str) -> Result<(), TestCaseError> {
    let rule = Rule::host(host).and(wish).and(&Rule::path(path)).and(&Rule::grpc()).to_string();
    let upgrade = ["Upgrade", "(?i)[^websockt]"].map(ToOwned::to_owned).into();
    let mut expected = vec![leaf("Host", host.as_str()), (matcher.to_owned(), upgrade)];
    expected.extend(match path {
        RoutePath::All => vec![leaf("PathPrefix", "/")],
        RoutePath::Exact(path) => vec![leaf("Path", path)],
        RoutePath::Prefix(path) => vec![leaf("Path", path), leaf("PathPrefix", &format!("{path}/"))],
    });
    let found = leaves(&rule);
    prop_assert!(found.is_some(), "{}", rule);
    let mut found = found.unwrap();
    let last = found.pop().unwrap();
    prop_assert_eq!(last.0, "HeaderRegexp");
    prop_assert_eq!(found, expected);
    Ok(())
}

fn leaf(name: &str, argument: &str) -> (String, Vec<String>) {
    (name.to_owned(), vec![argument.to_owned()])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: CASES, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn two_rules_are_disjoint_exactly_when_no_path_is_in_both(
        one in prop::collection::btree_set(pattern(), 1..3),
        two in prop::collection::btree_set(pattern(), 1..3),
    ) {
        let requests = |patterns| Requests::from([(HttpMethod::Post, patterns)]);
        let rules = [("one", requests(one.clone())), ("two", requests(two.clone()))];
        let is_shared = |path: &&String| {
            one.iter().any(|p| is_in(p, path)) && two.iter().any(|p| is_in(p, path))
        };
        let shared = PATHS.iter().find(is_shared);
        prop_assert_eq!(disjoint(&rules).is_err(), shared.is_some(), "{:?} {:?}: {:?}", one, two, shared);
    }

    #[test]
    fn one_pattern_covers_another_only_when_every_path_of_it_is_covered(one in pattern(), two in pattern()) {
        let contained = PATHS.iter().all(|path| !is_in(&two, path) || is_in(&one, path));
        prop_assert!(!one.covers(&two) || contained, "{} {}", one, two);
        for path in PATHS.iter().take(40) {
            prop_assert_eq!(one.contains(path), is_in(&one, path), "{} {}", one, path);
        }
    }

    #[test]
    fn a_rule_of_traefik_has_exactly_the_leaves_that_were_meant(host in host(), path in path(), is_prefix: bool) {
        let host = Host::parse(&host).unwrap();
        let path = RoutePath::parse(&path_match(path, is_prefix)).unwrap();
        check_leaves(&host, &path)?;
    }

    #[test]
    fn a_hostile_host_is_refused_or_stands_for_itself(text in hostile()) {
        if let Ok(host) = Host::parse(&text) {
            prop_assert_eq!(host.as_str(), text);
            check_leaves(&host, &RoutePath::All)?;
        }
    }

    #[test]
    fn a_hostile_path_is_refused_or_stands_for_itself(text in hostile(), is_prefix: bool) {
        let host = Host::parse("a.test").unwrap();
        if let Ok(path) = RoutePath::parse(&path_match(format!("/{text}"), is_prefix)) {
            check_leaves(&host, &path)?;
        }
    }

    #[test]
    fn in_an_escaped_literal_every_character_stands_for_itself(text in hostile()) {
        let mut read = String::new();
        let escaped = escape(&text);
        let mut characters = escaped.chars();
        while let Some(c) = characters.next() {
            // A letter or digit after a backslash would mean a class or an anchor.
            match c {
                '\\' => read.extend(characters.next().filter(|c| !c.is_ascii_alphanumeric())),
                c => {
                    prop_assert!(c.is_ascii_alphanumeric() || matches!(c, '/' | '_'), "{:?}", escaped);
                    read.push(c);
                }
            }
        }
        prop_assert_eq!(read, text);
    }

    #[test]
    fn a_question_to_keto_holds_exactly_the_strings_of_the_spec_and_one_placeholder(
        namespace in hostile(), object in hostile(), relation in hostile(),
    ) {
        let asked = Relation { namespace: namespace.clone(), object: object.clone(), relation: relation.clone() };
        let config = serde_json::to_value(Authorizer::relation("http://keto", &asked)).unwrap();
        let payload = config["config"]["payload"].as_str().unwrap();
        let placeholder = "{{ print .Subject | toJson }}";
        prop_assert_eq!(payload.matches("{{").count(), 1);
        let read: Value = serde_json::from_str(&payload.replace(placeholder, "\"alice\"")).unwrap();
        let expected = serde_json::json!({"namespace": namespace, "object": object, "relation": relation, "subject_id": "alice"});
        prop_assert_eq!(read, expected);
    }
}

proptest! {
    // Each case compiles an expression.
    #![proptest_config(ProptestConfig { cases: 1_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_escaped_literal_matches_itself_and_nothing_else(text in hostile(), other in hostile()) {
        // Oathkeeper cuts patterns at these two before any expression is read.
        let text = text.replace(['<', '>'], "");
        // What may not be escaped in this grammar is refused, never widened.
        if let Ok(regex) = Regex::new(&format!("^(?s:{})$", escape(&text))) {
            prop_assert!(regex.is_match(&text), "{:?}", text);
            prop_assert_eq!(regex.is_match(&other), text == other, "{:?} {:?}", text, other);
        }
    }
}
