//! Processes that outlive the command which started them.
//!
//! Each has a log and a pid file. The pid file also holds the start time and
//! the boot, because pids are given out again.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::command::tail;
use crate::state::State;

/// How long the kernel may take to end a process.
const PATIENCE: Duration = Duration::from_secs(10);

/// One process, told from a later one with the same pid.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    pub pid: i32,
    /// Clock ticks between boot and start: field 22 of `/proc/PID/stat`.
    start_time: u64,
    boot_id: String,
}

impl Identity {
    /// The process that has `pid` now.
    ///
    /// # Errors
    /// When there is none.
    pub fn of(pid: i32) -> Result<Self> {
        let (_, start_time) = stat(pid).with_context(|| format!("no process has pid {pid}"))?;
        Ok(Self { pid, start_time, boot_id: boot_id() })
    }

    /// Whether this very process runs. One that ended and waits for its parent does not.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.boot_id == boot_id()
            && stat(self.pid)
                .is_some_and(|(state, start)| start == self.start_time && !matches!(state, 'Z' | 'X'))
    }

    fn kill(&self) {
        if self.is_running() {
            // The only likely error is that the process ended just now.
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }

    fn is_gone(&self) -> bool {
        // Takes the exit status when the process is a child of this one.
        let _ = waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::WNOHANG));
        !self.is_running()
    }
}

/// Starts `command` in a session of its own, with its output in its log.
///
/// # Errors
/// When the program or its files cannot be written or started.
pub fn start(state: &State, name: &str, command: &[String]) -> Result<Identity> {
    let log = state.log(name);
    fs::create_dir_all(state.path("logs"))?;
    fs::create_dir_all(state.path("pids"))?;
    let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
    let child = Command::new("setsid")
        .args(command)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(file.try_clone()?)
        .stderr(file)
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let pid = i32::try_from(child.id())?;
    let identity = Identity::of(pid)?;
    state.write(&format!("pids/{name}.json"), serde_json::to_string(&identity)?)?;
    Ok(identity)
}

/// The daemons that pid files name, running or not, in order of their names.
#[must_use]
pub fn recorded(state: &State) -> Vec<(String, Identity)> {
    let Ok(entries) = fs::read_dir(state.path("pids")) else {
        return Vec::new();
    };
    let mut daemons: Vec<_> = entries.flatten().filter_map(|entry| read(&entry.path())).collect();
    daemons.sort_by(|a, b| a.0.cmp(&b.0));
    daemons
}

fn read(path: &Path) -> Option<(String, Identity)> {
    let name = path.file_stem()?.to_str()?.to_owned();
    // A pid file that cannot be read was cut off while being written; the
    // namespaces and cgroups lead to its process.
    let identity = serde_json::from_slice(&fs::read(path).ok()?).ok()?;
    Some((name, identity))
}

/// Fails when one of the daemons has ended, with the end of its log.
///
/// # Errors
/// When a recorded daemon does not run.
pub fn check(state: &State) -> Result<()> {
    for (name, identity) in recorded(state) {
        if !identity.is_running() {
            let log = state.log(&name);
            bail!("{name} ended; the end of {}:\n{}", log.display(), tail(&log));
        }
    }
    Ok(())
}

/// Kills processes and returns when they are gone. Nothing of a sandbox needs
/// an orderly end, and some of it takes a minute for one.
///
/// # Errors
/// When a process does not end.
pub fn stop(processes: &[Identity]) -> Result<()> {
    processes.iter().for_each(Identity::kill);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left: Vec<_> = processes.iter().filter(|process| !process.is_gone()).collect();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            let pids: Vec<_> = left.iter().map(|process| process.pid.to_string()).collect();
            let pids = pids.join(",");
            bail!("processes {pids} do not end after SIGKILL: see `ps -o stat,wchan,args -p {pids}`");
        }
        sleep(Duration::from_millis(20));
    }
}

/// State letter and start time of a process.
fn stat(pid: i32) -> Option<(char, u64)> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(stat: &str) -> Option<(char, u64)> {
    // The program's name stands in parentheses and may hold any character.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(state: &State) -> Identity {
        start(state, "sleeper", &["sleep".to_owned(), "600".to_owned()]).unwrap()
    }

    #[test]
    fn stat_of_a_program_with_a_strange_name_is_understood() {
        let line = "7 (a) R (b) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1";
        assert_eq!(parse_stat(line), Some(('S', 4711)));
    }

    #[test]
    fn a_daemon_is_recorded_runs_and_is_gone_after_stop() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::at(dir.path()).unwrap();
        let identity = sleeper(&state);
        assert!(identity.is_running());
        assert_eq!(recorded(&state), [("sleeper".to_owned(), identity.clone())]);
        check(&state).unwrap();
        stop(std::slice::from_ref(&identity)).unwrap();
        assert!(!identity.is_running());
        assert!(check(&state).unwrap_err().to_string().starts_with("sleeper ended"));
    }

    #[test]
    fn a_pid_that_another_process_got_is_recognised_as_stale() {
        let mut identity = Identity::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(identity.is_running());
        identity.start_time += 1;
        assert!(!identity.is_running());
    }

    #[test]
    fn a_process_of_an_earlier_boot_is_recognised_as_stale() {
        let mut identity = Identity::of(i32::try_from(std::process::id()).unwrap()).unwrap();
        identity.boot_id = "another".to_owned();
        assert!(!identity.is_running());
    }

    #[test]
    fn a_foreign_process_under_a_stale_pid_is_not_killed() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::at(dir.path()).unwrap();
        let identity = sleeper(&state);
        let earlier = Identity { start_time: 1, ..identity.clone() };
        stop(&[earlier]).unwrap();
        assert!(identity.is_running());
        stop(&[identity]).unwrap();
    }
}
