//! What a real kubelet makes of pods that cannot run, as their Service tells it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::example::{Example, new_user};
use e2e::state::State;
use e2e::team::Team;
use e2e::{stack, wait};
use k8s_openapi::api::{
    batch::v1::Job,
    core::v1::{ContainerStatus, Pod},
};
use kube::{Api, Client, ResourceExt, api::ListParams};
use peristyle_crds::v1alpha1::Service;
use serde_json::{Value, json};

/// Pulls, starts and back-offs of the kubelet on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(180);
/// Within this time a Service says what is wrong with its pods.
const NEWS: Duration = Duration::from_secs(10);

/// Accepts connections until it is told to stop. Where the pod is marked broken
/// the next probe ends it.
const SERVER: &str = r#"
use IO::Socket::INET;
$SIG{TERM} = sub { exit 0 };
my $s = IO::Socket::INET->new(LocalPort => $ENV{PORT}, Listen => 64, ReuseAddr => 1) or die $!;
while (1) {
  my $c = $s->accept;
  exit 1 if -e "/tmp/broken";
  close $c if $c;
}
"#;

/// Services in a namespace of their own.
struct Bench {
    example: Example,
    client: Client,
    namespace: String,
    image: String,
}

impl Bench {
    async fn start() -> Result<Self> {
        let example =
            Example::start(&State::current()?).await.context("charts installed by `cargo sandbox test`")?;
        let image =
            example.images.get("postgres").context("only the sandbox has an image with perl")?.clone();
        let client = example.cluster.client().await?;
        Ok(Self { client, namespace: new_user("pods")?, image, example })
    }

    fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// A Service that works, with `changes` to its spec.
    async fn apply(&self, name: &str, changes: &Value) -> Result<()> {
        let mut spec = json!({"image": self.image, "command": ["perl", "-e", SERVER], "replicas": 1,
            "ports": [{"name": "tcp", "port": 8080, "protocol": "TCP"}],
            "shutdown": {"grace": "2s", "preStop": {"sleep": "0s"}}});
        let changes = changes.as_object().context("changes are fields of the spec")?.clone();
        spec.as_object_mut().context("a spec is an object")?.extend(changes);
        let object = json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": "Service",
            "metadata": {"name": name}, "spec": spec});
        stack::apply(&self.example.cluster, &self.namespace, &object.to_string()).await
    }

    async fn apply_secret(&self, name: &str, data: &Value) -> Result<()> {
        let object =
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data});
        stack::apply(&self.example.cluster, &self.namespace, &object.to_string()).await
    }

    /// Waits until the container of a pod is as told; the name of the pod.
    async fn shows(
        &self,
        name: &str,
        what: &str,
        is_so: impl Fn(&ContainerStatus) -> bool,
    ) -> Result<String> {
        let own = ListParams::default().labels(&format!("app.kubernetes.io/instance={name}"));
        wait::until(&format!("a pod of {name} shows {what}"), PATIENCE, async || {
            let pods = self.api::<Pod>().list(&own).await?.items;
            let shown = pods.iter().find(|pod| {
                let statuses = pod.status.as_ref().and_then(|status| status.container_statuses.as_ref());
                pod.metadata.deletion_timestamp.is_none() && statuses.into_iter().flatten().any(&is_so)
            });
            shown.map(ResourceExt::name_any).with_context(|| {
                let statuses: Vec<_> = pods.iter().map(|pod| (pod.name_any(), pod.status.clone())).collect();
                format!("{statuses:?}")
            })
        })
        .await
    }

    /// Waits until a condition has this status and reason; its message.
    async fn says(
        &self,
        name: &str,
        type_: &str,
        expected: (&str, &str),
        patience: Duration,
    ) -> Result<String> {
        let team = Team::new(self.client.clone(), &self.namespace);
        team.becomes_within(patience, "Service", name, type_, expected).await
    }

    /// What `WorkloadAvailable` and `Ready` say of a pod, at once.
    async fn told(&self, name: &str, expected: (&str, &str)) -> Result<String> {
        self.says(name, "WorkloadAvailable", expected, NEWS).await?;
        self.says(name, "Ready", expected, NEWS).await
    }

    async fn mended(&self, name: &str) -> Result<()> {
        self.says(name, "WorkloadAvailable", ("True", "Succeeded"), PATIENCE).await?;
        self.says(name, "Ready", ("True", "Succeeded"), PATIENCE).await?;
        Ok(())
    }

    async fn crash_loop(&self, name: &str, code: i32) -> Result<()> {
        let script = format!("exit {code}");
        self.apply(name, &json!({"command": ["sh", "-c", script]})).await?;
        let pod = self.shows(name, "its crash loop", is_crash_loop).await?;
        let message = self.told(name, ("False", "CrashLoopBackOff")).await?;
        ensure!(message.starts_with(&format!("{pod}: CrashLoopBackOff (exit {code}), ")), "{message}");
        self.apply(name, &json!({})).await?;
        self.mended(name).await
    }

    async fn missing_image(&self) -> Result<()> {
        // Nothing listens there, and no name has to be found out.
        let image = "127.0.0.1:1/nothing:1";
        self.apply("no-image", &json!({"image": image})).await?;
        let pod = self
            .shows("no-image", "its image", |status| waits(status, &["ErrImagePull", "ImagePullBackOff"]));
        let pod = pod.await?;
        let message = self.told("no-image", ("False", "ImagePullBackOff")).await?;
        ensure!(message == format!("{pod}: ImagePullBackOff (image {image})"), "{message}");
        self.apply("no-image", &json!({})).await?;
        self.mended("no-image").await
    }

    async fn missing_key(&self) -> Result<()> {
        self.apply_secret("keys", &json!({"other": "a"})).await?;
        let env = json!([{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "k"}}}]);
        self.apply("no-key", &json!({"env": env})).await?;
        let pod =
            self.shows("no-key", "the key", |status| waits(status, &["CreateContainerConfigError"])).await?;
        let message = self.told("no-key", ("Unknown", "CreateContainerConfigError")).await?;
        ensure!(message.starts_with(&format!("{pod}: CreateContainerConfigError: ")), "{message}");
        ensure!(message.contains("find key k in Secret"), "{message}");
        self.apply_secret("keys", &json!({"k": "a"})).await?;
        self.mended("no-key").await
    }

    async fn failed_hook(&self) -> Result<()> {
        let hooks = |script: &str| json!({"hooks": {"preRollout": [{"name": "migrate", "command": ["sh", "-c", script]}]}});
        self.apply("hooked", &hooks("echo starting >&2; echo no such table >&2; exit 3")).await?;
        let jobs = ListParams::default().labels("peristyle.dev/service=hooked,peristyle.dev/hook=migrate");
        // The Job controller tries twice more, ten and twenty seconds later.
        wait::until("the Job has failed for good", PATIENCE, async || {
            let jobs = self.api::<Job>().list(&jobs).await?.items;
            let conditions = jobs.iter().filter_map(|job| job.status.as_ref()?.conditions.as_ref());
            let has_failed = conditions.flatten().any(|c| c.type_ == "Failed" && c.status == "True");
            ensure!(has_failed, "{:?}", jobs.iter().map(|job| &job.status).collect::<Vec<_>>());
            Ok(())
        })
        .await?;
        let message = self.told("hooked", ("False", "HookFailed")).await?;
        ensure!(message.starts_with("hook migrate (Job hooked-migrate-"), "{message}");
        ensure!(message.contains(": exit 3: no such table; "), "{message}");
        self.apply("hooked", &hooks("exit 0")).await?;
        self.mended("hooked").await
    }
}

