//! Configuration from environment variables.
//!
//! An empty variable counts as unset, because manifests cannot always leave a
//! variable out. Every error names the variable, what it held and what it
//! should hold; values that may carry a password are never shown.

use std::{collections::HashMap, str::FromStr, time::Duration};

use secrecy::SecretString;

/// A variable that is missing or unusable.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// A required variable is unset or empty.
    #[error("{name} is missing: set it to {expected}")]
    Missing { name: String, expected: &'static str },
    /// A variable holds something else than it should.
    #[error("{name}={value:?} is not valid: set it to {expected}")]
    Invalid { name: String, value: String, expected: &'static str },
    /// As `Invalid`, for a variable that may hold a credential.
    #[error("{name} is not valid (its value is secret and not shown): set it to {expected}")]
    InvalidSecret { name: String, expected: &'static str },
    /// Variables that only make sense together.
    #[error("{name} is set but {other} is not: {remedy}")]
    Incomplete { name: &'static str, other: &'static str, remedy: &'static str },
}

/// A snapshot of the environment, so that tests need not change the process.
#[derive(Clone, Default)]
pub struct Env {
    values: HashMap<String, String>,
}

impl<K: Into<String>, V: Into<String>> FromIterator<(K, V)> for Env {
    fn from_iter<I: IntoIterator<Item = (K, V)>>(pairs: I) -> Self {
        Self { values: pairs.into_iter().map(|(k, v)| (k.into(), v.into())).collect() }
    }
}

impl Env {
    /// The variables of this process that are valid UTF-8.
    #[must_use]
    pub fn from_process() -> Self {
        std::env::vars_os()
            .filter_map(|(k, v)| Some((k.into_string().ok()?, v.into_string().ok()?)))
            .collect()
    }

    /// The trimmed value, or `None` when unset or empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// A value of type `T`, or `None` when unset.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] when the value does not parse.
    pub fn parse<T: FromStr>(&self, name: &str, expected: &'static str) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let invalid = |_| ConfigError::Invalid { name: name.into(), value: value.into(), expected };
        value.parse().map(Some).map_err(invalid)
    }

    /// As [`Env::parse`] with a default for an unset variable.
    ///
    /// # Errors
    /// As [`Env::parse`].
    pub fn or<T: FromStr>(&self, name: &str, default: T, expected: &'static str) -> Result<T, ConfigError> {
        Ok(self.parse(name, expected)?.unwrap_or(default))
    }

    /// A duration such as `500ms`, `2s`, `15m` or `24h`.
    ///
    /// # Errors
    /// [`ConfigError::Invalid`] when the value is not a positive duration.
    pub fn duration(&self, name: &str, default: Duration) -> Result<Duration, ConfigError> {
        let Some(value) = self.get(name) else { return Ok(default) };
        parse_duration(value).ok_or_else(|| ConfigError::Invalid {
            name: name.into(),
            value: value.into(),
            expected: "a duration above zero such as 500ms, 2s, 15m or 24h",
        })
    }

    /// The non-empty items of a list separated by commas.
    #[must_use]
    pub fn list(&self, name: &str) -> Vec<String> {
        let items = self.get(name).unwrap_or_default().split(',');
        items.map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
    }

    /// A required value.
    ///
    /// # Errors
    /// [`ConfigError::Missing`].
    pub fn required(&self, name: &str, expected: &'static str) -> Result<&str, ConfigError> {
        self.get(name).ok_or_else(|| ConfigError::Missing { name: name.into(), expected })
    }

    /// A required value that must not be shown.
    ///
    /// # Errors
    /// [`ConfigError::Missing`].
    pub fn secret(&self, name: &str, expected: &'static str) -> Result<SecretString, ConfigError> {
        self.required(name, expected).map(SecretString::from)
    }
}

fn parse_duration(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let millis: u64 = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    let total = number.parse::<u64>().ok()?.checked_mul(millis)?;
    (total > 0).then(|| Duration::from_millis(total))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("500ms", Some(500))]
    #[case("2s", Some(2_000))]
    #[case("15m", Some(900_000))]
    #[case("24h", Some(86_400_000))]
    #[case("0s", None)]
    #[case("15", None)]
    #[case("-1s", None)]
    #[case("1.5s", None)]
    #[case("99999999999999999999s", None)]
    #[case("18446744073709551615h", None)]
    fn durations_are_read_or_refused(#[case] text: &str, #[case] millis: Option<u64>) {
        assert_eq!(parse_duration(text), millis.map(Duration::from_millis));
    }

    #[test]
    fn an_invalid_value_names_variable_value_and_remedy() {
        let env = Env::from_iter([("PORT", "http")]);
        let error = env.or("PORT", 1_u16, "a port number").unwrap_err().to_string();
        assert_eq!(error, r#"PORT="http" is not valid: set it to a port number"#);
    }

    #[test]
    fn an_empty_variable_is_an_unset_variable() {
        let env = Env::from_iter([("PORT", " "), ("HOSTS", " a ,, b,")]);
        assert_eq!(env.or("PORT", 7_u16, "a port number"), Ok(7));
        assert_eq!(env.list("HOSTS"), ["a", "b"]);
        assert_eq!(
            env.required("PORT", "a port number").unwrap_err().to_string(),
            "PORT is missing: set it to a port number"
        );
    }

    proptest! {
        #[test]
        fn any_text_is_a_duration_or_none_and_never_a_panic(text in ".*") {
            let _ = parse_duration(&text);
        }
    }
}
