//! Runs plans. Everything is looked up first, so that a run after a crash at
//! any point goes on where the last one ended.

use peristyle_crds::v1alpha1::database::{RoleName, Slot};

use super::{Connection, Endpoint, Error, Login, Refusal, Session};
use crate::sql::{
    Identifier, Statement,
    catalog::{Catalog, Server},
    names::Names,
    password::Password,
    plan::{self, Desired},
};

/// What was found and made on the server.
#[derive(Clone, Debug)]
pub struct Provisioned {
    /// The server.
    pub server: Server,
    /// Its catalog afterwards.
    pub catalog: Catalog,
}

/// Makes groups, database and schema as `desired` and repairs the logins that
/// exist; makes no login.
///
/// Nothing is changed when another server than `expected` answers or when
/// something of that name belongs to somebody else.
///
/// # Errors
/// [`Error::OtherServer`], [`Error::Conflict`], or what a statement failed with.
pub async fn provision(
    session: &Session,
    desired: &Desired,
    expected: Option<&str>,
) -> Result<Provisioned, Error> {
    let admin = session.maintenance().await?;
    let server = inspect(session, &admin, expected).await?;
    let mut catalog = admin.catalog(&desired.names, &server.admin).await?;
    let statements = plan::database::plan(desired, &catalog)?;
    if !statements.is_empty() {
        run(&admin, &statements).await?;
        catalog = admin.catalog(&desired.names, &server.admin).await?;
        settled(plan::database::plan(desired, &catalog)?.first())?;
    }
    let statements = plan::logins::plan(desired, &catalog);
    if !statements.is_empty() {
        run(&admin, &statements).await?;
        catalog = admin.catalog(&desired.names, &server.admin).await?;
        settled(plan::logins::plan(desired, &catalog).first())?;
    }
    admin.close().await;

    let inside = session.admin(desired.names.database.as_str()).await?;
    let owner = desired.names.group(RoleName::Owner);
    let schemas = inside.schemas(&desired.names.schema, owner).await?;
    if let Some(statement) = plan::schema::plan(desired, &server, &schemas)? {
        inside.execute(&statement).await?;
        let schemas = inside.schemas(&desired.names.schema, owner).await?;
        settled(plan::schema::plan(desired, &server, &schemas)?.as_ref())?;
    }
    inside.close().await;
    Ok(Provisioned { server, catalog })
}

/// Opens a login with `password`; the server gets only its verifier. `catalog`
/// tells whether it exists.
///
/// # Errors
/// What the statement failed with.
pub async fn open_login(
    session: &Session,
    desired: &Desired,
    catalog: &Catalog,
    login: plan::Login,
    slot: Slot,
    password: &Password,
) -> Result<(), Error> {
    let admin = session.maintenance().await?;
    admin.execute(&plan::logins::open(desired, login, slot, catalog, &password.verifier())).await?;
    admin.close().await;
    Ok(())
}

/// Shuts a login if nobody uses it; the number of its sessions, 0 when it is shut.
///
/// # Errors
/// What the statement failed with.
pub async fn retire_login(
    session: &Session,
    names: &Names,
    role: RoleName,
    slot: Slot,
) -> Result<i64, Error> {
    let admin = session.maintenance().await?;
    let login = names.login(role, slot);
    let sessions = admin.login_sessions(names).await?.get(login.as_str()).copied().unwrap_or_default();
    if sessions == 0 {
        admin.execute(&plan::logins::shut(login)).await?;
    }
    admin.close().await;
    Ok(sessions)
}

/// Whether the login of `role` is let in with `password`, where workloads connect.
///
/// # Errors
/// [`Error::Unreachable`] when nobody answers there.
pub async fn check_login(
    session: &Session,
    endpoint: &Endpoint,
    names: &Names,
    role: RoleName,
    slot: Slot,
    password: &Password,
) -> Result<Result<(), Refusal>, Error> {
    let login = Login {
        user: names.login(role, slot).as_str().to_owned(),
        password: password.expose().to_owned().into(),
    };
    match session.login(endpoint, &login, names.database.as_str()).await {
        Ok(connection) => {
            connection.close().await;
            Ok(Ok(()))
        }
        // The role's own limit is looked at after its password.
        Err(Error::Refused { refusal, .. })
            if refusal.code == "53300" && refusal.message.contains(&login.user) =>
        {
            Ok(Ok(()))
        }
        Err(Error::Refused { refusal, .. }) => Ok(Err(refusal)),
        Err(error) => Err(error),
    }
}

/// Drops the database and its roles, as far as they carry exactly our UID.
///
/// # Errors
/// [`Error::InUse`] names who keeps it, [`Error::OtherServer`] when the server
/// is not the one where it was created.
pub async fn drop_database(
    session: &Session,
    desired: &Desired,
    expected: Option<&str>,
) -> Result<(), Error> {
    let admin = session.maintenance().await?;
    let server = inspect(session, &admin, expected).await?;
    let catalog = admin.catalog(&desired.names, &server.admin).await?;
    for statement in plan::drop::plan(desired, &server, &catalog) {
        let Err(error) = admin.execute(&statement).await else {
            continue;
        };
        let step = statement.step();
        return Err(match error.code() {
            Some("55006") => Error::InUse {
                step,
                by: format!("sessions: {}", admin.sessions(desired.names.database.as_str()).await?),
            },
            Some("2BP01") => {
                let roles: Vec<&str> = desired.names.roles().map(Identifier::as_str).collect();
                Error::InUse { step, by: format!("objects or grants: {}", admin.dependents(&roles).await?) }
            }
            _ => error,
        });
    }
    admin.close().await;
    Ok(())
}

async fn inspect(session: &Session, admin: &Connection, expected: Option<&str>) -> Result<Server, Error> {
    let server = session.inspect(admin).await?;
    match expected {
        Some(expected) if expected != server.system_identifier => {
            Err(Error::OtherServer { expected: expected.to_owned(), found: server.system_identifier })
        }
        _ => Ok(server),
    }
}

async fn run(connection: &Connection, statements: &[Statement]) -> Result<(), Error> {
    for statement in statements {
        connection.execute(statement).await?;
    }
    Ok(())
}

fn settled(left: Option<&Statement>) -> Result<(), Error> {
    left.map_or(Ok(()), |statement| Err(Error::NotConverged { step: statement.step() }))
}
