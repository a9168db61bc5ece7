//! What the charts render to for each of their values, and what a real API
//! server makes of it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use e2e::operated::Operated;
use e2e::progress::Progress;
use e2e::stack::SYSTEM_NAMESPACE;
use e2e::substrate::{self, Component};
use e2e::{command, workspace};
use serde_json::{Value, json};
use tokio::process::Command;

const CHARTS: [&str; 3] = ["peristyle-crds", "peristyle", "peristyle-stack"];

/// What a chart renders to.
struct Rendered(Vec<Value>);

impl Rendered {
    /// Every value at this path (RFC 6901) of the objects of a kind.
    fn all(&self, kind: &str, path: &str) -> Vec<&Value> {
        let objects = self.0.iter().filter(|object| object["kind"] == kind);
        objects.filter_map(|object| object.pointer(path)).collect()
    }

    /// The value at this path of one object.
    fn one(&self, kind: &str, name: &str, path: &str) -> Option<&Value> {
        let object = self.0.iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name);
        object.unwrap_or_else(|| panic!("there is no {kind} {name}")).pointer(path)
    }

    /// The names of the objects of a kind, sorted.
    fn names(&self, kind: &str) -> Vec<&str> {
        let names = self.all(kind, "/metadata/name").into_iter();
        let mut names: Vec<&str> = names.filter_map(Value::as_str).collect();
        names.sort_unstable();
        names
    }

    fn has(&self, kind: &str, name: &str) -> bool {
        self.0.iter().any(|object| object["kind"] == kind && object["metadata"]["name"] == name)
    }
}

struct Helm(PathBuf);

impl Helm {
    async fn build() -> Result<Self> {
        let programs = substrate::build(&[Component::Helm], &Progress::default()).await?;
        Ok(Self(programs.get(&Component::Helm).context("helm was not built")?.clone()))
    }

    /// What `helm template` prints.
    async fn template(&self, chart: &Path, values: &Value) -> Result<String> {
        let file = tempfile::NamedTempFile::new()?;
        fs::write(file.path(), values.to_string())?;
        let mut helm = Command::new(&self.0);
        helm.arg("template").arg("release").arg(chart).arg("--values").arg(file.path());
        // Without a cluster helm takes an old version.
        helm.args(["--namespace", SYSTEM_NAMESPACE, "--kube-version", substrate::KUBERNETES_VERSION]);
        command::output(&mut helm).await
    }
}

fn chart(name: &str) -> PathBuf {
    workspace().join("charts").join(name)
}

/// Values, and what must come of them.
struct Case {
    chart: &'static str,
    values: Value,
    expected: fn(&Rendered) -> bool,
}

const IMAGE: &str = "/spec/template/spec/containers/0/image";
const PULL_SECRETS: &str = "/spec/template/spec/imagePullSecrets";

