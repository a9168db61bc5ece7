//! Prometheus metrics: requests, database pools and the runtime.

use std::{collections::HashMap, fmt, sync::Arc, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric, text::encode},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::ConstGauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use sqlx::PgPool;

use crate::{access_log::Outcome, module::Method};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RpcLabels {
    service: String,
    method: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HandledLabels {
    service: String,
    method: String,
    code: String,
}

type Latency = Family<RpcLabels, Histogram, fn() -> Histogram>;

/// Counters and latencies of one kind of server.
#[derive(Clone)]
struct Requests {
    started: Family<RpcLabels, Counter>,
    handled: Family<HandledLabels, Counter>,
    latency: Latency,
}

impl Requests {
    fn register(registry: &mut Registry, prefix: &str) -> Self {
        let buckets: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 2.5, 11));
        let requests = Self {
            started: Family::default(),
            handled: Family::default(),
            latency: Family::new_with_constructor(buckets),
        };
        let started = "Requests that arrived";
        registry.register(format!("{prefix}_started"), started, requests.started.clone());
        let handled = "Requests that ended, by outcome";
        registry.register(format!("{prefix}_handled"), handled, requests.handled.clone());
        let latency = "Seconds until the answer was complete";
        registry.register(format!("{prefix}_handling_seconds"), latency, requests.latency.clone());
        requests
    }
}

/// The metrics of a process.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    grpc: Requests,
    http: Requests,
    methods: Arc<HashMap<String, Method>>,
}

impl Metrics {
    /// Metrics for these methods and pools. Requests to anything else are
    /// counted under the method `unknown`.
    #[must_use]
    pub fn new(methods: HashMap<String, Method>, pools: Vec<(&'static str, PgPool)>) -> Self {
        let mut registry = Registry::default();
        let grpc = Requests::register(&mut registry, "grpc_server");
        let http = Requests::register(&mut registry, "http_server");
        registry.register_collector(Box::new(Gauges { pools }));
        Self { registry: Arc::new(registry), grpc, http, methods: Arc::new(methods) }
    }

    /// Counts an arrival. `path` is a gRPC path, or method and path of HTTP.
    pub(crate) fn started(&self, grpc: bool, path: &str) {
        self.requests(grpc).started.get_or_create(&self.labels(path)).inc();
    }

    /// Counts an end.
    pub(crate) fn handled(&self, path: &str, outcome: Outcome, elapsed: Duration) {
        let requests = self.requests(matches!(outcome, Outcome::Grpc(_)));
        let labels = self.labels(path);
        requests.latency.get_or_create(&labels).observe(elapsed.as_secs_f64());
        let RpcLabels { service, method } = labels;
        requests.handled.get_or_create(&HandledLabels { service, method, code: outcome.name() }).inc();
    }

    /// The OpenMetrics text.
    ///
    /// # Errors
    /// When a metric cannot be written, which is a fault of the program.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    fn requests(&self, grpc: bool) -> &Requests {
        if grpc { &self.grpc } else { &self.http }
    }

    fn labels(&self, path: &str) -> RpcLabels {
        match self.methods.get(path) {
            Some(Method { service, method }) => {
                RpcLabels { service: service.clone(), method: method.clone() }
            }
            None => RpcLabels { service: "unknown".into(), method: "unknown".into() },
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    module: &'static str,
    state: &'static str,
}

/// Values that are read when they are scraped.
struct Gauges {
    pools: Vec<(&'static str, PgPool)>,
}

impl fmt::Debug for Gauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gauges").field("pools", &self.pools.len()).finish()
    }
}

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), fmt::Error> {
        let mut pools = Vec::new();
        for (module, pool) in &self.pools {
            let idle = count(pool.num_idle());
            let size = i64::from(pool.size());
            pools.push((PoolLabels { module, state: "idle" }, ConstGauge::new(idle)));
            pools.push((PoolLabels { module, state: "used" }, ConstGauge::new((size - idle).max(0))));
            let max = i64::from(pool.options().get_max_connections());
            pools.push((PoolLabels { module, state: "max" }, ConstGauge::new(max)));
        }
        let family = prometheus_client::metrics::MetricType::Gauge;
        let mut metric =
            encoder.encode_descriptor("db_pool_connections", "Connections of the pool", None, family)?;
        for (labels, gauge) in &pools {
            gauge.encode(metric.encode_family(labels)?)?;
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let tasks = ConstGauge::new(count(runtime.metrics().num_alive_tasks()));
            tasks.encode(encoder.encode_descriptor(
                "tokio_alive_tasks",
                "Tasks not finished",
                None,
                family,
            )?)?;
            let workers = ConstGauge::new(count(runtime.metrics().num_workers()));
            workers.encode(encoder.encode_descriptor("tokio_workers", "Worker threads", None, family)?)?;
        }
        Ok(())
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    #[test]
    fn requests_are_counted_by_known_method_and_code() {
        let method = Method { service: "a.B".into(), method: "C".into() };
        let metrics = Metrics::new(HashMap::from([("/a.B/C".to_owned(), method)]), Vec::new());
        metrics.started(true, "/a.B/C");
        metrics.handled("/a.B/C", Outcome::Grpc(Code::Ok), Duration::from_millis(3));
        metrics.started(true, "/evil/\n1");
        metrics.handled("/evil/\n1", Outcome::Grpc(Code::Unimplemented), Duration::ZERO);
        let text = metrics.encode().unwrap();
        for line in [
            r#"grpc_server_started_total{service="a.B",method="C"} 1"#,
            r#"grpc_server_handled_total{service="a.B",method="C",code="OK"} 1"#,
            r#"grpc_server_handling_seconds_count{service="a.B",method="C"} 1"#,
            r#"grpc_server_handled_total{service="unknown",method="unknown",code="UNIMPLEMENTED"} 1"#,
        ] {
            assert!(text.contains(line), "{line} in\n{text}");
        }
        assert!(!text.contains("evil"));
    }
}
