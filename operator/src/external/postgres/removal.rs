//! The end of databases: at once, or by way of the trash.

use std::time::Duration;

use jiff::SignedDuration;

use super::{Connection, Error, Session, provision::inspect};
use crate::sql::{
    Identifier, Statement,
    plan::{self, Desired},
};

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
    let roles: Vec<&str> = desired.names.roles().map(Identifier::as_str).collect();
    let statements = plan::drop::plan(desired, &server, &catalog);
    run(session, admin, &statements, desired.names.database.as_str(), &roles).await
}

/// Moves the database into the trash of the class that is called `keeper` in
/// marks, as far as it carries exactly our UID.
///
/// # Errors
/// As [`drop_database`].
pub async fn trash_database(
    session: &Session,
    desired: &Desired,
    keeper: &str,
    expected: Option<&str>,
) -> Result<(), Error> {
    let admin = session.maintenance().await?;
    let server = inspect(session, &admin, expected).await?;
    let catalog = admin.catalog(&desired.names, &server.admin).await?;
    // The part of a second that the clock leaves out counts as over, so that nothing is dropped early.
    let now = admin.now().await? + SignedDuration::from_secs(1);
    let roles: Vec<&str> = desired.names.roles().map(Identifier::as_str).collect();
    let statements = plan::trash::plan(desired, &server, &catalog, keeper, now);
    run(session, admin, &statements, desired.names.database.as_str(), &roles).await
}

/// How the trash of a class stands.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Trash {
    /// In how long something is to be dropped.
    pub next: Option<Duration>,
    /// What should be gone and cannot be dropped, in words.
    pub kept: Vec<String>,
}

/// Drops what lies in the trash of the class that is called `keeper` in marks
/// for longer than `retention`.
///
/// # Errors
/// When the server cannot be asked. What cannot be dropped is no error.
pub async fn empty_trash(session: &Session, keeper: &str, retention: Duration) -> Result<Trash, Error> {
    let admin = session.maintenance().await?;
    inspect(session, &admin, None).await?;
    let found = admin.trash().await?;
    let (over, next) = plan::trash::due(&found, keeper, retention, admin.now().await?);
    admin.close().await;
    let mut trash = Trash { next, kept: Vec::new() };
    for remains in over {
        let admin = session.maintenance().await?;
        let dropped = run(session, admin, &remains.drop(), remains.database(), &remains.roles()).await;
        trash.kept.extend(dropped.err().map(|error| error.to_string()));
    }
    Ok(trash)
}

/// Runs statements and closes `admin`; says of what is in use who uses it.
async fn run(
    session: &Session,
    admin: Connection,
    statements: &[Statement],
    database: &str,
    roles: &[&str],
) -> Result<(), Error> {
    for statement in statements {
        let Err(error) = admin.execute(statement).await else {
            continue;
        };
        admin.close().await;
        let step = statement.step();
        // A transaction that failed answers no question.
        return Err(match error.code() {
            Some("55006") => {
                let sessions = session.maintenance().await?.sessions(database).await?;
                Error::InUse { step, by: format!("sessions: {sessions}") }
            }
            Some("2BP01") => {
                let dependents = session.maintenance().await?.dependents(roles).await?;
                Error::InUse { step, by: format!("objects or grants: {dependents}") }
            }
            _ => error,
        });
    }
    admin.close().await;
    Ok(())
}
