//! Objects that people write, read one by one: what the types cannot read does
//! not keep the others out of a list.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::{Deserialize, Deserializer, de::DeserializeOwned, de::Error};
use serde_json::Value;

/// An object, if the types can read it.
///
/// Kube's `DeserializeGuard` does the same by way of a tree of its own, and so
/// brings a second decoder of every field of every kind into the program; its
/// errors do not name the field.
#[derive(Clone, Debug)]
pub struct Guarded<K>(pub Result<K, Box<InvalidObject>>);

/// An object that the types cannot read.
#[derive(Clone, Debug)]
pub struct InvalidObject {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// The field and what is wrong with it.
    pub error: String,
}

impl<'de, K: DeserializeOwned> Deserialize<'de> for Guarded<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let object = Value::deserialize(deserializer)?;
        serde_path_to_error::deserialize(&object)
            .map(Ok)
            .or_else(|error: serde_path_to_error::Error<_>| {
                let metadata = ObjectMeta::deserialize(&object["metadata"]).map_err(D::Error::custom)?;
                Ok(Err(Box::new(InvalidObject { metadata, error: error.to_string() })))
            })
            .map(Self)
    }
}

impl<K: Resource> Resource for Guarded<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(kind: &K::DynamicType) -> Cow<'_, str> {
        K::kind(kind)
    }

    fn group(kind: &K::DynamicType) -> Cow<'_, str> {
        K::group(kind)
    }

    fn version(kind: &K::DynamicType) -> Cow<'_, str> {
        K::version(kind)
    }

    fn plural(kind: &K::DynamicType) -> Cow<'_, str> {
        K::plural(kind)
    }

    fn meta(&self) -> &ObjectMeta {
        match &self.0 {
            Ok(object) => object.meta(),
            Err(invalid) => &invalid.metadata,
        }
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        match &mut self.0 {
            Ok(object) => object.meta_mut(),
            Err(invalid) => &mut invalid.metadata,
        }
    }
}

#[cfg(test)]
mod tests {
    use peristyle_crds::v1alpha1::Service;

    use super::*;

    #[test]
    fn one_object_that_cannot_be_read_leaves_the_others_readable_and_names_the_field() {
        let text = r#"[
            {"metadata": {"name": "good"}, "spec": {"image": "x"}},
            {"metadata": {"name": "bad", "generation": 3}, "spec": {"image": "x", "replicas": "many"}}
        ]"#;
        let [good, bad] = serde_json::from_str::<[Guarded<Service>; 2]>(text).unwrap();
        assert_eq!(good.0.unwrap().spec.image, "x");
        assert_eq!(bad.meta().generation, Some(3));
        let error = bad.0.unwrap_err().error;
        assert!(error.starts_with("spec.replicas: ") && error.contains("\"many\""), "{error}");
    }

    #[test]
    fn an_object_without_metadata_is_an_error_of_the_list() {
        assert!(serde_json::from_str::<Guarded<Service>>(r#"{"metadata": {"name": 1}}"#).is_err());
    }
}
