//! The mark of ownership on roles and databases, a comment in JSON.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Whose a role or database is. Every role of the server can read comments, so
/// the mark names neither namespace nor object.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Marker {
    /// UID of the Database object.
    pub uid: String,
    /// Digest of cluster, namespace and name. An object that was deleted with
    /// its data retained and created again has another UID and the same claim.
    /// The namespace counts by its UID: one that was deleted and made again may
    /// belong to another team.
    pub claim: String,
}

/// The mark on what lies in the trash. It carries all that emptying the trash
/// needs to know: no object tells of it any more.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Trashed {
    /// Whose it was.
    #[serde(flatten)]
    pub marker: Marker,
    /// Which class drops it, see [`keeper`].
    pub keeper: String,
    /// Since when it lies there, by the server's clock.
    pub trashed: Timestamp,
}

impl Trashed {
    /// The text of the comment.
    #[must_use]
    pub fn comment(&self) -> String {
        serde_json::json!(self).to_string()
    }

    /// Reads a comment; nothing when it is not such a mark.
    #[must_use]
    pub fn parse(comment: &str) -> Option<Self> {
        serde_json::from_str(comment).ok()
    }
}

/// What the DatabaseClass `class` of `cluster` is called in marks: several
/// clusters, and several classes, may use one server and keep trash differently long.
#[must_use]
pub fn keeper(cluster: &str, class: &str) -> String {
    hex::encode(Sha256::digest(format!("{cluster}/{class}")))
}

/// What a comment says about whose an object of the server is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ownership {
    /// This Database object made it.
    Ours,
    /// A Database object of the same cluster, namespace and name made it and is gone.
    Predecessor,
    /// Nobody's mark, or another's.
    Foreign,
}

impl Marker {
    /// The mark of the Database `name` with `uid` in the namespace with the UID
    /// `namespace`. `cluster` is unique among clusters: the UID of kube-system.
    #[must_use]
    pub fn new(uid: &str, cluster: &str, namespace: &str, name: &str) -> Self {
        Self {
            uid: uid.to_owned(),
            claim: hex::encode(Sha256::digest(format!("{cluster}/{namespace}/{name}"))),
        }
    }

    /// The text of the comment.
    #[must_use]
    pub fn comment(&self) -> String {
        serde_json::json!({"uid": self.uid, "claim": self.claim}).to_string()
    }

    /// Reads the comment of an existing object.
    #[must_use]
    pub fn ownership(&self, comment: Option<&str>) -> Ownership {
        match comment.and_then(|text| serde_json::from_str::<Self>(text).ok()) {
            Some(found) if found.uid == self.uid => Ownership::Ours,
            // One cluster has one object of a name: this object is its successor.
            Some(found) if found.claim == self.claim => Ownership::Predecessor,
            _ => Ownership::Foreign,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_object_or_its_successor_is_recognised() {
        let ours = Marker::new("u1", "c", "shop", "orders");
        let successor = Marker::new("u2", "c", "shop", "orders");
        let stranger = Marker::new("u3", "c", "shop", "other");
        let elsewhere = Marker::new("u4", "d", "shop", "orders");
        let comment = ours.comment();
        assert_eq!(ours.ownership(Some(&comment)), Ownership::Ours);
        assert_eq!(successor.ownership(Some(&comment)), Ownership::Predecessor);
        assert_eq!(stranger.ownership(Some(&comment)), Ownership::Foreign);
        assert_eq!(elsewhere.ownership(Some(&comment)), Ownership::Foreign);
        for text in [None, Some(""), Some("{}"), Some(r#"{"uid":"u1"}"#), Some("orders")] {
            assert_eq!(ours.ownership(text), Ownership::Foreign, "{text:?}");
        }
    }

    #[test]
    fn the_comment_does_not_tell_namespace_or_name() {
        let comment = Marker::new("u1", "c", "payroll", "salaries").comment();
        assert!(!comment.contains("payroll") && !comment.contains("salaries"));
    }
}
