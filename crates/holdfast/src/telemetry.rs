//! Logs for people, traces and metrics for collectors. No customer data is in any of it: see [`leaves_the_process`] and
//! [`METRICS`].

use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use holdfast_types::ErrorKind;
use opentelemetry::propagation::TextMapPropagator;
use opentelemetry::trace::TracerProvider;
use opentelemetry::{Key, global};
use opentelemetry_otlp::{ExporterBuildError, MetricExporter, SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::data::ResourceMetrics;
use opentelemetry_sdk::metrics::exporter::PushMetricExporter;
use opentelemetry_sdk::metrics::{Aggregation, Instrument, SdkMeterProvider, Stream, Temporality};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData};
use tracing::{Level, Metadata, Span};
use tracing_opentelemetry::{MetricsLayer, OpenTelemetrySpanExt};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::{EnvFilter, FilterExt, LevelFilter, ParseError, filter_fn};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry};

/// How long a command waits at its end for what is left to be sent.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

/// Upper bounds of the histogram buckets for durations, in seconds.
const DURATION_BUCKETS: &[f64] =
    &[0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1_800.0, 7_200.0];

/// The same for lag, from a second to a year: files arrive by the minute, the day or the month.
const LAG_BUCKETS: &[f64] =
    &[1.0, 10.0, 60.0, 300.0, 1_800.0, 3_600.0, 21_600.0, 86_400.0, 604_800.0, 2_592_000.0, 31_536_000.0];

/// The field of events about errors that the command prints.
const PRINTED_ERRORS: &str = "monotonic_counter.holdfast_errors";

