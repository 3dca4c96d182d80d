//! The Flight service, asked through a real port over a real lake.

mod flight_sql;
mod requests;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    Array, ArrayRef, AsArray, Decimal128Array, Float64Array, Int32Array, Int64Array, ListBuilder, RecordBatch,
    StringArray, StringBuilder, TimestampMicrosecondArray, UnionArray,
};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema, TimeUnit, UInt32Type};
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{
    ActionCancelQueryRequest, ActionCancelQueryResult, Any, CommandGetDbSchemas, CommandGetTables,
    CommandPreparedStatementQuery, CommandStatementQuery, CommandStatementUpdate, EndTransaction, ProstMessageExt,
    SqlInfo,
};
use arrow_flight::{
    Action, CancelFlightInfoRequest, CancelStatus, FlightClient, FlightDescriptor, FlightInfo, IpcMessage, Ticket,
};
use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};
use holdfast_engine::{LakeReader, SessionSettings, customer_bucket_of};
use holdfast_lake::{
    Change, ChangeKind, CommitOutcome, Lake, LakeSettings, Manifest, ManifestEntry, Position, StoreOptions, TableSpec,
    TableWriter, WriterSettings,
};
use holdfast_serve::{
    CommandMessage, FeaturesForCustomers, ScoresAbove, ServeError, ServeSettings, Token, bind, serve,
};
use holdfast_types::{ErrorKind, FixedClock};
use prost::Message;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Status};

const BUCKETS: u32 = 4;
const CUSTOMERS: i64 = 20;

/// A lake with features and scores of twenty customers, a service on a free port, and clients of it.
struct Service {
    lake: TestLake,
    reader: Arc<LakeReader>,
    address: String,
    channel: Channel,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<Result<(), ServeError>>,
}

impl Service {
    async fn start() -> Self {
        // Looks for new runs by itself too rarely to matter in a test: tests refresh when they want to.
        let settings = ServeSettings { reload_interval: Duration::from_secs(3600), ..ServeSettings::default() };
        Self::start_with(settings).await
    }

    async fn start_with(settings: ServeSettings) -> Self {
        let lake = TestLake::new().await;
        lake.write("features.churn_v1", &features(), ChangeKind::Append, 1).await;
        lake.write("risk.churn_score", &scores(0.0), ChangeKind::Append, 1).await;
        lake.publish(1).await;
        let reader = Arc::new(LakeReader::open(lake.lake.clone(), SessionSettings::default()).await.unwrap());
        let listener = bind("127.0.0.1:0", settings.token.as_ref()).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(serve(Arc::clone(&reader), None, settings, listener, async move {
            let _ = stopped.await;
        }));
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Self { lake, reader, address, channel, stop: Some(stop), running }
    }

    fn flight(&self) -> FlightClient {
        FlightClient::new(self.channel.clone())
    }

    fn sql(&self) -> FlightSqlServiceClient<Channel> {
        FlightSqlServiceClient::new(self.channel.clone())
    }

    async fn select(&self, query: &str) -> Result<RecordBatch, Status> {
        let mut client = self.flight();
        let info = client.get_flight_info(statement(query)).await.map_err(status)?;
        self.fetch(&info).await
    }

    async fn fetch(&self, info: &FlightInfo) -> Result<RecordBatch, Status> {
        let ticket = info.endpoint[0].ticket.clone().unwrap();
        let batch = self.fetch_ticket(ticket).await?;
        let promised = info.clone().try_decode_schema().unwrap();
        assert_eq!(batch.schema().fields(), promised.fields(), "DoGet must send what GetFlightInfo promised");
        Ok(batch)
    }

    async fn fetch_ticket(&self, ticket: Ticket) -> Result<RecordBatch, Status> {
        let mut stream = self.flight().do_get(ticket).await.map_err(status)?;
        let mut batches = Vec::new();
        while let Some(batch) = stream.next().await {
            batches.push(batch.map_err(status)?);
        }
        let schema = stream.schema().cloned().expect("a schema is sent even without rows");
        Ok(concat_batches(&schema, &batches).unwrap())
    }

    async fn action(&self, name: &str) -> serde_json::Value {
        let results: Vec<_> =
            self.flight().do_action(Action::new(name, "")).await.unwrap().try_collect().await.unwrap();
        serde_json::from_slice(&results[0]).unwrap()
    }

    async fn shut_down(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(20), self.running).await.unwrap().unwrap().unwrap();
    }
}

