//! Plans: the statements that lead from what the catalog shows to what should be.
//!
//! The sequence is one for PostgreSQL 14 to 18, with a superuser or a
//! CREATEROLE CREATEDB administrator. The administrator owns the database, a
//! NOLOGIN group owns the schema, and logins get their privileges from groups.

pub mod database;
pub mod drop;
pub mod logins;
pub mod schema;

use peristyle_crds::v1alpha1::database::RoleName;

use super::{marker::Marker, names::Names};

/// What should be on the server.
#[derive(Clone, Debug)]
pub struct Desired {
    /// Names of database, schema and roles.
    pub names: Names,
    /// The mark of the Database object.
    pub marker: Marker,
    /// Who can log in.
    pub logins: Vec<Login>,
}

/// A role that can log in.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Login {
    /// Which role.
    pub role: RoleName,
    /// Connections it may hold.
    pub connection_limit: i32,
}

/// Something of that name exists and is not ours; nothing was changed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error(
    "{kind} {name:?} exists on the server and does not belong to this object; create the Database again with another spec.name"
)]
pub struct Conflict {
    /// `database`, `role` or `schema`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
}
