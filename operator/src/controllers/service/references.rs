//! Secrets and ConfigMaps that pods read at their start, and what they held.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::{Api, ResourceExt, api::ObjectMeta};
use peristyle_crds::{
    names::{CONFIG_HASH_ANNOTATION, CONFIG_VERSIONS_ANNOTATION},
    v1alpha1::{Service, service::EnvFrom},
};
use sha2::{Digest, Sha256};

use super::validate::{Workload, lifetime};
use crate::{
    apply::Error,
    context::Context,
    metadata::{Owner, is_controlled_by},
    retry::bounded,
    stores::views::Deployment,
};

/// Key of a Database's Secret that holds the connection URI.
const URI: &str = "uri";

/// A Secret or ConfigMap of the Service's namespace.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Reference {
    /// A Secret.
    Secret(String),
    /// A ConfigMap.
    ConfigMap(String),
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Secret(name) => write!(f, "Secret {name}"),
            Self::ConfigMap(name) => write!(f, "ConfigMap {name}"),
        }
    }
}

/// What is read of a Secret or ConfigMap.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
struct Source {
    reference: Reference,
    /// `None`: every key.
    key: Option<String>,
    is_required: bool,
}

/// Everything that `env` and `envFrom` read, sorted.
fn sources(service: &Service) -> Vec<Source> {
    let source = |reference, key: Option<&String>, optional: Option<bool>| Source {
        reference,
        key: key.cloned(),
        is_required: optional != Some(true),
    };
    let whole = |from: &EnvFrom| {
        let secret = from.secret_ref.iter().map(|s| (Reference::Secret(s.name.clone()), s.optional));
        let map = from.config_map_ref.iter().map(|c| (Reference::ConfigMap(c.name.clone()), c.optional));
        secret.chain(map).map(|(reference, optional)| source(reference, None, optional)).collect::<Vec<_>>()
    };
    let single =
        service.spec.env.iter().filter_map(|variable| variable.value_from.as_ref()).flat_map(|from| {
            let secret = from.secret_key_ref.iter().map(|k| (Reference::Secret(k.name.clone()), k));
            let map = from.config_map_key_ref.iter().map(|k| (Reference::ConfigMap(k.name.clone()), k));
            secret
                .chain(map)
                .map(|(reference, k)| source(reference, Some(&k.key), k.optional))
                .collect::<Vec<_>>()
        });
    let mut all: Vec<Source> = service.spec.env_from.iter().flat_map(whole).chain(single).collect();
    all.sort();
    all.dedup();
    all
}

/// Secrets and ConfigMaps without which a pod would not start, sorted.
#[must_use]
pub fn required(service: &Service) -> Vec<Reference> {
    let needed = sources(service).into_iter().filter(|source| source.is_required);
    let distinct: BTreeSet<Reference> = needed.map(|source| source.reference).collect();
    distinct.into_iter().collect()
}

/// Secrets and ConfigMaps that the pods read, required or not.
#[must_use]
pub fn all(service: &Service) -> BTreeSet<Reference> {
    sources(service).into_iter().map(|source| source.reference).collect()
}

/// What the pods read at their start, as annotations of the Deployment.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct ConfigStamp {
    /// Hash of the content.
    pub hash: String,
    /// Hash of the versions of the objects that the content was read from.
    pub versions: String,
}