struct TestLake {
    lake: Lake,
    folder: tempfile::TempDir,
}

impl TestLake {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = LakeSettings { customer_buckets: BUCKETS, ..LakeSettings::default() };
        let clock = Arc::new(FixedClock(moment()));
        let lake = Lake::create_or_open("lake", folder.path(), &StoreOptions::new(), settings, clock).await.unwrap();
        Self { lake, folder }
    }

    async fn write(&self, name: &str, rows: &RecordBatch, kind: ChangeKind, version: i64) {
        let partitioned = rows.schema().field_with_name("customer_bucket").is_ok();
        let spec = TableSpec {
            name: name.parse().unwrap(),
            schema: rows.schema(),
            partition_by: if partitioned { vec!["customer_bucket".to_owned()] } else { Vec::new() },
            comment: format!("{name} of a test"),
        };
        let table = self.lake.ensure_table(&spec).await.unwrap();
        let mut writer = TableWriter::new(&table, WriterSettings::default());
        writer.write(rows).await.unwrap();
        let files = writer.close().await.unwrap();
        let position = Position { app_id: "test".to_owned(), version };
        let change = Change {
            table: &table,
            position,
            fence: None,
            kind,
            files,
            schema: None,
            comment: None,
            metadata: serde_json::Map::new(),
        };
        assert!(matches!(self.lake.commit(change).await.unwrap(), CommitOutcome::Applied { .. }));
    }

    /// Takes a run away, as maintenance does with old ones.
    fn forget(&self, sequence: u64) {
        let runs = std::fs::read_dir(self.folder.path().join("lake/_holdfast/runs")).unwrap();
        let of_run = |path: &std::path::PathBuf| {
            let name = path.file_stem().unwrap().to_str().unwrap();
            name.parse() == Ok(sequence)
        };
        let files: Vec<_> = runs.map(|file| file.unwrap().path()).filter(of_run).collect();
        assert_eq!(files.len(), 1);
        std::fs::remove_file(&files[0]).unwrap();
    }

    /// Publishes every table as it is now.
    async fn publish(&self, sequence: u64) {
        let mut tables = Vec::new();
        for name in self.lake.tables().await.unwrap() {
            let table = self.lake.table(&name).await.unwrap().unwrap();
            tables.push(ManifestEntry {
                name,
                version: table.version(),
                rows: table.row_count(),
                is_of_production: false,
                looked_at: Default::default(),
            });
        }
        let run_id = format!("run-{sequence}");
        let manifest = Manifest { sequence, run_id, as_of: moment(), published_at: moment(), tables };
        self.lake.publish(manifest).await.unwrap();
    }
}

fn moment() -> DateTime<Utc> {
    "2026-01-31T08:00:00Z".parse().unwrap()
}

fn customer_id(number: i64) -> String {
    format!("c{number:02}")
}

fn customers() -> (ArrayRef, ArrayRef) {
    let ids: Vec<String> = (0..CUSTOMERS).map(customer_id).collect();
    let buckets: Int32Array = ids.iter().map(|id| Some(customer_bucket_of(id, BUCKETS))).collect();
    (Arc::new(StringArray::from(ids)), Arc::new(buckets))
}

/// Customer n has n orders and n.50 of spend; customer 3 has no last order.
fn features() -> RecordBatch {
    let (ids, buckets) = customers();
    let orders: Int64Array = (0..CUSTOMERS).collect::<Vec<_>>().into();
    let spend: Decimal128Array = (0..CUSTOMERS).map(|n| Some(i128::from(n) * 100 + 50)).collect();
    let last: TimestampMicrosecondArray = (0..CUSTOMERS).map(|n| (n != 3).then_some(n * 1_000_000)).collect();
    let timestamp = DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()));
    let comment = HashMap::from([("comment".to_owned(), "Orders of the last 90 days".to_owned())]);
    let schema = Schema::new(vec![
        Field::new("customer_id", DataType::Utf8, true),
        Field::new("orders_90d", DataType::Int64, true).with_metadata(comment),
        Field::new("spend_90d", DataType::Decimal128(18, 2), true),
        Field::new("last_order_at", timestamp, true),
        Field::new("customer_bucket", DataType::Int32, true),
    ]);
    let columns: Vec<ArrayRef> = vec![
        ids,
        Arc::new(orders),
        Arc::new(spend.with_precision_and_scale(18, 2).unwrap()),
        Arc::new(last.with_timezone("UTC")),
        buckets,
    ];
    RecordBatch::try_new(Arc::new(schema), columns).unwrap()
}

