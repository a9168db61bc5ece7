//! What no plan of one write shows: systems that refuse for a while, fall
//! silent, or show the operator an old world.
//!
//! Every scenario begins and ends with the greeter created and all calm. Those
//! that compare with a recording come first: a Service that was refused stays
//! to the end, because its healing takes as long as all others.

mod api_server;
mod authorization;
mod refusals;
mod servers;
mod statements;
mod views;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams};
use serde_json::{Value, json};

use super::rig::Rig;
use super::runner::Runner;
use super::workload::Step;
use crate::operated::NAMESPACE;
use crate::wait;

const PATIENCE: Duration = Duration::from_secs(60);
/// Objects that scenarios make.
const MADE: &str = "peristyle.dev/fault-scenario";

/// Whether a scenario is short enough for the test command.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Length {
    /// Seconds.
    Short,
    /// The whole table, or something that waits for the better part of a minute.
    Long,
}

/// A scenario. In its name the bar.
pub struct Scenario {
    pub name: &'static str,
    pub length: Length,
    pub run: for<'a> fn(&'a Runner) -> LocalBoxFuture<'a, Result<()>>,
}

macro_rules! scenarios {
    ($($length:ident $module:ident::$name:ident,)*) => {
        /// All scenarios, in the order in which they are run.
        pub const ALL: &[Scenario] = &[$(Scenario {
            name: stringify!($name),
            length: Length::$length,
            run: |runner| $module::$name(runner).boxed_local(),
        },)*];
    };
}

scenarios! {
    Short refusals::every_refusal_of_a_write_is_repeated_and_makes_nothing_twice,
    Long refusals::every_refusal_of_a_first_write_is_repeated_and_makes_nothing_twice,
    Short refusals::a_write_whose_reply_never_comes_is_found_done,
    Long refusals::any_write_whose_reply_never_comes_is_found_done,
    Short statements::statements_that_are_refused_once_make_nothing_twice,
    Long statements::statements_that_are_refused_for_a_moment_make_nothing_twice,
    Long statements::statements_that_are_refused_for_long_reasons_are_told_and_heal,
    Short views::caches_that_lag_behind_bring_nothing_back,
    Short views::events_that_are_held_back_are_made_up_for,
    Short authorization::what_is_deleted_without_keto_goes_in_time_and_its_tuples_follow,
    Short api_server::a_forbidden_kind_is_told,
    Short api_server::a_busy_api_server_is_asked_again_when_it_says,
    Long api_server::every_storm_of_errors_is_met_slowly_and_holds_up_no_other_object,
    Short api_server::lists_and_watches_that_end_or_expire_cause_no_write,
    Short api_server::an_api_server_that_was_away_is_met_again,
    Short api_server::an_api_server_that_was_away_for_long_is_met_gently,
    Short api_server::an_api_server_that_hangs_on_one_kind_holds_up_no_other_object,
    Short servers::a_silent_database_server_holds_up_nobody_else,
    Short servers::a_silent_database_server_holds_up_no_database_on_another,
    Short servers::a_standby_is_told_and_used_as_soon_as_it_is_promoted,
    Short authorization::a_silent_keto_holds_up_nobody_else,
    Short authorization::a_silent_oathkeeper_publishes_no_route_and_withdraws_none,
    Short authorization::a_route_whose_policy_goes_is_closed_although_a_right_is_missing,
    Short authorization::the_rules_of_a_policy_that_goes_do_not_wait_for_a_route_that_cannot,
    Short api_server::what_was_forbidden_heals,
}

/// Forwards everything again and deletes what scenarios made, as far as that succeeds.
pub async fn clear(rig: &Rig) {
    for proxy in [&rig.api, &rig.keto_read, &rig.keto_write, &rig.keto_opl, &rig.oathkeeper] {
        proxy.calm();
    }
    drop(rig.sql.calm());
    let made = kube::api::ListParams::default().labels(MADE);
    for kind in ["Service", "AuthPolicy", "Database"] {
        drop(api(rig, kind).delete_collection(&DeleteParams::default(), &made).await);
    }
}

/// Waits for the end of a step, in which no invariant may have been broken.
async fn arrives(rig: &Rig, step: Step) -> Result<()> {
    let arrived = async || rig.has_arrived(step).await;
    wait::until(&format!("{} is done", step.word()), PATIENCE, arrived).await?;
    let violations = rig.journal.entries().violations;
    ensure!(violations.is_empty(), "{violations:?}");
    Ok(())
}

async fn is_at_rest(rig: &Rig) -> Result<()> {
    rests_for(rig, Duration::from_secs(2)).await
}

async fn rests_for(rig: &Rig, span: Duration) -> Result<()> {
    wait::until("the operator rests", PATIENCE, async || {
        ensure!(rig.journal.is_quiet_for(span), "it still writes");
        Ok(())
    })
    .await
}

fn api(rig: &Rig, kind: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("peristyle.dev", "v1alpha1", kind));
    Api::namespaced_with(rig.client.clone(), NAMESPACE, &resource)
}

/// Applies an object of ours besides the greeter.
async fn apply(rig: &Rig, kind: &str, name: &str, spec: Value) -> Result<()> {
    let metadata = json!({"name": name, "labels": {MADE: "true"}});
    let object =
        json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec});
    api(rig, kind).patch(name, &PatchParams::apply("team").force(), &Patch::Apply(&object)).await?;
    Ok(())
}

/// Applies a Service that needs nobody else.
async fn apply_service(rig: &Rig, name: &str) -> Result<()> {
    apply(rig, "Service", name, json!({"image": "x:1"})).await
}

async fn remove(rig: &Rig, kind: &str, name: &str) -> Result<()> {
    let api = api(rig, kind);
    api.delete(name, &DeleteParams::default()).await?;
    wait::until(&format!("{kind} {name} is gone"), PATIENCE, async || {
        ensure!(api.get_opt(name).await?.is_none(), "it is still there");
        Ok(())
    })
    .await
}

/// The condition Ready of an object.
async fn ready(rig: &Rig, kind: &str, name: &str) -> Result<Value> {
    let status = api(rig, kind).get(name).await?.data["status"].take();
    let conditions = status["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|c| c["type"] == "Ready").context("no condition yet")
}

async fn becomes_ready(rig: &Rig, kind: &str, name: &str) -> Result<()> {
    wait::until(&format!("{kind} {name} is ready"), PATIENCE, async || {
        let ready = ready(rig, kind, name).await?;
        ensure!(ready["status"] == "True", "{ready}");
        Ok(())
    })
    .await
}

async fn tells(rig: &Rig, kind: &str, name: &str, reason: &str) -> Result<()> {
    wait::until(&format!("{kind} {name} tells {reason}"), PATIENCE, async || {
        let ready = ready(rig, kind, name).await?;
        ensure!(ready["reason"] == reason, "{ready}");
        Ok(())
    })
    .await
}
