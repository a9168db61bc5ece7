//! The controller of `Database`.

pub(crate) mod build;
mod finalize;
mod holders;
mod logins;
mod memory;
pub mod observe;
pub(crate) mod record;
pub mod rotation;
mod status;
mod triggers;
pub mod validate;

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{Resource, ResourceExt};
use peristyle_crds::{
    condition::{Reason, types},
    names::DATABASE_LABEL,
    v1alpha1::{Database, DatabaseStatus},
};

use self::{
    logins::{Pass, Settled},
    memory::{Inputs, Memory, Verified},
    validate::Validated,
};
use crate::{
    conditions::{self, Finding},
    context::Context,
    controllers::database_class::target,
    external::postgres::{self, Provisioned, Refusal},
    metadata::Owner,
    reconcile::{self, Outcome},
    retry::{self, Class, Classified},
    sql::plan::Obstacle,
};

/// The shortest delay before the next look at a Database.
const SOON: Duration = Duration::from_secs(1);
/// The longest.
const LATE: Duration = Duration::from_secs(6 * 3600);
/// How often it is looked whether a database that is gone is back.
const GONE: Duration = Duration::from_secs(30);

/// Why a pass over a Database ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The spec, or what it refers to.
    #[error(transparent)]
    Invalid(#[from] validate::Invalid),
    /// The administrator's credentials.
    #[error(transparent)]
    Target(#[from] target::Error),
    /// A Secret could not be written.
    #[error(transparent)]
    Apply(#[from] crate::apply::Error),
    /// The server.
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    /// The server does not let a login in.
    #[error("the server refuses the credentials of Secret {secret}: {} (SQLSTATE {})", refusal.message, refusal.code)]
    Login {
        /// Name of the Secret.
        secret: String,
        /// The server's words.
        refusal: Refusal,
    },
    /// The API server refused.
    #[error("failed to {verb} the Database: {source}")]
    Request {
        /// What was tried.
        verb: &'static str,
        /// Why not.
        #[source]
        source: Box<kube::Error>,
    },
}

impl Error {
    /// Whether it concerns one login and no other.
    fn is_of_a_login(&self) -> bool {
        match self {
            Self::Login { .. } | Self::Apply(crate::apply::Error::NameConflict { .. }) => true,
            Self::Postgres(error) => error.is_refusal(),
            _ => false,
        }
    }

    fn request(verb: &'static str) -> impl Fn(kube::Error) -> Self {
        move |source| Self::Request { verb, source: Box::new(source) }
    }
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            Self::Invalid(error) => error.class(),
            Self::Target(error) => error.class(),
            Self::Apply(error) => error.class(),
            Self::Postgres(error) => error.class(),
            Self::Login { .. } => Class::Transient,
            Self::Request { source, .. } => retry::classify(source),
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::Invalid(error) => error.reason(),
            Self::Target(error) => error.reason(),
            Self::Apply(error) => error.reason(),
            Self::Postgres(error) => error.reason(),
            Self::Login { .. } => Reason::Unavailable,
            Self::Request { .. } => retry::reason(self.class()),
        }
    }

    fn condition(&self) -> &'static str {
        match self {
            Self::Invalid(error) => error.condition(),
            Self::Target(error) => error.condition(),
            Self::Postgres(error) => error.condition(),
            Self::Apply(_) | Self::Login { .. } => types::CREDENTIALS_READY,
            Self::Request { .. } => types::READY,
        }
    }
}

/// Runs the controller until the process ends.
pub async fn run(ctx: Arc<Context>) {
    let memory = Arc::new(Memory::default());
    let triggers = triggers::all(&ctx.stores);
    reconcile::run(ctx.clone(), &ctx.stores.databases, triggers, move |database, ctx| {
        let memory = memory.clone();
        async move { reconcile(&database, &ctx, &memory).await }
    })
    .await;
}

async fn reconcile(
    database: &Database,
    ctx: &Context,
    memory: &Memory,
) -> Result<Outcome<DatabaseStatus>, Error> {
    if database.metadata.deletion_timestamp.is_some() {
        memory.forget(database);
        return finalize::finalize(ctx, database).await;
    }
    let is_bound = database.status.as_ref().is_some_and(|status| status.server.is_some());
    if is_bound {
        // Also while nothing else can be done: a policy that changes now must hold at the end.
        finalize::hold(ctx, database).await?;
    }
    let validated = validate::validate(database, &observe::observe(ctx, database))?;
    if !is_bound {
        finalize::hold(ctx, database).await?;
    }
    let mut inputs = Inputs::observe(ctx, database, &validated);
    if let Some(verified) = memory.recall(database, &inputs) {
        return Ok(outcome(verified));
    }
    match provision(ctx, database, &validated).await {
        Ok((provisioned, settled)) => {
            inputs.set_versions(&settled.versions);
            let drift = status::drift(database, &provisioned);
            if let Some(drift) = &drift {
                ctx.events.transition(&database.object_ref(&()), drift).await;
            }
            let verified = status::verified(&validated, &provisioned, settled, drift.as_ref());
            memory.keep(ctx, database, inputs, verified.clone());
            Ok(outcome(verified))
        }
        // One delay for all Databases of the server.
        Err(Error::Postgres(error)) if error.later().is_some() => Ok(later(database, &error)),
        // No watch tells when somebody brings it back.
        Err(Error::Postgres(error @ postgres::Error::Obstacle(Obstacle::Gone(_)))) => {
            let finding = Finding::stalled(error.condition(), error.reason(), error.to_string());
            let last = database.status.clone().unwrap_or_default();
            Ok(Outcome { requeue: Some(GONE), ..Outcome::new(last, vec![finding]) })
        }
        Err(error) => Err(error),
    }
}

/// The server cannot be asked now. What is brief leaves alone what was good.
fn later(database: &Database, error: &postgres::Error) -> Outcome<DatabaseStatus> {
    let last = database.status.clone().unwrap_or_default();
    let was_ready = conditions::is_true(&last.conditions, types::READY, database.metadata.generation);
    let (retry, is_brief) = error.later().unwrap_or((SOON, false));
    let findings = if was_ready && is_brief {
        Vec::new()
    } else {
        vec![Finding::waiting(error.condition(), error.reason(), error.to_string())]
    };
    Outcome { requeue: Some(retry), ..Outcome::new(last, findings) }
}

/// Looks again when something is due. The queue may be a quarter early or late:
/// it is told less than what is left, and a pass that comes early asks nobody.
fn outcome(verified: Verified) -> Outcome<DatabaseStatus> {
    let requeue = verified.left().map(|left| left.mul_f64(0.8).clamp(SOON, LATE));
    Outcome { requeue, ..Outcome::new(verified.status, verified.findings) }
}

async fn provision(
    ctx: &Context,
    database: &Database,
    validated: &Validated,
) -> Result<(Provisioned, Settled), Error> {
    // Before the API server is asked for credentials that would not be used.
    ctx.servers.check(&validated.access.admin)?;
    ctx.servers.check(&validated.workloads)?;
    let turn = ctx.servers.turn(&validated.access.admin).await?;
    let session = turn.session(target::fetch(ctx, &validated.access).await?);
    let expected = validated.bound.as_ref().map(|server| server.system_identifier.as_str());
    let provisioned = postgres::provision(&session, &validated.desired, expected).await?;
    let owner = Owner::new(database, &database.namespace().unwrap_or_default(), DATABASE_LABEL);
    let pass = Pass { ctx, database, validated, session: &session, owner, now: Timestamp::now() };
    let settled = pass.settle(&provisioned).await?;
    Ok((provisioned, settled))
}
