//! One policy, compiled.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use kube::ResourceExt;
use peristyle_crds::{
    condition::Reason,
    v1alpha1::{
        AuthClass, AuthPolicy,
        auth_policy::{AccessRule, Algorithm, CompiledRule, HttpMethod, Jwt},
    },
};

use super::{
    id_token::Minted,
    key::PolicyKey,
    matches::{self, METHODS, Requests},
    pattern::Pattern,
    rejection::Rejection,
    relations::Namespaces,
    rule::{self, Authenticator, Authorizer, Decision, JwtConfig, Rule, TokenFrom, UrlPattern},
    world::{Territory, World},
};

/// Name of the deny rule in ids and in the status; no rule of a policy can be
/// called so.
pub const DENY: &str = "_deny";
/// Bound on the rules of one policy, so that none can fill the one file of its
/// class.
const MAX_BYTES: usize = 256 * 1024;

/// The rules of one policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Compiled {
    /// Hash of the rules. Tuples and model are not part of it: they change
    /// while routes stay up.
    pub hash: String,
    /// For Oathkeeper; pairwise disjoint. Empty while nothing is exposed.
    pub rules: Vec<Rule>,
    /// Ids by name of the policy's rule.
    pub ids: Vec<CompiledRule>,
    /// Whether a rule asks Keto.
    pub asks_keto: bool,
    /// What the policy governs.
    pub territory: Territory,
    /// Which requests each rule allows.
    pub allowed: Arc<[Allowed]>,
}

/// The requests that one rule allows.
#[derive(Clone, Debug, PartialEq)]
pub struct Allowed {
    /// The requests.
    pub requests: Requests,
    /// Who may send them.
    pub decision: Decision,
}

/// Compiles the rules of `policy` for the hosts that belong to its targets.
///
/// # Errors
/// [`Rejection`] with field, value and remedy.
pub fn compile(
    world: &World<'_>,
    class: &AuthClass,
    namespaces: &Namespaces,
    policy: &AuthPolicy,
) -> Result<Compiled, Rejection> {
    let territory = world.territory(policy);
    world.admit(policy, &territory)?;
    namespaces.model(policy)?;
    namespaces.tuples(policy)?;
    let mut requests: Vec<(&str, Requests)> = Vec::new();
    let mut decisions = Vec::new();
    for rule in &policy.spec.rules {
        requests.push((&rule.name, matches::requests(rule)?));
        decisions.push(decision(class, namespaces, policy, rule)?);
    }
    matches::disjoint(&requests)?;

    let prefix = PolicyKey::of(policy);
    let name = |rule: &str| format!("{}.{}.{rule}", prefix.namespace, prefix.name);
    let mut named: Vec<(String, Rule)> = Vec::new();
    let token = class.spec.id_token.as_ref();
    for host in &territory.hosts {
        let services = territory.behind.get(host).cloned().unwrap_or_default();
        let minted = token.map(|token| Minted::new(token, &prefix.namespace, &services));
        for ((rule, requests), decision) in requests.iter().zip(&decisions) {
            for (methods, patterns) in matches::grouped(requests) {
                let url = UrlPattern::within(host, &patterns).map_err(|error| {
                    Rejection::invalid(format!("spec.rules[{rule}].match: {error}; split the rule"))
                })?;
                let rule_of = Rule::new(&name(rule), methods, &url, decision.clone(), minted.as_ref());
                named.push(((*rule).to_owned(), rule_of));
            }
        }
        for (methods, patterns) in matches::grouped(&union(&requests)) {
            let url = UrlPattern::outside(host, &patterns);
            named.push((DENY.to_owned(), Rule::new(&name(DENY), methods, &url, Decision::deny(), None)));
        }
    }
    let bytes: usize = named.iter().map(|(_, rule)| rule::text(rule).len()).sum();
    if bytes > MAX_BYTES {
        return Err(Rejection::invalid(format!(
            "spec.rules: compiled for {} hosts they take {bytes} bytes, more than {MAX_BYTES}; match whole services or prefixes, or split the policy by host",
            territory.hosts.len()
        )));
    }
    named.sort_by(|(_, one), (_, two)| one.id.cmp(&two.id));
    let mut ids: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, rule) in &named {
        ids.entry(name).or_default().push(rule.id.clone());
    }
    let allowed = requests.into_iter().zip(decisions);
    let allowed = allowed.map(|((_, requests), decision)| Allowed { requests, decision });
    Ok(Compiled {
        allowed: allowed.collect(),
        hash: rule::hash(named.iter().map(|(_, rule)| rule)),
        ids: ids.into_iter().map(|(name, ids)| CompiledRule { name: name.to_owned(), ids }).collect(),
        asks_keto: policy.spec.rules.iter().any(|rule| rule.authorization.is_some()),
        rules: named.into_iter().map(|(_, rule)| rule).collect(),
        territory,
    })
}

