//! Liveness and readiness, over gRPC and HTTP.
//!
//! Liveness never asks the database: restarting a service does not repair
//! one. Over gRPC the overall service (empty name) and `liveness` serve until
//! the process drains; `readiness` and each service's own name follow the
//! databases.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{Json, Router, extract::State, http::StatusCode, routing::get};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic_health::{ServingStatus, server::HealthReporter};

use crate::Database;

/// Pause between checks while all is well, and while something is not.
const CALM: Duration = Duration::from_secs(5);
const ANXIOUS: Duration = Duration::from_secs(1);

/// What is wrong, by module; empty means ready.
type Faults = BTreeMap<&'static str, String>;

/// A module as health sees it.
pub struct Checked {
    pub name: &'static str,
    /// Its gRPC services.
    pub services: Vec<String>,
    pub database: Database,
}

/// The readiness of a process.
#[derive(Clone)]
pub struct Readiness {
    faults: watch::Sender<Faults>,
    reporter: HealthReporter,
    modules: Arc<Vec<Checked>>,
}

impl Readiness {
    /// Not ready until the first check has passed.
    #[must_use]
    pub fn new(reporter: HealthReporter, modules: Vec<Checked>) -> Self {
        let faults = modules.iter().map(|module| (module.name, "not checked yet".to_owned())).collect();
        Self { faults: watch::Sender::new(faults), reporter, modules: Arc::new(modules) }
    }

    /// Checks the databases again and again until `stop`.
    pub async fn watch(self, stop: CancellationToken) {
        self.reporter.set_service_status("liveness", ServingStatus::Serving).await;
        loop {
            let ready = self.check().await;
            let pause = if ready { CALM } else { ANXIOUS };
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    async fn check(&self) -> bool {
        let mut faults = Faults::new();
        for module in self.modules.iter() {
            if let Err(error) = module.database.check().await {
                faults.insert(module.name, error.to_string());
            }
        }
        for module in self.modules.iter() {
            let status = serving(!faults.contains_key(module.name));
            for service in &module.services {
                self.reporter.set_service_status(service, status).await;
            }
        }
        let ready = faults.is_empty();
        self.reporter.set_service_status("readiness", serving(ready)).await;
        self.faults.send_if_modified(|before| {
            let changed = *before != faults;
            if changed {
                tracing::info!(ready, ?faults, "readiness changed");
                *before = faults;
            }
            changed
        });
        ready
    }

    /// Tells everyone that asks to send no more requests here.
    pub async fn drain(&self) {
        let services = self.modules.iter().flat_map(|module| module.services.iter().map(String::as_str));
        for service in ["", "liveness", "readiness"].into_iter().chain(services) {
            self.reporter.set_service_status(service, ServingStatus::NotServing).await;
        }
        self.faults.send_replace(BTreeMap::from([("process", "draining".to_owned())]));
    }

    /// `/healthz`: the process answers. `/readyz`: 200, or 503 with what is
    /// wrong.
    pub fn routes(&self) -> Router {
        let faults = self.faults.subscribe();
        Router::new()
            .route("/healthz", get(|| async { "ok" }))
            .route("/readyz", get(readyz))
            .with_state(faults)
    }
}

fn serving(ready: bool) -> ServingStatus {
    if ready { ServingStatus::Serving } else { ServingStatus::NotServing }
}

async fn readyz(State(faults): State<watch::Receiver<Faults>>) -> (StatusCode, Json<Faults>) {
    let faults = faults.borrow().clone();
    let status = if faults.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(faults))
}
