//! The addresses of a sandbox: one private /16, cut in three.

use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::command;

/// The block that is taken when nothing on the machine overlaps it; the ones
/// before it follow in descending order.
const FIRST_CHOICE: u8 = 213;

/// The addresses of one sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    block: Ipv4Net,
}

impl Network {
    /// Cuts `block` in link, pods and services.
    ///
    /// # Errors
    /// When it is not a /16.
    pub fn new(block: Ipv4Net) -> Result<Self> {
        if block.prefix_len() != 16 || block.trunc() != block {
            bail!(
                "--network {block}: a network of 65536 addresses is needed, such as 10.{FIRST_CHOICE}.0.0/16"
            );
        }
        Ok(Self { block })
    }

    /// The address of the machine on the link to the node.
    #[must_use]
    pub fn host(&self) -> Ipv4Addr {
        self.address(0, 1)
    }

    /// The address of the node, at which kube-apiserver answers.
    #[must_use]
    pub fn node(&self) -> Ipv4Addr {
        self.address(0, 2)
    }

    #[must_use]
    pub fn pods(&self) -> Ipv4Net {
        Ipv4Net::new_assert(self.address(64, 0), 18)
    }

    #[must_use]
    pub fn services(&self) -> Ipv4Net {
        Ipv4Net::new_assert(self.address(128, 0), 18)
    }

    /// The cluster address of DNS.
    #[must_use]
    pub fn dns(&self) -> Ipv4Addr {
        self.address(128, 10)
    }

    fn address(&self, third: u8, fourth: u8) -> Ipv4Addr {
        let [first, second, ..] = self.block.network().octets();
        Ipv4Addr::new(first, second, third, fourth)
    }
}

/// The network to use: the wanted one, else the first that no route of the machine overlaps.
///
/// # Errors
/// When the wanted network overlaps a route, or every candidate does.
pub async fn choose(wanted: Option<Ipv4Net>) -> Result<Network> {
    let routes = command::output(Command::new("ip").args(["-4", "route", "show", "table", "all"])).await?;
    let taken = destinations(&routes);
    let overlap =
        |block: &Ipv4Net| taken.iter().copied().find(|route| route.contains(block) || block.contains(route));
    if let Some(block) = wanted {
        if let Some(route) = overlap(&block) {
            bail!("--network {block} overlaps the route {route} of this machine: choose another");
        }
        return Network::new(block);
    }
    let block = candidates().find(|block| overlap(block).is_none());
    Network::new(
        block
            .context("every network from 10.0.0.0/16 on overlaps a route: name a free one with --network")?,
    )
}

fn candidates() -> impl Iterator<Item = Ipv4Net> {
    (0..=FIRST_CHOICE).rev().map(|second| Ipv4Net::new_assert(Ipv4Addr::new(10, second, 0, 0), 16))
}

/// The destinations of routes, except the default route, which overlaps everything.
fn destinations(routes: &str) -> Vec<Ipv4Net> {
    let destination = |line: &str| {
        let mut words = line.split_ascii_whitespace().peekable();
        // The kinds of routes that stand before the destination.
        words.next_if(|word| {
            matches!(
                *word,
                "local" | "broadcast" | "unreachable" | "blackhole" | "prohibit" | "throw" | "unicast"
            )
        });
        let word = words.next()?;
        word.parse().ok().or_else(|| word.parse::<Ipv4Addr>().ok().map(Ipv4Net::from))
    };
    routes.lines().filter_map(destination).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_pods_and_services_do_not_overlap() {
        let network = Network::new("10.7.0.0/16".parse().unwrap()).unwrap();
        assert_eq!(network.node().to_string(), "10.7.0.2");
        assert!(!network.pods().contains(&network.services()) && !network.pods().contains(&network.node()));
        assert!(network.services().contains(&network.dns()));
    }

    #[test]
    fn a_block_of_another_size_is_refused() {
        for block in ["10.7.0.0/24", "10.7.1.0/16"] {
            let error = Network::new(block.parse().unwrap()).unwrap_err().to_string();
            assert!(error.contains("--network"), "{error}");
        }
    }

    #[test]
    fn destinations_of_every_kind_of_route_are_found() {
        let routes = "default via 192.0.2.1 dev eth0\n192.0.2.0/24 dev eth0 proto kernel\nlocal 10.9.0.1 dev x table local\nbroadcast 10.8.255.255 dev y\n";
        let found: Vec<_> = destinations(routes).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["192.0.2.0/24", "10.9.0.1/32", "10.8.255.255/32"]);
    }
}
