//! The controller of `DatabaseClass`: runs an embedded server, and finds out
//! whether databases can be provisioned.

mod build;
mod status;
pub mod target;
mod trash;
mod triggers;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use kube::{ResourceExt, runtime::reflector::ObjectRef};
use peristyle_crds::{
    condition::{Reason, types},
    duration::InvalidDuration,
    names::DATABASE_CLASS_LABEL,
    v1alpha1::{Database, DatabaseClass, DatabaseClassStatus, database_class::Embedded},
};

use self::target::Access;
use crate::{
    conditions::{Finding, State, is_true, worst},
    context::Context,
    credentials,
    external::postgres::{self, Target},
    metadata::{Owner, is_controlled_by},
    reconcile::{self, Outcome},
    retry::{Class, Classified},
    sql::catalog::Server,
    stores::views::StatefulSet,
};

/// How often the server is asked whether it is still there, plus or minus a quarter.
const ASK: Duration = Duration::from_secs(40);
/// How long what it said is believed when something else leads to a look; shorter than
/// any time between two.
const BELIEVED: Duration = Duration::from_secs(25);
/// How often an administrator that lacks a right is looked at again; the server does not tell.
const RETRY_RIGHTS: Duration = Duration::from_secs(120);

/// Why a pass over a class ended early.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The class does not say how to reach the server.
    #[error(transparent)]
    Target(#[from] target::Error),
    /// A child could not be written.
    #[error(transparent)]
    Apply(#[from] crate::apply::Error),
    /// The server.
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    /// Another password would not be the one that the embedded server was made with.
    #[error(
        "Secret {namespace}/{name} is gone, and only it had the password of the server; restore it, or begin \
         with an empty server by deleting StatefulSet {name}, whose data goes with it"
    )]
    PasswordLost {
        /// Namespace of the operator.
        namespace: String,
        /// Name of Secret and StatefulSet.
        name: String,
    },
    /// The retention.
    #[error("spec.trash.retention: {0}")]
    Retention(#[from] InvalidDuration),
}

impl Error {
    fn inner(&self) -> Option<&dyn Classified> {
        match self {
            Self::Target(error) => Some(error),
            Self::Apply(error) => Some(error),
            Self::Postgres(error) => Some(error),
            Self::Retention(_) | Self::PasswordLost { .. } => None,
        }
    }
}

impl Classified for Error {
    fn class(&self) -> Class {
        self.inner().map_or(Class::Terminal, Classified::class)
    }

    fn reason(&self) -> Reason {
        if matches!(self, Self::PasswordLost { .. }) {
            return Reason::ReferenceMissing;
        }
        self.inner().map_or(Reason::Invalid, Classified::reason)
    }

    fn condition(&self) -> &'static str {
        self.inner().map_or(types::READY, Classified::condition)
    }
}

/// What was asked of which server, and what it said.
#[derive(Default)]
struct Memory(Mutex<HashMap<String, Visit>>);

#[derive(Clone)]
struct Visit {
    inputs: Inputs,
    /// The administrator, as long as the inputs are the same: to ask the server
    /// again costs no request to the API server.
    target: Option<Target>,
    answer: Option<(Instant, Server)>,
}

/// Everything that the answer depends on and that the API server tells us of.
#[derive(Clone, Eq, PartialEq)]
struct Inputs {
    uid: Option<String>,
    generation: Option<i64>,
    versions: [Option<String>; 2],
    /// Changes when an embedded server is replaced.
    pod: Option<String>,
}

/// Runs the controller until the process ends.
pub async fn run(ctx: Arc<Context>) {
    let memory = Arc::new((Memory::default(), trash::Looks::default()));
    let triggers = triggers::all(&ctx);
    reconcile::run(ctx.clone(), &ctx.stores.database_classes, triggers, move |class, ctx| {
        let memory = memory.clone();
        async move { reconcile(&class, &ctx, &memory.0, &memory.1).await }
    })
    .await;
}

async fn reconcile(
    class: &DatabaseClass,
    ctx: &Context,
    memory: &Memory,
    looks: &trash::Looks,
) -> Result<Outcome<DatabaseClassStatus>, Error> {
    let last = class.status.clone().unwrap_or_default();
    if class.metadata.deletion_timestamp.is_some() {
        let finding = Finding::waiting(types::READY, Reason::Progressing, "is being deleted");
        return Ok(Outcome::new(last, vec![finding]));
    }
    let access = target::access(class, &ctx.config.namespace)?;
    trash::retention(class)?;
    let mut pod = None;
    if let Some(embedded) = &class.spec.embedded {
        pod = run_server(ctx, class, embedded).await?;
        if pod.is_none() {
            let message =
                format!("StatefulSet {}/{} has no ready pod yet", ctx.config.namespace, access.admin_secret);
            let finding = Finding::waiting(types::SERVER_REACHABLE, Reason::ServerUnreachable, message);
            return Ok(Outcome::new(counted(ctx, class, last), vec![finding]));
        }
    }
    let inputs = Inputs {
        uid: class.uid(),
        generation: class.metadata.generation,
        versions: target::versions(ctx, &access),
        pod,
    };
    let asked = async {
        let server = visit(ctx, memory, &access, inputs.clone()).await?;
        let mut findings = status::findings(&server, &access.admin.to_string());
        if let Some(State::Stalled | State::Failed) = worst(&findings).map(|finding| finding.state) {
            memory.forget_answer(&access.class);
            return Ok((server, findings, Some(RETRY_RIGHTS)));
        }
        let look = trash::look(ctx, looks, class, inputs).await?;
        findings.extend(look.finding());
        Ok((server, findings, look.requeue()))
    };
    match asked.await {
        Ok((server, findings, requeue)) => {
            let status = counted(ctx, class, status::status(&server));
            let requeue = requeue.into_iter().chain([ASK]).min();
            Ok(Outcome { requeue, ..Outcome::new(status, findings) })
        }
        Err(Error::Postgres(error)) => match error.later() {
            Some((retry, is_brief)) => {
                let was_ready = is_true(&last.conditions, types::READY, class.metadata.generation);
                let finding = Finding::waiting(error.condition(), error.reason(), error.to_string());
                // What is brief leaves alone what was good.
                let findings = if was_ready && is_brief { Vec::new() } else { vec![finding] };
                Ok(Outcome { requeue: Some(retry), ..Outcome::new(counted(ctx, class, last), findings) })
            }
            None => Err(Error::Postgres(error)),
        },
        Err(error) => Err(error),
    }
}

