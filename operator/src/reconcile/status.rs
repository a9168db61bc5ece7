//! Writing the status of an object.

use std::fmt::Debug;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    ResourceExt,
    api::{Patch, PatchParams, Request},
};
use peristyle_crds::FIELD_MANAGER;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{Outcome, Root, key};
use crate::{conditions, context::Context, retry::bounded};

/// Why a status was not written.
#[derive(Debug, thiserror::Error)]
#[error("failed to write the status: {source}")]
pub struct Error {
    /// What the API server or the way to it says.
    source: Box<kube::Error>,
    /// News of the object came meanwhile and waited.
    pub has_news: bool,
}

#[derive(Serialize, Debug)]
#[serde(rename_all = "camelCase")]
struct StatusPatch<'a, S> {
    api_version: &'a str,
    kind: &'a str,
    metadata: Identity<'a>,
    status: &'a S,
}

/// An object that was deleted and made anew meanwhile must not get this status.
#[derive(Serialize, Debug)]
struct Identity<'a> {
    uid: &'a str,
}

/// Writes the status if it differs, and tells of a transition by an event.
/// Returns whether news of the object came meanwhile and waited.
pub async fn write<K>(object: &K, ctx: &Context, outcome: Outcome<K::Status>) -> Result<bool, Error>
where
    K: Root,
    K::Status: DeserializeOwned,
{
    let stored = object.reported();
    let previous = stored.map(K::conditions).unwrap_or_default();
    let generation = object.meta().generation.unwrap_or_default();
    let mut status = outcome.status;
    let next = conditions::conditions(previous, &outcome.findings, generation, Timestamp::now());
    let is_transition = conditions::is_transition(previous, &next);
    K::set_observed(&mut status, generation, next);
    if stored == Some(&status) {
        return Ok(false);
    }
    let object_uid = object.meta().uid.as_deref().unwrap_or_default();
    let (key, namespace) = (key(object), object.namespace());
    ctx.unseen.begin(&key);
    let written = patch::<K, _>(ctx, namespace.as_deref(), &object.name_any(), object_uid, &status).await;
    let has_news = match written {
        Ok(written) => ctx.unseen.wrote(&key, object.meta(), &written),
        Err(error) => {
            let has_news = ctx.unseen.failed(&key);
            return match error {
                kube::Error::Api(answer) if answer.is_not_found() => Ok(has_news),
                error => Err(Error { source: Box::new(error), has_news }),
            };
        }
    };
    if is_transition {
        let finding = conditions::worst(&outcome.findings)
            .cloned()
            .unwrap_or_else(|| conditions::good(&outcome.findings));
        ctx.events.transition(&object.object_ref(&()), &finding).await;
    }
    Ok(has_news)
}

/// Both scopes in one function, which the typed `Api` does not offer. Returns
/// the object's metadata after the write.
pub async fn patch<K: Root, S: Serialize + Debug>(
    ctx: &Context,
    namespace: Option<&str>,
    name: &str,
    uid: &str,
    status: &S,
) -> kube::Result<ObjectMeta>
where
    K::Status: DeserializeOwned,
{
    let patch = StatusPatch {
        api_version: &K::api_version(&()),
        kind: &K::kind(&()),
        metadata: Identity { uid },
        status,
    };
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let request = Request::new(K::url_path(&(), namespace))
        .patch_subresource("status", name, &params, &Patch::Apply(&patch))
        .map_err(kube::Error::BuildRequest)?;
    let written: Written = bounded(ctx.client.request(request)).await?;
    Ok(written.metadata)
}

/// All that is read of the answer to a write.
#[derive(Deserialize)]
struct Written {
    metadata: ObjectMeta,
}
