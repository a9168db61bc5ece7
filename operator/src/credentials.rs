//! Secrets with a generated password.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ObjectMeta, Patch, PatchParams, PostParams, Preconditions},
};
use peristyle_crds::FIELD_MANAGER;

use crate::{
    apply::Error,
    context::Context,
    metadata::{is_controlled_by, is_of_predecessor},
    retry::bounded,
    sql::password::Password,
};

/// Key of the password in every Secret that is written here.
pub const PASSWORD: &str = "password";

/// A password as its Secret holds it.
pub struct Stored {
    /// The password.
    pub password: Password,
    /// Version of the Secret, to notice changes.
    pub resource_version: Option<String>,
}

/// The password in the Secret of `metadata`, with the rest of the Secret as
/// `build` makes it from the password.
///
/// A Secret that is missing is created with a new password. A password that is
/// not one of ours (edited by hand) is replaced.
///
/// # Errors
/// [`Error::NameConflict`] when a Secret of that name is not ours;
/// [`Error::Request`] when the API server refuses.
pub async fn ensure(
    ctx: &Context,
    metadata: &ObjectMeta,
    build: impl Fn(&Password) -> Secret,
) -> Result<Stored, Error> {
    let live = read(ctx, metadata).await?;
    let kept = live.as_ref().and_then(|live| live.data.as_ref()?.get(PASSWORD));
    let kept = kept.and_then(|value| Password::from_secret(&value.0));
    let password = kept.unwrap_or_else(Password::generate);
    let resource_version = write(ctx, live.as_ref(), build(&password)).await?;
    Ok(Stored { password, resource_version })
}

/// The Secret of `metadata` as it is now. One that an object of the same name
/// left behind, which is gone, is deleted first.
///
/// # Errors
/// [`Error::NameConflict`] when a Secret of that name is not ours;
/// [`Error::Request`] when the API server refuses.
pub async fn read(ctx: &Context, metadata: &ObjectMeta) -> Result<Option<Secret>, Error> {
    let name = metadata.name.clone().unwrap_or_default();
    let api = api(ctx, metadata);
    let owner = metadata.owner_references.iter().flatten().next();
    let Some(live) = within_deadline("get", &name, api.get_opt(&name)).await? else {
        return Ok(None);
    };
    if owner.is_some_and(|owner| is_controlled_by(&live, &owner.uid)) {
        return Ok(Some(live));
    }
    if !owner.is_some_and(|owner| is_of_predecessor(&live, owner)) {
        return Err(Error::NameConflict { kind: "Secret".to_owned(), name });
    }
    let params = DeleteParams {
        preconditions: Some(Preconditions { uid: live.uid(), resource_version: None }),
        ..DeleteParams::background()
    };
    match within_deadline("delete", &name, api.delete(&name, &params)).await {
        Err(Error::Request { source, .. }) if matches!(&*source, kube::Error::Api(s) if s.is_not_found()) => {
        }
        result => drop(result?),
    }
    Ok(None)
}

/// Makes the Secret as `desired`; its version. Nothing is sent when `live`, as
/// [`read`] returned it, is that already.
///
/// A write that arrives late, after another one, is refused by the API server:
/// no older password can replace a newer one.
///
/// # Errors
/// [`Error::Request`] when the API server refuses, also because the Secret was
/// changed or made since `live` was read.
pub async fn write(
    ctx: &Context,
    live: Option<&Secret>,
    mut desired: Secret,
) -> Result<Option<String>, Error> {
    let name = desired.name_any();
    let api = api(ctx, &desired.metadata);
    let Some(live) = live else {
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        let created = within_deadline("create", &name, api.create(&params, &desired)).await?;
        return Ok(created.resource_version());
    };
    let data = |secret: &Secret| secret.data.clone().unwrap_or_default();
    if contains(live.labels(), desired.labels())
        && contains(live.annotations(), desired.annotations())
        && contains(&data(live), &data(&desired))
        && live.type_ == desired.type_
    {
        return Ok(live.resource_version());
    }
    desired.metadata.resource_version = live.resource_version();
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let applied = within_deadline("patch", &name, api.patch(&name, &params, &Patch::Apply(&desired))).await?;
    Ok(applied.resource_version())
}

/// Whether `live` has every entry of `wanted`; entries of others are theirs.
fn contains<V: PartialEq>(live: &BTreeMap<String, V>, wanted: &BTreeMap<String, V>) -> bool {
    wanted.iter().all(|(key, value)| live.get(key) == Some(value))
}

fn api(ctx: &Context, metadata: &ObjectMeta) -> Api<Secret> {
    Api::namespaced(ctx.client.clone(), metadata.namespace.as_deref().unwrap_or_default())
}

async fn within_deadline<T>(
    verb: &'static str,
    name: &str,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, Error> {
    bounded(request).await.map_err(|source| Error::Request {
        verb,
        kind: "Secret".to_owned(),
        name: name.to_owned(),
        source: Box::new(source),
    })
}
