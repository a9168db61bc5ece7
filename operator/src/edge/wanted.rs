//! The hosts that Services ask for, whether or not they get them.

use std::{collections::BTreeSet, iter, sync::Arc};

use peristyle_crds::v1alpha1::{EdgeClass, EdgeClassSpec, service::Expose};

use super::claims::Names;

/// The hosts that these routes of `service` ask for, whatever class is to serve them.
#[must_use]
pub fn hosts(classes: &[Arc<EdgeClass>], service: Names<'_>, exposes: &[Expose]) -> BTreeSet<String> {
    let mut hosts: BTreeSet<String> = exposes.iter().flat_map(|expose| &expose.hosts).cloned().collect();
    if exposes.iter().any(|expose| expose.hosts.is_empty()) {
        hosts.extend(classes.iter().map(|class| template(&class.spec, service)));
    }
    hosts
}

/// Whether these routes of `service` ask for one of `hosts`, whatever class is to serve them.
#[must_use]
pub fn any_of(
    hosts: &BTreeSet<String>,
    classes: &[Arc<EdgeClass>],
    service: Names<'_>,
    exposes: &[Expose],
) -> bool {
    let is_made = |host: &String| {
        // Without a copy of the name: this is asked of every Service at each change.
        let rest = |class: &EdgeClass| {
            pieces(&class.spec, service).try_fold(host.as_str(), |rest, piece| rest.strip_prefix(piece))
        };
        classes.iter().any(|class| rest(class) == Some(""))
    };
    exposes.iter().flat_map(|expose| &expose.hosts).any(|host| hosts.contains(host))
        || exposes.iter().any(|expose| expose.hosts.is_empty()) && hosts.iter().any(is_made)
}

/// The host that `class` gives to a route of `service` that names none.
#[must_use]
pub fn template(class: &EdgeClassSpec, service: Names<'_>) -> String {
    pieces(class, service).collect()
}

/// The texts that make the host, one after the other.
fn pieces<'a>(class: &'a EdgeClassSpec, (namespace, name): Names<'a>) -> impl Iterator<Item = &'a str> {
    let mut template = class.hosts.template.as_str();
    iter::from_fn(move || {
        let (piece, rest) = if let Some(rest) = template.strip_prefix("{service}") {
            (name, rest)
        } else if let Some(rest) = template.strip_prefix("{namespace}") {
            (namespace, rest)
        } else {
            let first = template.chars().next()?.len_utf8();
            template.split_at(template[first..].find('{').map_or(template.len(), |next| first + next))
        };
        template = rest;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn classes(templates: &[&str]) -> Vec<Arc<EdgeClass>> {
        let class = |template: &&str| {
            let spec = serde_json::json!({
                "provider": "Traefik", "traefik": {"entryPoints": ["web"]}, "hosts": {"template": template}
            });
            let class = serde_json::json!({"metadata": {"name": "c"}, "spec": spec});
            Arc::new(serde_json::from_value(class).unwrap())
        };
        templates.iter().map(class).collect()
    }

    #[test]
    fn what_is_asked_for_is_found_again_and_nothing_else() {
        let service = ("b-c", "a");
        let classes = classes(&["{service}.{namespace}.test", "{service}-{namespace}.test", "x{other}.test"]);
        let exposes: Vec<Expose> =
            serde_json::from_str(r#"[{"name": "o"}, {"name": "p", "hosts": ["w.test"]}]"#).unwrap();
        let wanted = hosts(&classes, service, &exposes);
        let expected = ["a.b-c.test", "a-b-c.test", "x{other}.test", "w.test"];
        assert_eq!(wanted, expected.map(ToOwned::to_owned).into());
        let is_wanted = |host: &str, exposes| any_of(&[host.to_owned()].into(), &classes, service, exposes);
        assert!(wanted.iter().all(|host| is_wanted(host, &exposes)));
        for other in ["a.b-c.tes", "a.b-c.testt", "b.b-c.test", "", "a"] {
            assert!(!is_wanted(other, &exposes), "{other}");
        }
        assert!(!is_wanted("a.b-c.test", &exposes[1..]), "all of them name their hosts");
    }
}
