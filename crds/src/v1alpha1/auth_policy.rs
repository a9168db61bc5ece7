//! `AuthPolicy`: who may call which method.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::PathMatch;

/// Targets, accepted credentials, rules and relations. What no rule matches is refused.
#[derive(Clone, CustomResource, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[kube(
    group = "peristyle.dev",
    version = "v1alpha1",
    kind = "AuthPolicy",
    plural = "authpolicies",
    namespaced,
    status = "AuthPolicyStatus",
    shortname = "apol",
    category = "peristyle",
    derive = "PartialEq",
    doc = "Who may call which method of the targeted Services. What no rule matches is refused.",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].reason"),
    printcolumn(name = "Programmed", type_ = "string", json_path = ".status.conditions[?(@.type=='Programmed')].status"),
    printcolumn(name = "Enforced", type_ = "string", json_path = ".status.conditions[?(@.type=='Enforced')].status"),
    printcolumn(name = "Hash", type_ = "string", json_path = ".status.compiledHash"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].message", priority = 1),
    validation = ("self.metadata.name.matches('^[a-z]([-a-z0-9]{0,48}[a-z0-9])?$')",
        "metadata.name: at most 50 lower case letters, digits and '-', starting with a letter")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = ("self.rules.all(r, !has(r.authentication) || r.authentication.all(a, has(self.authentication) && self.authentication.exists(x, x.name == a)))",
        "spec.rules[].authentication must name entries of spec.authentication")
)]
pub struct AuthPolicySpec {
    /// Name of the AuthClass. Default: the class annotated as default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub class_name: Option<String>,

    /// Services of the same namespace that this policy protects.
    #[schemars(length(min = 1, max = 16))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub targets: Vec<Target>,

    /// Ways to prove who calls; rules refer to them by name. Default: none, every rule is public.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub authentication: Vec<Authentication>,

    /// What is allowed. No two rules may match the same request.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub rules: Vec<AccessRule>,

    /// The relation model and its tuples in Keto. Default: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relations: Option<Relations>,

    /// What becomes of the routes while a change of the rules is on its way to
    /// every Oathkeeper pod, usually for less than a second. Default: Block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_tighten: Option<OnTighten>,
}

/// What becomes of the routes while a change of the rules is on its way to every Oathkeeper pod,
/// usually for less than a second. Default: Block.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub enum OnTighten {
    /// Routes are withheld until the new rules are live, unless these allow
    /// all that the old ones allowed: then they stay up.
    #[default]
    Block,
    /// Routes stay up. Until the new rules are live a call may still be decided
    /// by the old ones, never by neither.
    Serve,
}

/// A Service and optionally one of its routes.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct Target {
    /// Name of the `services.peristyle.dev`.
    #[schemars(length(min = 1, max = 50))]
    pub service: String,
    /// Name of an expose entry. Default: all routes of the Service that require a policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 40))]
    pub expose: Option<String>,
}

/// A way to prove who calls.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Authentication {
    /// Name, unique in the policy.
    #[schemars(length(min = 1, max = 40), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// A JSON Web Token in the `Authorization` header.
    pub jwt: Jwt,
}

/// What a token must satisfy.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
pub struct Jwt {
    /// `iss`, exactly; one of the AuthClass's issuers, which also gives the key set's address.
    #[schemars(length(min = 1, max = 512))]
    pub issuer: String,
    /// `aud`: the token must name every one of these.
    #[schemars(length(min = 1, max = 8), inner(length(min = 1, max = 256)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub audiences: Vec<String>,
    /// Accepted signature algorithms. Default: RS256.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 9))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub algorithms: Vec<Algorithm>,
}

/// Signature algorithms with a public key (RFC 7518).
#[derive(
    Clone, Copy, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize,
)]
#[allow(missing_docs, reason = "the names are those of RFC 7518")]
pub enum Algorithm {
    #[default]
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    ES512,
}

/// What is allowed, and for whom.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[x_kube(
    validation = ("has(self.public) != has(self.authentication)", "set exactly one of public and authentication"),
    validation = ("!has(self.public) || !has(self.authorization)", "a public rule cannot have authorization")
)]
pub struct AccessRule {
    /// Name, unique in the policy.
    #[schemars(length(min = 1, max = 40), regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"))]
    pub name: String,
    /// Requests that the rule is about.
    #[serde(rename = "match")]
    pub matches: Match,
    /// Name of the entry of `spec.authentication` that is accepted. One only: with two,
    /// Oathkeeper would let each issuer's keys sign for the other. Default: none, the rule is public.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1), extend("minItems" = 1))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub authentication: Vec<String>,
    /// What the caller must be allowed. Default: being authenticated is enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorization: Option<Authorization>,
    /// Everyone may call, without credentials; written out, never implied. Default: not public.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public: Option<Public>,
}

/// Everyone may call.
#[derive(Clone, Debug, Default, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
pub struct Public {}

