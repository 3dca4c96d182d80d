//! The real binary against a real OTLP receiver: what arrives, how it hangs together, and what must never be in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use holdfast_testkit::{Rule, S3Fault, S3Server, S3Settings};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue, any_value};
use opentelemetry_proto::tonic::metrics::v1::{Metric, metric::Data, number_data_point};
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

/// The trace that the test claims to be in.
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const PARENT: &str = "00f067aa0ba902b7";

/// Everything that was sent to the receiver.
#[derive(Clone, Default)]
struct Received(Arc<Mutex<Requests>>);

#[derive(Default)]
struct Requests {
    traces: Vec<ExportTraceServiceRequest>,
    metrics: Vec<ExportMetricsServiceRequest>,
}

#[tonic::async_trait]
impl TraceService for Received {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        self.0.lock().unwrap().traces.push(request.into_inner());
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Received {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.0.lock().unwrap().metrics.push(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

/// A receiver on a port of its own, for as long as it lives.
pub(crate) struct Receiver {
    received: Received,
    pub(crate) endpoint: String,
    server: tokio::task::JoinHandle<()>,
}

impl Receiver {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let received = Received::default();
        let router = tonic::transport::Server::builder()
            .add_service(TraceServiceServer::new(received.clone()))
            .add_service(MetricsServiceServer::new(received.clone()));
        let server = tokio::spawn(async move {
            router.serve_with_incoming(TcpListenerStream::new(listener)).await.unwrap();
        });
        Self { received, endpoint, server }
    }

    pub(crate) fn spans(&self) -> Vec<Span> {
        let requests = self.received.0.lock().unwrap();
        let scopes =
            requests.traces.iter().flat_map(|request| &request.resource_spans).flat_map(|spans| &spans.scope_spans);
        scopes.flat_map(|scope| scope.spans.clone()).collect()
    }

    fn metrics(&self) -> Vec<Metric> {
        let requests = self.received.0.lock().unwrap();
        let scopes =
            requests.metrics.iter().flat_map(|request| &request.resource_metrics).flat_map(|all| &all.scope_metrics);
        scopes.flat_map(|scope| scope.metrics.clone()).collect()
    }

    /// Every byte that arrived, strings among it as they are.
    pub(crate) fn bytes(&self) -> String {
        let requests = self.received.0.lock().unwrap();
        let mut bytes = Vec::new();
        for request in &requests.traces {
            request.encode(&mut bytes).unwrap();
        }
        for request in &requests.metrics {
            request.encode(&mut bytes).unwrap();
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn holdfast(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(crate::holdfast_binary())
        .current_dir(crate::workspace())
        .args(arguments)
        .env_remove("HOLDFAST_LOG")
        .env_remove("TRACEPARENT")
        .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT")
        .envs(environment.iter().copied())
        .kill_on_drop(true)
        .output()
        .await
        .unwrap()
}

fn assert_success(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn text(value: Option<&AnyValue>) -> Option<&str> {
    match value?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text),
        _ => None,
    }
}

fn attribute<'a>(attributes: &'a [KeyValue], key: &str) -> Option<&'a str> {
    attributes.iter().find(|attribute| attribute.key == key).and_then(|attribute| text(attribute.value.as_ref()))
}

/// The value of a counter or the count of a histogram, summed over the points with this label.
fn total(metrics: &[Metric], name: &str, label: Option<(&str, &str)>) -> f64 {
    // Sums are cumulative: the largest export of a series is the last.
    let mut series: BTreeMap<String, f64> = BTreeMap::new();
    for metric in metrics.iter().filter(|metric| metric.name == name) {
        let points: Vec<(&[KeyValue], f64)> = match metric.data.as_ref().unwrap() {
            Data::Sum(sum) => sum
                .data_points
                .iter()
                .map(|point| {
                    let value = match point.value.as_ref().unwrap() {
                        number_data_point::Value::AsInt(value) => *value as f64,
                        number_data_point::Value::AsDouble(value) => *value,
                    };
                    (point.attributes.as_slice(), value)
                })
                .collect(),
            Data::Histogram(histogram) => {
                histogram.data_points.iter().map(|point| (point.attributes.as_slice(), point.count as f64)).collect()
            }
            other => panic!("{name} is {other:?}"),
        };
        for (attributes, value) in points {
            if label.is_none_or(|(key, wanted)| attribute(attributes, key) == Some(wanted)) {
                let value_so_far = series.entry(format!("{attributes:?}")).or_default();
                *value_so_far = value_so_far.max(value);
            }
        }
    }
    series.values().sum()
}

fn labels(metrics: &[Metric]) -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for metric in metrics {
        let attributes: Vec<&KeyValue> = match metric.data.as_ref().unwrap() {
            Data::Sum(sum) => sum.data_points.iter().flat_map(|point| &point.attributes).collect(),
            Data::Histogram(histogram) => histogram.data_points.iter().flat_map(|point| &point.attributes).collect(),
            Data::Gauge(gauge) => gauge.data_points.iter().flat_map(|point| &point.attributes).collect(),
            other => panic!("{} is {other:?}", metric.name),
        };
        keys.extend(attributes.into_iter().map(|attribute| attribute.key.clone()));
    }
    keys
}

/// Names, birthdays, phones, e-mails, addresses, social accounts and member numbers, as the generated CRM export has them.
fn personal_values(sources: &Path) -> BTreeSet<String> {
    let mut values = BTreeSet::new();
    for entry in std::fs::read_dir(sources.join("crm_contacts")).unwrap() {
        let bytes = std::fs::read(entry.unwrap().path()).unwrap();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let mut lines = text.lines();
        let header: Vec<&str> = lines.next().unwrap().split(',').collect();
        let personal = [
            "crm_id",
            "member_no",
            "full_name",
            "birth_date",
            "mobile",
            "email",
            "wechat_unionid",
            "address_line",
            "landline",
        ];
        let places = personal.map(|name| header.iter().position(|field| *field == name).unwrap());
        for line in lines {
            let fields: Vec<&str> = line.split(',').collect();
            // Rows with a field too many or too few are among the dirty ones: their values are elsewhere too.
            if fields.len() == header.len() {
                values.extend(places.iter().map(|place| fields[*place].trim_matches('"').to_owned()));
            }
        }
    }
    // Shorter ones could be part of anything.
    values.retain(|value| value.len() >= 6);
    values
}

fn count(output: &Output) -> f64 {
    assert_success(output);
    String::from_utf8_lossy(&output.stdout).lines().last().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_and_metrics_of_the_whole_path_arrive_without_customer_data() {
    let folder = tempfile::tempdir().unwrap();
    let demo = folder.path().join("demo");
    let (demo, lake) = (demo.to_str().unwrap(), demo.join("lake"));
    let lake = lake.to_str().unwrap();
    let receiver = Receiver::start().await;
    let traceparent = format!("00-{TRACE}-{PARENT}-01");
    let environment = [("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint.as_str()), ("TRACEPARENT", &traceparent)];

    let arguments = ["demo", "--customers", "200", "--no-serve", "--quiet", "--dir", demo];
    assert_success(&holdfast(&arguments, &environment).await);
    let values = personal_values(&Path::new(demo).join("sources"));
    assert!(values.len() > 400, "only {} personal values in the generated sources", values.len());

    // A query that quotes a person, and one that fails on what it reads.
    let somebody = values.iter().find(|value| value.contains('@')).unwrap();
    let query = format!("select count(*) from raw.crm_contacts where email = '{somebody}'");
    assert_success(&holdfast(&["--lake", lake, "sql", &query], &environment).await);
    let query = "select sum(cast(full_name as bigint)) from raw.crm_contacts";
    let failed = holdfast(&["--lake", lake, "sql", query], &environment).await;
    assert!(!failed.status.success());

    let (spans, metrics) = (receiver.spans(), receiver.metrics());
    spans_hang_together(&spans);
    measurements_arrive(&metrics);
    for source in ["orders", "crm_contacts"] {
        let query = format!("select count(*) from raw.{source}");
        let stored = count(&holdfast(&["--lake", lake, "sql", "--output", "csv", &query], &[]).await);
        let measured = total(&metrics, "holdfast_ingest_rows", Some(("source", source)));
        // Both are whole numbers.
        assert!((measured - stored).abs() < 0.5, "rows of {source}: {measured} measured, {stored} stored");
    }

    let bytes = receiver.bytes();
    let query = "select customer_id from profile.customer_360";
    let customers = holdfast(&["--lake", lake, "sql", "--output", "csv", query], &[]).await;
    let customers: Vec<String> =
        String::from_utf8_lossy(&customers.stdout).lines().skip(1).map(str::to_owned).collect();
    assert!(customers.len() > 50, "only {} customers", customers.len());
    let leaked: Vec<&String> = values.iter().chain(&customers).filter(|value| bytes.contains(value.as_str())).collect();
    assert!(leaked.is_empty(), "{} of {} values were sent: {leaked:?}", leaked.len(), values.len() + customers.len());
}

fn spans_hang_together(spans: &[Span]) {
    let by_id: BTreeMap<&[u8], &Span> = spans.iter().map(|span| (span.span_id.as_slice(), span)).collect();
    let remote: Vec<u8> = (0..8).map(|place| u8::from_str_radix(&PARENT[place * 2..][..2], 16).unwrap()).collect();
    let mut pairs: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for span in spans {
        let trace: String = span.trace_id.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(trace, TRACE, "span {} is in another trace", span.name);
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano);
        let parent = if span.parent_span_id == remote {
            "(caller)"
        } else {
            let parent = by_id.get(span.parent_span_id.as_slice());
            &parent.unwrap_or_else(|| panic!("the parent of span {} did not arrive", span.name)).name
        };
        *pairs.entry((span.name.as_str(), parent)).or_default() += 1;
    }
    for (pair, at_least) in [
        (("command", "(caller)"), 3),
        (("ingest_source", "command"), 12),
        (("ingest_batch", "ingest_source"), 12),
        (("ingest_file", "ingest_batch"), 12),
        (("run", "command"), 1),
        (("stage", "run"), 10),
        (("query", "command"), 2),
    ] {
        let found = pairs.get(&pair).copied().unwrap_or(0);
        assert!(found >= at_least, "{found} spans {} in {}, expected {at_least}: {pairs:?}", pair.0, pair.1);
    }
    let stages: BTreeSet<_> = spans
        .iter()
        .filter(|span| span.name == "stage")
        .filter_map(|span| attribute(&span.attributes, "stage"))
        .collect();
    assert!(stages.contains("risk.churn_score"), "{stages:?}");
}

fn measurements_arrive(metrics: &[Metric]) {
    for (name, unit) in [
        ("holdfast_errors", "{error}"),
        ("holdfast_ingest_batch_seconds", "s"),
        ("holdfast_ingest_bytes", "By"),
        ("holdfast_ingest_files", "{file}"),
        ("holdfast_ingest_lag_seconds", "s"),
        ("holdfast_ingest_rows", "{row}"),
        ("holdfast_ingest_rows_quarantined", "{row}"),
        ("holdfast_stage_rows", "{row}"),
        ("holdfast_stage_seconds", "s"),
    ] {
        assert!(total(metrics, name, None) > 0.0, "{name} did not arrive");
        let metric = metrics.iter().find(|metric| metric.name == name).unwrap();
        assert_eq!(metric.unit, unit, "{name}");
        assert!(!metric.description.is_empty(), "{name} has no description");
    }
    assert!(
        total(metrics, "holdfast_errors", Some(("kind", "invalid_input"))) > 0.0,
        "the failed query is not counted"
    );
    let known = ["command", "kind", "method", "outcome", "rule", "source", "stage"];
    let labels = labels(metrics);
    let odd: Vec<_> = labels.iter().filter(|label| !known.contains(&label.as_str())).collect();
    assert!(odd.is_empty(), "labels {odd:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_costs_a_warning_and_little_time() {
    let folder = tempfile::tempdir().unwrap();
    // A port that was free a moment ago refuses; one that listens and never answers lets the exporter wait.
    let refusing = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    for (name, address) in [("refusing", refusing), ("silent", silent.local_addr().unwrap())] {
        let out = folder.path().join(name);
        let arguments = ["generate", "--customers", "5", "--days", "5", "--quiet", "--out", out.to_str().unwrap()];
        let endpoint = format!("http://{address}");
        let started = Instant::now();
        let output = holdfast(&arguments, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)]).await;
        let took = started.elapsed();
        assert_success(&output);
        assert!(took < Duration::from_secs(15), "{name}: {took:?}");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(stderr.matches("traces and metrics do not arrive").count(), 1, "{name}: {stderr}");
        assert_eq!(stderr.lines().count(), 1, "{name}: {stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn telemetry_that_is_set_up_wrongly_is_told_at_once() {
    for (variable, value, expected) in [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317", "http://host:port"),
        ("HOLDFAST_LOG", "holdfast=loud", "HOLDFAST_LOG is not a log filter"),
    ] {
        let output = holdfast(&["generate", "--customers", "1", "--out", "unused"], &[(variable, value)]).await;
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{stderr}");
        assert!(stderr.contains(expected), "{stderr}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_of_the_store_are_in_no_log_no_error_and_no_telemetry() {
    const SECRETS: [&str; 3] = ["never-seen-secret", "never-seen-token", "never-seen-guess"];
    let receiver = Receiver::start().await;
    let server = S3Server::start(S3Settings {
        secret_key: SECRETS[0].to_owned(),
        rules: vec![Rule::on(&[], S3Fault::Refused(503)).percent(3)],
        ..S3Settings::default()
    })
    .unwrap();
    server.put("shop", "in/events/1.ndjson", "{\"messageId\":\"a\",\"type\":\"track\"}\n");
    let folder = tempfile::tempdir().unwrap();
    let key_file = folder.path().join("identity.key");
    let endpoint = server.endpoint();
    let mut said = String::new();
    for (secret, succeeds) in [(SECRETS[0], true), (SECRETS[2], false)] {
        let environment = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.endpoint.as_str()),
            ("HOLDFAST_LOG", "trace"),
            ("AWS_ENDPOINT", endpoint.as_str()),
            ("AWS_ALLOW_HTTP", "true"),
            ("AWS_REGION", "us-east-1"),
            ("AWS_ACCESS_KEY_ID", "test-key"),
            ("AWS_SECRET_ACCESS_KEY", secret),
            ("AWS_SESSION_TOKEN", SECRETS[1]),
        ];
        let arguments = ["-vv", "--lake", "s3://shop/lake", "--identity-key", key_file.to_str().unwrap()];
        let ingest = ["ingest", "--raw-only", "--source", "events", "--from", "s3://shop/in"];
        let output = holdfast(&[&arguments[..], &ingest].concat(), &environment).await;
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        said.push_str(&String::from_utf8_lossy(&output.stdout));
        assert_eq!(output.status.success(), succeeds, "{}", &said[said.len().saturating_sub(2_000)..]);
    }
    // Everything was told, the libraries' inner workings among it.
    assert!(said.contains("TRACE") && said.contains("hyper"), "too little was logged to show anything");
    assert!(!receiver.spans().is_empty());
    let sent = receiver.bytes();
    for secret in SECRETS {
        assert!(!said.contains(secret), "{secret} is in the log");
        assert!(!sent.contains(secret), "{secret} was sent");
    }
}
