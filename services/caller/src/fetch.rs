//! Fetches a URL. The address that was checked is the address connected to:
//! names are resolved once, by a resolver that checks what it returns.

use std::{error::Error as _, io, net::SocketAddr, sync::Arc, time::Duration};

use reqwest::{
    Client,
    dns::{Addrs, Name, Resolve, Resolving},
    redirect,
};
use url::Url;

use crate::target::{AllowList, Refusal};

/// For all redirects and the body together.
const TIMEOUT: Duration = Duration::from_secs(2);
const MAX_BODY: u64 = 1024 * 1024;
const MAX_REDIRECTS: usize = 5;

/// What came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fetched {
    pub(crate) status: u16,
    pub(crate) body_length: u64,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the host did not answer within 2 s")]
    Timeout,
    #[error("the body is larger than 1 MiB")]
    TooLarge,
    #[error("the request failed")]
    Failed(#[source] reqwest::Error),
}

impl From<reqwest::Error> for FetchError {
    fn from(error: reqwest::Error) -> Self {
        let mut cause = error.source();
        while let Some(inner) = cause {
            if let Some(refusal) = inner.downcast_ref::<Refusal>() {
                return Self::Refused(*refusal);
            }
            // What a resolver returns arrives inside an I/O error.
            let carried = inner.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
            if let Some(refusal) = carried.and_then(|carried| carried.downcast_ref::<Refusal>()) {
                return Self::Refused(*refusal);
            }
            cause = inner.source();
        }
        if error.is_timeout() { Self::Timeout } else { Self::Failed(error) }
    }
}

struct CheckedResolver(Arc<AllowList>);

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let list = self.0.clone();
        Box::pin(async move {
            // The port is the URL's; reqwest puts it in for zero.
            let found = tokio::net::lookup_host((name.as_str(), 0)).await?;
            let addresses: Vec<SocketAddr> = found.collect();
            let ips: Vec<_> = addresses.iter().map(SocketAddr::ip).collect();
            list.check_addresses(name.as_str(), &ips)?;
            Ok(Box::new(addresses.into_iter()) as Addrs)
        })
    }
}

/// An HTTP client that goes nowhere else.
pub(crate) struct Fetcher {
    client: Client,
    list: Arc<AllowList>,
}

impl Fetcher {
    pub(crate) fn new(list: AllowList) -> Result<Self, reqwest::Error> {
        let list = Arc::new(list);
        let on_redirect = list.clone();
        let redirects = redirect::Policy::custom(move |attempt| {
            if attempt.previous().len() > MAX_REDIRECTS {
                return attempt.error(Refusal::Redirects);
            }
            match on_redirect.check(attempt.url()) {
                Ok(()) => attempt.follow(),
                Err(refusal) => attempt.error(refusal),
            }
        });
        let client = Client::builder()
            .timeout(TIMEOUT)
            .redirect(redirects)
            .dns_resolver(CheckedResolver(list.clone()))
            // A proxy from the environment would connect in our place.
            .no_proxy()
            .build()?;
        Ok(Self { client, list })
    }

    pub(crate) async fn fetch(&self, url: &Url) -> Result<Fetched, FetchError> {
        self.list.check(url)?;
        let mut response = self.client.get(url.clone()).send().await?;
        let mut body_length = 0;
        while let Some(chunk) = response.chunk().await? {
            body_length += chunk.len() as u64;
            if body_length > MAX_BODY {
                return Err(FetchError::TooLarge);
            }
        }
        Ok(Fetched { status: response.status().as_u16(), body_length })
    }
}

#[cfg(test)]
mod tests;
