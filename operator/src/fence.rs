//! What every write passes: open only while this replica holds the Lease.
//!
//! The API server does not know who leads. A process that was paused wakes up
//! in the middle of what it did, so the time is looked at before each write to
//! any system, on the monotonic clock.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

/// This replica does not lead, or may not any more.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("this replica does not hold the Lease and writes nothing")]
pub struct NotLeading;

/// Lets writes pass until the Lease has to be renewed again. Clones are the same fence.
#[derive(Clone, Debug)]
pub struct Fence(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    epoch: Instant,
    /// Milliseconds after `epoch`; 0 keeps everything out.
    until: AtomicU64,
    /// How much longer than `until` a write that has begun may take.
    grace: Duration,
    writes: TaskTracker,
}

/// One write that has begun. The fence counts it until this is dropped.
#[derive(Debug)]
pub struct Passage {
    /// How long the write may take before another replica may lead.
    pub left: Duration,
    _token: TaskTrackerToken,
}

impl Fence {
    /// A fence that is closed. Writes that begin before a deadline may go on
    /// for `grace` after it.
    #[must_use]
    pub fn new(grace: Duration) -> Self {
        let until = AtomicU64::new(0);
        Self(Arc::new(Inner { epoch: Instant::now(), until, grace, writes: TaskTracker::new() }))
    }

    /// Lets writes begin until `deadline`.
    pub fn open_until(&self, deadline: Instant) {
        let millis = deadline.saturating_duration_since(self.0.epoch).as_millis();
        self.0.until.store(u64::try_from(millis).unwrap_or(u64::MAX), Ordering::SeqCst);
    }

    /// Lets no write begin from now on.
    pub fn close(&self) {
        self.0.until.store(0, Ordering::SeqCst);
    }

    /// Begins a write.
    ///
    /// # Errors
    /// [`NotLeading`] when the fence is closed or its deadline has passed.
    pub fn pass(&self) -> Result<Passage, NotLeading> {
        let token = self.0.writes.token();
        let until = self.0.epoch + Duration::from_millis(self.0.until.load(Ordering::SeqCst));
        let now = Instant::now();
        if now >= until {
            return Err(NotLeading);
        }
        Ok(Passage { left: until - now + self.0.grace, _token: token })
    }

    /// Waits until every write that has begun is over.
    pub async fn idle(&self) {
        self.0.writes.close();
        self.0.writes.wait().await;
        self.0.writes.reopen();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Duration = Duration::from_secs(5);

    #[test]
    fn a_new_fence_and_one_whose_deadline_has_passed_keep_writes_out() {
        let fence = Fence::new(GRACE);
        assert_eq!(fence.pass().unwrap_err(), NotLeading);
        fence.open_until(Instant::now());
        assert_eq!(fence.pass().unwrap_err(), NotLeading);
    }

    #[test]
    fn an_open_fence_says_how_long_a_write_may_take() {
        let fence = Fence::new(GRACE);
        fence.open_until(Instant::now() + Duration::from_secs(60));
        let left = fence.pass().unwrap().left;
        assert!(left > Duration::from_secs(60) && left <= Duration::from_secs(65), "{left:?}");
        fence.close();
        assert_eq!(fence.pass().unwrap_err(), NotLeading);
    }

    #[tokio::test]
    async fn it_is_idle_only_when_the_last_write_is_over() {
        let fence = Fence::new(GRACE);
        fence.open_until(Instant::now() + Duration::from_secs(60));
        let write = fence.pass().unwrap();
        let mut idle = Box::pin(fence.idle());
        assert!(futures::poll!(&mut idle).is_pending());
        drop(write);
        idle.await;
    }
}
