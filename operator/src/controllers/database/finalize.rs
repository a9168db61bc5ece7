//! The end of a Database. Whether anything is dropped is read from the live
//! spec, and what is dropped from the mark on the server; never from status.

use std::time::Duration;

use kube::{
    Api, ResourceExt,
    api::{Patch, PatchParams},
};
use peristyle_crds::{
    FIELD_MANAGER,
    condition::{Reason, types},
    v1alpha1::{Database, DatabaseStatus, database::ReclaimPolicy},
};

use super::{Error, observe, validate};
use crate::{
    conditions::{Finding, State},
    context::Context,
    controllers::database_class::target,
    external::postgres,
    reconcile::Outcome,
    retry::{Classified, bounded},
};

/// Keeps a Database whose policy is Trash or Delete until its server is told.
pub const FINALIZER: &str = "peristyle.dev/database";
/// How often a deletion that waits for a person is looked at although nothing changed.
const WAITS_FOR_A_PERSON: Duration = Duration::from_secs(6 * 3600);
/// How often a deletion that the server holds up is tried again.
const RETRY: Duration = Duration::from_secs(30);

/// Adds or removes the finalizer, as the policy needs it; before the first SQL.
///
/// # Errors
/// When the API server refuses.
pub async fn hold(ctx: &Context, database: &Database) -> Result<(), Error> {
    let is_needed = database.spec.reclaim_policy() != ReclaimPolicy::Retain;
    if is_needed == is_held(database) {
        return Ok(());
    }
    set(ctx, database, is_needed).await
}

/// Does what the policy says about the data, then lets the object go.
///
/// # Errors
/// When the API server refuses.
pub async fn finalize(ctx: &Context, database: &Database) -> Result<Outcome<DatabaseStatus>, Error> {
    if !is_held(database) {
        return Ok(leaving(database));
    }
    let api: Api<Database> = Api::namespaced(ctx.client.clone(), &database.namespace().unwrap_or_default());
    let policy = database.spec.reclaim_policy();
    if policy != ReclaimPolicy::Retain && database.spec.is_protected() {
        let message = format!(
            "spec.deletionProtection is Enabled; set it to Disabled to let spec.reclaimPolicy {policy:?} act, \
             or spec.reclaimPolicy to Retain to leave the database on the server; a deletion of the namespace \
             waits for it as well"
        );
        return Ok(blocked(database, Reason::DeletionProtected, message, WAITS_FOR_A_PERSON));
    }
    if policy != ReclaimPolicy::Retain
        && let Err(error) = reachable(ctx, database)
    {
        return Ok(kept(database, &error));
    }
    // The cache may be behind a person who changed their mind.
    let live = bounded(api.get_opt(&database.name_any())).await.map_err(Error::request("get"))?;
    let Some(live) = live.filter(|live| live.uid() == database.uid()) else {
        return Ok(leaving(database));
    };
    if live.spec.reclaim_policy() != ReclaimPolicy::Retain {
        if live.spec.is_protected() || live.metadata.deletion_timestamp.is_none() {
            return Ok(leaving(database));
        }
        if let Err(error) = remove(ctx, &live).await {
            return Ok(kept(database, &error));
        }
    }
    set(ctx, &live, false).await?;
    Ok(leaving(database))
}

/// Whether the server may be asked now; asks nobody.
fn reachable(ctx: &Context, database: &Database) -> Result<(), Error> {
    let validated = validate::validate(database, &observe::observe(ctx, database))?;
    Ok(ctx.servers.check(&validated.access.admin)?)
}

/// The deletion goes on later.
fn kept(database: &Database, error: &Error) -> Outcome<DatabaseStatus> {
    let later = match error {
        Error::Postgres(error @ postgres::Error::Busy { .. }) => {
            let retry = error.later().map(|(retry, _)| retry);
            return Outcome { requeue: retry, ..leaving(database) };
        }
        Error::Postgres(error) => error.later().map(|(retry, _)| retry),
        _ => None,
    };
    let message = format!("{error}; removing the finalizer {FINALIZER} leaves the database on the server");
    blocked(database, error.reason(), message, later.unwrap_or(RETRY))
}

async fn remove(ctx: &Context, database: &Database) -> Result<(), Error> {
    let validated = validate::validate(database, &observe::observe(ctx, database))?;
    let turn = ctx.servers.turn(&validated.access.admin).await?;
    let session = turn.session(target::fetch(ctx, &validated.access).await?);
    let expected = validated.bound.as_ref().map(|server| server.system_identifier.as_str());
    let desired = &validated.desired;
    match database.spec.reclaim_policy() {
        ReclaimPolicy::Retain => Ok(()),
        ReclaimPolicy::Trash => {
            Ok(postgres::trash_database(&session, desired, &validated.keeper, expected).await?)
        }
        ReclaimPolicy::Delete => Ok(postgres::drop_database(&session, desired, expected).await?),
    }
}

fn is_held(database: &Database) -> bool {
    database.finalizers().iter().any(|finalizer| finalizer == FINALIZER)
}

/// Refused by the API server if the object changed or was replaced meanwhile.
async fn set(ctx: &Context, database: &Database, is_held: bool) -> Result<(), Error> {
    let others = database.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).cloned();
    let finalizers: Vec<String> = others.chain(is_held.then(|| FINALIZER.to_owned())).collect();
    let patch = serde_json::json!({"metadata": {
        "uid": database.uid(), "resourceVersion": database.resource_version(), "finalizers": finalizers
    }});
    let api: Api<Database> = Api::namespaced(ctx.client.clone(), &database.namespace().unwrap_or_default());
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    match bounded(api.patch_metadata(&database.name_any(), &params, &Patch::Merge(patch))).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_not_found() && !is_held => Ok(()),
        Err(error) => Err(Error::request("patch")(error)),
    }
}

fn leaving(database: &Database) -> Outcome<DatabaseStatus> {
    let finding = Finding::waiting(types::READY, Reason::Progressing, "is being deleted");
    Outcome {
        requeue: Some(WAITS_FOR_A_PERSON),
        ..Outcome::new(database.status.clone().unwrap_or_default(), vec![finding])
    }
}

fn blocked(
    database: &Database,
    reason: Reason,
    message: impl Into<String>,
    retry: Duration,
) -> Outcome<DatabaseStatus> {
    let message = message.into();
    let findings = vec![
        // True means blocked, which is why the state says good.
        Finding { condition: types::DELETION_BLOCKED, state: State::Good, reason, message: message.clone() },
        Finding::waiting(types::READY, reason, message),
    ];
    Outcome { requeue: Some(retry), ..Outcome::new(database.status.clone().unwrap_or_default(), findings) }
}
