//! The Secrets of Databases, which are named and not printed: one without its
//! password, applied, would take away the credentials of a running workload.

use kube::ResourceExt;
use peristyle_crds::v1alpha1::{
    Database,
    database::RoleName,
    service::{BindingRole, DatabaseBinding},
};

use super::input::Input;
use crate::controllers::database::{
    build::{KEYS, TYPE},
    record,
    validate::{self, Invalid},
};

/// Each Secret of `database` in a line.
///
/// # Errors
/// When two roles would share one Secret.
pub fn lines(input: &Input, database: &Database) -> Result<Vec<String>, Invalid> {
    let (namespace, name) = (database.namespace().unwrap_or_default(), database.name_any());
    let is_read =
        |binding: &DatabaseBinding| binding.database == name && binding.role() == BindingRole::Reader;
    let mut neighbours =
        input.services.iter().filter(|s| s.metadata.namespace == database.metadata.namespace);
    let is_reader_bound = neighbours.any(|service| service.spec.databases.iter().any(is_read));
    let secrets = validate::secrets(database, is_reader_bound)?;
    let line = |secret: &str, type_: &str, keys: &[&str], what: &str| {
        let keys = keys.join(", ");
        format!("Secret {namespace}/{secret} ({type_}), keys {keys}: made in the cluster, holds {what}")
    };
    let mut lines: Vec<String> =
        secrets.values().map(|secret| line(secret, TYPE, &KEYS, "a password")).collect();
    let roles: Vec<&str> = secrets.keys().copied().map(|role: RoleName| record::key(role)).collect();
    lines.push(line(&record::name(&name), record::TYPE, &roles, "passwords"));
    Ok(lines)
}
