//! Access rules as Oathkeeper 0.40.9 reads them.

use std::collections::{BTreeMap, BTreeSet};

use peristyle_crds::v1alpha1::auth_policy::{Algorithm, HttpMethod, Relation};
use regex::Regex;
use serde::Serialize;
use sha2::{Digest, Sha256};

use super::{
    id_token::Minted,
    matches::{METHODS, word},
    pattern::{Pattern, alternatives, escape},
};

/// The release whose rule format this is; Oathkeeper migrates from it.
const VERSION: &str = "v0.40.9";
/// The identity header that every allowing rule sets, so that a client's own
/// never reaches the workload.
pub const SUBJECT_HEADER: &str = "X-User";
/// A host that no request has; its rule proves that Oathkeeper decides.
pub const SENTINEL_HOST: &str = "peristyle.invalid";

/// One access rule.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Rule {
    /// Unique over all namespaces; holds a hash of the content, because
    /// Oathkeeper caches header templates by id and never forgets them.
    pub id: String,
    version: &'static str,
    upstream: Upstream,
    #[serde(rename = "match")]
    matches: Match,
    authenticators: Vec<Authenticator>,
    authorizer: Authorizer,
    mutators: Vec<Mutator>,
    errors: Vec<ErrorHandler>,
}

/// Not used for decisions; the field must exist.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
struct Upstream {
    url: String,
}

/// Which requests the rule decides.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Match {
    url: String,
    methods: Vec<HttpMethod>,
}

/// How the caller proves who it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "handler", content = "config", rename_all = "snake_case")]
pub enum Authenticator {
    /// Anyone, whatever the request carries.
    Noop,
    /// A JSON Web Token.
    Jwt(JwtConfig),
}

/// What a token must satisfy.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct JwtConfig {
    /// Key sets of the issuer.
    pub jwks_urls: Vec<String>,
    /// `iss`, one of these.
    pub trusted_issuers: Vec<String>,
    /// `aud`, all of these.
    pub target_audience: Vec<String>,
    /// `alg`, one of these.
    pub allowed_algorithms: Vec<Algorithm>,
    /// Where the token stands.
    pub token_from: TokenFrom,
}

/// Where the token stands.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TokenFrom {
    /// Name of the header.
    pub header: &'static str,
}

/// What the caller must be allowed.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "handler", content = "config", rename_all = "snake_case")]
pub enum Authorizer {
    /// Nothing more.
    Allow,
    /// It never is.
    Deny,
    /// What the remote answers 200 to.
    RemoteJson(RemoteJsonConfig),
}

