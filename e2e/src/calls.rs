//! Calls through the edge, as a user's client makes them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use greeter::v1::{GreetRequest, GreetResponse, greeter_service_client::GreeterServiceClient};
use reqwest::Method;
use serde_json::Value;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

/// How long one call may take; longer than the edge's own limits.
const DEADLINE: Duration = Duration::from_secs(20);

/// The edge of a cluster, reached on a port of the loopback address.
#[derive(Clone, Debug)]
pub struct Edge {
    address: SocketAddr,
}

/// What an HTTP call was answered.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: reqwest::header::HeaderMap,
    pub body: String,
}

impl Edge {
    /// The edge behind a port of 127.0.0.1.
    #[must_use]
    pub fn on(port: u16) -> Self {
        Self { address: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port) }
    }

    /// The address that the edge listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A client of one host, which keeps its connections.
    ///
    /// # Errors
    /// When the host is no valid name.
    pub fn caller(&self, host: &str) -> Result<Caller> {
        let client = reqwest::Client::builder()
            .resolve(host, self.address)
            .http1_only()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(DEADLINE)
            .build()?;
        let base = format!("http://{host}:{}", self.address.port());
        Ok(Caller { client, channel: self.channel(host)?, base })
    }

    /// A gRPC channel to `host`.
    ///
    /// # Errors
    /// When the host is no valid name.
    pub fn channel(&self, host: &str) -> Result<Channel> {
        let origin = format!("http://{host}:{}", self.address.port()).parse()?;
        let endpoint = Endpoint::from_shared(format!("http://{}", self.address))?;
        Ok(endpoint.origin(origin).timeout(DEADLINE).connect_timeout(DEADLINE).connect_lazy())
    }

    /// Calls `greeter.v1.GreeterService/Greet` at `host`.
    ///
    /// # Errors
    /// The gRPC status of a refused or failed call.
    pub async fn greet(&self, host: &str, token: Option<&str>, name: &str) -> Result<GreetResponse, Status> {
        let headers: Vec<_> =
            token.map(|token| ("authorization", format!("Bearer {token}"))).into_iter().collect();
        self.greet_with(host, &headers, name).await
    }

    /// [`Self::greet`] with headers of the caller's choice.
    ///
    /// # Errors
    /// The gRPC status of a refused or failed call.
    pub async fn greet_with(
        &self,
        host: &str,
        headers: &[(&'static str, String)],
        name: &str,
    ) -> Result<GreetResponse, Status> {
        let channel = self.channel(host).map_err(|error| Status::internal(error.to_string()))?;
        greet(channel, headers, name).await
    }

    /// A plain HTTP/1.1 call to `host`.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn http(
        &self,
        method: Method,
        host: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Answer> {
        self.caller(host)?.http(method, path, headers, body).await
    }
}

/// A client of one host of the edge.
#[derive(Clone, Debug)]
pub struct Caller {
    client: reqwest::Client,
    channel: Channel,
    /// Scheme, host and port.
    base: String,
}

impl Caller {
    /// Calls `greeter.v1.GreeterService/Greet`.
    ///
    /// # Errors
    /// The gRPC status of a refused or failed call.
    pub async fn greet(
        &self,
        headers: &[(&'static str, String)],
        name: &str,
    ) -> Result<GreetResponse, Status> {
        greet(self.channel.clone(), headers, name).await
    }

    /// A plain HTTP/1.1 call.
    ///
    /// # Errors
    /// When no answer comes.
    pub async fn http(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<&Value>,
    ) -> Result<Answer> {
        let mut request = self.client.request(method, format!("{}{path}", self.base));
        for (key, value) in headers {
            request = request.header(*key, *value);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Answer { status, headers, body: response.text().await? })
    }
}

async fn greet(
    channel: Channel,
    headers: &[(&'static str, String)],
    name: &str,
) -> Result<GreetResponse, Status> {
    let mut request = Request::new(GreetRequest { name: name.to_owned() });
    for (key, value) in headers {
        let value = value.parse().map_err(|_| Status::internal(format!("{key} is no header value")))?;
        request.metadata_mut().append(*key, value);
    }
    GreeterServiceClient::new(channel).greet(request).await.map(tonic::Response::into_inner)
}
