//! The programs of the cluster, built from the Go modules in `substrate/`.
//!
//! A built program is kept under the hash of everything that decides what it
//! is, so that an unchanged one is never built again.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use futures::future::try_join_all;
use tokio::process::Command;
use tokio::sync::Semaphore;

use crate::command;
use crate::progress::Progress;
use crate::state::{State, cache_dir};

/// The version of Kubernetes that `substrate/kubernetes` requires.
pub const KUBERNETES_VERSION: &str = "v1.35.4";

/// Go runs one compiler per core by itself; a second build fills the gaps
/// while the first one links.
const BUILDS_AT_A_TIME: usize = 2;

/// The names under which the Kubernetes program acts as one of its components.
const KUBERNETES_PROGRAMS: [&str; 8] = [
    "etcd",
    "kubeadm",
    "kube-apiserver",
    "kube-controller-manager",
    "kube-scheduler",
    "kube-proxy",
    "kubelet",
    "kubectl",
];

/// A program that is built from a Go module of `substrate/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    Kubernetes,
    Coredns,
    Traefik,
    Oathkeeper,
    Keto,
    Helm,
}

impl Component {
    /// Every component, the longest build first.
    pub const ALL: [Self; 6] =
        [Self::Kubernetes, Self::Traefik, Self::Coredns, Self::Keto, Self::Oathkeeper, Self::Helm];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kubernetes => "kubernetes",
            Self::Coredns => "coredns",
            Self::Traefik => "traefik",
            Self::Oathkeeper => "oathkeeper",
            Self::Keto => "keto",
            Self::Helm => "helm",
        }
    }

    fn module(self) -> PathBuf {
        crate::workspace().join("e2e/substrate").join(self.name())
    }

    fn linker_flags(self) -> String {
        let version = "k8s.io/component-base/version";
        match self {
            // kubeadm and the API server refuse to work without their version.
            Self::Kubernetes => format!(
                "-s -w -X {version}.gitVersion={KUBERNETES_VERSION} -X {version}.gitMajor=1 -X {version}.gitMinor=35"
            ),
            _ => "-s -w".to_owned(),
        }
    }
}

/// The paths of built programs.
pub type Programs = BTreeMap<Component, PathBuf>;

/// Builds what is not in the cache and returns where the programs are.
///
/// # Errors
/// When Go is missing or too old, or a build fails.
pub async fn build(components: &[Component], progress: &Progress) -> Result<Programs> {
    let turn = Arc::new(Semaphore::new(BUILDS_AT_A_TIME));
    let builds = components.iter().map(|&component| {
        let turn = Arc::clone(&turn);
        async move {
            let _turn = turn.acquire().await?;
            anyhow::Ok((component, build_one(component, progress).await?))
        }
    });
    Ok(try_join_all(builds).await?.into_iter().collect())
}

async fn build_one(component: Component, progress: &Progress) -> Result<PathBuf> {
    let name = component.name();
    let module = component.module();
    let go_mod =
        fs::read_to_string(module.join("go.mod")).with_context(|| format!("no Go module for {name}"))?;
    let go_version = go_version(&module, &go_mod).await?;
    let flags = component.linker_flags();
    let sources = ["go.mod", "go.sum", "main.go"].map(|file| fs::read(module.join(file)).unwrap_or_default());
    let fingerprint = fingerprint(&sources, &[&go_version, &flags, std::env::consts::ARCH]);

    let cache = cache_dir("substrate")?;
    let program = cache.join(format!("{name}-{fingerprint}"));
    if program.exists() {
        return Ok(program);
    }
    progress.say(&format!("{name}: building from source with {go_version}"));
    // Built under another name first: an interrupted build leaves nothing
    // that looks finished.
    let unfinished = cache.join(format!("{name}-{fingerprint}.{}", std::process::id()));
    let mut go = go(&module);
    go.args(["build", "-trimpath", "-buildvcs=false", "-ldflags", &flags, "-o"]).arg(&unfinished);
    go.arg(main_package(&go_mod));
    let log = cache.join(format!("{name}.log"));
    let built = progress.step(&format!("build {name}"), command::logged(&mut go, &log)).await;
    if let Err(error) = built {
        let _ = fs::remove_file(&unfinished);
        return Err(error.context(format!(
            "cannot build {name}: the Go modules must be reachable (see GOPROXY), then run the command again"
        )));
    }
    fs::rename(&unfinished, &program)?;
    Ok(program)
}

