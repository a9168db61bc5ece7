//! PostgreSQL: a pool, whether it can be used, and the embedded migrations.

use std::{borrow::Cow, str::FromStr, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use sqlx::{
    Connection, PgConnection, PgPool,
    migrate::{MigrateError, Migrator},
    postgres::{PgConnectOptions, PgPoolOptions},
};
use tonic::Status;

use crate::config::{ConfigError, Env};

const EXPECTED_URL: &str =
    "a PostgreSQL URI such as postgres://user:password@host:5432/database?sslmode=prefer";
/// How long a readiness check may take.
const CHECK: Duration = Duration::from_secs(1);
/// How long a migration waits for a database that does not answer yet.
const MIGRATE_WAIT: Duration = Duration::from_mins(1);

/// A module's database.
#[derive(Clone)]
pub struct Database {
    /// Connects on first use, and again after a failure.
    pub pool: PgPool,
    /// For checks alone: when requests hold every connection, the service is
    /// busy, and taking it out everywhere would not help.
    checks: PgPool,
    migrator: &'static Migrator,
}

/// Why a database cannot be used. No text here carries a credential.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error("the database does not answer")]
    Unreachable(#[source] sqlx::Error),
    #[error("the schema has version {found}, this program needs {needed}: run `suite migrate`")]
    Outdated { found: i64, needed: i64 },
    #[error("the migration failed")]
    Migration(#[source] MigrateError),
}

/// The connection options of `<MODULE>_DATABASE_URL`, else `DATABASE_URL`.
/// The former serves processes with several modules.
///
/// # Errors
/// When neither is set or the value is no PostgreSQL URI.
pub fn options(env: &Env, module: &str) -> Result<PgConnectOptions, ConfigError> {
    let own = format!("{}_DATABASE_URL", module.to_uppercase());
    let name = if env.get(&own).is_some() { own.as_str() } else { "DATABASE_URL" };
    let url: SecretString = env.secret(name, EXPECTED_URL)?;
    let invalid = || ConfigError::InvalidSecret { name: name.into(), expected: EXPECTED_URL };
    let text = url.expose_secret();
    if !(text.starts_with("postgres://") || text.starts_with("postgresql://")) {
        return Err(invalid());
    }
    let options = PgConnectOptions::from_str(text).map_err(|_| invalid())?;
    Ok(options.application_name(module))
}

impl Database {
    /// A pool for `module`, not connected yet. `DB_POOL_MAX` (10) connections
    /// at most, waited for up to `DB_ACQUIRE_TIMEOUT` (2s); a statement may
    /// take `DB_STATEMENT_TIMEOUT` (5s).
    ///
    /// # Errors
    /// When a variable is missing or wrong.
    pub fn from_env(env: &Env, module: &str, migrator: &'static Migrator) -> Result<Self, ConfigError> {
        let statement = env.duration("DB_STATEMENT_TIMEOUT", Duration::from_secs(5))?;
        let options =
            options(env, module)?.options([("statement_timeout", statement.as_millis().to_string())]);
        let pool = PgPoolOptions::new()
            .max_connections(env.or("DB_POOL_MAX", 10, "a number of connections")?)
            .acquire_timeout(env.duration("DB_ACQUIRE_TIMEOUT", Duration::from_secs(2))?)
            .idle_timeout(Duration::from_mins(5))
            .max_lifetime(Duration::from_mins(30))
            .connect_lazy_with(options.clone());
        let checks = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(CHECK)
            .max_lifetime(Duration::from_mins(30))
            .connect_lazy_with(options);
        Ok(Self { pool, checks, migrator })
    }

    /// Whether the database answers and has this program's schema.
    ///
    /// # Errors
    /// [`DatabaseError::Unreachable`] or [`DatabaseError::Outdated`].
    pub async fn check(&self) -> Result<(), DatabaseError> {
        let query =
            sqlx::query_scalar("select coalesce(max(version), 0) from _sqlx_migrations where success");
        let found = match tokio::time::timeout(CHECK, query.fetch_one(&self.checks)).await {
            Err(_) => Err(DatabaseError::Unreachable(sqlx::Error::PoolTimedOut)),
            Ok(Err(error)) if sql_state(&error).as_deref() == Some("42P01") => Ok(0),
            Ok(found) => found.map_err(DatabaseError::Unreachable),
        }?;
        let needed = self.migrator.iter().map(|migration| migration.version).max().unwrap_or_default();
        if found < needed { Err(DatabaseError::Outdated { found, needed }) } else { Ok(()) }
    }
}

/// Brings the schema of `module` to this program's version. Meant for a job
/// that runs as the owner of the schema; tables, the migrations' own among
/// them, land in the first schema of that role's search path.
///
/// # Errors
/// When the database does not answer within a minute, or a migration fails.
pub async fn migrate(options: &PgConnectOptions, migrator: &Migrator) -> Result<(), DatabaseError> {
    let give_up = tokio::time::Instant::now() + MIGRATE_WAIT;
    let mut connection = loop {
        match PgConnection::connect_with(options).await {
            Ok(connection) => break connection,
            Err(error) if tokio::time::Instant::now() >= give_up => {
                return Err(DatabaseError::Unreachable(error));
            }
            Err(error) => tracing::warn!(%error, "the database does not answer yet"),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    };
    migrator.run(&mut connection).await.map_err(DatabaseError::Migration)?;
    let version = migrator.iter().map(|migration| migration.version).max().unwrap_or_default();
    tracing::info!(version, "the schema is up to date");
    // The work is done and committed; how the connection ends does not matter.
    let _ = connection.close().await;
    Ok(())
}

/// What a caller sees of a failed query: `UNAVAILABLE` when the database
/// could not serve it, `INTERNAL` when the query is at fault. The cause is
/// logged here and not sent.
#[must_use]
pub fn status(error: &sqlx::Error) -> Status {
    tracing::error!(%error, "the database failed");
    if is_unavailable(error) {
        Status::unavailable("the database is not available")
    } else {
        Status::internal("internal error")
    }
}

/// Whether the database, not the query, is at fault.
#[must_use]
pub fn is_unavailable(error: &sqlx::Error) -> bool {
    match error {
        sqlx::Error::Io(_)
        | sqlx::Error::Tls(_)
        | sqlx::Error::PoolTimedOut
        | sqlx::Error::PoolClosed
        | sqlx::Error::WorkerCrashed => true,
        // Connection, authorisation, resources, shutdown and time-out, no
        // such database, no privilege (yet), no such table (not migrated).
        error => sql_state(error).is_some_and(|state| {
            ["08", "28", "53", "57", "3D"].iter().any(|class| state.starts_with(class))
                || ["42501", "42P01", "55000"].contains(&state.as_str())
        }),
    }
}

fn sql_state(error: &sqlx::Error) -> Option<String> {
    error.as_database_error()?.code().map(Cow::into_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_database_url_is_named_and_not_shown() {
        for url in ["mysql://u:hunter2@h/d", "hunter2", "postgres://u:hunter2@h:port/d"] {
            let error = options(&Env::from_iter([("DATABASE_URL", url)]), "greeter").unwrap_err().to_string();
            assert!(error.starts_with("DATABASE_URL is not valid"), "{error}");
            assert!(!error.contains("hunter2"));
        }
    }

    #[test]
    fn a_module_prefers_its_own_url() {
        let env = Env::from_iter([
            ("GREETER_DATABASE_URL", "postgres://a:p%40ss@one/x?sslmode=disable"),
            ("DATABASE_URL", "postgres://b@two/y"),
        ]);
        assert_eq!(options(&env, "greeter").unwrap().get_host(), "one");
        assert_eq!(options(&env, "caller").unwrap().get_host(), "two");
        assert!(
            options(&Env::default(), "caller")
                .unwrap_err()
                .to_string()
                .starts_with("DATABASE_URL is missing")
        );
    }

    #[test]
    fn faults_of_the_database_are_told_from_faults_of_the_query() {
        assert!(is_unavailable(&sqlx::Error::PoolTimedOut));
        assert!(!is_unavailable(&sqlx::Error::RowNotFound));
    }
}
