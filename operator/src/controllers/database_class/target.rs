//! Where the server of a class is and who administers it.

use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, ResourceExt, core::ObjectMeta};
use peristyle_crds::{
    condition::{Reason, types},
    v1alpha1::{DatabaseClass, database_class::TlsMode},
};

use crate::{
    context::Context,
    external::postgres::{Endpoint, Login, Target, Tls},
    retry::{self, Class, Classified, bounded},
};

/// Key of the authorities in the ConfigMap of a class, and in the Secrets of its Databases.
pub const AUTHORITIES: &str = "ca.crt";
/// Port of an embedded server.
pub const EMBEDDED_PORT: i32 = 5432;
/// Name of the administrator of an embedded server.
pub const EMBEDDED_ADMIN: &str = "postgres";
/// Longest name of a class with an embedded server: its children append `-postgres`.
const MAX_EMBEDDED: usize = 52;

/// How to reach the server of a class, without any secret.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Access {
    /// Name of the class.
    pub class: String,
    /// Where workloads connect.
    pub workloads: Endpoint,
    /// Where the administrator connects.
    pub admin: Endpoint,
    /// Secret in the operator's namespace with the administrator's credentials.
    pub admin_secret: String,
    /// ConfigMap in the operator's namespace with the authorities; without it nothing is encrypted.
    pub authorities: Option<String>,
    /// Database to connect to first.
    pub maintenance_database: String,
}

/// Why the server cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An endpoint is not `host:port`.
    #[error("{field}: {value:?} is not host:port with a port up to 65535; write for example pg.db.svc:5432")]
    Endpoint {
        /// The field.
        field: &'static str,
        /// Its value.
        value: String,
    },
    /// The children would have names that are too long.
    #[error(
        "metadata.name: {0:?} is too long for an embedded server; use at most {MAX_EMBEDDED} characters without dots"
    )]
    Name(String),
    /// A class that validation should have refused.
    #[error("spec.{0} is missing")]
    Missing(&'static str),
    /// An object in the operator's namespace, or a key of it, does not exist.
    #[error("{kind} {namespace}/{name} has no {key:?}; create it")]
    Reference {
        /// Secret or ConfigMap.
        kind: &'static str,
        /// Namespace of the operator.
        namespace: String,
        /// Name.
        name: String,
        /// Key.
        key: &'static str,
    },
    /// The API server refused or did not answer.
    #[error("failed to get {kind} {name}: {source}")]
    Get {
        /// Secret or ConfigMap.
        kind: &'static str,
        /// Name.
        name: String,
        /// Why not.
        #[source]
        source: Box<kube::Error>,
    },
}

impl Classified for Error {
    fn class(&self) -> Class {
        match self {
            Self::Endpoint { .. } | Self::Name(_) | Self::Missing(_) => Class::Terminal,
            Self::Reference { .. } => Class::Wait,
            Self::Get { source, .. } => retry::classify(source),
        }
    }

    fn reason(&self) -> Reason {
        match self {
            Self::Reference { .. } => Reason::ReferenceMissing,
            _ => retry::reason(self.class()),
        }
    }

    fn condition(&self) -> &'static str {
        types::SERVER_REACHABLE
    }
}

/// Name of all children of a class with an embedded server.
#[must_use]
pub fn embedded_name(class: &DatabaseClass) -> String {
    format!("{}-postgres", class.name_any())
}

/// Reads the spec of `class`; `namespace` is the operator's.
///
/// # Errors
/// When a field cannot be used.
pub fn access(class: &DatabaseClass, namespace: &str) -> Result<Access, Error> {
    let name = class.name_any();
    if class.spec.embedded.is_some() {
        if name.len() > MAX_EMBEDDED || name.contains('.') {
            return Err(Error::Name(name));
        }
        let child = embedded_name(class);
        let endpoint = Endpoint { host: format!("{child}.{namespace}.svc"), port: 5432 };
        return Ok(Access {
            class: name,
            workloads: endpoint.clone(),
            admin: endpoint,
            admin_secret: child,
            authorities: None,
            maintenance_database: "postgres".to_owned(),
        });
    }
    let external = class.spec.external.as_ref().ok_or(Error::Missing("external"))?;
    let workloads = endpoint("spec.external.endpoints.write", &external.endpoints.write)?;
    let admin = match &external.admin_endpoint {
        Some(value) => endpoint("spec.external.adminEndpoint", value)?,
        None => workloads.clone(),
    };
    let authorities = match external.tls.mode {
        TlsMode::Disabled => None,
        // Closed: without authorities to check against nothing is sent.
        TlsMode::VerifyFull => {
            let map = external.tls.ca_config_map.as_ref();
            Some(map.ok_or(Error::Missing("external.tls.caConfigMap"))?.name.clone())
        }
    };
    Ok(Access {
        class: name,
        workloads,
        admin,
        admin_secret: external.admin_secret.name.clone(),
        authorities,
        maintenance_database: external.maintenance_database.clone().unwrap_or_else(|| "postgres".to_owned()),
    })
}

