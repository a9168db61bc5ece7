//! The Debian packages that the sandbox runs programs of.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::unistd::geteuid;
use tokio::process::Command;

use crate::command;
use crate::progress::Progress;
use crate::state::cache_dir;

/// What a node needs. `mmdebstrap` and `busybox-static` make its images.
pub const NODE: &[&str] = &[
    "busybox-static",
    "ca-certificates",
    "conntrack",
    "containerd",
    "containernetworking-plugins",
    "ethtool",
    "iproute2",
    "iptables",
    "mmdebstrap",
    "nftables",
    "procps",
    "runc",
    "socat",
];

/// What the tests run programs of: database servers of their own, certificates for them.
pub const TESTS: &[&str] = &["openssl", "postgresql-15"];

/// Installs those of `wanted` that are missing when run as root.
///
/// # Errors
/// Without root the error is the line to run; as root, when apt-get fails.
pub async fn ensure(wanted: &'static [&'static str], progress: &Progress) -> Result<()> {
    // Exits with 1 when one of the packages is unknown: the output tells which are there.
    let mut query = Command::new("dpkg-query");
    query.args(["--show", "--showformat=${Package} ${db:Status-Status}\n"]).args(wanted);
    let known = match query.kill_on_drop(true).output().await {
        Ok(output) => String::from_utf8_lossy(&output.stdout).into_owned(),
        Err(error) => bail!(
            "cannot run dpkg-query ({error}): the sandbox needs Debian or a distribution made of it, or use a cluster that exists with --kubeconfig"
        ),
    };
    let missing = missing(wanted, &known);
    if missing.is_empty() {
        return Ok(());
    }
    let install = format!("apt-get install --yes --no-install-recommends {}", missing.join(" "));
    if !geteuid().is_root() {
        bail!("packages are missing; run: sudo apt-get update && sudo {install}");
    }
    progress.say(&format!("installing Debian packages: {}", missing.join(" ")));
    progress.step("install Debian packages", apt(&missing)).await
}

async fn apt(missing: &[&str]) -> Result<()> {
    let _started_by_nobody = NoServices::declare(Path::new(POLICY))?;
    let log = cache_dir("logs")?.join("apt.log");
    let mut update = Command::new("apt-get");
    command::logged(update.arg("update"), &log).await?;
    let mut install = Command::new("apt-get");
    install.args(["install", "--yes", "--no-install-recommends"]).args(missing);
    command::logged(install.env("DEBIAN_FRONTEND", "noninteractive"), &log).await
}

/// What Debian's maintainer scripts ask before they start a service (Debian
/// Policy 9.3.3.2, invoke-rc.d(8)).
const POLICY: &str = "/usr/sbin/policy-rc.d";

/// While it lives, new packages start no service: the sandbox runs a containerd
/// and servers of its own, and the machine's stays as it is.
struct NoServices(Option<PathBuf>);

impl NoServices {
    fn declare(policy: &Path) -> Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o755).open(policy);
        match file.and_then(|mut file| file.write_all(b"#!/bin/sh\n# Forbidden by policy.\nexit 101\n")) {
            Ok(()) => Ok(Self(Some(policy.to_owned()))),
            // The machine has a policy, which decides.
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(Self(None)),
            Err(error) => Err(error).with_context(|| format!("cannot write {}", policy.display())),
        }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Some(policy) = &self.0
            && let Err(error) = fs::remove_file(policy)
        {
            eprintln!("remove {}, or no service of a new package starts: {error}", policy.display());
        }
    }
}

fn missing(wanted: &[&'static str], known: &str) -> Vec<&'static str> {
    let installed = |name: &&&str| known.lines().any(|line| line == format!("{name} installed"));
    wanted.iter().filter(|name| !installed(name)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_forbidden_only_meanwhile_and_never_against_the_machines_policy() {
        let dir = tempfile::tempdir().unwrap();
        let policy = dir.path().join("policy-rc.d");
        let forbidden = NoServices::declare(&policy).unwrap();
        let status = std::process::Command::new(&policy).args(["containerd", "start"]).status().unwrap();
        assert_eq!(status.code(), Some(101), "invoke-rc.d takes 101 for forbidden");
        drop(forbidden);
        assert!(!policy.exists());

        fs::write(&policy, "the machine's").unwrap();
        drop(NoServices::declare(&policy).unwrap());
        assert_eq!(fs::read_to_string(&policy).unwrap(), "the machine's");
    }

    #[test]
    fn a_removed_or_unknown_package_is_missing() {
        let all: Vec<_> = NODE.iter().map(|name| format!("{name} installed")).collect();
        assert!(missing(NODE, &all.join("\n")).is_empty());
        let removed = all.join("\n").replace("runc installed", "runc config-files");
        assert_eq!(missing(NODE, &removed), ["runc"]);
        assert_eq!(missing(NODE, ""), NODE);
    }
}