/// Requests by gRPC method or by HTTP path: exactly one of the two.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[x_kube(validation = ("has(self.grpc) != has(self.http)", "set exactly one of grpc and http"))]
pub struct Match {
    /// gRPC methods. Default: none, `http` is set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("minItems" = 1))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub grpc: Vec<GrpcMatch>,
    /// HTTP paths. Default: none, `grpc` is set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("minItems" = 1))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub http: Vec<HttpMatch>,
}

/// Methods of one gRPC service.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
pub struct GrpcMatch {
    /// Full name with the package, for example `orders.v1.Orders`.
    #[schemars(
        length(min = 1, max = 253),
        regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z_][A-Za-z0-9_]*)*$")
    )]
    pub service: String,
    /// Method names. Default: all methods of the service.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 64),
        inner(length(min = 1, max = 128), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"))
    )]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub methods: Vec<String>,
}

/// One HTTP path with its methods.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
pub struct HttpMatch {
    /// The path. A prefix never matches a path with `%`, `;` or `\`, which servers read differently.
    pub path: PathMatch,
    /// HTTP methods. Default: GET and HEAD.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 7))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub methods: Vec<HttpMethod>,
}

/// HTTP methods.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "UPPERCASE")]
#[allow(missing_docs, reason = "the names are those of RFC 9110")]
pub enum HttpMethod {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
}

/// What the caller must be allowed.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Authorization {
    /// A relation that Keto must confirm for the token's subject.
    pub relation: Relation,
}

/// A relation: is the subject `relation` of `namespace:object`?
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct Relation {
    /// Keto namespace, a class of the model.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub namespace: String,
    /// Object.
    #[schemars(length(min = 1, max = 256), regex(pattern = r"^[A-Za-z0-9_./:@-]+$"))]
    pub object: String,
    /// Relation or permission of the model.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub relation: String,
}

/// The relation model and its tuples.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
pub struct Relations {
    /// Ory Permission Language. A namespace belongs to the first policy of the class that declares it.
    /// Default: none, or that of another policy of the class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 32768))]
    pub model: Option<String>,
    /// Relation tuples that exist as long as they stand here. Tuples written by others are left alone.
    /// Default: none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1000))]
    #[x_kube(merge_strategy = ListMerge::Atomic)]
    pub tuples: Vec<Tuple>,
}

/// A relation tuple: `namespace:object#relation@subject`.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, KubeSchema, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = ("has(self.subject) != has(self.subjectSet)", "set exactly one of subject and subjectSet"))]
pub struct Tuple {
    /// Keto namespace.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub namespace: String,
    /// Object.
    #[schemars(length(min = 1, max = 256))]
    pub object: String,
    /// Relation.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub relation: String,
    /// A subject, as it stands in a token's `sub`. Default: none, `subjectSet` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub subject: Option<String>,
    /// Everyone who has a relation to another object. Default: none, `subject` is set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject_set: Option<SubjectSet>,
}

/// Everyone who is `relation` of `namespace:object`.
#[derive(Clone, Debug, Default, Deserialize, Eq, Hash, JsonSchema, Ord, PartialEq, PartialOrd, Serialize)]
pub struct SubjectSet {
    /// Keto namespace.
    #[schemars(length(min = 1, max = 64), regex(pattern = r"^[A-Za-z_][A-Za-z0-9_]*$"))]
    pub namespace: String,
    /// Object.
    #[schemars(length(min = 1, max = 256))]
    pub object: String,
    /// Relation. Empty: the object itself.
    #[schemars(length(max = 64))]
    pub relation: String,
}

/// What the operator observed.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AuthPolicyStatus {
    /// Generation of the spec that this status speaks of; -1 before the first look.
    #[serde(default)]
    pub observed_generation: i64,
    /// Ready, Reconciling, Stalled, Accepted, Programmed, Enforced. After a change of the policy
    /// wait for Ready here; the targeted Services, whose specs did not change, may for a moment
    /// still say how they were.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
    /// Hash of the compiled rules, part of each rule's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compiled_hash: Option<String>,
    /// The rules as Oathkeeper has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub rules: Vec<CompiledRule>,
    /// Tuples of this policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tuples: Option<TupleCount>,
}

/// A rule as Oathkeeper has it.
#[derive(Clone, Debug, Default, Deserialize, KubeSchema, PartialEq, Serialize)]
pub struct CompiledRule {
    /// Name of the rule.
    pub name: String,
    /// Ids in Oathkeeper, one for each host.
    #[x_kube(merge_strategy = ListMerge::Set)]
    pub ids: Vec<String>,
}

/// How many tuples are declared and how many Keto has.
#[derive(Clone, Debug, Default, Deserialize, JsonSchema, PartialEq, Serialize)]
pub struct TupleCount {
    /// In the spec.
    pub declared: i32,
    /// In Keto.
    pub applied: i32,
}
