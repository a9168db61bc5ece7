//! The catalog queries; one text for PostgreSQL 14 to 18.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use tokio_postgres::Row;

use super::{Connection, Error, Session};
use crate::sql::{
    Identifier,
    catalog::{Attributes, Catalog, Database, Object, Role, Schemas, Server},
    names::Names,
    plan::trash::Found,
};

const SERVER: &str = "SELECT current_setting('server_version_num')::int4, current_setting('server_version'), \
    (SELECT system_identifier::text FROM pg_control_system()), pg_is_in_recovery(), \
    r.rolname::text, r.rolsuper, r.rolcreaterole, r.rolcreatedb, r.rolinherit \
    FROM pg_roles r WHERE r.rolname = current_user";
const DATABASE: &str = "SELECT pg_get_userbyid(d.datdba)::text, d.datallowconn, shobj_description(d.oid, 'pg_database') \
    FROM pg_database d WHERE d.datname = $1";
/// `acldefault`: no list at all means the built-in default, PUBLIC included.
const DATABASE_GRANTS: &str = "SELECT CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(x.grantee)::text END, \
    x.privilege_type, x.is_grantable AND x.grantee <> d.datdba \
    FROM pg_database d, aclexplode(coalesce(d.datacl, acldefault('d', d.datdba))) x WHERE d.datname = $1";
const ROLES: &str = "SELECT r.rolname::text, r.rolcanlogin, r.rolinherit, r.rolconnlimit, \
    shobj_description(r.oid, 'pg_authid'), pg_has_role(current_user, r.oid, 'USAGE'), \
    (SELECT coalesce(json_object_agg(coalesce(d.datname, '*'), s.setconfig), '{}')::text \
       FROM pg_db_role_setting s LEFT JOIN pg_database d ON d.oid = s.setdatabase WHERE s.setrole = r.oid), \
    array_remove(ARRAY[CASE WHEN rolsuper THEN 'SUPERUSER' END, CASE WHEN rolcreatedb THEN 'CREATEDB' END, \
      CASE WHEN rolcreaterole THEN 'CREATEROLE' END, CASE WHEN rolreplication THEN 'REPLICATION' END, \
      CASE WHEN rolbypassrls THEN 'BYPASSRLS' END], NULL), \
    coalesce(rolvaliduntil < 'infinity', false) \
    FROM pg_roles r WHERE r.rolname = ANY($1)";
const MEMBERS: &str = "SELECT DISTINCT g.rolname::text, u.rolname::text FROM pg_auth_members m \
    JOIN pg_roles g ON g.oid = m.roleid JOIN pg_roles u ON u.oid = m.member \
    WHERE (g.rolname = ANY($1) OR u.rolname = ANY($1)) AND u.rolname <> current_user";
const SCHEMAS: &str = "SELECT n.nspname::text, pg_get_userbyid(n.nspowner)::text, \
    CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(x.grantee)::text END, x.privilege_type, \
    x.is_grantable AND x.grantee <> n.nspowner \
    FROM pg_namespace n LEFT JOIN LATERAL aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner))) x ON true \
    WHERE n.nspname = ANY($1)";
const DEFAULTS: &str = "SELECT coalesce(n.nspname, '*')::text, a.defaclobjtype::text, \
    CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(x.grantee)::text END, x.privilege_type \
    FROM pg_default_acl a LEFT JOIN pg_namespace n ON n.oid = a.defaclnamespace \
    CROSS JOIN LATERAL aclexplode(a.defaclacl) x \
    WHERE a.defaclrole = (SELECT oid FROM pg_roles WHERE rolname = $1)";
/// What one role owns in one schema. Both casts name the schema: none is in the path.
const OBJECTS: &str = "SELECT CASE c.relkind WHEN 'S' THEN 'S' ELSE 'r' END, c.oid::regclass::text FROM pg_class c \
    WHERE c.relnamespace = (SELECT oid FROM pg_namespace WHERE nspname = $1) \
    AND c.relowner = (SELECT oid FROM pg_roles WHERE rolname = $2) AND c.relkind = ANY('{r,p,v,m,f,S}') \
    UNION ALL SELECT 'f', p.oid::regprocedure::text FROM pg_proc p \
    WHERE p.pronamespace = (SELECT oid FROM pg_namespace WHERE nspname = $1) \
    AND p.proowner = (SELECT oid FROM pg_roles WHERE rolname = $2) AND p.prokind = ANY('{f,a,w}') ORDER BY 1, 2";
