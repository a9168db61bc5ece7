//! Whether each watch of the process is answered, and why not.

use std::sync::Arc;

use kube::{Client, client::Body, core::Status, runtime::watcher};
use tokio::sync::watch;

/// How one watch stands. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Health {
    path: Arc<str>,
    problem: Arc<watch::Sender<Option<Problem>>>,
}

/// Why a watch shows nothing new.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Problem {
    /// What the API server said, or why it said nothing.
    pub text: String,
    /// The API server does not serve the kind: nothing can be out of date.
    pub is_missing: bool,
}

impl Health {
    /// A watch of `path` that was not asked for yet.
    #[must_use]
    pub fn new(path: &str) -> Self {
        Self { path: path.into(), problem: Arc::new(watch::Sender::new(None)) }
    }

    /// Path of the collection at the API server.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Why the last request failed, unless one was answered since.
    #[must_use]
    pub fn problem(&self) -> Option<Problem> {
        self.problem.borrow().clone()
    }

    /// Whether the cache shows what is, as far as the API server has it.
    #[must_use]
    pub fn is_current(&self) -> bool {
        self.problem.borrow().as_ref().is_none_or(|problem| problem.is_missing)
    }

    /// The watch failed and is tried again.
    pub fn failed(&self, error: &watcher::Error) {
        let refusal = refusal(error);
        let problem = Problem {
            text: refusal.map_or_else(|| error.to_string(), |status| status.message.clone()),
            is_missing: refusal.is_some_and(|status| status.code == 404),
        };
        self.problem.send_replace(Some(problem));
    }

    /// `inner` for this watch alone. A watch that is taken up again says
    /// nothing until something changes, so the answer itself is looked at.
    #[must_use]
    pub fn listening(&self, inner: &Client) -> Client {
        let namespace = inner.default_namespace().to_owned();
        let (inner, problem) = (inner.clone(), self.problem.clone());
        let call = move |request: http::Request<Body>| {
            let (inner, problem) = (inner.clone(), problem.clone());
            async move {
                let answer = inner.send(request).await?;
                if answer.status().is_success() {
                    problem.send_if_modified(|problem| problem.take().is_some());
                }
                Ok::<_, kube::Error>(answer)
            }
        };
        Client::new(tower::service_fn(call), namespace)
    }
}

/// Whether the API server no longer has what the watch had seen, so that a list comes next.
#[must_use]
pub fn is_gone(error: &watcher::Error) -> bool {
    refusal(error).is_some_and(|status| status.code == 410)
}

/// What the API server answered, if it did.
fn refusal(error: &watcher::Error) -> Option<&Status> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(&**status),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU16, Ordering};

    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::{Api, api::ListParams};

    use super::*;

    fn refused(code: u16) -> watcher::Error {
        let status = Status { code, message: format!("refused with {code}"), ..Status::default() };
        watcher::Error::InitialListFailed(kube::Error::Api(status.boxed()))
    }

    #[test]
    fn only_what_the_api_server_no_longer_has_is_gone() {
        assert!(is_gone(&refused(410)));
        assert!([403, 404, 429, 500, 503].into_iter().all(|code| !is_gone(&refused(code))));
        assert!(!is_gone(&watcher::Error::NoResourceVersion), "nobody answered");
    }

    #[tokio::test]
    async fn a_watch_is_current_again_only_when_the_api_server_has_answered() {
        let code = Arc::new(AtomicU16::new(403));
        let answer = code.clone();
        let service = tower::service_fn(move |_: http::Request<Body>| {
            let code = answer.load(Ordering::SeqCst);
            let body = Body::from(br#"{"metadata": {}, "items": []}"#.to_vec());
            std::future::ready(http::Response::builder().status(code).body(body))
        });
        let health = Health::new("/api/v1/configmaps");
        let client = health.listening(&Client::new(service, "default"));
        let list = async || Api::<ConfigMap>::all(client.clone()).list(&ListParams::default()).await;
        assert!(health.is_current(), "nothing failed yet");

        health.failed(&refused(403));
        list().await.unwrap_err();
        assert!(!health.is_current());
        assert_eq!(health.problem().unwrap().text, "refused with 403");
        code.store(200, Ordering::SeqCst);
        list().await.unwrap();
        assert_eq!((health.is_current(), health.problem()), (true, None));
    }

    #[test]
    fn a_kind_that_is_not_installed_is_a_problem_and_keeps_nobody_from_leading() {
        let health = Health::new("/apis/traefik.io/v1alpha1/middlewares");
        health.failed(&refused(404));
        assert!(health.is_current() && health.problem().is_some());
    }
}
