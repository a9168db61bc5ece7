//! What a tenant may try against the operator's session, and payloads in
//! everything that becomes text of a statement.

use std::collections::BTreeSet;

use peristyle::{
    external::postgres::{drop_database, provision},
    sql::{marker::Marker, plan::Desired},
};
use peristyle_crds::v1alpha1::database::RoleName;

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
        let mut shapes = BTreeSet::new();
        for (number, payload) in payloads.iter().enumerate() {
            let name = format!("{payload}{admin:?}{number}").chars().take(40).collect::<String>();
            let name = format!("{name}{number}{admin:?}").chars().take(50).collect::<String>();
            let marker = Marker { uid: format!("{payload}{number}"), claim: (*payload).to_owned() };
            let desired = Desired { marker, ..desired(&name, "uid") };
            let seen = server.log().len();
            let secrets = passwords();
            establish(&session, &desired, &secrets, None).await.unwrap();
            shapes.insert(shape(&server.log()[seen..], &desired));
            assert_works(&server, &desired, &secrets).await;
            let found = provision(&session, &desired, None).await.unwrap();
            assert_eq!(found.differences, Vec::<String>::new(), "{payload}");
            drop_database(&session, &desired, None).await.unwrap();
        }
        assert_eq!(shapes.len(), 1, "the payloads led to different statements: {shapes:#?}");
    }
    let left = server.superuser("postgres").await;
    let left = left.query("SELECT rolname::text FROM pg_roles WHERE rolname !~ '^pg_' ORDER BY 1", &[]);
    let left: Vec<String> = left.await.unwrap().iter().map(|row| row.get(0)).collect();
    assert_eq!(left, ["creator", "postgres"]);
}

/// The statements of `log` with every name and constant that came from outside cut out.
fn shape(log: &str, desired: &Desired) -> String {
    // The server indents the lines of a statement but the first.
    let log = log.replace("\n\t", "\n");
    let statements: String = log
        .split("LOG:  ")
        .filter(|line| line.starts_with("statement: "))
        .map(|line| line.rsplit_once('\n').map_or(line, |(statement, _)| statement))
        .collect::<Vec<_>>()
        .join("\n");
    let mut text = statements;
    let comment = peristyle::sql::Literal(&desired.marker.comment()).to_string();
    text = text.replace(comment.trim_start(), "<mark>");
    // A constant with a backslash is written ` E'…'`.
    text = text.replace("  ", " ");
    let names: Vec<_> = desired.names.roles().chain([&desired.names.database]).collect();
    for name in names {
        for quoted in
            [name.to_string(), peristyle::sql::Literal(name.as_str()).to_string().trim_start().to_owned()]
        {
            text = text.replace(&quoted, "<name>");
        }
    }
    // Verifiers have a random salt.
    text.split("SCRAM-SHA-256$")
        .enumerate()
        .map(|(part, text)| if part == 0 { text } else { text.split_once('\'').map_or("", |(_, rest)| rest) })
        .collect::<Vec<_>>()
        .join("<verifier>")
        .lines()
        .filter(|line| {
            line.contains("CREATE")
                || line.contains("ALTER")
                || line.contains("GRANT")
                || line.contains("COMMENT")
                || line.contains("REVOKE")
        })
        .map(|line| line.trim_start().replace("  ", " "))
        .collect::<Vec<_>>()
        .join("\n")
}
