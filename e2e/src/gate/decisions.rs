//! The way from the edge to the decision service, which a test can break.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// A name that [`Fault::Redirect`] sends the edge to; everyone is let in there.
const ELSEWHERE: &str = "elsewhere.test";

/// What the edge meets instead of a decision.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Fault {
    /// Nobody listens.
    Refused,
    /// An internal error.
    Error,
    /// The way to a server that lets everyone in.
    Redirect,
    /// No answer, ever.
    Silent,
    /// A permission for `root` that ends within its head. Traefik takes a whole
    /// head for a permission whatever its body; Oathkeeper's has none.
    Cut,
}

/// The way to the decision service. Each change of the fault ends all connections.
#[derive(Debug)]
pub struct Decisions {
    wanted: watch::Sender<Option<Fault>>,
    in_force: watch::Receiver<Option<Fault>>,
    asked: Arc<AtomicU64>,
}

impl Decisions {
    /// A way from `address` to `service`, whole for now.
    ///
    /// # Errors
    /// When `address` is taken.
    pub async fn start(address: SocketAddr, service: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let (wanted, follow) = watch::channel(None);
        let (announce, in_force) = watch::channel(None);
        let asked = Arc::new(AtomicU64::new(0));
        let way = Way { address, service, asked: asked.clone() };
        tokio::spawn(async move {
            if let Err(error) = way.keep(listener, follow, announce).await {
                eprintln!("the way to the decision service ended: {error:#}");
            }
        });
        Ok(Self { wanted, in_force, asked })
    }

    /// Breaks the way, or with `None` mends it; returns once that is in force
    /// and every connection from before has ended.
    ///
    /// # Errors
    /// When the way has ended for good.
    pub async fn set(&mut self, fault: Option<Fault>) -> Result<()> {
        self.asked.store(0, Ordering::Relaxed);
        self.wanted.send(fault)?;
        self.in_force.wait_for(|now| *now == fault).await.context("nobody keeps the way")?;
        Ok(())
    }

    /// How many questions met the fault.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

struct Way {
    address: SocketAddr,
    service: SocketAddr,
    asked: Arc<AtomicU64>,
}

impl Way {
    async fn keep(
        self,
        first: TcpListener,
        mut follow: watch::Receiver<Option<Fault>>,
        announce: watch::Sender<Option<Fault>>,
    ) -> Result<()> {
        let mut listener = Some(first);
        loop {
            let fault = *follow.borrow_and_update();
            if fault == Some(Fault::Refused) {
                listener = None;
            } else if listener.is_none() {
                listener = Some(TcpListener::bind(self.address).await?);
            }
            announce.send_replace(fault);
            let mut connections = JoinSet::new();
            loop {
                tokio::select! {
                    changed = follow.changed() => {
                        if changed.is_err() {
                            return Ok(());
                        }
                        break;
                    }
                    stream = accept(listener.as_ref()) => {
                        connections.spawn(meet(stream?, self.service, fault, self.asked.clone()));
                    }
                }
            }
            connections.shutdown().await;
        }
    }
}

async fn accept(listener: Option<&TcpListener>) -> Result<TcpStream> {
    match listener {
        Some(listener) => Ok(listener.accept().await?.0),
        None => std::future::pending().await,
    }
}

async fn meet(
    mut edge: TcpStream,
    service: SocketAddr,
    fault: Option<Fault>,
    asked: Arc<AtomicU64>,
) -> Result<()> {
    let Some(fault) = fault else {
        copy_bidirectional(&mut edge, &mut TcpStream::connect(service).await?).await?;
        return Ok(());
    };
    let head = head(&mut edge).await?;
    asked.fetch_add(1, Ordering::Relaxed);
    let everyone = "HTTP/1.1 200 OK\r\nX-User: root\r\n";
    let answer = match fault {
        Fault::Refused | Fault::Silent => std::future::pending().await,
        Fault::Error => "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n".to_owned(),
        Fault::Redirect if head.contains(ELSEWHERE) => format!("{everyone}Content-Length: 0\r\n\r\n"),
        Fault::Redirect => {
            format!("HTTP/1.1 302 Found\r\nLocation: http://{ELSEWHERE}/\r\nContent-Length: 0\r\n\r\n")
        }
        Fault::Cut => everyone[..everyone.len() - 3].to_owned(),
    };
    edge.write_all(answer.as_bytes()).await?;
    Ok(edge.shutdown().await?)
}

/// The head of the request that comes next, with its empty line.
pub(super) async fn head(stream: &mut TcpStream) -> Result<String> {
    let mut read = Vec::new();
    let mut chunk = [0; 4096];
    while !read.windows(4).any(|window| window == b"\r\n\r\n") {
        let count = stream.read(&mut chunk).await?;
        anyhow::ensure!(count > 0, "the connection ended within a head");
        read.extend_from_slice(&chunk[..count]);
    }
    Ok(String::from_utf8_lossy(&read).into_owned())
}
