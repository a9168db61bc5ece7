//! The reference services in one binary: any set of them in one process, and
//! their migrations.

use anyhow::{Context, Result};
use platform::{App, ConfigError, Env, Module, database, upstream};
use sqlx::migrate::Migrator;

/// A service of the suite.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Name {
    Auth,
    Caller,
    Greeter,
}

impl Name {
    /// The name on the command line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auth => "auth",
            Self::Caller => "caller",
            Self::Greeter => "greeter",
        }
    }

    /// Its schema.
    #[must_use]
    pub fn migrator(self) -> &'static Migrator {
        match self {
            Self::Auth => &auth::MIGRATOR,
            Self::Caller => &caller::MIGRATOR,
            Self::Greeter => &greeter::MIGRATOR,
        }
    }
}

/// Builds modules. greeter reaches caller inside the process when both are
/// served and no `CALLER_URL` says otherwise.
///
/// # Errors
/// When a variable is missing or wrong.
pub fn modules(env: &Env, names: &[Name]) -> Result<Vec<Module>, ConfigError> {
    let mut names = names.to_vec();
    names.sort_unstable();
    names.dedup();
    // caller sorts before greeter, which may need it.
    let mut in_process = None;
    let mut modules = Vec::new();
    for name in names {
        modules.push(match name {
            Name::Auth => auth::module(env)?,
            Name::Caller => {
                let module = caller::module(env)?;
                in_process = Some(upstream::in_process(module.grpc.clone()));
                module
            }
            Name::Greeter => greeter::module(env, in_process.clone())?,
        });
    }
    Ok(modules)
}

/// Binds the modules' ports.
///
/// # Errors
/// When a variable is wrong or a port is taken.
pub async fn bind(env: &Env, names: &[Name]) -> Result<App> {
    let modules = modules(env, names)?;
    App::bind(env, modules).await.context("cannot start")
}

/// Migrates the database of a module.
///
/// # Errors
/// When the database does not answer or a migration fails.
pub async fn migrate(env: &Env, name: Name) -> Result<()> {
    let options = database::options(env, name.as_str())?;
    database::migrate(&options, name.migrator())
        .await
        .with_context(|| format!("cannot migrate {}", name.as_str()))
}
