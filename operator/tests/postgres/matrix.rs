//! Who may do what: every cell is tried on the server.

use std::fmt::Write as _;

use peristyle::{
    external::postgres::{open_login, provision, retire_login, trash_database},
    sql::names::ROLES,
};
use peristyle_crds::v1alpha1::database::{RoleName, Slot};

use super::{desired, establish, passwords};
use crate::server::{ADMINS, Account, Server};

const COLUMNS: [&str; 8] =
    ["connect", "read", "write", "DDL", "temp", "sequence", "other schema", "other database"];

/// Who, and the answers: `yes`, or the SQLSTATE of the refusal; `-` where there is no connection.
const EXPECTED: [(&str, [&str; 8]); 9] = [
    ("owner", ["yes", "yes", "yes", "yes", "42501", "yes", "42501", "42501"]),
    ("writer", ["yes", "yes", "yes", "42501", "yes", "yes", "42501", "42501"]),
    ("reader", ["yes", "yes", "42501", "42501", "42501", "42501", "42501", "42501"]),
    ("other tenant", ["42501", "-", "-", "-", "-", "-", "-", "yes"]),
    ("PUBLIC", ["42501", "-", "-", "-", "-", "-", "-", "42501"]),
    ("retired slot", ["28P01", "-", "-", "-", "-", "-", "-", "28P01"]),
    ("trashed owner", ["28P01", "-", "-", "-", "-", "-", "-", "28P01"]),
    ("trashed writer", ["28P01", "-", "-", "-", "-", "-", "-", "28P01"]),
    ("trashed reader", ["28P01", "-", "-", "-", "-", "-", "-", "28P01"]),
];

async fn answer(client: &tokio_postgres::Client, sql: &str) -> String {
    match client.batch_execute(sql).await {
        Ok(()) => "yes".to_owned(),
        Err(error) => error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned()),
    }
}

async fn row(server: &Server, account: &Account, database: &str, other: &str) -> Vec<String> {
    let connected = |result: Result<tokio_postgres::Client, tokio_postgres::Error>| match result {
        Ok(client) => ("yes".to_owned(), Some(client)),
        Err(error) => (error.code().unwrap().code().to_owned(), None),
    };
    let (answer_, client) = connected(server.client(account, database).await);
    let mut row = vec![answer_];
    for sql in [
        "SELECT * FROM app.notes",
        "INSERT INTO app.notes VALUES (1)",
        "CREATE TABLE app.mine (id int); DROP TABLE app.mine",
        "CREATE TEMP TABLE passing (id int)",
        "SELECT nextval('app.numbers')",
        "CREATE TABLE public.mine (id int)",
    ] {
        row.push(match &client {
            Some(client) => answer(client, sql).await,
            None => "-".to_owned(),
        });
    }
    row.push(connected(server.client(account, other).await).0);
    row
}

#[tokio::test]
async fn every_role_may_do_what_the_matrix_says_under_both_administrators() {
    let server = Server::start().await;
    let superuser = server.superuser("postgres").await;
    superuser.batch_execute("CREATE ROLE stranger LOGIN PASSWORD 'stranger'").await.unwrap();
    for (admin, names) in ADMINS.into_iter().zip([["one", "two"], ["three", "four"]]) {
        let session = server.session(admin).await;
        let [ours, theirs] = names.map(|name| desired(name, &format!("uid-{name}")));
        let (secrets, foreign) = (passwords(), passwords());
        establish(&session, &ours, &secrets, None).await.unwrap();
        establish(&session, &theirs, &foreign, None).await.unwrap();
        let catalog = provision(&session, &ours, None).await.unwrap().catalog;
        let writer = ours.logins.iter().find(|login| login.role == RoleName::Writer).unwrap();
        open_login(&session, &ours, &catalog, *writer, Slot::B, &secrets[&RoleName::Reader]).await.unwrap();
        assert_eq!(retire_login(&session, &ours.names, RoleName::Writer, Slot::B).await.unwrap(), 0);

        let (gone, old) = (desired(&format!("{}_gone", names[0]), "uid-gone"), passwords());
        establish(&session, &gone, &old, None).await.unwrap();
        let former = |role| Account::new(gone.names.login(role, Slot::A).as_str(), old[&role].expose());
        let mut sessions = Vec::new();
        for role in ROLES {
            sessions.push(server.client(&former(role), gone.names.database.as_str()).await.unwrap());
        }
        trash_database(&session, &gone, "keeper", None).await.unwrap();
        for (role, session) in ROLES.into_iter().zip(&sessions) {
            assert!(session.batch_execute("SELECT 1").await.is_err(), "a session of {role:?} goes on");
        }
        let closed =
            server.client(server.superuser_account(), gone.names.trash.as_str()).await.err().unwrap();
        assert_eq!(closed.code().unwrap().code(), "55000", "the database is open");

        let account = |names: &peristyle::sql::names::Names, role, slot, password: &str| {
            Account::new(names.login(role, slot).as_str(), password)
        };
        let own = |role: RoleName| account(&ours.names, role, Slot::A, secrets[&role].expose());
        let owner = server.client(&own(RoleName::Owner), names[0]).await.unwrap();
        owner.batch_execute("CREATE TABLE notes (id int); CREATE SEQUENCE numbers").await.unwrap();
        let accounts = [
            own(RoleName::Owner),
            own(RoleName::Writer),
            own(RoleName::Reader),
            account(&theirs.names, RoleName::Writer, Slot::A, foreign[&RoleName::Writer].expose()),
            Account::new("stranger", "stranger"),
            account(&ours.names, RoleName::Writer, Slot::B, secrets[&RoleName::Reader].expose()),
            former(RoleName::Owner),
            former(RoleName::Writer),
            former(RoleName::Reader),
        ];
        let mut table = format!("{admin:?}: {}\n", COLUMNS.join(" | "));
        let mut wrong = Vec::new();
        for ((who, expected), account) in EXPECTED.iter().zip(&accounts) {
            let is_trashed = who.starts_with("trashed");
            let database = if is_trashed { gone.names.database.as_str() } else { names[0] };
            let found = row(&server, account, database, names[1]).await;
            let _ = writeln!(table, "{who}: {}", found.join(" | "));
            for (column, (found, expected)) in COLUMNS.iter().zip(found.iter().zip(expected)) {
                if found != expected {
                    wrong.push(format!("{who}, {column}: {found} instead of {expected}"));
                }
            }
        }
        println!("{table}");
        assert!(wrong.is_empty(), "as {admin:?}: {wrong:#?}\n{table}");
    }
}
