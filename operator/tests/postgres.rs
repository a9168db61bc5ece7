//! The planner and the client against a real PostgreSQL, once with a superuser
//! and once with an administrator that has CREATEROLE and CREATEDB only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "postgres/attacks.rs"]
mod attacks;
#[path = "postgres/ending.rs"]
mod ending;
#[path = "postgres/matrix.rs"]
mod matrix;
#[path = "postgres/repair.rs"]
mod repair;
#[path = "postgres/server.rs"]
mod server;
#[path = "postgres/trash.rs"]
mod trash;

use std::collections::BTreeMap;

use peristyle::{
    external::postgres::{
        Error, Session, Tls, check_login, drop_database, open_login, provision, retire_login,
    },
    sql::{
        Statement,
        catalog::{self, Catalog, Schemas},
        marker::Marker,
        names::{Names, ROLES},
        password::Password,
        plan::{self, Desired, Login, Obstacle},
    },
};
use peristyle_crds::v1alpha1::database::{RoleName, Slot};
use server::{ADMINS, Account, Admin, Server};

type Passwords = BTreeMap<RoleName, Password>;

fn desired(database: &str, uid: &str) -> Desired {
    Desired {
        names: Names::new(database).unwrap(),
        marker: Marker::new(uid, "cluster", "demo", database),
        logins: ROLES.map(|role| Login { role, connection_limit: 3 }).into(),
        adopts: false,
        was_made: false,
    }
}

fn passwords() -> Passwords {
    ROLES.map(|role| (role, Password::generate())).into()
}

/// Provisions and opens the first login of each role that is not open.
async fn establish(
    session: &Session,
    desired: &Desired,
    passwords: &Passwords,
    expected: Option<&str>,
) -> Result<catalog::Server, Error> {
    let provisioned = provision(session, desired, expected).await?;
    for login in &desired.logins {
        let name = desired.names.login(login.role, Slot::A).as_str();
        if provisioned.catalog.roles.get(name).is_none_or(|live| !live.can_login) {
            let catalog = &provisioned.catalog;
            open_login(session, desired, catalog, *login, Slot::A, &passwords[&login.role]).await?;
        }
    }
    Ok(provisioned.server)
}

async fn connect(
    server: &Server,
    desired: &Desired,
    passwords: &Passwords,
    role: RoleName,
) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
    let login = Account::new(desired.names.login(role, Slot::A).as_str(), passwords[&role].expose());
    server.client(&login, desired.names.database.as_str()).await
}

/// The SQLSTATE with which `sql` is refused.
async fn refused(client: &tokio_postgres::Client, sql: &str) -> String {
    let error = client.batch_execute(sql).await.expect_err(&format!("{sql} was allowed"));
    error.code().unwrap().code().to_owned()
}

/// Every login works and has the rights of its role.
async fn assert_works(server: &Server, desired: &Desired, passwords: &Passwords) {
    let owner = connect(server, desired, passwords, RoleName::Owner).await.unwrap();
    owner.batch_execute("CREATE TABLE notes (id serial PRIMARY KEY, text text)").await.unwrap();
    let writer = connect(server, desired, passwords, RoleName::Writer).await.unwrap();
    writer
        .batch_execute("INSERT INTO notes (text) VALUES ('one'); UPDATE notes SET text = 'two'")
        .await
        .unwrap();
    let reader = connect(server, desired, passwords, RoleName::Reader).await.unwrap();
    let row = reader.query_one("SELECT text FROM notes", &[]).await.unwrap();
    assert_eq!(row.get::<_, &str>(0), "two");
    let table = owner
        .query_one("SELECT tableowner::text FROM pg_tables WHERE tablename = 'notes'", &[])
        .await
        .unwrap();
    assert_eq!(table.get::<_, &str>(0), desired.names.group(RoleName::Owner).as_str());
    owner.batch_execute("DROP TABLE notes").await.unwrap();
}

