//! What the server's catalog shows, as plain data.

use std::collections::{BTreeMap, BTreeSet};

/// Name under which the catalog queries show grants to everybody.
pub const PUBLIC: &str = "PUBLIC";

/// The server and the administrator's standing on it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Server {
    /// `server_version_num`, for example 150018.
    pub version_num: i32,
    /// Version without the distribution's addition, for example `15.18`.
    pub version: String,
    /// Identity of the cluster, given by `initdb`.
    pub system_identifier: String,
    /// Name of the administrator.
    pub admin: String,
    /// Whether the administrator is a superuser.
    pub is_superuser: bool,
    /// Whether the administrator may create roles, create databases, and uses
    /// the privileges of roles granted to it.
    pub attributes: Attributes,
}

/// Attributes of the administrator that provisioning needs.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Attributes {
    /// CREATEROLE.
    pub create_role: bool,
    /// CREATEDB.
    pub create_database: bool,
    /// INHERIT.
    pub inherit: bool,
}

impl Server {
    /// Major version, for example 15.
    #[must_use]
    pub const fn major(&self) -> i32 {
        self.version_num / 10_000
    }

    /// What the administrator lacks; empty when provisioning can work.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        if self.is_superuser {
            return Vec::new();
        }
        let Attributes { create_role, create_database, inherit } = self.attributes;
        [(create_role, "CREATEROLE"), (create_database, "CREATEDB"), (inherit, "INHERIT")]
            .into_iter()
            .filter_map(|(has, word)| (!has).then_some(word))
            .collect()
    }

    /// Whether schema `public` of a new database belongs to somebody else, so
    /// that the administrator cannot close it.
    #[must_use]
    pub const fn leaves_public_open(&self) -> bool {
        self.major() < 15 && !self.is_superuser
    }
}

/// A role.
#[allow(clippy::struct_excessive_bools, reason = "each is a column of pg_roles")]
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Role {
    /// LOGIN.
    pub can_login: bool,
    /// INHERIT.
    pub inherits: bool,
    /// CONNECTION LIMIT, -1 for none.
    pub connection_limit: i32,
    /// The comment.
    pub comment: Option<String>,
    /// Settings by database, `*` for all, each as `name=value`.
    pub settings: BTreeMap<String, Vec<String>>,
    /// Whether the administrator has the role's privileges.
    pub is_held: bool,
    /// Attributes that none of our roles has, each a word of `ALTER ROLE`.
    pub powers: Vec<String>,
    /// Whether its password ends at a time.
    pub expires: bool,
}

/// A database.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Database {
    /// Name of the owner.
    pub owner: String,
    /// Whether anybody can connect.
    pub allows_connections: bool,
    /// The comment.
    pub comment: Option<String>,
    /// Grantee and privilege.
    pub grants: BTreeSet<(String, String)>,
    /// Those of `grants` that the grantee may pass on; without the owner's.
    pub grantable: BTreeSet<(String, String)>,
}

/// What is seen from the maintenance database.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Catalog {
    /// The administrator's name.
    pub admin: String,
    /// Those of our roles that exist.
    pub roles: BTreeMap<String, Role>,
    /// Group and member, of which one is ours; without the administrator.
    pub members: BTreeSet<(String, String)>,
    /// The database, if it exists.
    pub database: Option<Database>,
    /// What the trash has under its name, looked at only if there is no database.
    pub trashed: Option<Database>,
    /// Sessions in the database by the name of their login.
    pub sessions: BTreeMap<String, i64>,
}

/// What is seen from inside the database.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Schemas {
    /// Owner by schema, of those asked for that exist.
    pub owners: BTreeMap<String, String>,
    /// Schema, grantee, privilege.
    pub grants: BTreeSet<(String, String, String)>,
    /// Those of `grants` that the grantee may pass on; without the owner's.
    pub grantable: BTreeSet<(String, String, String)>,
    /// Default privileges of the owner group: schema (`*` for all), type of
    /// object as in `pg_default_acl`, grantee, privilege.
    pub defaults: BTreeSet<(String, String, String, String)>,
    /// What the owner group has in the schema that is the application's.
    pub objects: Vec<Object>,
}

/// A table, view, sequence or function.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Object {
    /// As in `pg_default_acl`: `r` what is like a table, `S` sequence, `f` function.
    pub letter: String,
    /// Its name, a function's with the types of its arguments, as the server quotes it.
    pub quoted: String,
}
