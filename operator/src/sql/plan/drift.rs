//! What differs from what we made: said in words, and undone where it is too
//! much. What is missing is made again by the other plans.

use peristyle_crds::v1alpha1::database::RoleName;
use serde::Serialize;

use super::{Desired, logins, schema};
use crate::sql::{
    Identifier, Statement,
    catalog::{Catalog, PUBLIC, Role, Schemas, Server},
    names::ROLES,
};

/// Differences, and what undoes those that the other plans do not undo.
#[derive(Clone, Debug, Default, Eq, PartialEq, Serialize)]
pub struct Drift {
    /// What differs, in words.
    pub differences: Vec<String>,
    /// What undoes some of it; each by itself, so that one that the server
    /// refuses holds up no other.
    pub undos: Vec<Undo>,
}

/// What undoes one difference.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Undo {
    /// The difference, in words.
    pub difference: String,
    /// Commands of one transaction.
    pub commands: Vec<String>,
}

impl Undo {
    /// The transaction.
    #[must_use]
    pub fn statement(&self) -> Statement {
        Statement::transaction("undo what somebody changed", &self.commands)
    }
}

impl Drift {
    fn found(&mut self, difference: String) {
        self.differences.push(difference);
    }

    fn undo(&mut self, difference: String, command: String) {
        self.undo_as(None, difference, command);
    }

    /// A grant is undone by the one who made it.
    fn undo_as(&mut self, owner: Option<&Identifier>, difference: String, command: String) {
        let commands = owner.map(|owner| format!("SET LOCAL ROLE {owner}")).into_iter().chain([command]);
        self.undos.push(Undo { difference: difference.clone(), commands: commands.collect() });
        self.differences.push(difference);
    }
}

/// What differs in roles and database, which are known to be ours.
#[must_use]
pub fn outside(desired: &Desired, catalog: &Catalog) -> Drift {
    let mut drift = Drift::default();
    database(desired, catalog, &mut drift);
    for name in desired.names.roles() {
        if let Some(live) = catalog.roles.get(name.as_str()) {
            attributes(name, live, &mut drift);
        }
    }
    for role in ROLES {
        let group = desired.names.group(role);
        if catalog.roles.get(group.as_str()).is_some_and(|live| live.can_login) {
            drift.undo(format!("{} can log in", group.as_str()), format!("ALTER ROLE {group} NOLOGIN"));
        }
    }
    members(desired, catalog, &mut drift);
    for difference in logins::differences(desired, catalog) {
        drift.found(difference);
    }
    drift
}

fn database(desired: &Desired, catalog: &Catalog, drift: &mut Drift) {
    let name = &desired.names.database;
    let Some(live) = &catalog.database else {
        return drift.found(format!("database {} is gone", name.as_str()));
    };
    if live.owner != catalog.admin {
        drift.undo(
            format!("the database belongs to {}", live.owner),
            format!("ALTER DATABASE {name} OWNER TO CURRENT_USER"),
        );
    }
    if !live.allows_connections {
        drift.found("the database is closed".to_owned());
    }
    let wanted = wanted_grants(desired);
    // First: with the right to grant goes what was granted by it, which nobody else can revoke.
    for (grantee, privilege) in &live.grantable {
        if wanted.iter().any(|(g, p)| g.as_str() == grantee && p == privilege) {
            let revoke = format!(
                "REVOKE GRANT OPTION FOR {privilege} ON DATABASE {name} FROM {} CASCADE",
                grantee_of(grantee)
            );
            drift.undo(format!("{grantee} may grant {privilege} on the database"), revoke);
        }
    }
    for (grantee, privilege) in &live.grants {
        let is_wanted = wanted.iter().any(|(g, p)| g.as_str() == grantee && p == privilege);
        if *grantee == live.owner || *grantee == catalog.admin || is_wanted {
            continue;
        }
        drift.undo(
            format!("{grantee} has {privilege} on the database"),
            format!("REVOKE {privilege} ON DATABASE {name} FROM {} CASCADE", grantee_of(grantee)),
        );
    }
    for role in [RoleName::Writer, RoleName::Reader] {
        let group = desired.names.group(role).as_str();
        for (_, privilege) in wanted.iter().filter(|(name, _)| name.as_str() == group) {
            if !live.grants.contains(&(group.to_owned(), (*privilege).to_owned())) {
                drift.found(format!("{group} lacks {privilege} on the database"));
            }
        }
    }
}

fn wanted_grants(desired: &Desired) -> Vec<(&Identifier, &'static str)> {
    let names = &desired.names;
    let (writer, reader) = (names.group(RoleName::Writer), names.group(RoleName::Reader));
    let mut wanted = vec![(writer, "CONNECT"), (writer, "TEMPORARY"), (reader, "CONNECT")];
    let owners = names.logins().filter(|(role, _, _)| *role == RoleName::Owner);
    wanted.extend(owners.map(|(_, _, name)| (name, "CONNECT")));
    wanted
}