#[tokio::test]
async fn provisioning_works_and_the_second_run_changes_nothing_and_no_log_has_a_password() {
    let server = Server::start().await;
    for (admin, name) in ADMINS.into_iter().zip(["first", "second"]) {
        let (desired, passwords) = (desired(name, "uid-1"), passwords());
        let session = server.session(admin).await;
        let facts = establish(&session, &desired, &passwords, None).await.unwrap();
        assert_eq!(facts.is_superuser, matches!(admin, Admin::Superuser));
        assert_eq!(facts.missing(), Vec::<&str>::new());
        assert_works(&server, &desired, &passwords).await;

        let before = server.log().len();
        establish(&session, &desired, &passwords, Some(&facts.system_identifier)).await.unwrap();
        for role in ROLES {
            let endpoint = server.endpoint("127.0.0.1");
            let answer =
                check_login(&session, &endpoint, &desired.names, role, Slot::A, &passwords[&role]).await;
            assert_eq!(answer.unwrap(), Ok(()));
        }
        let log = server.log();
        for word in ["BEGIN", "CREATE", "ALTER", "GRANT", "REVOKE", "COMMENT"] {
            assert!(!log[before..].contains(&format!(": {word}")), "{word} in the second run as {admin:?}");
        }
        assert!(log.contains("SCRAM-SHA-256$4096:"), "the log shows the statements");
        for password in passwords.values() {
            assert!(!log.contains(password.expose()), "a password is in the log");
        }
    }
}

#[tokio::test]
async fn each_role_can_do_its_work_and_nothing_else() {
    let server = Server::start().await;
    for (admin, name) in ADMINS.into_iter().zip(["first", "second"]) {
        let (desired, mine) = (desired(name, "uid-1"), passwords());
        let session = server.session(admin).await;
        establish(&session, &desired, &mine, None).await.unwrap();
        let owner = connect(&server, &desired, &mine, RoleName::Owner).await.unwrap();
        owner.batch_execute("CREATE TABLE t (id int)").await.unwrap();
        for sql in [
            "CREATE TABLE public.t (id int)",
            "CREATE SCHEMA other",
            "CREATE EXTENSION hstore",
            "CREATE ROLE x",
            "CREATE DATABASE x",
            &format!("ALTER DATABASE {name} SET search_path = app"),
            &format!("COMMENT ON DATABASE {name} IS '{{}}'"),
            "SELECT * FROM pg_authid",
        ] {
            assert_eq!(refused(&owner, sql).await, "42501", "owner: {sql}");
        }
        let writer = connect(&server, &desired, &mine, RoleName::Writer).await.unwrap();
        for sql in [
            "CREATE TABLE t2 (id int)",
            "CREATE TABLE public.t2 (id int)",
            "DROP TABLE t",
            "TRUNCATE t",
            &format!("SET ROLE {name}_owner"),
        ] {
            assert_eq!(refused(&writer, sql).await, "42501", "writer: {sql}");
        }
        let reader = connect(&server, &desired, &mine, RoleName::Reader).await.unwrap();
        for sql in ["INSERT INTO t VALUES (1)", "DELETE FROM t", "CREATE TEMP TABLE x (id int)"] {
            assert_eq!(refused(&reader, sql).await, "42501", "reader: {sql}");
        }
        // What poolers send between two users must not leave the group's role.
        for sql in ["RESET ROLE", "DISCARD ALL", "CREATE TABLE later (id int)"] {
            owner.batch_execute(sql).await.unwrap();
        }
        writer.batch_execute("INSERT INTO later VALUES (1)").await.unwrap();
    }
    let third = (self::desired("third", "uid-3"), passwords());
    let session = server.session(Admin::CreateRole).await;
    establish(&session, &third.0, &third.1, None).await.unwrap();
    for role in ROLES {
        let stranger = Account::new(third.0.names.login(role, Slot::A).as_str(), third.1[&role].expose());
        let error = server.client(&stranger, "first").await.err().unwrap();
        assert_eq!(error.code().unwrap().code(), "42501", "{role:?} of another tenant");
    }
}

