//! The CustomResourceDefinitions as they are installed.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSON, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

use crate::v1alpha1::{AuthClass, AuthPolicy, Database, DatabaseClass, EdgeClass, Service};

/// All kinds, in the order in which they are documented.
#[must_use]
pub fn all() -> Vec<CustomResourceDefinition> {
    [
        Service::crd(),
        Database::crd(),
        AuthPolicy::crd(),
        EdgeClass::crd(),
        AuthClass::crd(),
        DatabaseClass::crd(),
    ]
    .map(finish)
    .into()
}

fn finish(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    // Helm must not delete every object of the group on uninstall.
    crd.metadata
        .annotations
        .get_or_insert_default()
        .insert("helm.sh/resource-policy".to_owned(), "keep".to_owned());
    for version in &mut crd.spec.versions {
        let Some(schema) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) else {
            continue;
        };
        strip_unsigned_formats(schema);
        // kstatus takes an object without status for Current; a new object
        // must read as "not yet observed".
        if let Some(status) = schema.properties.as_mut().and_then(|p| p.get_mut("status")) {
            status.default = Some(JSON(serde_json::json!({"observedGeneration": -1})));
        }
    }
    crd
}

/// The API server knows no `uint32` and warns about every one of them.
fn strip_unsigned_formats(schema: &mut JSONSchemaProps) {
    if schema.format.as_deref().is_some_and(|format| format.starts_with("uint")) {
        schema.format = None;
    }
    for property in schema.properties.iter_mut().flat_map(|p| p.values_mut()) {
        strip_unsigned_formats(property);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        strip_unsigned_formats(items);
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        strip_unsigned_formats(values);
    }
}