/// Customer n has the probability (n / 2, rounded down) / 10 + shift, so that there are ties.
fn scores(shift: f64) -> RecordBatch {
    let (ids, buckets) = customers();
    let probability: Float64Array = (0..CUSTOMERS).map(|n| Some((n / 2) as f64 / 10.0 + shift)).collect();
    let mut reasons = ListBuilder::new(StringBuilder::new());
    for n in 0..CUSTOMERS {
        reasons.append_value([Some(format!("reason {n}")), None]);
    }
    let reasons = reasons.finish();
    let schema = Schema::new(vec![
        Field::new("customer_id", DataType::Utf8, true),
        Field::new("churn_probability", DataType::Float64, true),
        Field::new("reasons", reasons.data_type().clone(), true),
        Field::new("customer_bucket", DataType::Int32, true),
    ]);
    RecordBatch::try_new(Arc::new(schema), vec![ids, Arc::new(probability), Arc::new(reasons), buckets]).unwrap()
}

fn one_number(value: i64) -> RecordBatch {
    let column: ArrayRef = Arc::new(Int64Array::from(vec![value]));
    let schema = Schema::new(vec![Field::new("run", DataType::Int64, true)]);
    RecordBatch::try_new(Arc::new(schema), vec![column]).unwrap()
}

fn statement(query: &str) -> FlightDescriptor {
    let command = CommandStatementQuery { query: query.to_owned(), transaction_id: None };
    FlightDescriptor::new_cmd(command.as_any().encode_to_vec())
}

fn table(name: &str) -> FlightDescriptor {
    FlightDescriptor::new_path(name.split('.').map(str::to_owned).collect())
}

fn status(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        other => panic!("not a status: {other}"),
    }
}

fn texts(batch: &RecordBatch, column: &str) -> Vec<String> {
    let column = batch.column_by_name(column).unwrap().as_string::<i32>();
    column.iter().map(|text| text.unwrap_or("null").to_owned()).collect()
}

fn numbers(batch: &RecordBatch, column: &str) -> Vec<Option<i64>> {
    batch.column_by_name(column).unwrap().as_primitive::<Int64Type>().iter().collect()
}

/// One row of values, named as drivers name them: by their place.
fn row(values: Vec<ArrayRef>) -> RecordBatch {
    let names = (0..).map(|place: usize| place.to_string());
    RecordBatch::try_from_iter_with_nullable(names.zip(values).map(|(name, value)| (name, value, true))).unwrap()
}

fn text(value: Option<&str>) -> ArrayRef {
    Arc::new(StringArray::from(vec![value]))
}

fn number(value: i64) -> ArrayRef {
    Arc::new(Int64Array::from(vec![value]))
}

