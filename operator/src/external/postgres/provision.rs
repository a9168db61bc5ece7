//! Runs plans. Everything is looked up first, so that a run after a crash at
//! any point goes on where the last one ended.

use peristyle_crds::v1alpha1::database::{RoleName, Slot};

use super::{Connection, Endpoint, Error, Login, Refusal, Session};
use crate::sql::{
    Statement,
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
    /// What was not as it should be, in words; everything, on a first run.
    pub differences: Vec<String>,
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
    let drift = plan::drift::outside(desired, &catalog);
    let mut differences = drift.differences;
    undo(&admin, &drift.commands).await?;
    run(&admin, &statements).await?;
    if !statements.is_empty() || !drift.commands.is_empty() {
        catalog = admin.catalog(&desired.names, &server.admin).await?;
        settled(plan::database::plan(desired, &catalog)?.first())?;
        undone(&plan::drift::outside(desired, &catalog))?;
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
    let mut schemas = inside.schemas(&desired.names.schema, owner).await?;
    let drift = plan::drift::inside(desired, &server, &schemas);
    differences.extend(drift.differences);
    if !drift.commands.is_empty() {
        undo(&inside, &drift.commands).await?;
        schemas = inside.schemas(&desired.names.schema, owner).await?;
        undone(&plan::drift::inside(desired, &server, &schemas))?;
    }
    if let Some(statement) = plan::schema::plan(desired, &server, &schemas) {
        inside.execute(&statement).await?;
        let schemas = inside.schemas(&desired.names.schema, owner).await?;
        settled(plan::schema::plan(desired, &server, &schemas).as_ref())?;
    }
    inside.close().await;
    Ok(Provisioned { server, catalog, differences })
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

pub(super) async fn inspect(
    session: &Session,
    admin: &Connection,
    expected: Option<&str>,
) -> Result<Server, Error> {
    let server = session.inspect(admin).await?;
    if server.is_replica {
        return Err(session.unusable("it is a replica and takes no changes"));
    }
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

async fn undo(connection: &Connection, commands: &[String]) -> Result<(), Error> {
    if commands.is_empty() {
        return Ok(());
    }
    connection.execute(&Statement::transaction("undo what somebody changed", commands)).await
}

fn undone(drift: &plan::drift::Drift) -> Result<(), Error> {
    if drift.commands.is_empty() {
        return Ok(());
    }
    Err(Error::StillDiffers(drift.differences.join("; ")))
}

fn settled(left: Option<&Statement>) -> Result<(), Error> {
    left.map_or(Ok(()), |statement| Err(Error::NotConverged { step: statement.step() }))
}