/// The statements of a first run, each with whether it runs inside the database.
fn script(desired: &Desired, admin: Admin, passwords: &Passwords) -> Vec<(bool, Statement)> {
    let facts = catalog::Server {
        version_num: 150_000,
        version: "15.0".to_owned(),
        system_identifier: String::new(),
        admin: String::new(),
        is_superuser: matches!(admin, Admin::Superuser),
        attributes: catalog::Attributes { create_role: true, create_database: true, inherit: true },
    };
    let empty = Catalog::default();
    let fresh = Schemas {
        owners: [("public".to_owned(), "pg_database_owner".to_owned())].into(),
        ..Schemas::default()
    };
    let outside = |statement| (false, statement);
    let mut script: Vec<_> =
        plan::database::plan(desired, &facts, &empty).unwrap().into_iter().map(outside).collect();
    script.extend(plan::schema::plan(desired, &facts, &fresh).map(|s| (true, s)));
    for login in &desired.logins {
        let verifier = passwords[&login.role].verifier();
        script.push(outside(plan::logins::open(desired, *login, Slot::A, &empty, &verifier)));
    }
    script
}

#[tokio::test]
async fn a_run_after_a_crash_at_any_statement_ends_as_if_nothing_had_happened() {
    let server = Server::start().await;
    for admin in ADMINS {
        let length = script(&desired("x", "u"), admin, &passwords()).len();
        assert_eq!(length, 8, "groups, database, grants, open, schema, three logins");
        for crash in 0..=length {
            let (desired, passwords) =
                (desired(&format!("{admin:?}_{crash}").to_lowercase(), "uid-1"), passwords());
            let session = server.session(admin).await;
            for (position, (is_inside, statement)) in script(&desired, admin, &passwords).iter().enumerate() {
                let connection = if *is_inside {
                    session.admin(desired.names.database.as_str()).await.unwrap()
                } else {
                    session.maintenance().await.unwrap()
                };
                if position < crash {
                    connection.execute(statement).await.unwrap();
                } else {
                    // The connection breaks before the end of the transaction.
                    let half = statement.expose().strip_suffix("COMMIT").map(ToOwned::to_owned);
                    if let Some(half) = half {
                        let cut = Statement::single("cut", half);
                        connection.execute(&cut).await.unwrap();
                    }
                    drop(connection);
                    break;
                }
                connection.close().await;
            }
            establish(&session, &desired, &passwords, None)
                .await
                .unwrap_or_else(|error| panic!("{admin:?} after {crash} statements: {error}"));
            assert_works(&server, &desired, &passwords).await;
        }
    }
}

#[tokio::test]
async fn what_is_not_ours_is_reported_and_not_touched() {
    let server = Server::start().await;
    let superuser = server.superuser("postgres").await;
    superuser.batch_execute("CREATE DATABASE byhand").await.unwrap();
    superuser.batch_execute("CREATE ROLE group_writer").await.unwrap();
    for admin in ADMINS {
        let session = server.session(admin).await;
        let before = server.log().len();
        for (name, kind) in [("byhand", "database"), ("group", "role")] {
            let error = establish(&session, &desired(name, "uid-1"), &passwords(), None).await.unwrap_err();
            assert!(
                matches!(&error, Error::Obstacle(Obstacle::Conflict(conflict)) if conflict.kind == kind),
                "{error}"
            );
        }
        let log = server.log();
        for word in ["BEGIN", "CREATE", "ALTER", "GRANT", "REVOKE", "COMMENT"] {
            assert!(!log[before..].contains(&format!(": {word}")), "{word} as {admin:?}");
        }
        drop_database(&session, &desired("byhand", "uid-1"), None).await.unwrap();
    }
    server.superuser("byhand").await;

    let session = server.session(Admin::CreateRole).await;
    establish(&session, &desired("shop", "uid-1"), &passwords(), None).await.unwrap();
    let stranger =
        Desired { marker: Marker::new("uid-2", "cluster", "elsewhere", "shop"), ..desired("shop", "uid-2") };
    let error = establish(&session, &stranger, &passwords(), None).await.unwrap_err();
    assert!(matches!(error, Error::Obstacle(Obstacle::Conflict(_))), "{error}");
    drop_database(&session, &stranger, None).await.unwrap();
    server.superuser("shop").await;
}

