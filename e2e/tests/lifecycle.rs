//! What a sandbox leaves on the machine, seen from outside: the real command
//! in a state directory of its own. A node needs root, and so do these tests.

#![allow(clippy::unwrap_used, reason = "what a test cannot do fails the test")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use e2e::control_plane::ControlPlane;
use k8s_openapi::api::core::v1::Namespace;
use kube::Api;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use tempfile::TempDir;

/// The tests look at the whole machine.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The longest that a condition may take, on a machine that also builds.
const PATIENCE: Duration = Duration::from_mins(5);

/// What of the machine a sandbox may change while it runs, and must restore.
#[derive(Debug, PartialEq, Eq)]
struct Machine {
    devices: BTreeSet<String>,
    mounts: BTreeSet<String>,
    tables: BTreeSet<String>,
    routes: BTreeSet<String>,
    cgroups: BTreeSet<String>,
    directories: BTreeSet<String>,
    settings: Vec<String>,
}

impl Machine {
    fn now() -> Self {
        let directories = ["/run/netns", "/run/containerd", "/var/lib/kubelet", "/var/lib/cni"];
        let settings =
            ["vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops", "net/ipv4/ip_forward"];
        Self {
            devices: names("/sys/class/net"),
            mounts: lines(&fs::read_to_string("/proc/mounts").unwrap()),
            tables: lines(&stdout(Command::new("nft").args(["list", "tables"]))),
            routes: lines(&stdout(Command::new("ip").args(["-4", "route", "show"]))),
            cgroups: cgroups(),
            directories: directories
                .iter()
                .filter(|d| Path::new(d).exists())
                .map(ToString::to_string)
                .collect(),
            settings: settings
                .iter()
                .map(|s| fs::read_to_string(format!("/proc/sys/{s}")).unwrap())
                .collect(),
        }
    }
}

fn names(dir: &str) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap().flatten();
    entries.map(|entry| entry.file_name().into_string().unwrap()).collect()
}

fn lines(text: &str) -> BTreeSet<String> {
    text.lines().map(str::to_owned).collect()
}

fn stdout(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn cgroups() -> BTreeSet<String> {
    let root = "/sys/fs/cgroup";
    let found = Command::new("find").args([root, "-maxdepth", "2", "-type", "d", "-name", "peri-*"]).output();
    lines(&String::from_utf8(found.unwrap().stdout).unwrap())
}

/// Processes with `text` in their command line.
fn processes_of(text: &str) -> Vec<i32> {
    let pids = names("/proc").into_iter().filter_map(|name| name.parse::<i32>().ok());
    let mentions = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(text)
    };
    pids.filter(mentions).collect()
}

/// A state directory; what runs in it ends with the test.
struct Sandbox {
    dir: TempDir,
}

impl Sandbox {
    fn new() -> Self {
        Self { dir: tempfile::Builder::new().prefix("peristyle-").tempdir().unwrap() }
    }

    fn path(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_sandbox"));
        command.args(["--state-dir", self.path()]).args(arguments);
        command
    }

    /// Runs a command that must succeed, and returns what it reported.
    fn run(&self, arguments: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.command(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
        assert!(status.success(), "{arguments:?} ended with {status}:\n{said}");
        said
    }

    fn kubectl(&self, arguments: &str) -> String {
        let mut kubectl = Command::new(self.dir.path().join("bin/kubectl"));
        stdout(kubectl.arg("--kubeconfig").arg(self.dir.path().join("kubeconfig")).args(arguments.split(' ')))
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // Asserted on by the tests; here it only cleans up after a failed one.
        let _ = self.command(&["down"]).output();
    }
}

fn assert_nothing_is_left(sandbox: &Sandbox, before: &Machine) {
    assert_eq!(processes_of(sandbox.path()), Vec::<i32>::new(), "processes are left");
    assert_eq!(&Machine::now(), before, "the machine is not as it was");
}

fn as_root_and_alone() -> MutexGuard<'static, ()> {
    assert!(geteuid().is_root(), "a node needs root: run this test as root");
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A port of the loopback address that nobody listens on now.
fn free_port() -> String {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    listener.local_addr().unwrap().port().to_string()
}

#[test]
fn a_full_sandbox_comes_up_survives_the_death_of_its_processes_and_leaves_nothing() {
    let _alone = as_root_and_alone();
    let before = Machine::now();
    let sandbox = Sandbox::new();
    let port = free_port();
    let up = ["up", "--publish", &port];
    sandbox.run(&up);
    assert!(sandbox.kubectl("get nodes").contains(" Ready "));

    let started = Instant::now();
    let processes = processes_of(sandbox.path());
    sandbox.run(&up);
    assert!(started.elapsed() < Duration::from_secs(3), "a second up took {:?}", started.elapsed());
    assert_eq!(processes_of(sandbox.path()), processes, "a second up changed something");

    for pid in processes {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    let said = sandbox.run(&up);
    assert!(said.contains("cleared") && said.contains("stale pid files"), "{said}");
    assert!(sandbox.kubectl("get nodes").contains(" Ready "));
    assert!(sandbox.kubectl("-n kube-system get deployment coredns").contains("1/1"));

    sandbox.run(&["down"]);
    assert!(!sandbox.dir.path().exists());
    assert_nothing_is_left(&sandbox, &before);
}

#[test]
fn a_directory_with_somebodys_files_is_neither_used_nor_removed() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let sandbox = Sandbox::new();
    let thesis = sandbox.dir.path().join("thesis");
    fs::write(&thesis, "years of work").unwrap();
    for action in [vec!["up", "--control-plane"], vec!["down"], vec!["demo"]] {
        let output = sandbox.command(&action).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("--state-dir"), "{action:?}: {said}");
        assert_eq!(names(sandbox.path()), BTreeSet::from(["thesis".to_owned()]), "{action:?}");
    }
}

