//! How much each server is asked: few connections, one backoff for all objects.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::{Connection, Endpoint, Error, Login, Target, Tls};
use crate::{backoff::jitter, fence::Fence};

/// Connections at a time to one server; a session holds one at a time.
const CONNECTIONS: usize = 2;
const FIRST_DELAY: Duration = Duration::from_millis(500);
const MAX_DELAY: Duration = Duration::from_secs(300);

/// The servers of all classes.
#[derive(Default)]
pub struct Servers {
    servers: Mutex<HashMap<String, Arc<Server>>>,
    fence: Option<Fence>,
}

struct Server {
    permits: Arc<Semaphore>,
    state: Mutex<State>,
    fence: Option<Fence>,
}

#[derive(Clone, Default)]
struct State {
    failures: u32,
    closed: Option<Closed>,
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

    /// Waits for one of the connections to the server of `target`.
    ///
    /// # Errors
    /// [`Error::Unreachable`] at once, without asking the server, while the
    /// delay after a failure runs.
    pub async fn session(&self, target: Target) -> Result<Session, Error> {
        let server = self.server(&target.class);
        server.check(&target.endpoint)?;
        let Ok(permit) = server.permits.clone().acquire_owned().await else {
            return Err(Error::no_answer(&target.endpoint));
        };
        // Those who waited meanwhile need not repeat a failure.
        server.check(&target.endpoint)?;
        Ok(Session { target, server, _permit: permit })
    }

    /// Forgets failures, because the class or its Secret changed or its server was started.
    pub fn retry_now(&self, class: &str) {
        let server = self.server(class);
        *server.lock() = State::default();
    }

    fn server(&self, class: &str) -> Arc<Server> {
        self.servers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(class.to_owned())
            .or_insert_with(|| {
                Arc::new(Server {
                    permits: Arc::new(Semaphore::new(CONNECTIONS)),
                    state: Mutex::default(),
                    fence: self.fence.clone(),
                })
            })
            .clone()
    }
}

impl Server {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, endpoint: &Endpoint) -> Result<(), Error> {
        let Some(closed) = self.lock().closed.clone() else {
            return Ok(());
        };
        let left = closed.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(());
        }
        Err(Error::Unreachable {
            endpoint: endpoint.clone(),
            cause: closed.cause,
            retry: jitter(left + FIRST_DELAY),
        })
    }

    /// Counts a failure to reach the server and fills in when to try again.
    fn observe<T>(&self, result: Result<T, Error>) -> Result<T, Error> {
        let mut state = self.lock();
        match result {
            Err(Error::Unreachable { endpoint, cause, .. }) => {
                let delay = FIRST_DELAY.saturating_mul(1 << state.failures.min(12)).min(MAX_DELAY);
                state.failures += 1;
                state.closed = Some(Closed { until: Instant::now() + delay, cause: cause.clone() });
                Err(Error::Unreachable { endpoint, cause, retry: jitter(delay) })
            }
            answered => {
                state.failures = 0;
                state.closed = None;
                answered
            }
        }
    }
}

/// The right to hold one connection to a server.
pub struct Session {
    target: Target,
    server: Arc<Server>,
    _permit: OwnedSemaphorePermit,
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
        self.open(&self.target.endpoint, &self.target.admin, database).await
    }

    /// Connects as `login`, where workloads connect.
    ///
    /// # Errors
    /// As [`Connection::open`].
    pub async fn login(
        &self,
        endpoint: &Endpoint,
        login: &Login,
        database: &str,
    ) -> Result<Connection, Error> {
        self.open(endpoint, login, database).await
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

    async fn open(&self, endpoint: &Endpoint, login: &Login, database: &str) -> Result<Connection, Error> {
        let major = self.server.lock().major;
        let result = Connection::open(endpoint, &self.target.tls, login, database, major).await;
        let opened = self.server.observe(result)?;
        Ok(Connection { fence: self.server.fence.clone(), ..opened })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target() -> Target {
        Target {
            class: "pg".to_owned(),
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
        servers.retry_now("pg");
        assert!(servers.session(target()).await.is_ok());
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
