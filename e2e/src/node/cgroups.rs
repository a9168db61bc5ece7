//! The cgroups under which the node's pods run, in both versions of cgroups.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::namespaces::name;
use crate::daemon::Identity;
use crate::state::State;

/// How long the kernel may take to let go of the cgroup of ended processes.
const PATIENCE: Duration = Duration::from_secs(5);

/// Makes the sandbox's cgroup below every hierarchy.
///
/// # Errors
/// When a hierarchy refuses it.
pub fn create(state: &State) -> Result<()> {
    for hierarchy in hierarchies()? {
        enable_controllers(&hierarchy)?;
        let dir = hierarchy.join(name(state));
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    Ok(())
}

/// Version 2 hands a controller on only where it is enabled; version 1 has no such file.
fn enable_controllers(hierarchy: &Path) -> Result<()> {
    let Ok(available) = fs::read_to_string(hierarchy.join("cgroup.controllers")) else {
        return Ok(());
    };
    let switch = hierarchy.join("cgroup.subtree_control");
    let enabled = fs::read_to_string(&switch)?;
    for controller in available.split_ascii_whitespace() {
        if !enabled.split_ascii_whitespace().any(|other| other == controller) {
            fs::write(&switch, format!("+{controller}"))
                .with_context(|| format!("cannot enable {controller} in {}", switch.display()))?;
        }
    }
    Ok(())
}

/// The processes in the sandbox's cgroups.
#[must_use]
pub fn processes(state: &State) -> Vec<Identity> {
    let mut pids: Vec<i32> = existing(state).iter().flat_map(|dir| pids(dir)).collect();
    pids.sort_unstable();
    pids.dedup();
    pids.into_iter().filter_map(|pid| Identity::of(pid).ok()).collect()
}

/// Removes the sandbox's cgroups, which must not hold processes any more.
///
/// # Errors
/// When the kernel does not let go of one.
pub fn remove(state: &State) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    for dir in existing(state) {
        while let Err(error) = remove_tree(&dir) {
            if Instant::now() > deadline {
                return Err(error).with_context(|| format!("cannot remove cgroup {}", dir.display()));
            }
            sleep(Duration::from_millis(20));
        }
    }
    Ok(())
}

/// The sandbox's cgroups that exist, one per hierarchy.
#[must_use]
pub fn existing(state: &State) -> Vec<PathBuf> {
    let dirs = hierarchies().unwrap_or_default().into_iter().map(|dir| dir.join(name(state)));
    dirs.filter(|dir| dir.exists()).collect()
}

fn hierarchies() -> Result<Vec<PathBuf>> {
    Ok(mount_points(&fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?))
}

fn mount_points(mounts: &str) -> Vec<PathBuf> {
    let mut points = Vec::new();
    for line in mounts.lines() {
        let mut fields = line.split(' ').skip(1);
        if let (Some(point), Some("cgroup" | "cgroup2")) = (fields.next(), fields.next()) {
            points.push(PathBuf::from(point));
        }
    }
    points
}

fn pids(dir: &Path) -> Vec<i32> {
    let own = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let own = own.lines().filter_map(|line| line.parse().ok());
    own.chain(subdirectories(dir).iter().flat_map(|dir| pids(dir))).collect()
}

/// A cgroup is removed with its directory; its files cannot be deleted.
fn remove_tree(dir: &Path) -> std::io::Result<()> {
    for child in subdirectories(dir) {
        remove_tree(&child)?;
    }
    fs::remove_dir(dir)
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| e.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_found() {
        let mounts = "tmpfs /sys/fs/cgroup tmpfs rw 0 0\ncgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\ncgroup2 /sys/fs/cgroup/unified cgroup2 rw 0 0\n";
        let points = mount_points(mounts);
        assert_eq!(points, [Path::new("/sys/fs/cgroup/cpu"), Path::new("/sys/fs/cgroup/unified")]);
    }

    #[test]
    fn processes_of_nested_groups_are_found_and_directories_removed() {
        let root = tempfile::tempdir().unwrap();
        let group = root.path().join("group");
        fs::create_dir_all(group.join("pod/container")).unwrap();
        fs::write(group.join("pod/container/cgroup.procs"), "12\n13\n").unwrap();
        assert_eq!(pids(&group), [12, 13]);
        fs::remove_file(group.join("pod/container/cgroup.procs")).unwrap();
        remove_tree(&group).unwrap();
        assert!(!group.exists());
    }
}