fn operator_cases() -> Vec<Case> {
    let digest = format!("sha256:{}", "a".repeat(64));
    let case = |values, expected| Case { chart: "peristyle", values, expected };
    vec![
        case(json!({}), |r| {
            r.one("Deployment", "peristyle", "/spec/replicas") == Some(&json!(2))
                && r.names("PodDisruptionBudget") == ["edge-errors", "peristyle"]
                && r.names("NetworkPolicy") == ["edge-errors", "peristyle"]
                && r.has("ValidatingAdmissionPolicy", "peristyle-edge-label")
        }),
        case(json!({"replicas": 1, "edgeErrors": {"replicas": 1}}), |r| {
            r.all("Deployment", "/spec/replicas") == [1, 1] && r.all("PodDisruptionBudget", "").is_empty()
        }),
        case(json!({"replicas": 0}), |r| {
            r.one("Deployment", "peristyle", "/spec/replicas") == Some(&json!(0))
        }),
        case(json!({"image": {"repository": "r.test:5000/p", "tag": "9"}}), |r| {
            r.all("Deployment", IMAGE) == ["r.test:5000/p:9"; 2]
        }),
        case(json!({"image": {"digest": digest, "tag": "9"}}), |r| {
            let pinned = format!("ghcr.io/peristyle/peristyle@sha256:{}", "a".repeat(64));
            r.all("Deployment", IMAGE).iter().all(|image| **image == json!(pinned))
        }),
        case(json!({"image": {"digest": digest, "ref": "r.test/p:1"}}), |r| {
            r.all("Deployment", IMAGE) == ["r.test/p:1"; 2]
        }),
        case(json!({"imagePullSecrets": ["one", "two"]}), |r| {
            r.all("Deployment", PULL_SECRETS) == vec![&json!([{"name": "one"}, {"name": "two"}]); 2]
        }),
        case(json!({"networkPolicy": {"enabled": false}}), |r| r.all("NetworkPolicy", "").is_empty()),
        case(json!({"networkPolicy": {"egress": [{"ports": [{"port": 443, "protocol": "TCP"}]}]}}), |r| {
            r.one("NetworkPolicy", "peristyle", "/spec/egress/0/ports/0/port") == Some(&json!(443))
        }),
        case(json!({"traces": {"endpoint": "http://otel.test:4317"}, "log": "info,kube=debug"}), |r| {
            let env =
                r.one("Deployment", "peristyle", "/spec/template/spec/containers/0/env").unwrap().to_string();
            env.contains("http://otel.test:4317") && env.contains("info,kube=debug")
        }),
        case(json!({"user": null}), |r| {
            r.all("Deployment", "/spec/template/spec/securityContext/runAsUser").is_empty()
                && r.all("Deployment", "/spec/template/spec/securityContext/runAsNonRoot") == [true, true]
        }),
        case(
            json!({"priorityClassName": "high", "nodeSelector": {"a": "b"}, "tolerations": [{"operator": "Exists"}],
                "defaultReplicas": 3, "resources": {"limits": {"memory": "1Gi"}}, "global": {"any": "thing"}}),
            |r| {
                r.all("Deployment", "/spec/template/spec/priorityClassName") == ["high"; 2]
                    && r.all("Deployment", "/spec/template/spec/nodeSelector/a") == ["b"; 2]
                    && r.all("Deployment", "/spec/template/spec/tolerations/0/operator") == ["Exists"; 2]
            },
        ),
    ]
}

/// Who may reach a port of a component's pods, as a NetworkPolicy says it.
fn admits(rendered: &Rendered, component: &str, port: &str, peers: &Value) -> bool {
    let rules = rendered.one("NetworkPolicy", component, "/spec/ingress").and_then(Value::as_array).unwrap();
    let of_port = |rule: &&Value| rule["ports"].as_array().unwrap().iter().any(|p| p["port"] == port);
    let found: Vec<&Value> = rules.iter().filter(of_port).collect();
    matches!(found.as_slice(), [rule] if rule["from"] == *peers)
}

