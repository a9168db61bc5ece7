//! Identity and addresses: ServiceAccount, core Service, the error backend.

use k8s_openapi::{
    api::{
        core::v1::{Service as CoreService, ServiceAccount, ServicePort, ServiceSpec},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::{apis::meta::v1::ObjectMeta, util::intstr::IntOrString},
};
use peristyle_crds::{
    names::MANAGED_BY,
    v1alpha1::service::{Port, Protocol},
};

use crate::{
    controllers::service::observe::{EdgeErrors, SLICE_SERVICE_LABEL},
    edge::traefik::build::{EDGE_ERRORS_PORT, edge_errors_name},
    metadata::Owner,
};

const H2C: &str = "kubernetes.io/h2c";

/// The error backend as routes of this namespace see it: Traefik reaches no
/// Service of another namespace, so this one has no selector and the pods'
/// addresses are kept by the operator.
#[derive(Clone, Debug)]
pub struct EdgeErrorsBackend {
    /// Service without selector.
    pub service: CoreService,
    /// Addresses of the pods; `None` while none is ready.
    pub endpoint_slice: Option<EndpointSlice>,
}

/// Identity of the pods, without a token.
#[must_use]
pub fn service_account(owner: &Owner) -> ServiceAccount {
    ServiceAccount {
        metadata: owner.child(&*owner.name),
        automount_service_account_token: Some(false),
        ..ServiceAccount::default()
    }
}

/// How others in the cluster reach the pods.
#[must_use]
pub fn core_service(owner: &Owner, ports: &[Port]) -> CoreService {
    let port = |port: &Port| {
        let (protocol, app_protocol) = match port.protocol() {
            Protocol::Grpc => ("TCP", Some(H2C)),
            Protocol::Http => ("TCP", Some("http")),
            Protocol::Tcp => ("TCP", None),
            Protocol::Udp => ("UDP", None),
        };
        ServicePort {
            name: Some(port.name.clone()),
            port: port.service_port(),
            target_port: Some(IntOrString::String(port.name.clone())),
            protocol: Some(protocol.to_owned()),
            app_protocol: app_protocol.map(ToOwned::to_owned),
            ..ServicePort::default()
        }
    };
    CoreService {
        metadata: owner.child(&*owner.name),
        spec: Some(ServiceSpec {
            selector: Some(owner.selector()),
            ports: Some(ports.iter().map(port).collect()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// How routes reach the error backend.
#[must_use]
pub fn edge_errors(owner: &Owner, pods: Option<&EdgeErrors>) -> EdgeErrorsBackend {
    let name = edge_errors_name(&owner.name);
    let port_name = "h2c";
    EdgeErrorsBackend {
        service: CoreService {
            metadata: owner.child(&*name),
            spec: Some(ServiceSpec {
                ports: Some(vec![ServicePort {
                    name: Some(port_name.to_owned()),
                    port: EDGE_ERRORS_PORT,
                    target_port: Some(IntOrString::Int(EDGE_ERRORS_PORT)),
                    protocol: Some("TCP".to_owned()),
                    app_protocol: Some(H2C.to_owned()),
                    ..ServicePort::default()
                }]),
                ..ServiceSpec::default()
            }),
            status: None,
        },
        endpoint_slice: pods.map(|pods| EndpointSlice {
            metadata: slice_metadata(owner, &name),
            address_type: pods.address_type.clone(),
            endpoints: pods.addresses.iter().map(|address| endpoint(address)).collect(),
            ports: Some(vec![EndpointPort {
                name: Some(port_name.to_owned()),
                port: Some(EDGE_ERRORS_PORT),
                protocol: Some("TCP".to_owned()),
                app_protocol: Some(H2C.to_owned()),
            }]),
        }),
    }
}

fn slice_metadata(owner: &Owner, service: &str) -> ObjectMeta {
    let mut metadata = owner.child(service);
    metadata.labels.get_or_insert_default().extend([
        (SLICE_SERVICE_LABEL.to_owned(), service.to_owned()),
        // Kubernetes' own controllers leave slices of others alone.
        ("endpointslice.kubernetes.io/managed-by".to_owned(), MANAGED_BY.to_owned()),
    ]);
    metadata
}

fn endpoint(address: &str) -> Endpoint {
    Endpoint {
        addresses: vec![address.to_owned()],
        conditions: Some(EndpointConditions { ready: Some(true), ..EndpointConditions::default() }),
        ..Endpoint::default()
    }
}
