//! What a tenant may try against the operator's session, and payloads in
//! everything that becomes text of a statement.

use std::collections::{BTreeMap, BTreeSet};

use peristyle::{
    external::postgres::{check_login, drop_database, open_login, provision, retire_login, trash_database},
    sql::{Identifier, marker::Marker, password::Password, plan::Desired},
};
use peristyle_crds::v1alpha1::database::{RoleName, Slot};

use super::{assert_works, connect, desired, establish, passwords};
use crate::server::{ADMINS, Server};

#[tokio::test]
async fn nothing_that_a_tenant_makes_or_sets_runs_in_or_disturbs_the_operators_session() {
    let server = Server::start().await;
    for (admin, name) in ADMINS.into_iter().zip(["first", "second"]) {
        let session = server.session(admin).await;
        let (desired, passwords) = (desired(name, "uid-1"), passwords());
        establish(&session, &desired, &passwords, None).await.unwrap();
        let owner = connect(&server, &desired, &passwords, RoleName::Owner).await.unwrap();
        // Shadows of all that the catalog queries call; each leaves a trace.
        owner.batch_execute("CREATE TABLE app.traces (who text)").await.unwrap();
        for (function, result) in [
            ("length(name)", "int"),
            ("aclexplode(aclitem[])", "int"),
            ("pg_get_userbyid(oid)", "name"),
            ("coalesce_(text)", "text"),
            ("current_setting(text)", "text"),
        ] {
            owner
                .batch_execute(&format!(
                    "CREATE FUNCTION app.{function} RETURNS {result} LANGUAGE plpgsql AS $$ \
                     BEGIN INSERT INTO app.traces VALUES (current_user); RETURN NULL; END $$"
                ))
                .await
                .unwrap();
        }
        owner
            .batch_execute(
                "CREATE FUNCTION app.eq(name, text) RETURNS bool LANGUAGE plpgsql AS $$ \
                 BEGIN INSERT INTO app.traces VALUES (current_user); RETURN true; END $$; \
                 CREATE OPERATOR app.= (LEFTARG = name, RIGHTARG = text, FUNCTION = app.eq)",
            )
            .await
            .unwrap();
        let writer = connect(&server, &desired, &passwords, RoleName::Writer).await.unwrap();
        for (client, settings) in [
            (
                &owner,
                [
                    "search_path = app, pg_catalog",
                    "default_transaction_read_only = on",
                    "statement_timeout = 1",
                ],
            ),
            (
                &writer,
                [
                    "search_path = app, pg_catalog",
                    "default_transaction_read_only = on",
                    "local_preload_libraries = 'nope'",
                ],
            ),
        ] {
            for setting in settings {
                // The last: a library that does not exist is refused, or stops who connects unpinned.
                drop(client.batch_execute(&format!("ALTER ROLE CURRENT_USER SET {setting}")).await);
            }
        }
        for sql in [
            format!("ALTER DATABASE {name} SET search_path = app, pg_catalog"),
            format!("ALTER DATABASE {name} OWNER TO {name}_owner"),
            "ALTER ROLE creator SET search_path = app".to_owned(),
            "CREATE EVENT TRIGGER t ON ddl_command_end EXECUTE FUNCTION app.coalesce_('x')".to_owned(),
            format!("GRANT {name}_owner TO {name}_writer_a"),
        ] {
            assert!(owner.batch_execute(&sql).await.is_err(), "allowed: {sql}");
        }
        // What only a superuser could do for a tenant: the operator's session is pinned all the same.
        let superuser = server.superuser("postgres").await;
        for setting in [
            "search_path = app, pg_catalog",
            "default_transaction_read_only = on",
            "statement_timeout = 1",
            "role = 'pg_monitor'",
        ] {
            superuser.batch_execute(&format!("ALTER DATABASE {name} SET {setting}")).await.unwrap();
        }

        let found = provision(&session, &desired, None).await.unwrap();
        assert_eq!(found.differences, Vec::<String>::new());
        for role in [RoleName::Owner, RoleName::Writer] {
            let endpoint = server.endpoint("127.0.0.1");
            let answer =
                check_login(&session, &endpoint, &desired.names, role, Slot::A, &passwords[&role]).await;
            assert_eq!(answer.unwrap(), Ok(()), "{role:?} with the settings of its own");
        }
        let fewer = Desired { logins: desired.logins[..2].to_vec(), ..desired.clone() };
        provision(&session, &fewer, None).await.unwrap();
        superuser.batch_execute(&format!("ALTER DATABASE {name} RESET ALL")).await.unwrap();
        let inside = server.superuser(name).await;
        let traces = inside.query("SELECT who FROM app.traces", &[]).await.unwrap();
        assert!(traces.is_empty(), "a function of the tenant ran as {:?}", traces[0].get::<_, String>(0));
        drop((owner, writer, inside));
        drop_database(&session, &desired, None).await.unwrap();
    }
}

