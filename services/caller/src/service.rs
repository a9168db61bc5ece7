//! `CallerService`, with its history.

use platform::{database, observe::Subject, trace_context};
use sqlx::PgPool;
use tonic::{Request, Response, Status};
use tracing::Span;
use url::Url;
use uuid::Uuid;

use crate::{
    fetch::{FetchError, Fetched, Fetcher},
    target::Refusal,
    v1::{CallExternalRequest, CallExternalResponse, caller_service_server::CallerService},
};

pub(crate) struct Caller {
    pool: PgPool,
    fetcher: Fetcher,
}

impl Caller {
    pub(crate) fn new(pool: PgPool, fetcher: Fetcher) -> Self {
        Self { pool, fetcher }
    }

    async fn begin(&self, url: &Url, subject: Option<&str>) -> Result<Uuid, sqlx::Error> {
        let id = Uuid::now_v7();
        sqlx::query("insert into call_logs (id, url, subject, trace_id) values ($1, $2, $3, $4)")
            .bind(id)
            .bind(loggable(url))
            .bind(subject)
            .bind(trace_context::trace_id(&Span::current()))
            .execute(&self.pool)
            .await?;
        Ok(id)
    }

    async fn end(&self, id: Uuid, result: &Result<Fetched, FetchError>) -> Result<(), sqlx::Error> {
        let (outcome, answer) = match result {
            Ok(fetched) => ("answered", Some(fetched)),
            Err(FetchError::Refused(_)) => ("refused", None),
            Err(_) => ("failed", None),
        };
        sqlx::query(
            "update call_logs set outcome = $2, status_code = $3, body_length = $4, ended_at = now() where id = $1",
        )
        .bind(id)
        .bind(outcome)
        .bind(answer.map(|fetched| i32::from(fetched.status)))
        .bind(answer.map(|fetched| fetched.body_length.cast_signed()))
        .execute(&self.pool)
        .await?;
        Ok(())
    }
}

#[tonic::async_trait]
impl CallerService for Caller {
    async fn call_external(
        &self,
        request: Request<CallExternalRequest>,
    ) -> Result<Response<CallExternalResponse>, Status> {
        let url = Url::parse(&request.get_ref().url).map_err(|_| status(&Refusal::Malformed.into()))?;
        let subject =
            request.extensions().get::<Subject>().map(Subject::get).filter(|subject| !subject.is_empty());
        let id = self.begin(&url, subject).await.map_err(|error| database::status(&error))?;
        let result = self.fetcher.fetch(&url).await;
        self.end(id, &result).await.map_err(|error| database::status(&error))?;
        let fetched = result.map_err(|error| status(&error))?;
        Ok(Response::new(CallExternalResponse {
            status_code: i32::from(fetched.status),
            body_length: fetched.body_length.cast_signed(),
        }))
    }
}

fn status(error: &FetchError) -> Status {
    tracing::warn!(error = ?error, "the external call did not succeed");
    let text = error.to_string();
    match error {
        FetchError::Refused(Refusal::Malformed) => Status::invalid_argument(text),
        FetchError::Refused(_) => Status::permission_denied(text),
        FetchError::Timeout => Status::deadline_exceeded(text),
        FetchError::TooLarge => Status::resource_exhausted(text),
        FetchError::Failed(_) => Status::unavailable(text),
    }
}

/// The URL without what may be secret: credentials, query and fragment.
fn loggable(url: &Url) -> String {
    let mut url = url.clone();
    url.set_query(None);
    url.set_fragment(None);
    // Both fail for URLs that cannot have credentials.
    let _ = url.set_username("");
    let _ = url.set_password(None);
    url.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_history_keeps_no_secret_of_a_url() {
        let url = Url::parse("https://ada:pw@example.com/a/b?token=x#y").unwrap();
        assert_eq!(loggable(&url), "https://example.com/a/b");
    }
}