fn go(module: &Path) -> Command {
    let mut go = Command::new("go");
    go.current_dir(module).env("CGO_ENABLED", "0").env("GOWORK", "off");
    go
}

async fn go_version(module: &Path, go_mod: &str) -> Result<String> {
    let wanted = directive(go_mod, "go").context("go.mod has no go line")?;
    let version = command::output(go(module).args(["env", "GOVERSION"])).await.with_context(|| {
        format!("Go {wanted} or newer is needed to build the cluster from source: install it and put `go` on the PATH")
    })?;
    let version = version.trim().to_owned();
    if minor_version(version.trim_start_matches("go")) < minor_version(wanted) {
        bail!("Go {wanted} or newer is needed to build the cluster from source, but `go` is {version}");
    }
    Ok(version)
}

fn minor_version(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(|part| part.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// The package to build: the module's `tool`, else the module's own main package.
fn main_package(go_mod: &str) -> &str {
    directive(go_mod, "tool").unwrap_or(".")
}

fn directive<'a>(go_mod: &'a str, name: &str) -> Option<&'a str> {
    go_mod.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).map(str::trim)
}

fn fingerprint(files: &[Vec<u8>], words: &[&str]) -> String {
    // Hashes of hashes, so that moving bytes from one file to the next shows.
    let parts = files.iter().map(|file| crate::images::digest(file));
    let parts: Vec<_> = parts.chain(words.iter().map(|&word| word.to_owned())).collect();
    crate::images::digest(parts.join("\n").as_bytes())[..12].to_owned()
}

/// Links the programs of the cluster into the sandbox's `bin`.
///
/// # Errors
/// When a link cannot be written.
pub fn link(state: &State, programs: &Programs) -> Result<()> {
    fs::create_dir_all(state.path("bin"))?;
    for (component, program) in programs {
        match component {
            Component::Kubernetes => {
                for name in KUBERNETES_PROGRAMS {
                    replace_link(program, &state.program(name))?;
                }
            }
            Component::Helm => replace_link(program, &state.program("helm"))?,
            _ => {}
        }
    }
    Ok(())
}

/// Links every program by its name into one folder of the cache and returns
/// the folder, for tests that start a program by themselves.
///
/// # Errors
/// When a link cannot be written.
pub fn folder(programs: &Programs) -> Result<String> {
    let folder = cache_dir("bin")?;
    for (component, program) in programs {
        replace_link(program, &folder.join(component.name()))?;
    }
    Ok(folder.display().to_string())
}

fn replace_link(target: &Path, link: &Path) -> Result<()> {
    if link.is_symlink() {
        fs::remove_file(link)?;
    }
    symlink(target, link).with_context(|| format!("cannot link {}", link.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_component_has_a_module_with_sums() {
        for component in Component::ALL {
            let module = component.module();
            assert!(module.join("go.sum").exists(), "{}", component.name());
            let go_mod = fs::read_to_string(module.join("go.mod")).unwrap();
            let package = main_package(&go_mod);
            assert_eq!(package == ".", module.join("main.go").exists(), "{package}");
        }
    }

    #[test]
    fn the_kubernetes_version_is_the_one_that_the_module_requires() {
        let go_mod = fs::read_to_string(Component::Kubernetes.module().join("go.mod")).unwrap();
        assert!(go_mod.contains(&format!("k8s.io/kubernetes {KUBERNETES_VERSION}")));
    }

    #[test]
    fn the_tool_of_a_module_is_its_main_package() {
        assert_eq!(main_package("module a\n\ngo 1.26\n\ntool example.org/b/cmd/b\n"), "example.org/b/cmd/b");
        assert_eq!(main_package("module a\n\ngo 1.26\n"), ".");
    }

    #[test]
    fn a_fingerprint_depends_on_every_file_and_word() {
        let base = fingerprint(&[b"ab".to_vec(), b"c".to_vec()], &["go1.26"]);
        assert_eq!(base, fingerprint(&[b"ab".to_vec(), b"c".to_vec()], &["go1.26"]));
        assert_ne!(base, fingerprint(&[b"a".to_vec(), b"bc".to_vec()], &["go1.26"]));
        assert_ne!(base, fingerprint(&[b"ab".to_vec(), b"c".to_vec()], &["go1.27"]));
    }

    #[test]
    fn go_versions_compare_by_number_and_not_by_text() {
        assert!(minor_version("1.9.2") < minor_version("1.26"));
        assert!(minor_version("1.26.8") >= minor_version("1.26"));
        assert!(minor_version("2.0") > minor_version("1.26"));
    }
}
