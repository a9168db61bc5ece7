//! Probes with the defaults that the protocol of the ports suggests.

use std::time::Duration as StdDuration;

use k8s_openapi::{
    api::core::v1::{self as core, ExecAction, GRPCAction, HTTPGetAction, TCPSocketAction},
    apimachinery::pkg::util::intstr::IntOrString,
};
use peristyle_crds::{
    duration::Duration,
    v1alpha1::service::{Health, Port, Probe, ProbeMode, Protocol},
};

use super::Invalid;

/// The probes of the main container.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Probes {
    /// Until it succeeds the others do not run.
    pub startup: Option<core::Probe>,
    /// Whether the pod receives traffic.
    pub readiness: Option<core::Probe>,
    /// Whether the container goes on.
    pub liveness: Option<core::Probe>,
}

/// What a probe does, before its timing.
#[derive(Clone, Debug)]
enum Check {
    Grpc { port: i32, service: Option<String> },
    Http { port: i32, path: String },
    Tcp { port: i32 },
    Exec { command: Vec<String> },
}

/// Period and failures of a probe that does not say.
struct Timing {
    period: u64,
    failures: i32,
}

const STARTUP: Timing = Timing { period: 1, failures: 60 };
const READINESS: Timing = Timing { period: 5, failures: 3 };
const LIVENESS: Timing = Timing { period: 10, failures: 6 };
const TIMEOUT: StdDuration = StdDuration::from_secs(2);

pub(super) fn probes(health: Option<&Health>, ports: &[Port]) -> Result<Probes, Invalid> {
    let health = health.cloned().unwrap_or_default();
    let none = Probe::default();
    let field = |name: &str| format!("spec.health.{name}");
    let readiness = health.readiness.as_ref().unwrap_or(&none);
    let ready = check(readiness, ports, "/readyz", &field("readiness"))?;
    let liveness = health.liveness.as_ref().unwrap_or(&none);
    let live = check(liveness, ports, "/healthz", &field("liveness"))?;
    let startup = health.startup.as_ref().unwrap_or(&none);
    // The readiness check, unless another is named.
    let started = if names_a_check(startup) {
        check(startup, ports, "/readyz", &field("startup"))?
    } else {
        ready.clone()
    };
    Ok(Probes {
        startup: timed(startup, started, &STARTUP, &field("startup"))?,
        readiness: timed(readiness, ready, &READINESS, &field("readiness"))?,
        liveness: timed(liveness, live, &LIVENESS, &field("liveness"))?,
    })
}

fn names_a_check(probe: &Probe) -> bool {
    probe.grpc.is_some() || probe.http.is_some() || probe.tcp.is_some() || probe.exec.is_some()
}

fn check(probe: &Probe, ports: &[Port], path: &str, field: &str) -> Result<Option<Check>, Invalid> {
    let is_tcp = |port: &Port| port.protocol() != Protocol::Udp;
    if let Some(grpc) = &probe.grpc {
        let field = format!("{field}.grpc.port");
        return Ok(Some(Check::Grpc {
            port: find(ports, grpc.port.as_deref(), |p| p.protocol() == Protocol::Grpc, &field)?,
            service: grpc.service.clone(),
        }));
    }
    if let Some(http) = &probe.http {
        let field = format!("{field}.http.port");
        return Ok(Some(Check::Http {
            port: find(ports, http.port.as_deref(), |p| p.protocol() == Protocol::Http, &field)?,
            path: http.path.clone(),
        }));
    }
    if let Some(tcp) = &probe.tcp {
        let field = format!("{field}.tcp.port");
        return Ok(Some(Check::Tcp { port: find(ports, tcp.port.as_deref(), is_tcp, &field)? }));
    }
    if let Some(exec) = &probe.exec {
        return Ok(Some(Check::Exec { command: exec.command.clone() }));
    }
    let first = |protocol| ports.iter().find(|p| p.protocol() == protocol).map(|p| p.port);
    Ok(first(Protocol::Grpc)
        .map(|port| Check::Grpc { port, service: None })
        .or_else(|| first(Protocol::Http).map(|port| Check::Http { port, path: path.to_owned() }))
        .or_else(|| first(Protocol::Tcp).map(|port| Check::Tcp { port })))
}

/// The number of the port `name`, or of the first that suits.
fn find(
    ports: &[Port],
    name: Option<&str>,
    suits: impl Fn(&Port) -> bool,
    field: &str,
) -> Result<i32, Invalid> {
    let found = match name {
        Some(name) => ports.iter().find(|port| port.name == name),
        None => ports.iter().find(|port| suits(port)),
    };
    found.map(|port| port.port).ok_or_else(|| Invalid {
        field: field.to_owned(),
        value: name.map_or_else(|| "the default".to_owned(), |name| format!("{name:?}")),
        problem: "is no port of spec.ports that can be checked so".to_owned(),
        remedy: "name one of spec.ports".to_owned(),
    })
}

fn timed(
    probe: &Probe,
    check: Option<Check>,
    timing: &Timing,
    field: &str,
) -> Result<Option<core::Probe>, Invalid> {
    let (None, Some(check)) = (probe.mode.filter(|mode| *mode == ProbeMode::None), check) else {
        return Ok(None);
    };
    let period = StdDuration::from_secs(timing.period);
    let mut built = core::Probe {
        period_seconds: Some(whole_seconds(probe.period.as_ref(), period, &format!("{field}.period"))?),
        timeout_seconds: Some(whole_seconds(probe.timeout.as_ref(), TIMEOUT, &format!("{field}.timeout"))?),
        failure_threshold: Some(probe.failures.unwrap_or(timing.failures)),
        ..core::Probe::default()
    };
    match check {
        Check::Grpc { port, service } => built.grpc = Some(GRPCAction { port, service }),
        Check::Http { port, path } => {
            built.http_get = Some(HTTPGetAction {
                path: Some(path),
                port: IntOrString::Int(port),
                ..HTTPGetAction::default()
            });
        }
        Check::Tcp { port } => {
            built.tcp_socket =
                Some(TCPSocketAction { port: IntOrString::Int(port), ..TCPSocketAction::default() });
        }
        Check::Exec { command } => {
            built.exec = Some(ExecAction { command: Some(command) });
        }
    }
    Ok(Some(built))
}

/// A duration in whole seconds, at least one.
pub(super) fn whole_seconds(
    duration: Option<&Duration>,
    default: StdDuration,
    field: &str,
) -> Result<i32, Invalid> {
    let invalid = |value: String| Invalid {
        field: field.to_owned(),
        value,
        problem: "is not a number of whole seconds".to_owned(),
        remedy: "write for example 5s or 1m".to_owned(),
    };
    let length = match duration {
        None => default,
        Some(duration) => duration.get().map_err(|error| invalid(error.to_string()))?,
    };
    if length.subsec_nanos() != 0 || length.is_zero() {
        return Err(invalid(format!("{length:?}")));
    }
    i32::try_from(length.as_secs()).map_err(|_| invalid(format!("{length:?}")))
}
