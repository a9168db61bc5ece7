//! The operator's traces at a collector, which is a gRPC server of this test.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use e2e::operated::{NAMESPACE, Operated};
use e2e::replica::{self, Replica};
use e2e::wait;
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    trace::v1::Span,
};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

const PATIENCE: Duration = Duration::from_secs(60);
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans;
        let spans =
            resources.into_iter().flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans);
        self.0.lock().unwrap().extend(spans);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn serve(&self) -> Result<String> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = format!("http://{}", listener.local_addr()?);
        let server = Server::builder().add_service(TraceServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        Ok(address)
    }

    /// The spans of the trace that the annotation names.
    fn of_trace(&self) -> Vec<Span> {
        let spans = self.0.lock().unwrap();
        spans.iter().filter(|span| hex::encode(&span.trace_id) == TRACE).cloned().collect()
    }
}

#[tokio::test]
async fn a_pass_and_its_calls_go_on_with_the_trace_of_whoever_changed_the_object() {
    let collector = Collector::default();
    let endpoint = collector.serve().await.unwrap();
    let operated = Operated::prepare().await.unwrap();
    replica::grant(&operated.plane).await.unwrap();
    let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "200")];
    let operator = Replica::start_with(&operated.plane, "traced", &variables).await.unwrap();
    operator.wait_until_leading().await.unwrap();
    let service = json!({"apiVersion": "peristyle.dev/v1alpha1", "kind": "Service", "spec": {"image": "x:1"},
        "metadata": {"name": "orders", "annotations": {
            "peristyle.dev/traceparent": format!("00-{TRACE}-00f067aa0ba902b7-01")}}});
    let apply = ["apply", "--server-side", "-n", NAMESPACE, "-f", "-"];
    operated.plane.kubectl_with_input(&apply, &service.to_string()).await.unwrap();

    let spans = wait::until("the collector has the pass and its calls", PATIENCE, async || {
        let spans = collector.of_trace();
        let has = |name: &str| spans.iter().any(|span| span.name == name);
        let names: Vec<_> = spans.iter().map(|span| &span.name).collect();
        ensure!(has("reconcile Service"), "{names:?}");
        ensure!(has("PATCH /apis/apps/v1/namespaces/shop/deployments/orders"), "{names:?}");
        Ok(spans)
    });
    let spans = spans.await.with_context(|| operator.said()).unwrap();
    let pass = spans.iter().find(|span| span.name == "reconcile Service").unwrap();
    assert_eq!(hex::encode(&pass.parent_span_id), "00f067aa0ba902b7", "the annotation's span is the parent");
    let passes: Vec<_> = spans.iter().filter(|span| span.name == "reconcile Service").collect();
    for call in spans.iter().filter(|span| span.name.starts_with("PATCH ")) {
        assert!(passes.iter().any(|pass| pass.span_id == call.parent_span_id), "{} has no pass", call.name);
    }
    let deployment = operated.api::<Deployment>().get("orders").await.unwrap();
    assert!(
        deployment.annotations()["peristyle.dev/traceparent"].contains(TRACE),
        "the child does not carry it"
    );
    let template = deployment.spec.unwrap().template.metadata.unwrap();
    assert!(!format!("{template:?}").contains(TRACE), "every trace would restart the pods");
}
