//! Whether a change of rules forbids anything.

use super::compile::Allowed;

/// Whether `new` may refuse somebody whom `old` lets pass. Where that cannot be
/// told from the rules, one by one, it may.
#[must_use]
pub fn tightens(old: &[Allowed], new: &[Allowed]) -> bool {
    !old.iter().all(|rule| {
        let requests =
            rule.requests.iter().flat_map(|(method, patterns)| patterns.iter().map(|p| (*method, p)));
        requests.into_iter().all(|(method, pattern)| {
            new.iter().any(|wider| {
                wider.decision.covers(&rule.decision)
                    && wider
                        .requests
                        .get(&method)
                        .is_some_and(|patterns| patterns.iter().any(|wide| wide.covers(pattern)))
            })
        })
    })
}
