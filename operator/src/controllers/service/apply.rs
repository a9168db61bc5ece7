//! Writing the children of a Service.

use std::sync::Arc;

use k8s_openapi::api::{batch::v1 as batch, networking::v1::NetworkPolicy};
use kube::{Api, ResourceExt, core::PartialObjectMeta};
use peristyle_crds::{
    names::HOOK_LABEL,
    v1alpha1::{Service, service::InventoryItem},
};

use super::{
    build::{
        Desired, Workload,
        network::{EdgeErrorsBackend, edge_errors},
    },
    observe::EdgeErrors,
};
use crate::{
    apply::{Child, Error, Live, Namespaced},
    context::Context,
    edge::traefik::Edge,
    metadata::{Owner, is_controlled_by, is_ignored},
    retry::bounded,
    stores::views::{Deployment, Job},
    watch::{Cached, Watched},
};

/// Finished Jobs that are kept besides the present ones.
const KEPT_JOBS: usize = 3;

/// What is there after an apply.
#[derive(Clone, Debug)]
pub struct Applied {
    /// The Deployment, if there is one.
    pub deployment: Option<Arc<Deployment>>,
    /// How far the hooks are.
    pub hooks: HookState,
    /// Children that exist, sorted.
    pub inventory: Vec<InventoryItem>,
    /// Children that are left alone because somebody asked for it.
    pub ignored: Vec<String>,
    /// Children that are left to another manager for a while, with who it is.
    pub foreign: Vec<String>,
}

/// How far the hooks are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum HookState {
    /// Not looked at: something that the pods need is missing.
    Held,
    /// One runs.
    Running {
        /// Name of the hook.
        hook: String,
        /// Name of its Job.
        job: String,
    },
    /// One failed.
    Failed {
        /// Name of the hook.
        hook: String,
        /// Name of its Job.
        job: String,
        /// What Kubernetes says.
        reason: String,
    },
    /// All have succeeded.
    Done,
}

/// Deletes the routes that may let in more than `edge` would. Done before
/// anything that can fail, so that a broken spec never keeps a route open.
///
/// # Errors
/// When the API server refuses.
pub async fn withdraw(ctx: &Context, owner: &Owner, edge: &Edge) -> Result<(), Error> {
    for route in mine(&ctx.stores.ingress_routes, owner) {
        if edge.is_stricter_than(&route) {
            ctx.applier.delete(&*route, &owner.reference.uid).await?;
        }
    }
    Ok(())
}

/// Applies what refuses, where something of the Service is served: what a new
/// spec closes is closed before anything else of it can fail.
///
/// # Errors
/// When it cannot be written.
pub async fn fence(
    ctx: &Context,
    owner: &Owner,
    edge: &Edge,
    pods: Option<&EdgeErrors>,
) -> Result<(), Error> {
    if edge.fences.is_empty() || mine(&ctx.stores.ingress_routes, owner).is_empty() {
        return Ok(());
    }
    let mut writer = Writer::new(ctx, owner);
    writer.edge_errors(&edge_errors(owner, pods)).await?;
    for fence in &edge.fences {
        writer.apply(&ctx.stores.ingress_routes, fence).await?;
    }
    Ok(())
}

/// Applies what protects the pods and nothing else.
///
/// # Errors
/// When it cannot be written.
pub async fn protect(ctx: &Context, owner: &Owner, policy: &NetworkPolicy) -> Result<(), Error> {
    Writer::new(ctx, owner).apply(&ctx.stores.network_policies, policy).await?;
    Ok(())
}

/// Applies every child in an order in which nothing refers to what is not
/// there yet, then deletes what is no longer rendered.
///
/// # Errors
/// At the first child that cannot be written.
pub async fn apply(
    ctx: &Context,
    owner: &Owner,
    desired: &Desired,
    has_traefik: bool,
) -> Result<Applied, Error> {
    let stores = &ctx.stores;
    let mut writer = Writer::new(ctx, owner);
    let Desired {
        network_policy,
        service_account,
        core_service,
        edge_errors,
        disruption_budget,
        workload,
        edge,
    } = desired;
    // Before there are pods that it protects.
    if let Some(policy) = network_policy {
        writer.apply(&stores.network_policies, policy).await?;
    }
    writer.apply_unless_ignored(&stores.service_accounts, service_account).await?;
    writer.apply_unless_ignored(&stores.core_services, core_service).await?;
    if let Some(backend) = edge_errors {
        writer.edge_errors(backend).await?;
    }
    if let Some(budget) = disruption_budget {
        writer.apply_unless_ignored(&stores.disruption_budgets, budget).await?;
    }
    let (hooks, deployment) = writer.workload(workload.as_ref()).await?;
    for transport in &edge.transports {
        writer.apply(&stores.servers_transports, transport).await?;
    }
    for middleware in &edge.middlewares {
        writer.apply(&stores.middlewares, middleware).await?;
    }
    for route in edge.routes() {
        writer.apply(&stores.ingress_routes, route).await?;
    }
    writer.prune(&stores.network_policies).await?;
    writer.prune_unless_ignored(&stores.disruption_budgets).await?;
    // Routes that are not in the caches yet may still lead to what is not rendered
    // without them: a router that loses its middleware serves nobody.
    if has_traefik {
        // They let nobody in by themselves, and a restart must not make them twice.
        if !edge.is_provisional {
            writer.prune(&stores.middlewares).await?;
            writer.prune(&stores.servers_transports).await?;
        }
        writer.prune(&stores.endpoint_slices).await?;
        writer.prune(&stores.core_services).await?;
    }
    writer.prune_jobs().await?;
    writer.inventory.sort();
    Ok(Applied {
        deployment,
        hooks,
        inventory: writer.inventory,
        ignored: writer.ignored,
        foreign: writer.foreign,
    })
}