#[test]
fn an_interrupted_up_leaves_nothing_but_logs() {
    let _alone = as_root_and_alone();
    let before = Machine::now();
    let sandbox = Sandbox::new();
    let up = sandbox.command(&["up", "--publish", ""]).stderr(Stdio::piped()).spawn().unwrap();
    let running = || sandbox.dir.path().join("pids/kube-apiserver.json").exists();
    wait_until("kube-apiserver is started", running);
    kill(Pid::from_raw(i32::try_from(up.id()).unwrap()), Signal::SIGINT).unwrap();
    let said = end(up);
    assert!(said.contains("interrupted"), "{said}");
    assert_nothing_is_left(&sandbox, &before);
    assert!(sandbox.dir.path().join("logs/kube-apiserver.log").exists());
}

#[test]
fn a_control_plane_serves_and_leaves_nothing() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let sandbox = Sandbox::new();
    sandbox.run(&["up", "--control-plane"]);
    assert!(sandbox.kubectl("get --raw /readyz").contains("ok"));
    assert!(sandbox.run(&["status"]).contains("kube-apiserver"));
    assert!(fs::read_to_string(sandbox.dir.path().join("logs/audit.log")).unwrap().contains("/readyz"));
    sandbox.run(&["down"]);
    assert_eq!(processes_of(sandbox.path()), Vec::<i32>::new(), "processes are left");
    assert!(!sandbox.dir.path().exists());
}

#[test]
fn a_cluster_that_exists_is_used_and_left_alone() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let [existing, adopting] = [Sandbox::new(), Sandbox::new()];
    existing.run(&["up", "--control-plane"]);
    let processes = processes_of(existing.path());
    let kubeconfig = existing.dir.path().join("kubeconfig");
    // Its own context is not the current one of the file.
    let several = adopting.dir.path().with_extension("kubeconfig");
    let text = fs::read_to_string(&kubeconfig).unwrap();
    let own = existing.kubectl("config current-context");
    let current = format!("current-context: {}", own.trim());
    assert!(text.contains(&current), "{text}");
    fs::write(&several, text.replace(&current, "current-context: elsewhere")).unwrap();
    let up = ["up", "--kubeconfig", several.to_str().unwrap(), "--context", own.trim()];
    adopting.run(&up);
    assert_eq!(adopting.run(&["kubeconfig"]).trim(), several.to_str().unwrap());
    assert!(adopting.run(&["status"]).contains("existing cluster"));
    assert!(adopting.run(&up).contains("up already"), "a second up did something");

    let output = adopting.command(&["up", "--control-plane"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("another cluster is up"), "{said}");

    adopting.run(&["down"]);
    assert!(!adopting.dir.path().exists());
    fs::remove_file(several).unwrap();
    assert_eq!(processes_of(existing.path()), processes, "the cluster was not left alone");
    assert!(existing.kubectl("get --raw /readyz").contains("ok"));
    existing.run(&["down"]);
}

#[test]
fn a_context_that_does_not_exist_is_named() {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let [existing, adopting] = [Sandbox::new(), Sandbox::new()];
    existing.run(&["up", "--control-plane"]);
    let kubeconfig = existing.dir.path().join("kubeconfig");
    let arguments = ["up", "--kubeconfig", kubeconfig.to_str().unwrap(), "--context", "elsewhere"];
    let output = adopting.command(&arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("elsewhere"), "{said}");
    existing.run(&["down"]);
}

#[tokio::test]
async fn a_control_plane_of_a_test_ends_when_it_is_dropped() {
    let plane = ControlPlane::start().await.unwrap();
    let path = plane.state().dir().to_str().unwrap().to_owned();
    let namespaces: Api<Namespace> = Api::all(plane.client().await.unwrap());
    assert!(namespaces.get("kube-system").await.is_ok());
    drop(plane);
    assert_eq!(processes_of(&path), Vec::<i32>::new(), "processes are left");
    assert!(!Path::new(&path).exists());
}

/// Set for the process that the test below kills.
const HOLD: &str = "PERISTYLE_TEST_HOLD";

#[tokio::test]
async fn a_control_plane_ends_with_a_test_that_is_killed() {
    if std::env::var_os(HOLD).is_some() {
        let plane = ControlPlane::start().await.unwrap();
        println!("\nheld: {}", plane.state().dir().display());
        return std::future::pending().await;
    }
    let mut killed = Command::new(std::env::current_exe().unwrap());
    killed.args(["--exact", "a_control_plane_ends_with_a_test_that_is_killed", "--nocapture"]);
    let mut killed = killed.env(HOLD, "1").stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(killed.stdout.take().unwrap()).lines().map_while(Result::ok);
    let path = lines.find_map(|line| line.strip_prefix("held: ").map(str::to_owned)).unwrap();
    assert!(!processes_of(&format!("{path}/etcd")).is_empty());
    killed.kill().unwrap();
    killed.wait().unwrap();
    wait_until("nothing of it is left", || processes_of(&path).is_empty() && !Path::new(&path).exists());
}

#[test]
fn a_taken_port_is_named_with_the_process_that_has_it() {
    let _alone = as_root_and_alone();
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    let sandbox = Sandbox::new();
    let output = sandbox.command(&["up", "--publish", &port]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains(&format!("port {port}")), "{said}");
    assert!(said.contains(&format!("(pid {})", std::process::id())), "{said}");
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What a process that is expected to fail wrote to its standard error.
fn end(child: Child) -> String {
    let output = child.wait_with_output().unwrap();
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}
