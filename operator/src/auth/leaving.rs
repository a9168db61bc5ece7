//! Rules that nobody asks for any more, while a route still asks for them: the
//! route goes first, and its calls are not refused by mistake until then.

use std::collections::{BTreeMap, BTreeSet};

use kube::ResourceExt;
use peristyle_crds::names::POLICY_HASH_ANNOTATION;
use serde::Deserialize;

use super::rule;
use crate::edge::traefik::{objects::IngressRoute, rule::Rule as Match};

/// All rules of a policy that has none any more.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Leaving {
    /// Hash of the rules, which names them at the routes.
    pub hash: String,
    /// By id, as they stood in the file.
    pub rules: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Listed {
    id: String,
}

/// The rules in `text`, the file as it is, of policies of which no id is
/// `wanted`, by which one of `routes` lets calls in. Not those of a host in
/// `governed`: two rules for one request would be one too many.
///
/// A route that is being deleted needs no rules: it was told to go.
#[must_use]
pub fn leaving<'a>(
    text: &str,
    wanted: &BTreeSet<String>,
    governed: &BTreeSet<&str>,
    routes: impl IntoIterator<Item = &'a IngressRoute>,
) -> Vec<Leaving> {
    let present: BTreeSet<&str> = wanted.iter().filter_map(|id| policy(id)).collect();
    let mut gone: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
    for line in text.lines().map(|line| line.trim_end_matches(',')) {
        // What cannot be read was not ours.
        let Ok(Listed { id }) = serde_json::from_str(line) else { continue };
        if let Some(policy) = policy(&id)
            && !present.contains(policy)
        {
            gone.entry(policy.to_owned()).or_default().insert(id, line.to_owned());
        }
    }
    if gone.is_empty() {
        return Vec::new();
    }
    let mut hosts: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for route in routes.into_iter().filter(|route| route.metadata.deletion_timestamp.is_none()) {
        if let Some(hash) = route.annotations().get(POLICY_HASH_ANNOTATION) {
            let served = route.spec.routes.iter().filter_map(|router| Match::host_in(&router.rule));
            hosts.entry(hash).or_default().extend(served);
        }
    }
    let gone = gone
        .into_values()
        .map(|rules| Leaving { hash: rule::hash_of(rules.values().map(String::as_str)), rules });
    let is_asked =
        |leaving: &Leaving| hosts.get(leaving.hash.as_str()).is_some_and(|hosts| hosts.is_disjoint(governed));
    gone.filter(is_asked).collect()
}

/// Namespace and name of the policy in the id of a rule.
fn policy(id: &str) -> Option<&str> {
    let (namespace, rest) = id.split_once('.')?;
    let (name, _) = rest.split_once('.')?;
    id.get(..namespace.len() + 1 + name.len())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const LINES: [&str; 2] = [r#"{"id":"shop.orders.deny.1"}"#, r#"{"id":"shop.orders.read.2"}"#];

    fn route(hash: &str) -> IngressRoute {
        serde_json::from_value(json!({
            "metadata": {"name": "r", "annotations": {POLICY_HASH_ANNOTATION: hash}},
            "spec": {"routes": [{"match": "Host(`a.test`) && PathPrefix(`/`)"}]}
        }))
        .unwrap()
    }

    fn kept(wanted: &[&str], governed: &[&str], route: &IngressRoute) -> usize {
        let text = format!("[\n{},\n{},\n{}\n]\n", r#"{"id":"peristyle.0"}"#, LINES[0], LINES[1]);
        let ids = wanted.iter().map(|id| (*id).to_owned()).collect();
        let governed = governed.iter().copied().collect();
        leaving(&text, &ids, &governed, [route]).iter().map(|leaving| leaving.rules.len()).sum()
    }

    #[test]
    fn rules_without_a_policy_stay_as_long_as_a_route_asks_for_exactly_them() {
        let asks = route(&rule::hash_of(LINES));
        assert_eq!(kept(&["peristyle.0"], &[], &asks), 2);
        assert_eq!(kept(&["peristyle.0"], &["b.test"], &asks), 2);
        assert_eq!(kept(&["peristyle.0"], &[], &route("other")), 0, "nobody asks");
        assert_eq!(kept(&["peristyle.0", "shop.orders.read.3"], &[], &asks), 0, "the policy has others");
        assert_eq!(kept(&["peristyle.0", "shop.orders-2.read.3"], &[], &asks), 2);
        assert_eq!(kept(&["peristyle.0"], &["a.test"], &asks), 0, "the host has another policy");
        let mut leaves = asks;
        leaves.metadata.deletion_timestamp =
            Some(serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap());
        assert_eq!(kept(&["peristyle.0"], &[], &leaves), 0, "whoever holds it up");
    }
}
