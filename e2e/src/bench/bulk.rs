//! Creating many Services: the operator, then a client that knows nothing and
//! sends the same applies and status writes.

use std::path::Path;
use std::process;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::apps::v1::Deployment;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::{Api, Client, ResourceExt};
use peristyle::commands::render::{self, input::Input};
use peristyle_crds::v1alpha1::Service;
use serde_json::{Value, json};

use super::load::{self, IN_FLIGHT};
use super::subject::{QUIET, Subject};
use super::usage;
use crate::control_plane::ControlPlane;
use crate::wait;

/// One turn of each side.
#[derive(Debug)]
pub struct Bulk {
    pub services: usize,
    pub operator: Duration,
    pub raw: Duration,
    pub reads: usize,
    pub writes: usize,
    pub children: usize,
    /// Seconds of CPU of the operator.
    pub cpu: f64,
    /// The same of the client, which waits for replies and does nothing else.
    pub raw_cpu: f64,
}

impl Bulk {
    pub fn rate(&self, took: Duration) -> f64 {
        count(self.services) / took.as_secs_f64()
    }

    pub fn per_service(&self, figure: usize) -> f64 {
        count(figure) / count(self.services)
    }
}

/// Both sides create `services` Services in a namespace of their own, and remove them.
pub async fn round(
    plane: &ControlPlane,
    client: &Client,
    program: &Path,
    round: usize,
    services: usize,
) -> Result<Bulk> {
    let (by_operator, by_raw) = (format!("operator-{round}"), format!("raw-{round}"));
    for namespace in [&by_operator, &by_raw] {
        super::create_namespace(client, namespace).await?;
    }
    let operator = Subject::start(program, plane).await?;
    operator.quiet_for(QUIET).await?;
    let (mark, cpu) = (operator.mark()?, operator.cpu()?);
    let took = load::create(client, &by_operator, 0..services, load::service).await?;
    operator.quiet_for(QUIET).await?;
    let requests = operator.requests(mark)?;
    let cpu = operator.cpu()? - cpu;
    operator.stop().await?;
    let sample: Api<Service> = Api::namespaced(client.clone(), &by_operator);
    let status = sample.get("s-0").await?.status.context("the operator wrote no status")?;
    remove(client, &by_operator).await?;

    let writes = requests.iter().filter(|request| request.is_write()).count();
    let reads = requests.len() - writes;
    let bodies = bodies(&by_raw, services)?;
    let children: usize = bodies.iter().map(|(_, children)| children.len()).sum();
    let status = json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": "Service", "status": status});
    let raw_cpu = usage::cpu(process::id())?;
    let raw = send(client, &by_raw, &bodies, &status, (writes - children).div_ceil(services)).await?;
    let raw_cpu = usage::cpu(process::id())? - raw_cpu;
    remove(client, &by_raw).await?;
    Ok(Bulk { services, operator: took, raw, reads, writes, children, cpu, raw_cpu })
}

/// Every Service with the children that the operator would apply.
fn bodies(namespace: &str, services: usize) -> Result<Vec<(Service, Vec<Value>)>> {
    let rendered = |index| {
        let service = load::service(namespace, index)?;
        let objects = render::render(&Input::default(), &service, 2)?.objects;
        anyhow::Ok((service, objects))
    };
    (0..services).map(rendered).collect()
}

/// Sends everything with as many requests in flight as is best, and says how long it took.
async fn send(
    client: &Client,
    namespace: &str,
    bodies: &[(Service, Vec<Value>)],
    status: &Value,
    status_writes: usize,
) -> Result<Duration> {
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    let services = &services;
    let params = PatchParams::apply("raw").force();
    let params = &params;
    let started = Instant::now();
    stream::iter(bodies)
        .map(|(service, children)| async move {
            let owner = services.create(&PostParams::default(), service).await?;
            for child in children {
                apply(client, &owner, child, params).await?;
            }
            for _ in 0..status_writes {
                services.patch_status(&owner.name_any(), params, &Patch::Apply(status)).await?;
            }
            anyhow::Ok(())
        })
        .buffer_unordered(IN_FLIGHT)
        .try_collect::<Vec<_>>()
        .await?;
    Ok(started.elapsed())
}

async fn apply(client: &Client, owner: &Service, child: &Value, params: &PatchParams) -> Result<()> {
    let mut object: DynamicObject = serde_json::from_value(child.clone())?;
    object.metadata.owner_references = Some(vec![serde_json::from_value(json!({
        "apiVersion": "peristyle.dev/v1alpha1", "kind": "Service", "controller": true,
        "name": owner.name_any(), "uid": owner.uid()
    }))?]);
    let types = object.types.clone().context("a child has no kind")?;
    let resource = ApiResource::from_gvk(&GroupVersionKind::try_from(types)?);
    let namespace = owner.namespace().unwrap_or_default();
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &resource);
    api.patch(&object.name_any(), params, &Patch::Apply(&object)).await?;
    Ok(())
}

/// Removes all Services and waits for the garbage collector.
async fn remove(client: &Client, namespace: &str) -> Result<()> {
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    services.delete_collection(&DeleteParams::background(), &ListParams::default()).await?;
    let deployments: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    wait::until("the children are gone", Duration::from_mins(5), async || {
        let left = deployments.list_metadata(&ListParams::default()).await?.items.len();
        ensure!(left == 0, "{left} Deployments are left");
        Ok(())
    })
    .await
}

/// A number of things as a figure.
pub fn count(things: usize) -> f64 {
    u32::try_from(things).map_or(f64::INFINITY, f64::from)
}