#[tokio::test]
async fn the_successor_of_a_retained_database_takes_it_back_only_when_asked_and_with_new_passwords() {
    let server = Server::start().await;
    for (admin, name) in ADMINS.into_iter().zip(["first", "second"]) {
        let session = server.session(admin).await;
        let (before, old) = (desired(name, "uid-1"), passwords());
        establish(&session, &before, &old, None).await.unwrap();
        let owner = connect(&server, &before, &old, RoleName::Owner).await.unwrap();
        owner.batch_execute("CREATE TABLE kept (id int)").await.unwrap();

        let stays = connect(&server, &before, &old, RoleName::Writer).await.unwrap();
        let (after, new) = (desired(name, "uid-2"), passwords());
        drop_database(&session, &after, None).await.unwrap();
        let error = provision(&session, &after, None).await.unwrap_err();
        assert!(error.to_string().contains("set spec.adopt to IfMarked"), "{error}");
        connect(&server, &before, &old, RoleName::Writer).await.map(drop).unwrap();
        stays.batch_execute("SELECT 1").await.expect("a refusal ended a session");
        let after = Desired { adopts: true, ..after };
        establish(&session, &after, &new, None).await.unwrap();
        assert!(stays.batch_execute("SELECT 1").await.is_err(), "a session with the old password goes on");
        let endpoint = server.endpoint("127.0.0.1");
        for role in ROLES {
            let check = || check_login(&session, &endpoint, &after.names, role, Slot::A, &new[&role]);
            assert_eq!(check().await.unwrap(), Ok(()));
            assert!(connect(&server, &before, &old, role).await.is_err(), "the old password of {role:?}");
        }
        let reader = connect(&server, &after, &new, RoleName::Reader).await.unwrap();
        reader.batch_execute("SELECT * FROM kept").await.unwrap();
    }
}

#[tokio::test]
async fn a_login_is_retired_when_its_last_session_has_ended() {
    let server = Server::start().await;
    for (admin, name) in ADMINS.into_iter().zip(["first", "second"]) {
        let session = server.session(admin).await;
        let (desired, old) = (desired(name, "uid-1"), passwords());
        establish(&session, &desired, &old, None).await.unwrap();
        let open = connect(&server, &desired, &old, RoleName::Writer).await.unwrap();
        let writer = Login { role: RoleName::Writer, connection_limit: 3 };
        let catalog = provision(&session, &desired, None).await.unwrap().catalog;
        let new = Password::generate();
        open_login(&session, &desired, &catalog, writer, Slot::B, &new).await.unwrap();
        let endpoint = server.endpoint("127.0.0.1");
        let check = || check_login(&session, &endpoint, &desired.names, RoleName::Writer, Slot::B, &new);
        assert_eq!(check().await.unwrap(), Ok(()));

        let retire = || retire_login(&session, &desired.names, RoleName::Writer, Slot::A);
        assert_eq!(retire().await.unwrap(), 1);
        open.batch_execute("SELECT 1").await.unwrap();
        connect(&server, &desired, &old, RoleName::Writer).await.map(drop).unwrap();
        drop(open);
        while retire().await.unwrap() > 0 {}
        let error = connect(&server, &desired, &old, RoleName::Writer).await.err().unwrap();
        assert_eq!(error.code().unwrap().code(), "28P01");
        assert_eq!(check().await.unwrap(), Ok(()));
    }
}

