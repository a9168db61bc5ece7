//! ConfigMaps of a class: one key each, written in one piece.

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, ResourceExt};

use super::{
    Error, build,
    progress::{Progress, Written},
};
use crate::{context::Context, metadata::Owner, retry::bounded};

/// A ConfigMap of a class.
pub struct Slot<'a> {
    /// Name, in the operator's namespace.
    pub name: &'a str,
    /// Its one key.
    pub key: &'a str,
}

/// The content of the key, without a request when the cache shows the version
/// that was written last. `None` when there is no such ConfigMap or key.
pub async fn read(
    ctx: &Context,
    owner: &Owner,
    progress: &Progress,
    slot: &Slot<'_>,
) -> Result<Option<String>, Error> {
    if let Some(content) = known(ctx, owner, progress, slot) {
        return Ok(Some(content.to_owned()));
    }
    Ok(get(ctx, owner, slot).await?.and_then(|live| content(&live, slot)))
}

/// Makes the key hold `wanted`. Returns what it held before.
pub async fn write(
    ctx: &Context,
    owner: &Owner,
    progress: &mut Progress,
    slot: &Slot<'_>,
    wanted: &str,
) -> Result<Option<String>, Error> {
    if known(ctx, owner, progress, slot) == Some(wanted) {
        return Ok(Some(wanted.to_owned()));
    }
    let live = get(ctx, owner, slot).await?;
    let desired = build::config_map(owner, slot.name, slot.key, wanted);
    let applied = ctx.applier.apply(live.as_ref(), &desired).await?;
    progress.written.insert(
        slot.name.to_owned(),
        Written { content: wanted.to_owned(), version: applied.resource_version() },
    );
    Ok(live.and_then(|live| content(&live, slot)))
}

fn content(live: &ConfigMap, slot: &Slot<'_>) -> Option<String> {
    live.data.as_ref()?.get(slot.key).cloned()
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
