//! Record batches put over Flight: the real binary, real connections, real kills, and rows read back from the lake.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::array::{
    ArrayRef, Decimal128Array, DictionaryArray, Float64Array, Int32Array, Int64Array, ListBuilder, RecordBatch,
    StringArray, StringBuilder, StructArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Int32Type, Schema, TimeUnit};
use arrow_flight::encode::{DictionaryHandling, FlightDataEncoderBuilder};
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{
    CommandStatementIngest, CommandStatementUpdate, DoPutUpdateResult, ProstMessageExt, SqlInfo,
    TableDefinitionOptions, TableExistsOption, TableNotExistOption,
};
use arrow_flight::utils::batches_to_flight_data;
use arrow_flight::{FlightClient, FlightData, FlightDescriptor, PutResult};
use chrono::Utc;
use holdfast_ingest::{PutInbox, SourceSpec, Stored};
use holdfast_lake::{Lake, LakeSettings, StoreOptions, open_store};
use holdfast_testkit::{Fault, FaultStore, Random};
use holdfast_types::{ErrorKind, FixedClock};
use prost::Message;
use serde_json::{Value, json};
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};
use tonic_types::StatusExt;

use crate::{commits, ended, holdfast_binary, rows, succeed};

const SALES: &str = r#"
kind = "orders"
path = "sales/*.ndjson"
format = "ndjson"
event_time = "at"

[columns]
id = "string"
at = "timestamp"
amount = "decimal(12,2)"
quantity = "int32"
"#;

const VISITS: &str = r#"
kind = "behaviour"
path = "visits/*.csv"
format = "csv"

[columns]
id = { type = "string", from = "VisitId" }
pages = "int64"
seconds = "float64"
"#;

const BASKETS: &str = r#"
kind = "orders"
path = "baskets/*.ndjson"
format = "ndjson"

[columns]
id = "string"
paid = "decimal(8,2)"
skus = "list<string>"
buyer = { type = "struct<name string, age int32>", pii = true }
"#;

/// A project of three sources and one stage, and its lake with a published run.
fn project() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    write("holdfast.toml", "");
    write("pipelines/churn/pipeline.toml", "stages = \"sql\"\n");
    write("pipelines/churn/identity.toml", "priority = [\"phone\"]\n[types.phone]\n");
    write("pipelines/churn/sources/sales.toml", SALES);
    write("pipelines/churn/sources/visits.toml", VISITS);
    write("pipelines/churn/sources/baskets.toml", BASKETS);
    write("sql/core/sales.sql", "select id, amount from raw.sales\n");
    write(
        "in/sales/1.ndjson",
        "{\"id\":\"file\",\"at\":\"2026-01-01T00:00:00Z\",\"amount\":\"1.00\",\"quantity\":1}\n",
    );
    write("in/visits/1.csv", "VisitId,pages,seconds\n");
    write("in/baskets/1.ndjson", "{\"id\":\"file\"}\n");
    succeed(on(folder.path()).args(["ingest", "--from"]).arg(folder.path().join("in")));
    succeed(on(folder.path()).arg("run"));
    folder
}

fn on(folder: &Path) -> Command {
    let mut command = Command::new(holdfast_binary());
    command.arg("--project").arg(folder).arg("--lake").arg(folder.join("lake"));
    for name in ["OTEL_EXPORTER_OTLP_ENDPOINT", "HOLDFAST_LOG", "HOLDFAST_ABORT_AFTER"] {
        command.env_remove(name);
    }
    command
}

/// A running `holdfast serve`. Killed when dropped.
struct Server {
    child: Child,
    address: String,
    log: Arc<Mutex<String>>,
}

impl Server {
    fn start(folder: &Path) -> Self {
        Self::start_with(folder, &["--accept-puts"])
    }

    fn start_with(folder: &Path, arguments: &[&str]) -> Self {
        let mut command = on(folder);
        command.args(["serve", "--listen", "127.0.0.1:0"]).args(arguments);
        if arguments.contains(&"--accept-puts") {
            command.args(["--ingest-interval-ms", "50"]);
        }
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let log = Arc::new(Mutex::new(String::new()));
        let address = loop {
            let line = lines.next().unwrap_or_else(|| panic!("it did not start: {}", log.lock().unwrap())).unwrap();
            if let Some((_, rest)) = line.split_once("grpc://") {
                break rest.split(',').next().unwrap().to_owned();
            }
            log.lock().unwrap().push_str(&line);
        };
        let kept = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                kept.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        Self { child, address, log }
    }

    /// Stops it as an operator does and answers how long that took.
    fn stop(mut self) -> Duration {
        let started = Instant::now();
        succeed(Command::new("kill").arg("-TERM").arg(self.child.id().to_string()));
        let status = ended(&mut self.child);
        assert!(status.success(), "it ended with {status}: {}", self.log.lock().unwrap());
        started.elapsed()
    }

