//! What names and passwords must look like.

use secrecy::{ExposeSecret, SecretString};

const MIN_PASSWORD_CHARS: usize = 10;
/// bcrypt takes no more; cutting a password silently would weaken it.
const MAX_PASSWORD_BYTES: usize = 72;

/// A rule that name or password breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Rule {
    #[error("username: use 2 to 63 letters, digits, dots, hyphens or underscores, a letter or digit first")]
    Username,
    #[error("password: use at least 10 characters")]
    Short,
    #[error("password: use at most 72 bytes")]
    Long,
    #[error("password: use characters of at least three kinds: lower case, upper case, digits, others")]
    Simple,
    #[error("password: do not use the username in it")]
    ContainsUsername,
    #[error("password: do not use control characters")]
    Control,
}

/// The name in the form it is stored in: lower case ASCII.
pub(crate) fn username(given: &str) -> Result<String, Rule> {
    let name = given.to_ascii_lowercase();
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let first = name.bytes().next().is_some_and(allowed);
    let rest = name.bytes().all(|byte| allowed(byte) || b"._-".contains(&byte));
    if first && rest && (2..=63).contains(&name.len()) { Ok(name) } else { Err(Rule::Username) }
}

/// Whether a password is good enough for an account of this name.
pub(crate) fn check_password(username: &str, password: &SecretString) -> Result<(), Rule> {
    let password = password.expose_secret();
    if password.len() > MAX_PASSWORD_BYTES {
        return Err(Rule::Long);
    }
    if password.chars().count() < MIN_PASSWORD_CHARS {
        return Err(Rule::Short);
    }
    if password.chars().any(char::is_control) {
        return Err(Rule::Control);
    }
    if password.to_lowercase().contains(username) {
        return Err(Rule::ContainsUsername);
    }
    let kinds: [fn(char) -> bool; 4] =
        [char::is_lowercase, char::is_uppercase, char::is_numeric, |c| !c.is_alphanumeric()];
    let used = kinds.iter().filter(|kind| password.chars().any(kind)).count();
    if used < 3 { Err(Rule::Simple) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("Alice", Ok("alice"))]
    #[case("a.b-c_9", Ok("a.b-c_9"))]
    #[case("a", Err(Rule::Username))]
    #[case("", Err(Rule::Username))]
    #[case("-a", Err(Rule::Username))]
    #[case("a b", Err(Rule::Username))]
    #[case("аlice", Err(Rule::Username))]
    #[case("Group:x#members", Err(Rule::Username))]
    fn names_are_plain_and_lower_case(#[case] given: &str, #[case] expected: Result<&str, Rule>) {
        assert_eq!(username(given), expected.map(str::to_owned));
    }

    #[rstest]
    #[case("Correct-horse-1", Ok(()))]
    #[case("passwort12", Err(Rule::Simple))]
    #[case("Sh0rt-pw!", Err(Rule::Short))]
    #[case("my-Alice-pw-1", Err(Rule::ContainsUsername))]
    #[case("Line\nbreak-12", Err(Rule::Control))]
    fn passwords_must_be_strong(#[case] given: &str, #[case] expected: Result<(), Rule>) {
        assert_eq!(check_password("alice", &given.into()), expected);
    }

    #[test]
    fn a_password_is_never_cut() {
        let password = format!("Aa1{}", "ü".repeat(35));
        assert_eq!(check_password("alice", &password.into()), Err(Rule::Long));
    }

    proptest! {
        #[test]
        fn normalising_a_name_twice_changes_nothing(given in ".{0,70}") {
            if let Ok(name) = username(&given) {
                prop_assert_eq!(username(&name), Ok(name.clone()));
            }
        }
    }
}
