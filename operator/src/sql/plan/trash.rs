//! The trash: a closed database under another name, with a mark that says when
//! it was put there and which class drops it.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};

use super::{Desired, database::trashed, drop};
use crate::sql::{
    Identifier, Literal, Statement,
    catalog::{Catalog, Server},
    marker::{Ownership, Trashed},
    names::TRASH_SUFFIX,
};

/// Plans the way into the trash of what carries exactly our UID. Marks and the
/// new name come together or not at all, so that a run after a crash finds
/// either a database that is still to go or one that is there.
#[must_use]
pub fn plan(
    desired: &Desired,
    server: &Server,
    catalog: &Catalog,
    keeper: &str,
    now: Timestamp,
) -> Vec<Statement> {
    if catalog.database.is_none() {
        let ownership =
            |database: &crate::sql::catalog::Database| desired.marker.ownership(database.comment.as_deref());
        if trashed(desired, catalog).is_some_and(|database| ownership(database) == Ownership::Ours) {
            return Vec::new();
        }
        // Roles without a database hold nothing that could be restored.
        return drop::plan(desired, server, catalog);
    }
    let Some(mut plan) = drop::close(desired, server, catalog) else {
        return Vec::new();
    };
    let mark = Trashed { marker: desired.marker.clone(), keeper: keeper.to_owned(), trashed: now }.comment();
    let mark = Literal(&mark);
    let (database, trash) = (&desired.names.database, &desired.names.trash);
    let mut commands: Vec<String> =
        drop::ours(desired, catalog).map(|role| format!("COMMENT ON ROLE {role} IS {mark}")).collect();
    commands.push(format!("COMMENT ON DATABASE {database} IS {mark}"));
    commands.push(format!("ALTER DATABASE {database} RENAME TO {trash}"));
    plan.push(Statement::transaction("move the database to the trash", &commands));
    plan
}

/// A role, or a closed database of the administrator, with a comment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Found {
    /// Whether it is a database.
    pub is_database: bool,
    /// Its name.
    pub name: Identifier,
    /// The comment.
    pub comment: String,
}

/// What one Database left in the trash.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Remains {
    databases: Vec<Identifier>,
    roles: Vec<Identifier>,
}

impl Remains {
    /// Drops them. The roles go last: they have privileges in the database.
    #[must_use]
    pub fn drop(&self) -> Vec<Statement> {
        let databases = self.databases.iter().map(drop::drop_database);
        databases.chain(drop::drop_roles(self.roles.iter().map(ToString::to_string))).collect()
    }

    /// Names of the roles.
    #[must_use]
    pub fn roles(&self) -> Vec<&str> {
        self.roles.iter().map(Identifier::as_str).collect()
    }

    /// Name of the database; empty when it is gone already.
    #[must_use]
    pub fn database(&self) -> &str {
        self.databases.first().map_or("", Identifier::as_str)
    }
}

/// What of `found` is to be dropped at `now`, and in how long the next is.
/// Only what `keeper` put there counts, and of databases only those whose name
/// says the same as their mark.
#[must_use]
pub fn due(
    found: &[Found],
    keeper: &str,
    retention: Duration,
    now: Timestamp,
) -> (Vec<Remains>, Option<Duration>) {
    let mut over: BTreeMap<String, Remains> = BTreeMap::new();
    let mut next: Option<Duration> = None;
    for found in found {
        let Some(mark) = Trashed::parse(&found.comment).filter(|mark| mark.keeper == keeper) else {
            continue;
        };
        if found.is_database && !found.name.as_str().ends_with(TRASH_SUFFIX) {
            continue;
        }
        let passed = now.duration_since(mark.trashed).max(SignedDuration::ZERO).unsigned_abs();
        let left = retention.saturating_sub(passed);
        if !left.is_zero() {
            next = Some(next.map_or(left, |next| next.min(left)));
            continue;
        }
        let remains = over.entry(mark.marker.uid).or_default();
        let list = if found.is_database { &mut remains.databases } else { &mut remains.roles };
        list.push(found.name.clone());
    }
    (over.into_values().collect(), next)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::marker::Marker;

    const HOUR: Duration = Duration::from_secs(3600);
    const START: Timestamp = Timestamp::constant(1_000_000, 0);

    fn found(is_database: bool, name: &str, uid: &str, keeper: &str, hours: i64) -> Found {
        let mark = Trashed {
            marker: Marker { uid: uid.to_owned(), claim: "c".to_owned() },
            keeper: keeper.to_owned(),
            trashed: START + SignedDuration::from_hours(hours),
        };
        Found { is_database, name: Identifier::new(name).unwrap(), comment: mark.comment() }
    }

    fn text(remains: &[Remains]) -> Vec<String> {
        remains.iter().flat_map(Remains::drop).map(|statement| statement.to_string()).collect()
    }

    #[test]
    fn what_is_over_is_dropped_and_the_rest_says_when() {
        let all = [
            found(true, "a-trash", "u1", "k", 0),
            found(false, "a_owner", "u1", "k", 0),
            found(false, "a_writer", "u1", "k", 0),
            found(true, "b-trash", "u2", "k", 3),
            found(false, "b_owner", "u2", "k", 3),
            found(false, "c_owner", "u3", "k", -9),
        ];
        let at = |hours| START + SignedDuration::from_hours(hours);
        assert_eq!(due(&all[..5], "k", HOUR * 5, at(4)), (Vec::new(), Some(HOUR)));
        let (over, next) = due(&all, "k", HOUR * 5, at(5));
        assert_eq!(next, Some(HOUR * 3));
        assert_eq!(
            text(&over),
            ["DROP DATABASE \"a-trash\"", "DROP ROLE \"a_owner\", \"a_writer\"", "DROP ROLE \"c_owner\""]
        );
        assert_eq!(due(&all[..1], "k", HOUR, at(-7)).1, Some(HOUR), "a clock that was set back");
    }

    #[test]
    fn what_another_class_or_nobody_put_there_is_left() {
        let live = Marker { uid: "u1".to_owned(), claim: "c".to_owned() }.comment();
        let all = [
            found(true, "a-trash", "u1", "other", 0),
            found(true, "renamed", "u1", "k", 0),
            Found { comment: live, ..found(true, "b-trash", "u1", "k", 0) },
            Found { comment: "{}".to_owned(), ..found(false, "b_owner", "u1", "k", 0) },
        ];
        let later = START + SignedDuration::from_hours(1_000_000);
        assert_eq!(due(&all, "k", HOUR, later), (Vec::new(), None));
    }
}