struct Writer<'a> {
    ctx: &'a Context,
    owner: &'a Owner,
    /// Whether the API server still had the owner in this pass.
    is_owner_seen: bool,
    inventory: Vec<InventoryItem>,
    ignored: Vec<String>,
    foreign: Vec<String>,
}

impl<'a> Writer<'a> {
    fn new(ctx: &'a Context, owner: &'a Owner) -> Self {
        Self {
            ctx,
            owner,
            is_owner_seen: false,
            inventory: Vec::new(),
            ignored: Vec::new(),
            foreign: Vec::new(),
        }
    }

    /// Returns the object as it is then.
    async fn apply<K: Child, L: Live<K>>(
        &mut self,
        cache: &Watched<L>,
        desired: &K,
    ) -> Result<Option<Arc<L>>, Error> {
        let live = cache.get(&desired.namespace().unwrap_or_default(), &desired.name_any());
        if live.is_none() {
            self.owner_is_there().await?;
        }
        self.exists(desired);
        match self.ctx.applier.apply(live.as_deref(), desired).await {
            // The other children do not wait for the end of the dispute.
            Err(dispute @ Error::ForeignManager { .. }) if live.is_some() => {
                self.foreign.push(dispute.to_string());
                Ok(live)
            }
            answer => Ok(answer?.map(Arc::new).or(live)),
        }
    }

    async fn edge_errors(&mut self, backend: &EdgeErrorsBackend) -> Result<(), Error> {
        let EdgeErrorsBackend { service, endpoint_slice } = backend;
        self.apply(&self.ctx.stores.core_services, service).await?;
        if let Some(slice) = endpoint_slice {
            self.apply(&self.ctx.stores.endpoint_slices, slice).await?;
        }
        Ok(())
    }

    /// Children of a deleted owner vanish from the caches before the owner may:
    /// asked once before the first creation, so that none of them, above all no
    /// hook, comes back after the end.
    async fn owner_is_there(&mut self) -> Result<(), Error> {
        let Owner { namespace, name, reference, .. } = self.owner;
        // One of which nothing was reported yet had no children that could come back.
        let is_new = |owner: &Service| {
            let is_reported = owner.status.as_ref().is_some_and(|status| !status.conditions.is_empty());
            owner.uid().as_ref() == Some(&reference.uid) && !is_reported
        };
        let cached = self.ctx.stores.services.get(namespace, name);
        if self.is_owner_seen || cached.is_some_and(|owner| is_new(&owner)) {
            return Ok(());
        }
        let services: Api<Service> = Api::namespaced(self.ctx.client.clone(), namespace);
        let found = bounded(services.get_metadata_opt(name))
            .await
            .map_err(|error| Error::request::<Service>("get", name, error))?;
        let is_there = |found: &PartialObjectMeta<Service>| {
            found.metadata.uid.as_ref() == Some(&reference.uid) && found.metadata.deletion_timestamp.is_none()
        };
        if !found.as_ref().is_some_and(is_there) {
            return Err(Error::OwnerGone { kind: reference.kind.clone(), name: name.clone() });
        }
        self.is_owner_seen = true;
        Ok(())
    }

    /// For children that protect nothing: a team may take them into its own hands.
    async fn apply_unless_ignored<K: Child, L: Live<K>>(
        &mut self,
        cache: &Watched<L>,
        desired: &K,
    ) -> Result<(), Error> {
        let uid = desired.owner_references().first().map(|owner| owner.uid.clone()).unwrap_or_default();
        let live = cache.get(&desired.namespace().unwrap_or_default(), &desired.name_any());
        match live.filter(|live| is_ignored(&**live) && is_controlled_by(&**live, &uid)) {
            Some(live) => self.ignore(&*live),
            None => drop(self.apply(cache, desired).await?),
        }
        Ok(())
    }

