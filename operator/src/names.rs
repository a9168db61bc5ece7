//! Names of children: never longer than a label, never the same for two things.

use sha2::{Digest, Sha256};

/// Longest name of a child; some of them become labels or DNS labels.
pub const MAX: usize = 63;

/// The first 16 hex digits of a hash over `parts`. `["a", "bc"]` and `["ab", "c"]`
/// differ. Long enough that nobody who chooses some of the parts, such as a host
/// below a wildcard, finds others that give the same.
#[must_use]
pub fn hash<'a>(parts: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update(part.len().to_be_bytes());
        hash.update(part);
    }
    hex::encode(&hash.finalize()[..8])
}

/// `<stem>-<ending>`, with the stem cut where the whole would be too long.
#[must_use]
pub fn with_ending(stem: &str, ending: &str) -> String {
    let room = MAX.saturating_sub(ending.len() + 1);
    let cut = stem.char_indices().nth(room).map_or(stem, |(at, _)| &stem[..at]);
    format!("{}-{ending}", cut.trim_end_matches('-'))
}
