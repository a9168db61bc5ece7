//! Calls without credentials, from several tasks at once and without a pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use tonic::Code;

use crate::calls::{Caller, Edge};
use crate::wait;

/// Tasks that call at the same time: more only wait for each other on two cores.
const TASKS: usize = 8;
/// How long the calls that are waited for may take.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is called, and how an answer of the workload itself is told from one of the edge.
#[derive(Clone, Debug)]
pub enum Target {
    /// The greeter at this host. Its own refusal has other words than the edge's, which are given.
    Greeter { host: String, refusal: &'static str },
    /// A GET of this path, which no workload answers but with 200.
    Page { host: String, path: &'static str },
}

/// Calls until told to stop, or until one gets through.
pub struct Prober {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicU64>,
    tasks: Vec<tokio::task::JoinHandle<Option<String>>>,
    started: Instant,
}

impl Prober {
    /// Starts to call every one of `targets` in turn.
    ///
    /// # Errors
    /// When there is no client for a target.
    pub fn start(edge: &Edge, targets: &[Target]) -> Result<Self> {
        let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let mut tasks = Vec::new();
        for _ in 0..TASKS {
            let callers: Result<Vec<_>> =
                targets.iter().map(|target| Ok((target.clone(), edge.caller(target.host())?))).collect();
            let (callers, stopped, counted) = (callers?, stop.clone(), calls.clone());
            tasks.push(tokio::spawn(async move {
                while !stopped.load(Ordering::Relaxed) {
                    for (target, caller) in &callers {
                        if let Some(leak) = leak(target, caller).await {
                            // Here, too: whoever waits for more calls fails first, and says nothing of it.
                            eprintln!("a call without a token got through: {leak}");
                            return Some(leak);
                        }
                        counted.fetch_add(1, Ordering::Relaxed);
                    }
                }
                None
            }));
        }
        Ok(Self { stop, calls, tasks, started: Instant::now() })
    }

    /// Waits for so many more calls, none of which got through.
    ///
    /// # Errors
    /// At the deadline, or when one did.
    pub async fn more(&self, calls: u64) -> Result<()> {
        let enough = self.calls.load(Ordering::Relaxed) + calls;
        wait::until("more calls were made", PATIENCE, async || {
            if self.tasks.iter().any(tokio::task::JoinHandle::is_finished) {
                return Err(wait::Never(anyhow::anyhow!("a prober ended")).into());
            }
            let made = self.calls.load(Ordering::Relaxed);
            ensure!(made >= enough, "{made} of {enough}");
            Ok(())
        })
        .await
    }

    /// Ends the calls and says how many there were.
    ///
    /// # Errors
    /// When one got through.
    pub async fn finish(self) -> Result<Calls> {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            let leak = task.await.context("a prober panicked")?;
            ensure!(leak.is_none(), "a call without a token got through: {leak:?}");
        }
        Ok(Calls { number: self.calls.load(Ordering::Relaxed), time: self.started.elapsed() })
    }
}

/// How often it was called, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Calls {
    pub number: u64,
    pub time: Duration,
}

impl std::fmt::Display for Calls {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { number, time } = self;
        let rate = u128::from(*number) * 1000 / time.as_millis().max(1);
        write!(f, "{number} calls without a token, {rate} a second")
    }
}

impl Target {
    fn host(&self) -> &str {
        match self {
            Self::Greeter { host, .. } | Self::Page { host, .. } => host,
        }
    }
}

/// What was answered, if by a workload.
async fn leak(target: &Target, caller: &Caller) -> Option<String> {
    match target {
        Target::Greeter { host, refusal } => match caller.greet(&[], "prober").await {
            Ok(answer) => Some(format!("{host} greets: {:?}", answer.message)),
            Err(status) if status.code() == Code::Unauthenticated && status.message() != *refusal => {
                Some(format!("{host} was reached: {}", status.message()))
            }
            Err(_) => None,
        },
        Target::Page { host, path } => match caller.http(Method::GET, path, &[], None).await {
            Ok(answer) if answer.status == 200 => Some(format!("{host}{path} answers: {}", answer.body)),
            _ => None,
        },
    }
}
