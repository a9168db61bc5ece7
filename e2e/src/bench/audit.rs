//! What the operator asked the API server for, from the audit log.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::operator::USER;
use crate::state::State;
use crate::wait;

/// Nothing for this long is quiet.
const QUIET: Duration = Duration::from_secs(3);

/// The audit log of a control plane.
pub struct AuditLog(PathBuf);

impl AuditLog {
    pub fn of(state: &State) -> Self {
        Self(state.log("audit"))
    }

    /// Where the log ends now.
    pub fn mark(&self) -> Result<u64> {
        Ok(std::fs::metadata(&self.0)?.len())
    }

    /// The verbs of the operator's requests since `mark`: not of its Lease and
    /// not the renewals of watches.
    pub fn requests(&self, mark: u64) -> Result<Vec<String>> {
        let mut log = File::open(&self.0).context("the API server writes an audit log")?;
        log.seek(SeekFrom::Start(mark))?;
        let mut fresh = Vec::new();
        log.read_to_end(&mut fresh)?;
        let entries =
            fresh.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice::<Value>(line).ok());
        Ok(entries
            .filter(|entry| entry["user"]["username"] == USER && entry["stage"] == "ResponseComplete")
            .filter(|entry| entry["verb"] != "watch" && entry["objectRef"]["resource"] != "leases")
            .filter_map(|entry| entry["verb"].as_str().map(str::to_owned))
            .collect())
    }

    /// Waits until the operator has asked for nothing for a few seconds.
    pub async fn quiet(&self) -> Result<()> {
        self.quiet_for(QUIET).await
    }

    /// Waits until the operator has asked for nothing for so long.
    pub async fn quiet_for(&self, span: Duration) -> Result<()> {
        let mut mark = self.mark()?;
        let mut began = std::time::Instant::now();
        wait::until("the operator is quiet", Duration::from_mins(5), async || {
            if !self.requests(mark)?.is_empty() {
                (mark, began) = (self.mark()?, std::time::Instant::now());
            }
            ensure!(began.elapsed() > span, "it still asks");
            Ok(())
        })
        .await
    }
}

/// Whether a verb only reads.
pub fn is_read(verb: &str) -> bool {
    matches!(verb, "get" | "list")
}
