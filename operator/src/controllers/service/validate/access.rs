//! From what is declared to who may connect where.

use std::{collections::BTreeMap, net::IpAddr};

use kube::ResourceExt;
use peristyle_crds::{
    condition::{Reason, types},
    names::SERVICE_LABEL,
    v1alpha1::{
        Service,
        service::{AccessMode, Dependency, Expose, Port, Problem, Protocol, Severity},
    },
};
use url::{Host, Url};

use super::{Observed, env, ports};
use crate::{
    conditions::Finding,
    controllers::service::{observe::ExposeView, peers::EVERY_POD},
};

const DNS_PORT: i32 = 53;

/// Who may connect to the pods, and where they may connect to.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Peers {
    /// Who may connect to them.
    pub inbound: Vec<Rule>,
    /// Where they may connect to.
    pub outbound: Vec<Rule>,
}

/// Peers and the ports of the side that is connected to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rule {
    /// The other side.
    pub peers: Vec<Peer>,
    /// Numbers of containers' ports. Empty: all.
    pub ports: Vec<(Transport, i32)>,
}

/// The other side of a connection.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Peer {
    /// Pods of a namespace that carry these labels; none: all of them.
    Pods {
        /// Namespace.
        namespace: String,
        /// Labels.
        labels: BTreeMap<String, String>,
    },
    /// Addresses.
    Network(String),
    /// Any address, inside the cluster and outside.
    Anywhere,
}

/// What carries a connection.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// The transport of a port.
#[must_use]
pub fn transport(protocol: Protocol) -> Transport {
    match protocol {
        Protocol::Grpc | Protocol::Http | Protocol::Tcp => Transport::Tcp,
        Protocol::Udp => Transport::Udp,
    }
}

/// Who may connect where, unless everything may; and whether those that are
/// called agree.
pub(super) fn access(
    service: &Service,
    observed: &Observed,
    ports: &[Port],
    problems: &mut Vec<Problem>,
) -> (Option<Peers>, Finding) {
    let finding = agreement(service, observed);
    if service.spec.access_mode() == AccessMode::Open {
        return (None, finding);
    }
    let peers =
        Peers { inbound: inbound(service, observed, ports), outbound: outbound(service, observed, problems) };
    (Some(peers), finding)
}

/// Who may connect where, whatever else is wrong with the spec.
#[must_use]
pub fn peers(service: &Service, observed: &Observed) -> Option<Peers> {
    access(service, observed, &ports(service), &mut Vec::new()).0
}

/// Whether every Service of another namespace that is called lists this one.
fn agreement(service: &Service, observed: &Observed) -> Finding {
    let own = service.namespace().unwrap_or_default();
    let is_refused = |dependency: &&Dependency| {
        let Some((namespace, name)) = dependency.namespace.clone().zip(dependency.service.clone()) else {
            return false;
        };
        namespace != own && !observed.dependencies.contains_key(&(namespace, name))
    };
    match service.spec.depends_on.iter().find(is_refused) {
        None => Finding::good(types::ACCESS_VALID, "everything that is called may be called"),
        Some(dependency) => {
            Finding::waiting(types::ACCESS_VALID, Reason::DependencyMissing, absent(service, dependency))
        }
    }
}

/// Of another namespace, what is absent and what is not permitted read the same.
pub(super) fn absent(service: &Service, dependency: &Dependency) -> String {
    let own = service.namespace().unwrap_or_default();
    let namespace = dependency.namespace.as_ref().unwrap_or(&own);
    let name = dependency.service.as_deref().unwrap_or_default();
    let what = format!("Service {namespace}/{name}, on which this one depends as {},", dependency.name);
    if *namespace == own {
        return format!("{what} does not exist");
    }
    format!(
        "{what} does not exist or does not list service {} of namespace {own} in its spec.access.inbound",
        service.name_any()
    )
}

fn pods_of(namespace: &str, service: &str) -> Peer {
    let labels = [(SERVICE_LABEL.to_owned(), service.to_owned())].into();
    Peer::Pods { namespace: namespace.to_owned(), labels }
}