/// Every role may see whose sessions there are.
const LOGIN_SESSIONS: &str = "SELECT usename::text, count(*) FROM pg_stat_activity \
    WHERE datname = $1 AND usename = ANY($2) GROUP BY 1";
const SESSIONS: &str = "SELECT coalesce(usename, backend_type)::text, count(*) FROM pg_stat_activity \
    WHERE datname = $1 GROUP BY 1 ORDER BY 1";
const DEPENDENTS: &str = "SELECT r.rolname::text, coalesce(d.datname, 'the server')::text, count(*) FROM pg_shdepend s \
    JOIN pg_roles r ON r.oid = s.refobjid LEFT JOIN pg_database d ON d.oid = s.dbid \
    WHERE s.refclassid = 'pg_authid'::regclass AND r.rolname = ANY($1) GROUP BY 1, 2 ORDER BY 1, 2";

const NOW: &str = "SELECT floor(extract(epoch FROM clock_timestamp()))::int8";
/// Of databases only closed ones of the administrator.
const TRASH: &str = "SELECT true, datname::text, shobj_description(oid, 'pg_database') FROM pg_database \
    WHERE datdba = (SELECT oid FROM pg_roles WHERE rolname = current_user) AND NOT datallowconn \
    AND shobj_description(oid, 'pg_database') LIKE '%\"trashed\"%' UNION ALL \
    SELECT false, rolname::text, shobj_description(oid, 'pg_authid') FROM pg_roles \
    WHERE shobj_description(oid, 'pg_authid') LIKE '%\"trashed\"%' ORDER BY 1, 2";

impl Session {
    /// The server behind `connection`; later connections pin its version's options.
    ///
    /// # Errors
    /// [`Error::Statement`] when it cannot be read; [`Error::Unreachable`] when
    /// the server only follows another one.
    pub async fn inspect(&self, connection: &Connection) -> Result<Server, Error> {
        let rows = connection.query(SERVER, &[]).await?;
        let row = rows
            .first()
            .ok_or_else(|| Error::Catalog("pg_roles does not show the administrator".to_owned()))?;
        let version: String = column(row, 1)?;
        let server = Server {
            version_num: column(row, 0)?,
            version: version.split(' ').next().unwrap_or_default().to_owned(),
            system_identifier: column(row, 2)?,
            admin: column(row, 4)?,
            is_superuser: column(row, 5)?,
            attributes: Attributes {
                create_role: column(row, 6)?,
                create_database: column(row, 7)?,
                inherit: column(row, 8)?,
            },
        };
        self.set_major(server.major());
        if column(row, 3)? {
            return Err(self.unusable("it is a replica and takes no changes; name the primary"));
        }
        self.usable();
        Ok(server)
    }
}

impl Connection {
    pub(super) async fn catalog(&self, names: &Names, admin: &str) -> Result<Catalog, Error> {
        let wanted: Vec<&str> = names.roles().map(Identifier::as_str).collect();
        let mut roles = BTreeMap::new();
        for row in self.query(ROLES, &[&wanted]).await? {
            let settings: String = column(&row, 6)?;
            let role = Role {
                can_login: column(&row, 1)?,
                inherits: column(&row, 2)?,
                connection_limit: column(&row, 3)?,
                comment: column(&row, 4)?,
                is_held: column(&row, 5)?,
                powers: column(&row, 7)?,
                expires: column(&row, 8)?,
                settings: serde_json::from_str(&settings).map_err(|e| Error::Catalog(e.to_string()))?,
            };
            roles.insert(column(&row, 0)?, role);
        }
        let mut members = BTreeSet::new();
        for row in self.query(MEMBERS, &[&wanted]).await? {
            members.insert((column(&row, 0)?, column(&row, 1)?));
        }
        let database = self.database(names.database.as_str()).await?;
        let trashed = if database.is_none() { self.database(names.trash.as_str()).await? } else { None };
        Ok(Catalog {
            admin: admin.to_owned(),
            roles,
            members,
            database,
            trashed,
            sessions: self.login_sessions(names).await?,
        })
    }

