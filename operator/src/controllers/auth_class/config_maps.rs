//! ConfigMaps of a class: one key each, written in one piece.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams},
};
use peristyle_crds::FIELD_MANAGER;

use super::{
    Error, build,
    progress::{Progress, Written},
};
use crate::{apply, context::Context, metadata::Owner, retry::bounded};

/// A ConfigMap of a class.
pub struct Slot<'a> {
    /// Name, in the operator's namespace.
    pub name: &'a str,
    /// Its one key.
    pub key: &'a str,
    /// Whether it outlives the class, for the next one of its name.
    pub is_kept: bool,
}

/// What a ConfigMap holds, as far as it had to be looked at.
pub enum Found {
    /// What was written last: the cache shows that version.
    Written(String),
    /// What the API server has.
    Live(Option<Box<ConfigMap>>),
}

impl Found {
    /// The content of the key of `slot`; `None` when there is no such ConfigMap or key.
    #[must_use]
    pub fn content(&self, slot: &Slot<'_>) -> Option<&str> {
        match self {
            Self::Written(content) => Some(content),
            Self::Live(live) => Some(live.as_ref()?.data.as_ref()?.get(slot.key)?.as_str()),
        }
    }
}

/// What is there, without a request when the cache shows the version that was
/// written last.
///
/// # Errors
/// When it is not one of ours: what somebody else wrote there must not decide
/// what is taken out of Keto.
pub async fn read(
    ctx: &Context,
    owner: &Owner,
    progress: &Progress,
    slot: &Slot<'_>,
) -> Result<Found, Error> {
    if let Some(content) = known(ctx, owner, progress, slot) {
        return Ok(Found::Written(content.to_owned()));
    }
    let live = get(ctx, owner, slot).await?;
    match &live {
        Some(live) if slot.is_kept => guard_kept(owner, live)?,
        Some(live) => apply::guard(live, Some(&owner.reference))?,
        None => {}
    }
    Ok(Found::Live(live.map(Box::new)))
}

/// Makes the key hold `wanted`.
pub async fn write(
    ctx: &Context,
    owner: &Owner,
    progress: &mut Progress,
    slot: &Slot<'_>,
    wanted: &str,
) -> Result<(), Error> {
    let found = read(ctx, owner, progress, slot).await?;
    replace(ctx, owner, progress, slot, found, wanted).await
}

/// The same where it was just `found` what is there.
pub async fn replace(
    ctx: &Context,
    owner: &Owner,
    progress: &mut Progress,
    slot: &Slot<'_>,
    found: Found,
    wanted: &str,
) -> Result<(), Error> {
    let live = match found {
        Found::Written(content) if content == wanted => return Ok(()),
        Found::Written(_) => get(ctx, owner, slot).await?,
        Found::Live(live) => live.map(|live| *live),
    };
    let desired = build::config_map(owner, slot.name, slot.key, wanted);
    let applied = if slot.is_kept {
        Some(keep(&ctx.client, owner, live.as_ref(), desired).await?)
    } else {
        ctx.applier.apply(live.as_ref(), &desired).await?.or(live)
    };
    progress.written.insert(
        slot.name.to_owned(),
        Written {
            content: wanted.to_owned(),
            version: applied.and_then(|applied| applied.resource_version()),
        },
    );
    Ok(())
}

/// Makes the key hold again what was written there last, if anything was. Costs
/// nothing when nobody has changed it.
pub async fn restore(
    ctx: &Context,
    owner: &Owner,
    progress: &mut Progress,
    slot: &Slot<'_>,
) -> Result<(), Error> {
    if let Some(content) = progress.written.get(slot.name).map(|written| written.content.clone()) {
        write(ctx, owner, progress, slot, &content).await?;
    }
    Ok(())
}

