//! Fixtures for the tests of the services: a real PostgreSQL, an issuer of
//! tokens, and the log as it is written.

pub mod issuer;
pub mod logs;
pub mod postgres;

use std::time::Duration;

/// Asks again until the condition holds.
///
/// # Panics
/// When it does not within 20 seconds.
pub async fn eventually<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let give_up = tokio::time::Instant::now() + Duration::from_secs(20);
    while !condition().await {
        assert!(tokio::time::Instant::now() < give_up, "still waiting: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
