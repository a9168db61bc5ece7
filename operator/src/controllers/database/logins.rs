//! The logins of a Database and the Secrets that name them.
//!
//! A password is written down, then the server learns its verifier, then a
//! login proves it, then the Secret names it; the login that the Secret named
//! before works on for the overlap and as long as a session uses it or a pod
//! of a bound Service knows no other.

use std::{collections::BTreeMap, time::Duration};

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::{api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::Time};
use kube::{
    Api, Resource, ResourceExt,
    api::{DeleteParams, Preconditions},
};
use peristyle_crds::{
    names::{DATABASE_LABEL, ROTATE_ANNOTATION, ROTATED_AT_ANNOTATION},
    v1alpha1::{
        Database,
        database::{Retiring, RoleName, RoleStatus, Slot},
    },
};

use super::{
    Error, build,
    holders::holders,
    record::{self, Entries, Entry},
    rotation::{self, Live, Published, Step},
    validate::Validated,
};
use crate::{
    context::Context,
    credentials,
    external::postgres::{self, Provisioned, Session},
    metadata::{Owner, is_controlled_by},
    retry::bounded,
    sql::{catalog::Catalog, password::Password},
};

/// SQLSTATEs of a login that another password or attribute repairs.
const WRONG_CREDENTIALS: [&str; 2] = ["28P01", "28000"];

/// How far a time that we wrote may lie ahead.
const AHEAD: SignedDuration = SignedDuration::from_mins(5);

/// All that a pass over the logins uses.
pub struct Pass<'a> {
    /// Shared by all controllers.
    pub ctx: &'a Context,
    /// The Database.
    pub database: &'a Database,
    /// What should be.
    pub validated: &'a Validated,
    /// The right to talk to the server.
    pub session: &'a Session,
    /// Owner of the Secrets.
    pub owner: Owner,
    /// Time of the pass.
    pub now: Timestamp,
}

/// How the logins stand after a pass.
#[derive(Clone, Debug, Default)]
pub struct Settled {
    /// For the status.
    pub roles: Vec<RoleStatus>,
    /// Versions of the Secrets, by name.
    pub versions: BTreeMap<String, Option<String>>,
    /// In how long something is to be done.
    pub due: Option<Duration>,
    /// Roles whose rotation waits for the login before.
    pub waiting: Vec<RoleName>,
    /// Services with pods that know no other than the login before.
    pub held: BTreeMap<RoleName, Vec<String>>,
}

/// One role on its way.
struct Role {
    name: RoleName,
    step: Step,
    secret: Option<Secret>,
    /// Since when the Secret says what it says.
    since: Timestamp,
}

