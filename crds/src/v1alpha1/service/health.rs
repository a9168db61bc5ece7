//! Probes.

use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::Duration;

/// The three probes; each default is described on `spec.health`.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Health {
    /// Until it succeeds the other two do not run. Default: the readiness check, 60 times, 1 s apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub startup: Option<Probe>,
    /// While it fails the pod receives no traffic. Default: every 5 s, out after 3 failures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub readiness: Option<Probe>,
    /// When it fails the container is restarted. Default: every 10 s, after 6 failures.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub liveness: Option<Probe>,
}

/// A probe: at most one kind of check, or `mode: None`.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[x_kube(
    validation = ("[has(self.grpc), has(self.http), has(self.tcp), has(self.exec)].filter(x, x).size() <= 1",
        "set at most one of grpc, http, tcp and exec"),
    validation = ("!has(self.mode) || !(has(self.grpc) || has(self.http) || has(self.tcp) || has(self.exec))",
        "mode None switches the probe off; remove the check or the mode")
)]
pub struct Probe {
    /// `None` switches the probe off. Default: the probe runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<ProbeMode>,
    /// The gRPC health protocol. Default: the check that `spec.health` names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcCheck>,
    /// An HTTP GET that answers 200 to 399. Default: the check that `spec.health` names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpCheck>,
    /// A TCP connect. Default: the check that `spec.health` names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<TcpCheck>,
    /// A command in the container that exits 0. Default: the check that `spec.health` names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecCheck>,
    /// Time between two checks; whole seconds. Default: 1s for startup, 5s for readiness, 10s for liveness.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub period: Option<Duration>,
    /// How long one check may take; whole seconds. Default: 2s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// Failures in a row that count. Default: 60 for startup, 3 for readiness, 6 for liveness.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub failures: Option<i32>,
}

/// `None` switches the probe off. Default: the probe runs.
#[derive(Clone, Copy, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum ProbeMode {
    /// It does not.
    None,
}

/// gRPC health check.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct GrpcCheck {
    /// Name of the port. Default: the first GRPC port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    pub port: Option<String>,
    /// Service name in the request. Default: empty, the server as a whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub service: Option<String>,
}

/// HTTP check.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct HttpCheck {
    /// Name of the port. Default: the first HTTP port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    pub port: Option<String>,
    /// Path of the request.
    #[schemars(length(min = 1, max = 1024))]
    pub path: String,
}

/// TCP check.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct TcpCheck {
    /// Name of the port. Default: the first port that is not UDP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    pub port: Option<String>,
}

/// Command check.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
pub struct ExecCheck {
    /// Command and arguments; not run in a shell.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub command: Vec<String>,
}
