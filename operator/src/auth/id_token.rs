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

/// What `service` must verify: nothing while no route of it needs a policy, or
/// its class mints no tokens.
///
/// The class is that of the first route with a policy, else the default one:
/// whether a policy exists at the moment decides about routes, not about pods.
#[must_use]
pub fn verification(world: &World<'_>, service: &Service) -> Option<Verification> {
    let mut protected = service.spec.expose.iter().filter(|e| e.auth_mode() == AuthMode::Required).peekable();
    protected.peek()?;
    let policy = protected.find_map(|expose| world.targeting(service, expose));
    let class = world.class_named(policy.and_then(|policy| policy.spec.class_name.as_deref())).ok()?;
    let token = class.spec.id_token.as_ref()?;
    Some(Verification {
        issuer: token.issuer.clone(),
        audience: audience(&service.namespace().unwrap_or_default(), &service.name_any()),
        jwks_url: jwks_url(class),
    })
}

/// Where Oathkeeper publishes the public keys of `class`.
fn jwks_url(class: &AuthClass) -> String {
    let oathkeeper = &class.spec.oathkeeper;
    format!(
        "http://{}.{}.svc.cluster.local:4456/.well-known/jwks.json",
        oathkeeper.service, oathkeeper.namespace
    )
}
