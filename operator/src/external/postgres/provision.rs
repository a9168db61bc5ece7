//! Runs plans. Everything is looked up first, so that a run after a crash at
//! any point goes on where the last one ended.

use peristyle_crds::v1alpha1::database::{RoleName, Slot};

use super::{Connection, Endpoint, Error, Login, Refusal, Session};
use crate::sql::{
    Statement,
    catalog::{Catalog, Server},
    names::Names,
    password::Password,
    plan::{self, Desired, drift::Undo},
};

const NOT_SHOWN: &str = "the server accepted how to undo it, but its catalog does not show it";

/// What was found and made on the server.
#[derive(Clone, Debug)]
pub struct Provisioned {
    /// The server.
    pub server: Server,
    /// Its catalog afterwards.
    pub catalog: Catalog,
    /// What was not as it should be, in words; everything, on a first run.
    pub differences: Vec<String>,
    /// Those of them that the server did not let us put right, each with why.
    pub left: Vec<Left>,
}

/// A difference that could not be put right.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Left {
    /// What differs, in words.
    pub difference: String,
    /// Why it still does.
    pub cause: String,
}

/// Makes groups, database and schema as `desired` and repairs the logins that
/// exist; makes no login.
///
/// Nothing is changed when another server than `expected` answers or when
/// something of that name belongs to somebody else. What somebody changed and
/// the server does not let us change back is no error, see [`Provisioned::left`].
///
/// # Errors
/// [`Error::OtherServer`], [`Error::Obstacle`], or what a statement failed with.
pub async fn provision(
    session: &Session,
    desired: &Desired,
    expected: Option<&str>,
) -> Result<Provisioned, Error> {
    let admin = session.maintenance().await?;
    let server = inspect(session, &admin, expected).await?;
    let mut catalog = admin.catalog(&desired.names, &server.admin).await?;
    let statements = plan::database::plan(desired, &server, &catalog)?;
    let drift = plan::drift::outside(desired, &catalog);
    let is_repair = plan::database::is_complete(desired, &catalog);
    let mut repairs = Repairs { differences: drift.differences, left: Vec::new() };
    repairs.undo(&admin, &drift.undos).await?;
    repairs.run(&admin, &statements, is_repair).await?;
    if !statements.is_empty() || !drift.undos.is_empty() {
        catalog = admin.catalog(&desired.names, &server.admin).await?;
        repairs.check(plan::database::plan(desired, &server, &catalog)?.first(), is_repair)?;
        repairs.check_undone(&plan::drift::outside(desired, &catalog).undos);
    }
    let statements = plan::logins::plan(desired, &catalog);
    if !statements.is_empty() {
        repairs.run(&admin, &statements, true).await?;
        catalog = admin.catalog(&desired.names, &server.admin).await?;
        repairs.check(plan::logins::plan(desired, &catalog).first(), true)?;
    }
    admin.close().await;

    let inside = session.admin(desired.names.database.as_str()).await?;
    let owner = desired.names.group(RoleName::Owner);
    let mut schemas = inside.schemas(&desired.names.schema, owner).await?;
    let drift = plan::drift::inside(desired, &server, &schemas);
    repairs.differences.extend(drift.differences);
    if !drift.undos.is_empty() {
        repairs.undo(&inside, &drift.undos).await?;
        schemas = inside.schemas(&desired.names.schema, owner).await?;
        repairs.check_undone(&plan::drift::inside(desired, &server, &schemas).undos);
    }
    if plan::schema::plan(desired, &server, &schemas).is_some() {
        let is_repair = schemas.owners.contains_key(desired.names.schema.as_str());
        if is_repair {
            schemas.objects = inside.objects(&desired.names.schema, owner).await?;
        }
        let statement = plan::schema::plan(desired, &server, &schemas);
        repairs.run(&inside, statement.as_slice(), is_repair).await?;
        let schemas = inside.schemas(&desired.names.schema, owner).await?;
        repairs.check(plan::schema::plan(desired, &server, &schemas).as_ref(), is_repair)?;
    }
    inside.close().await;
    let Repairs { differences, left } = repairs;
    Ok(Provisioned { server, catalog, differences, left })
}

/// What was found different, and what of it stays so.
struct Repairs {
    differences: Vec<String>,
    left: Vec<Left>,
}

impl Repairs {
    /// Undoes what somebody changed, each for itself.
    async fn undo(&mut self, connection: &Connection, undos: &[Undo]) -> Result<(), Error> {
        for undo in undos {
            self.attempt(connection, &undo.statement(), &undo.difference).await?;
        }
        Ok(())
    }

    /// Runs a plan. Where it only repairs, no refusal holds up the rest.
    async fn run(
        &mut self,
        connection: &Connection,
        statements: &[Statement],
        is_repair: bool,
    ) -> Result<(), Error> {
        for statement in statements {
            if is_repair {
                self.attempt(connection, statement, statement.step()).await?;
            } else {
                connection.execute(statement).await?;
            }
        }
        Ok(())
    }

    /// Runs a statement that the server may refuse. What ends the connection or
    /// concerns the whole server is an error all the same.
    async fn attempt(
        &mut self,
        connection: &Connection,
        statement: &Statement,
        difference: &str,
    ) -> Result<(), Error> {
        match connection.execute(statement).await {
            Err(error) if error.is_refusal() => {
                tracing::debug!(difference, %error, "left as it is");
                self.leave(difference, error.to_string());
                // The transaction that failed would refuse everything that follows.
                connection.execute(&Statement::single("roll back", "ROLLBACK".to_owned())).await
            }
            result => result,
        }
    }

    fn leave(&mut self, difference: &str, cause: String) {
        if !self.left.iter().any(|left| left.difference == difference) {
            self.left.push(Left { difference: difference.to_owned(), cause });
        }
    }

    /// The server accepts a REVOKE of what another than the administrator granted.
    fn check_undone(&mut self, undos: &[Undo]) {
        for undo in undos {
            self.leave(&undo.difference, NOT_SHOWN.to_owned());
        }
    }

    fn check(&mut self, planned: Option<&Statement>, is_repair: bool) -> Result<(), Error> {
        match planned {
            Some(statement) if is_repair => self.leave(statement.step(), NOT_SHOWN.to_owned()),
            Some(statement) => return Err(Error::NotConverged { step: statement.step() }),
            None => {}
        }
        Ok(())
    }
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
            if refusal.code == "53300" && super::error::names(&refusal.message, &login.user) =>
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
    match expected {
        Some(expected) if expected != server.system_identifier => {
            Err(Error::OtherServer { expected: expected.to_owned(), found: server.system_identifier })
        }
        _ => Ok(server),
    }
}
