//! ORY Keto 0.13: namespaces, syntax check and relation tuples.

use std::collections::BTreeSet;

use peristyle_crds::v1alpha1::auth_policy::{SubjectSet, Tuple};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode};
use serde::{Deserialize, Serialize};
use url::Url;

use super::http::{Error, failed, unexpected};
use crate::fence::Fence;

/// Tuples per page.
const PAGE: &str = "1000";

/// Client of Keto's read, write and syntax APIs.
#[derive(Clone, Debug)]
pub struct Keto {
    client: Client,
    /// Tuples are written only while it is open; none in tools and tests.
    fence: Option<Fence>,
}

/// An error in a model.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq)]
pub struct SyntaxError {
    /// What is wrong.
    pub message: String,
    /// Where.
    #[serde(default)]
    pub start: Position,
}

/// A place in a model.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq)]
pub struct Position {
    /// Line, from 1. Keto writes this one key with a capital.
    #[serde(default, rename = "Line", alias = "line")]
    pub line: usize,
}

#[derive(Deserialize)]
struct Syntax {
    #[serde(default)]
    errors: Vec<SyntaxError>,
}

#[derive(Deserialize)]
struct Namespaces {
    #[serde(default)]
    namespaces: Vec<Namespace>,
}

#[derive(Deserialize)]
struct Namespace {
    name: String,
}

#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    relation_tuples: Vec<Wire>,
    #[serde(default)]
    next_page_token: String,
}

/// A tuple as Keto writes it.
#[derive(Deserialize, Serialize)]
struct Wire {
    namespace: String,
    object: String,
    relation: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subject_set: Option<SubjectSet>,
}

#[derive(Serialize)]
struct Delta {
    action: &'static str,
    relation_tuple: Wire,
}

impl From<&Tuple> for Wire {
    fn from(tuple: &Tuple) -> Self {
        let Tuple { namespace, object, relation, subject, subject_set } = tuple.clone();
        Self { namespace, object, relation, subject_id: subject, subject_set }
    }
}

impl From<Wire> for Tuple {
    fn from(wire: Wire) -> Self {
        Self {
            namespace: wire.namespace,
            object: wire.object,
            relation: wire.relation,
            subject: wire.subject_id,
            subject_set: wire.subject_set,
        }
    }
}

impl Keto {
    /// A client that uses `client`.
    #[must_use]
    pub const fn new(client: Client) -> Self {
        Self { client, fence: None }
    }

    /// The same, writing only while `fence` is open.
    #[must_use]
    pub fn behind(self, fence: Fence) -> Self {
        Self { fence: Some(fence), ..self }
    }

    /// What is wrong with `model`; empty when nothing is.
    ///
    /// # Errors
    /// When the syntax API at `base` does not answer as it should.
    pub async fn check_syntax(&self, base: &str, model: &str) -> Result<Vec<SyntaxError>, Error> {
        let url = address(base, "/opl/syntax/check", &[])?;
        let request =
            self.client.post(url.clone()).header("content-type", "text/plain").body(model.to_owned());
        let answer = send(Method::POST, &url, request, StatusCode::OK).await?;
        let syntax: Syntax = answer.json().await.map_err(|e| failed(&Method::POST, url.as_str(), e))?;
        Ok(syntax.errors)
    }

    /// The namespaces that Keto has loaded.
    ///
    /// # Errors
    /// When the read API at `base` does not answer as it should.
    pub async fn namespaces(&self, base: &str) -> Result<BTreeSet<String>, Error> {
        let url = address(base, "/namespaces", &[])?;
        let answer = send(Method::GET, &url, self.client.get(url.clone()), StatusCode::OK).await?;
        let loaded: Namespaces = answer.json().await.map_err(|e| failed(&Method::GET, url.as_str(), e))?;
        Ok(loaded.namespaces.into_iter().map(|namespace| namespace.name).collect())
    }

    /// Those of `known` that Keto stores in `namespace`, each once; Keto stores
    /// copies. Applications may keep any number of others there: of them no
    /// more than a page is ever held.
    ///
    /// # Errors
    /// When the read API at `base` does not answer as it should.
    pub async fn stored(
        &self,
        base: &str,
        namespace: &str,
        known: &BTreeSet<Tuple>,
    ) -> Result<BTreeSet<Tuple>, Error> {
        let mut stored = BTreeSet::new();
        let mut token = String::new();
        loop {
            let mut query = vec![("namespace", namespace), ("page_size", PAGE)];
            if !token.is_empty() {
                query.push(("page_token", &token));
            }
            let url = address(base, "/relation-tuples", &query)?;
            let answer = send(Method::GET, &url, self.client.get(url.clone()), StatusCode::OK).await?;
            let page: Page = answer.json().await.map_err(|e| failed(&Method::GET, url.as_str(), e))?;
            let tuples = page.relation_tuples.into_iter().map(Tuple::from);
            stored.extend(tuples.filter(|tuple| known.contains(tuple)));
            token = page.next_page_token;
            if token.is_empty() {
                return Ok(stored);
            }
        }
    }

    /// Inserts and deletes in one transaction. A tuple must not be in both:
    /// Keto runs the inserts first.
    ///
    /// # Errors
    /// When the write API at `base` does not answer as it should; then nothing
    /// was written.
    pub async fn patch(
        &self,
        base: &str,
        insert: &BTreeSet<Tuple>,
        delete: &BTreeSet<Tuple>,
    ) -> Result<(), Error> {
        let url = address(base, "/admin/relation-tuples", &[])?;
        let delta = |action| move |tuple| Delta { action, relation_tuple: Wire::from(tuple) };
        let deltas: Vec<Delta> =
            insert.iter().map(delta("insert")).chain(delete.iter().map(delta("delete"))).collect();
        let request = self.client.patch(url.clone()).json(&deltas);
        let _passage = self.fence.as_ref().map(Fence::pass).transpose()?;
        send(Method::PATCH, &url, request, StatusCode::NO_CONTENT).await?;
        Ok(())
    }
}

fn address(base: &str, path: &str, query: &[(&str, &str)]) -> Result<Url, Error> {
    let text = format!("{}{path}", base.trim_end_matches('/'));
    let mut url = Url::parse(&text).map_err(|source| Error::Url { url: text, source })?;
    if !query.is_empty() {
        url.query_pairs_mut().extend_pairs(query);
    }
    Ok(url)
}

#[tracing::instrument(name = "call", skip_all, fields(otel.kind = "client", otel.name = format!("{method} {}", url.path()), peer.service = "keto"))]
async fn send(
    method: Method,
    url: &Url,
    request: RequestBuilder,
    expected: StatusCode,
) -> Result<Response, Error> {
    let answer = request.send().await.map_err(|e| failed(&method, url.as_str(), e))?;
    if answer.status() == expected {
        Ok(answer)
    } else {
        Err(unexpected(&method, url.as_str(), answer).await)
    }
}