/// A question to Keto.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct RemoteJsonConfig {
    remote: String,
    payload: String,
    retry: Retry,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Retry {
    max_delay: &'static str,
    give_up_after: &'static str,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "handler", content = "config", rename_all = "snake_case")]
enum Mutator {
    Noop,
    Header {
        headers: BTreeMap<&'static str, &'static str>,
    },
    /// Sets `Authorization`; the chart's configuration says where the keys are.
    IdToken {
        issuer_url: String,
        claims: String,
        ttl: String,
    },
}

#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "handler", rename_all = "snake_case")]
enum ErrorHandler {
    Json,
}

impl Mutator {
    fn id_token(minted: &Minted) -> Self {
        let audiences: Vec<String> = minted.audiences.iter().map(|audience| quote(audience)).collect();
        Self::IdToken {
            issuer_url: minted.issuer.clone(),
            claims: format!(r#"{{"aud":[{}]}}"#, audiences.join(",")),
            // 0.40.9 takes one number with one unit.
            ttl: format!("{}s", minted.ttl.as_secs()),
        }
    }
}

impl Authorizer {
    /// Asks Keto whether the subject has `relation`.
    #[must_use]
    pub fn relation(keto: &str, relation: &Relation) -> Self {
        Self::RemoteJson(RemoteJsonConfig {
            remote: format!("{}/relation-tuples/check", keto.trim_end_matches('/')),
            payload: format!(
                r#"{{"namespace":{},"object":{},"relation":{},"subject_id":{{{{ print .Subject | toJson }}}}}}"#,
                quote(&relation.namespace),
                quote(&relation.object),
                quote(&relation.relation),
            ),
            // 0.40.9 multiplies max_delay by 10^6: this is half a second for
            // each of five attempts.
            retry: Retry { max_delay: "500ns", give_up_after: "100ms" },
        })
    }
}

/// `text` as a JSON string that is no template of Go either.
fn quote(text: &str) -> String {
    serde_json::Value::from(text).to_string().replace('{', "\\u007b")
}

/// A URL pattern of Oathkeeper: literal outside of `<>`, .NET's grammar inside.
#[derive(Clone, Debug)]
pub struct UrlPattern {
    host: String,
    paths: Paths,
}

/// Paths after the leading slash.
#[derive(Clone, Debug)]
enum Paths {
    /// One of these alternatives. The empty one is the path `/`.
    Within(String),
    /// None of these.
    Outside(String),
    /// Every path.
    All,
}

impl UrlPattern {
    /// The requests to `host` whose path is in `patterns`.
    ///
    /// The host is matched in any case, as Traefik does, and with any port.
    ///
    /// # Errors
    /// When the regular expression does not compile, which would make
    /// Oathkeeper answer 500 to everything.
    pub fn within(host: &str, patterns: &BTreeSet<Pattern>) -> Result<Self, regex::Error> {
        let paths = alternatives(patterns);
        Regex::new(&paths)?;
        Ok(Self { host: escape(host), paths: Paths::Within(paths) })
    }

    /// The requests to `host` whose path is not in `patterns`.
    #[must_use]
    pub fn outside(host: &str, patterns: &BTreeSet<Pattern>) -> Self {
        let paths = if patterns.is_empty() { Paths::All } else { Paths::Outside(alternatives(patterns)) };
        Self { host: escape(host), paths }
    }

    fn render(&self) -> String {
        let paths = match &self.paths {
            Paths::Within(paths) if paths.is_empty() => "(?:)".to_owned(),
            Paths::Within(paths) => paths.clone(),
            Paths::Outside(paths) => format!("(?!(?:{paths})$).*"),
            Paths::All => ".*".to_owned(),
        };
        format!("<https?>://<(?i:{})><(?::[0-9]+)?>/<{paths}>", self.host)
    }
}

/// What a rule does with the requests it matches.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// How the caller proves who it is.
    pub authenticator: Authenticator,
    /// What it must be allowed.
    pub authorizer: Authorizer,
}

impl Decision {
    /// Refuses everyone with 403, with or without credentials.
    #[must_use]
    pub const fn deny() -> Self {
        Self { authenticator: Authenticator::Noop, authorizer: Authorizer::Deny }
    }

    /// Allows everyone. A token that is sent all the same is not looked at.
    #[must_use]
    pub const fn public() -> Self {
        Self { authenticator: Authenticator::Noop, authorizer: Authorizer::Allow }
    }

    /// Whether everyone may call.
    #[must_use]
    pub const fn is_public(&self) -> bool {
        matches!((&self.authenticator, &self.authorizer), (Authenticator::Noop, Authorizer::Allow))
    }

    /// Whether whoever `other` lets pass may pass here too. Where it cannot be
    /// told from the words, it does not.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        let same_token = self.authenticator == other.authenticator;
        self == other || self.is_public() || (same_token && self.authorizer == Authorizer::Allow)
    }

    fn mutators(&self, minted: Option<&Minted>) -> Vec<Mutator> {
        // `noop` would echo the request's headers: it only stands where nobody passes.
        let (subject, minted) = match (&self.authorizer, &self.authenticator) {
            (Authorizer::Deny, _) => return vec![Mutator::Noop],
            (_, Authenticator::Noop) => ("", None),
            (_, Authenticator::Jwt(_)) => ("{{ print .Subject }}", minted),
        };
        let header = Mutator::Header { headers: [(SUBJECT_HEADER, subject)].into() };
        [header].into_iter().chain(minted.map(Mutator::id_token)).collect()
    }
}

impl Rule {
    /// A rule called `name` with the hash of its content at the end. Calls
    /// that prove who they are go on with the token `minted`.
    #[must_use]
    pub fn new(
        name: &str,
        methods: Vec<HttpMethod>,
        url: &UrlPattern,
        decision: Decision,
        minted: Option<&Minted>,
    ) -> Self {
        let mutators = decision.mutators(minted);
        let mut rule = Self {
            id: String::new(),
            version: VERSION,
            upstream: Upstream::default(),
            matches: Match { url: url.render(), methods },
            authenticators: vec![decision.authenticator],
            authorizer: decision.authorizer,
            mutators,
            errors: vec![ErrorHandler::Json],
        };
        rule.id = format!("{name}.{}", hash([&rule]));
        rule
    }

    /// The rule that makes the file never empty. `GET /health/ready` needs one
    /// rule, and a decision about its host proves that every pattern compiles.
    #[must_use]
    pub fn sentinel() -> Self {
        let url = UrlPattern::outside(SENTINEL_HOST, &BTreeSet::new());
        Self::new("peristyle", METHODS.to_vec(), &url, Decision::deny(), None)
    }

    /// The URL pattern.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.matches.url
    }

    /// The methods, as they stand in a request.
    pub fn methods(&self) -> impl Iterator<Item = &'static str> {
        self.matches.methods.iter().copied().map(word)
    }
}

/// The first 16 hexadecimal digits of the SHA-256 of `rules`: what holds for one
/// hash must not hold for rules that somebody made to have it.
#[must_use]
pub fn hash<'a>(rules: impl IntoIterator<Item = &'a Rule>) -> String {
    hash_of(rules.into_iter().map(text))
}

/// The same, of rules as [`text`] gives them.
#[must_use]
pub fn hash_of(texts: impl IntoIterator<Item = impl AsRef<[u8]>>) -> String {
    let mut hasher = Sha256::new();
    for text in texts {
        hasher.update(text);
        hasher.update([0]);
    }
    hex::encode(&hasher.finalize()[..8])
}

/// The rule as JSON. A rule is made of strings, lists and maps with string
/// keys, which always encode.
#[must_use]
pub fn text(rule: &Rule) -> String {
    serde_json::to_string(rule).unwrap_or_default()
}
