//! The schema and its privileges, from inside the database.

use peristyle_crds::v1alpha1::database::RoleName;

use super::Desired;
use crate::sql::{
    Identifier, Statement,
    catalog::{PUBLIC, Schemas, Server},
};

/// A right on objects that the owner will create: the words of the statements for
/// many and for one, the letter of the catalog, privileges of the writer and of the reader.
struct Default {
    objects: &'static str,
    object: &'static str,
    letter: &'static str,
    writer: &'static [&'static str],
    reader: &'static [&'static str],
}

/// The reader may execute functions: a view that calls one would fail otherwise.
const DEFAULTS: [Default; 3] = [
    Default {
        objects: "TABLES",
        object: "TABLE",
        letter: "r",
        writer: &["SELECT", "INSERT", "UPDATE", "DELETE"],
        reader: &["SELECT"],
    },
    Default {
        objects: "SEQUENCES",
        object: "SEQUENCE",
        letter: "S",
        writer: &["USAGE", "SELECT", "UPDATE"],
        reader: &["SELECT"],
    },
    Default {
        objects: "FUNCTIONS",
        object: "FUNCTION",
        letter: "f",
        writer: &["EXECUTE"],
        reader: &["EXECUTE"],
    },
];

/// Plans the schema, the lock on `public`, the default privileges, and the same
/// on the objects that `live` lists.
#[must_use]
pub fn plan(desired: &Desired, server: &Server, live: &Schemas) -> Option<Statement> {
    let names = &desired.names;
    let schema = &names.schema;
    let owner = names.group(RoleName::Owner);
    let found = live.owners.get(schema.as_str());
    if found.is_some() && differences(desired, server, live).is_empty() {
        return None;
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
    // What was created while the defaults were not in place. Named one by one: of what
    // somebody else put into the schema nothing can be granted.
    for (role, default, privileges) in rights(writer, reader) {
        let of_kind = live.objects.iter().filter(|object| object.letter == default.letter);
        let objects: Vec<&str> = of_kind.map(|object| object.quoted.as_str()).collect();
        if !objects.is_empty() {
            commands.push(format!(
                "GRANT {} ON {} {} TO {role}",
                privileges.join(", "),
                default.object,
                objects.join(", ")
            ));
        }
    }
    Some(Statement::transaction("set up the schema", &commands))
}

fn rights<'a>(
    writer: &'a Identifier,
    reader: &'a Identifier,
) -> impl Iterator<Item = (&'a Identifier, &'static Default, &'static [&'static str])> {
    DEFAULTS
        .iter()
        .flat_map(move |default| [(writer, default, default.writer), (reader, default, default.reader)])
}

/// What is missing of the grants and defaults that we make, and what everybody has, in words.
pub(super) fn differences(desired: &Desired, server: &Server, live: &Schemas) -> Vec<String> {
    let names = &desired.names;
    let schema = names.schema.as_str();
    let owner = names.group(RoleName::Owner);
    let (writer, reader) = (names.group(RoleName::Writer), names.group(RoleName::Reader));
    let has_default = |schema: &str, letter: &str, grantee: &str, privilege: &str| {
        let wanted = [schema, letter, grantee, privilege].map(ToOwned::to_owned);
        live.defaults.contains(&wanted.into())
    };
    let mut differences = Vec::new();
    if !server.leaves_public_open() {
        for (_, _, privilege) in
            live.grants.iter().filter(|(schema, grantee, _)| schema == "public" && grantee == PUBLIC)
        {
            differences.push(format!("{PUBLIC} has {privilege} on schema public"));
        }
    }
    for role in [writer, reader] {
        if !live.grants.contains(&(schema.to_owned(), role.as_str().to_owned(), "USAGE".to_owned())) {
            differences.push(format!("{} lacks USAGE on schema {schema}", role.as_str()));
        }
    }
    if !has_default("*", "f", owner.as_str(), "EXECUTE") || has_default("*", "f", PUBLIC, "EXECUTE") {
        differences.push(format!("{PUBLIC} has EXECUTE on FUNCTIONS to come"));
    }
    for (role, default, privileges) in rights(writer, reader) {
        for privilege in privileges {
            if !has_default(schema, default.letter, role.as_str(), privilege) {
                differences.push(format!(
                    "{} lacks {privilege} on {} to come",
                    role.as_str(),
                    default.objects
                ));
            }
        }
    }
    differences
}
