//! The NetworkPolicy of the pods, of hooks too.

use k8s_openapi::{
    api::networking::v1::{
        IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyIngressRule, NetworkPolicyPeer,
        NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

use crate::{
    controllers::service::validate::access::{Peer, Peers, Rule, Transport},
    metadata::Owner,
};

/// Label that the API server sets on every namespace, so that no tenant can pose as another.
pub const NAMESPACE_LABEL: &str = "kubernetes.io/metadata.name";

/// Denies what `peers` does not allow. Probes of the kubelet are always allowed.
#[must_use]
pub fn network_policy(owner: &Owner, peers: &Peers) -> NetworkPolicy {
    let Peers { inbound, outbound } = peers;
    // A rule that names nobody would allow everybody.
    let is_about_somebody = |rule: &&Rule| !rule.peers.is_empty();
    let ingress = inbound
        .iter()
        .filter(is_about_somebody)
        .map(|rule| NetworkPolicyIngressRule { from: sides(rule), ports: ports(rule) });
    let egress = outbound
        .iter()
        .filter(is_about_somebody)
        .map(|rule| NetworkPolicyEgressRule { to: sides(rule), ports: ports(rule) });
    NetworkPolicy {
        metadata: owner.child(&*owner.name),
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(LabelSelector {
                // Not the instance: pods of hooks hold credentials too.
                match_labels: Some([(owner.label.to_owned(), owner.name.clone())].into()),
                match_expressions: None,
            }),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: Some(ingress.collect()),
            egress: Some(egress.collect()),
        }),
    }
}

/// `None` means everybody.
fn sides(rule: &Rule) -> Option<Vec<NetworkPolicyPeer>> {
    (!rule.peers.contains(&Peer::Anywhere)).then(|| rule.peers.iter().map(peer).collect())
}

fn peer(peer: &Peer) -> NetworkPolicyPeer {
    let selector = |labels| Some(LabelSelector { match_labels: Some(labels), match_expressions: None });
    match peer {
        Peer::Pods { namespace, labels } => NetworkPolicyPeer {
            namespace_selector: selector([(NAMESPACE_LABEL.to_owned(), namespace.clone())].into()),
            pod_selector: (!labels.is_empty()).then(|| selector(labels.clone())).flatten(),
            ip_block: None,
        },
        Peer::Network(cidr) => NetworkPolicyPeer {
            ip_block: Some(IPBlock { cidr: cidr.clone(), except: None }),
            ..NetworkPolicyPeer::default()
        },
        Peer::Anywhere => NetworkPolicyPeer::default(),
    }
}

fn ports(rule: &Rule) -> Option<Vec<NetworkPolicyPort>> {
    let port = |(transport, number): &(Transport, i32)| NetworkPolicyPort {
        protocol: Some(match transport {
            Transport::Tcp => "TCP".to_owned(),
            Transport::Udp => "UDP".to_owned(),
        }),
        port: Some(IntOrString::Int(*number)),
        end_port: None,
    };
    (!rule.ports.is_empty()).then(|| rule.ports.iter().map(port).collect())
}
