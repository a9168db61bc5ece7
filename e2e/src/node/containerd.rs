//! A containerd of the sandbox's own, beside whatever the machine runs.

use std::fs;

use anyhow::{Context, Result};
use serde_json::json;

use super::namespaces::{name, path};
use super::{Node, leftovers};
use crate::daemon::{self, Identity};
use crate::state::State;

/// Directories that containerd, kubelet and the network plugins use whatever
/// their configuration says. Inside the node they are the sandbox's own.
pub const FIXED_DIRECTORIES: [&str; 3] = ["/run/containerd", "/var/lib/cni", "/var/lib/kubelet"];

/// Kernel settings that kubelet writes unless they have these values. They
/// count for the whole machine, so inside the node they are files.
const KERNEL_SETTINGS: [(&str, &str); 6] = [
    ("kernel/keys/root_maxbytes", "25000000"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
];

/// Makes the node's mount namespace: binds pairs of paths up to `--`, then
/// becomes the program that follows.
const ENTER: &str = r#"mount --make-rshared /
while [ "$1" != -- ]; do mount --bind "$1" "$2"; shift 2; done
shift
exec "$@""#;

/// Starts containerd in the node's network namespace and a new mount namespace.
///
/// # Errors
/// When a file cannot be written or the daemon cannot be started.
pub fn start(node: &Node<'_>, pause: &str) -> Result<Identity> {
    let state = node.state;
    state.write("cni/10-peristyle.conflist", plugins(node))?;
    let config = state.write("containerd.toml", config(state, pause, lacks_resource_capability()))?;
    let net = format!("--net={}", path(state));
    let mut command: Vec<String> =
        ["nsenter", &net, "unshare", "--mount", "--propagation=slave", "sh", "-e", "-c", ENTER, "sh"]
            .map(str::to_owned)
            .into();
    for (source, target) in binds(state)? {
        command.extend([source, target]);
    }
    command.extend(["--", "containerd", "--config"].map(str::to_owned));
    command.push(config.display().to_string());
    daemon::start(state, "containerd", &command)
}

fn binds(state: &State) -> Result<Vec<(String, String)>> {
    let mut binds = Vec::new();
    for directory in FIXED_DIRECTORIES {
        leftovers::create_mount_point(state, directory)?;
        let own = state.path("node").join(directory.trim_start_matches('/'));
        fs::create_dir_all(&own).with_context(|| format!("cannot create {}", own.display()))?;
        binds.push((own.display().to_string(), directory.to_owned()));
    }
    for (setting, value) in KERNEL_SETTINGS {
        let own = state.write(&format!("node/sys/{setting}"), value)?;
        binds.push((own.display().to_string(), format!("/proc/sys/{setting}")));
    }
    Ok(binds)
}

fn config(state: &State, pause: &str, restrict_oom_score: bool) -> String {
    let path = |relative: &str| json!(state.text(relative)).to_string();
    let cri = r#"plugins."io.containerd.grpc.v1.cri""#;
    format!(
        r#"version = 2
root = {root}
state = {run}
disabled_plugins = ["io.containerd.internal.v1.opt"]

[grpc]
address = {socket}

[{cri}]
sandbox_image = "{pause}"
# Without CAP_SYS_RESOURCE nobody may lower the score below his own.
restrict_oom_score_adj = {restrict_oom_score}
netns_mounts_under_state_dir = true

[{cri}.containerd]
snapshotter = "overlayfs"

[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[{cri}.containerd.runtimes.runc.options]
Root = {runc}
SystemdCgroup = false

[{cri}.cni]
bin_dir = "/usr/lib/cni"
conf_dir = {cni}
"#,
        root = path("containerd/root"),
        run = path("containerd/run"),
        socket = path("containerd.sock"),
        runc = path("runc"),
        cni = path("cni"),
    )
}

/// Every pod has its own link to the node, so that all its packets pass the
/// node's packet filter and no bridge setting of the machine matters.
fn plugins(node: &Node<'_>) -> String {
    json!({
        "cniVersion": "0.4.0",
        "name": name(node.state),
        "plugins": [
            {
                "type": "ptp",
                "ipam": {
                    "type": "host-local",
                    "dataDir": node.state.text("node/addresses"),
                    "ranges": [[{ "subnet": node.network.pods() }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            },
            { "type": "portmap", "capabilities": { "portMappings": true } },
        ],
    })
    .to_string()
}

fn lacks_resource_capability() -> bool {
    fs::read_to_string("/proc/self/status").is_ok_and(|status| !has_resource_capability(&status))
}

fn has_resource_capability(status: &str) -> bool {
    const CAP_SYS_RESOURCE: u64 = 1 << 24;
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
    mask.is_some_and(|mask| mask & CAP_SYS_RESOURCE != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_resource_capability_is_bit_24() {
        assert!(has_resource_capability("CapEff:\t000001ffffffffff\n"));
        assert!(!has_resource_capability("CapEff:\t000001fffeffffff\n"));
    }

    #[test]
    fn everything_containerd_writes_is_below_the_state_directory() {
        let state = State::at(std::path::Path::new("/some/dir")).unwrap();
        let config = config(&state, "peristyle.local/pause:1", true);
        for line in
            ["root = \"/some/dir/", "state = \"/some/dir/", "address = \"/some/dir/", "Root = \"/some/dir/"]
        {
            assert!(config.contains(line), "{line} in {config}");
        }
    }
}
