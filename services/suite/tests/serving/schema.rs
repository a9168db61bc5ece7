use platform::{Database, Env, testing::postgres::Postgres};
use sqlx::{Connection, Executor, PgConnection};
use suite::Name;

async fn tables(url: &str) -> Vec<String> {
    let mut db = PgConnection::connect(url).await.unwrap();
    let query = "select schemaname || '.' || tablename from pg_tables
                 where schemaname not in ('pg_catalog', 'information_schema') order by 1";
    sqlx::query_scalar(query).fetch_all(&mut db).await.unwrap()
}

#[tokio::test]
async fn migrations_go_up_twice_and_down_again_in_the_schema_of_the_role() {
    let postgres = Postgres::shared().await;
    for (name, expected) in [
        (Name::Greeter, vec!["app._sqlx_migrations", "app.greetings"]),
        (Name::Caller, vec!["app._sqlx_migrations", "app.call_logs"]),
        (Name::Auth, vec!["app._sqlx_migrations", "app.signing_keys", "app.users"]),
    ] {
        let database = postgres.provision(name.as_str()).await;
        let env = Env::from_iter([("DATABASE_URL", &database.owner)]);
        for _ in 0..2 {
            suite::migrate(&env, name).await.unwrap();
            assert_eq!(tables(&database.admin).await, expected);
        }
        let mut owner = PgConnection::connect(&database.owner).await.unwrap();
        name.migrator().undo(&mut owner, 0).await.unwrap();
        assert_eq!(tables(&database.admin).await, ["app._sqlx_migrations"]);
    }
}

#[tokio::test]
async fn a_service_is_not_ready_before_its_migration_and_cannot_migrate_itself() {
    let postgres = Postgres::shared().await;
    let database = postgres.provision("greeter").await;
    let env = crate::fixture::vars([("DATABASE_URL", &database.writer)]);
    let app = crate::fixture::serve(&[Name::Greeter], &env).await;
    platform::testing::eventually("the reason", || async {
        let (status, text) = app.get("/readyz").await;
        status == 503 && text.contains("run `suite migrate`")
    })
    .await;
    suite::migrate(&Env::from_iter([("DATABASE_URL", &database.writer)]), Name::Greeter).await.unwrap_err();
    let mut writer = PgConnection::connect(&database.writer).await.unwrap();
    assert!(writer.execute("create table t ()").await.is_err());
    suite::migrate(&Env::from_iter([("DATABASE_URL", &database.owner)]), Name::Greeter).await.unwrap();
    app.ready().await;
}

#[tokio::test]
async fn a_service_whose_requests_hold_every_connection_stays_ready() {
    let postgres = Postgres::shared().await;
    let (database, _) = crate::fixture::database(postgres, Name::Greeter).await;
    let env = Env::from_iter([("DATABASE_URL", database.writer.as_str()), ("DB_POOL_MAX", "1")]);
    let database = Database::from_env(&env, "greeter", Name::Greeter.migrator()).unwrap();
    let _held = database.pool.acquire().await.unwrap();
    assert!(database.pool.try_acquire().is_none());
    database.check().await.unwrap();
}
