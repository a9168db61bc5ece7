//! How much each server is asked: few connections, one backoff for all objects.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Connection, Endpoint, Error, Login, Target, Tls};
use crate::{backoff::jitter, fence::Fence, retry::CALL_DEADLINE};

/// Connections at a time to one server; a session holds one at a time.
const CONNECTIONS: usize = 2;
/// How long a pass waits for one of them: while it does, it takes the place of
/// a pass over an object of another server.
const TURN: Duration = Duration::from_secs(2);
const FIRST_DELAY: Duration = Duration::from_millis(500);
/// Short: one connection in this time finds out for all objects that the server is back.
const MAX_DELAY: Duration = Duration::from_secs(8);

/// The servers of all classes by the address where they are asked.
#[derive(Clone, Default)]
pub struct Servers {
    servers: Arc<Mutex<HashMap<Endpoint, Arc<Server>>>>,
    fence: Option<Fence>,
}

pub(super) struct Server {
    endpoint: Endpoint,
    permits: Arc<Semaphore>,
    state: Mutex<State>,
    pub(super) fence: Option<Fence>,
}

#[derive(Clone, Default)]
struct State {
    failures: u32,
    closed: Option<Closed>,
    /// Whether it answers and takes no changes.
    is_unusable: bool,
    /// Major version, once known.
    major: i32,
}

/// Nobody asks before `until`.
#[derive(Clone)]
struct Closed {
    until: Instant,
    cause: String,
}

impl Servers {
    /// Servers on which statements run only while `fence` is open.
    #[must_use]
    pub fn behind(fence: Fence) -> Self {
        Self { fence: Some(fence), ..Self::default() }
    }

    /// One of the connections to the server of `target`.
    ///
    /// # Errors
    /// As [`Servers::turn`].
    pub async fn session(&self, target: Target) -> Result<Session, Error> {
        Ok(self.turn(&target.endpoint).await?.session(target))
    }

    /// Waits a little for one of the connections to `endpoint`.
    ///
    /// # Errors
    /// [`Error::Unreachable`] at once, without asking the server, while the
    /// delay after a failure runs or somebody else finds out whether it is
    /// back; [`Error::Busy`] when others use all connections.
    pub async fn turn(&self, endpoint: &Endpoint) -> Result<Turn, Error> {
        let server = self.server(endpoint);
        server.check()?;
        let permit = tokio::time::timeout(TURN, server.permits.clone().acquire_owned()).await;
        let Ok(Ok(permit)) = permit else {
            return Err(Error::Busy { endpoint: endpoint.clone(), retry: jitter(TURN) });
        };
        // Those who waited meanwhile need not repeat a failure.
        server.enter()?;
        Ok(Turn { server, servers: self.clone(), permit: Arc::new(permit) })
    }

    /// Whether `endpoint` may be asked now.
    ///
    /// # Errors
    /// [`Error::Unreachable`] while the delay after a failure runs.
    pub fn check(&self, endpoint: &Endpoint) -> Result<(), Error> {
        self.server(endpoint).check()
    }

    /// Forgets failures at `endpoint`, because a class or its Secret changed or its server was started.
    pub fn retry_now(&self, endpoint: &Endpoint) {
        *self.server(endpoint).lock() = State::default();
    }

    fn server(&self, endpoint: &Endpoint) -> Arc<Server> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(server) = servers.get(endpoint) {
            return server.clone();
        }
        // Of a server that nobody talks to there is nothing to remember.
        servers.retain(|_, server| Arc::strong_count(server) > 1 || server.check().is_err());
        let server = Arc::new(Server {
            endpoint: endpoint.clone(),
            permits: Arc::new(Semaphore::new(CONNECTIONS)),
            state: Mutex::default(),
            fence: self.fence.clone(),
        });
        servers.insert(endpoint.clone(), server.clone());
        server
    }
}

