//! Plans: the statements that lead from what the catalog shows to what should be.
//!
//! The sequence is one for PostgreSQL 14 to 18, with a superuser or a
//! CREATEROLE CREATEDB administrator. The administrator owns the database, a
//! NOLOGIN group owns the schema, and logins get their privileges from groups.

pub mod database;
pub mod drift;
pub mod drop;
pub mod logins;
pub mod schema;
pub mod trash;

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
    /// Whether what a deleted object of the same name left is taken over.
    pub adopts: bool,
    /// Whether the object says that it has had its database already.
    pub was_made: bool,
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
#[error("{kind} {name:?} exists on the server and {}", remedy(*.is_retained))]
pub struct Conflict {
    /// `database` or `role`.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Whether a deleted object of this namespace and name left it.
    pub is_retained: bool,
}

/// Why nothing is planned.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Obstacle {
    /// The name is taken.
    #[error(transparent)]
    Conflict(#[from] Conflict),
    /// The database that was made is not there any more.
    #[error(
        "database {0:?} is gone from the server, and no empty one is made in its place; rename it back or \
         restore it; to begin with an empty one, delete this Database and create it again, with \
         spec.adopt: IfMarked if its roles are still on the server"
    )]
    Gone(String),
}

const fn remedy(is_retained: bool) -> &'static str {
    if is_retained {
        "was left by a deleted Database of this name; set spec.adopt to IfMarked to take it over with \
         its data, or create the Database again with another spec.name"
    } else {
        "does not belong to this object; create the Database again with another spec.name"
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use peristyle_crds::v1alpha1::database::Slot;

    use super::*;
    use crate::sql::{
        Statement,
        catalog::{Attributes, Catalog, Database, Role, Schemas, Server},
        marker::Trashed,
        names::ROLES,
        password::Password,
    };

    fn desired() -> Desired {
        Desired {
            names: Names::new("shop").unwrap(),
            marker: Marker { uid: "u1".to_owned(), claim: "c1".to_owned() },
            logins: ROLES.map(|role| Login { role, connection_limit: 5 }).into(),
            adopts: false,
            was_made: false,
        }
    }

    fn server(is_superuser: bool, version_num: i32) -> Server {
        Server {
            version_num,
            version: String::new(),
            system_identifier: String::new(),
            admin: "admin".to_owned(),
            is_superuser,
            attributes: Attributes { create_role: true, create_database: true, inherit: true },
        }
    }

    fn fresh() -> Schemas {
        let owners = [("public".to_owned(), "pg_database_owner".to_owned())];
        Schemas { owners: owners.into(), ..Schemas::default() }
    }

    fn text(statements: &[Statement]) -> String {
        statements.iter().map(|statement| format!("{statement};\n")).collect::<Vec<_>>().join("\n")
    }

    /// A server where the database was created and the operator ended before it marked it.
    fn unfinished(comment: Option<&str>) -> Catalog {
        let marker = desired().marker;
        let group = Role { comment: Some(marker.comment()), is_held: true, ..Role::default() };
        Catalog {
            admin: "admin".to_owned(),
            roles: ROLES.map(|role| (desired().names.group(role).as_str().to_owned(), group.clone())).into(),
            members: BTreeSet::new(),
            database: Some(Database {
                owner: "admin".to_owned(),
                allows_connections: false,
                comment: comment.map(ToOwned::to_owned),
                grants: BTreeSet::new(),
                grantable: BTreeSet::new(),
            }),
            trashed: None,
            sessions: BTreeMap::new(),
        }
    }

    #[test]
    fn a_first_run_is_the_verified_sequence() {
        let desired = desired();
        let empty = Catalog::default();
        let mut statements = database::plan(&desired, &server(false, 150_000), &empty).unwrap();
        statements.extend(schema::plan(&desired, &server(false, 150_000), &fresh()));
        for login in &desired.logins {
            let verifier = Password::generate().verifier();
            statements.push(logins::open(&desired, *login, Slot::A, &empty, &verifier));
        }
        insta::assert_snapshot!(text(&statements));
    }

    #[test]
    fn before_version_15_an_administrator_who_is_no_superuser_leaves_public_alone() {
        let plan = |is_superuser| {
            let statement = schema::plan(&desired(), &server(is_superuser, 140_000), &fresh());
            statement.unwrap().to_string()
        };
        assert!(!plan(false).contains("SCHEMA public"));
        assert!(plan(true).contains("REVOKE ALL ON SCHEMA public FROM PUBLIC"));
    }

    #[test]
    fn a_closed_unmarked_database_of_ours_is_finished_and_any_other_is_not_touched() {
        let ours = unfinished(None);
        let statements = database::plan(&desired(), &server(false, 150_000), &ours).unwrap();
        insta::assert_snapshot!(text(&statements));

        let database = ours.database.clone().unwrap();
        for (what, foreign) in [
            ("open", Database { allows_connections: true, ..database.clone() }),
            ("of another owner", Database { owner: "somebody".to_owned(), ..database.clone() }),
            ("with another mark", Database { comment: Some("{}".to_owned()), ..database }),
        ] {
            let catalog = Catalog { database: Some(foreign), ..ours.clone() };
            assert!(database::plan(&desired(), &server(false, 150_000), &catalog).is_err(), "{what}");
            assert!(drop::plan(&desired(), &server(true, 150_000), &catalog).is_empty(), "{what}");
        }
        let nobodys = Catalog { roles: BTreeMap::new(), ..ours };
        assert!(database::plan(&desired(), &server(false, 150_000), &nobodys).is_err(), "without our group");
    }

    #[test]
    fn a_drop_ends_sessions_as_the_administrator_can() {
        let mut catalog = unfinished(Some(&desired().marker.comment()));
        let login = Role { can_login: true, comment: Some(desired().marker.comment()), ..Role::default() };
        catalog.roles.insert("shop_writer_a".to_owned(), login);
        catalog.database.as_mut().unwrap().allows_connections = true;
        let superuser = text(&drop::plan(&desired(), &server(true, 150_000), &catalog));
        let creator = text(&drop::plan(&desired(), &server(false, 150_000), &catalog));
        insta::assert_snapshot!(format!("-- superuser\n{superuser}\n-- CREATEROLE\n{creator}"));
    }

    #[test]
    fn what_a_predecessor_left_is_not_dropped() {
        let successor = Desired { marker: Marker { uid: "u2".to_owned(), ..desired().marker }, ..desired() };
        let catalog = unfinished(Some(&desired().marker.comment()));
        assert!(drop::plan(&successor, &server(true, 150_000), &catalog).is_empty());
        let conflict = database::plan(&successor, &server(false, 150_000), &catalog).unwrap_err();
        assert!(conflict.to_string().contains("set spec.adopt to IfMarked"), "{conflict}");
        let adopting = Desired { adopts: true, ..successor };
        let taken_over = database::plan(&adopting, &server(false, 150_000), &catalog).unwrap();
        assert_eq!(taken_over[0].step(), "take over the marks");
        assert!(taken_over[0].to_string().contains("u2"));
    }

    #[test]
    fn the_way_into_the_trash_and_back_is_one_mark_and_one_name() {
        let mut catalog = unfinished(Some(&desired().marker.comment()));
        let login = Role { can_login: true, comment: Some(desired().marker.comment()), ..Role::default() };
        catalog.roles.insert("shop_writer_a".to_owned(), login);
        catalog.database.as_mut().unwrap().allows_connections = true;
        let now = jiff::Timestamp::constant(1_700_000_000, 0);
        let plan = |desired: &Desired, catalog: &Catalog| {
            trash::plan(desired, &server(false, 150_000), catalog, "k1", now)
        };
        let there = plan(&desired(), &catalog);
        let successor = Desired { marker: Marker { uid: "u2".to_owned(), ..desired().marker }, ..desired() };
        assert!(plan(&successor, &catalog).is_empty(), "of another object");

        let marker = desired().marker;
        let mark = Trashed { marker, keeper: "k1".to_owned(), trashed: now }.comment();
        for role in catalog.roles.values_mut() {
            role.comment = Some(mark.clone());
            role.can_login = false;
        }
        let database = catalog.database.take().unwrap();
        catalog.trashed = Some(Database { comment: Some(mark), allows_connections: false, ..database });
        assert!(plan(&desired(), &catalog).is_empty(), "a second time");
        assert!(
            database::plan(&successor, &server(false, 150_000), &catalog).is_err(),
            "without being asked"
        );
        let back =
            database::plan(&Desired { adopts: true, ..successor.clone() }, &server(false, 150_000), &catalog)
                .unwrap();
        insta::assert_snapshot!(format!("-- there\n{}\n-- back\n{}", text(&there), text(&back)));

        let foreign = Some(Database { comment: None, ..catalog.trashed.clone().unwrap() });
        let catalog = Catalog { trashed: foreign, roles: BTreeMap::new(), ..catalog };
        let fresh = database::plan(&successor, &server(false, 150_000), &catalog).unwrap();
        assert_eq!(fresh[1].step(), "create the database", "what is not ours is not taken");
    }

    #[test]
    fn what_somebody_added_is_named_and_undone() {
        let mut catalog = unfinished(Some(&desired().marker.comment()));
        let database = catalog.database.as_mut().unwrap();
        database.allows_connections = true;
        let grant = |who: &str, what: &str| (who.to_owned(), what.to_owned());
        database.grants = [
            grant("admin", "CREATE"),
            grant("shop_writer", "CONNECT"),
            grant("shop_writer", "TEMPORARY"),
            grant("shop_reader", "CONNECT"),
            grant("shop_owner_b", "CONNECT"),
        ]
        .into();
        assert_eq!(drift::outside(&desired(), &catalog), drift::Drift::default());

        let database = catalog.database.as_mut().unwrap();
        database.grants.extend([grant("PUBLIC", "CONNECT"), grant("other \"x\"", "CREATE")]);
        database.owner = "somebody".to_owned();
        catalog.members.insert(grant("shop_owner", "other_writer"));
        catalog.members.insert(grant("pg_read_all_data", "shop_reader"));
        catalog.roles.get_mut("shop_writer").unwrap().powers = vec!["CREATEDB".to_owned()];
        catalog.roles.get_mut("shop_reader").unwrap().can_login = true;
        insta::assert_yaml_snapshot!(drift::outside(&desired(), &catalog));
    }

    #[test]
    fn what_somebody_granted_inside_is_named_and_undone() {
        let (desired, server) = (desired(), server(false, 150_000));
        let mut live = fresh();
        let text = |parts: [&str; 4]| parts.map(ToOwned::to_owned).into();
        live.owners.insert("app".to_owned(), "shop_owner".to_owned());
        live.grants.insert(("app".to_owned(), "shop_writer".to_owned(), "CREATE".to_owned()));
        live.grants.insert(("public".to_owned(), "PUBLIC".to_owned(), "CREATE".to_owned()));
        live.defaults.insert(text(["app", "r", "PUBLIC", "SELECT"]));
        live.defaults.insert(text(["*", "S", "other_writer", "USAGE"]));
        insta::assert_yaml_snapshot!(drift::inside(&desired, &server, &live));
    }

    #[test]
    fn a_database_that_was_made_and_is_gone_is_not_made_again() {
        let marker = desired().marker;
        let group = |comment: String| Role { comment: Some(comment), ..Role::default() };
        let groups = |marker: &Marker| -> BTreeMap<String, Role> {
            ROLES
                .map(|role| (desired().names.group(role).as_str().to_owned(), group(marker.comment())))
                .into()
        };
        let begun = Catalog { roles: groups(&marker), ..Catalog::default() };
        let first = database::plan(&desired(), &server(false, 150_000), &begun).unwrap();
        assert!(text(&first).contains("CREATE DATABASE"), "a first run goes on after its groups");

        let bound = Desired { was_made: true, ..desired() };
        for catalog in [&begun, &Catalog::default()] {
            let error = database::plan(&bound, &server(false, 150_000), catalog).unwrap_err();
            assert!(
                matches!(error, Obstacle::Gone(_)) && error.to_string().contains("restore it"),
                "{error}"
            );
        }
        let mut renamed = begun;
        renamed.roles.insert("shop_owner_a".to_owned(), group(marker.comment()));
        assert!(
            matches!(database::plan(&desired(), &server(false, 150_000), &renamed), Err(Obstacle::Gone(_))),
            "a login tells"
        );

        let other = Marker { uid: "u0".to_owned(), ..marker };
        let mut left = Catalog { roles: groups(&other), ..Catalog::default() };
        left.roles.insert("shop_owner_a".to_owned(), group(other.comment()));
        let adopting = Desired { adopts: true, ..desired() };
        let fresh = database::plan(&adopting, &server(false, 150_000), &left).unwrap();
        assert!(text(&fresh).contains("CREATE DATABASE"), "a new object that was told to");
    }

    #[test]
    fn a_login_that_nobody_asks_for_is_shut_once() {
        let mut catalog = unfinished(Some(&desired().marker.comment()));
        let none = Desired { logins: Vec::new(), ..desired() };
        let mut login = Role { can_login: true, ..Role::default() };
        catalog.roles.insert("shop_reader_a".to_owned(), login.clone());
        let plan = logins::plan(&none, &catalog);
        assert_eq!(text(&plan), "ALTER ROLE \"shop_reader_a\" NOLOGIN PASSWORD NULL;\n");
        login.can_login = false;
        catalog.roles.insert("shop_reader_a".to_owned(), login);
        assert!(logins::plan(&none, &catalog).is_empty());
    }
}
