//! How long an edge may keep its questioners waiting. One that is silent must
//! not hold up the Services of the others.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Semaphore, time::Instant};

/// One question and the wait for one's turn may take so long.
const DEADLINE: Duration = Duration::from_secs(3);
/// Questions to one class at a time: fewer than there are passes.
const TURNS: usize = 4;
/// First and longest time for which a silent class is not asked.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// What is known of the manners of each EdgeClass, by its name.
#[derive(Debug, Default)]
pub struct Patience(Mutex<HashMap<String, Arc<Class>>>);

#[derive(Debug)]
struct Class {
    turns: Semaphore,
    silence: Mutex<Silence>,
}

#[derive(Debug, Default)]
struct Silence {
    /// Questions in a row without an answer.
    count: u32,
    until: Option<Instant>,
}

impl Patience {
    /// What `question` to an edge of `class` comes to.
    ///
    /// # Errors
    /// In words, when there is no answer in time, or there was none lately.
    pub async fn ask<T>(&self, class: &str, question: impl Future<Output = T>) -> Result<T, String> {
        let known = lock(&self.0)
            .entry(class.to_owned())
            .or_insert_with(|| Arc::new(Class { turns: Semaphore::new(TURNS), silence: Mutex::default() }))
            .clone();
        if lock(&known.silence).until.is_some_and(|until| until > Instant::now()) {
            return Err(format!("EdgeClass {class}: did not answer lately; asked again soon"));
        }
        let turn = async {
            let _turn = known.turns.acquire().await;
            question.await
        };
        let answer = tokio::time::timeout(DEADLINE, turn).await;
        let mut silence = lock(&known.silence);
        if let Ok(answer) = answer {
            *silence = Silence::default();
            return Ok(answer);
        }
        // Those who waited together count once.
        if silence.until.is_none_or(|until| until <= Instant::now()) {
            let pause = PAUSE.0.saturating_mul(1 << silence.count.min(10)).min(PAUSE.1);
            *silence = Silence { count: silence.count + 1, until: Some(Instant::now() + pause) };
        }
        Err(format!("EdgeClass {class}: no answer within {} s", DEADLINE.as_secs()))
    }
}

/// A panic of another thread leaves nothing half done in what is locked here.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_silent_edge_keeps_a_crowd_waiting_once_and_nobody_else() {
        let patience = Patience::default();
        let crowd = (0..3 * TURNS).map(|_| patience.ask("silent", std::future::pending::<()>()));
        assert!(futures::future::join_all(crowd).await.iter().all(Result::is_err));
        let asked = std::sync::atomic::AtomicBool::new(false);
        let question = async { asked.store(true, std::sync::atomic::Ordering::Relaxed) };
        assert!(patience.ask("silent", question).await.is_err(), "it is left alone for a while");
        assert!(!asked.into_inner());
        assert_eq!(patience.ask("other", async { 1 }).await, Ok(1));
    }
}
