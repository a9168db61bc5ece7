//! The token that Oathkeeper signs for the workload behind a protected rule.
//! The rules that mint it and the variables by which workloads verify it are
//! made of the same words here.

use std::{collections::BTreeSet, time::Duration};

use kube::ResourceExt;
use peristyle_crds::v1alpha1::{AuthClass, Service, auth_class::IdToken, service::AuthMode};

use super::world::World;

/// Unless the class says otherwise.
const TTL: Duration = Duration::from_mins(5);

/// `aud` of the tokens for a Service. Neither part holds a dot, so that no two
/// Services share one: a token that one of them got opens no other.
#[must_use]
pub fn audience(namespace: &str, service: &str) -> String {
    format!("{service}.{namespace}")
}

/// What a rule mints.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Minted {
    /// `iss`.
    pub issuer: String,
    /// `aud`.
    pub audiences: BTreeSet<String>,
    /// How long it is valid.
    pub ttl: Duration,
}

impl Minted {
    /// The token of a class for `services` of `namespace`.
    #[must_use]
    pub fn new(token: &IdToken, namespace: &str, services: &BTreeSet<String>) -> Self {
        Self {
            issuer: token.issuer.clone(),
            audiences: services.iter().map(|service| audience(namespace, service)).collect(),
            // The schema admits nothing else.
            ttl: token.ttl.as_ref().and_then(|ttl| ttl.get().ok()).unwrap_or(TTL),
        }
    }
}

/// How a workload verifies the tokens of its calls.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verification {
    /// The only `iss`.
    pub issuer: String,
    /// The `aud` that must be among the token's.
    pub audience: String,
    /// Where the public keys are.
    pub jwks_url: String,
}

/// The tokens of the gate for one Service.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Tokens {
    /// What the workload must verify: nothing while no route of the Service
    /// needs a policy, or its class mints no tokens.
    pub verification: Option<Verification>,
    /// Routes whose tokens are of another class, which it does not verify.
    pub unverified: Vec<Unverified>,
}

/// A route whose tokens the workload does not verify.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Unverified {
    /// Its place in `spec.expose`.
    pub index: usize,
    /// Name of the AuthClass that mints them.
    pub class: String,
    /// Name of the AuthClass of the first route.
    pub first: String,
}

/// The tokens that `service` gets.
///
/// The class that it verifies is that of the first route with a policy, else the
/// default one: whether a policy exists at the moment decides about routes, not
/// about pods.
#[must_use]
pub fn tokens(world: &World<'_>, service: &Service) -> Tokens {
    let exposes = service.spec.expose.iter().enumerate();
    let protected: Vec<_> = exposes.filter(|(_, expose)| expose.auth_mode() == AuthMode::Required).collect();
    let policies =
        protected.iter().filter_map(|(index, expose)| Some((*index, world.targeting(service, expose)?)));
    let classes: Vec<_> = policies.map(|(index, policy)| (index, world.class(policy).ok())).collect();
    let first = match classes.first() {
        _ if protected.is_empty() => None,
        Some((_, class)) => *class,
        None => world.class_named(None).ok(),
    };
    let Some(first) = first else {
        return Tokens::default();
    };
    let of_others = classes
        .into_iter()
        .filter_map(|(index, class)| Some((index, class?)))
        .filter(|(_, class)| class.spec.id_token.is_some() && class.name_any() != first.name_any());
    Tokens {
        verification: first.spec.id_token.as_ref().map(|token| Verification {
            issuer: token.issuer.clone(),
            audience: audience(&service.namespace().unwrap_or_default(), &service.name_any()),
            jwks_url: jwks_url(first),
        }),
        unverified: of_others
            .map(|(index, class)| Unverified { index, class: class.name_any(), first: first.name_any() })
            .collect(),
    }
}

/// Where Oathkeeper publishes the public keys of `class`.
fn jwks_url(class: &AuthClass) -> String {
    let oathkeeper = &class.spec.oathkeeper;
    format!(
        "http://{}.{}.svc.cluster.local:4456/.well-known/jwks.json",
        oathkeeper.service, oathkeeper.namespace
    )
}
