//! A control plane with all definitions and an operator in this process, for
//! tests of controllers. No node, so no pod runs.

use anyhow::Result;
use clap::Parser;
use k8s_openapi::api::core::v1::Namespace;
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, api::PostParams};
use peristyle::{client, config::Config, run};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::cluster;
use crate::control_plane::ControlPlane;
use crate::stack;
use crate::team::Team;

/// Namespace of the tests' objects.
pub const NAMESPACE: &str = "shop";

#[derive(Parser)]
struct Arguments {
    #[command(flatten)]
    config: Config,
}

/// Settings of an operator that calls itself `identity`.
#[must_use]
pub fn config(identity: &str) -> Config {
    Arguments::parse_from(["test", "--identity", identity, "--admin-address", "127.0.0.1:0"]).config
}

/// An operator on a control plane; both end when it is dropped.
pub struct Operated {
    pub client: Client,
    operator: Option<JoinHandle<()>>,
    pub plane: ControlPlane,
}

impl Operated {
    /// A control plane with our definitions, Traefik's, and two namespaces; no operator yet.
    ///
    /// # Errors
    /// When the control plane does not start or refuses a definition.
    pub async fn prepare() -> Result<Self> {
        let plane = ControlPlane::start().await?;
        stack::install_definitions(async |arguments: &[&str]| plane.kubectl(arguments).await).await?;
        let client = plane.client().await?;
        for name in [stack::SYSTEM_NAMESPACE, NAMESPACE] {
            let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
            Api::<Namespace>::all(client.clone()).create(&PostParams::default(), &namespace).await?;
        }
        Ok(Self { client, operator: None, plane })
    }

    /// Starts an operator that calls itself `identity`, after the one before was cut off.
    ///
    /// # Errors
    /// When there is no client for it.
    pub async fn operate(&mut self, identity: &str) -> Result<()> {
        let connection = cluster::config(&self.plane.kubeconfig(), None).await?;
        self.operate_through(identity, connection)
    }

    /// The same with a connection that something may stand in.
    ///
    /// # Errors
    /// When there is no client for it.
    pub fn operate_through(&mut self, identity: &str, connection: kube::Config) -> Result<()> {
        self.cut_off();
        let config = config(identity);
        // A client of its own: cutting off the operator must not cut off the test.
        let client = client::from_config(connection)?;
        self.operator = Some(tokio::spawn(async move {
            if let Err(error) = run::operate(client, config).await {
                eprintln!("the operator ended: {error:#}");
            }
        }));
        Ok(())
    }

    /// Objects of a kind in the tests' namespace.
    #[must_use]
    pub fn api<K>(&self) -> Api<K>
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Who applies objects of ours in the tests' namespace.
    #[must_use]
    pub fn team(&self) -> Team {
        Team::new(self.client.clone(), NAMESPACE)
    }

    /// The control plane.
    #[must_use]
    pub const fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// Ends the operator in the middle of whatever it does.
    pub fn cut_off(&mut self) {
        if let Some(operator) = self.operator.take() {
            operator.abort();
        }
    }
}

impl Drop for Operated {
    fn drop(&mut self) {
        self.cut_off();
    }
}
