//! Models and tuples into Keto.

use std::{collections::BTreeSet, time::Duration};

use peristyle_crds::{
    condition::Reason,
    v1alpha1::{AuthClass, auth_policy::Tuple},
};
use tokio::time::Instant;

use super::{
    Error,
    config_maps::{self, Slot},
    pods,
    progress::{Brought, Checked, Progress},
};
use crate::{
    auth::{
        model,
        plan::{Plan, sources},
        relations::Refusals,
        world::World,
    },
    context::Context,
    external::{http, keto::Keto},
    metadata::{Owner, is_controlled_by},
};

/// Key of the record of tuples in its ConfigMap.
const RECORD_KEY: &str = "tuples.json";

/// Bound on all that is asked of Keto in one pass, which has a bound of its own.
const PATIENCE: Duration = Duration::from_secs(60);

/// How Keto stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Standing {
    /// It has every namespace and tuple.
    Current(BTreeSet<Tuple>),
    /// It has loaded other namespaces than the file holds.
    Loading,
    /// It does not answer as it should.
    Unavailable(String),
}

impl Standing {
    /// Why rules that need Keto may not go live.
    pub fn blocks(&self, needs_keto: bool) -> Option<(Reason, String)> {
        let problem = match self {
            Self::Current(_) => return None,
            Self::Loading => "Keto has not loaded the namespaces yet".to_owned(),
            Self::Unavailable(problem) => format!("Keto: {problem}"),
        };
        needs_keto.then_some((Reason::KetoUnavailable, problem))
    }

    /// How many of `wanted` Keto has, if that is known.
    pub fn applied(&self, wanted: Option<&BTreeSet<Tuple>>) -> Option<usize> {
        match self {
            Self::Current(tuples) => Some(wanted.map_or(0, |wanted| wanted.intersection(tuples).count())),
            Self::Loading | Self::Unavailable(_) => None,
        }
    }
}

/// Why this step ends early.
enum Stop {
    /// The cluster refused.
    Cluster(Error),
    /// Keto failed.
    Keto(http::Error),
    /// Keto is not there yet.
    Loading,
    /// Keto has no pod.
    Lost(String),
    /// Keto took too long in all.
    Late,
}

impl From<Error> for Stop {
    fn from(error: Error) -> Self {
        Self::Cluster(error)
    }
}

impl From<http::Error> for Stop {
    fn from(error: http::Error) -> Self {
        Self::Keto(error)
    }
}

/// What is published, and how far.
pub struct Published {
    /// The plan without what Keto refused.
    pub plan: Plan,
    /// What Keto refused.
    pub refusals: Refusals,
    /// How Keto stands.
    pub keto: Standing,
    /// What the cluster refused. It keeps relations back, not the rules.
    pub failed: Option<Error>,
}

/// Brings models and tuples to Keto. Its absence stops neither the rules nor
/// what is live: without it every relation is refused.
pub async fn publish(
    ctx: &Context,
    keto: &Keto,
    owner: &Owner,
    class: &AuthClass,
    world: &World<'_>,
    progress: &mut Progress,
) -> Published {
    let record = format!("{}-tuples", owner.name);
    let step = Step { ctx, keto, owner, class, world, record };
    let deadline = Instant::now() + PATIENCE;
    let checked = match step.lost() {
        None => within(deadline, step.check(progress)).await,
        Some(problem) => {
            // It may come back empty.
            progress.relations = None;
            Err(Stop::Lost(problem))
        }
    };
    let (plan, refusals, early) = match checked {
        Ok((plan, refusals)) => {
            let early = within(deadline, Box::pin(step.bring(progress, &plan))).await.err();
            (plan, refusals, early)
        }
        Err(early) => {
            let refusals = progress.checked.as_ref().map(|c| c.refusals.clone()).unwrap_or_default();
            let early = step.keep(progress).await.err().map_or(early, Stop::Cluster);
            (Plan::new(world, class, &refusals), refusals, Some(early))
        }
    };
    let (keto, failed) = match early {
        None => (Standing::Current(plan.all_tuples()), None),
        Some(Stop::Loading) => (Standing::Loading, None),
        Some(Stop::Lost(problem)) => (Standing::Unavailable(problem), None),
        Some(Stop::Late) => {
            (Standing::Unavailable(format!("not done within {} s", PATIENCE.as_secs())), None)
        }
        Some(Stop::Keto(error)) => (Standing::Unavailable(error.to_string()), None),
        Some(Stop::Cluster(error)) => (Standing::Unavailable(error.to_string()), Some(error)),
    };
    Published { plan, refusals, keto, failed }
}

async fn within<T>(deadline: Instant, work: impl Future<Output = Result<T, Stop>>) -> Result<T, Stop> {
    tokio::time::timeout_at(deadline, work).await.unwrap_or(Err(Stop::Late))
}

