//! What the operator owns in a child, as the API server keeps it.
//!
//! A server-side apply writes down which fields it set. Whoever changes or
//! removes one of them later takes it out of that record. So an object whose
//! annotation names the last apply, and whose record still has every field of
//! it, is as that apply left it: a new process need not apply it once more, and
//! one that runs need not keep the object to see a change of it.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{FieldsV1, ManagedFieldsEntry, ObjectMeta};
use peristyle_crds::FIELD_MANAGER;
use serde_json::Value;

/// Annotation on children: what the last apply sent, as a hash.
pub const APPLIED: &str = "peristyle.dev/applied";

/// Leaves of `managedFields` only what the operator applied, and when. The
/// fields are one text: as a tree they would take several times the memory of
/// the object.
pub fn keep(meta: &mut ObjectMeta) {
    let ours = meta.managed_fields.take().into_iter().flatten().find(is_ours);
    meta.managed_fields = ours.and_then(|ours| {
        Some(vec![ManagedFieldsEntry {
            manager: ours.manager,
            operation: ours.operation,
            time: ours.time,
            fields_v1: Some(FieldsV1(Value::String(as_text(&ours.fields_v1?).into()))),
            ..ManagedFieldsEntry::default()
        }])
    });
}

/// What the operator applied, and when, as a text that is another one after any
/// change of that. `None` where it owns nothing.
#[must_use]
pub fn text(meta: &ObjectMeta) -> Option<String> {
    let ours = ours(meta)?;
    Some(format!("{:?} {}", ours.time, as_text(ours.fields_v1.as_ref()?)))
}

fn as_text(FieldsV1(fields): &FieldsV1) -> Box<str> {
    match fields {
        Value::String(text) => text.as_str().into(),
        tree => tree.to_string().into(),
    }
}

/// Whether the operator still owns every field of `desired` in an object with `meta`.
#[must_use]
pub fn is_complete(meta: &ObjectMeta, desired: &Value) -> bool {
    match ours(meta).and_then(|entry| entry.fields_v1.as_ref()).map(|fields| &fields.0) {
        Some(Value::String(text)) => {
            serde_json::from_str(text).is_ok_and(|fields| covers(&fields, &without_name(desired)))
        }
        Some(fields) => covers(fields, &without_name(desired)),
        None => false,
    }
}

fn ours(meta: &ObjectMeta) -> Option<&ManagedFieldsEntry> {
    meta.managed_fields.iter().flatten().find(|entry| is_ours(entry))
}

fn is_ours(entry: &ManagedFieldsEntry) -> bool {
    entry.manager.as_deref() == Some(FIELD_MANAGER)
        && entry.operation.as_deref() == Some("Apply")
        && entry.subresource.as_deref().unwrap_or_default().is_empty()
}

/// `desired` without what says which object it is: nobody owns that.
fn without_name(desired: &Value) -> Value {
    let mut desired = desired.clone();
    if let Some(object) = desired.as_object_mut() {
        object.remove("apiVersion");
        object.remove("kind");
    }
    if let Some(metadata) = desired.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("name");
        metadata.remove("namespace");
    }
    desired
}

/// Whether `fields`, in the notation of `fieldsV1`, has every leaf of `value`.
fn covers(fields: &Value, value: &Value) -> bool {
    let Some(fields) = fields.as_object() else { return false };
    if fields.is_empty() {
        // A leaf: owned as a whole.
        return true;
    }
    match value {
        Value::Object(members) => {
            members.iter().filter(|(_, value)| !value.is_null()).all(|(name, value)| {
                fields.get(&format!("f:{name}")).is_some_and(|fields| covers(fields, value))
            })
        }
        Value::Array(items) => items
            .iter()
            .all(|item| fields.iter().any(|(key, fields)| is_key_of(key, item) && covers(fields, item))),
        _ => false,
    }
}

/// Whether `key` names `item` in a list: `k:` and its key fields, of which the
/// API server fills in those that have a default, or `v:` and the value itself.
fn is_key_of(key: &str, item: &Value) -> bool {
    let parse = |text: &str| serde_json::from_str::<Value>(text).ok();
    if let Some(value) = key.strip_prefix("v:").and_then(parse) {
        return value == *item;
    }
    let Some(Value::Object(names)) = key.strip_prefix("k:").and_then(parse) else { return false };
    names.iter().all(|(name, value)| item.get(name).is_none_or(|found| found == value))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields() -> Value {
        json!({
            "f:metadata": {"f:labels": {"f:app": {}}, "f:finalizers": {"v:\"a\"": {}}},
            "f:spec": {
                "f:replicas": {},
                "f:selector": {},
                "f:containers": {"k:{\"name\":\"main\"}": {
                    ".": {}, "f:name": {}, "f:image": {},
                    "f:ports": {"k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {".": {}, "f:containerPort": {}}}
                }}
            }
        })
    }

    fn desired() -> Value {
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": {"name": "x", "namespace": "y", "labels": {"app": "x"}, "finalizers": ["a"], "uid": null},
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": {"app": "x"}},
                "containers": [{"name": "main", "image": "i", "ports": [{"containerPort": 80}]}]
            }
        })
    }

    fn meta(manager: &str, fields: Value) -> ObjectMeta {
        let entry = ManagedFieldsEntry {
            manager: Some(manager.to_owned()),
            operation: Some("Apply".to_owned()),
            fields_v1: Some(FieldsV1(fields)),
            ..ManagedFieldsEntry::default()
        };
        ObjectMeta { managed_fields: Some(vec![entry]), ..ObjectMeta::default() }
    }

    #[test]
    fn an_object_that_nobody_touched_is_complete_also_in_the_short_form() {
        let mut meta = meta(FIELD_MANAGER, fields());
        assert!(is_complete(&meta, &desired()));
        keep(&mut meta);
        assert!(is_complete(&meta, &desired()));
    }

    #[test]
    fn a_field_that_another_took_over_or_removed_is_missed() {
        for taken in [
            "/f:spec/f:replicas",
            "/f:spec/f:selector",
            "/f:metadata/f:labels/f:app",
            "/f:metadata/f:finalizers/v:\"a\"",
            "/f:spec/f:containers/k:{\"name\":\"main\"}/f:image",
            "/f:spec/f:containers/k:{\"name\":\"main\"}",
        ] {
            assert!(!is_complete(&meta(FIELD_MANAGER, without(fields(), taken)), &desired()), "{taken}");
        }
    }

    #[test]
    fn what_another_manager_applied_does_not_count() {
        assert!(!is_complete(&meta("kubectl", fields()), &desired()));
        assert!(!is_complete(&ObjectMeta::default(), &desired()));
        let mut meta = meta("kubectl", fields());
        keep(&mut meta);
        assert_eq!(meta.managed_fields, None);
    }

    /// `fields` without the one at `path`, and without what is empty then, as in the API server.
    fn without(mut fields: Value, path: &str) -> Value {
        let mut path = path;
        while let Some((parent, leaf)) = path.rsplit_once('/') {
            let members = fields.pointer_mut(parent).unwrap().as_object_mut().unwrap();
            assert!(members.remove(leaf).is_some(), "{path} is not there");
            if !members.is_empty() {
                break;
            }
            path = parent;
        }
        fields
    }
}
