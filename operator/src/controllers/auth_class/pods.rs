//! The ready Oathkeeper pods of a class.

use std::{collections::BTreeSet, sync::Arc};

use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::ResourceExt;
use peristyle_crds::v1alpha1::auth_class::Keto;
use url::Url;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
const DEFAULT_PORT: i32 = 4456;

/// A pod that takes part in decisions.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Pod {
    /// Its name.
    pub name: String,
    /// Address of its API, without a trailing slash.
    pub base: String,
}

/// Whether `slice` belongs to the core Service `service`.
pub fn is_of(slice: &EndpointSlice, service: &str) -> bool {
    slice.labels().get(SERVICE_NAME).is_some_and(|name| name == service)
}

/// The core Services that Keto's addresses name: the first label of each host.
pub fn services_of(keto: &Keto) -> BTreeSet<String> {
    let service = |address: &String| {
        let host = Url::parse(address).ok()?.host_str()?.to_owned();
        Some(host.split('.').next().unwrap_or_default().to_owned())
    };
    [&keto.read_url, &keto.write_url].into_iter().filter_map(service).collect()
}

/// The ready pods behind `service`, sorted.
pub fn ready(slices: &[Arc<EndpointSlice>], service: &str) -> Vec<Pod> {
    let mut pods = Vec::new();
    for slice in slices.iter().filter(|slice| is_of(slice, service)) {
        let port = slice
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_deref() == Some("api"))
            .and_then(|port| port.port)
            .unwrap_or(DEFAULT_PORT);
        for endpoint in &slice.endpoints {
            let conditions = endpoint.conditions.as_ref();
            // Absent means ready, as the API says.
            let is_ready = conditions.and_then(|c| c.ready).unwrap_or(true);
            let Some(address) = endpoint.addresses.first().filter(|_| is_ready) else {
                continue;
            };
            let host = if address.contains(':') { format!("[{address}]") } else { address.clone() };
            pods.push(Pod {
                name: endpoint
                    .target_ref
                    .as_ref()
                    .and_then(|target| target.name.clone())
                    .unwrap_or_else(|| address.clone()),
                base: format!("http://{host}:{port}"),
            });
        }
    }
    pods.sort();
    pods.dedup_by(|one, two| one.name == two.name);
    pods
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(service: &str, port: &str, endpoints: &serde_json::Value) -> Arc<EndpointSlice> {
        Arc::new(
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": service, "labels": {"kubernetes.io/service-name": service}},
                "addressType": "IPv4",
                "ports": [{"name": port, "port": 9}],
                "endpoints": endpoints
            }))
            .unwrap(),
        )
    }

    #[test]
    fn only_ready_pods_of_the_service_count_each_once() {
        let endpoints = serde_json::json!([
            {"addresses": ["10.0.0.2"], "conditions": {"ready": true}, "targetRef": {"kind": "Pod", "name": "b"}},
            {"addresses": ["10.0.0.1"], "targetRef": {"kind": "Pod", "name": "a"}},
            {"addresses": ["10.0.0.3"], "conditions": {"ready": false}, "targetRef": {"kind": "Pod", "name": "c"}}
        ]);
        let slices = [slice("oathkeeper-api", "api", &endpoints), slice("other", "api", &endpoints)];
        let found: Vec<(String, String)> =
            ready(&slices, "oathkeeper-api").into_iter().map(|pod| (pod.name, pod.base)).collect();
        let expected = [("a", "http://10.0.0.1:9"), ("b", "http://10.0.0.2:9")];
        assert_eq!(found, expected.map(|(n, b)| (n.to_owned(), b.to_owned())));
    }

    #[test]
    fn without_a_port_named_api_it_is_4456_and_ipv6_is_bracketed() {
        let endpoints = serde_json::json!([{"addresses": ["fd00::1"]}]);
        let found = ready(&[slice("o", "http", &endpoints)], "o");
        assert_eq!(found[0].base, "http://[fd00::1]:4456");
    }
}
