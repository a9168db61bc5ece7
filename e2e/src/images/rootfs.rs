//! Root file systems made of Debian packages.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use tokio::process::Command;

use super::archive::Layer;
use super::digest;
use crate::command;
use crate::progress::Progress;
use crate::state::cache_dir;

/// A root file system: which packages, and whether they are configured.
#[derive(Clone, Copy, Debug)]
pub struct Rootfs {
    pub name: &'static str,
    /// `extract` only unpacks; `minbase` runs the packages' scripts.
    pub variant: &'static str,
    pub packages: &'static [&'static str],
    /// Further options of `mmdebstrap`.
    options: &'static [&'static str],
}

/// What a dynamically linked Rust program needs.
pub const BASE: Rootfs =
    Rootfs { name: "base", variant: "extract", packages: &["libc6", "libgcc-s1"], options: &[] };

/// PostgreSQL 15; its user `postgres` has uid 100 and gid 102. Two thirds of
/// the packages are left out: translations, manuals and the compiler behind
/// `jit`, without which PostgreSQL interprets every expression.
pub const POSTGRES: Rootfs = Rootfs {
    name: "postgres",
    variant: "minbase",
    packages: &["ca-certificates", "postgresql-15"],
    options: &[
        "--dpkgopt=path-exclude=/usr/share/doc/*",
        "--dpkgopt=path-exclude=/usr/share/i18n/*",
        "--dpkgopt=path-exclude=/usr/share/info/*",
        "--dpkgopt=path-exclude=/usr/share/locale/*",
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=path-exclude=/usr/lib/*/libLLVM*",
        "--dpkgopt=path-exclude=/usr/lib/*/libz3*",
        "--dpkgopt=path-exclude=/usr/lib/postgresql/*/lib/llvmjit*",
        "--dpkgopt=path-exclude=/usr/lib/postgresql/*/lib/bitcode/*",
        // The packages' scripts make a cluster of their own.
        "--customize-hook=rm -rf \"$1\"/var/lib/postgresql/15 \"$1\"/etc/postgresql/15",
    ],
};

impl Rootfs {
    /// The layer with this root file system, made by `mmdebstrap` unless it is cached.
    ///
    /// # Errors
    /// When the packages cannot be fetched or unpacked.
    pub async fn layer(self, progress: &Progress) -> Result<Layer> {
        let suite = suite()?;
        let parts =
            [&[suite.as_str(), self.variant, std::env::consts::ARCH], self.packages, self.options].concat();
        let identity = digest(parts.join(" ").as_bytes())[..12].to_owned();
        let path = cache_dir("rootfs")?.join(format!("{}-{identity}.tar", self.name));
        if !path.exists() {
            progress.step(&format!("root file system {}", self.name), self.make(&suite, &path)).await?;
        }
        Ok(Layer::Archive { path, identity })
    }

    async fn make(self, suite: &str, path: &PathBuf) -> Result<()> {
        let dir = cache_dir("rootfs")?;
        // What an interrupted run leaves goes away with this directory.
        let work = tempfile::Builder::new().prefix("making-").tempdir_in(&dir)?;
        let made = work.path().join("rootfs.tar");
        let mut mmdebstrap = Command::new("mmdebstrap");
        mmdebstrap
            .arg(format!("--variant={}", self.variant))
            .arg(format!("--include={}", self.packages.join(",")))
            .args(self.options)
            .arg(suite)
            .arg(&made)
            .env("TMPDIR", work.path())
            // Every time stamp becomes this one, so that equal packages give equal bytes.
            .env("SOURCE_DATE_EPOCH", "1");
        let log = dir.join(format!("{}.log", self.name));
        command::logged(&mut mmdebstrap, &log).await.with_context(|| {
            format!("cannot make root file system {}: the Debian mirror must be reachable", self.name)
        })?;
        fs::rename(made, path)?;
        Ok(())
    }
}

/// The Debian release of this machine: its packages fit its kernel and mirror.
fn suite() -> Result<String> {
    let release = fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    codename(&release).context("/etc/os-release has no VERSION_CODENAME: the sandbox needs a Debian release")
}

fn codename(release: &str) -> Option<String> {
    let value = release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(value.trim_matches('"').to_owned()).filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_release_is_read_with_and_without_quotes() {
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=bookworm\n").as_deref(), Some("bookworm"));
        assert_eq!(codename("VERSION_CODENAME=\"trixie\"\n").as_deref(), Some("trixie"));
        assert_eq!(codename("ID=debian\n"), None);
    }
}
