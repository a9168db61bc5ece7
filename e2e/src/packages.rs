//! The Debian packages that the sandbox runs programs of.

use anyhow::{Result, bail};
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
    let log = cache_dir("logs")?.join("apt.log");
    let mut update = Command::new("apt-get");
    command::logged(update.arg("update"), &log).await?;
    let mut install = Command::new("apt-get");
    install.args(["install", "--yes", "--no-install-recommends"]).args(missing);
    command::logged(install.env("DEBIAN_FRONTEND", "noninteractive"), &log).await
}

fn missing(wanted: &[&'static str], known: &str) -> Vec<&'static str> {
    let installed = |name: &&&str| known.lines().any(|line| line == format!("{name} installed"));
    wanted.iter().filter(|name| !installed(name)).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_removed_or_unknown_package_is_missing() {
        let all: Vec<_> = NODE.iter().map(|name| format!("{name} installed")).collect();
        assert!(missing(NODE, &all.join("\n")).is_empty());
        let removed = all.join("\n").replace("runc installed", "runc config-files");
        assert_eq!(missing(NODE, &removed), ["runc"]);
        assert_eq!(missing(NODE, ""), NODE);
    }
}
