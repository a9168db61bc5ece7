//! A proxy for PostgreSQL's protocol: names the statements that write, cuts
//! the connection at one of them, answers an SQLSTATE in its place, or keeps
//! its answer back.

use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use super::journal::{Effect, Journal, Point};
use super::names::stable;

/// The longest message that is read.
const LONGEST: usize = 1 << 24;
/// How often a statement whose client is gone is looked at.
const INTERVAL: Duration = Duration::from_millis(20);

/// What happens to connections and statements.
#[derive(Clone, Debug, Default)]
pub enum Weather {
    /// Everything is forwarded.
    #[default]
    Calm,
    /// Connections are accepted and nothing is answered.
    Silent,
    /// Each of these happens to the next statement that it fits, once.
    Once(Vec<Trouble>),
}

/// What happens to one statement.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// Text of the statement.
    pub containing: &'static str,
    pub end: End,
}

/// How a statement ends.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum End {
    /// With this SQLSTATE; the server does not see it.
    Refused(&'static str),
    /// The server does it, and nobody hears so: the connection stays, silent.
    Swallowed,
}

impl Trouble {
    #[must_use]
    pub fn refused(containing: &'static str, sqlstate: &'static str) -> Self {
        Self { containing, end: End::Refused(sqlstate) }
    }
}

type Watch = Arc<dyn Fn(&str) + Send + Sync>;

struct Shared {
    upstream: Mutex<SocketAddr>,
    journal: Arc<Journal>,
    weather: Mutex<Weather>,
    /// Looks at each statement before it is forwarded.
    watch: Mutex<Option<Watch>>,
}

