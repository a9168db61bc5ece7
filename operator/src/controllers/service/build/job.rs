//! A hook as a Job.

use k8s_openapi::{
    api::{
        batch::v1::{Job, JobSpec},
        core::v1::{PodSpec, PodTemplateSpec},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use peristyle_crds::{
    names::HOOK_LABEL,
    v1alpha1::{Service, service::Hook},
};

use super::pod;
use crate::{controllers::service::validate::hook::ValidHook, metadata::Owner, names};

const RETRIES: i32 = 2;

/// Name of the Job of a hook; another image or another hook gives another name.
#[must_use]
pub fn job_name(owner: &Owner, image: &str, hook: &Hook) -> String {
    let Hook { name, command, database, timeout } = hook;
    let timeout = timeout.as_ref().map(|timeout| format!("{timeout:?}"));
    let parts =
        [image, name, database.as_deref().unwrap_or_default(), timeout.as_deref().unwrap_or_default()];
    let hash = names::hash(parts.into_iter().chain(command.iter().map(String::as_str)));
    names::with_ending(&format!("{}-{name}", owner.name), &hash)
}

/// Runs the hook once.
#[must_use]
pub fn job(owner: &Owner, service: &Service, hook: &ValidHook) -> Job {
    let name = job_name(owner, &service.spec.image, &hook.hook);
    let mut container = pod::container(owner, service, hook.env.clone());
    container.command = Some(hook.hook.command.clone());
    // What a failed hook said last then stands in the pod's status: nobody needs to read logs.
    container.termination_message_policy = Some("FallbackToLogsOnError".to_owned());
    let mut metadata = owner.child(&*name);
    let label = (HOOK_LABEL.to_owned(), hook.hook.name.clone());
    metadata.labels.get_or_insert_default().extend([label.clone()]);
    let mut labels = owner.labels();
    // The Deployment and the core Service must not take this pod for one of theirs.
    labels.insert("app.kubernetes.io/instance".to_owned(), name);
    labels.extend([label]);
    Job {
        metadata,
        spec: Some(JobSpec {
            backoff_limit: Some(RETRIES),
            active_deadline_seconds: Some(hook.timeout),
            template: PodTemplateSpec {
                metadata: Some(ObjectMeta { labels: Some(labels), ..ObjectMeta::default() }),
                spec: Some(PodSpec {
                    restart_policy: Some("Never".to_owned()),
                    ..pod::pod(owner, container)
                }),
            },
            ..JobSpec::default()
        }),
        status: None,
    }
}
