//! What the server's answer means for the class.

use peristyle_crds::{
    condition::{Reason, types},
    v1alpha1::{DatabaseClassStatus, database_class::AdminMode},
};

use crate::{conditions::Finding, sql::catalog::Server};

/// Oldest supported major version.
const OLDEST: i32 = 14;

/// The status of a class whose server answered.
#[must_use]
pub fn status(server: &Server) -> DatabaseClassStatus {
    let mode = if server.is_superuser { AdminMode::Superuser } else { AdminMode::CreateRole };
    DatabaseClassStatus {
        engine_version: Some(server.version.clone()),
        admin_mode: Some(mode),
        ..DatabaseClassStatus::default()
    }
}

/// Whether databases can be provisioned on the server.
#[must_use]
pub fn findings(server: &Server, endpoint: &str) -> Vec<Finding> {
    let reachable = Finding::good(
        types::SERVER_REACHABLE,
        format!("PostgreSQL {} answers at {endpoint}", server.version),
    );
    if server.major() < OLDEST {
        let message = format!(
            "{endpoint} runs PostgreSQL {}; {OLDEST} is the oldest that is supported",
            server.version
        );
        return vec![reachable, Finding::stalled(types::READY, Reason::Invalid, message)];
    }
    let missing = server.missing();
    if missing.is_empty() {
        return vec![reachable];
    }
    let message = format!(
        "administrator {admin:?} lacks {list}; a superuser of the server runs ALTER ROLE \"{admin}\" {words}",
        admin = server.admin,
        list = missing.join(" and "),
        words = missing.join(" ")
    );
    vec![reachable, Finding::stalled(types::READY, Reason::InsufficientPrivileges, message)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{conditions::worst, sql::catalog::Attributes};

    fn server(version_num: i32, attributes: [bool; 3]) -> Server {
        Server {
            version_num,
            version: format!("{}.1", version_num / 10_000),
            system_identifier: "7".to_owned(),
            admin: "admin".to_owned(),
            is_superuser: false,
            attributes: Attributes {
                create_role: attributes[0],
                create_database: attributes[1],
                inherit: attributes[2],
            },
        }
    }

    #[test]
    fn an_administrator_without_a_right_is_told_which_and_how_to_get_it() {
        let findings = findings(&server(150_001, [true, false, false]), "pg:5432");
        let worst = worst(&findings).unwrap();
        assert_eq!(worst.reason, Reason::InsufficientPrivileges);
        assert!(worst.message.contains("lacks CREATEDB and INHERIT"), "{}", worst.message);
    }

    #[test]
    fn a_server_that_is_too_old_is_refused() {
        assert_eq!(worst(&findings(&server(130_009, [true; 3]), "pg:5432")).unwrap().reason, Reason::Invalid);
    }

    #[test]
    fn a_superuser_needs_no_attribute() {
        let superuser = Server { is_superuser: true, ..server(140_001, [false; 3]) };
        assert_eq!(worst(&findings(&superuser, "pg:5432")), None);
        assert_eq!(status(&superuser).admin_mode, Some(AdminMode::Superuser));
    }
}
