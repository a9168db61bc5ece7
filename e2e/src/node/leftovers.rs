//! What a node leaves on the machine, and its removal.
//!
//! The same code serves `down` and the `up` that finds a sandbox whose
//! processes were killed: it looks at the machine and not at what should be there.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};
use tokio::process::Command;

use super::cgroups;
use super::namespaces::{name, path};
use crate::command;
use crate::daemon::{self, Identity};
use crate::state::State;

/// Ends every process and removes everything of the sandbox outside its
/// state directory. Returns what there was to remove.
///
/// # Errors
/// When a process, mount, device, table or cgroup resists.
pub async fn clear(state: &State) -> Result<Vec<String>> {
    let mut cleared = Vec::new();
    // In this order: kubelet, which restarts containers, goes first.
    let daemons: Vec<_> = daemon::recorded(state).into_iter().map(|(_, process)| process).collect();
    let (running, ended): (Vec<_>, Vec<_>) = daemons.into_iter().partition(Identity::is_running);
    daemon::stop(&running)?;
    let others = [in_network_namespace(state), cgroups::processes(state)].concat();
    daemon::stop(&others)?;
    note(&mut cleared, running.len() + others.len(), "processes");
    note(&mut cleared, ended.len(), "stale pid files");
    remove_dir(&state.path("pids"))?;

    // With the mount of its file and its processes the network namespace goes.
    note(&mut cleared, unmount_all(state)?, "mounts");
    note(&mut cleared, cgroups::existing(state).len(), "cgroups");
    cgroups::remove(state)?;
    note(&mut cleared, usize::from(remove_table(state).await?), "packet filter tables");
    note(&mut cleared, usize::from(remove_device(state).await?), "network devices");
    remove_mount_points(state);
    Ok(cleared)
}

fn note(cleared: &mut Vec<String>, count: usize, what: &str) {
    if count > 0 {
        cleared.push(format!("{count} {what}"));
    }
}

/// Processes whose network is the node's: daemons without pid file, and the
/// shims of containers.
fn in_network_namespace(state: &State) -> Vec<Identity> {
    let Ok(ours) = fs::metadata(path(state)) else {
        return Vec::new();
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let inside = pids.filter(|pid| {
        fs::metadata(format!("/proc/{pid}/ns/net"))
            .is_ok_and(|theirs| (theirs.dev(), theirs.ino()) == (ours.dev(), ours.ino()))
    });
    inside.filter_map(|pid| Identity::of(pid).ok()).collect()
}

/// Mounts below the state directory: the network namespace's file, and what
/// somebody mounted outside the node's mount namespace.
fn unmount_all(state: &State) -> Result<usize> {
    let mounts = fs::read_to_string("/proc/mounts").context("cannot read /proc/mounts")?;
    let points = mounts_below(&mounts, state.dir());
    for point in points.iter().rev() {
        umount2(point.as_str(), MntFlags::MNT_DETACH).with_context(|| format!("cannot unmount {point}"))?;
    }
    Ok(points.len())
}

fn mounts_below(mounts: &str, dir: &Path) -> Vec<String> {
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    // /proc/mounts writes a space as \040.
    let points = points.map(|point| point.replace("\\040", " "));
    points.filter(|point| Path::new(point).starts_with(dir)).collect()
}

async fn remove_table(state: &State) -> Result<bool> {
    let name = name(state);
    let Ok(tables) = command::output(Command::new("nft").args(["list", "tables"])).await else {
        // Without nftables there is no table.
        return Ok(false);
    };
    let exists = tables.lines().any(|line| line == format!("table ip {name}"));
    if exists {
        command::output(Command::new("nft").args(["delete", "table", "ip", &name])).await?;
    }
    Ok(exists)
}

async fn remove_device(state: &State) -> Result<bool> {
    // Both ends of the link go with the namespace, when the kernel gets to
    // it: the device may go between two looks.
    let name = name(state);
    let device = Path::new("/sys/class/net").join(&name);
    let exists = device.exists();
    if exists {
        let removed = command::output(Command::new("ip").args(["link", "delete", &name])).await;
        if device.exists() {
            removed?;
        }
    }
    Ok(exists)
}

/// Makes a directory of the machine that the node mounts over, and remembers that it was missing.
///
/// # Errors
/// When it cannot be made.
pub fn create_mount_point(state: &State, directory: &str) -> Result<()> {
    if !Path::new(directory).exists() {
        // Remembered first: a directory that was made and forgotten would stay.
        let known = fs::read_to_string(state.path("mount-points")).unwrap_or_default();
        state.write("mount-points", format!("{known}{directory}\n"))?;
        fs::create_dir_all(directory).with_context(|| format!("cannot create {directory}"))?;
    }
    Ok(())
}

fn remove_mount_points(state: &State) {
    let known = fs::read_to_string(state.path("mount-points")).unwrap_or_default();
    for directory in known.lines() {
        // One that is not empty has found another user meanwhile.
        let _ = fs::remove_dir(directory);
    }
}

fn remove_dir(dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("cannot remove {}", dir.display()))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_mounts_below_the_state_directory_are_ours() {
        let mounts = "overlay /s/one/rootfs overlay rw 0 0\ntmpfs /s/one\\040two tmpfs rw 0 0\ntmpfs /s/one/a\\040b tmpfs rw 0 0\n";
        assert_eq!(mounts_below(mounts, Path::new("/s/one")), ["/s/one/rootfs", "/s/one/a b"]);
    }
}
