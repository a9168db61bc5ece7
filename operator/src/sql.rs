//! The SQL that provisions and drops a database, planned without a server.
//!
//! A plan is a function of what should be and what the catalog shows. Running
//! it and planning again gives an empty plan, whatever was lost in between.

pub mod catalog;
pub mod marker;
pub mod names;
pub mod password;
pub mod plan;

use std::{fmt, time::Duration};

use postgres_protocol::escape::{escape_identifier, escape_literal};

use crate::retry::CALL_DEADLINE;

/// How long the copy or the removal of a database may take.
const LENGTHY: Duration = Duration::from_secs(55);

/// Bytes that PostgreSQL keeps of a name; it cuts longer ones without an error.
pub const MAX_NAME: usize = 63;

/// The name of an object of the server; displays quoted.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Identifier(String);

/// The text cannot be a name on the server.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0:?} is not a name for PostgreSQL; use 1 to 63 bytes without NUL")]
pub struct InvalidIdentifier(String);

impl Identifier {
    /// Accepts what PostgreSQL stores unchanged when quoted.
    ///
    /// # Errors
    /// When `name` is empty, longer than 63 bytes or holds a NUL.
    pub fn new(name: impl Into<String>) -> Result<Self, InvalidIdentifier> {
        let name = name.into();
        if name.is_empty() || name.len() > MAX_NAME || name.contains('\0') {
            return Err(InvalidIdentifier(name));
        }
        Ok(Self(name))
    }

    /// The name itself, for parameters and comparisons; never for SQL text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape_identifier(&self.0))
    }
}

/// A string constant; displays quoted and escaped.
#[derive(Clone, Copy, Debug)]
pub struct Literal<'a>(pub &'a str);

impl fmt::Display for Literal<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&escape_literal(self.0))
    }
}

/// One message to the server. `Debug` and `Display` show no password verifier.
#[derive(Clone, Eq, PartialEq)]
pub struct Statement {
    step: &'static str,
    text: String,
    shown: String,
    patience: Duration,
}

impl Statement {
    /// A statement of one command, outside a transaction.
    #[must_use]
    pub fn single(step: &'static str, command: String) -> Self {
        Self { step, shown: command.clone(), text: command, patience: CALL_DEADLINE }
    }

    /// A command that copies or removes a whole database, and has no result
    /// before it is done: it may take longer than other calls. It runs at the
    /// server only as long as it is waited for.
    #[must_use]
    pub fn lengthy(step: &'static str, command: String) -> Self {
        Self { patience: LENGTHY, ..Self::single(step, command) }
    }

    /// Commands that take effect together or not at all.
    #[must_use]
    pub fn transaction(step: &'static str, commands: &[String]) -> Self {
        Self::single(step, format!("BEGIN;\n{};\nCOMMIT", commands.join(";\n")))
    }

    /// A transaction whose commands contain `verifier`; `commands` gets its literal to place.
    #[must_use]
    pub fn secret_transaction(
        step: &'static str,
        verifier: &password::Verifier,
        commands: impl Fn(&str) -> Vec<String>,
    ) -> Self {
        let shown = Self::transaction(step, &commands("'<verifier>'")).text;
        let text = Self::transaction(step, &commands(&Literal(verifier.expose()).to_string())).text;
        Self { step, text, shown, patience: CALL_DEADLINE }
    }

    /// What the statement is for, in words.
    #[must_use]
    pub const fn step(&self) -> &'static str {
        self.step
    }

    /// Whether the text holds something that must not be repeated.
    #[must_use]
    pub fn is_secret(&self) -> bool {
        self.text != self.shown
    }

    /// How long it may take.
    #[must_use]
    pub const fn patience(&self) -> Duration {
        self.patience
    }

    /// The text for the server.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Reads a quoted token as the server does; `None` if it does not end where the text ends.
    fn unquote(text: &str, quote: char) -> Option<String> {
        let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
        let mut result = String::new();
        let mut chars = inner.chars();
        while let Some(c) = chars.next() {
            if c == quote && chars.next() != Some(quote) {
                return None;
            }
            result.push(c);
        }
        Some(result)
    }

    proptest! {
        #[test]
        fn a_quoted_name_reads_back_as_itself(name in "[^\0]{1,15}") {
            let quoted = Identifier::new(name.clone()).unwrap().to_string();
            prop_assert_eq!(unquote(&quoted, '"'), Some(name));
        }

        #[test]
        fn a_literal_reads_back_as_itself(text in "[^\0]{0,30}") {
            let quoted = Literal(&text).to_string();
            // With a backslash the literal is written in the escape syntax, where it doubles.
            let read = match quoted.trim_start().strip_prefix('E') {
                Some(escaped) => unquote(escaped, '\'').map(|t| t.replace("\\\\", "\\")),
                None => unquote(&quoted, '\''),
            };
            prop_assert_eq!(read, Some(text));
        }
    }

    #[test]
    fn what_the_server_would_cut_or_refuse_is_no_name() {
        for name in [String::new(), "a".repeat(64), "a\0b".to_owned()] {
            assert!(Identifier::new(name.clone()).is_err(), "{name:?}");
        }
        assert!(Identifier::new("a".repeat(63)).is_ok());
    }

    #[test]
    fn a_statement_shows_no_verifier() {
        let verifier = password::Password::generate().verifier();
        let statement = Statement::secret_transaction("set a password", &verifier, |v| {
            vec![format!("ALTER ROLE \"x\" PASSWORD {v}")]
        });
        assert!(statement.is_secret());
        assert!(statement.expose().contains(verifier.expose()));
        for shown in [format!("{statement:?}"), format!("{statement}"), format!("{verifier:?}")] {
            assert!(!shown.contains("SCRAM"), "{shown}");
        }
    }
}
