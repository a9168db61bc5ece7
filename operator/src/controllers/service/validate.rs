//! From a spec and what was observed to what can be built. Pure.

pub mod access;
pub mod env;
pub mod hook;
pub mod lifetime;
pub mod probe;
pub mod problems;

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::EnvVar;
use peristyle_crds::{
    condition::{Reason, types},
    v1alpha1::{
        Service,
        database::RoleName,
        service::{BindingRole, DatabaseBinding, Port, Problem, Protocol},
    },
};

use self::{access::Peers, hook::ValidHook, lifetime::Shutdown, probe::Probes};
use super::observe::Observed;
use crate::{
    conditions::{Finding, State},
    retry::{Class, Classified},
};

/// Port of a Service that names none.
pub const DEFAULT_PORT: i32 = 50051;

/// A field of the spec that contradicts another.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{field}: {value} {problem}; {remedy}")]
pub struct Invalid {
    /// Path of the field.
    pub field: String,
    /// What stands there.
    pub value: String,
    /// What is wrong with it.
    pub problem: String,
    /// What to do.
    pub remedy: String,
}

impl Classified for Invalid {
    fn class(&self) -> Class {
        Class::Terminal
    }

    fn reason(&self) -> Reason {
        Reason::Invalid
    }
}

/// What can be built.
#[derive(Clone, Debug)]
pub struct Validated {
    /// Ports, at least one.
    pub ports: Vec<Port>,
    /// Number of pods.
    pub replicas: i32,
    /// The workload, unless something that it needs is not there yet.
    pub workload: Option<Workload>,
    /// What is not there yet.
    pub holds: Vec<Finding>,
    /// How the databases stand.
    pub databases: Finding,
    /// Who may connect to and from the pods; `None`: everything may.
    pub peers: Option<Peers>,
    /// Whether those that are called agree.
    pub access: Finding,
    /// How a pod stops.
    pub shutdown: Shutdown,
    /// Node labels over which pods are spread.
    pub spread: Vec<String>,
    /// Whether a drain of nodes takes one pod at a time.
    pub is_budgeted: bool,
    /// What is accepted although it is odd.
    pub problems: Vec<Problem>,
}

/// Everything about the pods that is not copied from the spec.
#[derive(Clone, Debug)]
pub struct Workload {
    /// Variables of the main container, in order of definition.
    pub env: Vec<EnvVar>,
    /// Its probes.
    pub probes: Probes,
    /// What runs before, in order.
    pub hooks: Vec<ValidHook>,
    /// Secrets of the databases that the pods read.
    pub database_secrets: Vec<String>,
}

/// The ports with their default.
#[must_use]
pub fn ports(service: &Service) -> Vec<Port> {
    if !service.spec.ports.is_empty() {
        return service.spec.ports.clone();
    }
    vec![Port { name: "grpc".to_owned(), port: DEFAULT_PORT, protocol: None, service_port: None }]
}

/// Checks what the schema cannot.
///
/// # Errors
/// [`Invalid`], with the field, its value and the remedy.
pub fn validate(service: &Service, observed: &Observed) -> Result<Validated, Invalid> {
    let spec = &service.spec;
    let ports = ports(service);
    check_ports(&ports)?;
    let probes = probe::probes(spec.health.as_ref(), &ports)?;
    let (databases, secrets) = databases(service, observed);
    let mut holds: Vec<Finding> = observed.missing.iter().map(missing).collect();
    let env = env::build(service, observed, &ports, &secrets, &mut holds)?;
    let hooks = hook::hooks(service, &env, &secrets)?;
    if databases.state == State::Waiting {
        holds.push(databases.clone());
    }
    let shutdown = lifetime::shutdown(service)?;
    let mut problems = problems::of_spec(service);
    problems.extend(problems::of_tokens(&observed.tokens));
    let (peers, access) = access::access(service, observed, &ports, &mut problems);
    let replicas = spec.replicas.unwrap_or(observed.default_replicas);
    let database_secrets = secrets.into_values().map(|bound| bound.workload).collect();
    Ok(Validated {
        replicas,
        workload: holds.is_empty().then_some(Workload { env, probes, hooks, database_secrets }),
        ports,
        holds,
        databases,
        peers,
        access,
        shutdown,
        spread: lifetime::spread(service),
        is_budgeted: lifetime::is_budgeted(service, replicas),
        problems,
    })
}