/// What the crates measure. Labels are an allow-list, so that neither an unbounded value nor a person's data can
/// become one by accident; a metric that is missing here is exported without any.
const METRICS: &[Metric] = &[
    Metric::count("holdfast_audit_failures", "{attempt}", "attempts to write accesses down that failed", &[]),
    Metric::count(
        "holdfast_connections_refused",
        "{connection}",
        "connections over any protocol that found no room",
        &[],
    ),
    Metric::count(
        "holdfast_connections_timed_out",
        "{connection}",
        "connections over Flight and HTTP that were silent for too long",
        &[],
    ),
    Metric::count("holdfast_audit_lost", "{access}", "accesses that were not written down", &[]),
    Metric::seconds("holdfast_cluster_job_seconds", "time of a plan on the cluster", &["stage"]),
    Metric::count(
        "holdfast_cluster_result_bytes",
        "By",
        "bytes of rows that executors hold for the driver",
        &["stage"],
    ),
    Metric::seconds("holdfast_collect_ack_seconds", "arrival of a request to its acknowledgement", &["endpoint"]),
    Metric::count("holdfast_collect_bytes", "By", "bytes of pushed messages made durable", &["source"]),
    Metric::count("holdfast_collect_messages", "{message}", "messages that were pushed", &["outcome", "source"]),
    Metric::count("holdfast_collect_requests", "{request}", "requests that pushed", &["endpoint", "status"]),
    Metric::count("holdfast_collect_write_errors", "{error}", "objects that could not be written", &["source"]),
    Metric::count("holdfast_errors", "{error}", "errors that ended a command or a stage", &["kind", "stage"]),
    Metric::count("holdfast_feed_bytes", "By", "bytes of feeds' records made durable", &["source"]),
    Metric::seconds("holdfast_feed_chunk_seconds", "first record of an object until it is durable", &["source"]),
    Metric::count("holdfast_feed_errors", "{error}", "reads of feeds that failed", &["kind", "source"]),
    Metric::count("holdfast_feed_gaps", "{gap}", "stretches of records that were gone and passed over", &[]),
    Metric::count("holdfast_feed_records", "{record}", "records of feeds made durable", &["source"]),
    Metric::count("holdfast_feed_records_behind", "{record}", "records still to be read", &["partition", "source"]),
    Metric::count("holdfast_flight_bytes", "By", "bytes of record batches sent", &["command", "method", "outcome"]),
    Metric::count("holdfast_flight_errors", "{error}", "calls that failed", &["command", "kind", "method", "outcome"]),
    Metric::count("holdfast_flight_reloads", "{run}", "newer runs taken into service", &[]),
    Metric::count("holdfast_flight_rows", "{row}", "rows sent", &["command", "method", "outcome"]),
    Metric::seconds("holdfast_flight_seconds", "time of a call to its last row", &["command", "method", "outcome"]),
    Metric::count("holdfast_identity_merged", "{customer}", "customers merged into an older one", &[]),
    Metric::count("holdfast_identity_minted", "{customer}", "new customers", &[]),
    Metric::count("holdfast_identity_split", "{customer}", "customers split from another", &[]),
    Metric::seconds("holdfast_ingest_batch_seconds", "time to read, write and commit a batch", &["source"]),
    Metric::count("holdfast_ingest_alerts", "{alert}", "alerts about sources that opened", &["rule", "source"]),
    Metric::count("holdfast_ingest_bytes", "By", "bytes of the files stored", &["source"]),
    Metric::count("holdfast_ingest_duplicates", "{row}", "rows stored whose key came before", &["source"]),
    Metric::count("holdfast_ingest_errors", "{error}", "sources that could not be ingested", &["kind", "source"]),
    Metric::count("holdfast_ingest_files", "{file}", "files stored", &["source"]),
    Metric::lag("holdfast_ingest_lag_seconds", "newest event time of a batch to its commit", &["source"]),
    Metric::count("holdfast_ingest_refused_files", "{file}", "files refused as a whole", &["kind", "source"]),
    Metric::count("holdfast_ingest_rows", "{row}", "rows stored in raw", &["source"]),
    Metric::count("holdfast_ingest_rows_late", "{row}", "rows stored that are late", &["source"]),
    Metric::count("holdfast_ingest_rows_quarantined", "{row}", "rows refused", &["source"]),
    Metric::count("holdfast_ingest_rows_replayed", "{row}", "rows moved from quarantine to raw", &["source"]),
    Metric::count("holdfast_maintain_bytes_vacuumed", "By", "bytes of data files deleted", &["table"]),
    Metric::count("holdfast_maintain_files_merged", "{file}", "small files merged into others", &["table"]),
    Metric::count("holdfast_maintain_files_vacuumed", "{file}", "data files deleted", &["table"]),
    Metric::count("holdfast_maintain_inbox_bytes_deleted", "By", "bytes of old inbox objects deleted", &["source"]),
    Metric::count("holdfast_maintain_inbox_objects_deleted", "{object}", "old inbox objects deleted", &["source"]),
    Metric::count("holdfast_maintain_log_files_deleted", "{file}", "commits and checkpoints deleted", &["table"]),
    Metric::seconds("holdfast_maintain_seconds", "time to maintain a table", &["table"]),
    Metric::count("holdfast_postgres_connections", "{session}", "sessions over the PostgreSQL protocol", &[]),
    Metric::count("holdfast_postgres_refused", "{connection}", "connections of it that were refused", &["code"]),
    Metric::seconds("holdfast_put_ack_seconds", "arrival of a batch to its being durable", &["outcome", "source"]),
    Metric::count("holdfast_put_batches", "{batch}", "batches put and durable", &["outcome", "source"]),
    Metric::count("holdfast_put_bytes", "By", "bytes of objects made durable", &["outcome", "source"]),
    Metric::count("holdfast_put_rows", "{row}", "rows put and durable", &["outcome", "source"]),
    Metric::count("holdfast_query_rows", "{row}", "rows that `holdfast sql` answered with", &[]),
    Metric::seconds("holdfast_query_seconds", "time of a `holdfast sql` to its last row", &[]),
    Metric::seconds("holdfast_run_seconds", "time of a run of stages", &["outcome"]),
    Metric::count("holdfast_stage_bytes", "By", "bytes of a stage's new table version", &["stage"]),
    Metric::count("holdfast_stage_quarantined_rows", "{row}", "rows an expectation kept out", &["stage"]),
    Metric::count("holdfast_stage_rows", "{row}", "rows of a stage's new table version", &["stage"]),
    Metric::seconds("holdfast_stage_seconds", "time to build a stage", &["stage"]),
];