fn waits(status: &ContainerStatus, reasons: &[&str]) -> bool {
    let waiting = status.state.as_ref().and_then(|state| state.waiting.as_ref());
    let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
    reason.is_some_and(|reason| reasons.contains(&reason))
}

fn is_crash_loop(status: &ContainerStatus) -> bool {
    waits(status, &["CrashLoopBackOff"])
}

#[tokio::test]
async fn what_keeps_pods_from_running_is_told_with_pod_and_cause_and_withdrawn_when_it_is_mended() {
    let bench = Bench::start().await.unwrap();
    // Together, since most of the time the kubelet backs off.
    let told = tokio::try_join!(
        bench.crash_loop("exits-one", 1),
        bench.crash_loop("exits-zero", 0),
        bench.missing_image(),
        bench.missing_key(),
        bench.failed_hook(),
    );
    told.unwrap();
    bench.example.cluster.kubectl(&["delete", "namespace", &bench.namespace, "--wait=false"]).await.unwrap();
}

#[tokio::test]
async fn availability_is_withdrawn_when_pods_fail_later_and_comes_back_with_them() {
    let bench = Bench::start().await.unwrap();
    bench.apply("orders", &json!({})).await.unwrap();
    bench.mended("orders").await.unwrap();
    let pod = bench.shows("orders", "that it is ready", |status| status.ready).await.unwrap();

    // The mark lies in the pod's own folder, and outlives the container.
    let broken = ["exec", "-n", &bench.namespace, &pod, "--", "sh", "-c", ": > /tmp/broken"];
    bench.example.cluster.kubectl(&broken).await.unwrap();
    bench.shows("orders", "its crash loop", is_crash_loop).await.unwrap();
    let message = bench.told("orders", ("False", "CrashLoopBackOff")).await.unwrap();
    assert!(message.starts_with(&format!("{pod}: CrashLoopBackOff (exit 1), ")), "{message}");
    let status = bench.api::<Service>().get("orders").await.unwrap().status.unwrap();
    assert_eq!(status.pods.as_deref(), Some("0/1"));

    // Another pod has another folder.
    bench.example.cluster.kubectl(&["delete", "pod", "-n", &bench.namespace, &pod]).await.unwrap();
    bench.mended("orders").await.unwrap();
    bench.example.cluster.kubectl(&["delete", "namespace", &bench.namespace, "--wait=false"]).await.unwrap();
}
