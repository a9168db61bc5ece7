//! The controller of `EdgeClass`: whether it can serve, and how many routes ask for it.

use std::{convert::Infallible, sync::Arc, time::Duration};

use futures::StreamExt;
use kube::ResourceExt;
use peristyle_crds::{
    class,
    condition::{Reason, types},
    v1alpha1::{EdgeClass, EdgeClassStatus, Service},
};

use crate::{
    conditions::Finding,
    context::Context,
    edge::route::Host,
    reconcile::{self, Outcome},
    watch::concerned,
};

/// Runs the controller until the process ends.
pub async fn run(ctx: Arc<Context>) {
    let classes = &ctx.stores.edge_classes;
    let choices = |service: &Service| {
        let exposes = service.spec.expose.iter();
        exposes.map(|expose| expose.class_name.clone()).collect::<Vec<_>>()
    };
    let exposes = ctx.stores.services.news(choices).filter_map(|(_, choices)| {
        std::future::ready(choices.iter().any(|choices| !choices.is_empty()).then_some(()))
    });
    let exposes = exposes.boxed();
    let triggers = vec![
        // They are counted.
        concerned(exposes, classes, |(), _| true),
        // Which class is the default depends on all of them.
        classes.concerning(classes, |_, _| true),
    ];
    reconcile::run(ctx.clone(), &ctx.stores.edge_classes, triggers, reconcile).await;
}

async fn reconcile(class: Arc<EdgeClass>, ctx: Arc<Context>) -> Result<Outcome<EdgeClassStatus>, Infallible> {
    let services = ctx.stores.services.store().state();
    // Of Services that are gone nothing is known any more.
    ctx.proofs.retain(|service, uid| {
        let live = ctx.stores.services.get(&service.namespace, &service.name);
        live.is_some_and(|live| uid.is_none_or(|uid| live.metadata.uid.as_deref() == Some(uid)))
    });
    let classes = ctx.stores.edge_classes.store().state();
    let routes = routes(&class, services.iter().map(|s| &**s), &classes);
    let has_traefik = ctx.stores.traefik_is_ready_within(Duration::ZERO).await;
    let status = EdgeClassStatus {
        routes: Some(i32::try_from(routes).unwrap_or(i32::MAX)),
        ..EdgeClassStatus::default()
    };
    Ok(Outcome::new(status, vec![standing(&class, has_traefik)]))
}

/// Expose entries that choose `class`.
fn routes<'a>(
    class: &EdgeClass,
    services: impl Iterator<Item = &'a Service>,
    classes: &[Arc<EdgeClass>],
) -> usize {
    services
        .flat_map(|service| &service.spec.expose)
        .filter(|expose| {
            class::choose(classes.iter().map(|c| &**c), expose.class_name.as_deref())
                .is_ok_and(|chosen| chosen.name_any() == class.name_any())
        })
        .count()
}

fn standing(class: &EdgeClass, has_traefik: bool) -> Finding {
    let template = &class.spec.hosts.template;
    let example = template.replace("{service}", "a").replace("{namespace}", "b");
    if Host::parse(&example).is_err() {
        return Finding::stalled(
            types::READY,
            Reason::Invalid,
            format!(
                "spec.hosts.template: {template:?} gives {example:?} for Service a in namespace b, which is no host name; use {{service}} and {{namespace}} within lower case labels"
            ),
        );
    }
    if !has_traefik {
        return Finding::waiting(
            types::READY,
            Reason::Unavailable,
            "traefik.io/v1alpha1 cannot be watched; install Traefik's CustomResourceDefinitions, \
            or grant what the operator's /readyz names",
        );
    }
    Finding::good(types::READY, "all is as the spec says")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str, is_default: bool, template: &str) -> EdgeClass {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": name, "annotations": {"peristyle.dev/is-default-class": is_default.to_string()}},
            "spec": {"provider": "Traefik", "traefik": {"entryPoints": ["web"]}, "hosts": {"template": template}}
        }))
        .unwrap()
    }

    #[test]
    fn a_route_without_a_class_counts_for_the_default() {
        let classes = [("public", true), ("internal", false)]
            .map(|(name, default)| Arc::new(class(name, default, "{service}.{namespace}.test")));
        let service: Service = serde_json::from_value(serde_json::json!({
            "metadata": {"name": "a", "namespace": "b"},
            "spec": {"image": "x", "expose": [{"name": "x"}, {"name": "y", "className": "internal"}, {"name": "z", "className": "absent"}]}
        }))
        .unwrap();
        let count = |index: usize| routes(&classes[index], [&service].into_iter(), &classes);
        assert_eq!((count(0), count(1)), (1, 1));
    }

    #[test]
    fn a_template_that_yields_no_host_name_is_refused_with_field_value_and_remedy() {
        for template in ["{service}..{namespace}", "-{service}.{namespace}", "{service}.{namespace}.{zone}"] {
            let finding = standing(&class("c", true, template), true);
            assert_eq!(finding.reason, Reason::Invalid);
            assert!(finding.message.starts_with("spec.hosts.template: "), "{}", finding.message);
        }
    }

    #[test]
    fn without_traefik_the_class_waits_and_says_for_what() {
        let finding = standing(&class("c", true, "{service}.{namespace}.test"), false);
        assert_eq!(finding.reason, Reason::Unavailable);
    }
}