    /// Sessions in the database by the name of their login.
    pub(super) async fn login_sessions(&self, names: &Names) -> Result<BTreeMap<String, i64>, Error> {
        let logins: Vec<&str> = names.logins().map(|(_, _, name)| name.as_str()).collect();
        let mut sessions = BTreeMap::new();
        for row in self.query(LOGIN_SESSIONS, &[&names.database.as_str(), &logins]).await? {
            sessions.insert(column(&row, 0)?, column(&row, 1)?);
        }
        Ok(sessions)
    }

    async fn database(&self, name: &str) -> Result<Option<Database>, Error> {
        let rows = self.query(DATABASE, &[&name]).await?;
        let Some(row) = rows.first() else {
            return Ok(None);
        };
        let (mut grants, mut grantable) = (BTreeSet::new(), BTreeSet::new());
        for row in self.query(DATABASE_GRANTS, &[&name]).await? {
            let grant: (String, String) = (column(&row, 0)?, column(&row, 1)?);
            if column(&row, 2)? {
                grantable.insert(grant.clone());
            }
            grants.insert(grant);
        }
        Ok(Some(Database {
            owner: column(row, 0)?,
            allows_connections: column(row, 1)?,
            comment: column(row, 2)?,
            grants,
            grantable,
        }))
    }

    pub(super) async fn schemas(&self, schema: &Identifier, owner: &Identifier) -> Result<Schemas, Error> {
        let mut schemas = Schemas::default();
        for row in self.query(SCHEMAS, &[&vec!["public", schema.as_str()]]).await? {
            let name: String = column(&row, 0)?;
            schemas.owners.insert(name.clone(), column(&row, 1)?);
            if let Some(privilege) = column(&row, 3)? {
                let grant: (String, String, String) = (name, column(&row, 2)?, privilege);
                if column(&row, 4)? {
                    schemas.grantable.insert(grant.clone());
                }
                schemas.grants.insert(grant);
            }
        }
        for row in self.query(DEFAULTS, &[&owner.as_str()]).await? {
            schemas.defaults.insert((column(&row, 0)?, column(&row, 1)?, column(&row, 2)?, column(&row, 3)?));
        }
        Ok(schemas)
    }

    /// What `owner` owns in `schema`.
    pub(super) async fn objects(
        &self,
        schema: &Identifier,
        owner: &Identifier,
    ) -> Result<Vec<Object>, Error> {
        let rows = self.query(OBJECTS, &[&schema.as_str(), &owner.as_str()]).await?;
        rows.iter().map(|row| Ok(Object { letter: column(row, 0)?, quoted: column(row, 1)? })).collect()
    }

    /// What the server's clock says, in whole seconds.
    pub(super) async fn now(&self) -> Result<Timestamp, Error> {
        let rows = self.query(NOW, &[]).await?;
        let row = rows.first().ok_or_else(|| Error::Catalog("the server has no clock".to_owned()))?;
        Timestamp::from_second(column(row, 0)?).map_err(|e| Error::Catalog(e.to_string()))
    }

    /// What may lie in the trash.
    pub(super) async fn trash(&self) -> Result<Vec<Found>, Error> {
        let found = |row: &Row| {
            let name: String = column(row, 1)?;
            let name = Identifier::new(name).map_err(|e| Error::Catalog(e.to_string()))?;
            Ok(Found { is_database: column(row, 0)?, name, comment: column(row, 2)? })
        };
        self.query(TRASH, &[]).await?.iter().map(found).collect()
    }

    /// Who has sessions in `database`, in words.
    pub(super) async fn sessions(&self, database: &str) -> Result<String, Error> {
        let mut holders = Vec::new();
        for row in self.query(SESSIONS, &[&database]).await? {
            let (who, count): (String, i64) = (column(&row, 0)?, column(&row, 1)?);
            holders.push(format!("{count} of {who}"));
        }
        Ok(holders.join(", "))
    }

    /// Where `roles` own or are granted something, in words.
    pub(super) async fn dependents(&self, roles: &[&str]) -> Result<String, Error> {
        let mut places = Vec::new();
        for row in self.query(DEPENDENTS, &[&roles]).await? {
            let (role, place): (String, String) = (column(&row, 0)?, column(&row, 1)?);
            let count: i64 = column(&row, 2)?;
            places.push(format!("{role} has {count} in {place}"));
        }
        Ok(places.join(", "))
    }
}

fn column<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a Row, index: usize) -> Result<T, Error> {
    row.try_get(index).map_err(|e| Error::Catalog(e.to_string()))
}
