//! Both versions of `GreeterService`.

use std::{pin::Pin, sync::Arc, time::Duration};

use caller::v1::{CallExternalRequest, CallExternalResponse, caller_service_client::CallerServiceClient};
use futures::{Stream, StreamExt, stream};
use platform::{
    database,
    observe::Subject,
    trace_context,
    upstream::{self, Upstream},
};
use serde_json::json;
use sqlx::PgPool;
use tonic::{Request, Response, Status};
use tracing::Span;
use uuid::Uuid;

use crate::{
    greeting::{self, Locale},
    v1, v2,
};

/// How long caller may take; the greeting does not wait longer.
const EXTERNAL: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(200);

/// The call to the outside that a greeting makes.
pub(crate) struct External {
    pub(crate) url: String,
    pub(crate) caller: Upstream,
}

pub(crate) struct Greeter {
    pool: PgPool,
    external: Option<External>,
}

struct Greeting {
    message: String,
    external: CallExternalResponse,
    locale: Locale,
    trace_id: String,
}

impl Greeter {
    pub(crate) fn new(pool: PgPool, external: Option<External>) -> Self {
        Self { pool, external }
    }

    async fn greet<T>(
        &self,
        request: &Request<T>,
        name: &str,
        locale: Locale,
        version: &str,
    ) -> Result<Greeting, Status> {
        let name = greeting::name(name)?;
        let message = locale.parts(name).concat();
        let external = self.call_external(request).await;
        let trace_id = trace_context::trace_id(&Span::current());
        let subject =
            request.extensions().get::<Subject>().map(Subject::get).filter(|subject| !subject.is_empty());
        sqlx::query(
            "insert into greetings (id, name, message, subject, external_status, external_body_length, context)
             values ($1, $2, $3, $4, $5, $6, $7)",
        )
        .bind(Uuid::now_v7())
        .bind(name)
        .bind(&message)
        .bind(subject)
        .bind(external.status_code)
        .bind(external.body_length)
        .bind(json!({"locale": locale.tag(), "trace_id": trace_id, "version": version}))
        .execute(&self.pool)
        .await
        .map_err(|error| database::status(&error))?;
        Ok(Greeting { message, external, locale, trace_id })
    }

    /// The external part, or zeros: a greeting is worth having without it.
    async fn call_external<T>(&self, request: &Request<T>) -> CallExternalResponse {
        let Some(external) = &self.external else { return CallExternalResponse::default() };
        let onward = upstream::onward(request, CallExternalRequest { url: external.url.clone() }, EXTERNAL);
        let mut client = CallerServiceClient::new(external.caller.clone());
        let answer = tokio::time::timeout(EXTERNAL, client.call_external(onward)).await;
        match answer {
            Ok(Ok(response)) => response.into_inner(),
            Ok(Err(status)) => {
                tracing::warn!(code = ?status.code(), message = status.message(), "caller did not answer");
                CallExternalResponse::default()
            }
            Err(_) => {
                tracing::warn!("caller took too long");
                CallExternalResponse::default()
            }
        }
    }
}

#[tonic::async_trait]
impl v1::greeter_service_server::GreeterService for Greeter {
    async fn greet(&self, request: Request<v1::GreetRequest>) -> Result<Response<v1::GreetResponse>, Status> {
        let greeting = self.greet(&request, &request.get_ref().name, Locale::En, "v1").await?;
        Ok(Response::new(v1::GreetResponse {
            message: greeting.message,
            external_status: greeting.external.status_code,
            external_body_length: greeting.external.body_length,
        }))
    }
}

type Parts = Pin<Box<dyn Stream<Item = Result<v2::GreetStreamResponse, Status>> + Send>>;

#[tonic::async_trait]
impl v2::greeter_service_server::GreeterService for Greeter {
    async fn greet(&self, request: Request<v2::GreetRequest>) -> Result<Response<v2::GreetResponse>, Status> {
        let asked = request.get_ref();
        let greeting = self.greet(&request, &asked.name, Locale::from_tag(&asked.locale), "v2").await?;
        Ok(Response::new(v2::GreetResponse {
            message: greeting.message,
            external_status: greeting.external.status_code,
            external_body_length: greeting.external.body_length,
            locale: greeting.locale.tag().to_owned(),
            trace_id: greeting.trace_id,
        }))
    }

    type GreetStreamStream = Parts;

    async fn greet_stream(
        &self,
        request: Request<v2::GreetStreamRequest>,
    ) -> Result<Response<Parts>, Status> {
        let asked = request.get_ref();
        let locale = Locale::from_tag(&asked.locale);
        let greeting = self.greet(&request, &asked.name, locale, "v2").await?;
        let parts = locale.parts(greeting::name(&asked.name)?);
        let trace_id: Arc<str> = greeting.trace_id.into();
        let parts = stream::iter((1..).zip(parts)).then(move |(part, text)| {
            let trace_id = trace_id.clone();
            async move {
                if part > 1 {
                    tokio::time::sleep(PAUSE).await;
                }
                Ok(v2::GreetStreamResponse { part, text, trace_id: trace_id.to_string() })
            }
        });
        Ok(Response::new(Box::pin(parts)))
    }
}
