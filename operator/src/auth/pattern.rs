//! Sets of request paths, and their regular expressions.
//!
//! Oathkeeper 0.40.9 matches the path as it arrives: neither decoded nor
//! cleaned. Patterns therefore name only what every server reads the same way:
//! below a prefix no segment may be empty, `.` or `..`, and no character may be
//! outside RFC 3986's `pchar` or be `%` or `;`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::{self, Write as _},
};

use peristyle_crds::v1alpha1::PathMatch;

/// One path segment below a prefix. The three alternatives are told apart by
/// their first characters, so that a match needs no backtracking.
const SEGMENT: &str = r"(?:[A-Za-z0-9_~!$&'()*+,=:@-][A-Za-z0-9._~!$&'()*+,=:@-]*|\.[A-Za-z0-9_~!$&'()*+,=:@-][A-Za-z0-9._~!$&'()*+,=:@-]*|\.\.[A-Za-z0-9._~!$&'()*+,=:@-]+)";
/// A name in protobuf.
const IDENTIFIER: &str = "[A-Za-z_][A-Za-z0-9_]*";

/// A set of paths.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Pattern {
    /// This path only.
    Exact(String),
    /// The path and everything below it, by whole segments. No trailing `/`
    /// except for the root.
    Prefix(String),
    /// Every method of the gRPC service of this full name.
    Service(String),
}

/// Why a path or name cannot be matched.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum InvalidPattern {
    /// Neither or both kinds of path.
    #[error("set exactly one of prefix and exact")]
    Ambiguous,
    /// A character outside of the schema.
    #[error("{0:?} must begin with '/' and may hold letters, digits, '/', '.', '_', '~' and '-'")]
    Characters(String),
    /// A segment that servers read differently.
    #[error("{0:?} has an empty, '.' or '..' segment; write the path as the server sees it after cleaning")]
    Segment(String),
    /// No protobuf name.
    #[error("{0:?} is not a protobuf name; write it as in the .proto file, for example orders.v1.Orders")]
    Name(String),
}

impl Pattern {
    /// The pattern of a path of a spec.
    ///
    /// # Errors
    /// When the path is not one that can be matched safely.
    pub fn path(path: &PathMatch) -> Result<Self, InvalidPattern> {
        match (&path.exact, &path.prefix) {
            (Some(exact), None) => {
                // A trailing slash is a path of its own.
                check(exact, exact.strip_suffix('/').unwrap_or(exact))?;
                Ok(Self::Exact(exact.clone()))
            }
            (None, Some(prefix)) => {
                let cut = prefix.strip_suffix('/').unwrap_or(prefix);
                check(prefix, cut)?;
                Ok(Self::Prefix(if cut.is_empty() { "/" } else { cut }.to_owned()))
            }
            _ => Err(InvalidPattern::Ambiguous),
        }
    }

    /// The pattern of one gRPC method.
    ///
    /// # Errors
    /// When a name is not a protobuf name.
    pub fn method(service: &str, method: &str) -> Result<Self, InvalidPattern> {
        Self::service(service)?;
        if !is_identifier(method) {
            return Err(InvalidPattern::Name(method.to_owned()));
        }
        Ok(Self::Exact(format!("/{service}/{method}")))
    }

    /// The pattern of all methods of a gRPC service.
    ///
    /// # Errors
    /// When the name is not a protobuf name.
    pub fn service(service: &str) -> Result<Self, InvalidPattern> {
        if service.split('.').all(is_identifier) {
            Ok(Self::Service(service.to_owned()))
        } else {
            Err(InvalidPattern::Name(service.to_owned()))
        }
    }
}

impl Pattern {
    /// Whether `path`, which is written as in a spec, is in the set.
    #[must_use]
    pub fn contains(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) if prefix == "/" => true,
            Self::Prefix(prefix) => path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            Self::Service(name) => path
                .strip_prefix('/')
                .and_then(|path| path.split_once('/'))
                .is_some_and(|(service, method)| service == name && is_identifier(method)),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(path) => f.write_str(path),
            Self::Prefix(path) if path == "/" => f.write_str("/*"),
            Self::Prefix(path) => write!(f, "{path}/*"),
            Self::Service(name) => write!(f, "/{name}/*"),
        }
    }
}

/// `whole` as written, `cut` without the slash that its kind allows at the end.
fn check(whole: &str, cut: &str) -> Result<(), InvalidPattern> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "/._~-".contains(c);
    if !whole.starts_with('/') || !whole.chars().all(is_allowed) {
        return Err(InvalidPattern::Characters(whole.to_owned()));
    }
    let mut segments = cut.split('/').skip(1);
    if segments.any(|segment| matches!(segment, "" | "." | "..")) {
        return Err(InvalidPattern::Segment(whole.to_owned()));
    }
    Ok(())
}

/// Whether `text` is a name in protobuf.
#[must_use]
pub fn is_identifier(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// `literal` for a regular expression. A backslash before ASCII punctuation
/// means the character itself both in .NET's grammar (Oathkeeper) and here.
#[must_use]
pub fn escape(literal: &str) -> String {
    let mut escaped = String::with_capacity(literal.len() + 8);
    for c in literal.chars() {
        if !(c.is_ascii_alphanumeric() || matches!(c, '/' | '_')) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

/// The alternatives that match exactly the union of `patterns`, for a path
/// whose leading `/` was matched before. Methods of one service are joined.
#[must_use]
pub fn alternatives(patterns: &BTreeSet<Pattern>) -> String {
    let mut leaves: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut parts = Vec::new();
    for pattern in patterns {
        match pattern {
            Pattern::Exact(path) => {
                let path = path.strip_prefix('/').unwrap_or(path);
                let (parent, leaf) = path.split_at(path.rfind('/').map_or(0, |at| at + 1));
                leaves.entry(parent).or_default().push(leaf);
            }
            Pattern::Prefix(path) if path == "/" => parts.push(format!("(?:{SEGMENT}(?:/{SEGMENT})*/?)?")),
            Pattern::Prefix(path) => {
                let path = escape(path.strip_prefix('/').unwrap_or(path));
                parts.push(format!("{path}(?:/{SEGMENT})*/?"));
            }
            Pattern::Service(name) => parts.push(format!("{}/{IDENTIFIER}", escape(name))),
        }
    }
    for (parent, leaves) in leaves {
        let mut part = escape(parent);
        if let [leaf] = leaves.as_slice() {
            part.push_str(&escape(leaf));
        } else {
            let leaves: Vec<String> = leaves.into_iter().map(escape).collect();
            // Writing to a String cannot fail.
            let _ = write!(part, "(?:{})", leaves.join("|"));
        }
        parts.push(part);
    }
    parts.join("|")
}
