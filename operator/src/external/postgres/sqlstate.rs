//! What an SQLSTATE means: try again, wait, or tell a person.

use crate::retry::Class;

/// Whether `code` speaks of the connection or of the whole server, which breaks,
/// stops, starts, or lacks resources or a disk.
#[must_use]
pub fn is_of_the_server(code: &str) -> bool {
    ["08", "53", "57P", "58"].iter().any(|prefix| code.starts_with(prefix))
}

/// Whether `code` speaks of a lock or an update of another at the same time.
#[must_use]
pub fn is_of_others(code: &str) -> bool {
    matches!(code, "55P03" | "40001" | "40P01")
}

/// The class of the failure that the server calls `code`.
#[must_use]
pub fn class(code: &str) -> Class {
    match code {
        // Somebody made the same at the same time: look again.
        "42710" | "42P04" | "23505" => Class::Conflict,
        // The administrator, or a login, lacks a right or its password.
        "42501" | "01006" | "01007" | "28000" | "28P01" => Class::Forbidden,
        // In use by sessions, a prepared transaction, a slot, a subscription or
        // another role's grants; closed; or not there.
        "55006" | "2BP01" | "55000" | "3D000" => Class::Wait,
        // A lock, an update by another at the same time, a time limit, a server
        // that is read-only after a failover.
        "55P03" | "40001" | "40P01" | "XX000" | "57014" | "25P04" | "25006" => Class::Transient,
        _ if is_of_the_server(code) => Class::Transient,
        _ => Class::Bug,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::terminated("57P01", Class::Transient)]
    #[case::starting("57P03", Class::Transient)]
    #[case::too_many_connections("53300", Class::Transient)]
    #[case::disk_full("53100", Class::Transient)]
    #[case::broken_connection("08006", Class::Transient)]
    #[case::serialization("40001", Class::Transient)]
    #[case::deadlock("40P01", Class::Transient)]
    #[case::read_only("25006", Class::Transient)]
    #[case::tuple_concurrently_updated("XX000", Class::Transient)]
    #[case::lock_timeout("55P03", Class::Transient)]
    #[case::statement_timeout("57014", Class::Transient)]
    #[case::io_error("58030", Class::Transient)]
    #[case::database_exists("42P04", Class::Conflict)]
    #[case::role_exists("42710", Class::Conflict)]
    #[case::exists_in_a_race("23505", Class::Conflict)]
    #[case::in_use("55006", Class::Wait)]
    #[case::dependents("2BP01", Class::Wait)]
    #[case::closed("55000", Class::Wait)]
    #[case::no_database("3D000", Class::Wait)]
    #[case::privilege("42501", Class::Forbidden)]
    #[case::grant_without_effect("01007", Class::Forbidden)]
    #[case::grant_of_nothing("01006", Class::Forbidden)]
    #[case::password("28P01", Class::Forbidden)]
    #[case::no_login("28000", Class::Forbidden)]
    #[case::syntax("42601", Class::Bug)]
    #[case::in_a_transaction("25001", Class::Bug)]
    fn each_answer_has_one_meaning(#[case] code: &str, #[case] expected: Class) {
        assert_eq!(class(code), expected);
    }
}
