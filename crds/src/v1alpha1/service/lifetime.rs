//! When pods start, stop and are moved.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;

/// Whether pods are replaced when what they read at their start changes. Default: Config.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum RestartOn {
    /// When the content of a Secret or ConfigMap in `env` or `envFrom`, or the credentials of a
    /// database, change.
    #[default]
    Config,
    /// Only when the spec changes.
    Never,
}

/// How a pod stops.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Shutdown {
    /// Time from the order to stop until the pod is killed, with the sleep before; whole seconds. Default: 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace: Option<Duration>,
    /// What happens before the container receives SIGTERM. Default: a sleep of 5s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_stop: Option<PreStop>,
}

/// What happens before SIGTERM.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct PreStop {
    /// The pod goes on serving while the edge and kube-proxy learn that it goes; whole seconds,
    /// shorter than `grace`. `0s` switches it off. Default: 5s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sleep: Option<Duration>,
}

/// How the pods survive the maintenance and the loss of nodes.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Availability {
    /// Auto: with two pods or more, a PodDisruptionBudget lets nodes be drained one pod at a time.
    /// AlwaysAllow: no budget. Default: Auto.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disruption: Option<Disruption>,
    /// Node labels over whose values the pods are spread, as far as there is room. Default: `kubernetes.io/hostname`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 4),
        inner(
            length(min = 1, max = 253),
            regex(
                pattern = r"^([a-z0-9]([-.a-z0-9]{0,188}[a-z0-9])?/)?[A-Za-z0-9]([-_.A-Za-z0-9]{0,61}[A-Za-z0-9])?$"
            )
        )
    )]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub spread: Vec<String>,
    /// PriorityClass of the pods. Default: the cluster's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253), regex(pattern = r"^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$"))]
    pub priority_class_name: Option<String>,
}

/// Whether a drain of nodes takes one pod at a time. Default: Auto.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum Disruption {
    /// A PodDisruptionBudget when there are two pods or more.
    #[default]
    Auto,
    /// No PodDisruptionBudget.
    AlwaysAllow,
}