#[tokio::test(flavor = "multi_thread")]
async fn every_table_is_listed_with_its_schema_and_rows() {
    let service = Service::start().await;
    let mut client = service.flight();
    let flights: Vec<FlightInfo> = client.list_flights("").await.unwrap().try_collect().await.unwrap();
    let named: HashMap<String, FlightInfo> =
        flights.into_iter().map(|flight| (flight.flight_descriptor.clone().unwrap().path.join("."), flight)).collect();
    assert_eq!(named.len(), 2);
    for (name, flight) in &named {
        assert_eq!(flight.total_records, CUSTOMERS);
        assert!(flight.total_bytes > 0);
        let rows = service.fetch(flight).await.unwrap();
        assert_eq!(rows.num_rows() as i64, flight.total_records, "{name}");
        let schema = client.get_schema(table(name)).await.unwrap();
        assert_eq!(schema, flight.clone().try_decode_schema().unwrap());
        let info = client.get_flight_info(table(name)).await.unwrap();
        assert_eq!((info.total_records, info.total_bytes), (flight.total_records, flight.total_bytes));
    }
    let schema = named["features.churn_v1"].clone().try_decode_schema().unwrap();
    assert_eq!(schema.field_with_name("spend_90d").unwrap().data_type(), &DataType::Decimal128(18, 2));
    assert_eq!(schema.field_with_name("orders_90d").unwrap().metadata()["comment"], "Orders of the last 90 days");

    let some: Vec<FlightInfo> = client.list_flights("risk.").await.unwrap().try_collect().await.unwrap();
    assert_eq!(some.len(), 1);

    let error = client.get_flight_info(table("risk.churn_scores")).await.map_err(status).unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.message().contains("did you mean risk.churn_score?"), "{}", error.message());
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn features_come_in_request_order_with_unknown_customers_marked() {
    let service = Service::start().await;
    let mut client = service.flight();
    let ask = |ids: &[&str], features: &[&str]| FeaturesForCustomers {
        feature_view: "features.churn_v1".to_owned(),
        customer_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
        features: features.iter().map(|feature| (*feature).to_owned()).collect(),
    };
    let command = ask(&["c07", "nobody", "c03", "c07", "", "c19"], &["last_order_at", "orders_90d"]);
    let info = client.get_flight_info(FlightDescriptor::new_cmd(command.to_command())).await.unwrap();
    assert_eq!(info.total_records, 6);
    let rows = service.fetch(&info).await.unwrap();
    let names: Vec<String> = rows.schema().fields().iter().map(|field| field.name().clone()).collect();
    assert_eq!(names, ["customer_id", "last_order_at", "orders_90d", "status"]);
    assert_eq!(texts(&rows, "customer_id"), ["c07", "nobody", "c03", "c07", "", "c19"]);
    assert_eq!(numbers(&rows, "orders_90d"), [Some(7), None, Some(3), Some(7), None, Some(19)]);
    assert_eq!(texts(&rows, "status"), ["PRESENT", "NOT_FOUND", "PRESENT", "PRESENT", "NOT_FOUND", "PRESENT"]);
    // A feature that is null is not a customer that is missing.
    assert!(rows.column_by_name("last_order_at").unwrap().is_null(2));

    // In one round trip, with all features; the bucket is no feature.
    let rows = service.fetch_ticket(Ticket::new(ask(&["c01"], &[]).to_command())).await.unwrap();
    assert_eq!(rows.num_columns(), 5);
    assert!(rows.column_by_name("customer_bucket").is_none());
    let rows = service.fetch_ticket(Ticket::new(ask(&["nobody", "c"], &[]).to_command())).await.unwrap();
    assert_eq!(texts(&rows, "status"), ["NOT_FOUND", "NOT_FOUND"]);
    assert_eq!(service.fetch_ticket(Ticket::new(ask(&[], &[]).to_command())).await.unwrap().num_rows(), 0);

    let too_many: Vec<&str> = vec!["c01"; 10_001];
    for (command, expected) in [
        (ask(&["c01"], &["orders_9d"]), "did you mean `orders_90d`?"),
        (ask(&["c01"], &["orders_90d", "orders_90d"]), "asked for twice"),
        (ask(&["c01"], &["customer_id"]), "no feature `customer_id`"),
        (ask(&too_many, &[]), "may be 10000"),
        (FeaturesForCustomers { feature_view: "churn".to_owned(), ..ask(&["c01"], &[]) }, "not a table name"),
    ] {
        let descriptor = FlightDescriptor::new_cmd(command.to_command());
        let error = client.get_flight_info(descriptor).await.map_err(status).unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert!(error.message().contains(expected), "{}", error.message());
    }
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_with_several_rows_for_a_customer_cannot_answer_features() {
    let service = Service::start().await;
    service.lake.write("features.churn_v1", &features(), ChangeKind::Append, 2).await;
    service.lake.publish(2).await;
    service.action("refresh").await;
    let command = FeaturesForCustomers {
        feature_view: "features.churn_v1".to_owned(),
        customer_ids: vec!["c01".to_owned()],
        features: Vec::new(),
    };
    let error = service.fetch_ticket(Ticket::new(command.to_command())).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert!(error.message().contains("keyed by customer_id"), "{}", error.message());
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn scores_above_come_highest_first() {
    let service = Service::start().await;
    let mut client = service.flight();
    let command = ScoresAbove { threshold: 0.7, limit: 5 };
    let info = client.get_flight_info(FlightDescriptor::new_cmd(command.to_command())).await.unwrap();
    let rows = service.fetch(&info).await.unwrap();
    assert_eq!(texts(&rows, "customer_id"), ["c18", "c19", "c16", "c17", "c14"]);
    let probabilities = rows.column_by_name("churn_probability").unwrap().as_primitive::<Float64Type>();
    assert!(probabilities.iter().all(|probability| probability.unwrap() >= 0.7));

    let rows = service.fetch_ticket(Ticket::new(ScoresAbove { threshold: 0.7, limit: 0 }.to_command())).await.unwrap();
    assert_eq!(rows.num_rows(), 6);
    for threshold in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        let ticket = Ticket::new(ScoresAbove { threshold, limit: 1 }.to_command());
        assert_eq!(service.fetch_ticket(ticket).await.unwrap_err().code(), Code::InvalidArgument);
    }
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_reads_the_run_it_was_made_for_until_that_run_is_gone() {
    let service = Service::start_with(ServeSettings {
        reload_interval: Duration::from_secs(3600),
        kept_runs: 2,
        ..ServeSettings::default()
    })
    .await;
    let mut client = service.flight();
    let query = "select max(churn_probability) as top from risk.churn_score";
    let top = |rows: RecordBatch| rows.column(0).as_primitive::<Float64Type>().value(0);
    let sql = client.get_flight_info(statement(query)).await.unwrap();
    let whole = client.get_flight_info(table("risk.churn_score")).await.unwrap();

    service.lake.write("risk.churn_score", &scores(0.05), ChangeKind::ReplaceAll, 2).await;
    // Committed but not published: nobody sees it.
    assert_eq!(service.action("refresh").await["swapped"], false);
    assert!((top(service.select(query).await.unwrap()) - 0.9).abs() < 1e-9);

    service.lake.publish(2).await;
    let health = service.action("refresh").await;
    assert_eq!((health["swapped"].clone(), health["run_sequence"].clone()), (true.into(), 2.into()));
    assert!((top(service.select(query).await.unwrap()) - 0.95).abs() < 1e-9);
    // The tickets of run 1 still read run 1.
    assert!((top(service.fetch(&sql).await.unwrap()) - 0.9).abs() < 1e-9);
    let old = service.fetch(&whole).await.unwrap();
    let old = old.column_by_name("churn_probability").unwrap().as_primitive::<Float64Type>();
    assert!(old.iter().all(|probability| probability.unwrap() < 0.91));

    let second = client.get_flight_info(statement(query)).await.unwrap();
    for run in [3, 4] {
        service.lake.publish(run).await;
        service.action("refresh").await;
    }
    // Two newer ones are at hand; run 1 is read from the lake again.
    assert!((top(service.fetch(&sql).await.unwrap()) - 0.9).abs() < 1e-9);
    service.lake.forget(2);
    let error = service.fetch(&second).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    assert!(error.message().contains("ask for a new ticket"), "{}", error.message());
    service.shut_down().await;
}

/// The highest probability, to two digits.
fn top(rows: &RecordBatch) -> String {
    format!("{:.2}", rows.column(0).as_primitive::<Float64Type>().value(0))
}

#[tokio::test(flavor = "multi_thread")]
async fn sql_selects_and_is_read_only() {
    let service = Service::start().await;
    let rows = service
        .select(
            "select s.customer_id, f.spend_90d, s.reasons from risk.churn_score s \
             join features.churn_v1 f using (customer_id) where s.churn_probability > 0.85 order by 1",
        )
        .await
        .unwrap();
    assert_eq!(texts(&rows, "customer_id"), ["c18", "c19"]);
    assert_eq!(rows.schema().field(0).data_type(), &DataType::Utf8, "no view types on the wire");
    // No rows still have a schema.
    let none = service.select("select customer_id from risk.churn_score where churn_probability > 2").await.unwrap();
    assert_eq!((none.num_rows(), none.num_columns()), (0, 1));
    assert_eq!(
        numbers(&service.select("select 1 as one, arrow_cast('x', 'Utf8View') as x").await.unwrap(), "one"),
        [Some(1)]
    );

    let mut sql = service.sql();
    let mut prepared = sql.prepare("select count(*) as n from features.churn_v1".to_owned(), None).await.unwrap();
    assert_eq!(prepared.dataset_schema().unwrap().field(0).name(), "n");
    for _ in 0..2 {
        let info = prepared.execute().await.unwrap();
        assert_eq!(numbers(&service.fetch(&info).await.unwrap(), "n"), [Some(CUSTOMERS)]);
    }
    prepared.close().await.unwrap();

    for refused in [
        "create table core.x as select 1",
        "create view x as select 1",
        "insert into risk.churn_score values ('a', 1, null, 0)",
        "delete from risk.churn_score",
        "update risk.churn_score set churn_probability = 0",
        "drop table risk.churn_score",
        "truncate table risk.churn_score",
        "copy (select 1) to 'x.csv'",
        "create external table x stored as csv location '/etc/passwd'",
        "set datafusion.execution.batch_size = 1",
        "explain analyze insert into risk.churn_score select * from risk.churn_score",
        "select * from '/etc/passwd'",
        "select 1; select 2",
    ] {
        let error = service.select(refused).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{refused}: {}", error.message());
        let error = sql.prepare(refused.to_owned(), None).await.map(|_| ()).unwrap_err();
        assert!(
            error.to_string().contains("InvalidArgument") || error.to_string().contains("invalid"),
            "{refused}: {error}"
        );
    }
    let error = sql.execute_update("delete from risk.churn_score".to_owned(), None).await.unwrap_err();
    assert!(error.to_string().contains("read-only"), "{error}");
    let update = CommandStatementUpdate { query: "delete from risk.churn_score".to_owned(), transaction_id: None };
    let descriptor = FlightDescriptor::new_cmd(update.as_any().encode_to_vec());
    assert_eq!(
        service.flight().get_flight_info(descriptor).await.map_err(status).unwrap_err().code(),
        Code::Unimplemented
    );
    assert_eq!(
        numbers(&service.select("select count(*) as n from risk.churn_score").await.unwrap(), "n"),
        [Some(CUSTOMERS)]
    );

    for (wrong, expected) in [
        ("select churn_probabilty from risk.churn_score", "line 1, column 8"),
        ("select * from risk.churn_scor", "did you mean `risk.churn_score`?"),
        ("selec 1", "found: selec"),
        ("select $1", "parameters"),
    ] {
        let error = service.select(wrong).await.unwrap_err();
        assert!(error.message().contains(expected), "{wrong}: {}", error.message());
    }
    // A mistake that shows only while the query runs reaches the client through the stream.
    let error = service.select("select 1 / (orders_90d - 7) from features.churn_v1").await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument, "{}", error.message());
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_that_was_altered_or_comes_from_another_lake_is_refused() {
    let (service, other) = (Service::start().await, Service::start().await);
    let query = "select count(*) as n from risk.churn_score";
    let info = service.flight().get_flight_info(statement(query)).await.unwrap();
    let good = info.endpoint[0].ticket.clone().unwrap().ticket;
    for at in 0..good.len() {
        for change in [0x01, 0x80, 0xff] {
            let mut altered = good.to_vec();
            altered[at] ^= change;
            let error = service.fetch_ticket(Ticket::new(altered)).await.expect_err("an altered ticket was taken");
            assert!(matches!(error.code(), Code::InvalidArgument | Code::Unimplemented), "{at}: {error}");
        }
        let error = service.fetch_ticket(Ticket::new(good[..at].to_vec())).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{at}: {error}");
    }
    let error = other.fetch_ticket(Ticket::new(good.clone())).await.unwrap_err();
    assert!(error.message().contains("a ticket that this lake's service did not make"), "{}", error.message());
    assert!(error.message().contains("GetFlightInfo"), "{}", error.message());
    other.shut_down().await;

    // Another service of the same lake reads it, with nothing said to either.
    let (mut replica, running) = replica_of(&service).await;
    let mut stream = replica.do_get(Ticket::new(good)).await.unwrap();
    let rows = stream.next().await.unwrap().unwrap();
    assert_eq!(numbers(&rows, "n"), [Some(CUSTOMERS)]);
    let mut prepared = service.sql().prepare("select ? as value".to_owned(), None).await.unwrap();
    prepared.set_parameters(row(vec![number(7)])).unwrap();
    let bound = prepared.execute().await.unwrap().flight_descriptor.unwrap();
    let info = replica.get_flight_info(bound).await.unwrap();
    let mut stream = replica.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    assert_eq!(numbers(&stream.next().await.unwrap().unwrap(), "value"), [Some(7)]);
    running.abort();
    service.shut_down().await;
}

/// A client of another service of the same lake.
async fn replica_of(service: &Service) -> (FlightClient, JoinHandle<Result<(), ServeError>>) {
    let reader = LakeReader::open(service.lake.lake.clone(), SessionSettings::default()).await.unwrap();
    let listener = bind("127.0.0.1:0", None).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = serve(Arc::new(reader), None, ServeSettings::default(), listener, std::future::pending());
    let running = tokio::spawn(serving);
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    (FlightClient::new(channel), running)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_offered_is_refused_and_what_is_broken_is_explained() {
    let service = Service::start().await;
    let mut client = service.flight();
    let error = client.do_action(Action::new("drop_everything", "")).await.map(|_| ()).map_err(status).unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);
    for bytes in [&b""[..], b"\x00\xff", b"select 1", &[0x0a, 0xff, 0xff, 0xff, 0x7f]] {
        let error = service.fetch_ticket(Ticket::new(bytes.to_vec())).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
    }
    let broken =
        Any { type_url: "type.googleapis.com/holdfast.v1.ScoresAbove".to_owned(), value: vec![0x09, 1].into() };
    let error = service.fetch_ticket(Ticket::new(broken.encode_to_vec())).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let unknown = Any { type_url: "type.googleapis.com/acme.Thing".to_owned(), value: Vec::new().into() };
    let error = service.fetch_ticket(Ticket::new(unknown.encode_to_vec())).await.unwrap_err();
    assert_eq!(error.code(), Code::Unimplemented);

    let actions: Vec<_> = client.list_actions().await.unwrap().try_collect().await.unwrap();
    let names: Vec<String> = actions.into_iter().map(|action| action.r#type).collect();
    assert_eq!(
        names,
        [
            "health",
            "list_features",
            "describe_features",
            "get_dataset",
            "refresh",
            "CreatePreparedStatement",
            "ClosePreparedStatement",
            "BeginTransaction",
            "EndTransaction",
            "CancelFlightInfo",
            "CancelQuery",
            "SetSessionOptions",
            "GetSessionOptions",
            "CloseSession"
        ]
    );
    let health = service.action("health").await;
    assert_eq!((health["run_id"].clone(), health["tables"].clone()), ("run-1".into(), 2.into()));
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_required_when_there_is_one_and_health_stays_open() {
    let token = Token::parse("a-token-of-some-length").unwrap();
    let service = Service::start_with(ServeSettings { token: Some(token), ..ServeSettings::default() }).await;
    for header in [None, Some("Bearer wrong-token-of-length"), Some("Basic YTpi"), Some("a-token-of-some-length")] {
        let mut client = service.flight();
        if let Some(header) = header {
            client.add_header("authorization", header).unwrap();
        }
        let error = client.get_flight_info(table("risk.churn_score")).await.map_err(status).unwrap_err();
        assert_eq!(error.code(), Code::Unauthenticated, "{header:?}");
        assert!(!error.message().contains("a-token"), "the token is never told");
        assert_eq!(
            client.list_flights("").await.map(|_| ()).map_err(status).unwrap_err().code(),
            Code::Unauthenticated
        );
        let ticket = Ticket::new(ScoresAbove { threshold: 0.0, limit: 0 }.to_command());
        assert_eq!(client.do_get(ticket).await.map(|_| ()).map_err(status).unwrap_err().code(), Code::Unauthenticated);
    }
    let mut client = service.flight();
    client.add_header("authorization", "Bearer a-token-of-some-length").unwrap();
    assert_eq!(client.get_flight_info(table("risk.churn_score")).await.unwrap().total_records, CUSTOMERS);
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_address_without_a_token_and_a_taken_port_are_refused() {
    let error = bind("0.0.0.0:0", None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    assert!(error.to_string().contains("--token-file"), "{error}");

    // A listener that somebody else opened is checked as well.
    let service = Service::start().await;
    let open = tokio::net::TcpListener::bind("0.0.0.0:0").await.unwrap();
    let refused =
        serve(Arc::clone(&service.reader), None, ServeSettings::default(), open, std::future::pending()).await;
    assert!(matches!(refused, Err(ServeError::Exposed { .. })));

    let error = bind(&service.address, None).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidConfig);
    let text = error.to_string();
    assert!(text.contains(&service.address) && text.contains("another program is listening"), "{text}");
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_is_never_seen_half() {
    let service =
        Service::start_with(ServeSettings { reload_interval: Duration::from_millis(100), ..ServeSettings::default() })
            .await;
    service.lake.write("core.left", &one_number(2), ChangeKind::Append, 1).await;
    service.lake.write("core.right", &one_number(2), ChangeKind::Append, 1).await;
    service.lake.publish(2).await;
    service.action("refresh").await;

    let read = async {
        let mut seen = Vec::new();
        while seen.last() != Some(&8) {
            let rows = service.select("select l.run as l, r.run as r from core.left l, core.right r").await.unwrap();
            let (left, right) = (numbers(&rows, "l"), numbers(&rows, "r"));
            assert_eq!(left.len(), 1, "a table in the middle of a replacement was seen");
            assert_eq!(left, right, "tables of different runs were seen together");
            seen.push(left[0].unwrap());
        }
        seen
    };
    let write = async {
        for run in 3..=8 {
            service.lake.write("core.left", &one_number(run), ChangeKind::ReplaceAll, run).await;
            tokio::time::sleep(Duration::from_millis(30)).await;
            service.lake.write("core.right", &one_number(run), ChangeKind::ReplaceAll, run).await;
            service.lake.publish(u64::try_from(run).unwrap()).await;
        }
    };
    let (seen, ()) = tokio::time::timeout(Duration::from_secs(60), async { tokio::join!(read, write) }).await.unwrap();
    assert!(seen.is_sorted(), "a reader went back in time: {seen:?}");
    service.shut_down().await;
}

/// So many rows that neither deadline nor client waits for their end.
const ENDLESS: &str =
    "select a.value as a, b.value as b from generate_series(1, 1000000) a, generate_series(1, 1000000) b";

#[tokio::test(flavor = "multi_thread")]
async fn the_deadline_covers_the_whole_stream_and_a_dropped_client_frees_its_place() {
    let service = Service::start_with(ServeSettings {
        query_timeout: Duration::from_secs(2),
        max_concurrent_queries: 1,
        max_waiting_queries: 0,
        ..ServeSettings::default()
    })
    .await;
    let info = service.flight().get_flight_info(statement(ENDLESS)).await.unwrap();
    let ticket = || info.endpoint[0].ticket.clone().unwrap();

    // The client reads nothing: the deadline is kept all the same, and told once it reads.
    let mut stream = service.flight().do_get(ticket()).await.unwrap();
    let busy = service.flight().do_get(ticket()).await.map(|_| ()).map_err(status).unwrap_err();
    assert_eq!(busy.code(), Code::ResourceExhausted);
    tokio::time::sleep(Duration::from_millis(2300)).await;
    let second = service.flight().do_get(ticket()).await.unwrap();
    let error = loop {
        match stream.next().await.expect("the stream ends with an error") {
            Ok(_) => {}
            Err(error) => break status(error),
        }
    };
    assert_eq!(error.code(), Code::DeadlineExceeded, "{}", error.message());

    // The client goes away: its place is free well before the deadline.
    drop(second);
    let began = std::time::Instant::now();
    while service.flight().do_get(ticket()).await.is_err() {
        assert!(began.elapsed() < Duration::from_millis(1500), "the place was not freed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn shutdown_lets_short_streams_end_and_stops_long_ones() {
    let mut service =
        Service::start_with(ServeSettings { drain_timeout: Duration::from_millis(500), ..ServeSettings::default() })
            .await;
    let mut client = service.flight();
    let short = client.get_flight_info(table("risk.churn_score")).await.unwrap();
    let long = client.get_flight_info(statement(ENDLESS)).await.unwrap();
    let mut short = client.do_get(short.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    let mut long = client.do_get(long.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    long.next().await.unwrap().unwrap();

    service.stop.take().unwrap().send(()).unwrap();
    let rows: usize =
        (&mut short).map(|batch| batch.unwrap().num_rows()).fold(0, |sum, rows| async move { sum + rows }).await;
    assert_eq!(rows as i64, CUSTOMERS);
    let error = loop {
        match long.next().await.expect("the stream ends with an error") {
            Ok(_) => {}
            Err(error) => break status(error),
        }
    };
    assert_eq!(error.code(), Code::Unavailable, "{}", error.message());
    drop((short, long, client));
    tokio::time::timeout(Duration::from_secs(10), service.running).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn large_answers_are_cut_to_what_clients_accept() {
    let service = Service::start().await;
    let query = "select value, repeat('x', 100) as text from generate_series(1, 200000)";
    let info = service.flight().get_flight_info(statement(query)).await.unwrap();
    // This client refuses messages beyond 4 MiB.
    let mut stream = service.flight().do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    let (mut rows, mut sum) = (0, 0);
    while let Some(batch) = stream.next().await {
        let batch = batch.map_err(status).unwrap();
        assert!(batch.num_rows() <= 16_384);
        rows += batch.num_rows();
        sum += numbers(&batch, "value").into_iter().flatten().sum::<i64>();
    }
    assert_eq!((rows, sum), (200_000, 200_000 * 200_001 / 2));
    service.shut_down().await;
}
