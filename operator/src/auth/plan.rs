//! What is published for an AuthClass.

use std::collections::{BTreeMap, BTreeSet};

use peristyle_crds::{
    condition::Reason,
    v1alpha1::{AuthClass, auth_policy::Tuple},
};

use super::{
    compile::{Compiled, compile},
    key::PolicyKey,
    leaving::Leaving,
    model::{self, Model, NamespacesFile},
    rejection::Rejection,
    relations::{Refusals, source},
    rule::{self, Rule},
    world::World,
};

/// Bound on the rules file: a ConfigMap holds 1 MiB.
const MAX_FILE: usize = 900 * 1024;

/// The rules file of an AuthClass.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct RulesFile {
    /// JSON, one rule per line, sorted by id.
    pub text: String,
    /// The ids in it.
    pub ids: BTreeSet<String>,
}

/// Everything that the policies of a class ask for.
#[derive(Debug)]
pub struct Plan {
    /// Each policy's rules, or why it has none. Oldest first.
    pub policies: Vec<(PolicyKey, Result<Compiled, Rejection>)>,
    /// Models that are published, oldest first.
    pub models: Vec<(PolicyKey, Model)>,
    /// Policies whose rules do not fit beside those of older ones, with the hash
    /// of the rules and why.
    pub oversized: Vec<(PolicyKey, String, Rejection)>,
    /// Tuples of each policy.
    pub tuples: BTreeMap<PolicyKey, BTreeSet<Tuple>>,
}

impl Plan {
    /// Compiles every policy of `class`.
    ///
    /// Models and tuples do not depend on targets: a Service that is missing
    /// for a while must not take relations out of Keto.
    #[must_use]
    pub fn new(world: &World<'_>, class: &AuthClass, refusals: &Refusals) -> Self {
        let namespaces = world.namespaces(class, refusals);
        let mut plan =
            Self { policies: Vec::new(), models: Vec::new(), oversized: Vec::new(), tuples: BTreeMap::new() };
        let mut size = 0;
        for policy in world.of_class(class) {
            let key = PolicyKey::of(policy);
            let mut compiled = compile(world, class, &namespaces, policy);
            if let Ok(rules) = &compiled {
                let bytes: usize = rules.rules.iter().map(|rule| rule::text(rule).len() + 2).sum();
                if size + bytes > MAX_FILE {
                    let rejection = Rejection::stalled(
                        Reason::LimitExceeded,
                        format!(
                            "with the rules of all older policies of the AuthClass they would exceed {MAX_FILE} bytes; match more coarsely or use another AuthClass"
                        ),
                    );
                    plan.oversized.push((key.clone(), rules.hash.clone(), rejection.clone()));
                    compiled = Err(rejection);
                } else {
                    size += bytes;
                }
            }
            plan.policies.push((key.clone(), compiled));
            if let Ok(Some(model)) = namespaces.model(policy) {
                plan.models.push((key.clone(), model.clone()));
            }
            if let Ok(tuples) = namespaces.tuples(policy)
                && !tuples.is_empty()
            {
                plan.tuples.insert(key, tuples);
            }
        }
        plan
    }

    /// The rules of all policies and the sentinel.
    #[must_use]
    pub fn rules_file(&self) -> RulesFile {
        self.rules_file_beside(&[])
    }

    /// The same with rules that are still asked for, as far as there is room.
    #[must_use]
    pub fn rules_file_beside(&self, leaving: &[Leaving]) -> RulesFile {
        let rules = self
            .policies
            .iter()
            .filter_map(|(_, compiled)| compiled.as_ref().ok())
            .flat_map(|compiled| compiled.rules.iter().cloned())
            .chain([Rule::sentinel()]);
        let mut lines: BTreeMap<String, String> =
            rules.map(|rule| (rule.id.clone(), rule::text(&rule))).collect();
        let mut room = MAX_FILE.saturating_sub(lines.values().map(|line| line.len() + 2).sum());
        for leaving in leaving {
            let size: usize = leaving.rules.values().map(|line| line.len() + 2).sum();
            if size <= room {
                room -= size;
                lines.extend(leaving.rules.clone());
            }
        }
        let texts: Vec<&str> = lines.values().map(String::as_str).collect();
        RulesFile { text: format!("[\n{}\n]\n", texts.join(",\n")), ids: lines.into_keys().collect() }
    }

    /// The hosts for which there are rules.
    #[must_use]
    pub fn hosts(&self) -> BTreeSet<&str> {
        let compiled = self.policies.iter().filter_map(|(_, compiled)| compiled.as_ref().ok());
        compiled.flat_map(|compiled| compiled.territory.hosts.iter().map(String::as_str)).collect()
    }

    /// The models of all policies in one file.
    #[must_use]
    pub fn namespaces_file(&self) -> NamespacesFile {
        model::file(self.models.iter().map(|(_, model)| model)).0
    }

    /// The policy whose model stands on `line` of the namespaces file.
    #[must_use]
    pub fn author(&self, line: usize) -> Option<(&PolicyKey, usize)> {
        let (_, starts) = model::file(self.models.iter().map(|(_, model)| model));
        let index = starts.partition_point(|start| *start <= line).checked_sub(1)?;
        let (key, _) = self.models.get(index)?;
        Some((key, line - starts[index] + 1))
    }

    /// The tuples of all policies, each once.
    #[must_use]
    pub fn all_tuples(&self) -> BTreeSet<Tuple> {
        self.tuples.values().flatten().cloned().collect()
    }
}

/// Every source of a model of `class`, refused or not: when it is the same as
/// before, Keto would say the same again.
#[must_use]
pub fn sources(world: &World<'_>, class: &AuthClass) -> Vec<(PolicyKey, String)> {
    world
        .of_class(class)
        .filter_map(|policy| Some((PolicyKey::of(policy), source(policy)?.to_owned())))
        .collect()
}
