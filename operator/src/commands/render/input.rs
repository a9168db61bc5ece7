//! Objects from files.

use k8s_openapi::api::core::v1::Namespace;
use kube::{Resource, core::PartialObjectMeta};
use peristyle_crds::v1alpha1::{AuthClass, AuthPolicy, Database, EdgeClass, Service};
use serde::de::DeserializeOwned;
use serde_json::Value;

/// The objects that matter for rendering, in the order of the files.
#[derive(Clone, Debug, Default)]
pub struct Input {
    /// Services.
    pub services: Vec<Service>,
    /// Databases, for the names of their Secrets.
    pub databases: Vec<Database>,
    /// Policies, for what they protect.
    pub auth_policies: Vec<AuthPolicy>,
    /// Edge classes.
    pub edge_classes: Vec<EdgeClass>,
    /// Authorization classes, for where decisions are made.
    pub auth_classes: Vec<AuthClass>,
    /// Namespaces, for their labels.
    pub namespaces: Vec<PartialObjectMeta<Namespace>>,
}

/// Why a document was not understood.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not YAML.
    #[error("not valid YAML: {0}")]
    Yaml(String),
    /// Not the object that it says it is.
    #[error("document {document}: not a valid {kind}: {source}")]
    Object {
        /// Number of the document in the file, from 1.
        document: usize,
        /// The kind that it names.
        kind: String,
        /// Why not.
        #[source]
        source: serde_json::Error,
    },
    /// A kind of our group that does not exist.
    #[error("document {document}: {api_version} has no kind {kind:?}; see `peristyle crds`")]
    Kind {
        /// Number of the document in the file, from 1.
        document: usize,
        /// Group and version.
        api_version: String,
        /// The kind that it names.
        kind: String,
    },
}

impl Input {
    /// Adds every document of `text`; objects without a namespace get
    /// `namespace`. Kinds of other groups do not matter and are passed over.
    ///
    /// # Errors
    /// At the first document that is not understood.
    pub fn add(&mut self, text: &str, namespace: &str) -> Result<(), Error> {
        let documents: Vec<Value> =
            serde_saphyr::from_multiple(text).map_err(|error| Error::Yaml(error.to_string()))?;
        for (index, value) in documents.into_iter().enumerate() {
            let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
            let document =
                Document { number: index + 1, api_version: text("apiVersion"), kind: text("kind"), value };
            self.add_document(document, namespace)?;
        }
        Ok(())
    }

    fn add_document(&mut self, document: Document, namespace: &str) -> Result<(), Error> {
        match (document.api_version.as_str(), document.kind.as_str()) {
            ("peristyle.dev/v1alpha1", "Service") => self.services.push(document.within(namespace)?),
            ("peristyle.dev/v1alpha1", "Database") => self.databases.push(document.within(namespace)?),
            ("peristyle.dev/v1alpha1", "AuthPolicy") => self.auth_policies.push(document.within(namespace)?),
            ("peristyle.dev/v1alpha1", "EdgeClass") => self.edge_classes.push(document.parse()?),
            ("peristyle.dev/v1alpha1", "AuthClass") => self.auth_classes.push(document.parse()?),
            ("peristyle.dev/v1alpha1", "DatabaseClass") => {}
            ("v1", "Namespace") => self.namespaces.push(document.parse()?),
            (group, _) if group.starts_with("peristyle.dev/") => {
                return Err(Error::Kind {
                    document: document.number,
                    api_version: document.api_version,
                    kind: document.kind,
                });
            }
            _ => {}
        }
        Ok(())
    }
}

struct Document {
    number: usize,
    api_version: String,
    kind: String,
    value: Value,
}

impl Document {
    fn parse<K: DeserializeOwned>(self) -> Result<K, Error> {
        let (document, kind) = (self.number, self.kind);
        serde_json::from_value(self.value).map_err(|source| Error::Object { document, kind, source })
    }

    fn within<K: DeserializeOwned + Resource>(self, namespace: &str) -> Result<K, Error> {
        let mut object: K = self.parse()?;
        object.meta_mut().namespace.get_or_insert_with(|| namespace.to_owned());
        Ok(object)
    }
}