fn endpoint(field: &'static str, value: &str) -> Result<Endpoint, Error> {
    value
        .rsplit_once(':')
        .and_then(|(host, port)| Some(Endpoint { host: host.to_owned(), port: port.parse().ok()? }))
        .filter(|endpoint| !endpoint.host.is_empty() && endpoint.port != 0)
        .ok_or_else(|| Error::Endpoint { field, value: value.to_owned() })
}

/// Versions of the objects that [`fetch`] reads, from the caches.
#[must_use]
pub fn versions(ctx: &Context, access: &Access) -> [Option<String>; 2] {
    let namespace = &ctx.config.namespace;
    let version = |metadata: &ObjectMeta| metadata.resource_version.clone();
    let secret = ctx.stores.secrets.get(namespace, &access.admin_secret);
    let map = access.authorities.as_ref().and_then(|name| ctx.stores.config_maps.get(namespace, name));
    [secret.and_then(|s| version(&s.metadata)), map.and_then(|m| version(&m.metadata))]
}

/// Reads credentials and authorities.
///
/// # Errors
/// [`Error::Reference`] when one is missing, [`Error::Get`] when the API
/// server refuses.
pub async fn fetch(ctx: &Context, access: &Access) -> Result<Target, Error> {
    let namespace = &ctx.config.namespace;
    let secrets: Api<Secret> = Api::namespaced(ctx.client.clone(), namespace);
    let secret = get(&secrets, "Secret", &access.admin_secret).await?.unwrap_or_default();
    let value = |key: &'static str| {
        let bytes = secret.data.as_ref().and_then(|data| data.get(key));
        bytes
            .and_then(|bytes| String::from_utf8(bytes.0.clone()).ok())
            .filter(|text| !text.is_empty())
            .ok_or_else(|| Error::Reference {
                kind: "Secret",
                namespace: namespace.clone(),
                name: access.admin_secret.clone(),
                key,
            })
    };
    let tls = match &access.authorities {
        None => Tls::Disabled,
        Some(name) => {
            let maps: Api<ConfigMap> = Api::namespaced(ctx.client.clone(), namespace);
            let map = get(&maps, "ConfigMap", name).await?.unwrap_or_default();
            let authorities = map.data.and_then(|mut data| data.remove(AUTHORITIES));
            Tls::VerifyFull {
                authorities: authorities.ok_or_else(|| Error::Reference {
                    kind: "ConfigMap",
                    namespace: namespace.clone(),
                    name: name.clone(),
                    key: AUTHORITIES,
                })?,
            }
        }
    };
    Ok(Target {
        endpoint: access.admin.clone(),
        maintenance_database: access.maintenance_database.clone(),
        tls,
        admin: Login { user: value("username")?, password: value("password")?.into() },
    })
}

async fn get<K>(api: &Api<K>, kind: &'static str, name: &str) -> Result<Option<K>, Error>
where
    K: Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    bounded(api.get_opt(name)).await.map_err(|source| Error::Get {
        kind,
        name: name.to_owned(),
        source: Box::new(source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn external(write: &str, tls: &serde_json::Value) -> DatabaseClass {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "pg"},
            "spec": {"engine": "PostgreSQL", "provider": "External", "external": {
                "endpoints": {"write": write}, "adminSecret": {"name": "admin"}, "tls": tls}}
        }))
        .unwrap()
    }

    #[test]
    fn an_external_server_is_administered_where_workloads_connect_unless_told_otherwise() {
        let disabled = serde_json::json!({"mode": "Disabled", "allowInsecure": "Enabled"});
        let access = access(&external("pg.db.svc:5433", &disabled), "system").unwrap();
        assert_eq!(access.admin, access.workloads);
        assert_eq!(access.admin.to_string(), "pg.db.svc:5433");
        assert_eq!(access.maintenance_database, "postgres");
        assert_eq!(access.authorities, None);
    }

    #[test]
    fn a_class_that_verifies_without_authorities_is_refused() {
        let error = access(&external("pg:5432", &serde_json::json!({"mode": "VerifyFull"})), "system");
        assert!(matches!(error, Err(Error::Missing("external.tls.caConfigMap"))));
    }

    #[test]
    fn a_port_that_does_not_exist_is_refused_with_field_value_and_remedy() {
        let disabled = serde_json::json!({"mode": "Disabled", "allowInsecure": "Enabled"});
        for value in ["pg:99999", "pg:0", ":5432", "pg"] {
            let error = access(&external(value, &disabled), "system").unwrap_err().to_string();
            assert!(error.contains("endpoints.write") && error.contains(value), "{error}");
        }
    }

    #[test]
    fn an_embedded_server_has_a_name_that_fits_a_label() {
        let class = |name: &str| -> DatabaseClass {
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": name},
                "spec": {"engine": "PostgreSQL", "provider": "Embedded",
                         "embedded": {"image": "pg", "binDir": "/bin", "user": 100}}
            }))
            .unwrap()
        };
        let access_of = |name: &str| access(&class(name), "system");
        assert_eq!(access_of("dev").unwrap().admin.to_string(), "dev-postgres.system.svc:5432");
        assert!(access_of(&"x".repeat(53)).is_err());
        assert!(access_of("a.b").is_err());
    }
}