struct Step<'a> {
    ctx: &'a Context,
    keto: &'a Keto,
    owner: &'a Owner,
    class: &'a AuthClass,
    world: &'a World<'a>,
    /// Name of the ConfigMap that says which tuples are ours.
    record: String,
}

impl Step<'_> {
    fn slot(&self) -> Slot<'_> {
        let config_map = &self.class.spec.keto.namespaces_config_map;
        Slot { name: &config_map.name, key: &config_map.key, is_kept: false }
    }

    /// Tuples stay in Keto when the class goes. Without the record of them the
    /// next class of that name could not take back what was revoked meanwhile.
    fn record_slot(&self) -> Slot<'_> {
        Slot { name: &self.record, key: RECORD_KEY, is_kept: true }
    }

    /// The core Service of Keto that has no ready pod any more, in words. Of one
    /// outside of the operator's namespace nothing is seen.
    fn lost(&self) -> Option<String> {
        let slices = self.ctx.stores.system_endpoint_slices.store().state();
        pods::services_of(&self.class.spec.keto).into_iter().find_map(|service| {
            let is_known = slices.iter().any(|slice| pods::is_of(slice, &service));
            (is_known && pods::ready(&slices, &service).is_empty())
                .then(|| format!("no ready pod behind core Service {service}"))
        })
    }

    /// Has Keto check all models together, and leaves out what it refuses: one
    /// model that does not parse would keep the whole file from being loaded.
    async fn check(&self, progress: &mut Progress) -> Result<(Plan, Refusals), Stop> {
        let sources = sources(self.world, self.class);
        if let Some(checked) = progress.checked.as_ref().filter(|c| c.sources == sources) {
            let refusals = checked.refusals.clone();
            return Ok((Plan::new(self.world, self.class, &refusals), refusals));
        }
        let mut refusals = Refusals::new();
        loop {
            let plan = Plan::new(self.world, self.class, &refusals);
            let file = plan.namespaces_file();
            let base = &self.class.spec.keto.opl_url;
            let errors = if plan.models.is_empty() {
                Vec::new()
            } else {
                self.keto.check_syntax(base, &file.text).await?
            };
            let Some(error) = errors.first() else {
                progress.checked = Some(Checked { sources, refusals: refusals.clone() });
                return Ok((plan, refusals));
            };
            // Nobody's line would be a fault of ours; the youngest model is then
            // taken for it, so that the loop ends and the others are published.
            let author = plan.author(error.start.line).map(|(key, line)| (key.clone(), line));
            let youngest = plan.models.last().map(|(key, _)| (key.clone(), 0));
            let Some((key, line)) = author.or(youngest) else {
                return Ok((plan, refusals));
            };
            let source = sources.iter().find(|(k, _)| *k == key).map(|(_, source)| source.clone());
            let why = format!("line {line} after imports: {}", error.message);
            refusals.insert(key, (source.unwrap_or_default(), why));
        }
    }

    /// Keto's pods need a file to start with, even while nothing can be checked.
    async fn baseline(&self, progress: &mut Progress) -> Result<(), Error> {
        let slot = self.slot();
        let there = self.ctx.stores.config_maps.get(&self.owner.namespace, slot.name);
        if there.is_some_and(|map| is_controlled_by(&*map, &self.owner.reference.uid)) {
            return Ok(());
        }
        let file = model::file([]).0;
        let found = config_maps::read(self.ctx, self.owner, progress, &slot).await?;
        if found.content(&slot).is_none() {
            config_maps::replace(self.ctx, self.owner, progress, &slot, found, &file.text).await?;
        }
        Ok(())
    }

    /// Restores what was edited by hand; costs nothing when nothing was.
    async fn keep(&self, progress: &mut Progress) -> Result<(), Error> {
        self.baseline(progress).await?;
        config_maps::restore(self.ctx, self.owner, progress, &self.slot()).await?;
        config_maps::restore(self.ctx, self.owner, progress, &self.record_slot()).await
    }

    async fn bring(&self, progress: &mut Progress, plan: &Plan) -> Result<(), Stop> {
        let file = plan.namespaces_file();
        let wanted = plan.all_tuples();
        let keto = &self.class.spec.keto;
        if progress.relations.as_ref().is_some_and(|brought| brought.is_still(keto, &file, &wanted)) {
            return Ok(self.keep(progress).await?);
        }
        progress.relations = None;
        let (slot, record_slot) = (self.slot(), self.record_slot());
        self.baseline(progress).await?;
        let (read, write) = (&keto.read_url, &keto.write_url);
        let mut recorded = self.record(progress, &record_slot).await?;

        // Tuples of a namespace can only be deleted while Keto knows it.
        let visible = self.keto.namespaces(read).await?;
        let leaving: BTreeSet<Tuple> = recorded
            .difference(&wanted)
            .filter(|tuple| visible.contains(&tuple.namespace) && !file.namespaces.contains(&tuple.namespace))
            .cloned()
            .collect();
        if !leaving.is_empty() {
            let stored = self.stored(&leaving).await?;
            let delete: BTreeSet<Tuple> = leaving.intersection(&stored).cloned().collect();
            if !delete.is_empty() {
                self.keto.patch(write, &BTreeSet::new(), &delete).await?;
            }
            recorded.retain(|tuple| !leaving.contains(tuple));
            self.write_record(progress, &record_slot, &recorded).await?;
        }
        config_maps::write(self.ctx, self.owner, progress, &slot, &file.text).await?;
        if self.keto.namespaces(read).await? != file.namespaces {
            return Err(Stop::Loading);
        }

        // Intent before deed: after a crash nothing is in Keto that no record names.
        let ours: BTreeSet<Tuple> = recorded.union(&wanted).cloned().collect();
        self.write_record(progress, &record_slot, &ours).await?;
        let (known, unknown): (BTreeSet<Tuple>, BTreeSet<Tuple>) =
            ours.into_iter().partition(|tuple| file.namespaces.contains(&tuple.namespace));
        let Difference { insert, delete } = difference(&known, &wanted, &self.stored(&known).await?);
        if !(insert.is_empty() && delete.is_empty()) {
            self.keto.patch(write, &insert, &delete).await?;
        }
        // What could not be deleted would grant again if its namespace came back.
        let record: BTreeSet<Tuple> = wanted.union(&unknown).cloned().collect();
        self.write_record(progress, &record_slot, &record).await?;
        progress.relations =
            Some(Brought { keto: keto.clone(), seen: std::time::Instant::now(), file, tuples: wanted });
        Ok(())
    }

    /// Those of `tuples` that Keto stores.
    async fn stored(&self, tuples: &BTreeSet<Tuple>) -> Result<BTreeSet<Tuple>, http::Error> {
        let namespaces: BTreeSet<&str> = tuples.iter().map(|tuple| tuple.namespace.as_str()).collect();
        let mut stored = BTreeSet::new();
        for namespace in namespaces {
            stored.extend(self.keto.stored(&self.class.spec.keto.read_url, namespace, tuples).await?);
        }
        Ok(stored)
    }

    async fn record(&self, progress: &Progress, slot: &Slot<'_>) -> Result<BTreeSet<Tuple>, Error> {
        let found = config_maps::read(self.ctx, self.owner, progress, slot).await?;
        found.content(slot).map_or(Ok(BTreeSet::new()), |text| {
            serde_json::from_str(text).map_err(|source| Error::Record { name: slot.name.to_owned(), source })
        })
    }

    async fn write_record(
        &self,
        progress: &mut Progress,
        slot: &Slot<'_>,
        tuples: &BTreeSet<Tuple>,
    ) -> Result<(), Error> {
        let text = serde_json::to_string(tuples)
            .map_err(|source| Error::Record { name: slot.name.to_owned(), source })?;
        config_maps::write(self.ctx, self.owner, progress, slot, &text).await?;
        Ok(())
    }
}

