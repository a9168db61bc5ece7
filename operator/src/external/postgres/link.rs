//! The life of one connection: what the server works on, and its end, which
//! the server hears of also when nobody waits for it any more.

use std::{
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{sync::OwnedSemaphorePermit, task::JoinHandle};
use tokio_postgres::{Client, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::{Tls, client_config};
use crate::fence::{Fence, NotLeading, Passage};

/// How long the server may take to hear that a statement or a connection ends.
const GOODBYE: Duration = Duration::from_secs(2);

/// A connection without what its statements mean.
pub(super) struct Link {
    pub(super) client: Client,
    pub(super) driver: JoinHandle<()>,
    pub(super) tls: Tls,
    /// The right to this connection; returned when the server has heard of its end.
    pub(super) permit: Option<Arc<OwnedSemaphorePermit>>,
    pub(super) running: Mutex<Option<Running>>,
}

/// The server may be working on a statement.
pub(super) struct Running {
    /// No other replica leads before it is over.
    _passage: Option<Passage>,
}

/// Why a statement gave nothing.
pub(super) enum Interrupted {
    /// This replica does not lead, or not any more.
    NotLeading(NotLeading),
    /// It took too long.
    Late,
    /// The server, or the connection.
    Failed(tokio_postgres::Error),
}

impl Link {
    /// Waits for `call` as long as `fence` is open, at most for `patience`.
    /// What is not waited for to its end is cancelled with the connection.
    pub(super) async fn run<T>(
        &self,
        fence: Option<&Fence>,
        patience: Duration,
        call: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Interrupted> {
        let mut call = pin!(call);
        let end = Instant::now() + patience;
        loop {
            let passage = fence.map(Fence::pass).transpose().map_err(Interrupted::NotLeading)?;
            let left = end.saturating_duration_since(Instant::now());
            // The other half is for the server to hear of it, should the fence be closed then.
            let slice = passage.as_ref().map_or(left, |passage| (passage.left / 2).min(left));
            *self.running() = Some(Running { _passage: passage });
            match tokio::time::timeout(slice, &mut call).await {
                Ok(result) => {
                    *self.running() = None;
                    return result.map_err(Interrupted::Failed);
                }
                Err(_) if slice == left => return Err(Interrupted::Late),
                Err(_) => {}
            }
        }
    }

    /// Cancels what runs, says goodbye and waits until the server has heard it,
    /// so that the next connection does not find this one still counted.
    pub(super) async fn end(mut self) {
        let running = self.running().take();
        if running.is_some() {
            self.cancel().await;
        }
        drop(self.client);
        if tokio::time::timeout(GOODBYE, &mut self.driver).await.is_err() {
            // The socket is closed: the server looks for its client while it works, see the options.
            self.driver.abort();
        }
        drop((running, self.permit));
    }

    async fn cancel(&self) {
        let token = self.client.cancel_token();
        let sent = async {
            match &self.tls {
                Tls::Disabled => token.cancel_query(NoTls).await.is_ok(),
                Tls::VerifyFull { authorities } => match client_config(authorities) {
                    Ok(config) => token.cancel_query(MakeRustlsConnect::new(config)).await.is_ok(),
                    Err(_) => false,
                },
            }
        };
        let is_sent = tokio::time::timeout(GOODBYE, sent).await.unwrap_or_default();
        tracing::debug!(is_sent, "cancelled a statement");
    }

    fn running(&self) -> MutexGuard<'_, Option<Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
