//! The schema and its privileges, from inside the database.

use peristyle_crds::v1alpha1::database::RoleName;

use super::{Conflict, Desired};
use crate::sql::{
    Identifier, Statement,
    catalog::{PUBLIC, Schemas, Server},
};

/// A right on objects that the owner will create: the word of the statement,
/// the letter of the catalog, privileges of the writer and of the reader.
struct Default {
    objects: &'static str,
    letter: &'static str,
    writer: &'static [&'static str],
    reader: &'static [&'static str],
}

/// The reader may execute functions: a view that calls one would fail otherwise.
const DEFAULTS: [Default; 3] = [
    Default {
        objects: "TABLES",
        letter: "r",
        writer: &["SELECT", "INSERT", "UPDATE", "DELETE"],
        reader: &["SELECT"],
    },
    Default {
        objects: "SEQUENCES",
        letter: "S",
        writer: &["USAGE", "SELECT", "UPDATE"],
        reader: &["SELECT"],
    },
    Default { objects: "FUNCTIONS", letter: "f", writer: &["EXECUTE"], reader: &["EXECUTE"] },
];

/// Plans the schema, the lock on `public` and the default privileges.
///
/// # Errors
/// [`Conflict`] when the schema exists and belongs to somebody else.
pub fn plan(desired: &Desired, server: &Server, live: &Schemas) -> Result<Option<Statement>, Conflict> {
    let names = &desired.names;
    let schema = &names.schema;
    let owner = names.group(RoleName::Owner);
    let found = live.owners.get(schema.as_str());
    if found.is_some_and(|found| found != owner.as_str()) {
        return Err(Conflict { kind: "schema", name: schema.as_str().to_owned() });
    }
    if found.is_some() && is_settled(desired, server, live) {
        return Ok(None);
    }
    let (writer, reader) = (names.group(RoleName::Writer), names.group(RoleName::Reader));
    let mut commands = Vec::new();
    if !server.leaves_public_open() && live.owners.contains_key("public") {
        // As the administrator: under the owner group it would be a silent no-op.
        commands.push("REVOKE ALL ON SCHEMA public FROM PUBLIC".to_owned());
    }
    if found.is_none() {
        commands.push(format!("CREATE SCHEMA {schema} AUTHORIZATION {owner}"));
    }
    commands.extend([
        format!("SET LOCAL ROLE {owner}"),
        format!("GRANT USAGE ON SCHEMA {schema} TO {writer}, {reader}"),
        // Without IN SCHEMA: the form for one schema is accepted and does nothing.
        format!("ALTER DEFAULT PRIVILEGES FOR ROLE {owner} REVOKE EXECUTE ON FUNCTIONS FROM PUBLIC"),
    ]);
    for (role, default, privileges) in rights(writer, reader) {
        commands.push(format!(
            "ALTER DEFAULT PRIVILEGES FOR ROLE {owner} IN SCHEMA {schema} GRANT {} ON {} TO {role}",
            privileges.join(", "),
            default.objects
        ));
    }
    if found.is_some() {
        // What was created while the defaults were not in place.
        for (role, default, privileges) in rights(writer, reader) {
            commands.push(format!(
                "GRANT {} ON ALL {} IN SCHEMA {schema} TO {role}",
                privileges.join(", "),
                default.objects
            ));
        }
    }
    Ok(Some(Statement::transaction("set up the schema", &commands)))
}

fn rights<'a>(
    writer: &'a Identifier,
    reader: &'a Identifier,
) -> impl Iterator<Item = (&'a Identifier, &'static Default, &'static [&'static str])> {
    DEFAULTS
        .iter()
        .flat_map(move |default| [(writer, default, default.writer), (reader, default, default.reader)])
}

/// Whether every grant and default that we make is there, and PUBLIC has nothing.
fn is_settled(desired: &Desired, server: &Server, live: &Schemas) -> bool {
    let names = &desired.names;
    let schema = names.schema.as_str();
    let owner = names.group(RoleName::Owner);
    let (writer, reader) = (names.group(RoleName::Writer), names.group(RoleName::Reader));
    let has_default = |schema: &str, letter: &str, grantee: &str, privilege: &str| {
        live.defaults.contains(&(
            schema.to_owned(),
            letter.to_owned(),
            grantee.to_owned(),
            privilege.to_owned(),
        ))
    };
    let has_usage = |role: &Identifier| {
        live.grants.contains(&(schema.to_owned(), role.as_str().to_owned(), "USAGE".to_owned()))
    };
    let is_public_closed = server.leaves_public_open()
        || !live.grants.iter().any(|(s, grantee, _)| s == "public" && grantee == PUBLIC);
    is_public_closed
        && has_usage(writer)
        && has_usage(reader)
        && has_default("*", "f", owner.as_str(), "EXECUTE")
        && !has_default("*", "f", PUBLIC, "EXECUTE")
        && rights(writer, reader).all(|(role, default, privileges)| {
            privileges.iter().all(|privilege| has_default(schema, default.letter, role.as_str(), privilege))
        })
}
