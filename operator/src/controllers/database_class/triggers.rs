//! What makes the operator look at a class again, besides its own changes.

use std::sync::Arc;

use futures::{StreamExt, stream::BoxStream};
use kube::{ResourceExt, runtime::reflector::ObjectRef};
use peristyle_crds::{names::DATABASE_CLASS_LABEL, v1alpha1::DatabaseClass};

use super::target;
use crate::{context::Context, watch::Watched};

type Trigger = BoxStream<'static, ObjectRef<DatabaseClass>>;

/// All of them.
#[must_use]
pub fn all(ctx: &Context) -> Vec<Trigger> {
    vec![
        children(&ctx.stores.stateful_sets),
        children(&ctx.stores.core_services),
        referrers(ctx, &ctx.stores.secrets, |access, name| access.admin_secret == name),
        referrers(ctx, &ctx.stores.config_maps, |access, name| access.authorities.as_deref() == Some(name)),
        // They are counted.
        ctx.stores
            .databases
            .changes()
            .filter_map(|database| async move {
                Some(ObjectRef::new(&database.status.as_ref()?.server.as_ref()?.class))
            })
            .boxed(),
    ]
}

fn children<K>(watched: &Watched<K>) -> Trigger
where
    K: kube::Resource<DynamicType = ()>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned
        + Send
        + Sync
        + 'static,
{
    let owner =
        |child: Arc<K>| async move { Some(ObjectRef::new(child.labels().get(DATABASE_CLASS_LABEL)?)) };
    watched.changes().filter_map(owner).boxed()
}

/// Classes that refer to an object in the operator's namespace.
fn referrers<K>(
    ctx: &Context,
    watched: &Watched<K>,
    refers: impl Fn(&target::Access, &str) -> bool + Send + 'static,
) -> Trigger
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + Sync + 'static,
    K::DynamicType: Default + Eq + std::hash::Hash + Clone + Send + Sync,
{
    let classes = ctx.stores.database_classes.store().clone();
    let namespace = ctx.config.namespace.clone();
    let matching = move |object: Arc<K>| {
        let is_here = object.namespace().as_deref() == Some(&namespace);
        let refers = |class: &&Arc<DatabaseClass>| {
            target::access(class, &namespace).is_ok_and(|access| refers(&access, &object.name_any()))
        };
        let found: Vec<_> = if is_here {
            classes.state().iter().filter(refers).map(|class| ObjectRef::from_obj(&**class)).collect()
        } else {
            Vec::new()
        };
        futures::stream::iter(found)
    };
    watched.changes().flat_map(matching).boxed()
}
