//! Groups and the database itself, from the maintenance database.

use peristyle_crds::v1alpha1::database::RoleName;

use super::{Conflict, Desired, Obstacle, drop};
use crate::sql::{
    Identifier, Literal, Statement,
    catalog::{Catalog, Database, PUBLIC, Server},
    marker::{Ownership, Trashed},
    names::ROLES,
};

/// Plans groups, database and the grants on it.
///
/// # Errors
/// [`Obstacle::Conflict`] when any role or the database exists and is not ours,
/// [`Obstacle::Gone`] when the database was made once and is not there: then
/// nothing may be changed.
pub fn plan(desired: &Desired, server: &Server, catalog: &Catalog) -> Result<Vec<Statement>, Obstacle> {
    let inherited = check(desired, catalog)?;
    if is_gone(desired, catalog) {
        return Err(Obstacle::Gone(desired.names.database.as_str().to_owned()));
    }
    let mut plan = Vec::new();
    let is_predecessors = |name: &Identifier| {
        let role = catalog.roles.get(name.as_str());
        role.is_some_and(|role| desired.marker.ownership(role.comment.as_deref()) == Ownership::Predecessor)
    };
    if desired.names.logins().any(|(_, _, name)| is_predecessors(name)) {
        // Nobody who held its passwords stays in. Before the marks, which tell a run after a crash.
        plan.extend(drop::expel(desired, server, catalog));
    }
    if !inherited.is_empty() {
        plan.push(Statement::transaction("take over the marks", &inherited));
    }
    plan.extend(groups(desired, catalog));
    let live = catalog.database.as_ref().or_else(|| trashed(desired, catalog));
    if live.is_none() {
        let command = format!(
            "CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8' ALLOW_CONNECTIONS false",
            desired.names.database
        );
        plan.push(Statement::lengthy("create the database", command));
    }
    plan.extend(grants(desired, live));
    Ok(plan)
}

/// Refuses what is not ours; returns the comments that a predecessor's objects need.
fn check(desired: &Desired, catalog: &Catalog) -> Result<Vec<String>, Conflict> {
    let marker = &desired.marker;
    let mut inherited = Vec::new();
    for name in desired.names.roles() {
        let Some(role) = catalog.roles.get(name.as_str()) else {
            continue;
        };
        match marker.ownership(role.comment.as_deref()) {
            Ownership::Ours if role.comment.as_deref().and_then(Trashed::parse).is_none() => {}
            Ownership::Predecessor if !desired.adopts => return Err(retained("role", name)),
            Ownership::Ours | Ownership::Predecessor => {
                if role.can_login {
                    // Nobody who held the predecessor's passwords may come in.
                    inherited.push(format!("ALTER ROLE {name} NOLOGIN PASSWORD NULL"));
                }
                inherited.push(comment_on_role(name, desired));
            }
            Ownership::Foreign => return Err(conflict("role", name)),
        }
    }
    let name = &desired.names.database;
    if let Some(database) = &catalog.database {
        match marker.ownership(database.comment.as_deref()) {
            Ownership::Ours => {}
            Ownership::Predecessor if !desired.adopts => return Err(retained("database", name)),
            Ownership::Predecessor => inherited.push(comment_on_database(desired)),
            Ownership::Foreign if is_unfinished(desired, catalog) => {}
            Ownership::Foreign => return Err(conflict("database", name)),
        }
    } else if let Some(trashed) = trashed(desired, catalog) {
        let trash = &desired.names.trash;
        if !desired.adopts && marker.ownership(trashed.comment.as_deref()) != Ownership::Ours {
            return Err(retained("database", trash));
        }
        inherited.push(format!("ALTER DATABASE {trash} RENAME TO {name}"));
        inherited.push(comment_on_database(desired));
    }
    Ok(inherited)
}

/// Whether the database was made and is gone, be it renamed, dropped, or missing
/// from a backup: an empty one under its name would be taken for it. Of ours
/// that it was made is known from the object, or from a login, which is never
/// made before it.
fn is_gone(desired: &Desired, catalog: &Catalog) -> bool {
    let is_ours = |comment: Option<&str>| desired.marker.ownership(comment) == Ownership::Ours;
    let has_login = desired.names.logins().any(|(_, _, name)| {
        catalog.roles.get(name.as_str()).is_some_and(|role| is_ours(role.comment.as_deref()))
    });
    let is_restored = |trashed: &Database| !desired.was_made || is_ours(trashed.comment.as_deref());
    let is_there = catalog.database.is_some() || trashed(desired, catalog).is_some_and(is_restored);
    !is_there && (desired.was_made || has_login)
}

