//! Durations as Gateway API writes them (GEP-2257): `1h30m`, `500ms`.

use std::{fmt, str::FromStr, time::Duration as StdDuration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A length of time: one to four numbers with the units `h`, `m`, `s` or `ms`.
#[derive(Clone, Debug, Deserialize, Eq, JsonSchema, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Duration(#[schemars(regex(pattern = r"^([0-9]{1,5}(h|m|s|ms)){1,4}$"))] String);

/// The text is no duration.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct InvalidDuration(String);

impl fmt::Display for InvalidDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is not a duration; write for example 500ms, 30s or 1h30m", self.0)
    }
}

impl std::error::Error for InvalidDuration {}

impl Duration {
    /// The value for the standard library.
    ///
    /// # Errors
    /// When the text does not follow the grammar, which the schema prevents for
    /// objects that passed the API server.
    pub fn get(&self) -> Result<StdDuration, InvalidDuration> {
        parse(&self.0).ok_or_else(|| InvalidDuration(self.0.clone()))
    }
}

impl FromStr for Duration {
    type Err = InvalidDuration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map(|_| Self(text.to_owned())).ok_or_else(|| InvalidDuration(text.to_owned()))
    }
}

fn parse(text: &str) -> Option<StdDuration> {
    let mut rest = text;
    let mut total = StdDuration::ZERO;
    let mut parts = 0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        if !(1..=5).contains(&digits) || parts == 4 {
            return None;
        }
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        // "ms" before "m": the longer unit wins.
        let (unit, length) = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)]
            .into_iter()
            .find(|(unit, _)| rest.starts_with(unit))?;
        total += StdDuration::from_millis(number * length);
        rest = &rest[unit.len()..];
        parts += 1;
    }
    (parts > 0).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_adds_up() {
        assert_eq!(parse("1h30m"), Some(StdDuration::from_secs(5_400)));
        assert_eq!(parse("500ms"), Some(StdDuration::from_millis(500)));
        assert_eq!(parse("1m1s1ms"), Some(StdDuration::from_millis(61_001)));
        assert_eq!(parse("0s"), Some(StdDuration::ZERO));
    }

    #[test]
    fn what_the_schema_refuses_is_refused_here_too() {
        for text in ["", "5", "s", "1d", "123456s", "1h1m1s1ms1h", "-1s", "1 s"] {
            assert_eq!(parse(text), None, "{text:?}");
        }
    }
}
