//! The life of one connection: what the server works on, and its end, which
//! the server hears of also when nobody waits for it any more.

use std::{
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{net::TcpStream, sync::OwnedSemaphorePermit, task::JoinHandle};
use tokio_postgres::{Client, NoTls};

use super::{
    Endpoint, Tls,
    socket::{dial, verified},
};
use crate::fence::{Fence, NotLeading, Passage};

/// How long the server may take to hear that a statement ends, and to let go of a connection.
const GOODBYE: Duration = Duration::from_secs(2);

/// A connection without what its statements mean.
pub(super) struct Link {
    pub(super) client: Client,
    pub(super) driver: JoinHandle<()>,
    /// Hears the server let go of the connection.
    pub(super) ear: TcpStream,
    pub(super) endpoint: Endpoint,
    pub(super) tls: Tls,
    /// The right to this connection; returned when the server has let go of it.
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

    /// Cancels what runs, says goodbye and waits until the server has let go, so
    /// that the next connection does not find this one still counted.
    pub(super) async fn end(mut self) {
        let running = self.running().take();
        if running.is_some() {
            self.cancel().await;
        }
        drop(self.client);
        let (driver, ear) = (&mut self.driver, &mut self.ear);
        let goodbye = async {
            // How it ended is nobody's matter any more.
            drop(driver.await);
            // The server closes the socket as the last thing, when the session is cleared away.
            drop(tokio::io::copy(ear, &mut tokio::io::sink()).await);
        };
        if tokio::time::timeout(GOODBYE, goodbye).await.is_err() {
            // The socket is closed: the server looks for its client while it works, see the options.
            self.driver.abort();
        }
        drop((running, self.permit));
    }

    async fn cancel(&self) {
        let token = self.client.cancel_token();
        let sent = async {
            let Ok((stream, _)) = dial(&self.endpoint).await else {
                return false;
            };
            match &self.tls {
                Tls::Disabled => token.cancel_query_raw(stream, NoTls).await.is_ok(),
                Tls::VerifyFull { authorities } => match verified(authorities, &self.endpoint.host) {
                    Ok(connector) => token.cancel_query_raw(stream, connector).await.is_ok(),
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