impl Pass<'_> {
    /// Makes logins and Secrets agree.
    ///
    /// # Errors
    /// When the API server or the database server refuses; the next pass goes
    /// on where this one ended.
    pub async fn settle(&self, provisioned: &Provisioned) -> Result<Settled, Error> {
        let catalog = &provisioned.catalog;
        let record_name = record::name(&self.owner.name);
        let record = credentials::read(self.ctx, &self.owner.child(&record_name)).await?;
        let recorded = record.as_ref().map(record::parse).unwrap_or_default();
        let mut entries = Entries::new();
        let mut roles = Vec::new();
        for (name, secret) in &self.validated.secrets {
            let secret = credentials::read(self.ctx, &self.owner.child(secret)).await?;
            let (role, entry) = self.plan(*name, secret, recorded.get(name), catalog);
            roles.push(role);
            entries.insert(*name, entry);
        }
        let mut settled = Settled::default();
        let version =
            credentials::write(self.ctx, record.as_ref(), record::secret(&self.owner, &entries)).await?;
        settled.versions.insert(record_name, version);
        let mut failed = None;
        for role in roles {
            if role.step == Step::Wait {
                settled.waiting.push(role.name);
            }
            let Some(entry) = entries.get(&role.name) else {
                continue;
            };
            match self.settle_role(role, entry, catalog, &mut settled).await {
                // What one login suffers holds up no other.
                Err(error) if error.is_of_a_login() => failed = failed.or(Some(error)),
                result => result?,
            }
        }
        if let Some(error) = failed {
            return Err(error);
        }
        self.prune(&settled).await?;
        Ok(settled)
    }

    /// What `role` needs, and the credentials it shall have.
    fn plan(
        &self,
        name: RoleName,
        secret: Option<Secret>,
        recorded: Option<&Entry>,
        catalog: &Catalog,
    ) -> (Role, Entry) {
        let asked = self.database.annotations().get(ROTATE_ANNOTATION).cloned();
        let held = secret.as_ref().and_then(|secret| self.published(name, secret, recorded));
        let step = rotation::step(
            self.validated.rotation,
            asked.as_deref(),
            held.as_ref().map(|(published, _)| published),
            recorded.map(|entry| entry.slot),
            |slot| self.live(name, slot, held.as_ref().map(|(published, _)| published.since), catalog),
            self.now,
        );
        match (step, held) {
            (Step::Keep | Step::Wait, Some((published, password))) => {
                let entry = Entry { slot: published.slot, password, asked: published.asked };
                (Role { name, step, secret, since: published.since }, entry)
            }
            (step, _) => {
                let slot = if let Step::Publish(slot) = step { slot } else { Slot::default() };
                let known = recorded.filter(|entry| entry.slot == slot);
                let password = known.map_or_else(Password::generate, |entry| entry.password.clone());
                // Whole seconds, as the status has them; rounded up, so that nothing is over early.
                let since = self.now.as_second() + i64::from(self.now.subsec_nanosecond() > 0);
                let since = Timestamp::from_second(since).unwrap_or(self.now);
                (Role { name, step, secret, since }, Entry { slot, password, asked })
            }
        }
    }

    /// What the Secret of a role says; nothing when it does not say what we wrote.
    fn published(
        &self,
        role: RoleName,
        secret: &Secret,
        recorded: Option<&Entry>,
    ) -> Option<(Published, Password)> {
        let names = &self.validated.desired.names;
        let value = |key: &str| secret.data.as_ref()?.get(key).map(|value| &value.0[..]);
        let password = Password::from_secret(value(credentials::PASSWORD)?)?;
        let user = value("username")?;
        let slot = [Slot::A, Slot::B]
            .into_iter()
            .find(|slot| names.login(role, *slot).as_str().as_bytes() == user)?;
        let recorded = recorded.filter(|entry| entry.slot == slot);
        if recorded.is_some_and(|entry| entry.password.expose() != password.expose()) {
            return None;
        }
        let annotation = |key: &str| secret.annotations().get(key);
        let created = secret.creation_timestamp().map_or(self.now, |time| time.0);
        let since = annotation(ROTATED_AT_ANNOTATION).and_then(|text| text.parse().ok()).unwrap_or(created);
        // Only an edit is ahead of time by more than clocks differ; kept, it would stop all rotation.
        let since = if since.duration_since(self.now) > AHEAD { self.now } else { since };
        let asked =
            recorded.map_or_else(|| annotation(ROTATE_ANNOTATION).cloned(), |entry| entry.asked.clone());
        Some((Published { slot, since, asked }, password))
    }

    /// How a login stands; `since` when the Secret names another.
    fn live(&self, role: RoleName, slot: Slot, since: Option<Timestamp>, catalog: &Catalog) -> Live {
        let login = self.validated.desired.names.login(role, slot).as_str();
        Live {
            is_open: catalog.roles.get(login).is_some_and(|live| live.can_login),
            sessions: catalog.sessions.get(login).copied().unwrap_or_default(),
            is_held: since.is_some_and(|since| !self.holders(role, since).is_empty()),
        }
    }

    fn holders(&self, role: RoleName, since: Timestamp) -> Vec<String> {
        holders(self.ctx, &self.owner.namespace, &self.owner.name, role, since)
    }

    async fn settle_role(
        &self,
        role: Role,
        entry: &Entry,
        catalog: &Catalog,
        settled: &mut Settled,
    ) -> Result<(), Error> {
        let name = role.name;
        let secret_name = self.validated.secrets.get(&name).cloned().unwrap_or_default();
        let is_new = matches!(role.step, Step::Publish(_));
        self.prove(name, entry, catalog, is_new, &secret_name).await?;

        let version = credentials::write(self.ctx, role.secret.as_ref(), self.secret(&role, entry)).await?;
        settled.versions.insert(secret_name.clone(), version);

        let before = entry.slot.other();
        let mut live = self.live(name, before, Some(role.since), catalog);
        if live.is_open && !is_new && rotation::is_free(self.validated.rotation, role.since, live, self.now) {
            let names = &self.validated.desired.names;
            live.sessions = postgres::retire_login(self.session, names, name, before).await?;
            live.is_open = live.sessions > 0;
        }
        if live.is_open && live.is_held {
            settled.held.insert(name, self.holders(name, role.since));
        }
        let due = rotation::due(self.validated.rotation, role.since, live, self.now);
        settled.due = settled.due.into_iter().chain(due).min();
        settled.roles.push(RoleStatus {
            role: name,
            active_slot: Some(entry.slot),
            secret_name,
            rotated_at: Some(Time(role.since)),
            retiring: live
                .is_open
                .then(|| Retiring { slot: before, sessions: live.sessions.try_into().unwrap_or(i32::MAX) }),
        });
        Ok(())
    }

    /// Opens the login if need be and logs in with it.
    async fn prove(
        &self,
        role: RoleName,
        entry: &Entry,
        catalog: &Catalog,
        is_new: bool,
        secret: &str,
    ) -> Result<(), Error> {
        let desired = &self.validated.desired;
        let open = async || {
            let Some(login) = desired.logins.iter().find(|login| login.role == role) else {
                return Ok(());
            };
            postgres::open_login(self.session, desired, catalog, *login, entry.slot, &entry.password).await
        };
        let check = || {
            let endpoint = &self.validated.workloads;
            postgres::check_login(self.session, endpoint, &desired.names, role, entry.slot, &entry.password)
        };
        let mut is_set = is_new || !self.live(role, entry.slot, None, catalog).is_open;
        if is_set {
            open().await?;
        }
        let mut answer = check().await?;
        if !is_set && answer.as_ref().is_err_and(|r| WRONG_CREDENTIALS.contains(&r.code.as_str())) {
            is_set = true;
            open().await?;
            answer = check().await?;
        }
        tracing::debug!(?role, slot = ?entry.slot, is_set, "login proven");
        answer.map_err(|refusal| Error::Login { secret: secret.to_owned(), refusal })
    }

    /// The Secret of a role as it should be.
    fn secret(&self, role: &Role, entry: &Entry) -> Secret {
        let names = &self.validated.desired.names;
        let connection = build::Connection {
            endpoint: &self.validated.workloads,
            tls: self.session.tls(),
            database: &names.database,
            login: names.login(role.name, entry.slot),
        };
        let name = self.validated.secrets.get(&role.name).map_or("", String::as_str);
        let mut secret = build::secret(&self.owner, name, connection, &entry.password);
        let mut annotations = BTreeMap::from([(ROTATED_AT_ANNOTATION.to_owned(), role.since.to_string())]);
        if let Some(asked) = &entry.asked {
            annotations.insert(ROTATE_ANNOTATION.to_owned(), asked.clone());
        }
        secret.metadata.annotations = Some(annotations);
        secret
    }

    /// Deletes our Secrets that no login belongs to any more.
    async fn prune(&self, settled: &Settled) -> Result<(), Error> {
        let owner = &self.owner;
        let api: Api<Secret> = Api::namespaced(self.ctx.client.clone(), &owner.namespace);
        for secret in self.ctx.stores.secrets.labelled(&owner.namespace, DATABASE_LABEL, &owner.name) {
            let name = secret.name_any();
            if !is_controlled_by(&*secret, &owner.reference.uid) || settled.versions.contains_key(&name) {
                continue;
            }
            let params = DeleteParams {
                preconditions: Some(Preconditions { uid: secret.meta().uid.clone(), resource_version: None }),
                ..DeleteParams::background()
            };
            match bounded(api.delete(&name, &params)).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                Err(source) => {
                    return Err(crate::apply::Error::Request {
                        verb: "delete",
                        kind: "Secret".to_owned(),
                        name,
                        source: Box::new(source),
                    }
                    .into());
                }
            }
        }
        Ok(())
    }
}