#[tokio::test]
async fn a_payload_in_a_name_or_a_mark_changes_no_statements_shape() {
    let server = Server::start().await;
    let payloads = [
        "x\"; DROP ROLE creator; --",
        "x'; DROP ROLE creator; --",
        "x\\'; DROP ROLE creator; --",
        "x\"\" OR 1=1",
        "x$$; SELECT 1; $$",
        "x; COMMIT; CREATE ROLE evil SUPERUSER",
        "x\nSELECT 1; /*",
        "Ünïcode 🦀 \u{202e}",
        "%s %I %L {0} $1",
        "SELECT",
    ];
    for admin in ADMINS {
        let session = server.session(admin).await;
        let mut shapes: BTreeMap<&str, BTreeSet<Vec<String>>> = BTreeMap::new();
        for (number, payload) in payloads.iter().enumerate() {
            let name = format!("{payload}{admin:?}{number}").chars().take(40).collect::<String>();
            let name = format!("{name}{number}{admin:?}").chars().take(50).collect::<String>();
            let marker = Marker { uid: format!("{payload}{number}"), claim: (*payload).to_owned() };
            let desired = Desired { marker, ..desired(&name, "uid") };
            let secrets = passwords();
            let grantee = Identifier::new(format!("{payload} grantee {number}")).unwrap();
            let mut seen = server.log().len();
            let mut told = |step: &'static str| {
                let log = server.log();
                let shape = shape(&log[seen..], &desired, &grantee);
                assert!(!shape.is_empty(), "{step}: nothing was logged");
                shapes.entry(step).or_default().insert(shape);
                seen = log.len();
            };
            establish(&session, &desired, &secrets, None).await.unwrap();
            told("create");
            let found = provision(&session, &desired, None).await.unwrap();
            assert_eq!(found.differences, Vec::<String>::new(), "{payload}");
            told("look");
            let writer = desired.logins.iter().find(|login| login.role == RoleName::Writer).unwrap();
            let new = Password::generate();
            open_login(&session, &desired, &found.catalog, *writer, Slot::B, &new).await.unwrap();
            retire_login(&session, &desired.names, RoleName::Writer, Slot::A).await.unwrap();
            told("rotate");
            open_login(&session, &desired, &found.catalog, *writer, Slot::A, &secrets[&RoleName::Writer])
                .await
                .unwrap();
            assert_works(&server, &desired, &secrets).await;

            let superuser = server.superuser("postgres").await;
            let grant = format!(
                "GRANT CONNECT ON DATABASE {} TO {grantee} WITH GRANT OPTION",
                desired.names.database
            );
            for sql in [format!("CREATE ROLE {grantee}"), grant] {
                superuser.batch_execute(&sql).await.unwrap();
            }
            drop(superuser);
            told("by hand");
            let found = provision(&session, &desired, None).await.unwrap();
            let expected = format!("{} has CONNECT on the database", grantee.as_str());
            assert_eq!((found.differences, found.left), (vec![expected], Vec::new()), "{payload}");
            told("drift");

            trash_database(&session, &desired, "keeper", None).await.unwrap();
            told("trash");
            establish(&session, &desired, &secrets, None).await.unwrap();
            told("restore");
            drop_database(&session, &desired, None).await.unwrap();
            told("drop");
            let superuser = server.superuser("postgres").await;
            superuser.batch_execute(&format!("DROP ROLE {grantee}")).await.unwrap();
        }
        for (step, shapes) in &shapes {
            let count = shapes.iter().map(Vec::len).collect::<Vec<_>>();
            assert_eq!(shapes.len(), 1, "{step} led to different statements, {count:?} of them: {shapes:#?}");
        }
    }
    let left = server.superuser("postgres").await;
    let left = left.query("SELECT rolname::text FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1", &[]);
    let left: Vec<String> = left.await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(left, ["creator", "postgres"]);
}

/// Every statement of `log` in its order, with every name and constant that came
/// from outside cut out. Parameters are no text of a statement.
fn shape(log: &str, desired: &Desired, grantee: &Identifier) -> Vec<String> {
    // The server indents the lines of an entry but the first.
    let entries = log.replace("\n\t", "\u{1}");
    let statements = entries.lines().filter_map(|entry| {
        let (_, statement) = entry.split_once("LOG:  ")?;
        // The name of a prepared statement is a number.
        let executed = || statement.strip_prefix("execute ")?.split_once(": ").map(|(_, text)| text);
        statement.strip_prefix("statement: ").or_else(executed)
    });
    let comment = peristyle::sql::Literal(&desired.marker.comment()).to_string();
    let names: Vec<_> =
        desired.names.roles().chain([&desired.names.database, &desired.names.trash, grantee]).collect();
    let cut = |statement: &str| {
        let mut text = statement.replace('\u{1}', "\n").replace(comment.trim_start(), "<mark>");
        for name in &names {
            let literal = peristyle::sql::Literal(name.as_str()).to_string();
            for quoted in [name.to_string(), literal.trim_start().to_owned()] {
                text = text.replace(&quoted, "<name>");
            }
        }
        // Verifiers have a random salt, marks of the trash a time; a constant with a backslash is ` E'…'`.
        let text = up_to_quote(&text, "SCRAM-SHA-256$");
        up_to_quote(&text, "{\"claim\"").replace(" E'", " '").replace("  ", " ")
    };
    statements.map(cut).collect()
}

/// `text` without what lies between each `start` and the end of its constant.
fn up_to_quote(text: &str, start: &str) -> String {
    let mut parts = text.split(start);
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        // Within a constant a quote is doubled.
        let rest = part.replace("''", "").split_once('\'').map_or(String::new(), |(_, rest)| rest.to_owned());
        text + "<constant>'" + &rest
    })
}
