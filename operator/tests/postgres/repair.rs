//! What cannot be undone is said, and holds up nothing else; what is gone is
//! not made anew.

use peristyle::{
    external::postgres::{Error, Left, provision},
    sql::plan::{Desired, Obstacle},
};
use peristyle_crds::v1alpha1::database::RoleName;

use super::{assert_works, connect, desired, establish, passwords};
use crate::server::{ADMINS, Admin, Server};

#[tokio::test]
async fn a_power_that_the_administrator_cannot_take_back_is_named_and_holds_up_no_other_repair() {
    let server = Server::start().await;
    for (admin, name) in ADMINS.into_iter().zip(["first", "second"]) {
        let session = server.session(admin).await;
        let (desired, passwords) = (desired(name, "uid-1"), passwords());
        establish(&session, &desired, &passwords, None).await.unwrap();
        let superuser = server.superuser("postgres").await;
        for sql in ["ALTER ROLE NAME_reader REPLICATION", "GRANT CONNECT ON DATABASE NAME TO PUBLIC"] {
            superuser.batch_execute(&sql.replace("NAME", name)).await.unwrap();
        }
        let found = provision(&session, &desired, None).await.unwrap();
        let both =
            ["PUBLIC has CONNECT on the database".to_owned(), format!("{name}_reader has REPLICATION")];
        assert_eq!(found.differences, both);
        let again = provision(&session, &desired, None).await.unwrap();
        match admin {
            Admin::Superuser => {
                assert_eq!((found.left, again.differences), (Vec::new(), Vec::new()));
            }
            Admin::CreateRole => {
                let [Left { difference, cause }] = &found.left[..] else { panic!("{:?}", found.left) };
                assert_eq!(*difference, both[1]);
                assert!(cause.contains("SQLSTATE 42501"), "{cause}");
                assert_eq!((&again.differences[..], again.left), (&both[1..], found.left));
            }
        }
        assert_works(&server, &desired, &passwords).await;
    }
}

#[tokio::test]
async fn what_a_tenant_granted_on_with_the_right_to_grant_is_undone_with_that_right() {
    let server = Server::start().await;
    for (admin, name) in ADMINS.into_iter().zip(["first", "second"]) {
        let session = server.session(admin).await;
        let (ours, passwords) = (desired(name, "uid-1"), passwords());
        establish(&session, &ours, &passwords, None).await.unwrap();
        let theirs = desired(&format!("{name}_other"), "uid-2");
        establish(&session, &theirs, &passwords, None).await.unwrap();
        let owner = connect(&server, &ours, &passwords, RoleName::Owner).await.unwrap();
        let grant = format!("GRANT USAGE ON SCHEMA app TO {name}_writer WITH GRANT OPTION");
        owner.batch_execute(&grant).await.unwrap();
        let writer = connect(&server, &ours, &passwords, RoleName::Writer).await.unwrap();
        let grant = format!("GRANT USAGE ON SCHEMA app TO {name}_other_writer");
        writer.batch_execute(&grant).await.unwrap();
        let superuser = server.superuser("postgres").await;
        let grant = format!("GRANT CONNECT ON DATABASE {name} TO {name}_writer WITH GRANT OPTION");
        superuser.batch_execute(&grant).await.unwrap();
        let grant = format!("GRANT CONNECT ON DATABASE {name} TO {name}_other_writer");
        writer.batch_execute(&grant).await.unwrap();

        let found = provision(&session, &ours, None).await.unwrap();
        let expected = [
            "NAME_writer may grant CONNECT on the database",
            "NAME_other_writer has CONNECT on the database",
            "NAME_writer may grant USAGE on schema app",
            "NAME_other_writer has USAGE on schema app",
        ];
        assert_eq!(found.differences, expected.map(|text| text.replace("NAME", name)), "{admin:?}");
        assert_eq!(found.left, Vec::new(), "{admin:?}");
        assert_eq!(provision(&session, &ours, None).await.unwrap().differences, Vec::<String>::new());
        assert_works(&server, &ours, &passwords).await;
    }
}

#[tokio::test]
async fn a_table_that_somebody_else_put_into_the_schema_holds_up_no_repair() {
    let server = Server::start().await;
    for (admin, name) in ADMINS.into_iter().zip(["first", "second"]) {
        let session = server.session(admin).await;
        let (desired, passwords) = (desired(name, "uid-1"), passwords());
        establish(&session, &desired, &passwords, None).await.unwrap();
        let inside = server.superuser(name).await;
        inside.batch_execute("CREATE TABLE app.foreign_table (id int)").await.unwrap();
        let owner = connect(&server, &desired, &passwords, RoleName::Owner).await.unwrap();
        let revoke = "ALTER DEFAULT PRIVILEGES IN SCHEMA app REVOKE SELECT ON TABLES FROM NAME_reader; \
             CREATE TABLE \"late \"\" table\" (id int); CREATE SEQUENCE numbers; \
             CREATE FUNCTION one(a int, b text) RETURNS int LANGUAGE sql AS 'SELECT 1'";
        owner.batch_execute(&revoke.replace("NAME", name)).await.unwrap();

        let found = provision(&session, &desired, None).await.unwrap();
        assert_eq!(found.differences, [format!("{name}_reader lacks SELECT on TABLES to come")]);
        assert_eq!(found.left, Vec::new(), "{admin:?}");
        let reader = connect(&server, &desired, &passwords, RoleName::Reader).await.unwrap();
        reader.batch_execute("SELECT * FROM app.\"late \"\" table\"").await.unwrap();
    }
}

