//! Starts services in this process.

use std::{collections::HashMap, net::SocketAddr};

use platform::{
    Env,
    testing::{
        logs,
        postgres::{Postgres, Provisioned},
    },
};
use suite::Name;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, transport::Channel};

/// Variables of a process.
pub(crate) type Vars = HashMap<String, String>;

/// Services that are being served.
pub(crate) struct Running {
    pub(crate) grpc: String,
    pub(crate) http: Option<String>,
    pub(crate) metrics: String,
    pub(crate) stop: CancellationToken,
    pub(crate) task: JoinHandle<()>,
}

impl Running {
    pub(crate) async fn channel(&self) -> Channel {
        Channel::from_shared(self.grpc.clone()).unwrap().connect().await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> (u16, String) {
        let response = reqwest::get(format!("{}{path}", self.metrics)).await.unwrap();
        (response.status().as_u16(), response.text().await.unwrap())
    }

    pub(crate) async fn ready(&self) {
        platform::testing::eventually("ready", || async { self.get("/readyz").await.0 == 200 }).await;
    }
}

pub(crate) fn vars<const N: usize>(pairs: [(&str, &str); N]) -> Vars {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// Serves on free ports.
pub(crate) async fn serve(names: &[Name], vars: &Vars) -> Running {
    logs::install();
    let ports = [("PORT", "0"), ("GRPC_PORT", "0"), ("METRICS_PORT", "0")];
    let ports = ports.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let env: Env = vars.clone().into_iter().chain(ports).collect();
    let app = suite::bind(&env, names).await.unwrap();
    let url = |addr: SocketAddr| format!("http://127.0.0.1:{}", addr.port());
    let (grpc, http, metrics) = (url(app.grpc_addr), app.http_addr.map(url), url(app.metrics_addr));
    let stop = CancellationToken::new();
    let task = tokio::spawn(app.run(stop.clone().cancelled_owned()));
    Running { grpc, http, metrics, stop, task }
}

/// A migrated database for a module; returns its variables too.
pub(crate) async fn database(postgres: &Postgres, name: Name) -> (Provisioned, Vars) {
    logs::install();
    let database = postgres.provision(name.as_str()).await;
    suite::migrate(&Env::from_iter([("DATABASE_URL", &database.owner)]), name).await.unwrap();
    let variable = format!("{}_DATABASE_URL", name.as_str().to_uppercase());
    let vars = HashMap::from([(variable, database.writer.clone())]);
    (database, vars)
}

/// A web server that answers everything with `body`; returns its port.
pub(crate) async fn web(body: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            if stream.read(&mut request).await.is_ok_and(|read| read > 0) {
                let head =
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                let _ = stream.write_all((head + body).as_bytes()).await;
            }
        }
    });
    port
}

/// A request in a trace of its own; returns the trace's id.
pub(crate) fn traced<T>(number: u32, message: T) -> (Request<T>, String) {
    let trace = format!("{number:032x}");
    let mut request = Request::new(message);
    request.metadata_mut().insert("traceparent", format!("00-{trace}-00f067aa0ba902b7-01").parse().unwrap());
    (request, trace)
}

/// The one line that the access log has for a trace.
pub(crate) async fn access_line(trace: &str) -> serde_json::Value {
    platform::testing::eventually("a line in the access log", || async { !logs::access(trace).is_empty() })
        .await;
    let lines = logs::access(trace);
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines[0].clone()
}
