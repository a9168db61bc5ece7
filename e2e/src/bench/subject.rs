//! What is measured: the operator as users run it, an optimised build in a
//! process of its own with the rights that the chart grants.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use tokio::process::Command;

use super::usage;
use crate::audit::{self, Request};
use crate::command;
use crate::control_plane::ControlPlane;
use crate::replica::Replica;
use crate::wait;

/// Nothing for this long is quiet.
pub const QUIET: Duration = Duration::from_secs(3);

/// Builds the operator as a release is built.
pub async fn build() -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.current_dir(crate::workspace());
    build.args(["build", "--release", "--locked", "--workspace", "--bin", "peristyle", "--quiet"]);
    command::output(&mut build).await?;
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| crate::workspace().join("target"), PathBuf::from);
    Ok(target.join("release/peristyle"))
}

/// An operator that leads, with the API server's record of it.
pub struct Subject<'a> {
    plane: &'a ControlPlane,
    replica: Replica,
}

impl<'a> Subject<'a> {
    /// Starts `program` and waits until it leads.
    pub async fn start(program: &std::path::Path, plane: &'a ControlPlane) -> Result<Self> {
        let replica = Replica::run(program, plane, "bench", &[("PERISTYLE_LOG", "warn")]).await?;
        replica.wait_until_leading().await?;
        Ok(Self { plane, replica })
    }

    /// Ends it so that the next one leads at once.
    pub async fn stop(mut self) -> Result<()> {
        self.replica.signal(Signal::SIGTERM)?;
        self.replica.ended().await?;
        Ok(())
    }

    /// Where the record ends now.
    pub fn mark(&self) -> Result<u64> {
        audit::position(self.plane.state())
    }

    /// Its requests since `mark`: not of its Lease and not the renewals of watches.
    pub fn requests(&self, mark: u64) -> Result<Vec<Request>> {
        let mut requests = self.replica.requests(self.plane, mark)?;
        requests.retain(|request| request.verb != "watch");
        Ok(requests)
    }

    /// Waits until it has asked for nothing for so long.
    pub async fn quiet_for(&self, span: Duration) -> Result<()> {
        let (mut mark, mut began) = (self.mark()?, Instant::now());
        wait::until("the operator is quiet", Duration::from_mins(5), async || {
            if !self.requests(mark)?.is_empty() {
                (mark, began) = (self.mark()?, Instant::now());
            }
            ensure!(began.elapsed() > span, "it still asks");
            Ok(())
        })
        .await
    }

    /// Seconds of CPU since its start.
    pub fn cpu(&self) -> Result<f64> {
        usage::cpu(self.replica.pid()?)
    }

    /// Its memory now.
    pub fn memory(&self) -> Result<usage::Memory> {
        usage::memory(self.replica.pid()?)
    }
}