/// What the server says, asked only if that is a while ago or something changed since.
async fn visit(ctx: &Context, memory: &Memory, access: &Access, inputs: Inputs) -> Result<Server, Error> {
    let last = memory.lock().get(&access.class).filter(|visit| visit.inputs == inputs).cloned();
    let known = match last {
        Some(Visit { answer: Some((at, server)), .. }) if at.elapsed() < BELIEVED => return Ok(server),
        Some(visit) => visit.target,
        None => {
            ctx.servers.retry_now(&access.admin);
            ctx.servers.retry_now(&access.workloads);
            None
        }
    };
    let visit = |target, answer| Visit { inputs: inputs.clone(), target, answer };
    let classes = ctx.stores.database_classes.store();
    memory.lock().retain(|name, _| classes.get(&ObjectRef::new(name)).is_some());
    memory.lock().insert(access.class.clone(), visit(known.clone(), None));
    // Before the API server is asked for credentials that would not be used.
    let turn = ctx.servers.turn(&access.admin).await?;
    let target = match known {
        Some(target) => target,
        None => target::fetch(ctx, access).await?,
    };
    memory.lock().insert(access.class.clone(), visit(Some(target.clone()), None));
    let session = turn.session(target.clone());
    let connection = session.maintenance().await?;
    let server = session.inspect(&connection).await?;
    connection.close().await;
    let answer = Some((Instant::now(), server.clone()));
    memory.lock().insert(access.class.clone(), visit(Some(target), answer));
    Ok(server)
}

impl Memory {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Visit>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn forget_answer(&self, class: &str) {
        if let Some(visit) = self.lock().get_mut(class) {
            visit.answer = None;
        }
    }
}

/// Applies the children of an embedded server; what tells one ready server from the next.
async fn run_server(
    ctx: &Context,
    class: &DatabaseClass,
    embedded: &Embedded,
) -> Result<Option<String>, Error> {
    let owner = Owner::new(class, &ctx.config.namespace, DATABASE_CLASS_LABEL);
    let name = target::embedded_name(class);
    let stores = &ctx.stores;
    let secret = stores.secrets.get(&owner.namespace, &name);
    if !secret.is_some_and(|secret| is_controlled_by(&*secret, &owner.reference.uid)) {
        let is_ours = |set: Arc<StatefulSet>| is_controlled_by(&*set, &owner.reference.uid);
        let has_server = stores.stateful_sets.get(&owner.namespace, &name).is_some_and(is_ours);
        // The cache may not have seen yet what was just written.
        if has_server && credentials::read(ctx, &owner.child(&name)).await?.is_none() {
            return Err(Error::PasswordLost { namespace: owner.namespace, name });
        }
        let build = |password: &_| build::secret(&owner, &name, password);
        credentials::ensure(ctx, &owner.child(&name), build).await?;
    }
    let live = stores.core_services.get(&owner.namespace, &name);
    ctx.applier.apply(live.as_deref(), &build::service(&owner, &name)).await?;
    let live = stores.stateful_sets.get(&owner.namespace, &name);
    let applied = ctx.applier.apply(live.as_deref(), &build::stateful_set(&owner, &name, embedded)).await?;
    let is_ready = applied.as_ref().or(live.as_deref()).is_some_and(|server| {
        let status = &server.status;
        status.ready_replicas.unwrap_or_default() > 0
            && status.observed_generation >= server.metadata.generation
    });
    // Without a volume the data goes with the pod: another pod is another server.
    let pods = stores.pods.labelled(&owner.namespace, DATABASE_CLASS_LABEL, &owner.name);
    let mut pods: Vec<_> = pods.iter().filter_map(|pod| pod.uid()).collect();
    pods.sort();
    Ok(is_ready.then(|| pods.join(" ")))
}

/// `status` with the number of Databases that are bound to `class`.
fn counted(ctx: &Context, class: &DatabaseClass, status: DatabaseClassStatus) -> DatabaseClassStatus {
    DatabaseClassStatus { databases: i32::try_from(bound(ctx, class).len()).ok(), ..status }
}

/// The Databases that are bound to `class`.
fn bound(ctx: &Context, class: &DatabaseClass) -> Vec<Arc<Database>> {
    let name = class.name_any();
    ctx.stores.databases.store().state_filter(|database| {
        let server = database.status.as_ref().and_then(|status| status.server.as_ref());
        server.is_some_and(|server| server.class == name)
    })
}
