//! The committed CRDs are the ones the types produce, and every property says what it is for.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};

fn schema(crd: &CustomResourceDefinition) -> &JSONSchemaProps {
    crd.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap()
}

/// Calls `visit` for every property below `schema`, with its path.
fn walk(schema: &JSONSchemaProps, path: &str, visit: &mut impl FnMut(&str, &JSONSchemaProps)) {
    for (name, property) in schema.properties.iter().flatten() {
        let path = format!("{path}.{name}");
        visit(&path, property);
        walk(property, &path, visit);
        if let Some(JSONSchemaPropsOrArray::Schema(items)) = &property.items {
            walk(items, &format!("{path}[]"), visit);
        }
    }
}

#[test]
fn the_committed_crds_are_what_crdgen_prints() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/peristyle-crds/templates");
    for crd in peristyle_crds::crd::all() {
        let path = folder.join(format!("{}.yaml", crd.spec.names.plural));
        let committed = std::fs::read_to_string(&path).unwrap();
        assert!(
            committed == serde_saphyr::to_string(&crd).unwrap(),
            "{} differs from the types; run: cargo run --package peristyle-crds --bin crdgen -- charts/peristyle-crds/templates",
            path.display()
        );
    }
}

#[test]
fn every_property_is_described() {
    for crd in peristyle_crds::crd::all() {
        walk(schema(&crd), "", &mut |path, property| {
            let is_kubernetes_own =
                matches!(path, ".metadata" | ".apiVersion" | ".kind") || path.contains(".conditions[]");
            assert!(
                is_kubernetes_own || path == ".status" || property.description.is_some(),
                "{}{path} has no description",
                crd.spec.names.kind
            );
        });
    }
}

#[test]
fn every_string_list_and_map_of_a_spec_is_bounded_and_every_list_has_a_type() {
    for crd in peristyle_crds::crd::all() {
        walk(schema(&crd), "", &mut |path, property| {
            let place = format!("{}{path}", crd.spec.names.kind);
            if property.type_.as_deref() == Some("array") {
                assert!(property.x_kubernetes_list_type.is_some(), "{place}: list without a type");
                assert!(
                    !path.starts_with(".spec") || property.max_items.is_some(),
                    "{place}: list without a bound"
                );
            }
            if !path.starts_with(".spec") {
                return;
            }
            let is_bounded_text =
                property.max_length.is_some() || property.enum_.is_some() || property.pattern.is_some();
            if property.type_.as_deref() == Some("string") {
                assert!(is_bounded_text, "{place}: text without a bound");
            }
            if property.additional_properties.is_some() {
                assert!(property.max_properties.is_some(), "{place}: map without a bound");
            }
        });
    }
}

#[test]
fn a_new_object_never_reads_as_current() {
    for crd in peristyle_crds::crd::all() {
        let status = &schema(&crd).properties.as_ref().unwrap()["status"];
        assert_eq!(status.default.as_ref().unwrap().0, serde_json::json!({"observedGeneration": -1}));
    }
}

#[test]
fn no_crd_is_too_large_for_a_client_side_apply() {
    for crd in peristyle_crds::crd::all() {
        let size = serde_json::to_string(&crd).unwrap().len();
        assert!(size < 200_000, "{} has {size} bytes", crd.spec.names.kind);
    }
}

#[test]
fn every_kind_prints_its_columns() {
    let expected = [
        ("Service", "Ready Reason Replicas URL Age", "Image Message"),
        ("Database", "Ready Reason Class Database Rotated Age", "Message"),
        ("AuthPolicy", "Ready Reason Programmed Enforced Hash Age", "Message"),
        ("EdgeClass", "Ready Reason Provider Routes Age", ""),
        ("AuthClass", "Ready Reason Rules Age", "Message"),
        ("DatabaseClass", "Ready Reason Provider Version Age", "Message"),
    ];
    let crds = peristyle_crds::crd::all();
    assert_eq!(crds.len(), expected.len());
    for crd in crds {
        let kind = &crd.spec.names.kind;
        let (_, always, wide) = expected.iter().find(|(expected, ..)| expected == kind).unwrap();
        let columns = crd.spec.versions[0].additional_printer_columns.as_ref().unwrap();
        let names = |is_wide: bool| {
            let of_width = columns.iter().filter(|column| (column.priority > Some(0)) == is_wide);
            of_width.map(|column| column.name.as_str()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!((names(false).as_str(), names(true).as_str()), (*always, *wide), "{kind}");
    }
}
