//! A control plane, PostgreSQL, Keto and Oathkeeper with the operator's view
//! of each behind a proxy.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::DeleteParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config, ResourceExt};
use peristyle::sql::names::default_name;
use peristyle_crds::v1alpha1::{AuthClass, AuthPolicy, Database, DatabaseClass, Service};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use super::edge::{Gate, Prober};
use super::http::{HttpProxy, Upstream};
use super::journal::Journal;
use super::operator::Operator;
use super::postgres::{ADMIN, Postgres};
use super::snapshot::Camera;
use super::sql::SqlProxy;
use super::workload::Step;
use super::{names, nodes, programs};
use crate::images::workspace;
use crate::operated::{NAMESPACE, Operated};
use crate::ports;
use crate::progress::Progress;
use crate::stack::SYSTEM_NAMESPACE;
use crate::substrate::{self, Component};
use crate::wait;

const SYSTEM: &str = include_str!("../../manifests/faults/system.yaml");
/// The operator's.
const LEASE: &str = "peristyle-operator";
const PATIENCE: Duration = Duration::from_secs(60);
/// Deadline of a call without credentials.
const PROBE_DEADLINE: Duration = Duration::from_secs(2);

/// All systems; they end when it is dropped.
pub struct Rig {
    /// Not through the proxy.
    pub client: Client,
    pub operator: Arc<Operator>,
    pub journal: Arc<Journal>,
    pub gate: Arc<Gate>,
    pub api: HttpProxy,
    pub keto_read: HttpProxy,
    pub keto_write: HttpProxy,
    pub keto_opl: HttpProxy,
    pub oathkeeper: HttpProxy,
    pub sql: SqlProxy,
    pub postgres: Postgres,
    pub camera: Camera,
    tasks: Vec<JoinHandle<()>>,
    /// A control plane without an operator of its own.
    operated: Operated,
}

