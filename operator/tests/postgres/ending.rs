//! Statements that nobody waits for any more, and those that may not begin.

use std::time::{Duration, Instant};

use peristyle::{
    external::postgres::{Error, Servers, Tls},
    fence::Fence,
    sql::Statement,
};

use crate::server::{Admin, Server};

const PATIENCE: Duration = Duration::from_secs(20);

fn slow() -> Statement {
    Statement::single("sleep", "SELECT pg_sleep(50)".to_owned())
}

/// Waits until as many of the operator's connections as `expected` run a slow statement.
async fn until_running(server: &Server, expected: i64) {
    let superuser = server.superuser("postgres").await;
    let sql =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'peristyle' AND query LIKE '%sleep%'";
    let end = Instant::now() + PATIENCE;
    let mut ticks = tokio::time::interval(Duration::from_millis(50));
    loop {
        ticks.tick().await;
        let running: i64 = superuser.query_one(sql, &[]).await.unwrap().get(0);
        if running == expected {
            return;
        }
        assert!(Instant::now() < end, "{running} instead of {expected} run");
    }
}

#[tokio::test]
async fn a_statement_that_is_given_up_ends_at_the_server_and_only_then_is_its_place_free() {
    let server = Server::start().await;
    let servers = Servers::default();
    let target = || server.target(Admin::CreateRole, "127.0.0.1", Tls::Disabled);
    // Cut off, as passes are at SIGTERM.
    let session = servers.session(target()).await.unwrap();
    let pass = tokio::spawn(async move {
        let admin = session.maintenance().await.unwrap();
        admin.execute(&slow()).await
    });
    until_running(&server, 1).await;
    pass.abort();
    assert!(pass.await.unwrap_err().is_cancelled());
    until_running(&server, 0).await;

    // Too late: an error for every object of the server.
    let session = servers.session(target()).await.unwrap();
    let admin = session.maintenance().await.unwrap();
    let error = admin.execute(&slow()).await.unwrap_err();
    assert!(matches!(&error, Error::Unreachable { cause, .. } if cause.contains("took too long")), "{error}");
    let refused = servers.session(target()).await.err().expect("within the delay");
    assert!(matches!(refused, Error::Unreachable { .. }), "{refused}");
    admin.close().await;
    until_running(&server, 0).await;
}

#[tokio::test]
async fn behind_a_closed_fence_no_statement_begins_and_none_outlives_it() {
    let server = Server::start().await;
    let fence = Fence::new(Duration::from_secs(2));
    let servers = Servers::behind(fence.clone());
    let target = server.target(Admin::CreateRole, "127.0.0.1", Tls::Disabled);
    let session = servers.session(target).await.unwrap();
    let admin = session.maintenance().await.unwrap();
    let make = Statement::single("make a role", "CREATE ROLE too_late".to_owned());
    let error = admin.execute(&make).await.unwrap_err();
    assert!(error.to_string().contains("does not hold the Lease"), "{error}");
    assert!(!server.log().contains("too_late"), "the server was told");
    fence.open_until(Instant::now() + Duration::from_secs(60));
    admin.execute(&make).await.unwrap();

    fence.open_until(Instant::now() + Duration::from_secs(1));
    let began = Instant::now();
    let error = admin.execute(&slow()).await.unwrap_err();
    assert!(error.to_string().contains("does not hold the Lease"), "{error}");
    // Before another replica may write, which is 3 s after the beginning; the rest is the machine's.
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    drop(admin);
    fence.idle().await;
    until_running(&server, 0).await;
}
