//! The end of a database. `DROP DATABASE … WITH (FORCE)` fails for an
//! administrator who is no superuser, so: close, end sessions, drop.

use super::{Desired, database::is_unfinished};
use crate::sql::{
    Identifier, Literal, Statement,
    catalog::{Catalog, Server},
    marker::Ownership,
    names::ROLES,
};

/// Plans the removal of what carries exactly our UID; everything else is left,
/// also what a predecessor of the same name left behind.
#[must_use]
pub fn plan(desired: &Desired, server: &Server, catalog: &Catalog) -> Vec<Statement> {
    let names = &desired.names;
    let is_ours = |name: &&Identifier| {
        catalog
            .roles
            .get(name.as_str())
            .is_some_and(|role| desired.marker.ownership(role.comment.as_deref()) == Ownership::Ours)
    };
    let logins: Vec<&Identifier> = names.logins().map(|(_, _, name)| name).filter(is_ours).collect();
    let groups: Vec<&Identifier> = ROLES.map(|role| names.group(role)).into_iter().filter(is_ours).collect();
    let mut plan = Vec::new();
    let enabled =
        logins.iter().filter(|login| catalog.roles.get(login.as_str()).is_some_and(|role| role.can_login));
    for login in enabled {
        plan.push(Statement::single("disable a login", format!("ALTER ROLE {login} NOLOGIN")));
    }
    if let Some(database) = &catalog.database {
        let is_marked = desired.marker.ownership(database.comment.as_deref()) == Ownership::Ours;
        let is_begun = is_unfinished(desired, catalog) && !groups.is_empty();
        if !is_marked && !is_begun {
            // The roles may have privileges in it; without it they are nothing of ours to drop.
            return Vec::new();
        }
        if database.allows_connections {
            plan.push(Statement::single(
                "close the database",
                format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", names.database),
            ));
        }
        plan.extend(logins.iter().map(|login| end_sessions(&names.database, login, server)));
        let command = format!("DROP DATABASE {}", names.database);
        plan.push(Statement::single("drop the database", command).slow());
    }
    let roles: Vec<String> = logins.iter().chain(&groups).map(ToString::to_string).collect();
    if !roles.is_empty() {
        plan.push(Statement::single("drop the roles", format!("DROP ROLE {}", roles.join(", "))));
    }
    plan
}

fn end_sessions(database: &Identifier, login: &Identifier, server: &Server) -> Statement {
    let terminate = format!(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = {} AND usename = {}",
        Literal(database.as_str()),
        Literal(login.as_str())
    );
    if server.is_superuser {
        return Statement::single("end sessions", terminate).slow();
    }
    // Only a member of the session's role may end it.
    Statement::transaction(
        "end sessions",
        &[format!("GRANT {login} TO CURRENT_USER"), terminate, format!("REVOKE {login} FROM CURRENT_USER")],
    )
    .slow()
}