/// Logging and, with an endpoint, the export of traces and metrics. End it with [`Telemetry::shutdown`].
#[derive(Debug)]
pub(crate) struct Telemetry {
    export: Option<Export>,
    parent: Option<TraceParent>,
}

/// What [`Telemetry::start`] needs to know.
#[derive(Debug, Clone)]
pub(crate) struct TelemetrySettings {
    /// Where to send traces and metrics by OTLP over gRPC: `http://host:4317`, or `https://…` for TLS.
    pub(crate) otlp_endpoint: Option<String>,
    /// What to log, as `tracing-subscriber` writes it: `warn,holdfast=debug`.
    pub(crate) log_filter: String,
    /// Whether to log also the errors that end a command or a stage, which the command itself prints.
    pub(crate) log_printed_errors: bool,
    /// A JSON object a line instead of text.
    pub(crate) log_json: bool,
    pub(crate) log_colour: bool,
    pub(crate) service_name: String,
    /// The trace that this process is a part of.
    pub(crate) parent: Option<TraceParent>,
    pub(crate) log_to: LogSink,
}

/// The trace context that another process handed down, as W3C Trace Context writes it.
#[derive(Debug, Clone)]
pub(crate) struct TraceParent {
    traceparent: String,
    tracestate: String,
}

/// Where finished log lines go; whoever draws progress bars hands in a way to write above them.
#[derive(Clone)]
pub(crate) struct LogSink(Arc<WriteLine>);

type WriteLine = dyn Fn(&[u8]) + Send + Sync;

/// Why telemetry cannot start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TelemetryError {
    #[error("HOLDFAST_LOG is not a log filter: {0}; write for example warn,holdfast=debug")]
    LogFilter(#[from] ParseError),
    #[error("OTEL_EXPORTER_OTLP_ENDPOINT {0} has no scheme: write http://host:port, or https:// for TLS")]
    Scheme(String),
    #[error("cannot send telemetry to OTEL_EXPORTER_OTLP_ENDPOINT {endpoint}: {source}; mend the address or unset it")]
    Endpoint { endpoint: String, source: ExporterBuildError },
    #[error("logging was started twice: {0}")]
    StartedTwice(#[from] TryInitError),
}

impl TelemetryError {
    pub(crate) const fn kind(&self) -> ErrorKind {
        match self {
            Self::LogFilter(_) | Self::Scheme(_) | Self::Endpoint { .. } => ErrorKind::InvalidConfig,
            Self::StartedTwice(_) => ErrorKind::Bug,
        }
    }
}

impl TelemetrySettings {
    /// Settings from environment variables, read through `variable`; an empty one counts as missing, as OpenTelemetry
    /// has it. `verbose` is how often `-v` was given, which a filter in the environment overrides.
    pub(crate) fn from_environment(variable: impl Fn(&str) -> Option<String>, verbose: u8, log_to: LogSink) -> Self {
        let variable = |name: &str| variable(name).filter(|value| !value.trim().is_empty());
        let log_filter = variable("HOLDFAST_LOG");
        let log_json = variable("HOLDFAST_LOG_FORMAT").is_some_and(|format| format.eq_ignore_ascii_case("json"));
        Self {
            otlp_endpoint: variable("OTEL_EXPORTER_OTLP_ENDPOINT"),
            log_printed_errors: log_json || verbose > 0 || log_filter.is_some(),
            log_filter: log_filter.unwrap_or_else(|| default_log_filter(verbose).to_owned()),
            log_json,
            log_colour: false,
            service_name: variable("OTEL_SERVICE_NAME").unwrap_or_else(|| "holdfast".to_owned()),
            parent: variable("TRACEPARENT")
                .map(|traceparent| TraceParent { traceparent, tracestate: variable("TRACESTATE").unwrap_or_default() }),
            log_to,
        }
    }
}

/// The libraries below log their inner workings, literals of queries among them: more of those only by a filter that
/// somebody writes on purpose. The Delta kernel calls it an error when a table is not there yet, and delta-rs when another
/// writer was first; what is one, their caller says. The exporter's complaints are summed up in one line of ours.
const fn default_log_filter(verbose: u8) -> &'static str {
    match verbose {
        0 => {
            "warn,ballista_core=off,ballista_executor=off,ballista_scheduler=off,buoyant_kernel=off,datafusion_common::pruning=off,deltalake_core::kernel::transaction=off,opentelemetry=off,opentelemetry_sdk=off,opentelemetry_otlp=off"
        }
        1 => {
            "warn,holdfast=info,ballista_core=off,ballista_executor=off,ballista_scheduler=off,buoyant_kernel=off,datafusion_common::pruning=off,deltalake_core::kernel::transaction=off,opentelemetry=off,opentelemetry_sdk=off,opentelemetry_otlp=off"
        }
        _ => "warn,holdfast=trace",
    }
}

