//! What a database and its roles are called on the server.

use peristyle_crds::v1alpha1::database::{RoleName, Slot};
use sha2::{Digest, Sha256};

use super::{Identifier, InvalidIdentifier};

/// The schema that belongs to the owner group.
pub const SCHEMA: &str = "app";
/// The built-in roles in the order in which they are created.
pub const ROLES: [RoleName; 3] = [RoleName::Owner, RoleName::Writer, RoleName::Reader];
/// The two logins of each role.
pub const SLOTS: [Slot; 2] = [Slot::A, Slot::B];

/// What the name of a database in the trash ends with. No database outside can
/// have such a name: the schema of the API and default names admit no dash.
pub const TRASH_SUFFIX: &str = "-trash";

/// Bytes of a database's name, so that the longest role name still fits.
const MAX_DATABASE: usize = 50;
/// Hexadecimal digits that tell apart names which would read alike.
const HASH: usize = 10;

/// Why a name cannot be used.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidName {
    /// The server keeps the prefix for its own roles.
    #[error("spec.name: {0:?} starts with pg_, which PostgreSQL keeps for itself; choose another name")]
    Reserved(String),
    /// Not a name of the server at all.
    #[error("spec.name: {0}")]
    Identifier(#[from] InvalidIdentifier),
}

/// All names of one database.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Names {
    /// The database.
    pub database: Identifier,
    /// The database while it lies in the trash.
    pub trash: Identifier,
    /// The schema of the application.
    pub schema: Identifier,
    groups: [Identifier; 3],
    logins: [[Identifier; 2]; 3],
}

impl Names {
    /// Names around `database`.
    ///
    /// # Errors
    /// When `database` starts with `pg_` or is too long for the names of its roles.
    pub fn new(database: &str) -> Result<Self, InvalidName> {
        if database.starts_with("pg_") {
            return Err(InvalidName::Reserved(database.to_owned()));
        }
        let group = |role| Identifier::new(format!("{database}_{}", word(role)));
        let login = |role, slot| Identifier::new(format!("{database}_{}_{slot}", word(role)));
        let logins = |role| Ok::<_, InvalidIdentifier>([login(role, 'a')?, login(role, 'b')?]);
        Ok(Self {
            database: Identifier::new(database)?,
            trash: Identifier::new(format!("{database}{TRASH_SUFFIX}"))?,
            schema: Identifier::new(SCHEMA)?,
            groups: [group(ROLES[0])?, group(ROLES[1])?, group(ROLES[2])?],
            logins: [logins(ROLES[0])?, logins(ROLES[1])?, logins(ROLES[2])?],
        })
    }

    /// The group that holds the privileges of `role`.
    #[must_use]
    pub const fn group(&self, role: RoleName) -> &Identifier {
        &self.groups[role as usize]
    }

    /// One of the two logins of `role`.
    #[must_use]
    pub const fn login(&self, role: RoleName, slot: Slot) -> &Identifier {
        &self.logins[role as usize][slot as usize]
    }

    /// All logins with what they are.
    pub fn logins(&self) -> impl Iterator<Item = (RoleName, Slot, &Identifier)> {
        ROLES.into_iter().flat_map(|role| SLOTS.map(|slot| (role, slot, self.login(role, slot))))
    }

    /// Groups and logins.
    pub fn roles(&self) -> impl Iterator<Item = &Identifier> {
        self.groups.iter().chain(self.logins.iter().flatten())
    }
}

const fn word(role: RoleName) -> &'static str {
    match role {
        RoleName::Owner => "owner",
        RoleName::Writer => "writer",
        RoleName::Reader => "reader",
    }
}

