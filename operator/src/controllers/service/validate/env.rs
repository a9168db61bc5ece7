//! Environment variables of the workload, and their collisions.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    ConfigMapKeySelector, EnvVar, EnvVarSource, ObjectFieldSelector, ResourceFieldSelector, SecretKeySelector,
};
use kube::ResourceExt;
use peristyle_crds::{
    condition::{Reason, types},
    v1alpha1::{
        Service,
        service::{self, Dependency, Port},
    },
};

use super::{BoundSecrets, Invalid, Observed, access};
use crate::{auth::id_token::Verification, conditions::Finding};

/// The user may say it differently; of all others the operator has the last word.
const OVERRIDABLE: &str = "OTEL_SERVICE_NAME";

/// By these a workload verifies the gate's tokens. Who sets one of them says all of it:
/// half of another's check would refuse every call.
const VERIFICATION: [&str; 3] = ["ID_TOKEN_JWKS_URL", "ID_TOKEN_ISSUER", "ID_TOKEN_AUDIENCE"];

/// What the workload is told to verify the gate's tokens by.
pub(super) fn verification<'a>(service: &Service, observed: &'a Observed) -> Option<&'a Verification> {
    let is_said = service.spec.env.iter().any(|variable| VERIFICATION.contains(&variable.name.as_str()));
    observed.tokens.verification.as_ref().filter(|_| !is_said)
}

/// Variables in order of definition, ours first, so that `$(NAME)` in the
/// user's can refer to them.
pub(super) fn build(
    service: &Service,
    observed: &Observed,
    ports: &[Port],
    secrets: &BTreeMap<String, BoundSecrets>,
    holds: &mut Vec<Finding>,
) -> Result<Vec<EnvVar>, Invalid> {
    let spec = &service.spec;
    let mut names = Names::default();
    let mut env = Vec::new();
    names.add("PORT", "spec.ports", "the first port")?;
    env.extend(ports.first().map(|port| value("PORT", port.port.to_string())));
    names.add(OVERRIDABLE, "metadata.name", "the name of the Service")?;
    if !spec.env.iter().any(|variable| variable.name == OVERRIDABLE) {
        env.push(value(OVERRIDABLE, service.name_any()));
    }
    if let Some(Verification { issuer, audience, jwks_url }) = verification(service, observed) {
        for (name, text) in VERIFICATION.into_iter().zip([jwks_url, issuer, audience]) {
            names.add(name, "spec.expose", "the tokens of the gate")?;
            env.push(value(name, text.clone()));
        }
    }
    for (index, binding) in spec.databases.iter().enumerate() {
        names.add(
            binding.env(),
            &format!("spec.databases[{index}].inject.env"),
            &format!("database {}", binding.name),
        )?;
        env.extend(secrets.get(&binding.name).map(|secret| uri(binding.env(), &secret.workload)));
    }
    for (index, dependency) in spec.depends_on.iter().enumerate() {
        let name = variable(dependency);
        names.add(
            &name,
            &format!("spec.dependsOn[{index}].name"),
            &format!("dependency {}", dependency.name),
        )?;
        match address(service, dependency, observed) {
            Ok(address) => env.push(value(&name, address)),
            Err(missing) => holds.push(missing),
        }
    }
    for (index, variable) in spec.env.iter().enumerate() {
        if variable.name != OVERRIDABLE {
            names.add(&variable.name, &format!("spec.env[{index}].name"), "the variable of that name")?;
        }
        env.push(convert(variable));
    }
    Ok(env)
}

/// A variable that holds the connection URI in `secret`.
pub(super) fn uri(name: &str, secret: &str) -> EnvVar {
    EnvVar {
        name: name.to_owned(),
        value: None,
        value_from: Some(EnvVarSource {
            secret_key_ref: Some(SecretKeySelector {
                name: secret.to_owned(),
                key: "uri".to_owned(),
                optional: None,
            }),
            ..EnvVarSource::default()
        }),
    }
}

/// Each name with what it is for.
#[derive(Default)]
struct Names(BTreeMap<String, String>);

impl Names {
    fn add(&mut self, name: &str, field: &str, purpose: &str) -> Result<(), Invalid> {
        match self.0.insert(name.to_owned(), purpose.to_owned()) {
            None => Ok(()),
            Some(earlier) => Err(Invalid {
                field: field.to_owned(),
                value: name.to_owned(),
                problem: format!("is already set for {earlier}"),
                remedy: "choose another name".to_owned(),
            }),
        }
    }
}

/// `payments` sets `PAYMENTS_URL`.
fn variable(dependency: &Dependency) -> String {
    format!("{}_URL", dependency.name.to_uppercase().replace('-', "_"))
}

fn address(service: &Service, dependency: &Dependency, observed: &Observed) -> Result<String, Finding> {
    if let Some(url) = &dependency.url {
        return Ok(url.clone());
    }
    let own = service.namespace().unwrap_or_default();
    let name = dependency.service.clone().unwrap_or_default();
    let namespace = dependency.namespace.clone().unwrap_or(own);
    match observed.dependencies.get(&(namespace.clone(), name.clone())) {
        Some(target) => Ok(format!("http://{name}.{namespace}.svc.cluster.local:{}", target.service_port)),
        None => Err(Finding::waiting(
            types::WORKLOAD_AVAILABLE,
            Reason::DependencyMissing,
            access::absent(service, dependency),
        )),
    }
}

fn value(name: &str, value: String) -> EnvVar {
    EnvVar { name: name.to_owned(), value: Some(value), value_from: None }
}

fn convert(variable: &service::EnvVar) -> EnvVar {
    EnvVar {
        name: variable.name.clone(),
        value: variable.value.clone(),
        value_from: variable.value_from.as_ref().map(source),
    }
}

fn source(source: &service::EnvSource) -> EnvVarSource {
    EnvVarSource {
        secret_key_ref: source.secret_key_ref.as_ref().map(|key| SecretKeySelector {
            name: key.name.clone(),
            key: key.key.clone(),
            optional: key.optional,
        }),
        config_map_key_ref: source.config_map_key_ref.as_ref().map(|key| ConfigMapKeySelector {
            name: key.name.clone(),
            key: key.key.clone(),
            optional: key.optional,
        }),
        field_ref: source
            .field_ref
            .as_ref()
            .map(|field| ObjectFieldSelector { api_version: None, field_path: field.field_path.clone() }),
        resource_field_ref: source.resource_field_ref.as_ref().map(|field| ResourceFieldSelector {
            container_name: None,
            divisor: None,
            resource: field.resource.clone(),
        }),
        ..EnvVarSource::default()
    }
}
