//! The error backend as the edge talks to it: HTTP/2 without TLS, and HTTP/1.1.
#![allow(clippy::unwrap_used, reason = "a test may fail by panicking, in its helpers too")]

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response,
    body::{Body, Incoming},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use peristyle::commands::edge_errors::router;
use rstest::rstest;
use tokio::net::{TcpListener, TcpStream};

async fn serve() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(axum::serve(listener, router()).into_future());
    address
}

fn request(path: &str, headers: &[(&str, &str)]) -> Request<Empty<Bytes>> {
    let mut request = Request::get(format!("http://orders.test{path}"));
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(Empty::new()).unwrap()
}

async fn over_h2c(request: Request<Empty<Bytes>>) -> Response<Incoming> {
    let stream = TcpStream::connect(serve().await).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender.send_request(request).await.unwrap()
}

async fn over_http1(mut request: Request<Empty<Bytes>>) -> Response<Incoming> {
    *request.uri_mut() = request.uri().path().parse().unwrap();
    let stream = TcpStream::connect(serve().await).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender.send_request(request).await.unwrap()
}

fn header<'a>(response: &'a Response<Incoming>, name: &str) -> &'a str {
    response.headers().get(name).unwrap().to_str().unwrap()
}

const GRPC: (&str, &str) = ("content-type", "application/grpc");

#[rstest]
#[case(400, "13")]
#[case(401, "16")]
#[case(403, "7")]
#[case(404, "14")]
#[case(405, "2")]
#[case(408, "4")]
#[case(413, "8")]
#[case(429, "8")]
#[case(500, "14")]
#[case(502, "14")]
#[case(503, "14")]
#[case(504, "14")]
#[case(599, "14")]
#[tokio::test]
async fn a_refused_call_is_answered_by_headers_alone(#[case] status: u16, #[case] code: &str) {
    let response = over_h2c(request(&format!("/grpc/{status}"), &[GRPC])).await;
    assert_eq!(response.status(), 200);
    assert_eq!(header(&response, "content-type"), "application/grpc");
    assert_eq!(header(&response, "grpc-status"), code);
    assert!(!header(&response, "grpc-message").is_empty());
    assert!(response.body().is_end_stream());
}

#[tokio::test]
async fn a_failed_decision_and_a_failed_workload_are_told_apart() {
    let decision = over_h2c(request("/grpc/500", &[GRPC])).await;
    assert_eq!(header(&decision, "grpc-message"), "authorization unavailable");
    let workload = over_h2c(request("/grpc/503", &[GRPC])).await;
    assert_eq!(header(&workload, "grpc-message"), "service unavailable");
}

#[rstest]
#[case("/orders.v1.Orders/Get", "application/grpc")]
#[case("/", "application/grpc+proto")]
#[case("/healthz", "application/grpc; charset=utf-8")]
#[case("/grpc/200", "application/grpc")]
#[case("/grpc/x", "application/grpc")]
#[tokio::test]
async fn a_fence_tells_grpc_clients_that_the_route_is_unavailable(
    #[case] path: &str,
    #[case] content_type: &str,
) {
    let headers = [("content-type", content_type), ("x-forwarded-host", "orders.test")];
    let response = over_h2c(request(path, &headers)).await;
    assert_eq!(response.status(), 200);
    assert_eq!(header(&response, "grpc-status"), "14");
    assert_eq!(header(&response, "grpc-message"), "route unavailable");
}

#[rstest]
#[case("/", None)]
#[case("/healthz", None)]
#[case("/grpc/401", None)]
#[case("/grpc/401", Some("application/json"))]
#[case("/x", Some("application/grpc-web"))]
#[tokio::test]
async fn no_path_answers_another_client_with_success(#[case] path: &str, #[case] content_type: Option<&str>) {
    let mut headers = vec![("x-forwarded-host", "orders.test")];
    headers.extend(content_type.map(|value| ("content-type", value)));
    for response in [over_h2c(request(path, &headers)).await, over_http1(request(path, &headers)).await] {
        assert_eq!(response.status(), 503, "{path}");
        assert!(!response.headers().contains_key("grpc-status"));
    }
}

#[tokio::test]
async fn a_probe_of_the_kubelet_succeeds() {
    let response = over_http1(request("/healthz", &[])).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ok");
}
