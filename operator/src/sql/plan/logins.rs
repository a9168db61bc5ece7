//! The logins, from the maintenance database.

use peristyle_crds::v1alpha1::database::{RoleName, Slot};

use super::{Desired, Login, database::comment_on_role};
use crate::sql::{
    Identifier, Statement,
    catalog::{Catalog, Role},
    names::Names,
    password::Verifier,
};

/// Repairs the logins that let somebody in and shuts those that nobody asks for.
///
/// Which slots of a wanted role are open, and with which password, is not
/// decided here: that is a matter of the Secrets.
#[must_use]
pub fn plan(desired: &Desired, catalog: &Catalog) -> Vec<Statement> {
    let names = &desired.names;
    let mut plan = Vec::new();
    for (role, slot, name) in names.logins() {
        let Some(live) = catalog.roles.get(name.as_str()).filter(|live| live.can_login) else {
            continue;
        };
        match desired.logins.iter().find(|login| login.role == role) {
            Some(login) => plan.extend(repair(names, *login, slot, live, catalog)),
            None => plan.push(shut(name)),
        }
    }
    plan
}

/// Opens a login with a password: makes it, or sets all that it should have.
#[must_use]
pub fn open(
    desired: &Desired,
    login: Login,
    slot: Slot,
    catalog: &Catalog,
    verifier: &Verifier,
) -> Statement {
    let names = &desired.names;
    let name = names.login(login.role, slot);
    let exists = catalog.roles.contains_key(name.as_str());
    let verb = if exists { "ALTER" } else { "CREATE" };
    Statement::secret_transaction("open a login", verifier, |verifier| {
        let mut commands =
            vec![format!("{verb} ROLE {name} LOGIN {} PASSWORD {verifier}", attributes(login))];
        if !exists {
            commands.push(comment_on_role(name, desired));
        }
        commands.extend(membership(names, login.role, slot));
        commands.extend(settings(names, login.role, slot));
        commands
    })
}

/// Lets nobody in any more; open sessions go on.
#[must_use]
pub fn shut(login: &Identifier) -> Statement {
    Statement::single("shut a login", format!("ALTER ROLE {login} NOLOGIN PASSWORD NULL"))
}

fn repair(names: &Names, login: Login, slot: Slot, live: &Role, catalog: &Catalog) -> Option<Statement> {
    let name = names.login(login.role, slot);
    let database = names.database.as_str();
    let mut commands = Vec::new();
    if live.inherits != inherits(login.role) || live.connection_limit != login.connection_limit {
        commands.push(format!("ALTER ROLE {name} {}", attributes(login)));
    }
    let member = (names.group(login.role).as_str().to_owned(), name.as_str().to_owned());
    let connect = (name.as_str().to_owned(), "CONNECT".to_owned());
    let is_connected = login.role != RoleName::Owner
        || catalog.database.as_ref().is_some_and(|d| d.grants.contains(&connect));
    if !catalog.members.contains(&member) || !is_connected {
        commands.extend(membership(names, login.role, slot));
    }
    let found = live.settings.get(database).map_or(&[][..], Vec::as_slice);
    let is_set = |expected: &String| found.contains(expected);
    if !expected_settings(names, login.role).iter().all(is_set) {
        commands.extend(settings(names, login.role, slot));
    }
    (!commands.is_empty()).then(|| Statement::transaction("repair a login", &commands))
}

/// The owner's login uses no privilege of its own: without its group's role
/// it could create objects that belong to itself.
const fn inherits(role: RoleName) -> bool {
    !matches!(role, RoleName::Owner)
}

fn attributes(login: Login) -> String {
    let inherit = if inherits(login.role) { "INHERIT" } else { "NOINHERIT" };
    format!("{inherit} CONNECTION LIMIT {}", login.connection_limit)
}

fn membership(names: &Names, role: RoleName, slot: Slot) -> Vec<String> {
    let (group, login) = (names.group(role), names.login(role, slot));
    let mut commands = vec![format!("GRANT {group} TO {login}")];
    if role == RoleName::Owner {
        // Direct: a NOINHERIT login is refused with CONNECT on its group only.
        commands.push(format!("GRANT CONNECT ON DATABASE {} TO {login}", names.database));
    }
    commands
}

fn settings(names: &Names, role: RoleName, slot: Slot) -> Vec<String> {
    let (login, database) = (names.login(role, slot), &names.database);
    let mut commands = Vec::new();
    if role == RoleName::Owner {
        let group = super::super::Literal(names.group(role).as_str()).to_string();
        commands.push(format!("ALTER ROLE {login} IN DATABASE {database} SET role = {group}"));
    }
    commands.push(format!("ALTER ROLE {login} IN DATABASE {database} SET search_path = {}", names.schema));
    commands
}

fn expected_settings(names: &Names, role: RoleName) -> Vec<String> {
    let mut settings = vec![format!("search_path={}", names.schema.as_str())];
    if role == RoleName::Owner {
        settings.push(format!("role={}", names.group(role).as_str()));
    }
    settings
}