/// The stamp of what the pods would read now; `None` when that is nothing, or
/// does not matter to them.
///
/// The running Deployment remembers the versions that its stamp was made of:
/// only when one of them changed, or the operator reads other keys, is anything
/// asked of the API server. A change that leaves the content as it was gives
/// the same hash, and no pod is replaced.
///
/// # Errors
/// When the API server refuses to show one of the objects.
pub async fn stamp(
    ctx: &Context,
    owner: &Owner,
    service: &Service,
    workload: &Workload,
) -> Result<Option<ConfigStamp>, Error> {
    if !lifetime::restarts_on_config(service) {
        return Ok(None);
    }
    let mut sources = sources(service);
    sources.extend(workload.database_secrets.iter().map(|secret| Source {
        reference: Reference::Secret(secret.clone()),
        key: Some(URI.to_owned()),
        is_required: true,
    }));
    if sources.is_empty() {
        return Ok(None);
    }
    let stores = &ctx.stores;
    let cached = |reference: &Reference| match reference {
        Reference::Secret(name) => {
            stores.secrets.get(&owner.namespace, name).map(|object| version(&object.metadata))
        }
        Reference::ConfigMap(name) => {
            stores.config_maps.get(&owner.namespace, name).map(|object| version(&object.metadata))
        }
    };
    let live = stores.deployments.get(&owner.namespace, &owner.name);
    let live = live.filter(|live| is_controlled_by(&**live, &owner.reference.uid));
    let versions = versions(&sources, cached);
    if let Some(known) = live.as_deref().and_then(recorded).filter(|known| known.versions == versions) {
        return Ok(Some(known));
    }
    let distinct: BTreeSet<&Reference> = sources.iter().map(|source| &source.reference).collect();
    let reads = distinct.into_iter().map(async |reference| {
        let content = read(ctx, &owner.namespace, reference).await?;
        Ok::<_, Error>(content.map(|content| (reference.clone(), content)))
    });
    let contents: BTreeMap<Reference, Content> = try_join_all(reads).await?.into_iter().flatten().collect();
    Ok(Some(ConfigStamp {
        hash: hash(&sources, &contents),
        versions: self::versions(&sources, |reference| {
            contents.get(reference).map(|content| content.version.clone())
        }),
    }))
}

fn recorded(deployment: &Deployment) -> Option<ConfigStamp> {
    Some(ConfigStamp {
        hash: deployment.spec.template.annotation(CONFIG_HASH_ANNOTATION)?.to_owned(),
        versions: deployment.annotations().get(CONFIG_VERSIONS_ANNOTATION)?.clone(),
    })
}

fn version(metadata: &ObjectMeta) -> String {
    let part = |part: &Option<String>| part.clone().unwrap_or_default();
    format!("{}/{}", part(&metadata.uid), part(&metadata.resource_version))
}

/// What an object held at a version.
#[derive(Clone, Debug, Default)]
struct Content {
    version: String,
    /// Nobody who may not read the Secret knows its UID: with it, values that
    /// are easy to guess cannot be found from the hash.
    salt: String,
    data: BTreeMap<String, Vec<u8>>,
}

async fn read(ctx: &Context, namespace: &str, reference: &Reference) -> Result<Option<Content>, Error> {
    let refused = |kind: &str, name: &str, source| Error::Request {
        verb: "get",
        kind: kind.to_owned(),
        name: name.to_owned(),
        source: Box::new(source),
    };
    match reference {
        Reference::Secret(name) => {
            let api: Api<Secret> = Api::namespaced(ctx.client.clone(), namespace);
            let found = bounded(api.get_opt(name)).await.map_err(|error| refused("Secret", name, error))?;
            Ok(found.map(|secret| Content {
                version: version(&secret.metadata),
                salt: secret.uid().unwrap_or_default(),
                data: secret.data.unwrap_or_default().into_iter().map(|(k, v)| (k, v.0)).collect(),
            }))
        }
        Reference::ConfigMap(name) => {
            let api: Api<ConfigMap> = Api::namespaced(ctx.client.clone(), namespace);
            let found =
                bounded(api.get_opt(name)).await.map_err(|error| refused("ConfigMap", name, error))?;
            Ok(found.map(|map| {
                let text = map.data.clone().unwrap_or_default().into_iter().map(|(k, v)| (k, v.into_bytes()));
                let binary = map.binary_data.clone().unwrap_or_default().into_iter().map(|(k, v)| (k, v.0));
                Content {
                    version: version(&map.metadata),
                    salt: String::new(),
                    data: text.chain(binary).collect(),
                }
            }))
        }
    }
}

