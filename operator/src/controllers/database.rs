//! The controller of `Database`.

mod build;
mod finalize;
mod memory;
pub mod observe;
mod status;
mod triggers;
pub mod validate;

use std::{collections::BTreeMap, sync::Arc};

use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Preconditions},
};
use peristyle_crds::{
    condition::{Reason, types},
    names::DATABASE_LABEL,
    v1alpha1::{Database, DatabaseStatus, database::RoleName},
};

use self::{
    memory::{Inputs, Memory},
    validate::Validated,
};
use crate::{
    conditions::Finding,
    context::Context,
    controllers::database_class::target,
    credentials,
    external::postgres::{self, Refusal, Session},
    metadata::{Owner, is_controlled_by},
    reconcile::{self, Outcome},
    retry::{self, Class, Classified, bounded},
    sql::password::Password,
};

/// SQLSTATEs of a login that another password or attribute repairs.
const WRONG_CREDENTIALS: [&str; 2] = ["28P01", "28000"];

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
    let validated = validate::validate(database, &observe::observe(ctx, database))?;
    finalize::hold(ctx, database).await?;
    let mut inputs = Inputs::observe(ctx, database, &validated);
    if let Some(verified) = memory.recall(database, &inputs) {
        return Ok(Outcome::new(verified.status, verified.findings));
    }
    match provision(ctx, database, &validated, &mut inputs).await {
        Ok(server) => {
            let verified = status::verified(&validated, &server);
            memory.keep(database, inputs, verified.clone());
            Ok(Outcome::new(verified.status, verified.findings))
        }
        // One delay for all Databases of the server.
        Err(Error::Postgres(error @ postgres::Error::Unreachable { retry, .. })) => {
            let finding = Finding::waiting(error.condition(), error.reason(), error.to_string());
            let last = database.status.clone().unwrap_or_default();
            Ok(Outcome { requeue: Some(retry), ..Outcome::new(last, vec![finding]) })
        }
        Err(error) => Err(error),
    }
}

/// Secrets first, then the server, then a login with each: a crash in between
/// loses no password, and only credentials that work are reported.
async fn provision(
    ctx: &Context,
    database: &Database,
    validated: &Validated,
    inputs: &mut Inputs,
) -> Result<crate::sql::catalog::Server, Error> {
    let owner = Owner::new(database, &database.namespace().unwrap_or_default(), DATABASE_LABEL);
    let names = &validated.desired.names;
    let target = target::fetch(ctx, &validated.access).await?;
    let session = ctx.servers.session(target).await?;
    let mut passwords = BTreeMap::new();
    for (role, secret) in &validated.secrets {
        let connection = build::Connection {
            endpoint: &validated.workloads,
            tls: session.tls(),
            database: &names.database,
            login: names.login(*role),
        };
        let build = |password: &Password| build::secret(&owner, secret, connection, password);
        let stored = credentials::ensure(ctx, &owner.child(secret), build).await?;
        inputs.set_version(*role, stored.resource_version);
        passwords.insert(*role, stored.password);
    }
    let expected = validated.bound.as_ref().map(|server| server.system_identifier.as_str());
    let server = postgres::provision(&session, &validated.desired, &passwords, expected).await?;
    for (role, password) in &passwords {
        confirm(&session, validated, *role, password).await?;
    }
    prune(ctx, &owner, validated).await?;
    Ok(server)
}

/// Logs in as `role`; sets its password and tries again if the server knows another one.
async fn confirm(
    session: &Session,
    validated: &Validated,
    role: RoleName,
    password: &Password,
) -> Result<(), Error> {
    let names = &validated.desired.names;
    let check = || postgres::check_login(session, &validated.workloads, names, role, password);
    let mut answer = check().await?;
    if answer.as_ref().is_err_and(|refusal| WRONG_CREDENTIALS.contains(&refusal.code.as_str())) {
        postgres::set_password(session, names, role, password).await?;
        answer = check().await?;
    }
    answer.map_err(|refusal| Error::Login {
        secret: validated.secrets.get(&role).cloned().unwrap_or_default(),
        refusal,
    })
}

/// Deletes our Secrets that no login belongs to any more.
async fn prune(ctx: &Context, owner: &Owner, validated: &Validated) -> Result<(), Error> {
    let api: Api<Secret> = Api::namespaced(ctx.client.clone(), &owner.namespace);
    for secret in ctx.stores.secrets.labelled(&owner.namespace, DATABASE_LABEL, &owner.name) {
        let name = secret.name_any();
        if !is_controlled_by(&*secret, &owner.reference.uid)
            || validated.secrets.values().any(|wanted| *wanted == name)
        {
            continue;
        }
        let params = DeleteParams {
            preconditions: Some(Preconditions { uid: secret.meta().uid.clone(), resource_version: None }),
            ..DeleteParams::background()
        };
        match bounded(api.delete(&name, &params)).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(source) => {
                return Err(crate::apply::Error::Request {
                    verb: "delete",
                    kind: "Secret".to_owned(),
                    name,
                    source: Box::new(source),
                }
                .into());
            }
        }
    }
    Ok(())
}
