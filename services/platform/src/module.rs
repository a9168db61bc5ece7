//! What a service hands to the chassis.

use std::collections::HashMap;

use axum::Router;
use prost::Message;
use prost_types::FileDescriptorSet;
use tonic::service::Routes;

use crate::Database;

/// One service, ready to be served alone or beside others in one process.
pub struct Module {
    /// The name that `suite serve` knows it by.
    pub name: &'static str,
    /// Its gRPC services.
    pub grpc: Routes,
    /// Its encoded `FileDescriptorSet`, for reflection, health and metrics.
    pub descriptors: &'static [u8],
    /// gRPC services that are called without a token, such as a login.
    pub public: &'static [&'static str],
    /// What it serves over HTTP.
    pub http: Option<Http>,
    /// Its database, which decides whether it is ready.
    pub database: Database,
}

/// Routes over plain HTTP.
pub struct Http {
    /// The routes.
    pub routes: Router,
    /// Their names in metrics, such as `GET /verify`.
    pub names: &'static [&'static str],
    /// Paths that are requested without a token, exactly as written here.
    pub public: &'static [&'static str],
}

/// A gRPC method as its path names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Method {
    pub service: String,
    pub method: String,
}

/// The methods of a descriptor set by their path `/package.Service/Method`.
///
/// Metrics only use these names: a caller cannot invent label values.
///
/// # Errors
/// When the bytes are no descriptor set, which is a fault of the build.
pub fn methods(descriptors: &[u8]) -> Result<HashMap<String, Method>, prost::DecodeError> {
    let set = FileDescriptorSet::decode(descriptors)?;
    let mut methods = HashMap::new();
    for file in &set.file {
        for service in &file.service {
            let service_name = format!("{}.{}", file.package(), service.name());
            for method in &service.method {
                methods.insert(
                    format!("/{service_name}/{}", method.name()),
                    Method { service: service_name.clone(), method: method.name().to_owned() },
                );
            }
        }
    }
    Ok(methods)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_named_by_their_path() {
        let methods = methods(tonic_health::pb::FILE_DESCRIPTOR_SET).unwrap();
        let expected = Method { service: "grpc.health.v1.Health".into(), method: "Check".into() };
        assert_eq!(methods.get("/grpc.health.v1.Health/Check"), Some(&expected));
        assert!(!methods.contains_key("/grpc.health.v1.Health/Nothing"));
    }
}
