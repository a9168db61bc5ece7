//! A route as every edge understands it; no provider's words.

use std::collections::BTreeSet;

use peristyle_crds::{condition::Reason, v1alpha1::PathMatch};

/// What the policies say about a route that requires one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RouteProtection {
    /// No policy targets it.
    None,
    /// A policy with this hash targets it; whether its rules are live is not known (yet).
    Unknown {
        /// Hash of the compiled policy.
        hash: String,
        /// Where decisions are made.
        decisions_url: String,
    },
    /// A policy targets it and its rules are not live.
    Pending {
        /// Why not.
        reason: Reason,
        /// The policy and the cause.
        message: String,
    },
    /// The rules change and the new ones are not live yet; what is decided by
    /// those that were may stay up.
    Changing {
        /// Hash of the rules that were live.
        hash: String,
        /// Hosts that only the policy decided since.
        hosts: BTreeSet<String>,
        /// Where decisions are made.
        decisions_url: String,
        /// Why the new ones are not live.
        reason: Reason,
        /// The policy and the cause.
        message: String,
    },
    /// The rules are live.
    Live {
        /// Hash of the compiled policy.
        hash: String,
        /// Where decisions are made.
        decisions_url: String,
    },
}

/// Who may pass.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Guard {
    /// Everyone.
    Open,
    /// Whom the decision service lets pass.
    Decided {
        /// Where decisions are made.
        decisions_url: String,
        /// Hash of the policy that is enforced.
        hash: String,
    },
    /// Nobody: the host answers, and refuses.
    Withheld,
}

impl Guard {
    /// The guard of a route to `host` that requires a policy.
    ///
    /// `serving` is what protects the route at this moment. As long as the
    /// state of the policy is unknown (the operator has just started), what
    /// already enforces that very policy goes on. While its rules change, a
    /// route is served by those that were live if they decide its host: it may
    /// still bear the hash of older ones when changes follow each other closely.
    /// Anything else is withheld.
    #[must_use]
    pub fn required(protection: &RouteProtection, host: &Host, serving: Option<&Self>) -> Self {
        let asks = |url: &String| matches!(serving, Some(Self::Decided { decisions_url, .. }) if decisions_url == url);
        match protection {
            RouteProtection::Live { hash, decisions_url } => {
                Self::Decided { decisions_url: decisions_url.clone(), hash: hash.clone() }
            }
            // They would not decide a host that is new to the policy.
            RouteProtection::Changing { hash, hosts, decisions_url, .. }
                if asks(decisions_url) && hosts.contains(host.as_str()) =>
            {
                Self::Decided { decisions_url: decisions_url.clone(), hash: hash.clone() }
            }
            RouteProtection::Unknown { hash, decisions_url } => {
                let known = Self::Decided { decisions_url: decisions_url.clone(), hash: hash.clone() };
                if serving == Some(&known) { known } else { Self::Withheld }
            }
            _ => Self::Withheld,
        }
    }
}

/// A host name that cannot break out of any rule it is written into.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Host(String);

/// The text is no host name or path that may stand in a route.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{what} {text:?} has a character or form that routes do not allow; use {allowed}")]
pub struct Unsafe {
    what: &'static str,
    text: String,
    allowed: &'static str,
}

impl Host {
    /// Accepts lower case DNS names.
    ///
    /// # Errors
    /// When `text` is anything else.
    pub fn parse(text: &str) -> Result<Self, Unsafe> {
        let is_label = |label: &str| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        };
        if text.len() <= 253 && text.split('.').all(is_label) {
            return Ok(Self(text.to_owned()));
        }
        Err(Unsafe {
            what: "host",
            text: text.to_owned(),
            allowed: "lower case letters, digits, '-' and '.'",
        })
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A path that cannot break out of any rule it is written into.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum RoutePath {
    /// Every path.
    All,
    /// The path itself and everything below it; no trailing slash.
    Prefix(String),
    /// The path alone.
    Exact(String),
}

impl RoutePath {
    /// Accepts paths of letters, digits and `/._~-` in the form to which the
    /// edge cleans those of requests.
    ///
    /// # Errors
    /// When the path is anything else, or neither prefix nor exact is set.
    pub fn parse(path: &PathMatch) -> Result<Self, Unsafe> {
        let checked = |text: &str| {
            let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"/._~-".contains(&b);
            let is_clean = |path: &str| {
                let segments: Vec<&str> = path.split('/').collect();
                // A slash at the end leaves an empty one.
                let (last, inner) = segments.split_last().unwrap_or((&"", &[]));
                let is_dots = |segment: &&str| matches!(*segment, "." | "..");
                !is_dots(last) && !inner.iter().any(|segment| segment.is_empty() || is_dots(segment))
            };
            if text.strip_prefix('/').is_some_and(is_clean) && text.bytes().all(is_plain) {
                return Ok(text.to_owned());
            }
            Err(Unsafe {
                what: "path",
                text: text.to_owned(),
                allowed: "a leading '/', then letters, digits and /._~-, without empty, '.' and '..' segments",
            })
        };
        match (&path.prefix, &path.exact) {
            (Some(prefix), None) => {
                let prefix = checked(prefix)?;
                match prefix.trim_end_matches('/') {
                    "" => Ok(Self::All),
                    trimmed => Ok(Self::Prefix(trimmed.to_owned())),
                }
            }
            (None, Some(exact)) => Ok(Self::Exact(checked(exact)?)),
            _ => Err(Unsafe {
                what: "path",
                text: format!("{path:?}"),
                allowed: "exactly one of prefix and exact",
            }),
        }
    }

    /// Orders paths so that of two that match a request the narrower is greater.
    #[must_use]
    pub fn specificity(&self) -> usize {
        match self {
            Self::All => 0,
            Self::Prefix(path) => 2 * path.len(),
            Self::Exact(path) => 2 * path.len() + 1,
        }
    }

    /// As it stands in a URL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        match self {
            Self::All => "",
            Self::Prefix(path) | Self::Exact(path) => path,
        }
    }
}

/// What is spoken behind the route.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Speaks {
    /// gRPC over HTTP/2 without TLS.
    #[default]
    Grpc,
    /// HTTP/1.1.
    Http,
}

/// Where requests go: a port of the core Service that carries the object's name.
/// By default nowhere, as for a route that is withheld; its fence then answers
/// gRPC calls too.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Backend {
    /// Name of the core Service.
    pub service: String,
    /// Port of the core Service.
    pub port: i32,
    /// What is spoken there.
    pub speaks: Speaks,
}

/// One host of one expose entry.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Route {
    /// Name of the expose entry.
    pub expose: String,
    /// Name of the EdgeClass.
    pub class: String,
    /// Entry points of the edge.
    pub entry_points: Vec<String>,
    /// The host.
    pub host: Host,
    /// Paths that are served; never empty, no duplicates, sorted.
    pub paths: Vec<RoutePath>,
    /// Where requests go.
    pub backend: Backend,
    /// Who may pass.
    pub guard: Guard,
}
