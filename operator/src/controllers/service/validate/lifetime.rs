//! How pods stop and whether nodes may be drained at once.

use std::time::Duration;

use peristyle_crds::v1alpha1::{
    Service,
    service::{Disruption, RestartOn},
};

use super::{Invalid, probe::whole_seconds};

const GRACE: Duration = Duration::from_secs(30);
/// Longer than the time in which the edge and kube-proxy learn that a pod goes.
const SLEEP: Duration = Duration::from_secs(5);
const HOSTNAME: &str = "kubernetes.io/hostname";

/// How a pod stops, in seconds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Shutdown {
    /// From the order to stop until the kill.
    pub grace: i64,
    /// Before SIGTERM; 0 is none.
    pub sleep: i64,
}

pub(super) fn shutdown(service: &Service) -> Result<Shutdown, Invalid> {
    let spec = service.spec.shutdown.clone().unwrap_or_default();
    let grace = i64::from(whole_seconds(spec.grace.as_ref(), GRACE, "spec.shutdown.grace")?);
    let field = "spec.shutdown.preStop.sleep";
    let wanted = spec.pre_stop.and_then(|pre_stop| pre_stop.sleep);
    let is_off = wanted.as_ref().and_then(|sleep| sleep.get().ok()).is_some_and(|sleep| sleep.is_zero());
    let sleep = if is_off { 0 } else { i64::from(whole_seconds(wanted.as_ref(), SLEEP, field)?) };
    if sleep >= grace {
        return Err(Invalid {
            field: field.to_owned(),
            value: format!("{sleep}s"),
            problem: format!("is not shorter than spec.shutdown.grace, {grace}s"),
            remedy: "the container would be killed without SIGTERM; shorten the sleep or lengthen grace"
                .to_owned(),
        });
    }
    Ok(Shutdown { grace, sleep })
}

/// Node labels over which pods are spread.
pub(super) fn spread(service: &Service) -> Vec<String> {
    let keys = service.spec.availability.as_ref().map(|availability| availability.spread.clone());
    keys.filter(|keys| !keys.is_empty()).unwrap_or_else(|| vec![HOSTNAME.to_owned()])
}

/// Whether a drain of nodes takes one pod at a time. With a single pod it could never end.
pub(super) fn is_budgeted(service: &Service, replicas: i32) -> bool {
    let disruption = service.spec.availability.as_ref().and_then(|availability| availability.disruption);
    replicas >= 2 && disruption.unwrap_or_default() == Disruption::Auto
}

/// Whether pods are replaced when what they read changes.
#[must_use]
pub fn restarts_on_config(service: &Service) -> bool {
    service.spec.restart_on.unwrap_or_default() == RestartOn::Config
}
