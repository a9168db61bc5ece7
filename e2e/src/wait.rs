//! Waiting for a condition with a deadline, never for a time.

use std::fmt::Debug;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, bail};
use kube::{Api, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(100);

/// An error that no waiting mends: [`until`] returns it at once.
#[derive(Debug)]
pub struct Never(pub Error);

impl std::fmt::Display for Never {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl std::error::Error for Never {}

/// Asks again and again until `probe` succeeds, and returns what it gave.
///
/// # Errors
/// At the deadline, with the last error of `probe`; at once when that is [`Never`].
pub async fn until<T>(
    what: &str,
    patience: Duration,
    mut probe: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        let error = match probe().await {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        if error.is::<Never>() {
            return Err(error.context(format!("waited in vain until {what}")));
        }
        if Instant::now() > deadline {
            return Err(error.context(format!("waited {} s in vain until {what}", patience.as_secs())));
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Waits until the named object fulfils `condition`, and returns it.
///
/// # Errors
/// At the deadline, with the object as it was last.
pub async fn object<K>(
    api: &Api<K>,
    name: &str,
    what: &str,
    patience: Duration,
    condition: impl Fn(&K) -> bool,
) -> Result<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Serialize,
{
    until(what, patience, async || {
        let object = api.get(name).await?;
        if condition(&object) {
            return Ok(object);
        }
        bail!("the object as it was last:\n{}", serde_saphyr::to_string(&object)?)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_value_of_the_first_success_is_returned() {
        let mut tries = 0;
        let value = until("three", Duration::from_secs(5), async || {
            tries += 1;
            if tries < 3 {
                bail!("only {tries}")
            }
            Ok(tries)
        });
        assert_eq!(value.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn the_deadline_reports_the_last_error() {
        let error = until("it is", Duration::ZERO, async || -> Result<()> { bail!("it is not") });
        let text = format!("{:#}", error.await.unwrap_err());
        assert!(text.contains("until it is") && text.contains("it is not"), "{text}");
    }

    #[tokio::test]
    async fn an_error_that_waiting_does_not_mend_ends_the_wait() {
        let error = until("it is", Duration::from_secs(600), async || -> Result<()> {
            Err(Never(anyhow::anyhow!("the daemon ended")).into())
        });
        assert!(format!("{:#}", error.await.unwrap_err()).contains("the daemon ended"));
    }
}