#[tokio::test]
async fn a_tenants_lock_holds_up_a_repair_only_as_long_as_it_is_held() {
    let server = Server::start().await;
    let session = server.session(Admin::CreateRole).await;
    let (desired, passwords) = (desired("shop", "uid-1"), passwords());
    establish(&session, &desired, &passwords, None).await.unwrap();
    let owner = connect(&server, &desired, &passwords, RoleName::Owner).await.unwrap();
    for sql in [
        "CREATE TABLE t (id int)",
        "ALTER DEFAULT PRIVILEGES IN SCHEMA app REVOKE SELECT ON TABLES FROM shop_reader",
        "BEGIN",
        "GRANT SELECT ON TABLE t TO shop_writer",
    ] {
        owner.batch_execute(sql).await.unwrap();
    }
    // The table's row in the catalog is the tenant's until it commits.
    owner.batch_execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE").await.unwrap();
    let found = provision(&session, &desired, None).await.unwrap();
    let [Left { cause, .. }] = &found.left[..] else { panic!("{:?}", found.left) };
    assert!(cause.contains("55P03") || cause.contains("XX000"), "{cause}");
    owner.batch_execute("COMMIT").await.unwrap();
    assert_eq!(provision(&session, &desired, None).await.unwrap().left, Vec::new());
    assert_eq!(provision(&session, &desired, None).await.unwrap().differences, Vec::<String>::new());
    assert_works(&server, &desired, &passwords).await;
}

#[tokio::test]
async fn a_database_that_was_made_and_is_gone_is_not_made_again_until_it_is_back() {
    let server = Server::start().await;
    for (admin, name) in ADMINS.into_iter().zip(["first", "second"]) {
        let session = server.session(admin).await;
        let (desired, passwords) = (desired(name, "uid-1"), passwords());
        establish(&session, &desired, &passwords, None).await.unwrap();
        let owner = connect(&server, &desired, &passwords, RoleName::Owner).await.unwrap();
        owner.batch_execute("CREATE TABLE kept AS SELECT 42 AS answer").await.unwrap();
        drop(owner);
        let superuser = server.superuser("postgres").await;
        superuser.batch_execute(&format!("ALTER DATABASE {name} RENAME TO {name}_elsewhere")).await.unwrap();
        for was_made in [false, true] {
            let bound = Desired { was_made, ..desired.clone() };
            let error = provision(&session, &bound, None).await.unwrap_err();
            assert!(matches!(error, Error::Obstacle(Obstacle::Gone(_))), "{error}");
        }
        let rows =
            superuser.query("SELECT 1 FROM pg_database WHERE datname = $1", &[&name]).await.unwrap().len();
        assert_eq!(rows, 0, "an empty one was made");
        superuser.batch_execute(&format!("ALTER DATABASE {name}_elsewhere RENAME TO {name}")).await.unwrap();
        let bound = Desired { was_made: true, ..desired.clone() };
        assert_eq!(provision(&session, &bound, None).await.unwrap().differences, Vec::<String>::new());
        let reader = connect(&server, &desired, &passwords, RoleName::Reader).await.unwrap();
        let row = reader.query_one("SELECT answer FROM kept", &[]).await.unwrap();
        assert_eq!(row.get::<_, i32>(0), 42);

        // From a backup that is older than the database, roles and all.
        let never = Desired { was_made: true, ..super::desired(&format!("{name}_lost"), "uid-2") };
        let error = provision(&session, &never, None).await.unwrap_err();
        assert!(matches!(error, Error::Obstacle(Obstacle::Gone(_))), "{error}");
    }
}

#[tokio::test]
async fn a_grant_that_only_warns_that_it_did_nothing_is_an_error() {
    use peristyle::sql::Statement;
    let server = Server::start().await;
    let superuser = server.superuser("postgres").await;
    superuser.batch_execute("CREATE DATABASE foreign_one").await.unwrap();
    superuser.batch_execute("CREATE ROLE somebody").await.unwrap();
    superuser
        .batch_execute("GRANT CONNECT ON DATABASE foreign_one TO creator WITH GRANT OPTION")
        .await
        .unwrap();
    let session = server.session(Admin::CreateRole).await;
    let admin = session.maintenance().await.unwrap();
    // CONNECT may be granted and the rest not: a warning, and success.
    let grant =
        Statement::single("grant", "GRANT CONNECT, CREATE ON DATABASE foreign_one TO somebody".to_owned());
    let error = admin.execute(&grant).await.unwrap_err();
    assert!(matches!(&error, Error::NoEffect { message, .. } if message.contains("not all")), "{error}");
    // It is told once, of the statement that it belongs to.
    admin.execute(&Statement::single("ask", "SELECT 1".to_owned())).await.unwrap();
    admin.close().await;
}