/// Applies `desired` without an owner, so that it is not collected with the
/// class. Its label says whose it is.
async fn keep(
    client: &Client,
    owner: &Owner,
    live: Option<&ConfigMap>,
    mut desired: ConfigMap,
) -> Result<ConfigMap, apply::Error> {
    if let Some(live) = live {
        guard_kept(owner, live)?;
        if live.data == desired.data {
            return Ok(live.clone());
        }
    }
    let name = desired.name_any();
    desired.metadata.owner_references = None;
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), &owner.namespace);
    let params = PatchParams::apply(FIELD_MANAGER).force();
    bounded(api.patch(&name, &params, &Patch::Apply(&desired)))
        .await
        .map_err(|error| apply::Error::request::<ConfigMap>("apply", &name, error))
}

/// Whether `live`, which has no owner, is that of a class of this name.
fn guard_kept(owner: &Owner, live: &ConfigMap) -> Result<(), apply::Error> {
    if live.labels().get(owner.label) == Some(&owner.name) {
        return Ok(());
    }
    Err(apply::Error::NameConflict { kind: "ConfigMap".to_owned(), name: live.name_any() })
}

fn known<'a>(ctx: &Context, owner: &Owner, progress: &'a Progress, slot: &Slot<'_>) -> Option<&'a str> {
    let cached = ctx.stores.config_maps.get(&owner.namespace, slot.name)?;
    let written = progress.written.get(slot.name)?;
    (cached.resource_version() == written.version).then_some(written.content.as_str())
}

async fn get(ctx: &Context, owner: &Owner, slot: &Slot<'_>) -> Result<Option<ConfigMap>, Error> {
    let api: Api<ConfigMap> = Api::namespaced(ctx.client.clone(), &owner.namespace);
    bounded(api.get_opt(slot.name))
        .await
        .map_err(|source| Error::Read { name: slot.name.to_owned(), source: Box::new(source) })
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http_body_util::BodyExt as _;
    use kube::client::Body;
    use peristyle_crds::{
        names::AUTH_CLASS_LABEL,
        v1alpha1::{AuthClass, AuthClassSpec},
    };

    use super::*;

    #[tokio::test]
    async fn the_record_outlives_its_class_and_only_a_class_of_that_name_takes_it_up() {
        let sent = Arc::new(Mutex::new(Vec::new()));
        let log = sent.clone();
        let answer = tower::service_fn(move |request: http::Request<Body>| {
            let log = log.clone();
            async move {
                let body = request.into_body().collect().await.unwrap().to_bytes();
                log.lock().unwrap().push(serde_json::from_slice::<ConfigMap>(&body).unwrap());
                Ok::<_, std::convert::Infallible>(http::Response::new(Body::from(body.to_vec())))
            }
        });
        let client = Client::new(answer, "system");
        let class = |name: &str, uid: &str| {
            let mut class = AuthClass::new(name, AuthClassSpec::default());
            class.metadata.uid = Some(uid.to_owned());
            Owner::new(&class, "system", AUTH_CLASS_LABEL)
        };
        let first = class("default", "1");
        let record =
            |owner: &Owner| ConfigMap { metadata: owner.child("default-tuples"), ..ConfigMap::default() };
        let kept = keep(&client, &first, None, record(&first)).await.unwrap();
        assert_eq!(kept.metadata.owner_references, None, "it would be collected with its class");
        assert_eq!(sent.lock().unwrap().len(), 1);

        let again = class("default", "2");
        keep(&client, &again, Some(&kept), record(&again)).await.unwrap();
        assert_eq!(sent.lock().unwrap().len(), 1, "it is so already");
        let mut changed = record(&again);
        changed.data = Some([("tuples.json".to_owned(), "[]".to_owned())].into());
        keep(&client, &again, Some(&kept), changed).await.unwrap();
        let other = class("other", "3");
        let refused = keep(&client, &other, Some(&kept), record(&other)).await.unwrap_err();
        assert!(matches!(refused, apply::Error::NameConflict { .. }), "{refused}");
        assert_eq!(sent.lock().unwrap().len(), 2, "nothing is sent for it");
    }
}