impl Server {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self) -> Result<(), Error> {
        let State { closed, failures, .. } = self.lock().clone();
        let Some(closed) = closed else {
            return Ok(());
        };
        let left = closed.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        Err(self.closed(&closed, failures, left))
    }

    /// As [`Server::check`]. Who is let in after a failure finds out for all
    /// whether the server is back; the others come later.
    fn enter(&self) -> Result<(), Error> {
        let mut state = self.lock();
        let failures = state.failures;
        let Some(closed) = &mut state.closed else {
            return Ok(());
        };
        let left = closed.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            closed.until = Instant::now() + CALL_DEADLINE;
            return Ok(());
        }
        Err(self.closed(closed, failures, left))
    }

    fn closed(&self, closed: &Closed, failures: u32, left: Duration) -> Error {
        Error::Unreachable {
            endpoint: self.endpoint.clone(),
            cause: closed.cause.clone(),
            failures,
            // An answer may come sooner than the deadline of whoever asks now.
            retry: jitter(left.min(MAX_DELAY) + FIRST_DELAY),
        }
    }

    /// Counts a failure to reach the server and fills in when to try again.
    fn observe<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        match result {
            Err(Error::Unreachable { cause, .. }) => Err(self.fail(cause)),
            answered => {
                let mut state = self.lock();
                // That it answers does not make it one that can be used.
                if !state.is_unusable {
                    *state = State { major: state.major, ..State::default() };
                }
                answered
            }
        }
    }

    /// Counts a failure of the server; the error says when to try again.
    pub(super) fn fail(&self, cause: String) -> Error {
        let mut state = self.lock();
        let delay = FIRST_DELAY.saturating_mul(1 << state.failures.min(12)).min(MAX_DELAY);
        state.failures += 1;
        state.closed = Some(Closed { until: Instant::now() + delay, cause: cause.clone() });
        let (endpoint, failures) = (self.endpoint.clone(), state.failures);
        Error::Unreachable { endpoint, cause, failures, retry: jitter(delay + FIRST_DELAY) }
    }
}

/// The right to one connection to a server, before it is known as whom.
pub struct Turn {
    server: Arc<Server>,
    servers: Servers,
    permit: Arc<OwnedSemaphorePermit>,
}

impl Turn {
    /// The session as the administrator of `target`, which is the server that was waited for.
    #[must_use]
    pub fn session(self, target: Target) -> Session {
        let Self { server, servers, permit } = self;
        Session { target, server, servers, permit }
    }
}

/// The right to hold one connection to a server.
pub struct Session {
    target: Target,
    server: Arc<Server>,
    servers: Servers,
    permit: Arc<OwnedSemaphorePermit>,
}

impl Session {
    /// Connects as the administrator to the maintenance database.
    ///
    /// # Errors
    /// As [`Connection::open`].
    pub async fn maintenance(&self) -> Result<Connection, Error> {
        self.admin(&self.target.maintenance_database).await
    }

    /// Connects as the administrator to `database`.
    ///
    /// # Errors
    /// As [`Connection::open`].
    pub async fn admin(&self, database: &str) -> Result<Connection, Error> {
        self.open(&self.server, &self.target.admin, database).await
    }

    /// Connects as `login`, where workloads connect. Failures there are counted
    /// apart from those of the administrator.
    ///
    /// # Errors
    /// As [`Connection::open`]; [`Error::Unreachable`] also while the delay
    /// after a failure there runs.
    pub async fn login(
        &self,
        endpoint: &Endpoint,
        login: &Login,
        database: &str,
    ) -> Result<Connection, Error> {
        let server = self.servers.server(endpoint);
        server.enter()?;
        self.open(&server, login, database).await
    }

    /// Encryption of every connection to the server.
    #[must_use]
    pub const fn tls(&self) -> &Tls {
        &self.target.tls
    }

    /// Remembers the version, on which the pinned options depend.
    pub(super) fn set_major(&self, major: i32) {
        self.server.lock().major = major;
    }

    /// Counts as a failure that the server answered and cannot be used now.
    pub(super) fn unusable(&self, cause: &str) -> Error {
        self.server.lock().is_unusable = true;
        self.server.fail(cause.to_owned())
    }

    /// The server can be used, or can again.
    pub(super) fn usable(&self) {
        let mut state = self.server.lock();
        *state = State { major: state.major, ..State::default() };
    }

    async fn open(&self, server: &Arc<Server>, login: &Login, database: &str) -> Result<Connection, Error> {
        let major = self.server.lock().major;
        let tls = &self.target.tls;
        let result = Connection::open(&server.endpoint, tls, login, database, major).await;
        let mut opened = server.observe(result)?;
        opened.count(server, &self.permit);
        Ok(opened)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target {
            // Port 1 of the loopback address refuses at once.
            endpoint: Endpoint { host: "127.0.0.1".to_owned(), port: 1 },
            maintenance_database: "postgres".to_owned(),
            tls: Tls::Disabled,
            admin: Login { user: "admin".to_owned(), password: "not-a-password".into() },
        }
    }

