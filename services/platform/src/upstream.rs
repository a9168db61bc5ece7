//! Calls to other services: traced, bounded, on the caller's behalf.

use std::time::Duration;

use http::header::AUTHORIZATION;
use tonic::{Request, Status, body::Body, service::Routes, transport::Endpoint};
use tower::{ServiceBuilder, ServiceExt, util::BoxCloneSyncService};

use crate::{
    config::ConfigError,
    deadline::Deadline,
    jwt::{self, VerifiedToken},
    trace_context,
};

/// A channel for a generated client.
pub type Upstream = BoxCloneSyncService<http::Request<Body>, http::Response<Body>, Status>;

const CONNECT: Duration = Duration::from_secs(1);
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// A channel to the service at the URL in the variable `name`. It connects on
/// the first call and again after a failure.
///
/// # Errors
/// When the value is no URL.
pub fn remote(name: &str, url: &str) -> Result<Upstream, ConfigError> {
    let invalid = || ConfigError::Invalid {
        name: name.into(),
        value: url.into(),
        expected: "a URL such as http://caller:50051",
    };
    let endpoint = Endpoint::from_shared(url.to_owned()).map_err(|_| invalid())?;
    if endpoint.uri().scheme().is_none() || endpoint.uri().host().is_none() {
        return Err(invalid());
    }
    let channel = endpoint.connect_timeout(CONNECT).http2_keep_alive_interval(KEEP_ALIVE).connect_lazy();
    let channel = channel.map_err(|error| Status::from_error(error.into()));
    let traced = ServiceBuilder::new()
        .map_request(|mut request: http::Request<Body>| {
            trace_context::inject(request.headers_mut());
            request
        })
        .service(channel);
    Ok(BoxCloneSyncService::new(traced))
}

/// A channel to a module in the same process, without network or token.
#[must_use]
pub fn in_process(routes: Routes) -> Upstream {
    let routes = ServiceExt::<http::Request<Body>>::map_err(routes, |never| match never {});
    BoxCloneSyncService::new(routes)
}

/// A request to an upstream while `incoming` is served: it must be answered
/// within `limit` and the rest of the incoming deadline, and carries the
/// caller's token when this process verified it.
#[must_use]
pub fn onward<I, O>(incoming: &Request<I>, message: O, limit: Duration) -> Request<O> {
    let mut request = Request::new(message);
    let deadline = incoming.extensions().get::<Deadline>();
    request.set_timeout(deadline.map_or(limit, |deadline| deadline.remaining(limit)));
    let token = incoming.extensions().get::<VerifiedToken>();
    if let Some(value) = token.and_then(jwt::authorization) {
        request.metadata_mut().insert(AUTHORIZATION.as_str(), value);
    }
    request
}
