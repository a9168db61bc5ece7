//! The Secret of a login, as servicebinding.io lays it out.

use std::collections::BTreeMap;

use k8s_openapi::{ByteString, api::core::v1::Secret};
use url::form_urlencoded;

use crate::{
    controllers::database_class::target::AUTHORITIES,
    credentials::PASSWORD,
    external::postgres::{Endpoint, Tls},
    metadata::Owner,
    sql::{Identifier, password::Password},
};

/// Keys of the Secret of a login, but for the authorities of a verified server.
pub const KEYS: [&str; 10] =
    ["database", "host", "jdbc-uri", PASSWORD, "port", "provider", "sslmode", "type", "uri", "username"];
/// Type of the Secret of a login.
pub const TYPE: &str = "servicebinding.io/postgresql";

/// What a client needs to connect.
#[derive(Clone, Copy)]
pub struct Connection<'a> {
    /// Where.
    pub endpoint: &'a Endpoint,
    /// Encryption.
    pub tls: &'a Tls,
    /// Which database.
    pub database: &'a Identifier,
    /// Who.
    pub login: &'a Identifier,
}

/// The Secret `name` with which a client connects.
///
/// A URI cannot carry a certificate, and `verify-full` without one fails: `uri`
/// and `jdbc-uri` therefore say `require`. The key `sslmode` says `verify-full`
/// where `ca.crt` lies beside it, for clients that read the keys as files.
#[must_use]
pub fn secret(owner: &Owner, name: &str, connection: Connection, password: &Password) -> Secret {
    let (endpoint, database, login) =
        (connection.endpoint, connection.database.as_str(), connection.login.as_str());
    let (mode, uri_mode) = match connection.tls {
        Tls::Disabled => ("disable", "disable"),
        Tls::VerifyFull { .. } => ("verify-full", "require"),
    };
    let mut data: BTreeMap<String, String> = [
        ("type", "postgresql"),
        ("provider", "postgresql"),
        ("host", &endpoint.host),
        ("port", &endpoint.port.to_string()),
        ("database", database),
        ("username", login),
        (PASSWORD, password.expose()),
        ("uri", &uri(connection, password.expose(), uri_mode)),
        ("jdbc-uri", &jdbc_uri(connection, password.expose(), uri_mode)),
        ("sslmode", mode),
    ]
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .into();
    if let Tls::VerifyFull { authorities } = connection.tls {
        data.insert(AUTHORITIES.to_owned(), authorities.clone());
    }
    Secret {
        metadata: owner.child(name),
        type_: Some(TYPE.to_owned()),
        data: Some(data.into_iter().map(|(key, value)| (key, ByteString(value.into_bytes()))).collect()),
        ..Secret::default()
    }
}

fn uri(connection: Connection, password: &str, mode: &str) -> String {
    let encode = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    format!(
        "postgresql://{}:{}@{}/{}?sslmode={mode}",
        // A plus means a blank only in a query.
        encode(connection.login.as_str()).replace('+', "%20"),
        encode(password).replace('+', "%20"),
        connection.endpoint,
        encode(connection.database.as_str()).replace('+', "%20"),
    )
}

fn jdbc_uri(connection: Connection, password: &str, mode: &str) -> String {
    let query = form_urlencoded::Serializer::new(String::new())
        .append_pair("user", connection.login.as_str())
        .append_pair("password", password)
        .append_pair("sslmode", mode)
        .finish();
    let path = form_urlencoded::byte_serialize(connection.database.as_str().as_bytes())
        .collect::<String>()
        .replace('+', "%20");
    format!("jdbc:postgresql://{}/{path}?{query}", connection.endpoint)
}

#[cfg(test)]
mod tests {
    use peristyle_crds::{
        names::DATABASE_LABEL,
        v1alpha1::{Database, DatabaseSpec},
    };
    use url::Url;

    use super::*;

    fn text(secret: &Secret, key: &str) -> String {
        String::from_utf8(secret.data.as_ref().unwrap()[key].0.clone()).unwrap()
    }

    fn build(tls: &Tls, login: &str) -> (Secret, Password) {
        let database = Database::new("orders", DatabaseSpec::default());
        let owner = Owner::new(&database, "shop", DATABASE_LABEL);
        let endpoint = Endpoint { host: "pg.db.svc".to_owned(), port: 5433 };
        let database = Identifier::new("shop_orders").unwrap();
        let login = Identifier::new(login).unwrap();
        let password = Password::generate();
        let connection = Connection { endpoint: &endpoint, tls, database: &database, login: &login };
        (secret(&owner, "orders-db", connection, &password), password)
    }

    #[test]
    fn every_key_of_the_convention_is_there_and_agrees_with_the_uri() {
        let (secret, password) = build(&Tls::Disabled, "shop_orders_writer_a");
        let keys: Vec<&str> = secret.data.as_ref().unwrap().keys().map(String::as_str).collect();
        assert_eq!(keys, KEYS);
        assert_eq!(secret.type_.as_deref(), Some("servicebinding.io/postgresql"));
        let uri = Url::parse(&text(&secret, "uri")).unwrap();
        assert_eq!(uri.host_str(), Some("pg.db.svc"));
        assert_eq!(uri.port(), Some(5433));
        assert_eq!(uri.path(), "/shop_orders");
        assert_eq!(uri.username(), text(&secret, "username"));
        assert_eq!(uri.password(), Some(password.expose()));
        assert_eq!(uri.query(), Some("sslmode=disable"));
    }

    #[test]
    fn a_verified_server_brings_its_authorities() {
        let (secret, _) = build(&Tls::VerifyFull { authorities: "PEM".to_owned() }, "w");
        assert_eq!(text(&secret, "ca.crt"), "PEM");
        assert_eq!(text(&secret, "sslmode"), "verify-full");
        assert!(text(&secret, "uri").ends_with("?sslmode=require"));
        assert!(text(&secret, "jdbc-uri").ends_with("&sslmode=require"));
    }

    #[test]
    fn what_has_a_meaning_in_a_uri_is_encoded() {
        let login = "a b@c/d?e#f%g:h&i+j";
        let (secret, password) = build(&Tls::Disabled, login);
        let uri = text(&secret, "uri");
        let config: tokio_postgres::Config = uri.parse().unwrap();
        assert_eq!(config.get_user(), Some(login));
        assert_eq!(config.get_password(), Some(password.expose().as_bytes()));
        let jdbc = text(&secret, "jdbc-uri");
        let url = Url::parse(jdbc.strip_prefix("jdbc:").unwrap()).unwrap();
        let user = url.query_pairs().find(|(key, _)| key == "user").unwrap().1.into_owned();
        assert_eq!(user, login);
    }
}
