//! Calls to other services: traced, bounded, on the caller's behalf.

use std::time::Duration;

use http::header::AUTHORIZATION;
use tonic::{Request, Status, body::Body, service::Routes, transport::Endpoint};
use tower::{ServiceBuilder, ServiceExt, util::BoxCloneSyncService};

use crate::{
    config::ConfigError,
    deadline::Deadline,
    jwt::{self, VerifiedToken},
    observe::Subject,
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
    // Extensions reach a module in this process and go no further.
    if let Some(subject) = incoming.extensions().get::<Subject>() {
        request.extensions_mut().insert(subject.clone());
    }
    let token = incoming.extensions().get::<VerifiedToken>();
    if let Some(value) = token.and_then(jwt::authorization) {
        request.metadata_mut().insert(AUTHORIZATION.as_str(), value);
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_without_deadline_gets_the_limit_and_no_token() {
        let request = onward(&Request::new(()), (), Duration::from_secs(2));
        assert_eq!(request.metadata().get("grpc-timeout").unwrap(), "2000000u");
        assert!(request.metadata().get("authorization").is_none());
    }

    #[test]
    fn a_call_gets_what_is_left_of_the_deadline_and_the_callers_token() {
        let mut incoming = Request::new(());
        incoming.extensions_mut().insert(Deadline::after(Duration::from_millis(50)));
        let token = VerifiedToken { subject: "ada".into(), token: "secret".into() };
        incoming.extensions_mut().insert(token);
        let request = onward(&incoming, (), Duration::from_secs(2));
        let timeout =
            crate::deadline::grpc_timeout(&request.metadata().clone().into_headers()).unwrap().unwrap();
        assert!(timeout <= Duration::from_millis(50), "{timeout:?}");
        assert_eq!(request.metadata().get("authorization").unwrap(), "Bearer secret");
        assert!(!format!("{request:?}").contains("secret"));
    }

    #[tokio::test]
    async fn a_wrong_url_is_named() {
        for url in ["caller:50051", "/path", "http://"] {
            let error = remote("CALLER_URL", url).err().unwrap().to_string();
            assert!(error.starts_with("CALLER_URL="), "{error}");
        }
        assert!(remote("CALLER_URL", "http://caller:50051").is_ok());
    }
}
