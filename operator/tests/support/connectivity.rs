//! Which connections NetworkPolicies allow, by the rules of
//! <https://kubernetes.io/docs/concepts/services-networking/network-policies/>.

use std::{collections::BTreeMap, net::IpAddr};

use ipnet::IpNet;
use k8s_openapi::{
    api::networking::v1::{NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};

/// One end of a connection: a pod, or an address outside the cluster.
#[derive(Clone, Debug)]
pub struct End {
    pub namespace: Option<String>,
    pub labels: BTreeMap<String, String>,
    pub address: IpAddr,
}

/// Whether `from` may connect to `port` of `to`.
pub fn is_allowed(policies: &[NetworkPolicy], from: &End, to: &End, protocol: &str, port: i32) -> bool {
    let side = |end: &End, type_: &str| -> Vec<&NetworkPolicy> {
        let of_type = |policy: &&NetworkPolicy| {
            policy.spec.as_ref().is_some_and(|spec| spec.policy_types.iter().flatten().any(|t| t == type_))
        };
        policies.iter().filter(|policy| selects(policy, end)).filter(of_type).collect()
    };
    let egress = side(from, "Egress");
    let leaves = egress.is_empty()
        || egress
            .iter()
            .flat_map(|policy| policy.spec.iter().flat_map(|spec| spec.egress.iter().flatten()))
            .any(|rule| {
                matches_peers(rule.to.as_deref(), to) && matches_ports(rule.ports.as_deref(), protocol, port)
            });
    let ingress = side(to, "Ingress");
    let enters = ingress.is_empty()
        || ingress
            .iter()
            .flat_map(|policy| policy.spec.iter().flat_map(|spec| spec.ingress.iter().flatten()))
            .any(|rule| {
                matches_peers(rule.from.as_deref(), from)
                    && matches_ports(rule.ports.as_deref(), protocol, port)
            });
    leaves && enters
}

fn selects(policy: &NetworkPolicy, end: &End) -> bool {
    policy.metadata.namespace == end.namespace
        && policy.spec.as_ref().is_some_and(|spec| matches(spec.pod_selector.as_ref(), &end.labels))
}

/// An absent or empty list matches everybody.
fn matches_peers(peers: Option<&[NetworkPolicyPeer]>, end: &End) -> bool {
    peers.is_none_or(|peers| peers.is_empty() || peers.iter().any(|peer| matches_peer(peer, end)))
}

fn matches_peer(peer: &NetworkPolicyPeer, end: &End) -> bool {
    if let Some(block) = &peer.ip_block {
        let contains = |cidr: &String| cidr.parse::<IpNet>().is_ok_and(|net| net.contains(&end.address));
        return contains(&block.cidr) && !block.except.iter().flatten().any(contains);
    }
    let Some(namespace) = &end.namespace else {
        return false;
    };
    // Every namespace carries its name as a label, and here nothing else.
    let labels = [("kubernetes.io/metadata.name".to_owned(), namespace.clone())].into();
    assert!(peer.namespace_selector.is_some(), "a peer without a namespace means the policy's own");
    matches(peer.namespace_selector.as_ref(), &labels) && matches(peer.pod_selector.as_ref(), &end.labels)
}

fn matches(selector: Option<&LabelSelector>, labels: &BTreeMap<String, String>) -> bool {
    let Some(selector) = selector else {
        return true;
    };
    assert!(selector.match_expressions.is_none(), "expressions are not understood here");
    selector.match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
}

/// An absent or empty list matches every port.
fn matches_ports(ports: Option<&[NetworkPolicyPort]>, protocol: &str, port: i32) -> bool {
    ports.is_none_or(|ports| {
        ports.is_empty()
            || ports.iter().any(|allowed| {
                allowed.protocol.as_deref().unwrap_or("TCP") == protocol
                    && allowed.port.as_ref().is_none_or(|number| *number == IntOrString::Int(port))
            })
    })
}