fn missing(reference: &String) -> Finding {
    Finding::waiting(
        types::WORKLOAD_AVAILABLE,
        Reason::ReferenceMissing,
        format!(
            "{reference} does not exist; create it, or change the spec.env or spec.envFrom that names it"
        ),
    )
}

fn check_ports(ports: &[Port]) -> Result<(), Invalid> {
    let is_udp = |port: &Port| port.protocol() == Protocol::Udp;
    for (index, port) in ports.iter().enumerate() {
        for earlier in ports[..index].iter().filter(|p| is_udp(p) == is_udp(port)) {
            if earlier.port == port.port {
                return Err(Invalid {
                    field: format!("spec.ports[{index}].port"),
                    value: port.port.to_string(),
                    problem: format!("is also the port of {:?}", earlier.name),
                    remedy: "a container listens once on a port; remove one of the two".to_owned(),
                });
            }
            if earlier.service_port() == port.service_port() {
                return Err(Invalid {
                    field: format!("spec.ports[{index}].servicePort"),
                    value: port.service_port().to_string(),
                    problem: format!("is also the service port of {:?}", earlier.name),
                    remedy: "set another servicePort".to_owned(),
                });
            }
        }
    }
    Ok(())
}

/// Secrets of a binding.
#[derive(Clone, Debug)]
pub struct BoundSecrets {
    /// For the workload.
    pub workload: String,
    /// For hooks; only where a hook asks for it.
    pub owner: Option<String>,
}

/// How the databases stand (waiting: for credentials), and the Secrets of those that are ready, by name
/// of the binding.
fn databases(service: &Service, observed: &Observed) -> (Finding, BTreeMap<String, BoundSecrets>) {
    let mut secrets = BTreeMap::new();
    let (mut problems, mut away) = (Vec::new(), BTreeMap::new());
    for binding in &service.spec.databases {
        let view = observed.databases.get(&binding.database);
        if let Some(outage) = view.and_then(|view| view.outage.as_ref()) {
            away.insert(&binding.database, outage);
        }
        match bound(service, binding, observed) {
            Ok(bound) => drop(secrets.insert(binding.name.clone(), bound)),
            // Two bindings of one Database have one problem.
            Err(problem) if problems.contains(&problem) => {}
            Err(problem) => problems.push(problem),
        }
    }
    let told = away.iter().map(|(name, outage)| format!("Database {name}: {}", outage.message));
    let finding = match (problems.first(), away.values().next()) {
        (Some(_), _) => {
            Finding::waiting(types::DATABASES_READY, Reason::DatabaseNotReady, problems.join("; "))
        }
        (None, Some(outage)) => {
            let message = told.collect::<Vec<_>>().join("; ");
            Finding::unknown(types::DATABASES_READY, outage.reason, message)
        }
        (None, None) if service.spec.databases.is_empty() => {
            Finding::good(types::DATABASES_READY, "no database is bound")
        }
        (None, None) => Finding::good(types::DATABASES_READY, "every database has credentials"),
    };
    (finding, secrets)
}

fn bound(service: &Service, binding: &DatabaseBinding, observed: &Observed) -> Result<BoundSecrets, String> {
    let name = &binding.database;
    let Some(database) = observed.databases.get(name) else {
        return Err(format!(
            "Database {name} does not exist; create it, or change the entry of spec.databases that names it"
        ));
    };
    if database.secrets.is_empty() {
        return Err(format!("Database {name} is not ready: {}", database.message));
    }
    let role = match binding.role() {
        BindingRole::Writer => RoleName::Writer,
        BindingRole::Reader => RoleName::Reader,
    };
    let secret = |role: RoleName| {
        database
            .secrets
            .get(&role)
            .cloned()
            .ok_or_else(|| format!("Database {name} has no credentials for role {role:?}"))
    };
    let is_for_hook = hook::specs(service).any(|hook| hook.database.as_ref() == Some(&binding.name));
    Ok(BoundSecrets {
        workload: secret(role)?,
        owner: is_for_hook.then(|| secret(RoleName::Owner)).transpose()?,
    })
}
