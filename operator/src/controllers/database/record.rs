//! The passwords as they were written down before the server learned them: one
//! Secret per Database, beside those that workloads use. After a crash at any
//! point the same password goes on its way; no second one is made.

use std::{borrow::Cow, collections::BTreeMap};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use peristyle_crds::v1alpha1::database::{RoleName, Slot};
use serde::{Deserialize, Serialize};

use crate::{
    metadata::Owner,
    sql::{names::ROLES, password::Password},
};

/// The credentials of a role that are, or are about to be, in its Secret.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Which login.
    pub slot: Slot,
    /// Its password.
    pub password: Password,
    /// The request that led to it.
    pub asked: Option<String>,
}

/// The credentials of all roles.
pub type Entries = BTreeMap<RoleName, Entry>;

#[derive(Deserialize, Serialize)]
struct Stored<'a> {
    slot: Slot,
    password: &'a str,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    asked: Option<Cow<'a, str>>,
}

/// Type of the Secret.
pub const TYPE: &str = "peristyle.dev/database-slots";

/// Name of the Secret for the Database `name`.
#[must_use]
pub fn name(name: &str) -> String {
    format!("{name}-db-slots")
}

/// The Secret with `entries`.
#[must_use]
pub fn secret(owner: &Owner, entries: &Entries) -> Secret {
    let data = entries.iter().map(|(role, entry)| {
        let stored = Stored {
            slot: entry.slot,
            password: entry.password.expose(),
            asked: entry.asked.as_deref().map(Cow::Borrowed),
        };
        (key(*role).to_owned(), ByteString(serde_json::json!(stored).to_string().into_bytes()))
    });
    Secret {
        metadata: owner.child(name(&owner.name)),
        type_: Some(TYPE.to_owned()),
        data: Some(data.collect()),
        ..Secret::default()
    }
}

/// What `secret` holds; what somebody damaged counts as absent.
#[must_use]
pub fn parse(secret: &Secret) -> Entries {
    let entry = |role: RoleName| {
        let bytes = &secret.data.as_ref()?.get(key(role))?.0;
        let stored: Stored = serde_json::from_slice(bytes).ok()?;
        let password = Password::from_secret(stored.password.as_bytes())?;
        Some((role, Entry { slot: stored.slot, password, asked: stored.asked.map(Cow::into_owned) }))
    };
    ROLES.into_iter().filter_map(entry).collect()
}

/// Key of a role in the Secret.
pub const fn key(role: RoleName) -> &'static str {
    match role {
        RoleName::Owner => "owner",
        RoleName::Writer => "writer",
        RoleName::Reader => "reader",
    }
}

#[cfg(test)]
mod tests {
    use peristyle_crds::{
        names::DATABASE_LABEL,
        v1alpha1::{Database, DatabaseSpec},
    };

    use super::*;

    #[test]
    fn what_is_written_is_read_back_and_damage_counts_as_absent() {
        let database = Database::new("orders", DatabaseSpec::default());
        let owner = Owner::new(&database, "shop", DATABASE_LABEL);
        let entry = |slot, asked: Option<&str>| Entry {
            slot,
            password: Password::generate(),
            asked: asked.map(ToOwned::to_owned),
        };
        let entries: Entries =
            [(RoleName::Owner, entry(Slot::A, None)), (RoleName::Writer, entry(Slot::B, Some("x \"1\"")))]
                .into();
        let mut secret = secret(&owner, &entries);
        let read = parse(&secret);
        assert_eq!(read.len(), 2);
        let writer = &read[&RoleName::Writer];
        assert_eq!((writer.slot, writer.asked.as_deref()), (Slot::B, Some("x \"1\"")));
        assert_eq!(writer.password.expose(), entries[&RoleName::Writer].password.expose());

        let data = secret.data.as_mut().unwrap();
        data.insert("writer".to_owned(), ByteString(br#"{"slot":"A","password":"hunter2"}"#.to_vec()));
        assert!(!parse(&secret).contains_key(&RoleName::Writer), "a password that is not ours");
    }
}
