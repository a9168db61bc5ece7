//! From spec and surroundings to what should be on the server.

use std::{collections::BTreeMap, sync::Arc, time::Duration as StdDuration};

use kube::ResourceExt;
use peristyle_crds::{
    class::{self, ClassError},
    condition::{Reason, types},
    duration::{Duration, InvalidDuration},
    v1alpha1::{
        Database, DatabaseClass,
        database::{Adopt, Role, RoleName, RotationMode, Server},
    },
};

use super::{
    observe::{Observed, name_on_server},
    record,
    rotation::Policy,
};
use crate::{
    conditions,
    controllers::database_class::target::{self, Access},
    external::postgres::Endpoint,
    retry::{Class, Classified},
    sql::{
        marker::{self, Marker},
        names::{InvalidName, Names, ROLES},
        plan::{Desired, Login},
    },
};

/// Connections of an application's login.
const CONNECTIONS: i32 = 30;
/// Connections of the login that migrates.
const OWNER_CONNECTIONS: i32 = 5;

/// Time between two rotations.
const INTERVAL: StdDuration = StdDuration::from_secs(720 * 3600);
const SHORTEST_INTERVAL: StdDuration = StdDuration::from_secs(60);
/// How long a login works on after a rotation.
const OVERLAP: StdDuration = StdDuration::from_secs(24 * 3600);

/// A Database that can be provisioned.
#[derive(Clone, Debug)]
pub struct Validated {
    /// The class.
    pub class: Arc<DatabaseClass>,
    /// How to reach its server.
    pub access: Access,
    /// Where workloads connect; never changes once bound.
    pub workloads: Endpoint,
    /// The server as it was first bound; another one is refused.
    pub bound: Option<Server>,
    /// What should be there.
    pub desired: Desired,
    /// Secret of each login.
    pub secrets: BTreeMap<RoleName, String>,
    /// When passwords change.
    pub rotation: Policy,
    /// What the class is called in the marks of its trash.
    pub keeper: String,
}

/// Why a Database cannot be provisioned (yet).
#[derive(Debug, thiserror::Error)]
pub enum Invalid {
    /// No class, or too many.
    #[error("{0}")]
    Class(ClassError),
    /// The class does not say how to reach its server.
    #[error("DatabaseClass {class}: {source}")]
    Target {
        /// Name of the class.
        class: String,
        /// Why not.
        source: target::Error,
    },
    /// The class's server cannot be used.
    #[error("DatabaseClass {class} is not ready: {message}")]
    ClassNotReady {
        /// Name of the class.
        class: String,
        /// What it says.
        message: String,
    },
    /// The name on the server.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// Two roles would share one Secret.
    #[error("spec.roles: {0:?} is the secretName of two roles; give each its own")]
    SharedSecret(String),
    /// A role would share its Secret with what the operator writes down.
    #[error("spec.roles: {0:?} as secretName is kept for the operator; choose another")]
    ReservedSecret(String),
    /// Another Database has the name.
    #[error(
        "spec.name: {name} belongs to {}; create this Database again with another name",
        by.as_ref().map_or_else(|| "a Database of another namespace".to_owned(), |by| format!("Database {by}"))
    )]
    Claimed {
        /// Name on the server.
        name: String,
        /// Who has it, if in the same namespace.
        by: Option<String>,
    },
    /// Passwords would change too often or never.
    #[error("spec.rotation.{field}: {value} {remedy}")]
    Rotation {
        /// The field.
        field: &'static str,
        /// Its value, or that of the class.
        value: String,
        /// What to do.
        remedy: &'static str,
    },
    /// The cache has not seen the cluster's identity.
    #[error("the namespaces are not in the cache yet")]
    NoCluster,
}

