//! Where a sandbox keeps what belongs to it: one directory per sandbox, and
//! one cache directory per user for what is expensive to build.

use std::fs::{self, File, TryLockError};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::node::network::Network;

/// The environment variable that selects a state directory other than the default one.
pub const STATE_DIR_VARIABLE: &str = "PERISTYLE_STATE_DIR";

/// Unix socket addresses have 108 bytes; the longest socket name below the
/// state directory takes 40.
const LONGEST_STATE_DIR: usize = 64;

/// Says that a directory is a sandbox's: everything in it may be removed.
const MARKER: &str = ".peristyle-sandbox";

/// The directory of one sandbox.
#[derive(Clone, Debug)]
pub struct State {
    dir: PathBuf,
}

/// What was chosen when the sandbox was created, kept in `settings.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Settings {
    pub cluster: Kind,
    /// Whether `up` came to its end.
    pub ready: bool,
}

/// Which kind of cluster a state directory stands for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// Control plane, node and network in a network namespace of their own.
    Full { network: Network, published: Vec<u16> },
    /// etcd, kube-apiserver and kube-controller-manager on the loopback device.
    ControlPlane { ports: Ports },
    /// A cluster that somebody else made.
    Existing { kubeconfig: PathBuf, context: Option<String> },
}

/// The ports of a control plane.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    pub apiserver: u16,
    pub etcd: u16,
    pub etcd_peer: u16,
}

impl Kind {
    /// The address and port at which kube-apiserver answers; none for a
    /// cluster that only its kubeconfig describes.
    #[must_use]
    pub fn apiserver(&self) -> Option<(Ipv4Addr, u16)> {
        match self {
            Self::Full { network, .. } => Some((network.node(), 6443)),
            Self::ControlPlane { ports } => Some((Ipv4Addr::LOCALHOST, ports.apiserver)),
            Self::Existing { .. } => None,
        }
    }
}

impl State {
    /// The sandbox in `dir`, which need not exist yet.
    ///
    /// # Errors
    /// When `dir` is too long to hold Unix sockets or cannot be made absolute.
    pub fn at(dir: &Path) -> Result<Self> {
        let dir = std::path::absolute(dir)?;
        if dir.as_os_str().len() > LONGEST_STATE_DIR {
            bail!(
                "state directory {} has more than {LONGEST_STATE_DIR} bytes, too many for Unix sockets in it: choose a shorter one with --state-dir",
                dir.display()
            );
        }
        Ok(Self { dir })
    }

    /// The sandbox that `PERISTYLE_STATE_DIR` names, else the user's full sandbox.
    ///
    /// # Errors
    /// When neither the variable nor a home directory is set.
    pub fn current() -> Result<Self> {
        match std::env::var_os(STATE_DIR_VARIABLE) {
            Some(dir) => Self::at(Path::new(&dir)),
            None => Self::at(&user_dir("XDG_STATE_HOME", ".local/state")?.join("sandbox")),
        }
    }

    /// The user's control plane without nodes, which can run beside the full sandbox.
    ///
    /// # Errors
    /// When no home directory is set.
    pub fn control_plane() -> Result<Self> {
        Self::at(&user_dir("XDG_STATE_HOME", ".local/state")?.join("control-plane"))
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    #[must_use]
    pub fn path(&self, relative: &str) -> PathBuf {
        self.dir.join(relative)
    }

    /// [`Self::path`] as text, for flags and configuration files.
    #[must_use]
    pub fn text(&self, relative: &str) -> String {
        self.path(relative).display().to_string()
    }

    /// The log of one component.
    #[must_use]
    pub fn log(&self, component: &str) -> PathBuf {
        self.dir.join("logs").join(format!("{component}.log"))
    }

    /// The path of a program of the cluster, such as `kubectl`.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.dir.join("bin").join(name)
    }

    /// Six characters that tell this sandbox's devices, tables and cgroups
    /// from those of another state directory.
    #[must_use]
    pub fn id(&self) -> String {
        let digest = crate::images::digest(self.dir.as_os_str().as_encoded_bytes());
        digest[..6].to_owned()
    }

    /// What was chosen at `up`; none when nothing is set up here.
    ///
    /// # Errors
    /// When the file exists and cannot be read or understood.
    pub fn settings(&self) -> Result<Option<Settings>> {
        let path = self.path("settings.json");
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let settings = serde_json::from_str(&text).with_context(|| {
            format!("cannot understand {}: `cargo sandbox down` removes it", path.display())
        })?;
        Ok(Some(settings))
    }