/// What a PATCH must do. A tuple is never in both: Keto runs the inserts
/// first, and a tuple that is deleted after its insertion is gone.
#[derive(Debug, Eq, PartialEq)]
struct Difference {
    insert: BTreeSet<Tuple>,
    delete: BTreeSet<Tuple>,
}

/// From what is `stored` to what is `wanted`, leaving alone what is not among
/// `ours`.
fn difference(ours: &BTreeSet<Tuple>, wanted: &BTreeSet<Tuple>, stored: &BTreeSet<Tuple>) -> Difference {
    Difference {
        insert: wanted.difference(stored).cloned().collect(),
        delete: ours.difference(wanted).filter(|tuple| stored.contains(*tuple)).cloned().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(object: &str) -> Tuple {
        Tuple {
            namespace: "Orders".to_owned(),
            object: object.to_owned(),
            relation: "readers".to_owned(),
            subject: Some("alice".to_owned()),
            subject_set: None,
        }
    }

    fn set(objects: &[&str]) -> BTreeSet<Tuple> {
        objects.iter().map(|object| tuple(object)).collect()
    }

    #[test]
    fn only_our_own_tuples_are_deleted_and_none_is_written_twice() {
        let found = difference(
            &set(&["kept", "gone", "never-arrived", "new"]),
            &set(&["kept", "new"]),
            &set(&["kept", "gone", "of-the-app"]),
        );
        assert_eq!(found.insert, set(&["new"]));
        assert_eq!(found.delete, set(&["gone"]));
        assert!(found.insert.is_disjoint(&found.delete));
    }
}
