//! The logins, from the maintenance database.

use std::collections::BTreeMap;

use peristyle_crds::v1alpha1::database::RoleName;

use super::{Desired, Login, database::comment_on_role};
use crate::sql::{
    Statement,
    catalog::{Catalog, Role},
    names::{Names, ROLES},
    password::Verifier,
};

/// Plans the logins that should be and disables those that should not be.
///
/// The password of a login that exists is not touched: whether it is right,
/// only a login can tell. `verifiers` holds one for each wanted login; without
/// it a missing login is not created.
#[must_use]
pub fn plan(
    desired: &Desired,
    catalog: &Catalog,
    verifiers: &BTreeMap<RoleName, Verifier>,
) -> Vec<Statement> {
    let names = &desired.names;
    let mut plan = Vec::new();
    for role in ROLES {
        let live = catalog.roles.get(names.login(role).as_str());
        let wanted = desired.logins.iter().find(|login| login.role == role);
        match (wanted, live) {
            (Some(login), None) => {
                plan.extend(verifiers.get(&role).map(|verifier| create(desired, *login, verifier)));
            }
            (Some(login), Some(live)) => plan.extend(repair(names, *login, live, catalog)),
            (None, Some(live)) if live.can_login => plan.push(Statement::single(
                "disable a login",
                format!("ALTER ROLE {} NOLOGIN PASSWORD NULL", names.login(role)),
            )),
            (None, _) => {}
        }
    }
    plan
}

/// Sets the password of an existing login and lets it log in.
#[must_use]
pub fn set_password(names: &Names, role: RoleName, verifier: &Verifier) -> Statement {
    Statement::secret_transaction("set a password", verifier, |verifier| {
        vec![format!("ALTER ROLE {} LOGIN PASSWORD {verifier}", names.login(role))]
    })
}

fn create(desired: &Desired, login: Login, verifier: &Verifier) -> Statement {
    let names = &desired.names;
    let name = names.login(login.role);
    Statement::secret_transaction("create a login", verifier, |verifier| {
        let mut commands = vec![
            format!("CREATE ROLE {name} LOGIN {} PASSWORD {verifier}", attributes(login)),
            comment_on_role(name, desired),
        ];
        commands.extend(membership(names, login.role));
        commands.extend(settings(names, login.role));
        commands
    })
}

fn repair(names: &Names, login: Login, live: &Role, catalog: &Catalog) -> Option<Statement> {
    let name = names.login(login.role);
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
        commands.extend(membership(names, login.role));
    }
    let found = live.settings.get(database).map_or(&[][..], Vec::as_slice);
    let is_set = |expected: &String| found.contains(expected);
    if !expected_settings(names, login.role).iter().all(is_set) {
        commands.extend(settings(names, login.role));
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

fn membership(names: &Names, role: RoleName) -> Vec<String> {
    let (group, login) = (names.group(role), names.login(role));
    let mut commands = vec![format!("GRANT {group} TO {login}")];
    if role == RoleName::Owner {
        // Direct: a NOINHERIT login is refused with CONNECT on its group only.
        commands.push(format!("GRANT CONNECT ON DATABASE {} TO {login}", names.database));
    }
    commands
}

fn settings(names: &Names, role: RoleName) -> Vec<String> {
    let (login, database) = (names.login(role), &names.database);
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
