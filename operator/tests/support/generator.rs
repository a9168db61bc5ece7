//! Values that a schema of a CustomResourceDefinition accepts.
//!
//! Rules in CEL are not looked at: they only accept less.

use std::collections::HashMap;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use proptest::{
    strategy::{Strategy, ValueTree},
    string::string_regex,
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::IndexedRandom};
use serde_json::{Map, Value, json};

/// Strings that mean something to somebody.
const HOSTILE: [&str; 16] = [
    "",
    "x",
    "default",
    "kube-system",
    "root",
    "ALL",
    "hostPath",
    "/",
    "../../etc/passwd",
    "$(POD_IP)",
    "a\nb",
    "\"}, \"hostNetwork\": true",
    "privileged: true",
    "latest",
    "r.test/o@sha256:ab",
    "ü\u{0}",
];
/// Different strings of one pattern.
const POOL: usize = 64;

/// A source of values; the same seed gives the same ones.
pub struct Generator {
    rng: StdRng,
    runner: TestRunner,
    pools: HashMap<String, Vec<String>>,
}

impl Generator {
    pub fn new(seed: u8) -> Self {
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]);
        Self {
            rng: StdRng::seed_from_u64(seed.into()),
            runner: TestRunner::new_with_rng(Config::default(), rng),
            pools: HashMap::new(),
        }
    }

    /// A value of `schema`.
    pub fn value(&mut self, schema: &JSONSchemaProps) -> Value {
        if schema.x_kubernetes_int_or_string == Some(true) {
            return [json!("64Mi"), json!("100m"), json!(1), json!("-1")]
                .choose(&mut self.rng)
                .unwrap()
                .clone();
        }
        if let Some(words) = &schema.enum_ {
            return words.choose(&mut self.rng).unwrap().0.clone();
        }
        match schema.type_.as_deref().unwrap() {
            "object" => self.object(schema),
            "array" => {
                let Some(JSONSchemaPropsOrArray::Schema(items)) = &schema.items else { panic!("{schema:?}") };
                let least = schema.min_items.unwrap_or(0);
                let count = self.rng.random_range(least..least + 3);
                (0..count).map(|_| self.value(items)).collect()
            }
            "string" => self.string(schema).into(),
            "integer" => {
                let bound = |bound: Option<f64>, default: i64| {
                    bound.map_or(default, |bound| format!("{bound}").parse().unwrap())
                };
                self.rng.random_range(bound(schema.minimum, -5)..=bound(schema.maximum, 100_000)).into()
            }
            "boolean" => self.rng.random_bool(0.5).into(),
            other => panic!("a type that is not generated: {other}"),
        }
    }

    fn object(&mut self, schema: &JSONSchemaProps) -> Value {
        let mut object = Map::new();
        if let Some(JSONSchemaPropsOrBool::Schema(values)) = &schema.additional_properties {
            for _ in 0..self.rng.random_range(0..3) {
                let key = *HOSTILE.choose(&mut self.rng).unwrap();
                object.insert(key.to_owned(), self.value(values));
            }
        }
        for (name, property) in schema.properties.iter().flatten() {
            let is_required = schema.required.iter().flatten().any(|required| required == name);
            if is_required || self.rng.random_bool(0.3) {
                let value = self.value(property);
                object.insert(name.clone(), value);
            }
        }
        object.into()
    }

    fn string(&mut self, schema: &JSONSchemaProps) -> String {
        let Some(pattern) = &schema.pattern else {
            return (*HOSTILE.choose(&mut self.rng).unwrap()).to_owned();
        };
        let pool = self.pools.entry(pattern.clone()).or_insert_with(|| {
            let strategy = string_regex(pattern.trim_start_matches('^').trim_end_matches('$')).unwrap();
            (0..POOL).map(|_| strategy.new_tree(&mut self.runner).unwrap().current()).collect()
        });
        pool.choose(&mut self.rng).unwrap().clone()
    }
}
