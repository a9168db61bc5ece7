//! The operator as a process that can be killed at any moment.

use std::fs::{self, File, OpenOptions};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};

use crate::{command, ports};

/// The operator's binary with its usual options.
pub struct Operator {
    program: PathBuf,
    kubeconfig: PathBuf,
    log: PathBuf,
    admin: SocketAddr,
    child: Mutex<Option<Child>>,
}

impl Operator {
    /// The operator as it will run, with probes on a free port of the loopback address.
    ///
    /// # Errors
    /// When no port is free.
    pub fn new(program: PathBuf, kubeconfig: PathBuf, log: PathBuf) -> Result<Self> {
        let [port] = ports::free()?;
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        Ok(Self { program, kubeconfig, log, admin, child: Mutex::default() })
    }

    #[cfg(test)]
    pub(super) fn never_started() -> Self {
        let nothing = PathBuf::new;
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self { program: nothing(), kubeconfig: nothing(), log: nothing(), admin, child: Mutex::default() }
    }

    /// Where it answers probes.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    fn lock(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts it, after the one before was killed.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start(&self) -> Result<()> {
        self.kill();
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let child = Command::new(&self.program)
            .args(["run", "--identity", "operator", "--admin-address", &self.admin.to_string()])
            .args(["--default-replicas", "1"])
            .env("KUBECONFIG", &self.kubeconfig)
            .stdin(Stdio::null())
            .stdout(File::try_clone(&log)?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot run {}", self.program.display()))?;
        *self.lock() = Some(child);
        Ok(())
    }

    /// Kills it at once, without a chance to end in order.
    pub fn kill(&self) {
        if let Some(mut child) = self.lock().take() {
            // The only likely error is that it ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Whether it runs; one that ended by itself does not.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.lock().as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// How much memory it has, in bytes.
    ///
    /// # Errors
    /// When it does not run.
    pub fn resident(&self) -> Result<u64> {
        let pid = self.lock().as_ref().context("the operator does not run")?.id();
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")).context("it has ended")?;
        Ok(kib.parse::<u64>()? * 1024)
    }

    /// The end of its log.
    #[must_use]
    pub fn log(&self) -> String {
        command::tail(&self.log)
    }
}

impl Drop for Operator {
    fn drop(&mut self) {
        self.kill();
    }
}