/// Whether all that a first run makes from outside is there: what the plan still
/// has for it then repairs, and the database works without it.
#[must_use]
pub fn is_complete(desired: &Desired, catalog: &Catalog) -> bool {
    let has_group = |role: RoleName| catalog.roles.contains_key(desired.names.group(role).as_str());
    let is_open = |database: &Database| {
        let ownership = desired.marker.ownership(database.comment.as_deref());
        database.allows_connections && ownership == Ownership::Ours
    };
    ROLES.into_iter().all(has_group) && catalog.database.as_ref().is_some_and(is_open)
}

/// What the trash has of this object or its predecessor.
pub(super) fn trashed<'a>(desired: &Desired, catalog: &'a Catalog) -> Option<&'a Database> {
    let ownership = |database: &&Database| desired.marker.ownership(database.comment.as_deref());
    catalog.trashed.as_ref().filter(|database| ownership(database) != Ownership::Foreign)
}

/// Whether the database is one that was created and not yet marked: a crash
/// between the two leaves it closed, owned by the administrator and with an
/// owner group that carries our mark.
pub(super) fn is_unfinished(desired: &Desired, catalog: &Catalog) -> bool {
    let group = catalog.roles.get(desired.names.group(RoleName::Owner).as_str());
    catalog
        .database
        .as_ref()
        .is_some_and(|d| d.comment.is_none() && !d.allows_connections && d.owner == catalog.admin)
        && group.is_some_and(|g| desired.marker.ownership(g.comment.as_deref()) != Ownership::Foreign)
}

fn groups(desired: &Desired, catalog: &Catalog) -> Option<Statement> {
    let names = &desired.names;
    let mut commands = Vec::new();
    let is_missing = |role: &RoleName| !catalog.roles.contains_key(names.group(*role).as_str());
    let missing: Vec<RoleName> = ROLES.into_iter().filter(is_missing).collect();
    for role in &missing {
        commands.push(format!("CREATE ROLE {} NOLOGIN", names.group(*role)));
    }
    for role in &missing {
        commands.push(comment_on_role(names.group(*role), desired));
    }
    let owner = names.group(RoleName::Owner);
    if catalog.roles.get(owner.as_str()).is_none_or(|role| !role.is_held) {
        // Plain: it gives INHERIT and SET on every version. A superuser does not need it.
        commands.push(format!("GRANT {owner} TO CURRENT_USER"));
    }
    (!commands.is_empty()).then(|| Statement::transaction("create the groups", &commands))
}

fn grants(desired: &Desired, live: Option<&Database>) -> Vec<Statement> {
    let names = &desired.names;
    let (writer, reader) = (names.group(RoleName::Writer), names.group(RoleName::Reader));
    let wanted = [(writer, "CONNECT"), (writer, "TEMPORARY"), (reader, "CONNECT")];
    let is_granted = live.is_some_and(|d| {
        d.comment.is_some()
            && wanted.iter().all(|(role, privilege)| {
                d.grants.contains(&(role.as_str().to_owned(), (*privilege).to_owned()))
            })
            && !d.grants.iter().any(|(grantee, _)| grantee == PUBLIC)
    });
    let mut plan = Vec::new();
    if !is_granted {
        plan.push(Statement::transaction(
            "grant on the database",
            &[
                format!("REVOKE ALL ON DATABASE {} FROM PUBLIC", names.database),
                format!("GRANT CONNECT, TEMPORARY ON DATABASE {} TO {writer}", names.database),
                format!("GRANT CONNECT ON DATABASE {} TO {reader}", names.database),
                comment_on_database(desired),
            ],
        ));
    }
    if live.is_none_or(|d| !d.allows_connections) {
        plan.push(Statement::single(
            "open the database",
            format!("ALTER DATABASE {} ALLOW_CONNECTIONS true", names.database),
        ));
    }
    plan
}

pub(super) fn comment_on_role(role: &Identifier, desired: &Desired) -> String {
    format!("COMMENT ON ROLE {role} IS {}", Literal(&desired.marker.comment()))
}

fn comment_on_database(desired: &Desired) -> String {
    format!("COMMENT ON DATABASE {} IS {}", desired.names.database, Literal(&desired.marker.comment()))
}

fn conflict(kind: &'static str, name: &Identifier) -> Conflict {
    Conflict { kind, name: name.as_str().to_owned(), is_retained: false }
}

fn retained(kind: &'static str, name: &Identifier) -> Conflict {
    Conflict { is_retained: true, ..conflict(kind, name) }
}