fn attributes(name: &Identifier, live: &Role, drift: &mut Drift) {
    for power in &live.powers {
        drift.undo(format!("{} has {power}", name.as_str()), format!("ALTER ROLE {name} NO{power}"));
    }
    if live.expires {
        drift.undo(
            format!("the password of {} expires", name.as_str()),
            format!("ALTER ROLE {name} VALID UNTIL 'infinity'"),
        );
    }
}

/// Nobody but its logins is a member of a group, and they of nothing else.
fn members(desired: &Desired, catalog: &Catalog, drift: &mut Drift) {
    for (group, member) in &catalog.members {
        let is_ours = desired
            .names
            .logins()
            .any(|(role, _, login)| login.as_str() == member && desired.names.group(role).as_str() == group);
        if !is_ours && *member != catalog.admin {
            let command = format!("REVOKE {} FROM {} CASCADE", grantee_of(group), grantee_of(member));
            drift.undo(format!("{member} is a member of {group}"), command);
        }
    }
}

/// What differs inside the database.
#[must_use]
pub fn inside(desired: &Desired, server: &Server, live: &Schemas) -> Drift {
    let mut drift = Drift::default();
    let names = &desired.names;
    let (schema, owner) = (&names.schema, names.group(RoleName::Owner));
    match live.owners.get(schema.as_str()) {
        None => drift.found(format!("schema {} is gone", schema.as_str())),
        Some(found) if found != owner.as_str() => drift.undo(
            format!("schema {} belongs to {found}", schema.as_str()),
            format!("ALTER SCHEMA {schema} OWNER TO {owner}"),
        ),
        Some(_) => {}
    }
    let groups = [RoleName::Writer, RoleName::Reader].map(|role| names.group(role).as_str());
    let is_wanted =
        |grantee: &String, privilege: &String| privilege == "USAGE" && groups.contains(&grantee.as_str());
    // First: with the right to grant goes what was granted by it, which nobody else can revoke.
    for (_, grantee, privilege) in live.grantable.iter().filter(|(name, _, _)| name == schema.as_str()) {
        if is_wanted(grantee, privilege) {
            let revoke = format!(
                "REVOKE GRANT OPTION FOR {privilege} ON SCHEMA {schema} FROM {} CASCADE",
                grantee_of(grantee)
            );
            let difference = format!("{grantee} may grant {privilege} on schema {}", schema.as_str());
            drift.undo_as(Some(owner), difference, revoke);
        }
    }
    for (_, grantee, privilege) in live.grants.iter().filter(|(name, _, _)| name == schema.as_str()) {
        if grantee != owner.as_str() && !is_wanted(grantee, privilege) {
            let revoke =
                format!("REVOKE {privilege} ON SCHEMA {schema} FROM {} CASCADE", grantee_of(grantee));
            let difference = format!("{grantee} has {privilege} on schema {}", schema.as_str());
            drift.undo_as(Some(owner), difference, revoke);
        }
    }
    for (place, letter, grantee, privilege) in &live.defaults {
        let is_ours = ROLES.iter().any(|role| names.group(*role).as_str() == grantee);
        // The built-in default of types is for everybody; who can use one needs the schema first.
        let Some(objects) = objects(letter).filter(|_| !is_ours && letter != "T") else {
            continue;
        };
        if place == "*" && grantee == PUBLIC && letter == "f" {
            continue;
        }
        let difference = format!("{grantee} has {privilege} on {objects} to come");
        let place = if place == "*" { String::new() } else { format!("IN SCHEMA {} ", grantee_of(place)) };
        let revoke = format!(
            "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} {place}REVOKE {privilege} ON {objects} FROM {}",
            grantee_of(grantee)
        );
        drift.undo_as(Some(owner), difference, revoke);
    }
    if live.owners.get(schema.as_str()).is_some_and(|found| found == owner.as_str()) {
        for difference in schema::differences(desired, server, live) {
            drift.found(difference);
        }
    }
    drift
}

fn objects(letter: &str) -> Option<&'static str> {
    match letter {
        "r" => Some("TABLES"),
        "S" => Some("SEQUENCES"),
        "f" => Some("FUNCTIONS"),
        "n" => Some("SCHEMAS"),
        _ => None,
    }
}

/// A name from the catalog for a statement. Everybody is a keyword, never a name.
fn grantee_of(name: &str) -> String {
    if name == PUBLIC {
        return PUBLIC.to_owned();
    }
    postgres_protocol::escape::escape_identifier(name)
}
