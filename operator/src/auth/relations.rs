//! The relation model and the tuples of a policy, checked against the models
//! of its AuthClass.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use peristyle_crds::{
    condition::Reason,
    v1alpha1::{
        AuthPolicy,
        auth_policy::{Relation, Tuple},
    },
};

use super::{
    key::PolicyKey,
    model::{self, Model},
    rejection::Rejection,
};

/// Bound on all models of an AuthClass in bytes: a ConfigMap holds 1 MiB.
const MAX_MODELS: usize = 900 * 1024;
/// Bound on the tuples of one policy in bytes, so that none can fill the record
/// of its class alone.
const MAX_TUPLES: usize = 128 * 1024;
/// Bound on the tuples of all policies in bytes. While they change, the record
/// holds the old and the new ones, in a ConfigMap of 1 MiB.
const MAX_ALL_TUPLES: usize = 448 * 1024;

/// Models that Keto refused, by policy: the source that was refused and why.
pub type Refusals = HashMap<PolicyKey, (String, String)>;

/// A Keto namespace with the policy that declared it first.
#[derive(Clone, Debug)]
struct Namespace {
    owner: PolicyKey,
    relations: BTreeSet<String>,
}

/// The namespaces of all models of an AuthClass.
#[derive(Clone, Debug, Default)]
pub struct Namespaces {
    by_name: BTreeMap<String, Namespace>,
    models: HashMap<PolicyKey, Result<Model, Rejection>>,
    /// Policies whose tuples are too many, and why.
    too_many: HashMap<PolicyKey, Rejection>,
}

