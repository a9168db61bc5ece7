//! Status and findings of a provisioned Database. Pure.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use peristyle_crds::{
    condition::{Reason, types},
    v1alpha1::{
        Database, DatabaseStatus, LocalName,
        database::{RoleName, Server},
    },
};

use super::{logins::Settled, memory::Verified, validate::Validated};
use crate::{
    conditions::{self, Finding, State},
    external::postgres::Provisioned,
};

/// When a Database is looked at again that somebody changed.
const AFTER_DRIFT: Duration = Duration::from_secs(60);

/// What differed and was put right, if the Database was once as its spec says:
/// what a first run or another spec brings is not a difference.
#[must_use]
pub fn drift(database: &Database, provisioned: &Provisioned) -> Option<Finding> {
    let conditions = database.status.as_ref().map(|status| &status.conditions[..]).unwrap_or_default();
    let was_provisioned = conditions::is_true(conditions, types::PROVISIONED, database.metadata.generation);
    let is_left = |difference: &&String| provisioned.left.iter().any(|left| left.difference == **difference);
    let repaired: Vec<&str> =
        provisioned.differences.iter().filter(|found| !is_left(found)).map(String::as_str).collect();
    if !was_provisioned || repaired.is_empty() {
        return None;
    }
    let message = format!("put right on the server: {}", repaired.join("; "));
    // True means that there was a difference, which is why the state says good.
    Some(Finding {
        condition: types::DRIFT_DETECTED,
        state: State::Good,
        reason: Reason::DriftRepaired,
        message: message.chars().take(1000).collect(),
    })
}

/// What could not be put right: the server lets in more than the spec says, or
/// less, and a person has to see to it.
fn left(provisioned: &Provisioned) -> Option<Finding> {
    let said: Vec<String> =
        provisioned.left.iter().map(|left| format!("{} ({})", left.difference, left.cause)).collect();
    let message = format!("not undone on the server: {}", said.join("; "));
    (!said.is_empty()).then(|| {
        let message: String = message.chars().take(1000).collect();
        Finding::failed(types::PROVISIONED, Reason::DriftNotRepaired, message)
    })
}

/// What a successful verification says.
#[must_use]
pub fn verified(
    validated: &Validated,
    provisioned: &Provisioned,
    settled: Settled,
    drift: Option<&Finding>,
) -> Verified {
    let server = &provisioned.server;
    let left = left(provisioned);
    let database = validated.desired.names.database.as_str();
    let bound = validated.bound.clone().unwrap_or_else(|| Server {
        class: validated.access.class.clone(),
        host: validated.workloads.host.clone(),
        port: i32::from(validated.workloads.port),
        version: server.version.clone(),
        system_identifier: server.system_identifier.clone(),
    });
    let names: Vec<&str> = settled.roles.iter().map(|role| role.secret_name.as_str()).collect();
    let mut credentials = format!("the server accepts the credentials of {}", names.join(", "));
    if !settled.waiting.is_empty() {
        let waiting: Vec<String> = settled.waiting.iter().map(|role| format!("{role:?}")).collect();
        let _ = write!(
            credentials,
            "; the next rotation of {} waits until the login before is over",
            waiting.join(" and ")
        );
    }
    for (role, services) in &settled.held {
        let _ = write!(
            credentials,
            "; the login before of {role:?} stays open for pods that started before the last rotation, of Service {}",
            services.join(", ")
        );
    }
    let mut message = format!("database {database} is on {}", validated.access.admin);
    if server.leaves_public_open() {
        message.push_str(
            "; schema public stays open to its roles, which only a superuser can change before PostgreSQL 15",
        );
    }
    let mut findings = vec![
        Finding::good(
            types::SERVER_REACHABLE,
            format!("PostgreSQL {} answers at {}", server.version, validated.access.admin),
        ),
        left.clone().unwrap_or_else(|| Finding::good(types::PROVISIONED, message)),
        Finding::good(types::CREDENTIALS_READY, credentials),
    ];
    findings.extend(drift.cloned());
    // Then a look that finds no difference withdraws the condition.
    let is_drift = drift.is_some() || left.is_some();
    let due = settled.due.into_iter().chain(is_drift.then_some(AFTER_DRIFT)).min();
    Verified {
        findings,
        status: DatabaseStatus {
            server: Some(bound),
            database_name: Some(database.to_owned()),
            binding: validated.secrets.get(&RoleName::Writer).map(|name| LocalName { name: name.clone() }),
            roles: settled.roles,
            ..DatabaseStatus::default()
        },
        due: due.map(|due| Instant::now() + due),
    }
}