/// What is allowed by any rule, for every method: its complement is denied.
fn union(rules: &[(&str, Requests)]) -> Requests {
    let mut union: BTreeMap<HttpMethod, BTreeSet<Pattern>> =
        METHODS.into_iter().map(|method| (method, BTreeSet::new())).collect();
    for (_, requests) in rules {
        for (method, patterns) in requests {
            union.entry(*method).or_default().extend(patterns.iter().cloned());
        }
    }
    union
}

fn decision(
    class: &AuthClass,
    namespaces: &Namespaces,
    policy: &AuthPolicy,
    rule: &AccessRule,
) -> Result<Decision, Rejection> {
    let field = format!("spec.rules[{}]", rule.name);
    match (&rule.public, rule.authentication.as_slice()) {
        (Some(_), []) if rule.authorization.is_none() => return Ok(Decision::public()),
        (None, [name]) => {
            let Some(found) = policy.spec.authentication.iter().find(|a| a.name == *name) else {
                return Err(Rejection::invalid(format!(
                    "{field}.authentication: {name:?} is not in spec.authentication; add it there or name another"
                )));
            };
            let authorizer = match &rule.authorization {
                None => Authorizer::Allow,
                Some(authorization) => {
                    namespaces.question(policy, &rule.name, &authorization.relation)?;
                    Authorizer::relation(&class.spec.keto.read_url, &authorization.relation)
                }
            };
            return Ok(Decision { authenticator: jwt(class, &found.name, &found.jwt)?, authorizer });
        }
        _ => {}
    }
    // Oathkeeper lets the first handler that finds a JWT decide, and one handler
    // with the keys of two issuers would let each sign for the other.
    Err(Rejection::invalid(format!(
        "{field}: set public, or authentication with exactly one entry; Oathkeeper decides a token by the first entry alone"
    )))
}

fn jwt(class: &AuthClass, name: &str, jwt: &Jwt) -> Result<Authenticator, Rejection> {
    let field = format!("spec.authentication[{name}].jwt");
    let Some(issuer) = class.spec.issuers.iter().find(|i| i.issuer == jwt.issuer) else {
        return Err(Rejection::stalled(
            Reason::IssuerNotAllowed,
            format!(
                "{field}.issuer: AuthClass {} does not trust {:?}; name one of its spec.issuers or have it added there",
                class.name_any(),
                jwt.issuer
            ),
        ));
    };
    if jwt.audiences.is_empty() || jwt.audiences.iter().any(String::is_empty) {
        return Err(Rejection::invalid(format!(
            "{field}.audiences: name at least one, or a token for any other service would do"
        )));
    }
    Ok(Authenticator::Jwt(JwtConfig {
        jwks_urls: vec![issuer.jwks_url.clone()],
        trusted_issuers: vec![issuer.issuer.clone()],
        target_audience: jwt.audiences.clone(),
        allowed_algorithms: if jwt.algorithms.is_empty() {
            vec![Algorithm::default()]
        } else {
            jwt.algorithms.clone()
        },
        token_from: TokenFrom { header: "Authorization" },
    }))
}