impl Classified for Invalid {
    fn class(&self) -> Class {
        match self {
            Self::Class(ClassError::NotFound(_)) | Self::ClassNotReady { .. } | Self::NoCluster => {
                Class::Wait
            }
            // A change of any class leads to another look.
            Self::Class(ClassError::Ambiguous(_))
            | Self::Name(_)
            | Self::SharedSecret(_)
            | Self::ReservedSecret(_)
            | Self::Claimed { .. }
            | Self::Rotation { .. } => Class::Terminal,
            Self::Target { source, .. } => source.class(),
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::Class(ClassError::NotFound(_)) => Reason::ClassNotFound,
            Self::Class(ClassError::Ambiguous(_)) => Reason::ClassAmbiguous,
            Self::ClassNotReady { .. } => Reason::ServerUnreachable,
            Self::Target { source, .. } => source.reason(),
            Self::Name(_) | Self::SharedSecret(_) | Self::ReservedSecret(_) | Self::Rotation { .. } => {
                Reason::Invalid
            }
            Self::Claimed { .. } => Reason::DatabaseConflict,
            Self::NoCluster => Reason::Progressing,
        }
    }

    fn condition(&self) -> &'static str {
        match self {
            Self::ClassNotReady { .. } | Self::Target { .. } => types::SERVER_REACHABLE,
            _ => types::READY,
        }
    }
}

/// Decides what should be on which server. Pure.
///
/// # Errors
/// [`Invalid`], which also says when it may come by itself.
pub fn validate(database: &Database, observed: &Observed) -> Result<Validated, Invalid> {
    let names = Names::new(&name_on_server(database))?;
    let secrets = secrets(database, observed.is_reader_bound)?;
    let bound = database.status.as_ref().and_then(|status| status.server.clone());
    let class = choose(database, bound.as_ref(), observed)?;
    let access = target::access(&class, &observed.system_namespace)
        .map_err(|source| Invalid::Target { class: class.name_any(), source })?;
    if let Some(claimant) = claimant(database, bound.as_ref(), &access, observed) {
        let is_visible = claimant.namespace() == database.namespace();
        return Err(Invalid::Claimed {
            name: names.database.as_str().to_owned(),
            by: is_visible.then(|| claimant.name_any()),
        });
    }
    let cluster = observed.cluster.as_deref().ok_or(Invalid::NoCluster)?;
    let namespace = observed.namespace.as_deref().ok_or(Invalid::NoCluster)?;
    let marker = Marker::new(&database.uid().unwrap_or_default(), cluster, namespace, &database.name_any());
    let logins = secrets
        .keys()
        .map(|role| Login { role: *role, connection_limit: connection_limit(database, *role) })
        .collect();
    let rotation = rotation(database, &class)?;
    Ok(Validated {
        rotation,
        keeper: marker::keeper(cluster, &access.class),
        workloads: bound
            .as_ref()
            .and_then(|bound| Some(Endpoint { host: bound.host.clone(), port: bound.port.try_into().ok()? }))
            .unwrap_or_else(|| access.workloads.clone()),
        class,
        access,
        desired: Desired {
            names,
            marker,
            logins,
            adopts: database.spec.adopt.unwrap_or_default() == Adopt::IfMarked,
            was_made: bound.is_some(),
        },
        bound,
        secrets,
    })
}

/// Another Database that has the same name on the same server: one that is
/// bound, else the older one. For a bound Database the mark on the server decides.
fn claimant<'a>(
    database: &Database,
    bound: Option<&Server>,
    access: &Access,
    observed: &'a Observed,
) -> Option<&'a Database> {
    if bound.is_some() {
        return None;
    }
    let age = |database: &Database| (database.creation_timestamp(), database.uid());
    let is_before = |other: &Database| {
        let server = other.status.as_ref().and_then(|status| status.server.as_ref());
        let wanted = other.spec.class_name.as_deref().or(server.map(|server| server.class.as_str()));
        let class = class::choose(observed.classes.iter().map(|class| &**class), wanted);
        let is_there = class.is_ok_and(|class| {
            target::access(class, &observed.system_namespace).is_ok_and(|other| other.admin == access.admin)
        });
        is_there && (server.is_some() || age(other) < age(database))
    };
    observed.namesakes.iter().map(|other| &**other).find(|other| is_before(other))
}