impl Telemetry {
    /// Installs logging and, with an endpoint, the export of traces and metrics. Call it once, inside a Tokio runtime
    /// with more than one thread: the exporter's connection lives on that runtime. An endpoint that cannot be reached
    /// is no error: what should have gone there is lost, and a warning says so once.
    ///
    /// # Errors
    /// A filter or an endpoint that cannot be understood; a second start.
    pub(crate) fn start(settings: TelemetrySettings) -> Result<Self, TelemetryError> {
        let filter = EnvFilter::builder().parse(&settings.log_filter)?;
        let printed = settings.log_printed_errors;
        let told = filter_fn(move |metadata| printed || metadata.fields().field(PRINTED_ERRORS).is_none());
        // Without it, libraries build every debug line before it is found that nobody wants it.
        let told = told.with_max_level_hint(filter.max_level_hint().unwrap_or(LevelFilter::TRACE));
        let mut layers = vec![log_layer(&settings).with_filter(filter.and(told)).boxed()];
        let export = match settings.otlp_endpoint {
            Some(endpoint) => {
                let export = Export::start(endpoint, settings.service_name)?;
                layers.extend(export.layers());
                Some(export)
            }
            None => None,
        };
        tracing_subscriber::registry().with(layers).try_init()?;
        global::set_text_map_propagator(TraceContextPropagator::new());
        Ok(Self { export, parent: settings.parent })
    }

    /// The span around a command. It belongs to the trace that the caller of this process is in, if it told of one.
    pub(crate) fn command_span(&self, command: &'static str) -> Span {
        let span = tracing::info_span!("command", command);
        if let (Some(_), Some(parent)) = (&self.export, &self.parent) {
            let carrier = [
                ("traceparent".to_owned(), parent.traceparent.clone()),
                ("tracestate".to_owned(), parent.tracestate.clone()),
            ];
            let context = TraceContextPropagator::new().extract(&carrier.into_iter().collect::<TraceContext>());
            if let Err(error) = span.set_parent(context) {
                tracing::debug!(%error, "the trace in TRACEPARENT is not continued");
            }
        }
        span
    }

    /// Sends what is left, for at most five seconds. Blocks the thread; spans that are still open are not sent.
    pub(crate) fn shutdown(self) {
        if let Some(export) = self.export {
            export.shutdown();
        }
    }
}

type TraceContext = std::collections::HashMap<String, String>;

/// Traces and metrics on their way to a collector. Both are sent by threads of their own, in batches, from bounded
/// queues that drop what does not fit: nothing waits for the collector.
#[derive(Debug)]
struct Export {
    tracer: SdkTracerProvider,
    meter: SdkMeterProvider,
    outage: Arc<Outage>,
}

