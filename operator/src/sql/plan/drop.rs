//! The end of a database. `DROP DATABASE … WITH (FORCE)` fails for an
//! administrator who is no superuser, so: close, end sessions, drop.

use super::{
    Desired,
    database::{is_unfinished, trashed},
    logins,
};
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
    let Some(mut plan) = close(desired, server, catalog) else {
        return Vec::new();
    };
    let is_ours = |comment: Option<&str>| desired.marker.ownership(comment) == Ownership::Ours;
    if catalog.database.is_some() {
        plan.push(drop_database(&names.database));
    } else if trashed(desired, catalog).is_some_and(|database| is_ours(database.comment.as_deref())) {
        plan.push(drop_database(&names.trash));
    }
    plan.extend(drop_roles(ours(desired, catalog).map(ToString::to_string)));
    plan
}

/// Plans that nobody uses the database any more; nothing when it is not ours.
pub(super) fn close(desired: &Desired, server: &Server, catalog: &Catalog) -> Option<Vec<Statement>> {
    let names = &desired.names;
    if let Some(database) = &catalog.database {
        let is_marked = desired.marker.ownership(database.comment.as_deref()) == Ownership::Ours;
        let has_group = || ROLES.iter().any(|role| is_ours(desired, catalog, names.group(*role)));
        let is_begun = is_unfinished(desired, catalog) && has_group();
        if !is_marked && !is_begun {
            // The roles may have privileges in it; without it they are nothing of ours to drop.
            return None;
        }
    }
    let logins: Vec<&Identifier> =
        names.logins().map(|(_, _, name)| name).filter(|name| is_ours(desired, catalog, name)).collect();
    let can_login = |name: &&&Identifier| catalog.roles.get(name.as_str()).is_some_and(|role| role.can_login);
    let mut plan: Vec<Statement> = logins.iter().filter(can_login).map(|name| logins::shut(name)).collect();
    if let Some(database) = &catalog.database {
        if database.allows_connections {
            plan.push(Statement::single(
                "close the database",
                format!("ALTER DATABASE {} ALLOW_CONNECTIONS false", names.database),
            ));
        }
        plan.extend(logins.iter().map(|login| end_sessions(&names.database, login, server)));
    }
    Some(plan)
}

/// Plans that no login is open and none has a session; whose they are was looked at before.
pub(super) fn expel(desired: &Desired, server: &Server, catalog: &Catalog) -> Vec<Statement> {
    let names = &desired.names;
    let logins = || names.logins().filter_map(|(_, _, name)| Some((name, catalog.roles.get(name.as_str())?)));
    let mut plan: Vec<Statement> =
        logins().filter(|(_, role)| role.can_login).map(|(name, _)| logins::shut(name)).collect();
    if catalog.database.is_some() {
        plan.extend(logins().map(|(name, _)| end_sessions(&names.database, name, server)));
    }
    plan
}

/// Our logins, then our groups.
pub(super) fn ours<'a>(desired: &'a Desired, catalog: &Catalog) -> impl Iterator<Item = &'a Identifier> {
    let logins = desired.names.logins().map(|(_, _, name)| name);
    let groups = ROLES.into_iter().map(|role| desired.names.group(role));
    logins.chain(groups).filter(move |name| is_ours(desired, catalog, name))
}

fn is_ours(desired: &Desired, catalog: &Catalog, name: &Identifier) -> bool {
    let comment = catalog.roles.get(name.as_str()).map(|role| role.comment.as_deref());
    comment.is_some_and(|comment| desired.marker.ownership(comment) == Ownership::Ours)
}

pub(super) fn drop_database(name: &Identifier) -> Statement {
    Statement::lengthy("drop the database", format!("DROP DATABASE {name}"))
}

/// `names` are quoted.
pub(super) fn drop_roles(names: impl Iterator<Item = String>) -> Option<Statement> {
    let names: Vec<String> = names.collect();
    (!names.is_empty())
        .then(|| Statement::single("drop the roles", format!("DROP ROLE {}", names.join(", "))))
}

fn end_sessions(database: &Identifier, login: &Identifier, server: &Server) -> Statement {
    let terminate = format!(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = {} AND usename = {}",
        Literal(database.as_str()),
        Literal(login.as_str())
    );
    if server.is_superuser {
        return Statement::single("end sessions", terminate);
    }
    // Only a member of the session's role may end it.
    Statement::transaction(
        "end sessions",
        &[format!("GRANT {login} TO CURRENT_USER"), terminate, format!("REVOKE {login} FROM CURRENT_USER")],
    )
}