/// The class that the spec names; without a name the one that it was bound to
/// when it was the default, so that another default moves no database.
fn choose(
    database: &Database,
    bound: Option<&Server>,
    observed: &Observed,
) -> Result<Arc<DatabaseClass>, Invalid> {
    let wanted = database.spec.class_name.as_deref().or(bound.map(|server| server.class.as_str()));
    let name = class::choose(observed.classes.iter().map(|class| &**class), wanted)
        .map_err(Invalid::Class)?
        .name_any();
    let found = observed.classes.iter().find(|class| class.name_any() == name).cloned();
    let class = found.ok_or(Invalid::Class(ClassError::NotFound(Some(name.clone()))))?;
    let reported = class.status.as_ref().map(|status| &status.conditions[..]).unwrap_or_default();
    if conditions::is_true(reported, types::READY, class.metadata.generation) {
        return Ok(class);
    }
    let ready = reported.iter().find(|condition| condition.type_ == types::READY);
    let message = ready
        .filter(|ready| ready.status != "True")
        .map_or_else(|| "not observed yet".to_owned(), |ready| ready.message.clone());
    Err(Invalid::ClassNotReady { class: name, message })
}

fn role(database: &Database, name: RoleName) -> Option<&Role> {
    let roles = database.spec.roles.as_ref()?;
    match name {
        RoleName::Owner => roles.owner.as_ref(),
        RoleName::Writer => roles.writer.as_ref(),
        RoleName::Reader => roles.reader.as_ref(),
    }
}

/// The Secret of each role that needs a login: nobody gets a reader unasked.
///
/// # Errors
/// When two roles would share one.
pub fn secrets(database: &Database, is_reader_bound: bool) -> Result<BTreeMap<RoleName, String>, Invalid> {
    let mut secrets: BTreeMap<RoleName, String> = BTreeMap::new();
    for name in ROLES {
        let spec = role(database, name);
        if name == RoleName::Reader && spec.is_none() && !is_reader_bound {
            continue;
        }
        let suffix = match name {
            RoleName::Owner => "db-owner",
            RoleName::Writer => "db",
            RoleName::Reader => "db-ro",
        };
        let secret = spec
            .and_then(|role| role.secret_name.clone())
            .unwrap_or_else(|| format!("{}-{suffix}", database.name_any()));
        if secret == record::name(&database.name_any()) {
            return Err(Invalid::ReservedSecret(secret));
        }
        if secrets.values().any(|other| *other == secret) {
            return Err(Invalid::SharedSecret(secret));
        }
        secrets.insert(name, secret);
    }
    Ok(secrets)
}

/// The policy of the Database, of its class, or the default.
fn rotation(database: &Database, class: &DatabaseClass) -> Result<Policy, Invalid> {
    let spec = database.spec.rotation.clone().unwrap_or_default();
    let class = class.spec.defaults.clone().and_then(|defaults| defaults.rotation).unwrap_or_default();
    let length = |field, own: Option<Duration>, class: Option<Duration>, default| {
        let Some(duration) = own.or(class) else {
            return Ok(default);
        };
        let invalid = |e: InvalidDuration| Invalid::Rotation { field, value: e.to_string(), remedy: "" };
        duration.get().map_err(invalid)
    };
    let interval = length("interval", spec.interval, class.interval, INTERVAL)?;
    let overlap = length("overlap", spec.overlap, class.overlap, OVERLAP)?;
    let is_timed = spec.mode.unwrap_or_default() == RotationMode::TwoSlot;
    if is_timed && interval < SHORTEST_INTERVAL {
        let value = format!("{} s", interval.as_secs());
        return Err(Invalid::Rotation { field: "interval", value, remedy: "is too short; use at least 1m" });
    }
    if is_timed && overlap >= interval {
        let value = format!("{} s", overlap.as_secs());
        let remedy = "is not shorter than the interval; the login before must end before the next rotation";
        return Err(Invalid::Rotation { field: "overlap", value, remedy });
    }
    Ok(Policy { interval: is_timed.then_some(interval), overlap })
}

