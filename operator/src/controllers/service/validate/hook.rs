//! Hooks: commands that run before pods of a new image start.

use std::{collections::BTreeMap, time::Duration};

use k8s_openapi::api::core::v1::EnvVar;
use peristyle_crds::v1alpha1::{Service, service::Hook};

use super::{BoundSecrets, Invalid, env, probe::whole_seconds};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);

/// A hook that can run.
#[derive(Clone, Debug)]
pub struct ValidHook {
    /// As it stands in the spec.
    pub hook: Hook,
    /// Variables of the workload, with the owner's credentials where it asks for them.
    pub env: Vec<EnvVar>,
    /// How long it may take, in seconds.
    pub timeout: i64,
}

/// The hooks of the spec, in order.
pub fn specs(service: &Service) -> impl Iterator<Item = &Hook> {
    service.spec.hooks.iter().flat_map(|hooks| &hooks.pre_rollout)
}

pub(super) fn hooks(
    service: &Service,
    env: &[EnvVar],
    secrets: &BTreeMap<String, BoundSecrets>,
) -> Result<Vec<ValidHook>, Invalid> {
    let mut hooks: Vec<ValidHook> = Vec::new();
    for (index, hook) in specs(service).enumerate() {
        let field = format!("spec.hooks.preRollout[{index}]");
        if hooks.iter().any(|earlier| earlier.hook.name == hook.name) {
            return Err(Invalid {
                field: format!("{field}.name"),
                value: hook.name.clone(),
                problem: "is also the name of an earlier hook".to_owned(),
                remedy: "choose another name".to_owned(),
            });
        }
        let timeout = whole_seconds(hook.timeout.as_ref(), DEFAULT_TIMEOUT, &format!("{field}.timeout"))?;
        hooks.push(ValidHook {
            env: environment(service, hook, &field, env, secrets)?,
            hook: hook.clone(),
            timeout: i64::from(timeout),
        });
    }
    Ok(hooks)
}

fn environment(
    service: &Service,
    hook: &Hook,
    field: &str,
    env: &[EnvVar],
    secrets: &BTreeMap<String, BoundSecrets>,
) -> Result<Vec<EnvVar>, Invalid> {
    let mut env = env.to_vec();
    let Some(name) = &hook.database else {
        return Ok(env);
    };
    let Some(binding) = service.spec.databases.iter().find(|binding| binding.name == *name) else {
        return Err(Invalid {
            field: format!("{field}.database"),
            value: name.clone(),
            problem: "is not the name of one of spec.databases".to_owned(),
            remedy: "name one of them or add it".to_owned(),
        });
    };
    if let Some(owner) = secrets.get(name).and_then(|secrets| secrets.owner.as_ref()) {
        for variable in env.iter_mut().filter(|variable| variable.name == binding.env()) {
            *variable = env::uri(binding.env(), owner);
        }
    }
    Ok(env)
}
