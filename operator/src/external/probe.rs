//! Calls through the edge without credentials, as a stranger would make them.

use std::{net::SocketAddr, time::Duration};

use peristyle_crds::v1alpha1::edge_class::Scheme;
use reqwest::{Client, Method, Response, redirect::Policy};

use super::http::{Error, failed};
use crate::{
    auth::{matches::word, witness::Witness},
    commands::edge_errors::is_refusal,
    edge::proofs::Verdict,
};

/// One call may take so long: shorter than the edge's patience with the decision service.
const DEADLINE: Duration = Duration::from_secs(3);
/// Addresses that are asked at most; a name that has more is not an edge.
const ADDRESSES: usize = 32;

/// One host of the edge.
#[derive(Clone, Debug)]
pub struct Target<'a> {
    /// Host and port of the entry point.
    pub address: &'a str,
    /// Scheme of the entry point.
    pub scheme: Scheme,
    /// The host that is asked for.
    pub host: &'a str,
}

/// Sends each of `witnesses` to every address of the edge. The first answer
/// that is no proof counts.
pub async fn ask(target: &Target<'_>, witnesses: &[Witness]) -> Verdict {
    let addresses = match addresses(target.address).await {
        Ok(addresses) => addresses,
        Err(problem) => return Verdict::Unproven(problem),
    };
    for address in addresses {
        let client = match client(target.host, address) {
            Ok(client) => client,
            Err(error) => return Verdict::Unproven(format!("{}: {error}", target.address)),
        };
        for witness in witnesses {
            let verdict = match send(&client, target, address, witness).await {
                Ok(answer) => judge(witness, &answer),
                Err(error) => Verdict::Unproven(error.to_string()),
            };
            if verdict != Verdict::Refused {
                return verdict;
            }
        }
    }
    Verdict::Refused
}

/// Every address behind a name.
///
/// # Errors
/// In words, when there is none.
pub async fn addresses(name: &str) -> Result<Vec<SocketAddr>, String> {
    let found = tokio::time::timeout(DEADLINE, tokio::net::lookup_host(name)).await;
    let mut found: Vec<SocketAddr> = match found {
        Ok(Ok(found)) => found.take(ADDRESSES).collect(),
        Ok(Err(error)) => return Err(format!("{name}: {error}")),
        Err(_) => return Err(format!("{name}: no answer from the name server")),
    };
    found.sort();
    found.dedup();
    if found.is_empty() { Err(format!("{name}: has no address")) } else { Ok(found) }
}

/// A client that finds `host` at `address` and trusts any certificate: the
/// answer to a stranger is asked for, and nothing secret is sent.
fn client(host: &str, address: SocketAddr) -> reqwest::Result<Client> {
    Client::builder()
        .no_proxy()
        .redirect(Policy::none())
        .resolve(host, address)
        .http1_only()
        .tls_danger_accept_invalid_certs(true)
        .timeout(DEADLINE)
        .build()
}

async fn send(
    client: &Client,
    target: &Target<'_>,
    address: SocketAddr,
    witness: &Witness,
) -> Result<Answer, Error> {
    let scheme = match target.scheme {
        Scheme::Http => "http",
        Scheme::Https => "https",
    };
    let url = format!("{scheme}://{}:{}{}", target.host, address.port(), witness.path);
    let method = Method::from_bytes(word(witness.method).as_bytes()).unwrap_or(Method::GET);
    let mut request = client.request(method.clone(), &url);
    if witness.is_grpc {
        request = request.header("content-type", "application/grpc").header("te", "trailers");
    }
    let answer = request.send().await.map_err(|error| failed(&method, &url, error))?;
    Ok(Answer::of(&answer))
}

/// What counts of an answer.
struct Answer {
    status: u16,
    grpc_status: Option<String>,
    grpc_message: Option<String>,
}

impl Answer {
    fn of(answer: &Response) -> Self {
        let header = |name: &str| {
            answer.headers().get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        Self {
            status: answer.status().as_u16(),
            grpc_status: header("grpc-status"),
            grpc_message: header("grpc-message"),
        }
    }
}

/// Only the very refusal that the decision must lead to is proof. In gRPC its
/// words count too: a workload that was reached may ask for a token of its own.
fn judge(witness: &Witness, answer: &Answer) -> Verdict {
    let path = &witness.path;
    let status = answer.grpc_status.as_deref().unwrap_or_default();
    let message = answer.grpc_message.as_deref().unwrap_or_default();
    let token = status == "16" && message == "authentication required";
    let nobody = status == "7" && message == "permission denied";
    match (witness.is_grpc, witness.status) {
        (true, 401) if token => Verdict::Refused,
        (true, 403) if nobody => Verdict::Refused,
        (true, _) if matches!(status, "" | "14") || is_refusal(status, message) => {
            Verdict::Unproven(format!("{path} without a token: {} {status} {message}", answer.status))
        }
        (true, _) => Verdict::LetIn(format!("{path} without a token: grpc-status {status} {message}")),
        (false, wanted) if answer.status == wanted => Verdict::Refused,
        (false, _) if (200..300).contains(&answer.status) => {
            Verdict::LetIn(format!("{path} without a token: {}", answer.status))
        }
        (false, _) => Verdict::Unproven(format!("{path} without a token: {}", answer.status)),
    }
}

#[cfg(test)]
mod tests {
    use peristyle_crds::v1alpha1::auth_policy::HttpMethod;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::token_asked_for(true, 401, 200, "16 authentication required", "refused")]
    #[case::nobody_may(true, 403, 200, "7 permission denied", "refused")]
    #[case::another_refusal(true, 401, 200, "7 permission denied", "unproven")]
    #[case::words_of_a_workload(true, 401, 200, "16 who are you", "let in")]
    #[case::answered(true, 401, 200, "0 ", "let in")]
    #[case::unknown_method_of_a_workload(true, 403, 200, "12 ", "let in")]
    #[case::fence(true, 401, 200, "14 route unavailable", "unproven")]
    #[case::edge_is_too_slow(true, 401, 200, "4 request timed out", "unproven")]
    #[case::edge_limits(true, 401, 200, "8 too many requests", "unproven")]
    #[case::workload_is_too_slow(true, 401, 200, "4 too slow", "let in")]
    #[case::error_backend_down(true, 401, 200, "", "unproven")]
    #[case::no_router(true, 401, 404, "", "unproven")]
    #[case::http_token(false, 401, 401, "", "refused")]
    #[case::http_nobody(false, 403, 403, "", "refused")]
    #[case::http_other_refusal(false, 403, 401, "", "unproven")]
    #[case::http_answered(false, 401, 204, "", "let in")]
    #[case::http_no_router(false, 401, 404, "", "unproven")]
    #[case::http_fence(false, 401, 503, "", "unproven")]
    #[case::http_redirect(false, 401, 302, "", "unproven")]
    fn only_the_very_refusal_is_proof(
        #[case] is_grpc: bool,
        #[case] wanted: u16,
        #[case] status: u16,
        #[case] grpc: &str,
        #[case] expected: &str,
    ) {
        let witness = Witness { method: HttpMethod::Post, path: "/x".to_owned(), is_grpc, status: wanted };
        let grpc = grpc.split_once(' ').map(|(status, message)| (status.to_owned(), message.to_owned()));
        let (grpc_status, grpc_message) = grpc.unzip();
        let found = match judge(&witness, &Answer { status, grpc_status, grpc_message }) {
            Verdict::Refused => "refused",
            Verdict::LetIn(_) => "let in",
            Verdict::Unproven(_) => "unproven",
        };
        assert_eq!(found, expected);
    }
}
