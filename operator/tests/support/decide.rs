//! Oathkeeper's matching, done over: the URL pattern is cut at `<>` as its
//! compiler does, and the one lookahead that rules use is evaluated by hand,
//! because the crate `regex` has none.

use peristyle::auth::rule::Rule;
use regex::Regex;

/// The rules that match the request. More than one is an error 500, none is a 404.
pub fn matching<'a>(rules: &'a [Rule], method: &str, url: &str) -> Vec<&'a Rule> {
    rules
        .iter()
        .filter(|rule| rule.methods().any(|m| m.eq_ignore_ascii_case(method)) && is_match(rule.url(), url))
        .collect()
}

fn is_match(pattern: &str, url: &str) -> bool {
    let (literals, groups) = cut(pattern);
    let (last, first) = groups.split_last().expect("every pattern ends with a group");
    let mut head = String::from("^");
    for (literal, group) in literals.iter().zip(first) {
        head = format!("{head}{}({group})", regex::escape(literal));
    }
    head.push_str(&regex::escape(literals[first.len()]));
    if let Some(rest) = last.strip_prefix("(?!") {
        let refused = rest.strip_suffix("$).*").expect("a complement ends so");
        let found =
            Regex::new(&format!("{head}(?<path>.*)$")).unwrap().captures(url).map(|c| c["path"].to_owned());
        return found.is_some_and(|path| !Regex::new(&format!("^{refused}$")).unwrap().is_match(&path));
    }
    Regex::new(&format!("{head}({last})$")).unwrap().is_match(url)
}

/// Literals before each group, and the groups.
fn cut(pattern: &str) -> (Vec<&str>, Vec<&str>) {
    let (mut literals, mut groups, mut rest) = (Vec::new(), Vec::new(), pattern);
    while let Some((literal, after)) = rest.split_once('<') {
        let (group, after) = after.split_once('>').expect("every < has its >");
        literals.push(literal);
        groups.push(group);
        rest = after;
    }
    assert!(rest.is_empty(), "text after the last group: {pattern}");
    (literals, groups)
}
