//! The cluster that tests and demo work with: the sandbox that runs, or one
//! that `cargo sandbox up --kubeconfig` named.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::state::{Kind, State};

/// A cluster with the programs to work with it.
#[derive(Clone, Debug)]
pub struct Cluster {
    state: State,
    kubeconfig: PathBuf,
    context: Option<String>,
}

impl Cluster {
    /// The cluster of [`State::current`].
    ///
    /// # Errors
    /// When none is up.
    pub fn current() -> Result<Self> {
        Self::of(&State::current()?)
    }

    /// The cluster of a state directory.
    ///
    /// # Errors
    /// When none is up.
    pub fn of(state: &State) -> Result<Self> {
        let settings = state.settings()?.filter(|settings| settings.ready);
        let Some(settings) = settings else {
            bail!("no cluster is up in {}: run `cargo sandbox up`", state.dir().display());
        };
        let (kubeconfig, context) = match settings.cluster {
            Kind::Existing { kubeconfig, context } => (kubeconfig, context),
            Kind::Full { .. } | Kind::ControlPlane { .. } => (state.path("kubeconfig"), None),
        };
        Ok(Self { state: state.clone(), kubeconfig, context })
    }

    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    #[must_use]
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// The context of the kubeconfig; none for its current one.
    #[must_use]
    pub fn context(&self) -> Option<&str> {
        self.context.as_deref()
    }

    /// A client with the rights of the kubeconfig.
    ///
    /// # Errors
    /// When the kubeconfig cannot be used.
    pub async fn client(&self) -> Result<Client> {
        client(&self.kubeconfig, self.context()).await
    }
}

/// A client for a context of a kubeconfig.
///
/// # Errors
/// When the kubeconfig cannot be used.
pub async fn client(kubeconfig: &Path, context: Option<&str>) -> Result<Client> {
    Ok(Client::try_from(config(kubeconfig, context).await?)?)
}

/// The settings of a client for a context of a kubeconfig.
///
/// # Errors
/// When the kubeconfig cannot be used.
pub async fn config(kubeconfig: &Path, context: Option<&str>) -> Result<Config> {
    // The second call in a process finds it installed, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let read = Kubeconfig::read_from(kubeconfig);
    let read = read.with_context(|| format!("cannot use kubeconfig {}", kubeconfig.display()))?;
    let options = KubeConfigOptions { context: context.map(str::to_owned), ..Default::default() };
    Ok(Config::from_custom_kubeconfig(read, &options).await?)
}

/// Succeeds when the API server says that it is ready.
///
/// # Errors
/// When it does not answer or is not ready.
pub async fn readiness(client: &Client) -> Result<()> {
    let request = http::Request::get("/readyz").body(Vec::new())?;
    client.request_text(request).await.context("kube-apiserver is not ready")?;
    Ok(())
}
