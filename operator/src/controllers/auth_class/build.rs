//! The ConfigMaps of an AuthClass. Pure: `peristyle render` prints the same.

use k8s_openapi::api::core::v1::ConfigMap;
use peristyle_crds::v1alpha1::AuthClass;

use crate::{auth::plan::Plan, metadata::Owner};

/// Key of the rules in their ConfigMap.
pub const RULES_KEY: &str = "rules.json";

/// A ConfigMap with one key.
#[must_use]
pub fn config_map(owner: &Owner, name: &str, key: &str, text: &str) -> ConfigMap {
    ConfigMap {
        metadata: owner.child(name),
        data: Some([(key.to_owned(), text.to_owned())].into()),
        ..ConfigMap::default()
    }
}

/// What Oathkeeper and Keto read once all of `plan` is published.
#[must_use]
pub fn published(owner: &Owner, class: &AuthClass, plan: &Plan) -> [ConfigMap; 2] {
    let namespaces = &class.spec.keto.namespaces_config_map;
    [
        config_map(owner, &namespaces.name, &namespaces.key, &plan.namespaces_file().text),
        config_map(owner, &class.spec.oathkeeper.rules_config_map, RULES_KEY, &plan.rules_file().text),
    ]
}
