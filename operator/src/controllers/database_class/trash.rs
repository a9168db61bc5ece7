//! The trash of a class: what lies there for too long is dropped. When the next
//! is due, the marks on the server say; it is asked again only then, when the
//! class changed, or when one of its Databases went away.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use kube::{ResourceExt, runtime::reflector::ObjectRef};
use peristyle_crds::{
    condition::{Reason, types},
    duration::{self, InvalidDuration},
    v1alpha1::DatabaseClass,
};

use super::{Error, Inputs, target};
use crate::{
    conditions::{Finding, State},
    context::Context,
    controllers::database::observe,
    external::postgres::{Trash, empty_trash},
    sql::marker,
};

/// How long what is in the trash can be restored.
const RETENTION: Duration = Duration::from_secs(168 * 3600);
/// How long a look into the trash is believed.
const BELIEVED: Duration = Duration::from_secs(4 * 3600);
/// How often what cannot be dropped is tried again.
const RETRY: Duration = Duration::from_secs(600);
/// The shortest delay before the next look, and the longest.
const BETWEEN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(6 * 3600));

/// What was seen in the trash of each class.
#[derive(Default)]
pub struct Looks(Mutex<HashMap<String, Look>>);

/// One look.
#[derive(Clone)]
pub struct Look {
    inputs: Inputs,
    at: Instant,
    /// UIDs of the Databases of the class: one that is gone may be in the trash.
    bound: BTreeSet<String>,
    due: Option<Instant>,
    kept: Vec<String>,
}

/// The retention of `class`.
///
/// # Errors
/// When it cannot be read, which the schema prevents.
pub fn retention(class: &DatabaseClass) -> Result<Duration, InvalidDuration> {
    let retention = class.spec.trash.as_ref().and_then(|trash| trash.retention.as_ref());
    retention.map_or(Ok(RETENTION), duration::Duration::get)
}

/// Looks into the trash if there is a reason to, and drops what is over.
///
/// # Errors
/// When the server cannot be asked.
pub async fn look(
    ctx: &Context,
    looks: &Looks,
    class: &DatabaseClass,
    inputs: Inputs,
) -> Result<Look, Error> {
    let name = class.name_any();
    let bound = super::bound(ctx, class).iter().filter_map(|database| database.uid()).collect();
    let classes = ctx.stores.database_classes.store();
    looks.lock().retain(|name, _| classes.get(&ObjectRef::new(name)).is_some());
    let last = looks.lock().get(&name).filter(|look| look.inputs == inputs).cloned();
    if let Some(last) = last.filter(|look| look.bound.is_subset(&bound) && !look.is_over()) {
        let look = Look { bound, ..last };
        looks.lock().insert(name, look.clone());
        return Ok(look);
    }
    let Some(cluster) = observe::cluster(ctx) else {
        let due = Some(Instant::now() + BETWEEN.0);
        return Ok(Look { inputs, at: Instant::now(), bound, due, kept: Vec::new() });
    };
    let access = target::access(class, &ctx.config.namespace)?;
    let turn = ctx.servers.turn(&access.admin).await?;
    let session = turn.session(target::fetch(ctx, &access).await?);
    let keeper = marker::keeper(&cluster, &name);
    let Trash { next, kept } = empty_trash(&session, &keeper, retention(class)?).await?;
    let next = next.into_iter().chain((!kept.is_empty()).then_some(RETRY)).min();
    let at = Instant::now();
    let look = Look { inputs, at, bound, due: next.map(|next| at + next), kept };
    looks.lock().insert(name, look.clone());
    Ok(look)
}

impl Look {
    fn is_over(&self) -> bool {
        self.at.elapsed() >= BELIEVED || self.due.is_some_and(|due| due <= Instant::now())
    }

    /// When to come again. The queue may be a quarter early or late: it is told
    /// less than what is left, and a pass that comes early asks nobody.
    #[must_use]
    pub fn requeue(&self) -> Option<Duration> {
        let left = self.due?.saturating_duration_since(Instant::now());
        Some(left.mul_f64(0.8).clamp(BETWEEN.0, BETWEEN.1))
    }

    /// What a person should know: something should be gone and is not.
    #[must_use]
    pub fn finding(&self) -> Option<Finding> {
        (!self.kept.is_empty()).then(|| Finding {
            condition: types::ADVISORY,
            state: State::Good,
            reason: Reason::Progressing,
            message: format!("cannot empty the trash: {}", self.kept.join("; ")).chars().take(1000).collect(),
        })
    }
}

impl Looks {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Look>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