/// The name of a database whose spec names none: `<namespace>_<name>`, with a
/// hash where cutting or replacing characters would let two objects meet.
///
/// The plain form holds exactly one underscore and the other at least two, so
/// that neither can look like the other.
#[must_use]
pub fn default_name(namespace: &str, name: &str) -> String {
    let plain = format!("{namespace}_{name}");
    let is_simple = |text: &str| text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if is_simple(namespace)
        && is_simple(name)
        && plain.len() <= MAX_DATABASE
        && plain.starts_with(|c: char| c.is_ascii_lowercase())
        && !plain.starts_with("pg_")
    {
        return plain;
    }
    let digest = hex::encode(Sha256::digest(format!("{namespace}/{name}")));
    let readable: String = format!("d_{plain}")
        .chars()
        .map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '_' })
        .take(MAX_DATABASE - HASH - 2)
        .collect();
    format!("{readable}__{}", &digest[..HASH])
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const OBJECTS: usize = 100_000;

    /// Labels of Kubernetes, from a seed (xorshift).
    struct Labels(u64);

    impl Labels {
        fn below(&mut self, end: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 >> 33).unwrap() % end
        }

        /// A label of at most `longest` characters; `inner` may also stand between the others.
        fn label(&mut self, outer: &[u8], inner: &[u8], longest: usize) -> String {
            let length = 1 + self.below(longest);
            let last = length - 1;
            (0..length)
                .map(|place| if place == 0 || place == last { outer } else { inner })
                .map(|letters| char::from(letters[self.below(letters.len())]))
                .collect()
        }

        /// Of one half few letters and many dashes: what is most likely to meet.
        fn next(&mut self, is_tricky: bool) -> String {
            if is_tricky {
                return self.label(b"abc", b"abc-", 6);
            }
            let letters = b"abcdefghijklmnopqrstuvwxyz0123456789";
            self.label(letters, b"abcdefghijklmnopqrstuvwxyz0123456789-", 63)
        }
    }

    #[test]
    fn all_default_names_are_valid_and_no_two_objects_share_one_or_a_role() {
        let mut labels = Labels(0x9e37_79b9_7f4a_7c15);
        let (mut objects, mut databases, mut roles) = (HashSet::new(), HashSet::new(), HashSet::new());
        while objects.len() < OBJECTS {
            let is_tricky = objects.len() % 2 == 0;
            let (namespace, name) = (labels.next(is_tricky), labels.next(is_tricky));
            if !objects.insert((namespace.clone(), name.clone())) {
                continue;
            }
            let database = default_name(&namespace, &name);
            assert!(database.len() <= MAX_DATABASE, "{namespace}/{name}: {database}");
            assert!(database.starts_with(|c: char| c.is_ascii_lowercase()), "{namespace}/{name}: {database}");
            let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
            assert!(database.bytes().all(is_plain), "{namespace}/{name}: {database}");
            assert!(!["postgres", "template0", "template1"].contains(&&*database), "{namespace}/{name}");
            let names = Names::new(&database).unwrap();
            // One's database may read like another's role: they have separate name spaces.
            for role in names.roles().map(Identifier::as_str) {
                assert!(role.len() <= crate::sql::MAX_NAME && !role.starts_with("pg_"), "{role}");
                assert!(!["public", "none", "postgres"].contains(&role), "{role}");
                assert!(roles.insert(role.to_owned()), "{namespace}/{name} shares role {role}");
            }
            assert!(!databases.contains(names.trash.as_str()), "{namespace}/{name}: the trash");
            assert!(databases.insert(database), "{namespace}/{name} shares its database");
        }
    }

    #[test]
    fn a_simple_name_stays_readable() {
        assert_eq!(default_name("demo", "greeter"), "demo_greeter");
    }

    #[test]
    fn a_name_that_could_be_misread_carries_a_hash() {
        for (namespace, name) in [("a-b", "c"), ("a", "b-c"), ("pg", "orders"), ("1a", "b"), ("a", "b.c")] {
            let database = default_name(namespace, name);
            assert!(database.contains("__"), "{database}");
            assert!(Names::new(&database).is_ok(), "{database}");
        }
        let long = "n".repeat(63);
        assert_eq!(default_name(&long, "x").len(), MAX_DATABASE);
    }

    #[test]
    fn names_follow_the_role() {
        let names = Names::new("shop").unwrap();
        assert_eq!(names.group(RoleName::Writer).as_str(), "shop_writer");
        assert_eq!(names.login(RoleName::Owner, Slot::A).as_str(), "shop_owner_a");
        assert_eq!(names.login(RoleName::Reader, Slot::B).as_str(), "shop_reader_b");
        assert_eq!(names.roles().count(), 9);
    }

    #[test]
    fn the_prefix_of_the_server_is_refused_with_a_remedy() {
        let error = Names::new("pg_shop").unwrap_err().to_string();
        assert!(error.contains("spec.name") && error.contains("choose another"), "{error}");
    }
}
