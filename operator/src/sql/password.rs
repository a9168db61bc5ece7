//! Passwords are made here and leave the process only into a Secret; the
//! server gets a verifier from which the password cannot be computed.

use std::fmt;

use postgres_protocol::password::scram_sha_256;
use rand::distr::{Alphanumeric, SampleString};
use secrecy::{ExposeSecret, SecretString};

/// Characters of a generated password: 40 of 62 symbols are about 238 bits.
const LENGTH: usize = 40;
/// The shortest password that is accepted from a Secret.
const MIN_LENGTH: usize = 32;

/// A generated password; `Debug` shows nothing of it.
#[derive(Clone, Debug)]
pub struct Password(SecretString);

impl Password {
    /// A new one from the process's cryptographic generator.
    #[must_use]
    pub fn generate() -> Self {
        Self(Alphanumeric.sample_string(&mut rand::rng(), LENGTH).into())
    }

    /// A password that was generated before and read back from its Secret.
    /// `None` if it is not one of ours: somebody put a weaker one there.
    #[must_use]
    pub fn from_secret(bytes: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(bytes).ok()?;
        let is_ours = text.len() >= MIN_LENGTH && text.bytes().all(|b| b.is_ascii_alphanumeric());
        is_ours.then(|| Self(text.to_owned().into()))
    }

    /// The text, for a Secret or a login.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    /// What the server stores, with a fresh salt.
    #[must_use]
    pub fn verifier(&self) -> Verifier {
        Verifier(scram_sha_256(self.expose().as_bytes()).into())
    }
}

/// A SCRAM-SHA-256 verifier as `CREATE ROLE … PASSWORD` takes it.
#[derive(Clone)]
pub struct Verifier(SecretString);

impl Verifier {
    /// The text, for a statement.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Verifier(<hidden>)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_password_is_accepted_back_and_no_two_are_alike() {
        let (one, two) = (Password::generate(), Password::generate());
        assert_ne!(one.expose(), two.expose());
        let read = Password::from_secret(one.expose().as_bytes()).unwrap();
        assert_eq!(read.expose(), one.expose());
        assert!(one.verifier().expose().starts_with("SCRAM-SHA-256$4096:"));
    }

    #[test]
    fn a_password_that_somebody_chose_is_not_accepted() {
        for text in ["", "hunter2", &"ä".repeat(20), &"a b".repeat(20)] {
            assert!(Password::from_secret(text.as_bytes()).is_none(), "{text:?}");
        }
    }
}
