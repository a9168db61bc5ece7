//! Status and findings of a provisioned Database. Pure.

use std::{fmt::Write as _, time::Instant};

use peristyle_crds::{
    condition::types,
    v1alpha1::{
        DatabaseStatus, LocalName,
        database::{RoleName, Server},
    },
};

use super::{logins::Settled, memory::Verified, validate::Validated};
use crate::{conditions::Finding, external::postgres::Provisioned};

/// What a successful verification says.
#[must_use]
pub fn verified(validated: &Validated, provisioned: &Provisioned, settled: Settled) -> Verified {
    let server = &provisioned.server;
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
    let mut provisioned = format!("database {database} is on {}", validated.access.admin);
    if server.leaves_public_open() {
        provisioned.push_str(
            "; schema public stays open to its roles, which only a superuser can change before PostgreSQL 15",
        );
    }
    Verified {
        findings: vec![
            Finding::good(
                types::SERVER_REACHABLE,
                format!("PostgreSQL {} answers at {}", server.version, validated.access.admin),
            ),
            Finding::good(types::PROVISIONED, provisioned),
            Finding::good(types::CREDENTIALS_READY, credentials),
        ],
        status: DatabaseStatus {
            server: Some(bound),
            database_name: Some(database.to_owned()),
            binding: validated.secrets.get(&RoleName::Writer).map(|name| LocalName { name: name.clone() }),
            roles: settled.roles,
            ..DatabaseStatus::default()
        },
        due: settled.due.map(|due| Instant::now() + due),
    }
}