fn stack_cases() -> Vec<Case> {
    let case = |values, expected| Case { chart: "peristyle-stack", values, expected };
    vec![
        case(json!({}), |r| {
            let pods = |labels: Value| json!({"podSelector": {"matchLabels": labels}});
            let operator = pods(
                json!({"app.kubernetes.io/name": "peristyle", "app.kubernetes.io/component": "operator"}),
            );
            // They fetch the keys of the tokens that they get from the gate.
            let workloads = json!({"namespaceSelector": {},
                "podSelector": {"matchLabels": {"app.kubernetes.io/managed-by": "peristyle"}}});
            let component = |name: &str| pods(json!({"app.kubernetes.io/name": name}));
            r.names("PodDisruptionBudget") == ["oathkeeper", "traefik"]
                && admits(r, "traefik", "api", &json!([operator]))
                && admits(r, "oathkeeper", "api", &json!([component("traefik"), operator, workloads]))
                && admits(r, "keto", "write", &json!([operator]))
                && r.one("StatefulSet", "postgres", "/spec/volumeClaimTemplates").is_none()
        }),
        // Nobody else's key for the tokens of Keto's pages, wherever Keto runs.
        case(json!({}), |r| {
            let secret = r.one("Secret", "keto-pagination", "/stringData/secret").unwrap();
            let env = |path: &str| {
                let env = r.one("Deployment", "keto", path).and_then(Value::as_array).unwrap();
                env.iter().any(|variable| {
                    variable["name"] == "SECRETS_PAGINATION"
                        && variable["valueFrom"]["secretKeyRef"]
                            == json!({"name": "keto-pagination", "key": "secret"})
                })
            };
            secret.as_str().is_some_and(|secret| secret.len() == 32)
                && env("/spec/template/spec/initContainers/0/env")
                && env("/spec/template/spec/containers/0/env")
        }),
        case(json!({"oathkeeper": {"replicas": 1}, "traefik": {"replicas": 1}}), |r| {
            r.all("PodDisruptionBudget", "").is_empty()
        }),
        case(json!({"traefik": {"web": {"hostPort": 8080}}}), |r| {
            r.one("Deployment", "traefik", "/spec/replicas") == Some(&json!(1))
                && r.one("EdgeClass", "public", "/spec/address/port") == Some(&json!(8080))
        }),
        case(json!({"traefik": {"serviceType": "LoadBalancer"}}), |r| {
            r.one("Service", "traefik", "/spec/type") == Some(&json!("LoadBalancer"))
        }),
        case(
            json!({"traefik": {"serviceType": "NodePort", "readTimeout": "90m", "logLevel": "DEBUG"}}),
            |r| {
                let args = r
                    .one("Deployment", "traefik", "/spec/template/spec/containers/0/args")
                    .unwrap()
                    .to_string();
                args.contains("readtimeout=90m") && args.contains("--log.level=DEBUG")
            },
        ),
        case(json!({"edge": {"entryPoint": "websecure", "name": "inner"}}), |r| {
            r.one("EdgeClass", "inner", "/spec/probe/scheme") == Some(&json!("https"))
                && r.one("EdgeClass", "inner", "/spec/address/port") == Some(&json!(443))
        }),
        case(json!({"postgres": {"storage": {"size": "10Gi", "storageClassName": "fast"}}}), |r| {
            let claim = r.one("StatefulSet", "postgres", "/spec/volumeClaimTemplates/0/spec").unwrap();
            claim["resources"]["requests"]["storage"] == "10Gi" && claim["storageClassName"] == "fast"
        }),
        case(json!({"postgres": {"storage": {"size": "1.5Ti"}, "maxConnections": 50}}), |r| {
            let claim = r.one("StatefulSet", "postgres", "/spec/volumeClaimTemplates/0/spec").unwrap();
            claim["resources"]["requests"]["storage"] == "1.5Ti" && claim["storageClassName"].is_null()
        }),
        case(json!({"imagePullSecrets": ["one"]}), |r| {
            r.all("Deployment", PULL_SECRETS) == vec![&json!([{"name": "one"}]); 3]
                && r.all("StatefulSet", PULL_SECRETS) == [&json!([{"name": "one"}])]
        }),
        case(json!({"keto": {"image": {"ref": "r.test/keto@sha256:0"}}, "global": {}}), |r| {
            r.one("Deployment", "keto", IMAGE) == Some(&json!("r.test/keto@sha256:0"))
        }),
        case(
            json!({"auth": {"name": "main", "issuers": [{"issuer": "https://idp.test", "jwksURL": "https://idp.test/keys"}]},
                "database": {"name": "big"}}),
            |r| {
                r.one("AuthClass", "main", "/spec/issuers/0/issuer") == Some(&json!("https://idp.test"))
                    && r.has("DatabaseClass", "big")
            },
        ),
    ]
}

fn cases() -> impl Iterator<Item = Case> {
    let crds = Case { chart: "peristyle-crds", values: json!({}), expected: |r| r.0.len() == 6 };
    operator_cases().into_iter().chain(stack_cases()).chain([crds])
}

#[tokio::test]
async fn every_value_has_its_effect() {
    let helm = Helm::build().await.unwrap();
    for Case { chart: name, values, expected } in cases() {
        let text = helm.template(&chart(name), &values).await.unwrap();
        let mut objects: Vec<Value> = serde_saphyr::from_multiple(&text).unwrap();
        objects.retain(|object| !object.is_null());
        assert!(expected(&Rendered(objects)), "{name} with {values} renders:\n{text}");
    }
}

