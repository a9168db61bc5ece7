//! The operator and the real Keto: whose tuples are taken away with a policy.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use e2e::daemon;
use e2e::faults::{postgres::Postgres, programs};
use e2e::operated::Operated;
use e2e::progress::Progress;
use e2e::replica;
use e2e::stack::SYSTEM_NAMESPACE;
use e2e::substrate::{self, Component};
use e2e::wait;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use peristyle::external::{http, keto::Keto};
use peristyle_crds::v1alpha1::{AuthClass, AuthPolicy, auth_policy::Tuple};
use serde_json::json;

const PATIENCE: Duration = Duration::from_secs(60);
const MODEL: &str = "class Person implements Namespace {}\n\
    class Wares implements Namespace { related: { buyers: Person[] } }\n";

fn buyer(subject: &str) -> Tuple {
    Tuple {
        namespace: "Wares".to_owned(),
        object: "all".to_owned(),
        relation: "buyers".to_owned(),
        subject: Some(subject.to_owned()),
        subject_set: None,
    }
}

const EVERYBODY: [&str; 3] = ["alice", "carol", "of-the-app"];

fn buyers(subjects: &[&str]) -> BTreeSet<Tuple> {
    subjects.iter().map(|subject| buyer(subject)).collect()
}

struct Bench {
    operated: Operated,
    _postgres: Postgres,
    keto: Keto,
    at: programs::Addresses,
}

impl Bench {
    async fn start() -> Result<Self> {
        let mut operated = Operated::prepare().await?;
        let programs =
            substrate::build(&[Component::Keto, Component::Oathkeeper], &Progress::default()).await?;
        let postgres = Postgres::start().await?;
        let at = programs::start(&operated.plane, &programs, &replica::binary()?, &postgres).await?;
        operated.operate("first").await?;
        let bench = Self { operated, _postgres: postgres, keto: Keto::new(http::client()?), at };
        bench.create_class().await?;
        Ok(bench)
    }

    async fn create_class(&self) -> Result<()> {
        let at = &self.at;
        let class: AuthClass = serde_json::from_value(json!({
            "metadata": {"name": "default", "annotations": {"peristyle.dev/is-default-class": "true"}},
            "spec": {
                "oathkeeper": {"namespace": SYSTEM_NAMESPACE, "service": "oathkeeper-api", "rulesConfigMap": "oathkeeper-rules"},
                "keto": {
                    "readURL": format!("http://{}", at.keto_read), "writeURL": format!("http://{}", at.keto_write),
                    "oplURL": format!("http://{}", at.keto_opl),
                    "namespacesConfigMap": {"namespace": SYSTEM_NAMESPACE, "name": "keto-namespaces", "key": "namespaces.keto.ts"}}}
        }))?;
        self.classes().create(&PostParams::default(), &class).await?;
        Ok(())
    }

    fn classes(&self) -> Api<AuthClass> {
        Api::all(self.operated.client.clone())
    }

    /// Sends a signal to Keto: stopped, it accepts connections and answers nothing.
    fn signal_keto(&self, signal: Signal) -> Result<()> {
        let processes = daemon::recorded(self.operated.plane().state());
        let keto = processes.into_iter().find(|(name, _)| name == "keto").context("Keto does not run")?;
        Ok(kill(Pid::from_raw(keto.1.pid), signal)?)
    }

    /// A policy that lets these buy.
    async fn apply(&self, subjects: &[&str]) -> Result<()> {
        let policy = json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": "AuthPolicy", "metadata": {"name": "wares"}, "spec": {
            "targets": [{"service": "nobody"}],
            "rules": [{"name": "all", "match": {"http": [{"path": {"prefix": "/"}}]}, "public": {}}],
            "relations": {"model": MODEL, "tuples": buyers(subjects)}}});
        let params = PatchParams::apply("team").force();
        self.operated.api::<AuthPolicy>().patch("wares", &params, &Patch::Apply(&policy)).await?;
        Ok(())
    }

    /// Waits until Keto stores these and no others.
    async fn stores(&self, subjects: &[&str]) {
        let read = format!("http://{}", self.at.keto_read);
        wait::until(&format!("Keto stores {subjects:?}"), PATIENCE, async || {
            let found = self.keto.stored(&read, "Wares", &buyers(&EVERYBODY)).await?;
            ensure!(found == buyers(subjects), "{found:?}");
            Ok(())
        })
        .await
        .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_an_application_wrote_outlives_the_policy_and_what_the_policy_wrote_does_not() {
    let bench = Bench::start().await.unwrap();
    bench.apply(&["alice", "carol"]).await.unwrap();
    bench.stores(&["alice", "carol"]).await;
    let write = format!("http://{}", bench.at.keto_write);
    bench.keto.patch(&write, &buyers(&["of-the-app"]), &BTreeSet::new()).await.unwrap();
    bench.apply(&["carol"]).await.unwrap();
    bench.stores(&["carol", "of-the-app"]).await;

    let policies = bench.operated.api::<AuthPolicy>();
    policies.delete("wares", &DeleteParams::default()).await.unwrap();
    let read = format!("http://{}", bench.at.keto_read);
    wait::until("the model is gone", PATIENCE, async || {
        let found = bench.keto.namespaces(&read).await?;
        ensure!(!found.contains("Wares"), "{found:?}");
        Ok(())
    })
    .await
    .unwrap();
    // What Keto does not show without its model is there again with it.
    bench.apply(&[]).await.unwrap();
    bench.stores(&["of-the-app"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_class_goes_while_keto_is_away_and_the_next_of_its_name_takes_away_what_was_left() {
    let bench = Bench::start().await.unwrap();
    bench.apply(&["alice", "carol"]).await.unwrap();
    bench.stores(&["alice", "carol"]).await;

    bench.signal_keto(Signal::SIGSTOP).unwrap();
    bench.classes().delete("default", &DeleteParams::default()).await.unwrap();
    wait::until("the class is gone", PATIENCE, async || match bench.classes().get_opt("default").await? {
        Some(class) => bail!("{}", serde_saphyr::to_string(&class)?),
        None => Ok(()),
    })
    .await
    .unwrap();
    // Meanwhile one of them may buy no longer.
    bench.apply(&["carol"]).await.unwrap();
    bench.create_class().await.unwrap();
    let is_told = |class: &AuthClass| {
        let mut conditions = class.status.iter().flat_map(|status| &status.conditions);
        conditions.any(|c| c.type_ == "Published" && c.status == "Unknown" && c.reason == "KetoUnavailable")
    };
    wait::object(&bench.classes(), "default", "it says that Keto is away", PATIENCE, is_told).await.unwrap();

    bench.signal_keto(Signal::SIGCONT).unwrap();
    bench.stores(&["carol"]).await;
}
