//! What is accepted although it is odd.

use peristyle_crds::v1alpha1::{
    Service,
    service::{AccessMode, Problem, Severity},
};

use crate::auth::id_token::{Tokens, Unverified};

/// Everything that the spec alone shows.
pub(super) fn of_spec(service: &Service) -> Vec<Problem> {
    let spec = &service.spec;
    let mut problems = Vec::new();
    let mut add = |field: String, severity: Severity, message: String| {
        problems.push(Problem { field, severity, message });
    };
    if !names_a_version(&spec.image) {
        add(
            "spec.image".to_owned(),
            Severity::Warning,
            format!("{} may be another program tomorrow; name a version or a digest", spec.image),
        );
    }
    let access = spec.access.clone().unwrap_or_default();
    let is_open = spec.access_mode() == AccessMode::Open;
    for (field, is_set) in
        [("inbound", !access.inbound.is_empty()), ("outbound", !access.outbound.is_empty())]
    {
        if is_open && is_set {
            add(
                format!("spec.access.{field}"),
                Severity::Info,
                "has no effect with mode Open; remove it or set mode to Isolated".to_owned(),
            );
        }
    }
    for (index, outbound) in access.outbound.iter().enumerate() {
        if !is_open && outbound.cidr.ends_with("/0") && outbound.ports.is_empty() {
            add(
                format!("spec.access.outbound[{index}]"),
                Severity::Warning,
                format!("{} without ports opens every connection to the outside; name ports", outbound.cidr),
            );
        }
    }
    problems
}

/// Tokens that the workload gets and does not verify.
pub(super) fn of_tokens(tokens: &Tokens) -> impl Iterator<Item = Problem> {
    tokens.unverified.iter().map(|Unverified { index, class, first }| Problem {
        field: format!("spec.expose[{index}]"),
        severity: Severity::Warning,
        message: format!(
            "the workload does not verify the tokens that AuthClass {class} mints for it: it goes by \
            AuthClass {first}, that of its first route with a policy; use one AuthClass for all of them"
        ),
    })
}

/// Whether an image has a digest or a tag other than `latest`.
fn names_a_version(image: &str) -> bool {
    if image.contains('@') {
        return true;
    }
    // A colon before the last slash belongs to the port of a registry.
    let name = image.rsplit('/').next().unwrap_or(image);
    name.split_once(':').is_some_and(|(_, tag)| !tag.is_empty() && tag != "latest")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("r.test/o:1", true)]
    #[case("r.test:5000/o", false)]
    #[case("r.test:5000/o:1", true)]
    #[case("o:latest", false)]
    #[case("o", false)]
    #[case("o@sha256:ab", true)]
    fn an_image_without_a_version_is_told_from_one_with(#[case] image: &str, #[case] expected: bool) {
        assert_eq!(names_a_version(image), expected);
    }
}