/// A proxy; ends when dropped.
pub struct SqlProxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Drop for SqlProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl SqlProxy {
    /// Listens on a free port of the loopback address.
    ///
    /// # Errors
    /// When there is none.
    pub async fn start(upstream: SocketAddr, journal: Arc<Journal>) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            upstream: Mutex::new(upstream),
            journal,
            weather: Mutex::default(),
            watch: Mutex::default(),
        });
        let task = tokio::spawn(accept(listener, shared.clone()));
        Ok(Self { address, shared, task })
    }

    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Leads connections that are opened from now on to another server.
    pub fn lead_to(&self, upstream: SocketAddr) {
        *lock(&self.shared.upstream) = upstream;
    }

    /// Sets what happens from now on; connections that are open stay so.
    pub fn set(&self, weather: Weather) {
        *lock(&self.shared.weather) = weather;
    }

    /// Ends whatever was set; what has not happened by now.
    #[must_use]
    pub fn calm(&self) -> Vec<Trouble> {
        match std::mem::take(&mut *lock(&self.shared.weather)) {
            Weather::Once(left) => left,
            Weather::Calm | Weather::Silent => Vec::new(),
        }
    }

    /// Shows each writing statement to `watch` before the server sees it.
    pub fn watch(&self, watch: impl Fn(&str) + Send + Sync + 'static) {
        *lock(&self.shared.watch) = Some(Arc::new(watch));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((stream, _)) = listener.accept() => {
                let weather = lock(&shared.weather).clone();
                match weather {
                    Weather::Silent => {
                        connections.spawn(async move {
                            let _held = stream;
                            std::future::pending::<()>().await;
                        });
                    }
                    Weather::Calm | Weather::Once(_) => {
                        let shared = shared.clone();
                        connections.spawn(async move {
                            // Every end of a connection is one to the operator.
                            let _ = relay(stream, shared).await;
                        });
                    }
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// One message: its type and the rest, length included.
struct Message {
    kind: u8,
    rest: Vec<u8>,
}

impl Message {
    async fn read(from: &mut OwnedReadHalf) -> io::Result<Self> {
        let kind = from.read_u8().await?;
        Ok(Self { kind, rest: read_rest(from).await? })
    }

    /// The text up to the first NUL.
    fn text(&self) -> String {
        let payload = self.rest.get(4..).unwrap_or_default();
        let text = payload.split(|byte| *byte == 0).next().unwrap_or_default();
        String::from_utf8_lossy(text).into_owned()
    }

    async fn write(&self, to: &mut OwnedWriteHalf) -> io::Result<()> {
        to.write_all(&[&[self.kind], self.rest.as_slice()].concat()).await
    }
}

async fn read_rest(from: &mut OwnedReadHalf) -> io::Result<Vec<u8>> {
    let length = from.read_u32().await?;
    let size = usize::try_from(length).unwrap_or(LONGEST).min(LONGEST);
    let mut rest = length.to_be_bytes().to_vec();
    rest.resize(size.max(4), 0);
    from.read_exact(&mut rest[4..]).await?;
    Ok(rest)
}

/// A request whose end has not been seen. The server ends each with one
/// ReadyForQuery, in the order of the requests.
#[derive(Default)]
struct Pending {
    is_write: bool,
    point: Option<Point>,
    is_swallowed: bool,
    tags: Vec<String>,
    failed: bool,
}

type Queue = Arc<Mutex<VecDeque<Pending>>>;

async fn relay(client: TcpStream, shared: Arc<Shared>) -> io::Result<()> {
    let upstream = *lock(&shared.upstream);
    let server = TcpStream::connect(upstream).await?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let (mut from_client, to_client) = client.into_split();
    let (from_server, mut to_server) = server.into_split();
    // The first message of a client has no type.
    let startup = read_rest(&mut from_client).await?;
    to_server.write_all(&startup).await?;
    // The start-up ends so as well.
    let pending: Queue = Arc::new(Mutex::new([Pending::default()].into()));
    let to_client = Arc::new(tokio::sync::Mutex::new(to_client));
    let mut replies = Box::pin(replies(from_server, to_client.clone(), &shared, pending.clone()));
    tokio::select! {
        _ = requests(from_client, to_server, to_client, &shared, pending.clone()) => {}
        _ = &mut replies => return Ok(()),
    }
    // The client is gone, but what it has sent is being done: hear how it ends.
    while lock(&pending).iter().any(|request| request.is_write) {
        tokio::select! {
            _ = &mut replies => break,
            () = tokio::time::sleep(INTERVAL) => {}
        }
    }
    Ok(())
}

async fn requests(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    back: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    shared: &Shared,
    pending: Queue,
) -> io::Result<()> {
    loop {
        let message = Message::read(&mut from).await?;
        if message.kind != b'Q' || !is_write(&message.text()) {
            if matches!(message.kind, b'Q' | b'S') {
                lock(&pending).push_back(Pending::default());
            }
            message.write(&mut to).await?;
            continue;
        }
        let text = message.text();
        let end = trouble(shared, &text);
        if let Some(End::Refused(sqlstate)) = end {
            // Answers come in the order of the requests.
            while !lock(&pending).is_empty() {
                tokio::time::sleep(INTERVAL).await;
            }
            back.lock().await.write_all(&error(sqlstate)).await?;
            continue;
        }
        let watch = lock(&shared.watch).clone();
        if let Some(watch) = watch {
            watch(&text);
        }
        let point = shared.journal.write(name(&text));
        if let Some(point @ Point::Before) = point {
            shared.journal.strike(point);
            return Ok(());
        }
        let is_swallowed = end == Some(End::Swallowed);
        lock(&pending).push_back(Pending { is_write: true, point, is_swallowed, ..Pending::default() });
        message.write(&mut to).await?;
    }
}

async fn replies(
    mut from: OwnedReadHalf,
    to: Arc<tokio::sync::Mutex<OwnedWriteHalf>>,
    shared: &Shared,
    pending: Queue,
) -> io::Result<()> {
    loop {
        let message = Message::read(&mut from).await?;
        let kept_back = {
            let mut queue = lock(&pending);
            match (queue.front_mut(), message.kind) {
                (Some(pending), b'C') => pending.tags.push(message.text()),
                (Some(pending), b'E') => pending.failed = true,
                _ => {}
            }
            let kept_back = queue.front().map(|pending| (pending.point, pending.is_swallowed));
            // Ready for the next query: this one is over.
            let done = if message.kind == b'Z' { queue.pop_front() } else { None };
            if let Some(done) = done.filter(|done| done.is_write && !done.failed) {
                let counts = |tag: &&String| tag.starts_with("CREATE ") || tag.starts_with("DROP ");
                let effects =
                    done.tags.iter().filter(counts).map(|tag| Effect { what: tag.clone(), value: None });
                effects.for_each(|effect| shared.journal.effect(effect));
            }
            kept_back.unwrap_or_default()
        };
        match kept_back {
            (Some(point), _) if message.kind == b'Z' => {
                shared.journal.strike(point);
                return Ok(());
            }
            (Some(_), _) | (None, true) => {}
            // A client that is gone does not hear it.
            (None, false) => drop(message.write(&mut *to.lock().await).await),
        }
    }
}

fn is_write(sql: &str) -> bool {
    let word = sql.trim_start().split(|c: char| !c.is_ascii_alphabetic()).next().unwrap_or_default();
    !matches!(word.to_ascii_uppercase().as_str(), "SELECT" | "SHOW" | "TABLE" | "VALUES" | "")
}

fn name(sql: &str) -> String {
    let words: Vec<&str> = sql.split_whitespace().collect();
    format!("SQL {}", stable(&words.join(" ")))
}

fn trouble(shared: &Shared, sql: &str) -> Option<End> {
    let mut weather = lock(&shared.weather);
    let Weather::Once(troubles) = &mut *weather else {
        return None;
    };
    let found = troubles.iter().position(|trouble| sql.contains(trouble.containing))?;
    Some(troubles.remove(found).end)
}

/// An error of the statement, and ready for the next one.
fn error(sqlstate: &str) -> Vec<u8> {
    let fields = format!("SERROR\0VERROR\0C{sqlstate}\0Mrefused by the fault harness\0\0");
    let length = u32::try_from(fields.len() + 4).unwrap_or_default();
    let mut message = vec![b'E'];
    message.extend(length.to_be_bytes());
    message.extend(fields.bytes());
    message.extend([b'Z', 0, 0, 0, 5, b'I']);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_is_no_write_and_a_name_holds_no_secret() {
        assert!(!is_write("SELECT 1") && !is_write("  show all"));
        assert!(is_write("CREATE DATABASE a") && is_write("BEGIN;\nALTER ROLE b"));
        assert_eq!(
            name("ALTER ROLE a\n  PASSWORD 'SCRAM-SHA-256$1:a$b:c'"),
            "SQL ALTER ROLE a PASSWORD '<verifier>'"
        );
    }
}
