//! Objects that the API server has and the operator's types cannot read: each
//! says so in its status, and the others go on.

use std::{collections::HashMap, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    api::{GetParams, Request},
    runtime::reflector::ObjectRef,
};
use peristyle_crds::condition::{Condition, Reason, types};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::{Root, status::patch};
use crate::{
    conditions::{self, Finding},
    context::Context,
    retry::bounded,
    watch::{InvalidObject, Watched},
};

/// When a status that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// Reports every such object of `roots` until the process ends.
pub async fn report<K: Root>(ctx: &Context, roots: &Watched<K>)
where
    K::Status: DeserializeOwned,
{
    let mut changes = roots.unreadable();
    let mut reported: HashMap<ObjectRef<K>, (Option<String>, Option<i64>)> = HashMap::new();
    loop {
        let present = changes.borrow_and_update().clone();
        reported.retain(|reference, _| present.contains_key(reference));
        for (reference, object) in &present {
            let mark = (object.metadata.uid.clone(), object.metadata.generation);
            if reported.get(reference) == Some(&mark) {
                continue;
            }
            match write::<K>(ctx, object).await {
                Ok(()) => {
                    reported.insert(reference.clone(), mark);
                }
                Err(error) => tracing::warn!(object = %reference, %error, "failed to report"),
            }
        }
        let is_done = present.keys().all(|reference| reported.contains_key(reference));
        let again =
            async { if is_done { std::future::pending().await } else { tokio::time::sleep(RETRY).await } };
        tokio::select! {
            () = again => {}
            news = changes.changed() => if news.is_err() { return },
        }
    }
}

async fn write<K: Root>(ctx: &Context, object: &InvalidObject) -> kube::Result<()>
where
    K::Status: DeserializeOwned,
{
    let meta = &object.metadata;
    let namespace = meta.namespace.as_deref();
    let name = meta.name.as_deref().unwrap_or_default();
    let request = Request::new(K::url_path(&(), namespace))
        .get(name, &GetParams::default())
        .map_err(kube::Error::BuildRequest)?;
    let live: Value = bounded(ctx.client.request(request)).await?;
    let mut status = live["status"].clone();
    if !status.is_object() {
        status = json!({});
    }
    let previous: Vec<Condition> = serde_json::from_value(status["conditions"].clone()).unwrap_or_default();
    let finding = Finding::stalled(types::READY, Reason::Invalid, explain(&object.error));
    let generation = meta.generation.unwrap_or_default();
    let next =
        conditions::conditions(&previous, std::slice::from_ref(&finding), generation, Timestamp::now());
    if previous == next {
        return Ok(());
    }
    let is_transition = conditions::is_transition(&previous, &next);
    status["observedGeneration"] = json!(generation);
    status["conditions"] = json!(next);
    patch::<K, _>(ctx, namespace, name, meta.uid.as_deref().unwrap_or_default(), &status).await?;
    if is_transition {
        let reference = ObjectReference {
            api_version: Some(K::api_version(&()).into_owned()),
            kind: Some(K::kind(&()).into_owned()),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            ..ObjectReference::default()
        };
        ctx.events.transition(&reference, &finding).await;
    }
    Ok(())
}

/// The field that cannot be read, its value, and what to do.
fn explain(error: &str) -> String {
    format!("{error}; correct it, or install the CustomResourceDefinitions of this operator, which refuse it")
}