impl Export {
    fn start(endpoint: String, service_name: String) -> Result<Self, TelemetryError> {
        if !["http://", "https://"].iter().any(|scheme| endpoint.starts_with(scheme)) {
            return Err(TelemetryError::Scheme(endpoint));
        }
        let refused = |source| TelemetryError::Endpoint { endpoint: endpoint.clone(), source };
        let spans = SpanExporter::builder().with_tonic().with_endpoint(&endpoint).build().map_err(refused)?;
        let metrics = MetricExporter::builder().with_tonic().with_endpoint(&endpoint).build().map_err(refused)?;
        let outage = Arc::new(Outage { endpoint, told: AtomicBool::new(false) });
        let resource = Resource::builder()
            .with_service_name(service_name)
            .with_attribute(opentelemetry::KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(opentelemetry::KeyValue::new("service.instance.id", uuid::Uuid::new_v4().to_string()))
            .build();
        let tracer = SdkTracerProvider::builder()
            .with_batch_exporter(Watched { exporter: spans, outage: Arc::clone(&outage) })
            .with_resource(resource.clone())
            .build();
        let meter = SdkMeterProvider::builder()
            .with_periodic_exporter(Watched { exporter: metrics, outage: Arc::clone(&outage) })
            .with_view(view)
            .with_resource(resource)
            .build();
        Ok(Self { tracer, meter, outage })
    }

    fn layers(&self) -> [Box<dyn Layer<Registry> + Send + Sync>; 2] {
        let traces = tracing_opentelemetry::layer()
            .with_tracer(self.tracer.tracer("holdfast"))
            .with_location(false)
            .with_threads(false)
            .with_filter(filter_fn(leaves_the_process));
        [traces.boxed(), MetricsLayer::new(self.meter.clone()).boxed()]
    }

    fn shutdown(self) {
        // The metric reader's shutdown waits without a limit: both run on threads that the end of the process ends.
        let (done, ended) = mpsc::channel();
        let (tracer, meter) = (self.tracer, self.meter);
        let works: [Box<dyn FnOnce() -> OTelSdkResult + Send>; 2] =
            [Box::new(move || tracer.shutdown_with_timeout(SHUTDOWN_LIMIT)), Box::new(move || meter.shutdown())];
        let mut waiting = 0;
        for work in works {
            let done = done.clone();
            let thread = std::thread::Builder::new().name("telemetry-shutdown".to_owned());
            match thread.spawn(move || done.send(work())) {
                Ok(_) => waiting += 1,
                Err(error) => self.outage.tell(&error),
            }
        }
        let deadline = Instant::now() + SHUTDOWN_LIMIT;
        for _ in 0..waiting {
            match ended.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(Ok(())) => {}
                Ok(Err(error)) => self.outage.tell(&error),
                Err(RecvTimeoutError::Timeout) => {
                    return self.outage.tell(&format_args!("no answer within {} s", SHUTDOWN_LIMIT.as_secs()));
                }
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }
}

/// Whether a span or event may go into traces: the project's own, from level info on. Libraries' spans carry paths and
/// literals of queries; an event's `error` is text that somebody else wrote and may quote a value. Both stay in the log.
fn leaves_the_process(metadata: &Metadata<'_>) -> bool {
    let target = metadata.target();
    (target == "holdfast" || target.starts_with("holdfast::") || target.starts_with("holdfast_"))
        && *metadata.level() <= Level::INFO
        && (metadata.is_span() || metadata.fields().field("error").is_none())
}

/// One line of [`METRICS`].
struct Metric {
    name: &'static str,
    /// As UCUM writes it.
    unit: &'static str,
    description: &'static str,
    labels: &'static [&'static str],
    buckets: Option<&'static [f64]>,
}

impl Metric {
    const fn count(
        name: &'static str,
        unit: &'static str,
        description: &'static str,
        labels: &'static [&'static str],
    ) -> Self {
        Self { name, unit, description, labels, buckets: None }
    }

