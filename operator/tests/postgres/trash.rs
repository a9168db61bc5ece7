//! Into the trash, back out of it, and its end.

use std::time::Duration;

use jiff::Timestamp;
use peristyle::{
    external::postgres::{Error, Trash, drop_database, empty_trash, provision, trash_database},
    sql::{
        Statement,
        marker::Marker,
        plan::{self, Desired, Obstacle},
    },
};
use peristyle_crds::v1alpha1::database::RoleName;

use super::{assert_works, connect, desired, establish, passwords};
use crate::server::{ADMINS, Server};

const KEEPER: &str = "keeper";
const HOUR: Duration = Duration::from_secs(3600);

/// Databases and roles whose names begin with `name`.
async fn left(server: &Server, name: &str) -> Vec<String> {
    let superuser = server.superuser("postgres").await;
    let sql = "SELECT datname::text FROM pg_database WHERE starts_with(datname::text, $1) UNION ALL \
         SELECT rolname::text FROM pg_roles WHERE starts_with(rolname::text, $1) ORDER BY 1";
    superuser.query(sql, &[&name]).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn a_trashed_database_lets_nobody_in_and_comes_back_with_its_data_to_its_successor_only() {
    let server = Server::start().await;
    for (admin, name) in ADMINS.into_iter().zip(["first", "second"]) {
        let session = server.session(admin).await;
        let (before, old) = (desired(name, "uid-1"), passwords());
        let facts = establish(&session, &before, &old, None).await.unwrap();
        let owner = connect(&server, &before, &old, RoleName::Owner).await.unwrap();
        owner.batch_execute("CREATE TABLE kept AS SELECT 42 AS answer").await.unwrap();

        let error = trash_database(&session, &before, KEEPER, Some("another")).await.unwrap_err();
        assert!(matches!(error, Error::OtherServer { .. }), "{error}");
        trash_database(&session, &desired(name, "uid-2"), KEEPER, None).await.unwrap();
        owner.batch_execute("SELECT 1").await.expect("another object of the name leads to nothing");
        let human = server.superuser(name).await;
        if matches!(admin, crate::server::Admin::CreateRole) {
            let error = trash_database(&session, &before, KEEPER, None).await.unwrap_err();
            assert!(error.to_string().contains("1 of postgres"), "{error}");
        }
        drop(human);
        for _ in 0..2 {
            trash_database(&session, &before, KEEPER, Some(&facts.system_identifier)).await.unwrap();
        }
        assert!(owner.batch_execute("SELECT 1").await.is_err(), "the session goes on");
        let error = connect(&server, &before, &old, RoleName::Writer).await.err().unwrap();
        assert_eq!(error.code().unwrap().code(), "28P01");
        let names = left(&server, name).await;
        assert!(names.contains(&format!("{name}-trash")) && !names.contains(&name.to_owned()), "{names:?}");

        let stranger = Desired {
            adopts: true,
            marker: Marker::new("uid-3", "cluster", "other", name),
            ..before.clone()
        };
        let error = provision(&session, &stranger, None).await.unwrap_err();
        assert!(matches!(error, Error::Obstacle(Obstacle::Conflict(_))), "{error}");
        let (after, new) = (desired(name, "uid-2"), passwords());
        let error = provision(&session, &after, None).await.unwrap_err();
        assert!(error.to_string().contains("set spec.adopt to IfMarked"), "{error}");
        assert_eq!(left(&server, name).await, names, "a refusal changed something");

        let after = Desired { adopts: true, ..after };
        establish(&session, &after, &new, None).await.unwrap();
        let reader = connect(&server, &after, &new, RoleName::Reader).await.unwrap();
        let row = reader.query_one("SELECT answer FROM kept", &[]).await.unwrap();
        assert_eq!(row.get::<_, i32>(0), 42);
        assert!(connect(&server, &after, &old, RoleName::Reader).await.is_err(), "the old password works");
        assert_works(&server, &after, &new).await;
        assert_eq!(provision(&session, &after, None).await.unwrap().differences, Vec::<String>::new());
        let trash = empty_trash(&session, KEEPER, Duration::ZERO).await.unwrap();
        assert_eq!(trash, Trash::default(), "what was taken back is not in the trash");
        assert_works(&server, &after, &new).await;
    }
}

#[tokio::test]
async fn a_crash_on_the_way_into_the_trash_or_back_loses_nothing() {
    let server = Server::start().await;
    for admin in ADMINS {
        let session = server.session(admin).await;
        for crash in 0.. {
            let (before, old) = (desired(&format!("{admin:?}_{crash}").to_lowercase(), "uid-1"), passwords());
            establish(&session, &before, &old, None).await.unwrap();
            let owner = connect(&server, &before, &old, RoleName::Owner).await.unwrap();
            owner.batch_execute("CREATE TABLE kept (id int)").await.unwrap();
            let found = provision(&session, &before, None).await.unwrap();
            let script =
                plan::trash::plan(&before, &found.server, &found.catalog, KEEPER, Timestamp::UNIX_EPOCH);
            assert!(script.len() > 3, "{script:?}");
            let is_whole = crash >= script.len();
            run(&session, &script, crash).await;
            if !is_whole {
                trash_database(&session, &before, KEEPER, None)
                    .await
                    .unwrap_or_else(|error| panic!("{admin:?} after {crash} statements: {error}"));
            }

            // Back again; the way is one transaction and then that of any provisioning.
            let (after, new) =
                (Desired { adopts: true, ..desired(before.names.database.as_str(), "uid-2") }, passwords());
            establish(&session, &after, &new, None).await.unwrap();
            let reader = connect(&server, &after, &new, RoleName::Reader).await.unwrap();
            reader.batch_execute("SELECT * FROM kept").await.unwrap();
            assert_works(&server, &after, &new).await;
            if is_whole {
                break;
            }
        }
    }
}

/// Runs `script` until the connection breaks in the statement number `crash`.
async fn run(session: &peristyle::external::postgres::Session, script: &[Statement], crash: usize) {
    for (position, statement) in script.iter().enumerate() {
        let connection = session.maintenance().await.unwrap();
        if position < crash {
            connection.execute(statement).await.unwrap();
            connection.close().await;
            continue;
        }
        if let Some(half) = statement.expose().strip_suffix("COMMIT") {
            connection.execute(&Statement::single("cut", half.to_owned())).await.unwrap();
        }
        return drop(connection);
    }
}

#[tokio::test]
async fn the_trash_is_emptied_when_its_time_is_over_and_only_of_what_is_marked() {
    let server = Server::start().await;
    for (admin, name) in ADMINS.into_iter().zip(["first", "second"]) {
        let session = server.session(admin).await;
        let (trashed, secrets) = (desired(name, "uid-1"), passwords());
        establish(&session, &trashed, &secrets, None).await.unwrap();
        let (live, others) = (desired(&format!("{name}_live"), "uid-2"), passwords());
        establish(&session, &live, &others, None).await.unwrap();
        trash_database(&session, &trashed, KEEPER, None).await.unwrap();
        let superuser = server.superuser("postgres").await;
        let mark = superuser
            .query_one(
                "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = $1",
                &[&format!("{name}-trash")],
            )
            .await
            .unwrap();
        let mark: String = mark.get(0);
        // Marked as if it were trash, but open, or of another name, or somebody else's.
        superuser.batch_execute(&format!("COMMENT ON DATABASE {name}_live IS '{mark}'")).await.unwrap();
        for sql in [
            "CREATE DATABASE \"NAME-human-trash\" ALLOW_CONNECTIONS false",
            "COMMENT ON DATABASE \"NAME-human-trash\" IS 'MARK'",
        ] {
            superuser.batch_execute(&sql.replace("NAME", name).replace("MARK", &mark)).await.unwrap();
        }
        if matches!(admin, crate::server::Admin::Superuser) {
            // This administrator is who made it.
            superuser
                .batch_execute(&format!("ALTER DATABASE \"{name}-human-trash\" OWNER TO creator"))
                .await
                .unwrap();
        }
        let all = left(&server, name).await;

        let early = empty_trash(&session, KEEPER, HOUR).await.unwrap();
        assert!(early.next.is_some_and(|next| next <= HOUR && next > HOUR / 2), "{early:?}");
        assert_eq!(empty_trash(&session, "another", Duration::ZERO).await.unwrap(), Trash::default());
        assert_eq!(left(&server, name).await, all, "dropped too early");

        // A tenant's grant holds up a role; the database is gone, and the role follows when it can.
        let owner = connect(&server, &live, &others, RoleName::Owner).await.unwrap();
        owner
            .batch_execute(&format!("CREATE TABLE t (id int); GRANT SELECT ON t TO {name}_writer"))
            .await
            .unwrap();
        let kept = empty_trash(&session, KEEPER, Duration::ZERO).await.unwrap().kept;
        assert!(kept[0].contains(&format!("{name}_writer has 1 in {name}_live")), "{kept:?}");
        assert!(!left(&server, name).await.contains(&format!("{name}-trash")));
        owner.batch_execute("DROP TABLE t").await.unwrap();
        assert_eq!(empty_trash(&session, KEEPER, Duration::ZERO).await.unwrap(), Trash::default());
        let rest: Vec<String> =
            all.into_iter().filter(|found| found.contains("_live") || found.contains("human")).collect();
        assert_eq!(left(&server, name).await, rest, "more or less than the trash was dropped");
        owner.batch_execute("SELECT 1").await.unwrap();
    }
}

#[tokio::test]
async fn a_trashed_database_can_still_be_dropped_by_its_object() {
    let server = Server::start().await;
    for (admin, name) in ADMINS.into_iter().zip(["first", "second"]) {
        let session = server.session(admin).await;
        let desired = desired(name, "uid-1");
        establish(&session, &desired, &passwords(), None).await.unwrap();
        trash_database(&session, &desired, KEEPER, None).await.unwrap();
        drop_database(&session, &super::desired(name, "uid-2"), None).await.unwrap();
        assert_eq!(left(&server, name).await.len(), 7, "its successor dropped something");
        drop_database(&session, &desired, None).await.unwrap();
        assert_eq!(left(&server, name).await, Vec::<String>::new());
    }
}