    fn ignore<K: Cached>(&mut self, live: &K) {
        self.exists(live);
        self.ignored.push(format!("{} {}", K::kind(&()), live.name_any()));
    }

    fn exists<K: Cached>(&mut self, object: &K) {
        self.inventory.push(InventoryItem {
            api_version: K::api_version(&()).into_owned(),
            kind: K::kind(&()).into_owned(),
            name: object.name_any(),
        });
    }

    /// The hooks one after the other, then the Deployment. Until then a
    /// Deployment that exists is left as it is.
    async fn workload(
        &mut self,
        workload: Option<&Workload>,
    ) -> Result<(HookState, Option<Arc<Deployment>>), Error> {
        let owner = self.owner;
        let cache = &self.ctx.stores.deployments;
        let running = cache
            .get(&owner.namespace, &owner.name)
            .filter(|live| is_controlled_by(&**live, &owner.reference.uid));
        // A hook prepares what the Deployment is about to become.
        if let Some(running) = running.as_ref().filter(|live| is_ignored(&***live)) {
            self.ignore(&**running);
            return Ok((HookState::Done, Some(running.clone())));
        }
        let state = match workload {
            None => HookState::Held,
            Some(workload) => self.hooks(&workload.hooks).await?,
        };
        if let (HookState::Done, Some(workload)) = (&state, workload) {
            return Ok((state, self.apply(cache, &workload.deployment).await?));
        }
        if let Some(running) = &running {
            self.exists(&**running);
        }
        Ok((state, running))
    }

    async fn hooks(&mut self, jobs: &[batch::Job]) -> Result<HookState, Error> {
        let owner = self.owner;
        for job in jobs {
            let name = job.name_any();
            let hook = job.labels().get(HOOK_LABEL).cloned().unwrap_or_default();
            // A Job never changes: one that exists is the one that was meant.
            let live = self
                .ctx
                .stores
                .jobs
                .get(&owner.namespace, &name)
                .filter(|live| is_controlled_by(&**live, &owner.reference.uid));
            let Some(live) = live else {
                self.apply(&self.ctx.stores.jobs, job).await?;
                return Ok(HookState::Running { hook, job: name });
            };
            self.exists(&*live);
            match progress(&live) {
                Progress::Succeeded => {}
                Progress::Running => return Ok(HookState::Running { hook, job: name }),
                Progress::Failed(reason) => {
                    return Ok(HookState::Failed { hook, job: name, reason });
                }
            }
        }
        Ok(HookState::Done)
    }

    async fn prune<K: Namespaced>(&self, cache: &Watched<K>) -> Result<(), Error> {
        let kind = K::kind(&());
        for object in mine(cache, self.owner) {
            let is_rendered = |item: &InventoryItem| item.kind == kind && item.name == object.name_any();
            if !self.inventory.iter().any(is_rendered) {
                self.ctx.applier.delete(&*object, &self.owner.reference.uid).await?;
            }
        }
        Ok(())
    }

    async fn prune_unless_ignored<K: Namespaced>(&mut self, cache: &Watched<K>) -> Result<(), Error> {
        for object in mine(cache, self.owner).iter().filter(|object| is_ignored(&***object)) {
            if !self.inventory.iter().any(|item| item.kind == K::kind(&()) && item.name == object.name_any())
            {
                self.ignore(&**object);
            }
        }
        self.prune(cache).await
    }

    /// Deletes finished Jobs of earlier images, all but the latest few.
    async fn prune_jobs(&self) -> Result<(), Error> {
        let mut finished: Vec<_> = mine(&self.ctx.stores.jobs, self.owner)
            .into_iter()
            .filter(|job| !matches!(progress(job), Progress::Running))
            .filter(|job| !self.inventory.iter().any(|i| i.kind == "Job" && i.name == job.name_any()))
            .collect();
        finished.sort_by_key(|job| std::cmp::Reverse(job.creation_timestamp().map(|time| time.0)));
        for job in finished.iter().skip(KEPT_JOBS) {
            self.ctx.applier.delete(&**job, &self.owner.reference.uid).await?;
        }
        Ok(())
    }
}

/// Children of `owner` in the cache.
fn mine<K: Cached>(cache: &Watched<K>, owner: &Owner) -> Vec<Arc<K>> {
    cache.controlled_by(&owner.reference.uid)
}

enum Progress {
    Running,
    Succeeded,
    Failed(String),
}

fn progress(job: &Job) -> Progress {
    let conditions = job.status.conditions.iter().flatten();
    for condition in conditions.filter(|condition| condition.status == "True") {
        match condition.type_.as_str() {
            "Complete" => return Progress::Succeeded,
            "Failed" => return Progress::Failed(condition.reason.clone().unwrap_or_default()),
            _ => {}
        }
    }
    Progress::Running
}