fn versions(sources: &[Source], version: impl Fn(&Reference) -> Option<String>) -> String {
    let mut hash = Hash::default();
    for source in sources {
        hash.add_source(source);
        hash.add_optional(version(&source.reference).as_deref().map(str::as_bytes));
    }
    hash.finish()
}

fn hash(sources: &[Source], contents: &BTreeMap<Reference, Content>) -> String {
    let mut hash = Hash::default();
    for source in sources {
        hash.add_source(source);
        let content = contents.get(&source.reference);
        hash.add_optional(content.map(|content| content.salt.as_bytes()));
        let Some(content) = content else { continue };
        if let Some(key) = &source.key {
            hash.add_optional(content.data.get(key).map(Vec::as_slice));
            continue;
        }
        hash.add(&content.data.len().to_be_bytes());
        for (key, value) in &content.data {
            hash.add(key.as_bytes());
            hash.add(value);
        }
    }
    hash.finish()
}

/// Every part with its length, so that two lists never read the same.
#[derive(Default)]
struct Hash(Sha256);

impl Hash {
    fn add(&mut self, part: &[u8]) {
        self.0.update(part.len().to_be_bytes());
        self.0.update(part);
    }

    fn add_optional(&mut self, part: Option<&[u8]>) {
        self.add(&[u8::from(part.is_some())]);
        self.add(part.unwrap_or_default());
    }

    fn add_source(&mut self, source: &Source) {
        self.add(source.reference.to_string().as_bytes());
        self.add_optional(source.key.as_deref().map(str::as_bytes));
    }

    fn finish(self) -> String {
        hex::encode(&self.0.finalize()[..16])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(spec: &str) -> Service {
        let text = format!("{{metadata: {{name: orders, namespace: shop}}, spec: {{image: x, {spec}}}}}");
        serde_saphyr::from_str(&text).unwrap()
    }

    fn content(salt: &str, data: &[(&str, &str)]) -> Content {
        let data = data.iter().map(|(key, value)| ((*key).to_owned(), value.as_bytes().to_vec()));
        Content { version: String::new(), salt: salt.to_owned(), data: data.collect() }
    }

    fn hashed(spec: &str, content: Content) -> String {
        hash(&sources(&service(spec)), &[(Reference::Secret("s".to_owned()), content)].into())
    }

    const KEY: &str = "env: [{name: A, valueFrom: {secretKeyRef: {name: s, key: a}}}]";
    const WHOLE: &str = "envFrom: [{secretRef: {name: s}}]";

    #[test]
    fn only_the_keys_that_are_read_count() {
        let before = content("u", &[("a", "1"), ("b", "1")]);
        let other = content("u", &[("a", "1"), ("b", "2")]);
        assert_eq!(hashed(KEY, before.clone()), hashed(KEY, other.clone()));
        assert_ne!(hashed(WHOLE, before.clone()), hashed(WHOLE, other));
        assert_ne!(hashed(KEY, before), hashed(KEY, content("u", &[("a", "2"), ("b", "1")])));
    }

    #[test]
    fn the_version_of_an_object_does_not_count() {
        let before = content("u", &[("a", "1")]);
        let later = Content { version: "2".to_owned(), ..before.clone() };
        assert_eq!(hashed(WHOLE, before), hashed(WHOLE, later));
    }

    #[test]
    fn a_value_cannot_be_guessed_without_the_uid() {
        assert_ne!(hashed(KEY, content("u", &[("a", "1")])), hashed(KEY, content("v", &[("a", "1")])));
    }

    #[test]
    fn keys_and_values_do_not_run_together() {
        assert_ne!(hashed(WHOLE, content("u", &[("a", "bc")])), hashed(WHOLE, content("u", &[("ab", "c")])));
        assert_ne!(hashed(KEY, content("u", &[])), hashed(KEY, content("u", &[("a", "")])));
    }

    #[test]
    fn versions_tell_an_absent_object_from_a_present_one() {
        let sources = sources(&service(KEY));
        let absent = versions(&sources, |_| None);
        assert_ne!(absent, versions(&sources, |_| Some(String::new())));
        assert_eq!(absent, versions(&sources, |_| None));
    }
}
