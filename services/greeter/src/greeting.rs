//! The words of a greeting.

use tonic::Status;

/// Longest name in characters; the table has the same limit.
const MAX_NAME: usize = 200;

/// A supported language.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Locale {
    En,
    De,
    Fr,
}

impl Locale {
    /// The language of a BCP 47 tag; English for any other.
    pub(crate) fn from_tag(tag: &str) -> Self {
        let language = tag.split(['-', '_']).next().unwrap_or_default();
        match language.to_ascii_lowercase().as_str() {
            "de" => Self::De,
            "fr" => Self::Fr,
            _ => Self::En,
        }
    }

    pub(crate) fn tag(self) -> &'static str {
        match self {
            Self::En => "en",
            Self::De => "de",
            Self::Fr => "fr",
        }
    }

    /// The greeting in three parts, as a stream sends it.
    pub(crate) fn parts(self, name: &str) -> [String; 3] {
        match self {
            Self::En => ["Hello ".into(), name.into(), " from greeter-service!".into()],
            Self::De => ["Hallo ".into(), name.into(), " vom greeter-service!".into()],
            Self::Fr => ["Bonjour ".into(), name.into(), " de greeter-service !".into()],
        }
    }
}

/// The name to greet: trimmed, "World" when empty.
pub(crate) fn name(given: &str) -> Result<&str, Status> {
    let name = given.trim();
    if name.chars().count() > MAX_NAME {
        return Err(Status::invalid_argument(format!("name is too long: use at most {MAX_NAME} characters")));
    }
    if name.contains('\0') {
        return Err(Status::invalid_argument("name holds a NUL character: remove it"));
    }
    Ok(if name.is_empty() { "World" } else { name })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_name_greets_the_world() {
        assert_eq!(name("").unwrap(), "World");
        assert_eq!(name("  ").unwrap(), "World");
        assert_eq!(Locale::En.parts("Ada").concat(), "Hello Ada from greeter-service!");
    }

    #[test]
    fn a_name_may_have_200_characters_of_any_script() {
        assert!(name(&"é".repeat(200)).is_ok());
        assert_eq!(name(&"é".repeat(201)).unwrap_err().code(), tonic::Code::InvalidArgument);
        assert!(name("a\0b").is_err());
    }

    #[test]
    fn a_locale_is_found_by_its_language() {
        assert_eq!(Locale::from_tag("de-AT"), Locale::De);
        assert_eq!(Locale::from_tag("FR_ca"), Locale::Fr);
        assert_eq!(Locale::from_tag("tlh"), Locale::En);
        assert_eq!(Locale::from_tag(""), Locale::En);
    }
}