    /// Writes what was chosen at `up`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn save(&self, settings: &Settings) -> Result<()> {
        self.write("settings.json", serde_json::to_string_pretty(settings)?)?;
        Ok(())
    }

    /// Writes a file of the sandbox and the directories above it.
    ///
    /// # Errors
    /// When a directory or the file cannot be written.
    pub fn write(&self, relative: &str, content: impl AsRef<[u8]>) -> Result<PathBuf> {
        let path = self.path(relative);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        }
        fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// The port of 127.0.0.1 that leads to the edge.
    ///
    /// # Errors
    /// When no sandbox with a node is up, or it publishes no port.
    pub fn edge_port(&self) -> Result<u16> {
        match self.settings()?.map(|settings| settings.cluster) {
            Some(Kind::Full { published, .. }) if !published.is_empty() => Ok(published[0]),
            Some(Kind::Full { .. }) => bail!(
                "the sandbox that is up publishes no port: run `cargo sandbox down`, then `cargo sandbox demo`"
            ),
            _ => bail!("no sandbox with a node is up in {}: run `cargo sandbox up`", self.dir.display()),
        }
    }

    /// Takes the directory for a sandbox and keeps other sandbox commands off
    /// it until the result is dropped.
    ///
    /// # Errors
    /// When the directory is somebody else's, another command holds the lock,
    /// or it cannot be written.
    pub fn lock(&self) -> Result<File> {
        self.claim()?;
        let file = File::create(self.path("lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => {
                bail!("another sandbox command works on {}: wait for its end", self.dir.display())
            }
            Err(TryLockError::Error(error)) => Err(error).context("cannot lock the state directory"),
        }
    }

    /// Marks a new or empty directory. One that holds anything else is never
    /// touched: `down` removes the whole directory.
    fn claim(&self) -> Result<()> {
        let dir = self.dir.display();
        if self.path(MARKER).exists() {
            return Ok(());
        }
        fs::create_dir_all(&self.dir).with_context(|| format!("cannot create {dir}"))?;
        if fs::read_dir(&self.dir).with_context(|| format!("cannot read {dir}"))?.next().is_some() {
            bail!("{dir} is not empty and no sandbox's: name a new or empty directory with --state-dir");
        }
        self.write(MARKER, "Made by `cargo sandbox`, which removes everything in this directory.\n")?;
        Ok(())
    }

    /// Whether a file of the directory outlives the clearing of what a sandbox left.
    #[must_use]
    pub fn is_kept(name: &std::ffi::OsStr) -> bool {
        name == "lock" || name == MARKER
    }
}

/// The directory for what can be built again but takes long.
///
/// # Errors
/// When no home directory is set or the directory cannot be made.
pub fn cache_dir(part: &str) -> Result<PathBuf> {
    let dir = user_dir("XDG_CACHE_HOME", ".cache")?.join(part);
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    Ok(dir)
}

fn user_dir(variable: &str, below_home: &str) -> Result<PathBuf> {
    let base = match std::env::var_os(variable).filter(|value| !value.is_empty()) {
        Some(base) => PathBuf::from(base),
        None => {
            PathBuf::from(std::env::var_os("HOME").context("HOME is not set: set it or use --state-dir")?)
                .join(below_home)
        }
    };
    Ok(base.join("peristyle"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn state_directories_have_different_ids() {
        let ids: Vec<_> = ["/a/one", "/a/two"].map(|dir| State::at(Path::new(dir)).unwrap().id()).into();
        assert_eq!(ids[0].len(), 6);
        assert_ne!(ids[0], ids[1]);
        assert_eq!(ids[0], State::at(Path::new("/a/one")).unwrap().id());
    }

    #[test]
    fn a_state_directory_too_long_for_sockets_is_refused() {
        let error = State::at(&Path::new("/").join("x".repeat(LONGEST_STATE_DIR))).unwrap_err();
        assert!(error.to_string().contains("--state-dir"), "{error}");
    }

    #[test]
    fn settings_survive_a_round_trip() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::at(dir.path()).unwrap();
        assert!(state.settings().unwrap().is_none());
        let ports = Ports { apiserver: 1, etcd: 2, etcd_peer: 3 };
        state.save(&Settings { cluster: Kind::ControlPlane { ports }, ready: true }).unwrap();
        let read = state.settings().unwrap().unwrap();
        assert_eq!(read.cluster, Kind::ControlPlane { ports });
        assert!(read.ready);
    }

    #[test]
    fn a_second_command_on_a_locked_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::at(dir.path()).unwrap();
        let held = state.lock().unwrap();
        assert!(state.lock().unwrap_err().to_string().contains("another sandbox command"));
        drop(held);
        state.lock().unwrap();
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused_and_untouched() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("thesis"), "years of work").unwrap();
        let error = State::at(dir.path()).unwrap().lock().unwrap_err().to_string();
        assert!(error.contains("--state-dir") && error.contains(dir.path().to_str().unwrap()), "{error}");
        let left: Vec<_> =
            fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["thesis"]);
    }
}
