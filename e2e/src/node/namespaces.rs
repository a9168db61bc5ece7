//! The node's network namespace and its link to the machine.
//!
//! The machine itself gets one device, two routes over it, and one packet
//! filter table that leads published ports of 127.0.0.1 to the node.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context, Result, bail};
use tokio::process::Command;

use super::Node;
use crate::command;
use crate::state::State;

/// The name of the sandbox's device, table, network namespace and cgroup.
#[must_use]
pub fn name(state: &State) -> String {
    // Device names have at most 15 characters.
    format!("peri-{}", state.id())
}

/// The file that stands for the network namespace. It is not in `/run/netns`,
/// where making the first one leaves a mount behind.
#[must_use]
pub fn path(state: &State) -> String {
    state.text("netns")
}

/// Makes the namespace, the link and the way to published ports.
///
/// # Errors
/// When one of the steps is refused.
pub async fn create(node: &Node<'_>, published: &[u16]) -> Result<()> {
    let Node { state, network } = node;
    let name = name(state);
    let (host, pods, services) = (network.host(), network.pods(), network.services());
    let address = network.node();
    let namespace = path(state);
    state.write("netns", "")?;
    command::output(Command::new("unshare").arg(format!("--net={namespace}")).arg("true")).await?;
    let add = ["link", "add", &name, "type", "veth", "peer", "name", "eth0", "netns", &namespace];
    command::output(Command::new("ip").args(add)).await?;
    for line in [
        format!("address add {host}/24 dev {name}"),
        format!("link set {name} up"),
        format!("route add {pods} via {address} dev {name}"),
        format!("route add {services} via {address} dev {name}"),
    ] {
        command::output(Command::new("ip").args(line.split(' '))).await?;
    }
    for line in [
        "ip link set lo up".to_owned(),
        "ip link set eth0 up".to_owned(),
        format!("ip address add {address}/24 dev eth0"),
        // kubelet looks for a default route. It ends at the machine, where
        // nothing forwards: the cluster does not reach out.
        format!("ip route add default via {host}"),
        "sysctl --quiet --write net.ipv4.ip_forward=1".to_owned(),
    ] {
        command::output(&mut inside(state, &line)).await?;
    }
    if !published.is_empty() {
        // Packets from 127.0.0.1 may leave by this device only.
        let setting = format!("/proc/sys/net/ipv4/conf/{name}/route_localnet");
        fs::write(&setting, "1").with_context(|| format!("cannot write {setting}"))?;
        let rules = publish_rules(&name, address, published);
        command::output_with_input(Command::new("nft").args(["--file", "-"]), Some(&rules)).await?;
    }
    Ok(())
}

/// A command that runs in the network namespace; spaces separate its arguments.
#[must_use]
pub fn inside(state: &State, line: &str) -> Command {
    let mut nsenter = Command::new("nsenter");
    nsenter.arg(format!("--net={}", path(state))).args(line.split(' '));
    nsenter
}

fn publish_rules(name: &str, node: Ipv4Addr, ports: &[u16]) -> String {
    let ports = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    format!(
        "table ip {name} {{
  chain output {{
    type nat hook output priority -100; policy accept;
    ip daddr 127.0.0.1 tcp dport {{ {ports} }} dnat to {node};
  }}
  chain postrouting {{
    type nat hook postrouting priority 100; policy accept;
    ip saddr 127.0.0.0/8 oifname \"{name}\" masquerade;
  }}
}}
"
    )
}

/// Fails when a port of 127.0.0.1 is taken, naming who has it.
///
/// # Errors
/// When one is taken.
pub async fn check_ports(ports: &[u16]) -> Result<()> {
    for &port in ports {
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_err() {
            let filter = format!("sport = :{port}");
            let sockets =
                command::output(Command::new("ss").args(["-Hltnp", &filter])).await.unwrap_or_default();
            let owner = process_of(&sockets).unwrap_or_else(|| "a process of another user".to_owned());
            bail!(
                "port {port} of 127.0.0.1 is taken by {owner}: end it, or name other ports with --publish (none: `--publish ''`)"
            );
        }
    }
    Ok(())
}

/// `name (pid 12)` from a line of `ss -p`.
fn process_of(sockets: &str) -> Option<String> {
    let (_, rest) = sockets.split_once("users:((\"")?;
    let (name, rest) = rest.split_once('"')?;
    let pid: String = rest.split_once("pid=")?.1.chars().take_while(char::is_ascii_digit).collect();
    Some(format!("{name} (pid {pid})"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_behind_a_port_is_named() {
        let line = r#"LISTEN 0 5 127.0.0.1:8080 0.0.0.0:* users:(("python3",pid=4711,fd=3))"#;
        assert_eq!(process_of(line).as_deref(), Some("python3 (pid 4711)"));
        assert_eq!(process_of("LISTEN 0 5 127.0.0.1:8080 0.0.0.0:*"), None);
    }

    #[tokio::test]
    async fn a_taken_port_is_refused_with_its_number() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let error = check_ports(&[port]).await.unwrap_err().to_string();
        assert!(error.contains(&format!("port {port} of 127.0.0.1")), "{error}");
        drop(listener);
        check_ports(&[port]).await.unwrap();
    }

    #[test]
    fn only_published_ports_of_the_loopback_address_lead_to_the_node() {
        let rules = publish_rules("peri-1", Ipv4Addr::new(10, 7, 0, 2), &[8080, 8443]);
        assert!(rules.contains("ip daddr 127.0.0.1 tcp dport { 8080, 8443 } dnat to 10.7.0.2;"), "{rules}");
        assert!(rules.contains("oifname \"peri-1\" masquerade"), "{rules}");
    }
}
