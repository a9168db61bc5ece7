//! A pass that panics is the trouble of its object alone.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use e2e::operated::{self, Operated};
use e2e::wait;
use kube::{
    ResourceExt,
    api::{Patch, PatchParams},
};
use peristyle::{
    context::Context,
    fence::Fence,
    reconcile::{self, Outcome},
};
use peristyle_crds::v1alpha1::{Service, ServiceStatus};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(60);

async fn pass(service: Arc<Service>, _: Arc<Context>) -> Result<Outcome<ServiceStatus>, Infallible> {
    assert_ne!(service.name_any(), "poison", "a broken invariant");
    Ok(Outcome::new(ServiceStatus::default(), Vec::new()))
}

#[tokio::test]
async fn a_pass_that_panics_is_reported_counted_and_repeated_while_others_go_on() {
    let operated = Operated::prepare().await.unwrap();
    let fence = Fence::new(Duration::ZERO);
    fence.open_until(Instant::now() + Duration::from_secs(3600));
    let ctx = Context::new(operated.client.clone(), operated::config("test"), fence).unwrap();
    let ctx = Arc::new(ctx);
    let running = ctx.clone();
    tokio::spawn(async move {
        reconcile::run(running.clone(), &running.stores.services, Vec::new(), pass).await;
    });

    let services = operated.api::<Service>();
    for name in ["poison", "other"] {
        let object = json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": "Service", "metadata": {"name": name}, "spec": {"image": "x:1"}});
        services.patch(name, &PatchParams::apply("team"), &Patch::Apply(&object)).await.unwrap();
    }
    for (name, status, reason) in [("poison", "False", "InternalError"), ("other", "True", "Succeeded")] {
        wait::until(&format!("{name}: Ready={status} {reason}"), PATIENCE, async || {
            let conditions = services.get(name).await?.status.context("no status yet")?.conditions;
            let ready = conditions.iter().find(|c| c.type_ == "Ready").context("no Ready yet")?;
            ensure!(ready.status == status && ready.reason == reason, "{ready:?}");
            Ok(())
        })
        .await
        .unwrap();
    }
    wait::until("it was tried again, and counted", PATIENCE, async || {
        let metrics = ctx.metrics.encode();
        let line = metrics.lines().find(|line| line.contains("result=\"bug\"")).context("not counted")?;
        let count: u64 = line.rsplit(' ').next().context("no number")?.parse()?;
        ensure!(count >= 3, "{line}");
        Ok(())
    })
    .await
    .unwrap();
}