    /// kill -9.
    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// The most memory that it ever held, in MiB.
    fn peak_mib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One call of DoPut.
struct Put {
    messages: UnboundedSender<FlightData>,
    answers: Streaming<PutResult>,
    schema: Schema,
}

impl Put {
    async fn open(address: &str, source: &str, schema: &Schema) -> Result<Self, Status> {
        let descriptor = FlightDescriptor::new_path(vec!["raw".to_owned(), source.to_owned()]);
        Self::open_with(address, descriptor, schema, &[]).await
    }

    async fn open_with(
        address: &str,
        descriptor: FlightDescriptor,
        schema: &Schema,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, Status> {
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await;
        let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
        let (messages, receiver) = mpsc::unbounded_channel();
        let first = batches_to_flight_data(schema, Vec::new()).unwrap().remove(0).with_descriptor(descriptor);
        messages.send(first).unwrap();
        let mut request = Request::new(UnboundedReceiverStream::new(receiver));
        for (name, value) in headers {
            request.metadata_mut().insert(*name, value.parse().unwrap());
        }
        let answers = FlightServiceClient::new(channel).do_put(request).await?.into_inner();
        Ok(Self { messages, answers, schema: schema.clone() })
    }

    /// Whether the connection was still there.
    fn send(&self, position: Value, rows: &RecordBatch) -> bool {
        let mut messages = batches_to_flight_data(&self.schema, vec![rows.clone()]).unwrap();
        let last = messages.len() - 1;
        if !position.is_null() {
            messages[last].app_metadata = position.to_string().into();
        }
        messages.into_iter().skip(1).all(|message| self.messages.send(message).is_ok())
    }

    /// The next acknowledgement; `None` when there is no more.
    async fn acknowledgement(&mut self) -> Result<Option<Value>, Status> {
        let answer = tokio::time::timeout(Duration::from_secs(60), self.answers.message()).await;
        let answer = answer.expect("it answers within a minute")?;
        Ok(answer.map(|answer| serde_json::from_slice(&answer.app_metadata).unwrap()))
    }

    /// Sends no more, and answers the acknowledgements that come, and the error that ended them.
    async fn finish(self) -> (Vec<Value>, Option<Status>) {
        let Self { messages, mut answers, .. } = self;
        drop(messages);
        let mut found = Vec::new();
        loop {
            match answers.message().await {
                Ok(Some(answer)) => found.push(serde_json::from_slice(&answer.app_metadata).unwrap()),
                Ok(None) => return (found, None),
                Err(status) => return (found, Some(status)),
            }
        }
    }
}

/// Puts batches in one call and answers their acknowledgements.
async fn put(address: &str, source: &str, batches: &[(Value, RecordBatch)]) -> (Vec<Value>, Option<Status>) {
    let put = match Put::open(address, source, &batches[0].1.schema()).await {
        Ok(put) => put,
        Err(status) => return (Vec::new(), Some(status)),
    };
    for (position, rows) in batches {
        put.send(position.clone(), rows);
    }
    put.finish().await
}

async fn accepted(address: &str, source: &str, batches: &[(Value, RecordBatch)]) -> Vec<Value> {
    let (acknowledgements, error) = put(address, source, batches).await;
    assert!(error.is_none(), "{error:?}");
    acknowledgements
}

async fn refused(address: &str, source: &str, batches: &[(Value, RecordBatch)]) -> Status {
    let (acknowledgements, error) = put(address, source, batches).await;
    error.unwrap_or_else(|| panic!("it was taken: {acknowledgements:?}"))
}

fn sales(ids: &[impl AsRef<str>]) -> RecordBatch {
    let schema = Schema::new(vec![
        Field::new("id", DataType::Utf8, true),
        Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
        Field::new("amount", DataType::Decimal128(12, 2), true),
        Field::new("quantity", DataType::Int32, true),
    ]);
    let count = ids.len();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(ids.iter().map(|id| Some(id.as_ref())).collect::<StringArray>()),
        Arc::new(TimestampMicrosecondArray::from(vec![1_769_904_000_000_000; count]).with_timezone("UTC")),
        Arc::new(Decimal128Array::from(vec![1_990; count]).with_precision_and_scale(12, 2).unwrap()),
        Arc::new(Int32Array::from(vec![2; count])),
    ];
    RecordBatch::try_new(Arc::new(schema), columns).unwrap()
}

/// How often each id is in a table.
fn stored(folder: &Path, table: &str) -> BTreeMap<String, u64> {
    rows(folder, &format!("select id, count(*) as times from {table} where id <> 'file' group by 1"))
        .into_iter()
        .map(|row| (row["id"].as_str().unwrap().to_owned(), row["times"].as_u64().unwrap()))
        .collect()
}

fn once(ids: impl IntoIterator<Item = impl std::fmt::Display>) -> BTreeMap<String, u64> {
    ids.into_iter().map(|id| (id.to_string(), 1)).collect()
}

/// The objects of a source that were put, without their folders.
fn objects(folder: &Path, source: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![folder.join("lake/_holdfast/inbox/churn").join(source).join("put")];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                found.push(path.file_name().unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

/// Read = stored + quarantined, for each batch of a source (ING-3).
fn ing_3(folder: &Path, source: &str) -> (u64, u64) {
    let query = format!(
        "select sum(rows_read) as read, sum(rows_stored) as stored, sum(rows_quarantined) as refused \
         from metric.ingest_batches where source = '{source}'"
    );
    let found = &rows(folder, &query)[0];
    let number = |name: &str| found[name].as_u64().unwrap();
    assert_eq!(number("read"), number("stored") + number("refused"));
    let count = |table: &str| rows(folder, &format!("select count(*) as n from {table}"))[0]["n"].as_u64().unwrap();
    assert_eq!(count(&format!("raw.{source}")), number("stored"));
    assert_eq!(count(&format!("quarantine.{source}")), number("refused"));
    (number("stored"), number("refused"))
}

/// A program that puts the batches of one stream, and puts those again that were not acknowledged.
struct Client {
    name: String,
    random: Random,
    /// Batches up to this one are acknowledged.
    acknowledged: u64,
}

impl Client {
    fn ids(&self, batch: u64) -> Vec<String> {
        (0..1 + batch * 7 % 5).map(|row| format!("{}-{batch}-{row}", self.name)).collect()
    }

    /// Puts until the server is gone, or `last` is acknowledged.
    async fn put_until_gone(&mut self, address: &str, last: u64) {
        let schema = sales(&["x"]).schema();
        while self.acknowledged < last {
            let Ok(mut put) = Put::open(address, "sales", &schema).await else { return };
            // Some that are known, and some that are new; then another call.
            let first = self.acknowledged.saturating_sub(self.random.below(4));
            let end = (self.acknowledged + 1 + self.random.below(12)).min(last);
            for batch in first..end {
                let mut position = json!({ "batch": batch });
                if batch == first {
                    position["stream"] = self.name.clone().into();
                }
                if !put.send(position, &sales(&self.ids(batch))) {
                    return;
                }
            }
            for batch in first..end {
                match put.acknowledgement().await {
                    Ok(Some(answer)) => {
                        assert_eq!(answer["batch"], batch);
                        assert_eq!(answer["stream"], self.name);
                        if batch < self.acknowledged {
                            assert_eq!(answer["outcome"], "known", "batch {batch} of {}", self.name);
                        }
                        self.acknowledged = self.acknowledged.max(batch + 1);
                    }
                    // The server is gone, and with it the answer.
                    _ => return,
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ing_1_and_ing_2_hold_for_puts_when_the_server_is_killed_at_any_moment() {
    const SEED: u64 = 20_261_126;
    const ROUNDS: u64 = 5;
    eprintln!("seed {SEED}");
    let folder = project();
    let mut random = Random::new(SEED);
    let mut clients: Vec<Client> = (0..4)
        .map(|at| Client { name: format!("till-{at}"), random: Random::new(SEED + at), acknowledged: 0 })
        .collect();
    for _ in 0..ROUNDS {
        let server = Server::start(folder.path());
        let working: Vec<_> = clients
            .into_iter()
            .map(|mut client| {
                let address = server.address.clone();
                tokio::spawn(async move {
                    client.put_until_gone(&address, u64::MAX).await;
                    client
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(100 + random.below(900))).await;
        server.kill();
        clients = Vec::new();
        for client in working {
            clients.push(client.await.unwrap());
        }
    }
    let server = Server::start(folder.path());
    let mut expected = Vec::new();
    for client in &mut clients {
        // What the last server did not acknowledge may be stored, too: the client puts it again and goes on behind it.
        let last = client.acknowledged + 20;
        client.put_until_gone(&server.address, last).await;
        assert_eq!(client.acknowledged, last, "nobody kills it now");
        expected.extend((0..last).flat_map(|batch| client.ids(batch)));
    }
    server.stop();
    eprintln!("{} rows", expected.len());
    assert!(expected.len() > 300, "too little load to show anything: {}", expected.len());
    assert_eq!(stored(folder.path(), "raw.sales"), once(expected));
    ing_3(folder.path(), "sales");
}

#[tokio::test(flavor = "multi_thread")]
async fn ing_2_a_batch_that_comes_again_is_known_after_a_restart_and_to_another_server() {
    let folder = project();
    let server = Server::start(folder.path());
    let batch = |number: u64| (json!({ "stream": "s1", "batch": number }), sales(&[format!("a{number}")]));
    let answers = accepted(&server.address, "sales", &[batch(3), batch(4), batch(3)]).await;
    let said = |batch: u64, outcome: &str| json!({ "stream": "s1", "batch": batch, "rows": 1, "outcome": outcome });
    assert_eq!(answers[1], said(4, "stored"));
    // Batches of a stream are stored beside each other: which of two equal ones is first is open.
    let twice = [&answers[0], &answers[2]];
    assert!([said(3, "stored"), said(3, "known")].iter().all(|said| twice.contains(&said)), "{twice:?}");
    server.kill();

    // Two servers, the same batches to both at the same time.
    let (left, right) = (Server::start(folder.path()), Server::start(folder.path()));
    let batches: Vec<_> = (0..12).map(batch).collect();
    let (answers, others) =
        tokio::join!(accepted(&left.address, "sales", &batches), accepted(&right.address, "sales", &batches));
    for (number, (one, other)) in answers.iter().zip(&others).enumerate() {
        let outcomes = [one["outcome"].as_str().unwrap(), other["outcome"].as_str().unwrap()];
        let times_stored = outcomes.iter().filter(|outcome| **outcome == "stored").count();
        assert_eq!(times_stored, usize::from(number != 3 && number != 4), "batch {number}: {outcomes:?}");
    }
    left.stop();
    right.stop();
    assert_eq!(stored(folder.path(), "raw.sales"), once((0..12).map(|number| format!("a{number}"))));
    assert_eq!(ing_3(folder.path(), "sales"), (13, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn ing_1_equal_rows_under_two_numbers_are_two_batches_and_other_rows_under_one_number_are_refused() {
    let folder = project();
    let server = Server::start(folder.path());
    let rows = sales(&["same"]);
    let batches: Vec<_> = (0..3).map(|number| (json!({ "stream": "twins", "batch": number }), rows.clone())).collect();
    assert_eq!(accepted(&server.address, "sales", &batches).await.len(), 3);
    // Without a name a stream is a new one.
    accepted(&server.address, "sales", &[(Value::Null, rows.clone())]).await;

    let other = [(json!({ "stream": "twins", "batch": 1 }), sales(&["other"]))];
    let status = refused(&server.address, "sales", &other).await;
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("batch 1 of stream `twins`"), "{}", status.message());

    // A stream of a long time ago is not begun anew.
    let old = [(json!({ "stream": "019c0000-0000-7000-8000-000000000000" }), rows.clone())];
    let status = refused(&server.address, "sales", &old).await;
    assert!(status.message().contains("began on 2026-01-27"), "{}", status.message());
    let path = folder.path().join("lake/_holdfast/puts/churn/sales/twins.json");
    assert!(path.is_file(), "the beginning of a named stream is kept");
    fs::write(&path, "{\"began\":\"2026-01-01\"}").unwrap();
    let status = refused(&server.address, "sales", &batches[..1]).await;
    assert!(status.message().contains("began on 2026-01-01"), "{}", status.message());
    server.stop();
    assert_eq!(stored(folder.path(), "raw.sales"), BTreeMap::from([("same".to_owned(), 4)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn ing_3_rows_that_do_not_fit_go_to_quarantine_one_by_one() {
    let folder = project();
    let server = Server::start(folder.path());
    let mut skus = ListBuilder::new(StringBuilder::new());
    for row in 0..6 {
        skus.append_value([Some(format!("sku {row}"))]);
    }
    let ages: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), Some(1 << 40), None, Some(3), Some(4), Some(5)]));
    let buyer = StructArray::from(vec![(Arc::new(Field::new("age", DataType::Int64, true)), ages)]);
    let batch = RecordBatch::try_from_iter(vec![
        ("id", Arc::new(StringArray::from(vec!["0", "1", "2", "3", "4", "5"])) as ArrayRef),
        ("paid", Arc::new(Float64Array::from(vec![1.5, 2.0, f64::NAN, f64::INFINITY, 1e300, -0.25])) as ArrayRef),
        ("skus", Arc::new(skus.finish()) as ArrayRef),
        ("buyer", Arc::new(buyer) as ArrayRef),
        ("extra", Arc::new(Int32Array::from(vec![7; 6])) as ArrayRef),
    ])
    .unwrap();
    let answers = accepted(&server.address, "baskets", &[(Value::Null, batch)]).await;
    assert_eq!(answers[0]["rows"], 6);
    server.stop();
    assert_eq!(stored(folder.path(), "raw.baskets"), once(["0", "5"]));
    let refused = rows(folder.path(), "select _source_line as line, column_name from quarantine.baskets order by 1");
    let refused: Vec<_> =
        refused.iter().map(|row| (row["line"].as_u64().unwrap(), row["column_name"].as_str().unwrap())).collect();
    assert_eq!(refused, [(2, "buyer.age"), (3, "paid"), (4, "paid"), (5, "paid")]);
    assert_eq!(ing_3(folder.path(), "baskets"), (3, 4));
}

#[tokio::test(flavor = "multi_thread")]
async fn ing_1_a_contract_that_gained_a_column_does_not_lose_what_was_acknowledged_before() {
    let folder = project();
    let (location, options) = (folder.path().join("lake"), StoreOptions::new());
    let lake = Lake::open(location.to_str().unwrap(), folder.path(), &options, Arc::new(FixedClock(Utc::now()))).await;
    let spec = SourceSpec::parse("sales.toml", SALES).unwrap();
    let inbox = PutInbox::new(&lake.unwrap(), "churn", &spec, Duration::from_secs(10));
    let rows = sales(&["before"]);
    let stream = inbox.stream(None).await.unwrap();
    let object = inbox.layout(&rows.schema()).unwrap().object(stream.name(), 0, &rows).unwrap();
    assert_eq!(stream.store(0, object).await.unwrap(), Stored::New);

    fs::write(folder.path().join("pipelines/churn/sources/sales.toml"), format!("{SALES}till = \"string\"\n")).unwrap();
    let server = Server::start(folder.path());
    let status = refused(&server.address, "sales", &[(Value::Null, rows)]).await;
    assert!(status.message().contains("column `till` (string) is missing"), "{}", status.message());
    server.stop();
    assert_eq!(stored(folder.path(), "raw.sales"), once(["before"]));
    assert!(crate::rows(folder.path(), "select till from raw.sales where till is not null").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn ing_1_an_answer_of_the_store_that_is_lost_is_looked_at_and_a_refusal_is_told() {
    for (fault, expected) in [(Fault::AnswerLost, Some(Stored::New)), (Fault::Refused, None)] {
        let folder = tempfile::tempdir().unwrap();
        let mut place = open_store("lake", folder.path(), &StoreOptions::new()).unwrap();
        place.store = Arc::new(FaultStore::new(place.store, "/put/", fault, 1));
        let clock = Arc::new(FixedClock(Utc::now()));
        let lake = Lake::create_or_open_at(place, LakeSettings::default(), clock).await.unwrap();
        let spec = SourceSpec::parse("sales.toml", SALES).unwrap();
        let inbox = PutInbox::new(&lake, "churn", &spec, Duration::from_secs(10));
        let stream = inbox.stream(Some("s")).await.unwrap();
        let rows = sales(&["a"]);
        let object = inbox.layout(&rows.schema()).unwrap().object("s", 0, &rows).unwrap();
        match stream.store(0, object.clone()).await {
            Ok(stored) => assert_eq!(Some(stored), expected),
            Err(error) => {
                assert_eq!((expected, error.kind()), (None, ErrorKind::Retry), "{error}");
                assert!(error.to_string().contains("send it again"), "{error}");
            }
        }
        let again = if expected.is_some() { Stored::Known } else { Stored::New };
        assert_eq!(stream.store(0, object).await.unwrap(), again);
        assert_eq!(objects(folder.path(), "sales"), ["00000000000000000000.parquet"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn ing_1_nothing_is_acknowledged_while_the_store_cannot_be_written() {
    let folder = project();
    let server = Server::start(folder.path());
    let inbox = folder.path().join("lake/_holdfast/inbox/churn/sales");
    fs::create_dir_all(&inbox).unwrap();
    fs::write(inbox.join("put"), "in the way").unwrap();
    let batches = [(json!({ "stream": "s", "batch": 7 }), sales(&["a"])), (Value::Null, sales(&["b"]))];
    let (answers, error) = put(&server.address, "sales", &batches).await;
    let error = error.unwrap();
    assert_eq!((answers.len(), error.code()), (0, Code::Unavailable), "{}", error.message());
    assert!(error.message().contains("send it again"), "{}", error.message());
    fs::remove_file(inbox.join("put")).unwrap();
    let answers = accepted(&server.address, "sales", &batches).await;
    assert_eq!((answers[0]["batch"].as_u64(), answers[1]["batch"].as_u64()), (Some(7), Some(8)));
    server.stop();
    assert_eq!(stored(folder.path(), "raw.sales"), once(["a", "b"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn batches_that_do_not_fit_the_contract_are_refused_at_once_with_columns_and_types() {
    let folder = project();
    // But the service's own secret, which it makes as it starts.
    let stored = || -> Vec<_> {
        commits(folder.path()).into_iter().filter(|path| !path.ends_with("serve/ticket_secret")).collect()
    };
    let before = stored();
    let server = Server::start(folder.path());
    let batch = |columns: Vec<(&str, ArrayRef)>| RecordBatch::try_from_iter(columns).unwrap();
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1]));
    let texts: ArrayRef = Arc::new(StringArray::from(vec!["x"]));
    let durations: ArrayRef = Arc::new(arrow::array::DurationSecondArray::from(vec![1]));
    let cases = [
        (
            "visits",
            batch(vec![("id", Arc::clone(&texts)), ("seconds", Arc::clone(&numbers))]),
            "column `pages` (int64) is missing",
        ),
        (
            "visits",
            batch(vec![
                ("id", Arc::clone(&durations)),
                ("pages", Arc::clone(&texts)),
                ("seconds", Arc::clone(&numbers)),
            ]),
            "column `id` holds Duration(s) and the contract says string; column `pages` holds Utf8 and the contract says int64",
        ),
        (
            "visits",
            batch(vec![
                ("id", Arc::clone(&texts)),
                ("pages", Arc::clone(&numbers)),
                ("seconds", Arc::clone(&numbers)),
                ("more", durations),
            ]),
            "column `more` is outside the contract and holds Duration(s)",
        ),
        ("sale", batch(vec![("id", Arc::clone(&texts))]), "there is no source `sale`: did you mean `sales`?"),
    ];
    for (source, rows, message) in cases {
        let status = refused(&server.address, source, &[(Value::Null, rows)]).await;
        assert!(status.message().contains(message), "{}", status.message());
        assert!([Code::InvalidArgument, Code::NotFound].contains(&status.code()));
    }
    let good = batch(vec![("id", texts), ("pages", Arc::clone(&numbers)), ("seconds", numbers)]);
    for (position, message) in [
        (json!({ "stream": "a/b" }), "a stream's name has"),
        (json!({ "stream": "a", "batch": 1_000_000_000_000_u64 }), "from 0 to 999999999999"),
        (json!({ "sream": "a" }), "app_metadata cannot be understood"),
    ] {
        let status = refused(&server.address, "visits", &[(position, good.clone())]).await;
        assert!(status.message().contains(message), "{}", status.message());
    }
    let table = FlightDescriptor::new_path(vec!["core".to_owned(), "sales".to_owned()]);
    let (_, status) = Put::open_with(&server.address, table, &good.schema(), &[]).await.unwrap().finish().await;
    assert!(status.unwrap().message().contains("only sources take batches"));
    let update = CommandStatementUpdate { query: "delete from raw.sales".to_owned(), transaction_id: None };
    let update = FlightDescriptor::new_cmd(update.as_any().encode_to_vec());
    let (_, status) = Put::open_with(&server.address, update, &good.schema(), &[]).await.unwrap().finish().await;
    assert!(status.unwrap().message().contains("read-only"));
    server.stop();
    assert_eq!(before, stored(), "nothing of it is stored");
}

#[tokio::test(flavor = "multi_thread")]
async fn bulk_ingestion_answers_the_rows_that_are_durable_and_can_be_repeated_under_a_name() {
    let folder = project();
    let server = Server::start(folder.path());
    let ingest = |table: &str| {
        let options = TableDefinitionOptions {
            if_not_exist: TableNotExistOption::Fail.into(),
            if_exists: TableExistsOption::Append.into(),
        };
        let command = CommandStatementIngest {
            table_definition_options: Some(options),
            table: table.to_owned(),
            schema: None,
            catalog: None,
            temporary: false,
            transaction_id: None,
            options: std::collections::HashMap::new(),
        };
        FlightDescriptor::new_cmd(command.as_any().encode_to_vec())
    };
    for _ in 0..2 {
        let schema = sales(&["x"]).schema();
        let headers = [("holdfast-stream", "load-1")];
        let mut put = Put::open_with(&server.address, ingest("raw.sales"), &schema, &headers).await.unwrap();
        put.send(Value::Null, &sales(&["a", "b"]));
        put.send(Value::Null, &sales(&["c"]));
        drop(std::mem::replace(&mut put.messages, mpsc::unbounded_channel().0));
        let answer = put.answers.message().await.unwrap().unwrap();
        assert_eq!(DoPutUpdateResult::decode(answer.app_metadata).unwrap().record_count, 3);
        assert!(put.answers.message().await.unwrap().is_none(), "one answer, as Flight SQL says");
    }
    // A client that encodes texts as a dictionary; the source's own name for a column, and the table's.
    let ids: DictionaryArray<Int32Type> = vec!["v", "w", "v"].into_iter().collect();
    let numbers: ArrayRef = Arc::new(Int32Array::from(vec![1, 2, 3]));
    let visits = |name: &str| {
        let ids: ArrayRef = Arc::new(ids.clone());
        RecordBatch::try_from_iter(vec![
            (name, ids),
            ("pages", Arc::clone(&numbers)),
            ("seconds", Arc::clone(&numbers)),
        ])
        .unwrap()
    };
    let channel = Channel::from_shared(format!("http://{}", server.address)).unwrap().connect().await.unwrap();
    for name in ["VisitId", "id"] {
        let messages = FlightDataEncoderBuilder::new()
            .with_dictionary_handling(DictionaryHandling::Resend)
            .with_flight_descriptor(Some(FlightDescriptor::new_path(vec!["raw".to_owned(), "visits".to_owned()])))
            .build(futures::stream::iter([Ok(visits(name))]));
        let answers = FlightClient::new(channel.clone()).do_put(messages).await.unwrap();
        let answers: Vec<PutResult> = futures::TryStreamExt::try_collect(answers).await.unwrap();
        assert_eq!(answers.len(), 1);
    }
    let mut client = FlightSqlServiceClient::new(channel.clone());
    let infos = vec![SqlInfo::FlightSqlServerReadOnly, SqlInfo::FlightSqlServerBulkIngestion];
    let info = client.get_sql_info(infos).await.unwrap();
    let mut found = client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    let batch = futures::StreamExt::next(&mut found).await.unwrap().unwrap();
    let text = arrow::util::pretty::pretty_format_batches(&[batch]).unwrap().to_string();
    assert!(text.contains("{bool_value=false}") && text.contains("{bool_value=true}"), "{text}");
    drop((client, channel));
    server.stop();
    assert_eq!(stored(folder.path(), "raw.sales"), once(["a", "b", "c"]));
    assert_eq!(stored(folder.path(), "raw.visits"), BTreeMap::from([("v".to_owned(), 4), ("w".to_owned(), 2)]));
}

#[tokio::test(flavor = "multi_thread")]
async fn putting_needs_to_be_allowed_and_its_token_is_not_that_of_reading() {
    let folder = project();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (read, write) = ("a-token-for-reading", "a-token-for-putting");
    let (read_file, put_file) = (file("read.token", read), file("put.token", write));
    let rows = sales(&["x"]);

    let server = Server::start_with(folder.path(), &[]);
    let status = refused(&server.address, "sales", &[(Value::Null, rows.clone())]).await;
    assert_eq!(status.code(), Code::Unimplemented);
    assert!(status.message().contains("--accept-puts"), "{}", status.message());
    server.stop();

    for (arguments, message) in [
        (vec!["--accept-puts", "--token-file", read_file.as_str()], "--put-token-file"),
        (vec!["--put-token-file", put_file.as_str()], "--accept-puts"),
        (
            vec!["--accept-puts", "--token-file", read_file.as_str(), "--put-token-file", read_file.as_str()],
            "need different ones",
        ),
        (vec!["--accept-puts", "--put-memory-mb", "16"], "--put-memory-mb"),
    ] {
        let output = on(folder.path()).args(["serve", "--listen", "127.0.0.1:0"]).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(message), "{said}");
    }

    let arguments = ["--accept-puts", "--token-file", &read_file, "--put-token-file", &put_file];
    let server = Server::start_with(folder.path(), &arguments);
    let open = async |token: Option<&str>| {
        let descriptor = FlightDescriptor::new_path(vec!["raw".to_owned(), "sales".to_owned()]);
        let bearer = token.map(|token| format!("Bearer {token}"));
        let headers: Vec<_> = bearer.iter().map(|bearer| ("authorization", bearer.as_str())).collect();
        Put::open_with(&server.address, descriptor, &rows.schema(), &headers).await
    };
    assert_eq!(open(None).await.err().unwrap().code(), Code::Unauthenticated);
    assert_eq!(open(Some("another-token-of-some-length")).await.err().unwrap().code(), Code::Unauthenticated);
    assert_eq!(open(Some(read)).await.err().unwrap().code(), Code::PermissionDenied);
    let put = open(Some(write)).await.unwrap();
    put.send(Value::Null, &rows);
    assert_eq!(put.finish().await.0.len(), 1);

    // Who may put may not read, but for what drivers ask before they put.
    let channel = Channel::from_shared(format!("http://{}", server.address)).unwrap().connect().await.unwrap();
    let mut flight = FlightClient::new(channel.clone());
    flight.add_header("authorization", &format!("Bearer {write}")).unwrap();
    let table = FlightDescriptor::new_path(vec!["core".to_owned(), "sales".to_owned()]);
    let error = flight.get_flight_info(table).await.unwrap_err().to_string();
    assert!(error.contains("for putting, not for reading"), "{error}");
    let mut client = FlightSqlServiceClient::new(channel);
    client.set_token(write.to_owned());
    let info = client.get_sql_info(vec![SqlInfo::FlightSqlServerName]).await.unwrap();
    client.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    assert!(client.execute("select 1".to_owned(), None).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_finds_no_place_is_told_when_to_come_back_and_a_client_that_goes_away_leaves_nothing_half() {
    let folder = project();
    let server = Server::start_with(folder.path(), &["--accept-puts", "--put-streams-max", "1"]);
    let schema = sales(&["x"]).schema();
    let mut held = Put::open(&server.address, "sales", &schema).await.unwrap();
    let whole: Vec<String> = (0..1_000).map(|row| format!("row {row}")).collect();
    held.send(Value::Null, &sales(&whole));
    let first = held.acknowledgement().await.unwrap().unwrap();
    assert_eq!((first["batch"].as_u64(), first["rows"].as_u64()), (Some(0), Some(1_000)));

    let status = Put::open(&server.address, "sales", &schema).await.err().unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.get_details_retry_info().unwrap().retry_delay, Some(Duration::from_secs(1)));
    assert!(status.message().contains("1 streams are being put"), "{}", status.message());

    // More is on its way when the client goes away: each of the batches is stored as a whole or not at all.
    for batch in 1..30 {
        held.send(
            json!({ "batch": batch }),
            &sales(&(0..1_000).map(|row| format!("{batch}/{row}")).collect::<Vec<_>>()),
        );
    }
    drop(held);
    let began = Instant::now();
    let second = loop {
        match Put::open(&server.address, "sales", &schema).await {
            Ok(put) => break put,
            Err(status) => assert_eq!(status.code(), Code::ResourceExhausted),
        }
        assert!(began.elapsed() < Duration::from_secs(10), "its place was not freed");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    second.send(json!({ "stream": first["stream"], "batch": 0 }), &sales(&whole));
    let (answers, _) = second.finish().await;
    assert_eq!(answers[0]["outcome"], "known", "the stream of a client that named none can be gone on with");
    server.stop();
    let batches =
        rows(folder.path(), "select _source_file as file, count(*) as n from raw.sales where id <> 'file' group by 1");
    assert!(!batches.is_empty() && batches.iter().all(|batch| batch["n"] == 1_000), "{batches:?}");
    assert_eq!(objects(folder.path(), "sales").len(), batches.len());
    ing_3(folder.path(), "sales");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_acknowledges_what_has_arrived_and_ends_open_streams() {
    let folder = project();
    let server = Server::start(folder.path());
    let schema = sales(&["x"]).schema();
    let mut idle = Put::open(&server.address, "sales", &schema).await.unwrap();
    idle.send(json!({ "stream": "idle" }), &sales(&["a"]));
    assert_eq!(idle.acknowledgement().await.unwrap().unwrap()["outcome"], "stored");
    let busy = Put::open(&server.address, "sales", &schema).await.unwrap();
    let sending = tokio::spawn(async move {
        let mut batch = 0;
        while busy.send(json!({ "stream": "busy", "batch": batch }), &sales(&[format!("b{batch}")])) {
            batch += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        busy.finish().await
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let took = server.stop();
    assert!(took < Duration::from_secs(10), "{took:?}");
    let status = idle.acknowledgement().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("1 batches (1 rows) of stream `idle`"), "{}", status.message());
    let (answers, status) = sending.await.unwrap();
    assert_eq!(status.unwrap().code(), Code::Unavailable);
    let found = stored(folder.path(), "raw.sales");
    for answer in &answers {
        assert!(found.contains_key(&format!("b{}", answer["batch"])), "{answer} was acknowledged");
    }
    assert!(answers.len() > 5 && found.values().all(|times| *times == 1), "{found:?}");
    assert_eq!(objects(folder.path(), "sales").len(), found.len(), "all is in raw when it ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_of_1_gb_goes_through_in_batches_and_is_refused_as_one() {
    const BATCHES: u64 = 64;
    let folder = project();
    let server = Server::start(folder.path());
    let base = server.peak_mib();
    // 16 MiB each.
    let rows = sales(&(0..1_024).map(|row| format!("{row:016384}")).collect::<Vec<_>>());
    let mut put = Put::open(&server.address, "sales", &rows.schema()).await.unwrap();
    let mut acknowledged = 0;
    for batch in 0..BATCHES {
        put.send(json!({ "batch": batch }), &rows);
        if batch >= 3 {
            let answer = put.acknowledgement().await.unwrap().unwrap();
            assert_eq!((answer["batch"].as_u64(), answer["rows"].as_u64()), (Some(acknowledged), Some(1_024)));
            acknowledged += 1;
        }
    }
    let (answers, error) = put.finish().await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(acknowledged + answers.len() as u64, BATCHES);
    let peak = server.peak_mib();
    eprintln!("peak {peak} MiB over a base of {base} MiB");
    assert!(peak < base + 512, "{peak} MiB over a base of {base} MiB");

    // As one message it is refused before it is in memory.
    let mut put = Put::open(&server.address, "sales", &rows.schema()).await.unwrap();
    let mut message = batches_to_flight_data(&rows.schema(), vec![rows]).unwrap().remove(1);
    message.data_body = vec![0; 1 << 30].into();
    put.messages.send(message).unwrap();
    let status = put.acknowledgement().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{}", status.message());
    assert!(status.message().contains("max_chunksize"), "{}", status.message());
    assert!(server.peak_mib() < base + 512, "{} MiB over a base of {base} MiB", server.peak_mib());
    server.stop();
    assert_eq!(ing_3(folder.path(), "sales"), (1 + BATCHES * 1_024, 0));
}