impl Drop for Rig {
    fn drop(&mut self) {
        self.operator.kill();
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Rig {
    /// Starts everything and waits until the operator says that its classes are ready.
    ///
    /// # Errors
    /// When something does not start.
    pub async fn start(progress: &Progress) -> Result<Self> {
        let building =
            substrate::build(&[Component::Kubernetes, Component::Keto, Component::Oathkeeper], progress);
        let substrate = building.await?;
        let binaries = progress.step("build the operator", workspace::build()).await?;
        let peristyle = binaries.get("peristyle").context("the workspace has no binary peristyle")?;
        let (operated, postgres) = tokio::try_join!(
            progress.step("control plane", Operated::prepare()),
            progress.step("PostgreSQL", Postgres::start()),
        )?;
        let plane = operated.plane();
        let behind = programs::start(plane, &substrate, peristyle, &postgres);
        let behind = progress.step("Keto and Oathkeeper", behind).await?;

        let kubeconfig = plane.state().path("operator.kubeconfig");
        let log = plane.state().log("operator");
        let operator = Arc::new(Operator::new(peristyle.clone(), kubeconfig.clone(), log)?);
        let journal = Arc::new(Journal::new(operator.clone()));
        let http = reqwest::Client::builder().no_proxy().build()?;
        let probing = reqwest::Client::builder().no_proxy().timeout(PROBE_DEADLINE).build()?;
        let plain = |address: &str| Upstream::Plain { address: address.to_owned(), client: http.clone() };
        let here = IpAddr::from(Ipv4Addr::LOCALHOST);
        let gate = async |ip, upstream, names| HttpProxy::start(ip, upstream, journal.clone(), names).await;
        let keto = (names::keto_write as super::http::Describe, names::no_effects as super::http::Effects);
        let api = Upstream::Kubernetes(client(&plane.kubeconfig()).await?);
        let api = gate(here, api, (names::api_write, names::api_effects)).await?;
        let keto_read = gate(here, plain(&behind.keto_read), keto).await?;
        let keto_write = gate(here, plain(&behind.keto_write), keto).await?;
        let keto_opl = gate(here, plain(&behind.keto_opl), keto).await?;
        // The API server refuses a loopback address of a pod.
        let oathkeeper = gate(ports::own_address()?, plain(&behind.oathkeeper), keto).await?;
        let sql = SqlProxy::start(postgres.address(), journal.clone()).await?;
        fs::write(&kubeconfig, plain_kubeconfig(&api.address().to_string()))?;

        let client = operated.client.clone();
        let gate = Arc::new(Gate::default());
        let prober = Prober {
            http: probing,
            oathkeeper: behind.oathkeeper.clone(),
            journal: journal.clone(),
            gate: gate.clone(),
        };
        let tasks = vec![tokio::spawn(nodes::play(client.clone())), tokio::spawn(prober.run(client.clone()))];
        let camera = Camera::new(client.clone(), behind).await?;
        let rig = Self {
            client,
            operator,
            journal,
            gate,
            api,
            keto_read,
            keto_write,
            keto_opl,
            oathkeeper,
            sql,
            postgres,
            camera,
            tasks,
            operated,
        };
        rig.guard_databases();
        rig.apply_system().await?;
        rig.operator.start()?;
        progress.step("the operator and its classes", rig.classes_are_ready()).await?;
        Ok(rig)
    }

    async fn apply_system(&self) -> Result<()> {
        let values = [
            ("$KETO_READ", self.keto_read.address().to_string()),
            ("$KETO_WRITE", self.keto_write.address().to_string()),
            ("$KETO_OPL", self.keto_opl.address().to_string()),
            ("$POSTGRES", self.sql.address().to_string()),
            ("$ADMIN", ADMIN.to_owned()),
            ("$PASSWORD", self.postgres.admin_password().to_owned()),
            ("$OATHKEEPER_PORT", self.oathkeeper.address().port().to_string()),
            ("$OATHKEEPER_ADDRESS", self.oathkeeper.address().ip().to_string()),
        ];
        let text = values.iter().fold(SYSTEM.to_owned(), |text, (from, to)| text.replace(from, to));
        let arguments = ["apply", "--server-side", "-f", "-"];
        self.operated.plane().kubectl_with_input(&arguments, &text).await?;
        Ok(())
    }

    async fn classes_are_ready(&self) -> Result<()> {
        let auth: Api<AuthClass> = Api::all(self.client.clone());
        let database: Api<DatabaseClass> = Api::all(self.client.clone());
        let is_ready = |status: &serde_json::Value| {
            status["conditions"]
                .as_array()
                .into_iter()
                .flatten()
                .any(|c| c["type"] == "Ready" && c["status"] == "True")
        };
        let log = || self.operator.log();
        let auth = wait::object(&auth, "default", "the AuthClass is ready", PATIENCE, |class| {
            is_ready(&json!(class.status))
        });
        auth.await.with_context(log)?;
        let database = wait::object(&database, "postgres", "the DatabaseClass is ready", PATIENCE, |class| {
            is_ready(&json!(class.status))
        });
        database.await.with_context(log)?;
        Ok(())
    }

    /// Kills the operator if it still runs, and starts it as it would be after
    /// the Lease has run out: what happens then is the same, and sooner.
    ///
    /// # Errors
    /// When the Lease cannot be deleted or the program not be started.
    pub async fn restart(&self) -> Result<()> {
        self.operator.kill();
        let leases: Api<Lease> = Api::namespaced(self.client.clone(), SYSTEM_NAMESPACE);
        match leases.delete(LEASE, &DeleteParams::default()).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        self.operator.start()
    }

    /// Whether the three objects are ready, or gone.
    ///
    /// # Errors
    /// Which one is not, with its conditions.
    pub async fn has_arrived(&self, step: Step) -> Result<()> {
        let client = &self.client;
        let name = "greeter";
        let objects = [
            json!(Api::<Service>::namespaced(client.clone(), NAMESPACE).get_opt(name).await?),
            json!(Api::<Database>::namespaced(client.clone(), NAMESPACE).get_opt(name).await?),
            json!(Api::<AuthPolicy>::namespaced(client.clone(), NAMESPACE).get_opt(name).await?),
        ];
        for object in objects {
            if step == Step::Delete {
                ensure!(object.is_null(), "{} is still there", object["kind"]);
                continue;
            }
            if step == Step::Open && object["kind"] == "AuthPolicy" {
                // A policy that protects nothing says so and stays.
                continue;
            }
            let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let is_ready = |c: &Value| {
                c["type"] == "Ready"
                    && c["status"] == "True"
                    && c["observedGeneration"] == object["metadata"]["generation"]
            };
            ensure!(
                conditions.iter().any(is_ready),
                "{} is not ready: {}",
                object["kind"],
                json!(conditions)
            );
        }
        Ok(())
    }

    /// No database may be dropped unless its object is being deleted.
    fn guard_databases(&self) {
        let (client, journal) = (self.client.clone(), self.journal.clone());
        self.sql.watch(move |sql| {
            if !sql.to_ascii_uppercase().contains("DROP DATABASE") {
                return;
            }
            let (client, journal, sql) = (client.clone(), journal.clone(), sql.to_owned());
            tokio::spawn(async move {
                let databases: Api<Database> = Api::namespaced(client, NAMESPACE);
                let found = databases.list(&kube::api::ListParams::default()).await;
                let is_kept = |database: &Database| {
                    let name = default_name(NAMESPACE, &database.name_any());
                    database.metadata.deletion_timestamp.is_none() && sql.contains(&format!("\"{name}\""))
                };
                // An object that is gone by now was deleted before.
                if found.is_ok_and(|found| found.iter().any(is_kept)) {
                    journal.violation(format!("{sql} although its Database is not being deleted"));
                }
            });
        });
    }
}

/// A client without tries of its own: what the operator asks is asked once.
async fn client(kubeconfig: &Path) -> Result<Client> {
    let read = Kubeconfig::read_from(kubeconfig)?;
    let mut config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
    config.default_retry = false;
    Ok(Client::try_from(config)?)
}

fn plain_kubeconfig(address: &str) -> String {
    json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
        "clusters": [{"name": "proxy", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "proxy", "user": {}}],
        "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}]
    })
    .to_string()
}