    #[tokio::test]
    async fn after_a_failure_nobody_asks_the_server_until_the_delay_is_over() {
        let servers = Servers::default();
        let session = servers.session(target()).await.unwrap();
        let first = session.maintenance().await.err().unwrap();
        assert!(matches!(&first, Error::Unreachable { retry, .. } if !retry.is_zero()), "{first:?}");
        drop(session);
        let second = servers.session(target()).await.err().unwrap();
        assert_eq!(first.to_string(), second.to_string(), "the cause is repeated");
        servers.retry_now(&target().endpoint);
        assert!(servers.session(target()).await.is_ok());
    }

    #[tokio::test]
    async fn where_workloads_connect_has_a_delay_of_its_own() {
        let servers = Servers::default();
        let session = servers.session(target()).await.unwrap();
        let workloads = Endpoint { host: "localhost".to_owned(), port: 1 };
        let login = Login { user: "w".to_owned(), password: "not-a-password".into() };
        assert!(session.login(&workloads, &login, "d").await.is_err());
        assert!(servers.check(&workloads).is_err(), "nobody asks there again at once");
        assert!(servers.check(&target().endpoint).is_ok(), "the administrator still may");
        servers.retry_now(&target().endpoint);
        assert!(servers.check(&workloads).is_err(), "a success of the administrator is none there");
    }

    #[tokio::test]
    async fn however_often_a_server_fails_it_is_asked_again_within_seconds() {
        let server = Servers::default().server(&target().endpoint);
        for _ in 0..40 {
            let Error::Unreachable { retry, .. } = server.fail("down".to_owned()) else { unreachable!() };
            assert!(retry < Duration::from_secs(11), "{retry:?}");
        }
    }

    #[tokio::test]
    async fn a_server_that_answers_and_takes_no_changes_is_asked_less_and_less_often() {
        let servers = Servers::default();
        let session = servers.session(target()).await.unwrap();
        for expected in 1..5 {
            // The connection opens each time.
            assert_eq!(session.server.observe(Ok(())).ok(), Some(()));
            let Error::Unreachable { failures, .. } = session.unusable("it is a replica") else {
                unreachable!()
            };
            assert_eq!(failures, expected);
        }
        session.usable();
        assert!(servers.check(&target().endpoint).is_ok());
    }

    #[tokio::test]
    async fn after_the_delay_one_finds_out_and_the_others_are_refused_meanwhile() {
        let servers = Servers::default();
        let server = servers.server(&target().endpoint);
        server.fail("down".to_owned());
        server.lock().closed.as_mut().unwrap().until = Instant::now();
        let first = servers.session(target()).await.unwrap();
        for _ in 0..3 {
            let Err(Error::Unreachable { retry, .. }) = servers.turn(&target().endpoint).await else {
                panic!("another was let in")
            };
            assert!(retry < Duration::from_secs(11), "{retry:?}");
        }
        assert!(first.maintenance().await.is_err(), "nobody listens there");
        let Err(Error::Unreachable { failures, .. }) = servers.check(&target().endpoint) else {
            panic!("the failure is not counted")
        };
        assert_eq!(failures, 2);
    }

    #[tokio::test]
    async fn nobody_waits_long_for_a_connection_that_others_use() {
        let servers = Servers::default();
        let _sessions = (servers.session(target()).await.unwrap(), servers.session(target()).await.unwrap());
        let third = servers.session(target()).await.err().unwrap();
        assert!(matches!(&third, Error::Busy { retry, .. } if !retry.is_zero()), "{third:?}");
    }

    #[tokio::test]
    async fn servers_that_nobody_talks_to_are_forgotten() {
        let servers = Servers::default();
        for port in 1..1000 {
            servers.check(&Endpoint { host: "pg".to_owned(), port }).unwrap();
        }
        assert_eq!(servers.servers.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn at_most_two_sessions_of_a_server_exist_at_a_time() {
        let servers = Servers::default();
        let one = servers.session(target()).await.unwrap();
        let _two = servers.session(target()).await.unwrap();
        let mut third = Box::pin(servers.session(target()));
        assert!(futures::poll!(&mut third).is_pending());
        drop(one);
        assert!(third.await.is_ok());
    }
}