    const fn seconds(name: &'static str, description: &'static str, labels: &'static [&'static str]) -> Self {
        Self { name, unit: "s", description, labels, buckets: Some(DURATION_BUCKETS) }
    }

    const fn lag(name: &'static str, description: &'static str, labels: &'static [&'static str]) -> Self {
        Self { name, unit: "s", description, labels, buckets: Some(LAG_BUCKETS) }
    }
}

/// How an instrument is exported. Without it every field of an event would become a label, its message too.
fn view(instrument: &Instrument) -> Option<Stream> {
    let stream = Stream::builder();
    let stream = match METRICS.iter().find(|metric| metric.name == instrument.name()) {
        Some(metric) => {
            let stream = stream
                .with_unit(metric.unit)
                .with_description(metric.description)
                .with_allowed_attribute_keys(metric.labels.iter().map(|label| Key::from_static_str(label)));
            match metric.buckets {
                Some(buckets) => stream.with_aggregation(Aggregation::ExplicitBucketHistogram {
                    boundaries: buckets.to_vec(),
                    record_min_max: true,
                }),
                None => stream,
            }
        }
        None => stream.with_allowed_attribute_keys([]),
    };
    stream.build().ok()
}

/// Tells once that the collector cannot be reached, whichever exporter notices first. A service says so when it happens,
/// a command that is done before the first export says so at its end.
#[derive(Debug)]
struct Outage {
    endpoint: String,
    told: AtomicBool,
}

impl Outage {
    fn tell(&self, error: &dyn fmt::Display) {
        if !self.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(endpoint = self.endpoint, %error, "traces and metrics do not arrive; this is said once");
        }
    }
}

/// An exporter whose failures are told.
#[derive(Debug)]
struct Watched<E> {
    exporter: E,
    outage: Arc<Outage>,
}

impl<E> Watched<E> {
    fn seen(&self, result: OTelSdkResult) -> OTelSdkResult {
        result.inspect_err(|error| self.outage.tell(error))
    }
}

impl<E: opentelemetry_sdk::trace::SpanExporter> opentelemetry_sdk::trace::SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.seen(self.exporter.export(batch).await)
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn shutdown(&self) -> OTelSdkResult {
        self.exporter.shutdown()
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.exporter.set_resource(resource);
    }
}

impl<E: PushMetricExporter> PushMetricExporter for Watched<E> {
    async fn export(&self, metrics: &ResourceMetrics) -> OTelSdkResult {
        self.seen(self.exporter.export(metrics).await)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.exporter.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn shutdown(&self) -> OTelSdkResult {
        self.exporter.shutdown()
    }

    fn temporality(&self) -> Temporality {
        self.exporter.temporality()
    }
}

fn log_layer(settings: &TelemetrySettings) -> Box<dyn Layer<Registry> + Send + Sync> {
    let layer = tracing_subscriber::fmt::layer().with_writer(settings.log_to.clone());
    if settings.log_json {
        return layer.json().with_ansi(false).boxed();
    }
    // The prefixes that make a field a metric say nothing to people.
    let fields = format::debug_fn(|writer, field, value| match field.name() {
        "message" => write!(writer, "{value:?}"),
        name => {
            let name =
                name.strip_prefix("monotonic_counter.").or_else(|| name.strip_prefix("histogram.")).unwrap_or(name);
            write!(writer, "{name}={value:?}")
        }
    });
    layer.with_ansi(settings.log_colour).fmt_fields(fields.delimited(" ")).boxed()
}

impl LogSink {
    /// A sink that hands every finished line, its newline included, to `write`.
    pub(crate) fn new(write: impl Fn(&[u8]) + Send + Sync + 'static) -> Self {
        Self(Arc::new(write))
    }
}

impl fmt::Debug for LogSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LogSink")
    }
}