fn inbound(service: &Service, observed: &Observed, ports: &[Port]) -> Vec<Rule> {
    let own = service.namespace().unwrap_or_default();
    let number = |port: &Port| (transport(port.protocol()), port.port);
    let mut callers: Vec<Peer> = observed.callers.iter().map(|name| pods_of(&own, name)).collect();
    for listed in service.spec.access.iter().flat_map(|access| &access.inbound) {
        let namespace = listed.namespace.as_deref().unwrap_or(&own);
        let peer = match listed.service.as_str() {
            EVERY_POD => Peer::Pods { namespace: namespace.to_owned(), labels: BTreeMap::new() },
            name => pods_of(namespace, name),
        };
        if !callers.contains(&peer) {
            callers.push(peer);
        }
    }
    let mut rules = Vec::new();
    if !callers.is_empty() {
        rules.push(Rule { peers: callers, ports: ports.iter().map(number).collect() });
    }
    for expose in &service.spec.expose {
        let Some(edge) = edge_of(expose, observed) else { continue };
        let named = expose.port.as_ref();
        let port = ports.iter().find(|port| named.is_none_or(|name| port.name == *name));
        let rule = Rule { peers: vec![edge.clone()], ports: port.map(number).into_iter().collect() };
        if !rule.ports.is_empty() && !rules.contains(&rule) {
            rules.push(rule);
        }
    }
    rules
}

/// The pods of the edge that serves an entry.
fn edge_of<'a>(expose: &Expose, observed: &'a Observed) -> Option<&'a Peer> {
    match observed.exposes.get(&expose.name)? {
        ExposeView::Refused(_) => None,
        ExposeView::Served { class, .. } => observed.edges.get(class),
    }
}

fn outbound(service: &Service, observed: &Observed, problems: &mut Vec<Problem>) -> Vec<Rule> {
    let mut rules = vec![dns()];
    let mut add = |peers: Vec<Peer>, ports: Vec<(Transport, i32)>| {
        let rule = Rule { peers, ports };
        if !rules.contains(&rule) {
            rules.push(rule);
        }
    };
    let own = service.namespace().unwrap_or_default();
    for binding in &service.spec.databases {
        let server = observed.databases.get(&binding.database).and_then(|view| view.server.as_ref());
        if let Some((host, port)) = server
            && let Some(peer) = peer_of(host, &own)
        {
            add(vec![peer], vec![(Transport::Tcp, *port)]);
        }
    }
    for (index, dependency) in service.spec.depends_on.iter().enumerate() {
        if let Some(url) = &dependency.url {
            match destination(url, &own) {
                Destination::Own => {}
                Destination::Peer(peer, port) => {
                    if peer == Peer::Anywhere {
                        problems.push(any_address(index, url, port));
                    }
                    add(vec![peer], vec![(Transport::Tcp, port)]);
                }
                Destination::Unknown => problems.push(no_address(index, url)),
            }
            continue;
        }
        let namespace = dependency.namespace.clone().unwrap_or_else(|| own.clone());
        let name = dependency.service.clone().unwrap_or_default();
        let peer = pods_of(&namespace, &name);
        if let Some(target) = observed.dependencies.get(&(namespace, name)) {
            add(vec![peer], vec![(transport(target.protocol), target.container_port)]);
        }
    }
    if let Some(verification) = env::verification(service, observed)
        && let Destination::Peer(peer, port) = destination(&verification.jwks_url, &own)
    {
        add(vec![peer], vec![(Transport::Tcp, port)]);
    }
    for outbound in service.spec.access.iter().flat_map(|access| &access.outbound) {
        let both = |port: &i32| [(Transport::Tcp, *port), (Transport::Udp, *port)];
        add(vec![Peer::Network(outbound.cidr.clone())], outbound.ports.iter().flat_map(both).collect());
    }
    rules
}

/// The cluster's DNS, under the label that all distributions give it, and the
/// address of the cache that runs on each node.
fn dns() -> Rule {
    let labels = [("k8s-app".to_owned(), "kube-dns".to_owned())].into();
    Rule {
        peers: vec![
            Peer::Pods { namespace: "kube-system".to_owned(), labels },
            Peer::Network("169.254.20.10/32".to_owned()),
        ],
        ports: vec![(Transport::Udp, DNS_PORT), (Transport::Tcp, DNS_PORT)],
    }
}

