//! Rules into Oathkeeper, and back from every pod.

use std::collections::BTreeSet;

use futures::{StreamExt, stream};
use peristyle_crds::v1alpha1::AuthClass;
use serde::Deserialize;

use super::{
    Error,
    build::RULES_KEY,
    config_maps::{self, Slot},
    pods::{self, Pod},
    progress::Progress,
};
use crate::{
    auth::{evidence::Answer, leaving::leaving, plan::Plan},
    context::Context,
    external::oathkeeper::Oathkeeper,
    metadata::Owner,
};

/// Pods asked at the same time.
const PARALLEL: usize = 8;

/// The rules as published and as the pods have them.
pub struct Rules {
    /// Ids that stood in the file before this pass.
    pub previous: BTreeSet<String>,
    /// Ids that stand there now.
    pub ids: BTreeSet<String>,
    /// What each ready pod has.
    pub pods: Vec<Seen>,
    /// Whether some of them are there only until their routes are gone.
    pub is_leaving: bool,
}

/// One ready pod.
pub struct Seen {
    /// The pod.
    pub pod: Pod,
    /// What it answered.
    pub answer: Answer,
    /// Why it did not answer.
    pub problem: Option<String>,
}

#[derive(Deserialize)]
struct Listed {
    id: String,
}

/// Writes the rules and asks each ready pod that has not confirmed them yet.
pub async fn publish(
    ctx: &Context,
    oathkeeper: &Oathkeeper,
    owner: &Owner,
    class: &AuthClass,
    progress: &mut Progress,
    plan: &Plan,
) -> Result<Rules, Error> {
    let slot = Slot { name: &class.spec.oathkeeper.rules_config_map, key: RULES_KEY, is_kept: false };
    let found = config_maps::read(ctx, owner, progress, &slot).await?;
    let text = found.content(&slot).unwrap_or_default();
    let previous = ids(text);
    let mut file = plan.rules_file();
    let mut gone = Vec::new();
    // Nothing goes from a file that stays as it is.
    if text != file.text {
        let routes = ctx.stores.ingress_routes.store().state();
        gone = leaving(text, &file.ids, &plan.hosts(), routes.iter().map(|route| &**route));
    }
    let leaving = progress.give_time(gone);
    if !leaving.is_empty() {
        file = plan.rules_file_beside(&leaving);
    }
    config_maps::replace(ctx, owner, progress, &slot, found, &file.text).await?;

    let slices = ctx.stores.system_endpoint_slices.store().state();
    let ready = pods::ready(&slices, &class.spec.oathkeeper.service);
    progress.confirmed.retain(|pod, _| ready.contains(pod));
    let confirmed = &progress.confirmed;
    let mints = class.spec.id_token.is_some();
    let pods: Vec<Seen> = stream::iter(ready)
        .map(async |pod| {
            if confirmed.get(&pod) == Some(&file.ids) {
                let answer = Answer::Rules(file.ids.clone());
                return Seen { pod, answer, problem: None };
            }
            ask(oathkeeper, pod, mints).await
        })
        .buffered(PARALLEL)
        .collect()
        .await;
    for seen in &pods {
        if seen.answer == Answer::Rules(file.ids.clone()) {
            progress.confirmed.insert(seen.pod.clone(), file.ids.clone());
        } else {
            progress.confirmed.remove(&seen.pod);
        }
    }
    Ok(Rules { previous, ids: file.ids, pods, is_leaving: !leaving.is_empty() })
}

async fn ask(oathkeeper: &Oathkeeper, pod: Pod, mints: bool) -> Seen {
    let answer = async {
        let ids = oathkeeper.rules(&pod.base).await?;
        if mints {
            oathkeeper.signs(&pod.base).await?;
        }
        // An empty pod has no sentinel to ask, and is told by its empty list.
        if !ids.is_empty() {
            oathkeeper.decides(&pod.base).await?;
        }
        Ok::<_, crate::external::http::Error>(ids)
    };
    match answer.await {
        Ok(ids) => Seen { pod, answer: Answer::Rules(ids), problem: None },
        Err(error) => Seen { problem: Some(format!("{}: {error}", pod.name)), answer: Answer::Silent, pod },
    }
}

/// The ids in a rules file. One that cannot be read was not ours: no id in it
/// counts as published.
fn ids(text: &str) -> BTreeSet<String> {
    let listed: Vec<Listed> = serde_json::from_str(text).unwrap_or_default();
    listed.into_iter().map(|rule| rule.id).collect()
}
