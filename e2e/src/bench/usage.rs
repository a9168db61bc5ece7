//! What a process has cost so far, from `/proc`.

use std::fs;

use anyhow::{Context, Result};

/// Clock ticks per second in `/proc`, the same on every Linux.
const TICKS: f64 = 100.0;

/// Seconds of CPU since the start of the process.
pub fn cpu(pid: u32) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // After the name in brackets, which may hold spaces, field 3 follows (proc(5)).
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |field: usize| fields.get(field - 3).and_then(|f| f.parse::<f64>().ok());
    let (user, system) = (ticks(14).context("no utime")?, ticks(15).context("no stime")?);
    Ok((user + system) / TICKS)
}

/// Resident memory of a process, in MiB.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    /// All of it.
    pub resident: f64,
    /// What of it are pages of its program, which replicas on one node share.
    pub program: f64,
    /// The most there ever was.
    pub peak: f64,
}

/// What the process has of it now.
pub fn memory(pid: u32) -> Result<Memory> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        Some(line.trim().strip_suffix(" kB")?.parse::<f64>().ok()? / 1024.0)
    };
    Ok(Memory {
        resident: mib("VmRSS:").context("no VmRSS")?,
        program: mib("RssFile:").context("no RssFile")?,
        peak: mib("VmHWM:").context("no VmHWM")?,
    })
}
