//! The committed CRDs are the ones the types produce, and every property says what it is for.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};

fn schema(crd: &CustomResourceDefinition) -> &JSONSchemaProps {
    crd.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap()
}

/// Namespaces that a tenant's object names, each with what it opens. Nothing
/// else of another namespace can be named.
const NAMESPACES: [(&str, &str); 5] = [
    (
        "Service.spec.access.inbound[].namespace",
        "lets the callers of that namespace in: the object's own consent",
    ),
    (
        "Service.spec.dependsOn[].namespace",
        "nothing until the other side lists this one in its access.inbound",
    ),
    ("AuthPolicy.spec.rules[].authorization.relation.namespace", "a namespace of Keto, not of Kubernetes"),
    ("AuthPolicy.spec.relations.tuples[].namespace", "a namespace of Keto, not of Kubernetes"),
    ("AuthPolicy.spec.relations.tuples[].subjectSet.namespace", "a namespace of Keto, not of Kubernetes"),
];

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
fn every_optional_field_of_a_spec_says_its_default() {
    let mut silent = Vec::new();
    for crd in peristyle_crds::crd::all() {
        optional(&schema(&crd).properties.as_ref().unwrap()["spec"], ".spec", &mut |path, property| {
            let description = property.description.as_deref().unwrap_or_default();
            if !description.contains("Default:") && !description.contains(" by default: ") {
                silent.push(format!("{}{path}: {description}", crd.spec.names.kind));
            }
        });
    }
    assert!(silent.is_empty(), "{silent:#?}");
}

/// Calls `visit` for every property below `schema` that may be left out.
fn optional(schema: &JSONSchemaProps, path: &str, visit: &mut impl FnMut(&str, &JSONSchemaProps)) {
    let required = schema.required.clone().unwrap_or_default();
    for (name, property) in schema.properties.iter().flatten() {
        let path = format!("{path}.{name}");
        if !required.contains(name) {
            visit(&path, property);
        }
        optional(property, &path, visit);
        if let Some(JSONSchemaPropsOrArray::Schema(items)) = &property.items {
            optional(items, &format!("{path}[]"), visit);
        }
    }
}

#[test]
fn a_tenant_names_another_namespace_only_where_that_is_known_to_open_nothing() {
    let mut found = BTreeSet::new();
    for crd in peristyle_crds::crd::all() {
        let kind = &crd.spec.names.kind;
        if crd.spec.scope == "Cluster" {
            continue;
        }
        walk(schema(&crd), "", &mut |path, _| {
            let name = path.rsplit('.').next().unwrap_or_default().to_lowercase();
            if path.starts_with(".spec") && name.contains("namespace") {
                found.insert(format!("{kind}{path}"));
            }
        });
    }
    assert_eq!(found, NAMESPACES.iter().map(|(path, _)| (*path).to_owned()).collect());
}

#[test]
fn every_name_of_an_object_of_the_namespace_is_a_name_and_no_path() {
    let crds = peristyle_crds::crd::all();
    let service = crds.iter().find(|crd| crd.spec.names.kind == "Service").unwrap();
    let mut found = 0;
    walk(schema(service), "", &mut |path, property| {
        if path.ends_with("Ref.name")
            || path.ends_with("databases[].database")
            || path.ends_with("dependsOn[].service")
        {
            found += 1;
            let pattern = property.pattern.as_deref().unwrap_or_default();
            assert!(pattern.starts_with("^[a-z0-9]") && !pattern.contains('/'), "{path}: {pattern:?}");
        }
    });
    assert_eq!(found, 6);
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