#[tokio::test]
async fn drift_is_named_and_repaired() {
    let server = Server::start().await;
    for (admin, name) in ADMINS.into_iter().zip(["first", "second"]) {
        let session = server.session(admin).await;
        let (desired, passwords) = (desired(name, "uid-1"), passwords());
        establish(&session, &desired, &passwords, None).await.unwrap();
        let superuser = server.superuser("postgres").await;
        for sql in [
            format!("GRANT CONNECT ON DATABASE {name} TO PUBLIC"),
            format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false"),
            format!("ALTER ROLE {name}_owner_a IN DATABASE {name} RESET role"),
            format!("REVOKE {name}_writer FROM {name}_writer_a"),
            format!("ALTER ROLE {name}_reader_a CONNECTION LIMIT 99"),
            format!("ALTER ROLE {name}_reader CREATEDB"),
            format!("ALTER ROLE {name}_writer_a VALID UNTIL '2000-01-01'"),
            format!("CREATE ROLE {name}_human"),
            format!("GRANT {name}_owner TO {name}_human"),
            format!("GRANT CONNECT ON DATABASE {name} TO {name}_human"),
        ] {
            superuser.batch_execute(&sql).await.unwrap();
        }
        superuser.batch_execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS true")).await.unwrap();
        let inside = server.superuser(name).await;
        for sql in [
            format!("GRANT CREATE ON SCHEMA app TO {name}_writer"),
            format!(
                "ALTER DEFAULT PRIVILEGES FOR ROLE {name}_owner IN SCHEMA app GRANT SELECT ON TABLES TO PUBLIC"
            ),
            format!(
                "ALTER DEFAULT PRIVILEGES FOR ROLE {name}_owner IN SCHEMA app REVOKE SELECT ON TABLES FROM {name}_reader"
            ),
            "GRANT CREATE ON SCHEMA public TO PUBLIC".to_owned(),
        ] {
            inside.batch_execute(&sql).await.unwrap();
        }
        drop(inside);
        superuser.batch_execute(&format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false")).await.unwrap();
        let mut differences = provision(&session, &desired, None).await.unwrap().differences;
        differences.sort();
        let expected = [
            "PUBLIC has CONNECT on the database",
            "PUBLIC has CREATE on schema public",
            "PUBLIC has SELECT on TABLES to come",
            "NAME_human has CONNECT on the database",
            "NAME_human is a member of NAME_owner",
            "NAME_owner_a lacks its role or search_path",
            "NAME_reader has CREATEDB",
            "NAME_reader lacks SELECT on TABLES to come",
            "NAME_reader_a has connection limit 99 instead of 3",
            "NAME_writer has CREATE on schema app",
            "NAME_writer_a lacks its group or CONNECT",
            "the database is closed",
            "the password of NAME_writer_a expires",
        ];
        let mut expected = expected.map(|text| text.replace("NAME", name));
        expected.sort();
        assert_eq!(differences, expected);
        let second = provision(&session, &desired, None).await.unwrap();
        assert_eq!(second.differences, Vec::<String>::new());
        let owner = connect(&server, &desired, &passwords, RoleName::Owner).await.unwrap();
        owner.batch_execute("DROP SCHEMA app CASCADE").await.unwrap();
        establish(&session, &desired, &passwords, None).await.unwrap();
        assert_works(&server, &desired, &passwords).await;

        let fewer = Desired { logins: desired.logins[..2].to_vec(), ..desired.clone() };
        establish(&session, &fewer, &passwords, None).await.unwrap();
        let error = connect(&server, &desired, &passwords, RoleName::Reader).await.err().unwrap();
        assert_eq!(error.code().unwrap().code(), "28P01", "a login nobody asks for is shut");
        let public = superuser
            .query_one(
                "SELECT count(*) FROM pg_database d, aclexplode(d.datacl) x WHERE d.datname = $1 AND x.grantee = 0",
                &[&name],
            )
            .await
            .unwrap();
        assert_eq!(public.get::<_, i64>(0), 0);
    }
}

#[tokio::test]
async fn dropping_ends_sessions_and_leaves_nothing_and_can_be_repeated() {
    let server = Server::start().await;
    for (admin, name) in ADMINS.into_iter().zip(["first", "second"]) {
        let session = server.session(admin).await;
        let (desired, passwords) = (desired(name, "uid-1"), passwords());
        let facts = establish(&session, &desired, &passwords, None).await.unwrap();
        let error = drop_database(&session, &desired, Some("another")).await.unwrap_err();
        assert!(matches!(error, Error::OtherServer { .. }), "{error}");
        let open = connect(&server, &desired, &passwords, RoleName::Writer).await.unwrap();
        let human = server.superuser(name).await;
        if matches!(admin, Admin::CreateRole) {
            let error = drop_database(&session, &desired, None).await.unwrap_err();
            assert!(error.to_string().contains("1 of postgres"), "{error}");
        }
        drop(human);
        for _ in 0..2 {
            drop_database(&session, &desired, Some(&facts.system_identifier)).await.unwrap();
        }
        assert!(open.batch_execute("SELECT 1").await.is_err());
        let left = server
            .superuser("postgres")
            .await
            .query_one(
                "SELECT (SELECT count(*) FROM pg_roles WHERE rolname LIKE $1) + \
                 (SELECT count(*) FROM pg_database WHERE datname LIKE $1)",
                &[&format!("{name}%")],
            )
            .await
            .unwrap();
        assert_eq!(left.get::<_, i64>(0), 0);
    }
}

#[tokio::test]
async fn another_tenants_grant_that_keeps_a_role_is_named() {
    let server = Server::start().await;
    let session = server.session(Admin::CreateRole).await;
    let (ours, theirs) = (desired("ours", "uid-1"), desired("theirs", "uid-2"));
    let secrets = passwords();
    establish(&session, &ours, &secrets, None).await.unwrap();
    establish(&session, &theirs, &secrets, None).await.unwrap();
    let owner = connect(&server, &theirs, &secrets, RoleName::Owner).await.unwrap();
    owner.batch_execute("CREATE TABLE t (id int); GRANT SELECT ON t TO ours_writer").await.unwrap();
    let error = drop_database(&session, &ours, None).await.unwrap_err();
    assert!(error.to_string().contains("ours_writer has 1 in theirs"), "{error}");
}

#[tokio::test]
async fn certificate_and_host_name_are_checked() {
    let server = Server::start().await;
    let tls = Tls::VerifyFull { authorities: server.authorities() };
    let session = server.session_with(Admin::CreateRole, "localhost", tls.clone()).await;
    let (desired, passwords) = (desired("shop", "uid-1"), passwords());
    establish(&session, &desired, &passwords, None).await.unwrap();

    let wrong_name = server.session_with(Admin::CreateRole, "127.0.0.1", tls).await;
    let error = wrong_name.maintenance().await.err().unwrap();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");

    let other = Server::start().await;
    let stranger = Tls::VerifyFull { authorities: other.authorities() };
    let wrong_authority = server.session_with(Admin::Superuser, "localhost", stranger).await;
    let error = wrong_authority.maintenance().await.err().unwrap();
    assert!(matches!(error, Error::Unreachable { .. }), "{error}");
}

#[tokio::test]
async fn a_wrong_password_of_the_administrator_is_not_taken_for_a_server_that_is_down() {
    let server = Server::start().await;
    let mine = server.client(&Account::new(&server.creator().user, "wrong"), "postgres").await.err().unwrap();
    assert_eq!(mine.code().unwrap().code(), "28P01");
    let session = server.session(Admin::CreateRole).await;
    let superuser = server.superuser("postgres").await;
    superuser.batch_execute("ALTER ROLE creator NOLOGIN").await.unwrap();
    let error = session.maintenance().await.err().unwrap();
    assert!(matches!(&error, Error::Refused { refusal, .. } if refusal.code == "28000"), "{error}");
    assert!(!error.to_string().contains("wrong"));
}