impl MakeWriter<'_> for LogSink {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl io::Write for LogSink {
    // The formatting layer writes each line at once.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        (self.0)(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

    fn settings(variables: &[(&str, &str)], verbose: u8) -> TelemetrySettings {
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        TelemetrySettings::from_environment(variable, verbose, LogSink::new(|_| {}))
    }

    #[test]
    fn empty_variables_count_as_missing() {
        let settings = settings(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " "), ("OTEL_SERVICE_NAME", "")], 0);
        assert_eq!(settings.otlp_endpoint, None);
        assert_eq!(settings.service_name, "holdfast");
    }

    #[test]
    fn every_default_filter_is_understood_and_the_environment_overrides_it() {
        for verbose in 0..=3 {
            EnvFilter::builder().parse(settings(&[], verbose).log_filter).unwrap();
        }
        assert_eq!(settings(&[("HOLDFAST_LOG", "error")], 2).log_filter, "error");
    }

    #[test]
    fn a_wrong_filter_or_endpoint_is_told_before_anything_starts() {
        let error = Telemetry::start(settings(&[("HOLDFAST_LOG", "holdfast=loud")], 0)).unwrap_err();
        assert!(error.to_string().starts_with("HOLDFAST_LOG is not a log filter"), "{error}");
        let error = Telemetry::start(settings(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317")], 0)).unwrap_err();
        assert!(error.to_string().contains("write http://host:port"), "{error}");
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    }

    #[test]
    fn log_lines_name_metrics_without_their_prefixes() {
        let lines = Arc::new(std::sync::Mutex::new(Vec::new()));
        let kept = Arc::clone(&lines);
        let mut settings = settings(&[], 0);
        settings.log_to =
            LogSink::new(move |line| kept.lock().unwrap().push(String::from_utf8(line.to_vec()).unwrap()));
        let subscriber = tracing_subscriber::registry().with(vec![log_layer(&settings)]);
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(monotonic_counter.holdfast_stage_rows = 3_u64, stage = "core.orders", "stage built");
        });
        let lines = lines.lock().unwrap();
        assert_eq!(lines.len(), 1);
        let expected = "holdfast::telemetry::tests: stage built holdfast_stage_rows=3 stage=\"core.orders\"\n";
        assert!(lines[0].ends_with(expected), "{}", lines[0]);
    }

    #[test]
    fn every_metric_in_the_code_is_in_the_list_and_every_listed_one_is_documented() {
        let listed: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
        let mut emitted = BTreeSet::new();
        metrics_below(&Path::new(WORKSPACE).join("crates"), &mut emitted);
        assert!(emitted.iter().any(|name| name == "holdfast_ingest_rows"), "no metric found in the sources");
        let missing: Vec<_> = emitted.iter().filter(|name| !listed.contains(name.as_str())).collect();
        assert!(missing.is_empty(), "add to METRICS: {missing:?}");
        let unused: Vec<_> = listed.iter().filter(|name| !emitted.contains(**name)).collect();
        assert!(unused.is_empty(), "nothing emits {unused:?}");

        let page = std::fs::read_to_string(Path::new(WORKSPACE).join("docs/operations.md")).unwrap();
        let silent: Vec<_> = listed.iter().filter(|name| !page.contains(&format!("`{name}`"))).collect();
        assert!(silent.is_empty(), "add to docs/operations.md: {silent:?}");
    }

    /// The names after `monotonic_counter.` and its kind in all Rust files below a folder.
    fn metrics_below(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                metrics_below(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                for prefix in ["counter.", "histogram.", "gauge."] {
                    found.extend(text.split(prefix).skip(1).filter_map(|rest| {
                        let name: String = rest
                            .chars()
                            .take_while(|letter| letter.is_ascii_alphanumeric() || *letter == '_')
                            .collect();
                        name.starts_with("holdfast_").then_some(name)
                    }));
                }
            }
        }
    }
}
