//! Secrets with a generated password. The Secret is written before the server
//! learns the password: after a crash in between the password is still known.

use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::OwnerReference};
use kube::{
    Api, ResourceExt,
    api::{DeleteParams, ObjectMeta, PostParams, Preconditions},
};
use peristyle_crds::FIELD_MANAGER;

use crate::{
    apply::Error, context::Context, metadata::is_controlled_by, retry::bounded, sql::password::Password,
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
/// A Secret that is missing is created with a new password, also where one of
/// a deleted object of the same name still lies. A password that is
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
    let name = metadata.name.clone().unwrap_or_default();
    let api: Api<Secret> =
        Api::namespaced(ctx.client.clone(), metadata.namespace.as_deref().unwrap_or_default());
    let owner = metadata.owner_references.iter().flatten().next();
    let mut live = within_deadline("get", &name, api.get_opt(&name)).await?;
    if let Some(orphan) = live.as_ref().filter(|live| owner.is_some_and(|o| is_of_predecessor(live, o))) {
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: orphan.uid(), resource_version: None }),
            ..DeleteParams::background()
        };
        match within_deadline("delete", &name, api.delete(&name, &params)).await {
            Err(Error::Request { source, .. }) if matches!(&*source, kube::Error::Api(s) if s.is_not_found()) =>
                {}
            result => drop(result?),
        }
        live = None;
    }
    if live.is_none() {
        let password = Password::generate();
        let params = PostParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PostParams::default() };
        match within_deadline("create", &name, api.create(&params, &build(&password))).await {
            Ok(created) => return Ok(stored(password, &created)),
            // Another was faster: its password may already be on the server.
            Err(Error::Request { source, .. }) if matches!(&*source, kube::Error::Api(s) if s.is_already_exists()) =>
            {
                live = within_deadline("get", &name, api.get_opt(&name)).await?;
            }
            Err(error) => return Err(error),
        }
    }
    let Some(live) = live.filter(|live| owner.is_some_and(|o| is_controlled_by(live, &o.uid))) else {
        return Err(Error::NameConflict { kind: "Secret".to_owned(), name });
    };
    let kept = live.data.iter().flatten().find(|(key, _)| *key == PASSWORD);
    let kept = kept.and_then(|(_, value)| Password::from_secret(&value.0));
    let password = kept.unwrap_or_else(Password::generate);
    let desired = build(&password);
    let has_labels = desired.labels().iter().all(|(key, value)| live.labels().get(key) == Some(value));
    if has_labels && live.data == desired.data && live.type_ == desired.type_ {
        return Ok(stored(password, &live));
    }
    let applied = ctx.applier.apply(None, &desired).await?;
    Ok(stored(password, &applied))
}

/// Whether `secret` belonged to an object of the owner's name that is gone,
/// since there is another now; the cluster has only not cleared it away yet.
fn is_of_predecessor(secret: &Secret, owner: &OwnerReference) -> bool {
    secret.owner_references().iter().any(|found| {
        found.controller == Some(true)
            && found.api_version == owner.api_version
            && found.kind == owner.kind
            && found.name == owner.name
            && found.uid != owner.uid
    })
}

fn stored(password: Password, secret: &Secret) -> Stored {
    Stored { password, resource_version: secret.resource_version() }
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
