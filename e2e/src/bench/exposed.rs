//! What routes cost: Services with one, beside few others and beside many.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use kube::Client;

use super::load;
use super::subject::{QUIET, Subject};
use crate::control_plane::ControlPlane;
use crate::unasked_edge;

const NAMESPACE: &str = "exposed";

/// One batch of exposed Services.
#[derive(Debug)]
pub struct Exposed {
    /// How many there were before.
    pub beside: usize,
    /// How many were created.
    pub services: usize,
    pub took: Duration,
    pub requests: usize,
    /// Seconds of CPU of the operator.
    pub cpu: f64,
}

/// Creates exposed Services until there are as many as each of `counts`.
pub async fn measure(
    plane: &ControlPlane,
    client: &Client,
    program: &Path,
    counts: [usize; 2],
) -> Result<Vec<Exposed>> {
    super::create_namespace(client, NAMESPACE).await?;
    unasked_edge::create(client).await?;
    let operator = Subject::start(program, plane).await?;
    let mut batches = Vec::new();
    let mut beside = 0;
    for count in counts {
        operator.quiet_for(QUIET).await?;
        let (mark, cpu) = (operator.mark()?, operator.cpu()?);
        let took = load::create(client, NAMESPACE, beside..count, load::exposed).await?;
        operator.quiet_for(QUIET).await?;
        let (requests, cpu) = (operator.requests(mark)?.len(), operator.cpu()? - cpu);
        batches.push(Exposed { beside, services: count - beside, took, requests, cpu });
        beside = count;
    }
    operator.stop().await?;
    Ok(batches)
}