fn connection_limit(database: &Database, name: RoleName) -> i32 {
    let default = if name == RoleName::Owner { OWNER_CONNECTIONS } else { CONNECTIONS };
    role(database, name).and_then(|role| role.connection_limit).unwrap_or(default)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn class(name: &str, is_default: bool, ready: &str) -> Arc<DatabaseClass> {
        let class = json!({
            "metadata": {"name": name, "generation": 1,
                         "annotations": {"peristyle.dev/is-default-class": is_default.to_string()}},
            "spec": {"engine": "PostgreSQL", "provider": "External", "external": {
                "endpoints": {"write": format!("{name}:5432")}, "adminSecret": {"name": "admin"},
                "tls": {"mode": "Disabled", "allowInsecure": "Enabled"}}},
            "status": {"observedGeneration": 1, "conditions": [
                {"type": "Ready", "status": ready, "reason": "X", "message": "server is down",
                 "observedGeneration": 1, "lastTransitionTime": "2024-01-01T00:00:00Z"}]}
        });
        Arc::new(serde_json::from_value(class).unwrap())
    }

    fn observed(classes: &[Arc<DatabaseClass>]) -> Observed {
        Observed {
            cluster: Some("cluster".to_owned()),
            namespace: Some("n1".to_owned()),
            namesakes: Vec::new(),
            classes: classes.to_vec(),
            is_reader_bound: false,
            system_namespace: "system".to_owned(),
        }
    }

    fn database(spec: &serde_json::Value, status: &serde_json::Value) -> Database {
        serde_json::from_value(json!({
            "metadata": {"name": "orders", "namespace": "shop", "uid": "u1"}, "spec": spec, "status": status
        }))
        .unwrap()
    }

    fn bound() -> serde_json::Value {
        json!({"server": {"class": "old", "host": "old.host", "port": 6000, "version": "15.1", "systemIdentifier": "7"}})
    }

    #[test]
    fn a_short_database_gets_an_owner_and_a_writer() {
        let database = database(&json!({}), &json!({}));
        let validated = validate(&database, &observed(&[class("pg", true, "True")])).unwrap();
        assert_eq!(validated.desired.names.database.as_str(), "shop_orders");
        let secrets: Vec<&str> = validated.secrets.values().map(String::as_str).collect();
        assert_eq!(secrets, ["orders-db-owner", "orders-db"]);
        let limits: Vec<i32> = validated.desired.logins.iter().map(|l| l.connection_limit).collect();
        assert_eq!(limits, [OWNER_CONNECTIONS, CONNECTIONS]);
    }

    #[test]
    fn a_reader_exists_when_asked_for_or_bound() {
        let classes = [class("pg", true, "True")];
        let asked = database(&json!({"roles": {"reader": {"secretName": "ro"}}}), &json!({}));
        assert_eq!(validate(&asked, &observed(&classes)).unwrap().secrets[&RoleName::Reader], "ro");
        let plain = database(&json!({}), &json!({}));
        let bound = Observed { is_reader_bound: true, ..observed(&classes) };
        assert_eq!(validate(&plain, &bound).unwrap().secrets[&RoleName::Reader], "orders-db-ro");
    }

    #[test]
    fn a_bound_database_stays_on_its_server_whatever_the_default_or_the_class_says() {
        let classes = [class("new", true, "True"), class("old", false, "True")];
        let validated = validate(&database(&json!({}), &bound()), &observed(&classes)).unwrap();
        assert_eq!(validated.class.name_any(), "old");
        assert_eq!(validated.workloads.to_string(), "old.host:6000");
        assert_eq!(validated.bound.unwrap().system_identifier, "7");
        let error = validate(&database(&json!({}), &bound()), &observed(&classes[..1])).unwrap_err();
        assert_eq!(error.reason(), Reason::ClassNotFound);
    }

    #[test]
    fn without_a_usable_class_the_database_waits_and_repeats_why() {
        let plain = database(&json!({}), &json!({}));
        let error = validate(&plain, &observed(&[])).unwrap_err();
        assert_eq!((error.class(), error.reason()), (Class::Wait, Reason::ClassNotFound));
        let error = validate(&plain, &observed(&[class("pg", true, "Unknown")])).unwrap_err();
        assert_eq!(error.reason(), Reason::ServerUnreachable);
        assert!(error.to_string().contains("pg is not ready: server is down"), "{error}");
        let two = [class("a", true, "True"), class("b", true, "True")];
        assert_eq!(validate(&plain, &observed(&two)).unwrap_err().reason(), Reason::ClassAmbiguous);
    }

    #[test]
    fn a_name_or_secret_that_cannot_work_is_refused() {
        let classes = [class("pg", true, "True")];
        let reserved = database(&json!({"name": "pg_orders"}), &json!({}));
        assert_eq!(validate(&reserved, &observed(&classes)).unwrap_err().class(), Class::Terminal);
        let roles = json!({"roles": {"writer": {"secretName": "s"}, "owner": {"secretName": "s"}}});
        let error = validate(&database(&roles, &json!({})), &observed(&classes)).unwrap_err();
        assert!(error.to_string().contains("spec.roles: \"s\""), "{error}");
        let roles = json!({"roles": {"writer": {"secretName": "orders-db-slots"}}});
        let error = validate(&database(&roles, &json!({})), &observed(&classes)).unwrap_err();
        assert!(matches!(&error, Invalid::ReservedSecret(name) if name == "orders-db-slots"), "{error}");
    }

    #[test]
    fn passwords_change_as_the_database_its_class_or_the_default_says() {
        let mut class = class("pg", true, "True");
        let policy = |class: &Arc<DatabaseClass>, rotation: serde_json::Value| {
            let database = database(&json!({"rotation": rotation}), &json!({}));
            validate(&database, &observed(std::slice::from_ref(class))).map(|validated| validated.rotation)
        };
        let hours = |hours: u64| StdDuration::from_secs(hours * 3600);
        let default = policy(&class, json!(null)).unwrap();
        assert_eq!(default, Policy { interval: Some(hours(720)), overlap: hours(24) });
        let defaults = json!({"rotation": {"interval": "100h", "overlap": "2h"}});
        Arc::make_mut(&mut class).spec.defaults = serde_json::from_value(defaults).unwrap();
        let mixed = policy(&class, json!({"overlap": "1h"})).unwrap();
        assert_eq!(mixed, Policy { interval: Some(hours(100)), overlap: hours(1) });
        assert_eq!(policy(&class, json!({"mode": "Disabled"})).unwrap().interval, None);
        for (spec, field) in
            [(json!({"interval": "30s"}), "interval"), (json!({"overlap": "100h"}), "overlap")]
        {
            let error = policy(&class, spec).unwrap_err();
            assert_eq!(error.class(), Class::Terminal);
            assert!(error.to_string().contains(&format!("spec.rotation.{field}: ")), "{error}");
        }
    }

    #[test]
    fn of_two_with_the_same_name_the_older_wins_unless_the_other_was_first_on_the_server() {
        let claim = |name: &str, namespace: &str, second: u8, status: &serde_json::Value| -> Database {
            serde_json::from_value(json!({
                "metadata": {"name": name, "namespace": namespace, "uid": name,
                             "creationTimestamp": format!("2024-01-01T00:00:0{second}Z")},
                "spec": {"name": "shared"}, "status": status
            }))
            .unwrap()
        };
        let fight = |ours: &Database, other: &Database| {
            let classes = [class("old", true, "True")];
            let observed = Observed { namesakes: vec![Arc::new(other.clone())], ..observed(&classes) };
            validate(ours, &observed).map(drop)
        };
        let (old, young) = (claim("old", "shop", 1, &json!({})), claim("young", "shop", 2, &json!({})));
        assert!(fight(&old, &young).is_ok());
        let error = fight(&young, &old).unwrap_err();
        assert_eq!((error.class(), error.reason()), (Class::Terminal, Reason::DatabaseConflict));
        assert!(error.to_string().contains("shared belongs to Database old"), "{error}");
        let elsewhere = claim("secret", "payroll", 1, &json!({}));
        let error = fight(&young, &elsewhere).unwrap_err().to_string();
        assert!(error.contains("another namespace") && !error.contains("secret"), "{error}");

        let first = claim("young", "shop", 2, &bound());
        assert!(fight(&first, &old).is_ok(), "for what is bound the mark decides");
        assert!(fight(&old, &first).is_err());
    }

    #[test]
    fn without_the_clusters_identity_nothing_is_marked() {
        let blind = Observed { cluster: None, ..observed(&[class("pg", true, "True")]) };
        let error = validate(&database(&json!({}), &json!({})), &blind).unwrap_err();
        assert_eq!(error.class(), Class::Wait);
    }
}
