//! How an object finds its class, as with StorageClass and IngressClass.

use kube::ResourceExt;

/// Annotation that makes a class the default of its kind; only `"true"` counts.
pub const DEFAULT_CLASS_ANNOTATION: &str = "peristyle.dev/is-default-class";

/// Why no class could be chosen.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum ClassError {
    /// The named class, or any default class, does not exist (yet).
    NotFound(Option<String>),
    /// Several classes are annotated as default; their names, sorted.
    Ambiguous(Vec<String>),
}

impl std::fmt::Display for ClassError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotFound(Some(name)) => {
                write!(f, "spec.className: class {name:?} does not exist; create it or name another")
            }
            Self::NotFound(None) => write!(
                f,
                "spec.className is not set and no class is annotated {DEFAULT_CLASS_ANNOTATION}=\"true\"; set one of the two"
            ),
            Self::Ambiguous(names) => write!(
                f,
                "spec.className is not set and {} are all annotated {DEFAULT_CLASS_ANNOTATION}=\"true\"; leave one",
                names.join(", ")
            ),
        }
    }
}

/// Chooses the class called `name`, or the only one annotated as default.
///
/// # Errors
/// [`ClassError::NotFound`] when it does not exist, [`ClassError::Ambiguous`]
/// when there are several defaults to choose from.
pub fn choose<'a, C: ResourceExt>(
    classes: impl IntoIterator<Item = &'a C>,
    name: Option<&str>,
) -> Result<&'a C, ClassError> {
    let mut candidates: Vec<&C> = classes
        .into_iter()
        .filter(|class| match name {
            Some(name) => class.name_any() == name,
            None => class.annotations().get(DEFAULT_CLASS_ANNOTATION).is_some_and(|v| v == "true"),
        })
        .collect();
    match candidates.len() {
        0 => Err(ClassError::NotFound(name.map(ToOwned::to_owned))),
        1 => Ok(candidates.swap_remove(0)),
        _ => {
            let mut names: Vec<String> = candidates.iter().map(|class| class.name_any()).collect();
            names.sort();
            Err(ClassError::Ambiguous(names))
        }
    }
}