#[tokio::test]
async fn the_api_server_takes_whatever_the_charts_render_to() {
    let helm = Helm::build().await.unwrap();
    let operated = Operated::prepare().await.unwrap();
    let apply = ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-"];
    for Case { chart: name, values, .. } in cases() {
        let text = helm.template(&chart(name), &values).await.unwrap();
        let said = operated.plane.kubectl_with_input(&apply, &text).await;
        said.unwrap_or_else(|error| panic!("{name} with {values}: {error:#}"));
    }
}

#[tokio::test]
async fn a_value_that_cannot_work_is_refused_with_its_name() {
    let helm = Helm::build().await.unwrap();
    for (name, values, said) in [
        ("peristyle", json!({"replicas": -1}), "replicas"),
        ("peristyle", json!({"replicas": "two"}), "replicas"),
        ("peristyle", json!({"replica": 2}), "replica"),
        ("peristyle", json!({"image": {"digest": "sha256:abc"}}), "digest"),
        ("peristyle", json!({"image": {"repository": "Not A Name"}}), "repository"),
        ("peristyle", json!({"imagePullSecrets": [{"name": "one"}]}), "imagePullSecrets"),
        ("peristyle", json!({"imagePullSecrets": ["one", "one"]}), "imagePullSecrets"),
        ("peristyle", json!({"edgeErrors": {"replicas": 0}}), "replicas"),
        ("peristyle", json!({"networkPolicy": {"enabled": "no"}}), "enabled"),
        ("peristyle", json!({"traces": {"endpoint": "otel:4317"}}), "endpoint"),
        ("peristyle", json!({"user": 0}), "user"),
        ("peristyle", json!({"log": ""}), "log"),
        ("peristyle-stack", json!({"postgres": {"storage": {"size": "10 GB"}}}), "size"),
        ("peristyle-stack", json!({"postgres": {"user": 0}}), "user"),
        ("peristyle-stack", json!({"postgres": {"binDir": "bin; rm"}}), "binDir"),
        ("peristyle-stack", json!({"traefik": {"serviceType": "ExternalName"}}), "serviceType"),
        ("peristyle-stack", json!({"traefik": {"web": {"hostPort": 70000}}}), "hostPort"),
        ("peristyle-stack", json!({"traefik": {"readTimeout": "long"}}), "readTimeout"),
        ("peristyle-stack", json!({"edge": {"hostTemplate": "{service}.test"}}), "hostTemplate"),
        ("peristyle-stack", json!({"edge": {"entryPoint": "ssh"}}), "entryPoint"),
        ("peristyle-stack", json!({"auth": {"issuers": [{"issuer": "a"}]}}), "jwksURL"),
        (
            "peristyle-stack",
            json!({"auth": {"issuers": [{"issuer": "a", "jwksURL": "file:///etc/passwd"}]}}),
            "jwksURL",
        ),
        ("peristyle-stack", json!({"networkPolicy": {"enabled": false}}), "networkPolicy"),
        ("peristyle-crds", json!({"anything": 1}), "anything"),
    ] {
        let Err(error) = helm.template(&chart(name), &values).await else {
            panic!("{name} takes {values}");
        };
        let error = format!("{error:#}");
        assert!(error.contains("values don't meet the specifications") && error.contains(said), "{error}");
    }
}

#[tokio::test]
async fn each_chart_can_be_a_part_of_another_one() {
    let helm = Helm::build().await.unwrap();
    for name in CHARTS {
        let dir = tempfile::tempdir().unwrap();
        let whole = json!({"apiVersion": "v2", "name": "whole", "version": "1.0.0"}).to_string();
        fs::write(dir.path().join("Chart.yaml"), whole).unwrap();
        fs::create_dir(dir.path().join("charts")).unwrap();
        let part = dir.path().join("charts").join(name);
        command::output(Command::new("cp").arg("-r").arg(chart(name)).arg(&part)).await.unwrap();
        let values = json!({"global": {"imageRegistry": "r.test"}});
        let text = helm.template(dir.path(), &values).await.unwrap();
        let alone = helm.template(&chart(name), &json!({})).await.unwrap();
        let kinds = |text: &str| text.lines().filter(|line| line.starts_with("kind: ")).count();
        assert!(kinds(&text) > 0 && kinds(&text) == kinds(&alone), "{name}");
    }
}