impl Namespaces {
    /// Settles who owns which namespace: the first of `policies`, which are
    /// sorted by age. A model that cannot be read, or that Keto refused, owns
    /// nothing.
    #[must_use]
    pub fn settle<'a>(policies: impl IntoIterator<Item = &'a AuthPolicy>, refusals: &Refusals) -> Self {
        let mut settled = Self::default();
        let (mut models, mut tuples) = (0, 0);
        for policy in policies {
            let key = PolicyKey::of(policy);
            match tuple_bytes(policy) {
                own if own > MAX_TUPLES => {
                    let message = format!(
                        "spec.relations.tuples: they take {own} bytes, more than {MAX_TUPLES}; grant to a subject set, or let the application write them"
                    );
                    settled.too_many.insert(key.clone(), Rejection::stalled(Reason::LimitExceeded, message));
                }
                own if tuples + own > MAX_ALL_TUPLES => {
                    let message = format!(
                        "spec.relations.tuples: with those of all older policies of the AuthClass they would exceed {MAX_ALL_TUPLES} bytes; grant to a subject set or use another AuthClass"
                    );
                    settled.too_many.insert(key.clone(), Rejection::stalled(Reason::LimitExceeded, message));
                }
                own => tuples += own,
            }
            let Some(source) = source(policy) else {
                continue;
            };
            let model = if models + source.len() > MAX_MODELS {
                let message = format!(
                    "spec.relations.model: with those of all older policies of the AuthClass it would exceed {MAX_MODELS} bytes; shorten it or use another AuthClass"
                );
                Err(Rejection::stalled(Reason::LimitExceeded, message))
            } else {
                settled.admit(&key, source, refusals)
            };
            if let Ok(model) = &model {
                models += source.len();
                for (name, relations) in &model.classes {
                    let namespace = Namespace { owner: key.clone(), relations: relations.clone() };
                    settled.by_name.insert(name.clone(), namespace);
                }
            }
            settled.models.insert(key, model);
        }
        settled
    }

    fn admit(&self, key: &PolicyKey, source: &str, refusals: &Refusals) -> Result<Model, Rejection> {
        if let Some((refused, why)) = refusals.get(key)
            && refused == source
        {
            return Err(Rejection::invalid(format!("spec.relations.model: {why}")));
        }
        let model = model::parse(source)
            .map_err(|error| Rejection::invalid(format!("spec.relations.model: {error}")))?;
        for name in model.classes.keys() {
            if let Some(namespace) = self.by_name.get(name) {
                return Err(Rejection::stalled(
                    Reason::Conflicted,
                    format!(
                        "spec.relations.model: class {name} is declared by {}, which is older; choose another name",
                        namespace.owner.told_to(key)
                    ),
                ));
            }
            if name == "PeristyleNone" {
                return Err(Rejection::invalid(
                    "spec.relations.model: class PeristyleNone is reserved; choose another name",
                ));
            }
        }
        Ok(model)
    }

    /// The model of `policy`, if it has one.
    ///
    /// # Errors
    /// Why the model is not published.
    pub fn model(&self, policy: &AuthPolicy) -> Result<Option<&Model>, Rejection> {
        match self.models.get(&PolicyKey::of(policy)) {
            Some(Ok(model)) => Ok(Some(model)),
            Some(Err(rejection)) => Err(rejection.clone()),
            None => Ok(None),
        }
    }

    /// The tuples of `policy`.
    ///
    /// # Errors
    /// When a tuple stands there twice, or speaks of a relation that no model of
    /// its own team declares.
    pub fn tuples(&self, policy: &AuthPolicy) -> Result<BTreeSet<Tuple>, Rejection> {
        let key = PolicyKey::of(policy);
        if let Some(rejection) = self.too_many.get(&key) {
            return Err(rejection.clone());
        }
        let mut tuples = BTreeSet::new();
        let declared = policy.spec.relations.iter().flat_map(|r| &r.tuples);
        for (index, tuple) in declared.enumerate() {
            let field = format!("spec.relations.tuples[{index}]");
            self.check(&key, &field, &tuple.namespace, &tuple.relation)?;
            match (&tuple.subject, &tuple.subject_set) {
                (Some(_), None) => {}
                (None, Some(set)) if set.relation.is_empty() => {
                    self.relations(&key, &field, &set.namespace)?;
                }
                (None, Some(set)) => {
                    self.check(&key, &format!("{field}.subjectSet"), &set.namespace, &set.relation)?;
                }
                _ => {
                    return Err(Rejection::invalid(format!(
                        "{field}: set exactly one of subject and subjectSet"
                    )));
                }
            }
            if !tuples.insert(tuple.clone()) {
                return Err(Rejection::invalid(format!("{field}: stands there twice; remove one")));
            }
        }
        Ok(tuples)
    }

    /// Checks the relation that a rule of `policy` asks for.
    ///
    /// # Errors
    /// When no model of its own team declares it: Keto would answer an error to
    /// every check, or decide by what strangers wrote.
    pub fn question(&self, policy: &AuthPolicy, rule: &str, relation: &Relation) -> Result<(), Rejection> {
        let field = format!("spec.rules[{rule}].authorization.relation");
        self.check(&PolicyKey::of(policy), &field, &relation.namespace, &relation.relation)
    }

    /// The relations of a class for a policy of `reader`'s namespace. One that
    /// another team declares is as good as absent: it may come and go, and with
    /// it who is let in. It reads the same too, so that nobody learns of it.
    fn relations(
        &self,
        reader: &PolicyKey,
        field: &str,
        namespace: &str,
    ) -> Result<&BTreeSet<String>, Rejection> {
        let found = self.by_name.get(namespace);
        match found.filter(|found| found.owner.namespace == reader.namespace) {
            Some(found) => Ok(&found.relations),
            None => Err(Rejection::waiting(
                Reason::ReferenceMissing,
                format!(
                    "{field}.namespace: no policy of this namespace and AuthClass declares class {namespace}; declare it in spec.relations.model"
                ),
            )),
        }
    }

    fn check(
        &self,
        reader: &PolicyKey,
        field: &str,
        namespace: &str,
        relation: &str,
    ) -> Result<(), Rejection> {
        let relations = self.relations(reader, field, namespace)?;
        if relations.contains(relation) {
            return Ok(());
        }
        let known: Vec<&str> = relations.iter().map(String::as_str).collect();
        Err(Rejection::invalid(format!(
            "{field}.relation: class {namespace} has no {relation:?}; it has {}",
            if known.is_empty() { "none".to_owned() } else { known.join(", ") }
        )))
    }
}

/// The source of the policy's model.
#[must_use]
pub fn source(policy: &AuthPolicy) -> Option<&str> {
    policy.spec.relations.as_ref()?.model.as_deref()
}

/// How much the policy's tuples take in the record.
fn tuple_bytes(policy: &AuthPolicy) -> usize {
    let tuples = policy.spec.relations.iter().flat_map(|relations| &relations.tuples);
    // A tuple is made of strings, which always encode.
    tuples.map(|tuple| serde_json::to_string(tuple).map_or(0, |text| text.len() + 1)).sum()
}