#[derive(Debug, Eq, PartialEq)]
enum Destination {
    /// The pod itself.
    Own,
    Peer(Peer, i32),
    /// The text names no host or no port.
    Unknown,
}

fn destination(text: &str, own: &str) -> Destination {
    let Ok(url) = Url::parse(text) else {
        return Destination::Unknown;
    };
    let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
        return Destination::Unknown;
    };
    let host = match host {
        Host::Domain(name) => name.to_owned(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    };
    peer_of(&host, own).map_or(Destination::Own, |peer| Destination::Peer(peer, i32::from(port)))
}

/// The other side behind a host name as a pod of namespace `own` resolves it; `None` for the pod itself. A
/// NetworkPolicy knows no names: one outside the cluster may be any address.
fn peer_of(host: &str, own: &str) -> Option<Peer> {
    let host = host.trim_end_matches('.').to_ascii_lowercase();
    if let Ok(address) = host.parse::<IpAddr>() {
        let length = if address.is_ipv4() { 32 } else { 128 };
        return (!address.is_loopback()).then(|| Peer::Network(format!("{address}/{length}")));
    }
    if host == "localhost" {
        return None;
    }
    let labels: Vec<&str> = host.split('.').collect();
    if labels.len() == 1 {
        return Some(Peer::Pods { namespace: own.to_owned(), labels: BTreeMap::new() });
    }
    let service = labels.iter().position(|label| *label == "svc").filter(|at| *at >= 2);
    let is_local = |at: usize| matches!(labels[at + 1..], [] | ["cluster", "local"]);
    match service.filter(|at| is_local(*at)) {
        Some(at) => Some(Peer::Pods { namespace: labels[at - 1].to_owned(), labels: BTreeMap::new() }),
        None => Some(Peer::Anywhere),
    }
}

fn any_address(index: usize, url: &str, port: i32) -> Problem {
    Problem {
        field: format!("spec.dependsOn[{index}].url"),
        severity: Severity::Warning,
        message: format!(
            "{url}: a NetworkPolicy knows no host names, so port {port} of every address is open to the pods; \
             use an IP address to narrow it"
        ),
    }
}

fn no_address(index: usize, url: &str) -> Problem {
    Problem {
        field: format!("spec.dependsOn[{index}].url"),
        severity: Severity::Warning,
        message: format!(
            "{url} names no host and port, so no connection is opened for it; write a URL or use spec.access.outbound"
        ),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn namespace(name: &str) -> Peer {
        Peer::Pods { namespace: name.to_owned(), labels: BTreeMap::new() }
    }

    #[rstest]
    #[case::address("http://10.1.2.3", Destination::Peer(Peer::Network("10.1.2.3/32".to_owned()), 80))]
    #[case::ipv6("https://[fd00::1]:8443/x", Destination::Peer(Peer::Network("fd00::1/128".to_owned()), 8443))]
    #[case::service(
        "http://pay.billing.svc.cluster.local:8080",
        Destination::Peer(namespace("billing"), 8080)
    )]
    #[case::short_service("http://pay.billing.svc", Destination::Peer(namespace("billing"), 80))]
    #[case::neighbour("http://pay:80", Destination::Peer(namespace("shop"), 80))]
    #[case::outside("https://api.example.com", Destination::Peer(Peer::Anywhere, 443))]
    #[case::lookalike("https://pay.billing.svc.example.com", Destination::Peer(Peer::Anywhere, 443))]
    #[case::itself("http://localhost:9000", Destination::Own)]
    #[case::loopback("http://127.0.0.1:9000", Destination::Own)]
    #[case::scheme_without_a_port("grpc://x", Destination::Unknown)]
    #[case::no_url("payments", Destination::Unknown)]
    fn a_url_opens_no_more_than_a_policy_can_say(#[case] url: &str, #[case] expected: Destination) {
        assert_eq!(destination(url, "shop"), expected);
    }
}
