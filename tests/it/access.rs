//! Who may come in, what they see and what is written down of it: through the port, whichever way it is asked (POL-1).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Float64Array, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::util::pretty::pretty_format_batches;
use arrow_flight::error::FlightError;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{CommandGetTables, CommandStatementQuery, ProstMessageExt};
use arrow_flight::{CancelFlightInfoRequest, CancelStatus, FlightClient, FlightDescriptor, FlightInfo, Ticket};
use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};
use holdfast_access::{Access, AccessSettings, Audit, AuditKey, MaskKey, NewPrincipal, Users, verify_audit};
use holdfast_engine::{LakeReader, SessionSettings, customer_bucket_of};
use holdfast_lake::{
    Change, ChangeKind, CommitOutcome, Lake, LakeSettings, Manifest, ManifestEntry, Position, StoreOptions, TableSpec,
    TableWriter, WriterSettings,
};
use holdfast_serve::{CommandMessage, FeaturesForCustomers, ScoresAbove, ServeError, ServeSettings, bind_as, serve};
use holdfast_types::FixedClock;
use prost::Message;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::folder::ProjectFolder;
use crate::{holdfast_binary, succeed};

const BUCKETS: u32 = 4;
const CUSTOMERS: i64 = 24;
const PASSWORD: &str = "correct horse battery";
/// In every value of personal data, and nowhere else.
const CANARY: &str = "CANARY";

const POLICY: &str = r#"
[roles.analyst]
tables = ["core.*", "risk.*"]

[[roles.analyst.rows]]
tables = ["core.customers", "risk.churn_score"]
where = "region in (attribute('region'))"

[[roles.analyst.columns]]
tag = "pii"
mask = "hash"

[[roles.analyst.columns]]
columns = ["email"]
mask = "null"

[roles.agent]
tables = ["core.customers"]

[[roles.agent.rows]]
where = "agent in (principal(), attribute('agent'))"

[[roles.agent.columns]]
columns = ["phone"]
mask = "show"

[roles.owner]
tables = ["*"]

[[roles.owner.columns]]
tag = "pii"
mask = "partial"
keep_last = 2

[roles.little]
tables = ["core.*"]

[roles.little.limits]
rows = 5
rate_per_s = 0.001
burst = 3
concurrency = 2
"#;

/// A lake with personal data, a policy, users of every kind, and the service.
struct Service {
    lake: Lake,
    folder: tempfile::TempDir,
    channel: Channel,
    tokens: HashMap<&'static str, String>,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<Result<(), ServeError>>,
}

impl Service {
    async fn start() -> Self {
        Self::start_with(|folder, lake| {
            let audit = Audit::start(lake.clone(), AuditKey::derive(b"secret"), false);
            (folder.join("policy.toml"), Some(audit))
        })
        .await
    }

    async fn start_with(choose: impl FnOnce(&Path, &Lake) -> (PathBuf, Option<Audit>)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = LakeSettings { customer_buckets: BUCKETS, ..LakeSettings::default() };
        let clock = Arc::new(FixedClock(moment()));
        let lake = Lake::create_or_open("lake", folder.path(), &StoreOptions::new(), settings, clock).await.unwrap();
        write(&lake, "core.customers", &customers()).await;
        write(&lake, "core.payments", &customers()).await;
        write(&lake, "raw.crm", &customers()).await;
        write(&lake, "risk.churn_score", &scores()).await;
        publish(&lake, 1).await;

        std::fs::write(folder.path().join("policy.toml"), POLICY).unwrap();
        let mut users = Users::default();
        let mut tokens = HashMap::new();
        let north = || BTreeMap::from([("region".to_owned(), vec!["north".to_owned()])]);
        let of_agent = || BTreeMap::from([("agent".to_owned(), vec!["agent1".to_owned()])]);
        for (name, roles, attributes) in [
            ("ana", vec!["analyst"], north()),
            ("nowhere", vec!["analyst"], BTreeMap::new()),
            ("agent1", vec!["agent"], BTreeMap::new()),
            ("both", vec!["agent", "analyst"], north().into_iter().chain(of_agent()).collect()),
            ("boss", vec!["owner"], BTreeMap::new()),
            ("small", vec!["little"], BTreeMap::new()),
            ("nobody", vec![], BTreeMap::new()),
        ] {
            let roles = roles.into_iter().map(str::to_owned).collect();
            let new = NewPrincipal { name: name.to_owned(), roles, attributes };
            tokens.insert(name, users.set_token(new).unwrap());
        }
        let ana = NewPrincipal { name: "ana".to_owned(), roles: vec!["analyst".to_owned()], attributes: north() };
        users.set_user(ana, Some(PASSWORD)).unwrap();
        users.save(&folder.path().join("users.toml")).unwrap();

        let (policy, audit) = choose(folder.path(), &lake);
        let settings = AccessSettings {
            policy: Some(policy),
            users: Some(folder.path().join("users.toml")),
            mask_key: Some(MaskKey::derive(b"secret")),
        };
        let access = Access::open(settings, Arc::clone(lake.clock()), audit).unwrap();
        let settings = ServeSettings {
            reload_interval: Duration::from_millis(20),
            access: Some(Arc::new(access)),
            ..ServeSettings::default()
        };
        let reader = Arc::new(LakeReader::open(lake.clone(), SessionSettings::default()).await.unwrap());
        let listener = bind_as("127.0.0.1:0", true).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = oneshot::channel();
        let running = tokio::spawn(serve(reader, None, settings, listener, async move {
            let _ = stopped.await;
        }));
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Self { lake, folder, channel, tokens, stop: Some(stop), running }
    }

    fn flight(&self, who: &str) -> FlightClient {
        let mut client = FlightClient::new(self.channel.clone());
        client.add_header("authorization", &format!("Bearer {}", self.tokens[who])).unwrap();
        client
    }

    fn sql(&self, who: &str) -> FlightSqlServiceClient<Channel> {
        let mut client = FlightSqlServiceClient::new(self.channel.clone());
        client.set_token(self.tokens[who].clone());
        client
    }

    async fn select(&self, who: &str, query: &str) -> Result<RecordBatch, Status> {
        let mut client = self.flight(who);
        let info = client.get_flight_info(statement(query)).await.map_err(status)?;
        let batch = self.fetch(who, ticket(&info)).await?;
        assert_eq!(batch.schema().fields(), info.try_decode_schema().unwrap().fields());
        Ok(batch)
    }

    async fn fetch(&self, who: &str, ticket: Ticket) -> Result<RecordBatch, Status> {
        let mut stream = self.flight(who).do_get(ticket).await.map_err(status)?;
        let mut batches = Vec::new();
        while let Some(batch) = stream.next().await {
            batches.push(batch.map_err(status)?);
        }
        let schema = stream.schema().cloned().expect("a schema is sent even without rows");
        Ok(concat_batches(&schema, &batches).unwrap())
    }

    async fn shut_down(mut self) -> (Lake, tempfile::TempDir) {
        self.stop.take().unwrap().send(()).unwrap();
        drop(self.channel);
        tokio::time::timeout(Duration::from_secs(60), self.running).await.unwrap().unwrap().unwrap();
        (self.lake, self.folder)
    }
}

async fn write(lake: &Lake, name: &str, rows: &RecordBatch) {
    let spec = TableSpec {
        name: name.parse().unwrap(),
        schema: rows.schema(),
        partition_by: vec!["customer_bucket".to_owned()],
        comment: String::new(),
    };
    let table = lake.ensure_table(&spec).await.unwrap();
    let mut writer = TableWriter::new(&table, WriterSettings::default());
    writer.write(rows).await.unwrap();
    let change = Change {
        table: &table,
        position: Position { app_id: "test".to_owned(), version: 1 },
        fence: None,
        kind: ChangeKind::Append,
        files: writer.close().await.unwrap(),
        schema: None,
        comment: None,
        metadata: serde_json::Map::new(),
    };
    assert!(matches!(lake.commit(change).await.unwrap(), CommitOutcome::Applied { .. }));
}

/// The rows of a table, and its columns, become these.
async fn replace(lake: &Lake, name: &str, rows: &RecordBatch) {
    let table = lake.table(&name.parse().unwrap()).await.unwrap().unwrap();
    let mut writer = TableWriter::new(&table, WriterSettings::default());
    writer.write(rows).await.unwrap();
    let change = Change {
        table: &table,
        position: Position { app_id: "test".to_owned(), version: 2 },
        fence: None,
        kind: ChangeKind::ReplaceAll,
        files: writer.close().await.unwrap(),
        schema: Some(rows.schema()),
        comment: None,
        metadata: serde_json::Map::new(),
    };
    assert!(matches!(lake.commit(change).await.unwrap(), CommitOutcome::Applied { .. }));
}

async fn publish(lake: &Lake, sequence: u64) {
    let mut tables = Vec::new();
    for name in lake.tables().await.unwrap() {
        let table = lake.table(&name).await.unwrap().unwrap();
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
    lake.publish(manifest).await.unwrap();
}

fn moment() -> DateTime<Utc> {
    "2026-01-31T08:00:00Z".parse().unwrap()
}

fn ids() -> (ArrayRef, ArrayRef) {
    let ids: Vec<String> = (0..CUSTOMERS).map(|n| format!("c{n:02}")).collect();
    let buckets: Int32Array = ids.iter().map(|id| Some(customer_bucket_of(id, BUCKETS))).collect();
    (Arc::new(StringArray::from(ids)), Arc::new(buckets))
}

fn regions() -> ArrayRef {
    Arc::new((0..CUSTOMERS).map(|n| Some(["north", "south"][usize::try_from(n).unwrap() % 2])).collect::<StringArray>())
}

/// Customer n is in the north when n is even, and of agent n modulo 3; phone and e-mail are personal data.
fn customers() -> RecordBatch {
    let (ids, buckets) = ids();
    let texts = |of: &dyn Fn(i64) -> String| -> ArrayRef {
        Arc::new((0..CUSTOMERS).map(|n| Some(of(n))).collect::<StringArray>())
    };
    let pii = HashMap::from([("pii".to_owned(), "true".to_owned())]);
    let columns: Vec<(Field, ArrayRef)> = vec![
        (Field::new("customer_id", DataType::Utf8, true), ids),
        (Field::new("region", DataType::Utf8, true), regions()),
        (Field::new("agent", DataType::Utf8, true), texts(&|n| format!("agent{}", n % 3))),
        (
            Field::new("phone", DataType::Utf8, true).with_metadata(pii.clone()),
            texts(&|n| format!("{CANARY}-1380000{n:04}")),
        ),
        (Field::new("email", DataType::Utf8, true).with_metadata(pii), texts(&|n| format!("{CANARY}-{n}@example.org"))),
        (
            Field::new("age", DataType::Int64, true),
            Arc::new((0..CUSTOMERS).map(|n| Some(20 + n)).collect::<Int64Array>()),
        ),
        (Field::new("customer_bucket", DataType::Int32, true), buckets),
    ];
    let (fields, columns): (Vec<_>, Vec<_>) = columns.into_iter().unzip();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

fn scores() -> RecordBatch {
    let (ids, buckets) = ids();
    let schema = Schema::new(vec![
        Field::new("customer_id", DataType::Utf8, true),
        Field::new("churn_probability", DataType::Float64, true),
        Field::new("region", DataType::Utf8, true),
        Field::new("customer_bucket", DataType::Int32, true),
    ]);
    let probability: Float64Array = (0..CUSTOMERS).map(|n| Some(n as f64 / 100.0)).collect();
    RecordBatch::try_new(Arc::new(schema), vec![ids, Arc::new(probability), regions(), buckets]).unwrap()
}

fn statement(query: &str) -> FlightDescriptor {
    let command = CommandStatementQuery { query: query.to_owned(), transaction_id: None };
    FlightDescriptor::new_cmd(command.as_any().encode_to_vec())
}

fn path(name: &str) -> FlightDescriptor {
    FlightDescriptor::new_path(name.split('.').map(str::to_owned).collect())
}

fn ticket(info: &FlightInfo) -> Ticket {
    info.endpoint[0].ticket.clone().unwrap()
}

/// One row of two values.
fn values(number: i64, text: &str) -> RecordBatch {
    let number: ArrayRef = Arc::new(Int64Array::from(vec![number]));
    let text: ArrayRef = Arc::new(StringArray::from(vec![text]));
    RecordBatch::try_from_iter([("0", number), ("1", text)]).unwrap()
}

fn status(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        other => panic!("not a status: {other}"),
    }
}

/// The rows as text, in any order.
fn shown(batch: &RecordBatch) -> BTreeSet<String> {
    let rows = pretty_format_batches(std::slice::from_ref(batch)).unwrap().to_string();
    rows.lines().filter(|line| line.starts_with('|')).map(str::to_owned).collect()
}

fn texts(batch: &RecordBatch, column: &str) -> Vec<Option<String>> {
    batch.column_by_name(column).unwrap().as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pol_1_every_way_to_ask_gives_a_role_the_same_rows_and_masks() {
    let service = Service::start().await;
    let columns = |who: &str| match who {
        "agent1" => vec!["customer_id", "region", "agent", "phone", "age", "customer_bucket"],
        _ => vec!["customer_id", "region", "agent", "phone", "email", "age", "customer_bucket"],
    };
    for (who, rows) in [("ana", 12), ("nowhere", 0), ("agent1", 8), ("both", 16), ("boss", 24)] {
        let all = service.select(who, "select * from core.customers").await.unwrap();
        assert_eq!(all.num_rows(), rows, "{who}");
        let names: Vec<String> = all.schema().fields().iter().map(|field| field.name().clone()).collect();
        assert_eq!(names, columns(who), "{who}");
        let expected = shown(&all);

        // The table by its path, its schema by every call that tells one.
        let mut client = service.flight(who);
        let info = client.get_flight_info(path("core.customers")).await.unwrap();
        assert_eq!(info.total_records, if who == "boss" { 24 } else { -1 }, "{who}: how many there are is not told");
        assert_eq!(shown(&service.fetch(who, ticket(&info)).await.unwrap()), expected, "{who}");
        assert_eq!(client.get_schema(path("core.customers")).await.unwrap().fields(), all.schema().fields());
        assert_eq!(
            client.get_schema(statement("select * from core.customers")).await.unwrap().fields(),
            all.schema().fields()
        );
        let flights: Vec<FlightInfo> = client.list_flights("core.").await.unwrap().try_collect().await.unwrap();
        let listed = flights.into_iter().find(|info| info.flight_descriptor == Some(path("core.customers"))).unwrap();
        assert_eq!(listed.try_decode_schema().unwrap().fields(), all.schema().fields());

        // Prepared, and with what may stand around a table.
        let mut sql = service.sql(who);
        let mut prepared = sql.prepare("select * from core.customers".to_owned(), None).await.unwrap();
        assert_eq!(prepared.dataset_schema().unwrap().fields(), all.schema().fields());
        let info = prepared.execute().await.unwrap();
        assert_eq!(shown(&service.fetch(who, ticket(&info)).await.unwrap()), expected, "{who}");
        let query = "select * from core.customers where age >= ? and region <> ?".to_owned();
        let mut prepared = sql.prepare(query, None).await.unwrap();
        assert_eq!(prepared.dataset_schema().unwrap().fields(), all.schema().fields());
        prepared.set_parameters(values(0, "nowhere")).unwrap();
        let bound = prepared.execute().await.unwrap();
        assert_eq!(shown(&service.fetch(who, ticket(&bound)).await.unwrap()), expected, "{who}");
        // What somebody bound, another reads as what the other sees.
        let by_boss = service.flight("boss").get_flight_info(bound.flight_descriptor.clone().unwrap()).await.unwrap();
        assert_eq!(service.fetch("boss", ticket(&by_boss)).await.unwrap().num_rows(), 24);
        assert_eq!(service.fetch("boss", ticket(&bound)).await.unwrap().num_rows(), 24);
        assert_eq!(shown(&service.fetch(who, ticket(&by_boss)).await.unwrap()), expected, "{who}");
        let list = columns(who).join(", ");
        for query in [
            format!("with c as (select * from core.customers) select {list} from c"),
            format!(
                "select {list} from (select * from core.customers union all select * from core.customers where false) u"
            ),
            "select a.* from core.customers a inner join core.customers b on a.customer_id = b.customer_id".to_owned(),
            "select * from core.customers where customer_id in (select customer_id from core.customers)".to_owned(),
            "select * from holdfast.core.customers where age >= 0 order by age limit 1000".to_owned(),
            "select distinct * from core.customers".to_owned(),
        ] {
            let batch = service.select(who, &query).await.unwrap();
            assert_eq!(shown(&batch), expected, "{who}: {query}");
        }
        let counted = service.select(who, "select count(*) as n, count(1) as m from core.customers").await.unwrap();
        assert!(
            counted.columns().iter().all(|n| n.as_primitive::<arrow::datatypes::Int64Type>().value(0) == rows as i64)
        );
        let ages = service.select(who, "select max(age) as n from core.customers").await.unwrap();
        let seen: Option<i64> =
            all.column_by_name("age").unwrap().as_primitive::<arrow::datatypes::Int64Type>().iter().flatten().max();
        assert_eq!(ages.column(0).as_primitive::<arrow::datatypes::Int64Type>().iter().next().unwrap(), seen);

        // Look-ups by key, of which the row filter is not asked for.
        let ids: Vec<String> = (0..CUSTOMERS).map(|n| format!("c{n:02}")).collect();
        let command = FeaturesForCustomers {
            feature_view: "core.customers".to_owned(),
            customer_ids: ids.clone(),
            features: vec!["phone".to_owned()],
        };
        let found = service.fetch(who, Ticket::new(command.to_command())).await.unwrap();
        let of_all: HashMap<_, _> = texts(&all, "customer_id").into_iter().zip(texts(&all, "phone")).collect();
        for ((id, phone), state) in
            texts(&found, "customer_id").into_iter().zip(texts(&found, "phone")).zip(texts(&found, "status"))
        {
            assert_eq!(state.as_deref() == Some("PRESENT"), of_all.contains_key(&id), "{who} {id:?}");
            assert_eq!(phone, of_all.get(&id).cloned().flatten(), "{who} {id:?}");
        }
    }

    // What the masks are: the same for the same value, and of two roles each for its own rows.
    let ana = service.select("ana", "select * from core.customers order by customer_id").await.unwrap();
    assert!(texts(&ana, "phone").iter().all(|phone| phone.as_ref().is_some_and(|phone| phone.len() == 32)));
    assert!(texts(&ana, "email").iter().all(Option::is_none));
    let both =
        service.select("both", "select agent, phone, email from core.customers order by customer_id").await.unwrap();
    for (agent, phone) in texts(&both, "agent").into_iter().zip(texts(&both, "phone")) {
        assert_eq!(phone.unwrap().starts_with(CANARY), agent.as_deref() == Some("agent1"));
    }
    let boss = service.select("boss", "select phone from core.customers where customer_id = 'c07'").await.unwrap();
    assert_eq!(texts(&boss, "phone"), [Some("***07".to_owned())]);

    // Scores.
    for (who, rows) in [("ana", 12), ("nowhere", 0), ("boss", 24)] {
        let scores =
            service.fetch(who, Ticket::new(ScoresAbove { threshold: 0.0, limit: 0 }.to_command())).await.unwrap();
        assert_eq!(scores.num_rows(), rows, "{who}");
    }
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pol_1_as_of_shows_of_an_earlier_run_what_the_table_shows() {
    let service = Service::start().await;
    let mut before: HashMap<&str, BTreeSet<String>> = HashMap::new();
    for who in ["ana", "nowhere", "agent1", "both", "boss"] {
        before.insert(who, shown(&service.select(who, "select * from core.customers").await.unwrap()));
    }
    // A run later half of the customers are gone, and what nobody had tagged is found to be personal data.
    let pii = HashMap::from([("pii".to_owned(), "true".to_owned())]);
    let all = customers();
    let columns = all.schema();
    let tagged = columns.fields().iter().map(|field| match field.name().as_str() {
        "age" => field.as_ref().clone().with_metadata(pii.clone()),
        _ => field.as_ref().clone(),
    });
    let tagged = Schema::new(tagged.collect::<Vec<_>>());
    let rows = RecordBatch::try_new(Arc::new(tagged), all.columns().to_vec()).unwrap().slice(0, 12);
    for (who, seen) in &before {
        let earlier = service.select(who, "select * from as_of('core.customers', 1)").await.unwrap();
        assert_eq!(&shown(&earlier), seen, "{who}, before there is another run");
    }
    replace(&service.lake, "core.customers", &rows).await;
    publish(&service.lake, 2).await;
    let newest = || async {
        let mut client = service.flight("boss");
        client.get_flight_info(path("core.customers")).await.unwrap().total_records
    };
    let began = std::time::Instant::now();
    while newest().await != 12 {
        assert!(began.elapsed() < Duration::from_secs(20), "run 2 is not served");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    let columns = |batch: &RecordBatch| -> Vec<(String, DataType)> {
        batch.schema().fields().iter().map(|field| (field.name().clone(), field.data_type().clone())).collect()
    };
    for (who, rows) in [("ana", 12), ("nowhere", 0), ("agent1", 8), ("both", 16), ("boss", 24)] {
        let now = service.select(who, "select * from core.customers").await.unwrap();
        let mut sql = service.sql(who);
        let mut prepared = sql
            .prepare("select * from as_of('core.customers', 1) where customer_id <> ?".to_owned(), None)
            .await
            .unwrap();
        let nobody: ArrayRef = Arc::new(StringArray::from(vec!["nobody"]));
        prepared.set_parameters(RecordBatch::try_from_iter([("0", nobody)]).unwrap()).unwrap();
        let bound = prepared.execute().await.unwrap();
        let by_parameter = service.fetch(who, ticket(&bound)).await.unwrap();
        for earlier in [
            service.select(who, "select * from as_of('core.customers', 1)").await.unwrap(),
            service
                .select(who, "with c as (select * from as_of('core.customers', 'run-1')) select * from c")
                .await
                .unwrap(),
            by_parameter,
        ] {
            assert_eq!(earlier.num_rows(), rows, "{who}");
            assert_eq!(columns(&earlier), columns(&now), "{who}: the columns that are seen now");
            let said = pretty_format_batches(std::slice::from_ref(&earlier)).unwrap().to_string();
            assert!(!said.contains("@example.org"), "{who}: {said}");
            if let Some(ages) = earlier.column_by_name("age") {
                // The mask of personal data makes null of a number, and nobody's is shown.
                assert_eq!(ages.null_count(), rows, "{who}: {said}");
            }
        }
    }
    for (who, query, expected) in [
        ("ana", "select * from as_of('raw.crm', 1)", "run 1 has no table `raw.crm`"),
        ("ana", "select * from as_of('raw.nothing', 1)", "run 1 has no table `raw.nothing`"),
        ("nobody", "select * from as_of('core.customers', 1)", "run 1 has no table `core.customers`"),
        ("agent1", "select email from as_of('core.customers', 1)", "email"),
        ("agent1", "select * from as_of('core.payments', 'run-1')", "run 1 has no table `core.payments`"),
    ] {
        let error = service.select(who, query).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{who} {query}");
        assert!(error.message().contains(expected), "{who} {query}: {}", error.message());
        assert!(!error.message().contains(CANARY), "{}", error.message());
    }
    let plan = service.select("ana", "explain select * from as_of('core.customers', 1)").await.unwrap();
    let plan = pretty_format_batches(&[plan]).unwrap().to_string();
    assert!(plan.contains("PolicyExec") && !plan.contains("north"), "{plan}");

    // What is read of an earlier run is written down as what is read of the newest.
    let (lake, _folder) = service.shut_down().await;
    let name = "audit.accesses".parse().unwrap();
    let run = LakeReader::newest_of(&lake, &SessionSettings::default(), &[name]).await.unwrap();
    let rows = rows_of(&run).await;
    let said = pretty_format_batches(std::slice::from_ref(&rows)).unwrap().to_string();
    assert!(said.lines().filter(|line| line.contains("core.customers.phone")).count() > 10, "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_does_not_see_is_not_there() {
    let service = Service::start().await;
    for (who, table) in [
        ("ana", "raw.crm"),
        ("agent1", "core.payments"),
        ("agent1", "risk.churn_score"),
        ("nobody", "core.customers"),
        ("boss", "audit.accesses"),
    ] {
        let error = service.select(who, &format!("select * from {table}")).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{who} {table}: {error}");
        assert!(error.message().contains("not found"), "{error}");
        let error = service.flight(who).get_flight_info(path(table)).await.map_err(status).unwrap_err();
        assert_eq!(error.code(), Code::NotFound, "{error}");
        let metadata =
            service.select(who, "select table_schema || '.' || table_name as t from information_schema.tables").await;
        assert!(!texts(&metadata.unwrap(), "t").contains(&Some(table.to_owned())));
        let mut sql = service.sql(who);
        let info = sql.get_tables(CommandGetTables::default()).await.unwrap();
        let tables = service.fetch(who, ticket(&info)).await.unwrap();
        let named: Vec<_> = texts(&tables, "db_schema_name").into_iter().zip(texts(&tables, "table_name")).collect();
        assert!(
            !named
                .iter()
                .any(|(schema, name)| format!("{}.{}", schema.clone().unwrap(), name.clone().unwrap()) == table)
        );
    }
    // A ticket says what is asked, and not who may ask it.
    let info = service.flight("boss").get_flight_info(path("core.payments")).await.unwrap();
    let error = service.fetch("agent1", ticket(&info)).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound, "{error}");
    // A denied column is not there either, and no suggestion names it.
    let error = service.select("agent1", "select emaill from core.customers").await.unwrap_err();
    assert!(!error.message().contains("email\"") && !error.message().contains("`email`"), "{error}");
    let columns = service
        .select("agent1", "select column_name from information_schema.columns where table_name = 'customers'")
        .await;
    assert!(!texts(&columns.unwrap(), "column_name").contains(&Some("email".to_owned())));
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pol_1_no_error_plan_or_condition_tells_of_what_is_hidden() {
    let service = Service::start().await;
    let mut said = String::new();
    for who in ["ana", "nowhere", "boss"] {
        for query in [
            // Errors that name a value, of rows that are not seen and of masked columns.
            "select cast(phone as bigint) from core.customers",
            "select * from core.customers where cast(phone as bigint) > 0",
            "select * from core.customers where cast(region as bigint) > 0 and region = 'south'",
            "select 1 / (case when region = 'south' then 0 else 1 end) from core.customers",
            "select * from core.customers where 1 / (age - 21) > 5",
            "select arrow_cast(email, 'Int32') from core.customers",
            "select to_timestamp(phone) from core.customers",
            "explain select * from core.customers where phone like '%7'",
            "explain verbose select * from core.customers where age > 30",
            "explain analyze select count(*) from core.customers where age > 30",
            "explain analyze verbose select phone from core.customers order by phone limit 3",
            "select min(phone), max(phone), min(email), approx_distinct(phone) from core.customers",
            "select string_agg(phone, ',') from core.customers",
            "select c.phone, p.phone from core.customers c inner join core.payments p on c.phone = p.phone",
            "with recursive r as (select 1 as n, phone from core.customers union all select n + 1, phone from r where n < 3) select * from r",
            "select a.phone from core.customers a, lateral (select b.phone from core.customers b where b.phone > a.phone limit 1) c",
            "describe core.customers",
            "show columns from core.customers",
            "select row_number() over (order by phone) as n, lag(phone) over (order by phone) from core.customers",
            "select * from core.customers where phone in (select phone from core.payments where region = 'south')",
        ] {
            match service.select(who, query).await {
                Ok(batch) => said.push_str(&pretty_format_batches(&[batch]).unwrap().to_string()),
                Err(error) => said.push_str(&format!("{error:?}")),
            }
        }
    }
    assert!(!said.contains(CANARY), "{}", said.lines().find(|line| line.contains(CANARY)).unwrap());

    // Rows that are not seen decide nothing: the age of 21 is in the south.
    let rows = service.select("ana", "select * from core.customers where 1 / (age - 21) < 5").await.unwrap();
    assert_eq!(rows.num_rows(), 12);
    let error = service.select("boss", "select * from core.customers where 1 / (age - 21) < 5").await.unwrap_err();
    assert!(error.message().to_lowercase().contains("divide by zero"), "{error}");
    // Nobody finds a phone by guessing at it, or the end of one by its order.
    for query in [
        format!("select * from core.customers where phone = '{CANARY}-13800000002'"),
        format!("select * from core.customers where phone like '{CANARY}%'"),
        "select * from core.customers where email is not null".to_owned(),
    ] {
        assert_eq!(service.select("ana", &query).await.unwrap().num_rows(), 0, "{query}");
    }
    // Neither files nor counts below the policy are in plans.
    let plan = service.select("ana", "explain analyze select count(*) from core.customers").await.unwrap();
    let plan = pretty_format_batches(&[plan]).unwrap().to_string();
    assert!(plan.contains("PolicyExec: table=core.customers"), "{plan}");
    assert!(!plan.contains(".parquet") && !plan.contains("output_rows=24") && !plan.contains("north"), "{plan}");
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn users_come_in_with_passwords_and_tokens_and_nobody_else_does() {
    let service = Service::start().await;
    let call = async |authorization: Option<String>| {
        let mut client = FlightClient::new(service.channel.clone());
        if let Some(authorization) = authorization {
            client.add_header("authorization", &authorization).unwrap();
        }
        client.get_flight_info(path("core.customers")).await.map(|_| ()).map_err(|error| status(error).code())
    };
    assert_eq!(call(None).await, Err(Code::Unauthenticated));
    for wrong in ["Bearer hf_wrong", "Bearer ", "Basic YW5hOnh4eHg=", "hfs_AAAA", "Bearer hfs_AAAA", "Bearer a.b.c"] {
        assert_eq!(call(Some(wrong.to_owned())).await, Err(Code::Unauthenticated), "{wrong}");
    }
    assert_eq!(call(Some(format!("Bearer {}", service.tokens["ana"]))).await, Ok(()));

    let mut sql = FlightSqlServiceClient::new(service.channel.clone());
    let given = sql.handshake("ana", PASSWORD).await.unwrap();
    let token = String::from_utf8(given.to_vec()).unwrap();
    assert_eq!(sql.token(), Some(&token), "it is in the header, too");
    let info = sql.execute("select count(*) as n from core.customers".to_owned(), None).await.unwrap();
    sql.do_get(ticket(&info)).await.unwrap();

    // Who guesses is told nothing, and must wait; names that nobody has are like others.
    let mut codes = Vec::new();
    for (user, password) in [("ana", "wrong"), ("nobody-at-all", "wrong"), ("ana", "")] {
        let error = FlightSqlServiceClient::new(service.channel.clone()).handshake(user, password).await.unwrap_err();
        codes.push(error.to_string());
    }
    assert!(codes.iter().all(|said| said.contains("the user name or the password is wrong")), "{codes:?}");
    let guess = async || FlightSqlServiceClient::new(service.channel.clone()).handshake("ana", "wrong again").await;
    let mut said = String::new();
    for _ in 0..4 {
        said = guess().await.unwrap_err().to_string();
    }
    assert!(said.contains("too many wrong passwords"), "{said}");
    // A user that is taken away is out with the next look at the file, and so is a token.
    let file = service.folder.path().join("users.toml");
    let mut users = Users::load(&file).unwrap();
    users.remove_user("ana").unwrap();
    users.remove_token("boss").unwrap();
    users.save(&file).unwrap();
    for authorization in [format!("Bearer {token}"), format!("Bearer {}", service.tokens["boss"])] {
        let mut left = 500;
        while call(Some(authorization.clone())).await.is_ok() && left > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            left -= 1;
        }
        assert_eq!(call(Some(authorization)).await, Err(Code::Unauthenticated));
    }
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_policy_holds_for_the_next_question_and_a_broken_one_for_none() {
    let service = Service::start().await;
    let file = service.folder.path().join("policy.toml");
    let count = async || service.flight("boss").get_schema(path("core.customers")).await.unwrap().fields().len();
    assert_eq!(count().await, 7);
    std::fs::write(&file, "[roles.owner]\ntables = [\"core.customers\n").unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(count().await, 7, "the one before it holds");
    std::fs::remove_file(&file).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(count().await, 7, "without a file it holds, too");
    std::fs::write(&file, "[roles.owner]\ntables = [\"core.customers\"]\n").unwrap();
    let mut left = 500;
    while count().await == 7 && left > 0 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        left -= 1;
    }
    assert_eq!(count().await, 5, "personal data without a rule is denied");
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_of_a_role_end_an_answer_or_ask_to_come_back() {
    let service = Service::start().await;
    let few = service.select("small", "select customer_id from core.customers limit 5").await.unwrap();
    assert_eq!(few.num_rows(), 5);
    let error = service.select("small", "select customer_id from core.customers limit 6").await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.message().contains("more than 5 rows"), "{error}");
    assert!(error.get_details_retry_info().is_none(), "the same question would end the same way");
    service.select("small", "select customer_id from core.customers limit 1").await.unwrap();
    let error = service.select("small", "select customer_id from core.customers limit 1").await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    assert!(error.get_details_retry_info().is_some_and(|info| info.retry_delay.is_some()), "{error}");
    // Others are not held up.
    service.select("ana", "select customer_id from core.customers").await.unwrap();
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deep_and_writing_statements_are_errors_and_the_service_goes_on() {
    let service = Service::start().await;
    let chain = |part: &str, between: &str| vec![part; 10_000].join(between);
    for deep in [
        format!("select {}1{}", "(".repeat(10_000), ")".repeat(10_000)),
        format!("select {}", chain("1", " + ")),
        format!("select * from core.customers where {}", chain("age = 1", " or ")),
        chain("select 1", " union all "),
        format!("select {}1", "- ".repeat(10_000)),
        format!("select {} true", "not ".repeat(10_000)),
        format!("select * from {}core.customers{}", "(select * from ".repeat(10_000), ") x".repeat(10_000)),
        format!("select * from core.customers {}", "cross join core.customers ".repeat(10_000)),
        format!("select * from {}", chain("core.customers", ", ")),
        format!("select {}", chain("case when true then ", " ")),
    ] {
        let error = service.select("ana", &deep).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{error}");
    }
    // Below the limits they are answered.
    let wide = format!("select {} as n", vec!["1"; 900].join(" + "));
    service.select("ana", &wide).await.unwrap();
    let list = (0..20_000).map(|n| format!("'c{n}'")).collect::<Vec<_>>().join(", ");
    service.select("ana", &format!("select * from core.customers where customer_id in ({list})")).await.unwrap();
    let unions = vec!["select customer_id from core.customers"; 100].join(" union all ");
    service.select("ana", &unions).await.unwrap();
    for writing in [
        "insert into core.customers values (1)",
        "create table t as select * from core.customers",
        "create view core.v as select 1",
        "create external table t stored as csv location '/etc/passwd'",
        "copy core.customers to 'x.csv'",
        "drop table core.customers",
        "set datafusion.execution.batch_size = 1",
        "delete from core.customers",
        "update core.customers set age = 1",
        "truncate table core.customers",
        "explain create table t as select 1",
        "prepare p as select 1",
        "select * from '/etc/passwd'",
        "select * from read_csv('/etc/passwd')",
        "begin",
    ] {
        let error = service.select("boss", writing).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument, "{writing}: {error}");
    }
    assert_eq!(service.select("ana", "select 1 as n").await.unwrap().num_rows(), 1);
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_access_is_written_down_without_what_was_read() {
    let service = Service::start().await;
    service
        .select("ana", &format!("select phone from core.customers where email = '{CANARY}-x' or age > 30"))
        .await
        .unwrap();
    let info = service.flight("boss").get_flight_info(path("risk.churn_score")).await.unwrap();
    service.fetch("boss", ticket(&info)).await.unwrap();
    service.fetch("agent1", ticket(&info)).await.unwrap_err();
    let mut nobody = FlightClient::new(service.channel.clone());
    nobody.get_flight_info(path("core.customers")).await.unwrap_err();
    let (lake, _folder) = service.shut_down().await;

    let key = AuditKey::derive(b"secret");
    let report = verify_audit(&lake, &SessionSettings::default(), &key).await.unwrap();
    assert_eq!((report.broken.len(), report.chains, report.lost), (0, 1, 0));
    let name = "audit.accesses".parse().unwrap();
    let run = LakeReader::newest_of(&lake, &SessionSettings::default(), &[name]).await.unwrap();
    let rows = rows_of(&run).await;
    let said = pretty_format_batches(std::slice::from_ref(&rows)).unwrap().to_string();
    assert!(!said.contains(CANARY), "{said}");
    let lines: Vec<&str> = said.lines().filter(|line| line.starts_with('|')).skip(2).collect();
    assert_eq!(lines.len(), 4, "{said}");
    // Who ends first is written first.
    for expected in [
        ["ana", "statement", "core.customers.phone", "core.customers.email", " ok "],
        ["boss", "table", "flight", "risk.churn_score", " ok "],
        ["agent1", "token", "table", "flight", "not_found"],
        ["", "authenticate", "flight", "", "refused"],
    ] {
        let is_it = |line: &&str| expected.iter().all(|part| line.contains(part));
        assert_eq!(lines.iter().filter(|line| is_it(line)).count(), 1, "{expected:?}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_is_cancelled_by_whose_it_is_and_by_nobody_else() {
    let service = Service::start().await;
    let endless = "select a.value from generate_series(1, 1000000) a, generate_series(1, 1000000) b";
    let info = service.flight("ana").get_flight_info(statement(endless)).await.unwrap();
    let mut stream = service.flight("ana").do_get(ticket(&info)).await.unwrap();
    stream.next().await.unwrap().unwrap();
    let request = CancelFlightInfoRequest::new(info);
    let by_another = service.flight("boss").cancel_flight_info(request.clone()).await.unwrap();
    assert_eq!(by_another.status(), CancelStatus::NotCancellable);
    for _ in 0..10 {
        stream.next().await.unwrap().unwrap();
    }
    let by_ana = service.flight("ana").cancel_flight_info(request).await.unwrap();
    assert_eq!(by_ana.status(), CancelStatus::Cancelled);
    let error = loop {
        match stream.next().await.expect("the stream ends with an error") {
            Ok(_) => {}
            Err(error) => break status(error),
        }
    };
    assert_eq!(error.code(), Code::Cancelled, "{}", error.message());
    let (lake, _folder) = service.shut_down().await;
    let name = "audit.accesses".parse().unwrap();
    let run = LakeReader::newest_of(&lake, &SessionSettings::default(), &[name]).await.unwrap();
    assert!(texts(&rows_of(&run).await, "outcome").contains(&Some("cancelled".to_owned())));
}

#[tokio::test(flavor = "multi_thread")]
async fn bound_values_are_not_written_down_and_statements_are_known_without_them() {
    let service = Service::start().await;
    let query = "select customer_id from core.customers where age > ? and phone <> ?".to_owned();
    let mut prepared = service.sql("boss").prepare(query, None).await.unwrap();
    for number in [1, 2] {
        prepared.set_parameters(values(number, &format!("{CANARY}-{number}"))).unwrap();
        let info = prepared.execute().await.unwrap();
        service.fetch("boss", ticket(&info)).await.unwrap();
    }
    let (lake, _folder) = service.shut_down().await;
    let name = "audit.accesses".parse().unwrap();
    let run = LakeReader::newest_of(&lake, &SessionSettings::default(), &[name]).await.unwrap();
    let rows = rows_of(&run).await;
    let said = pretty_format_batches(std::slice::from_ref(&rows)).unwrap().to_string();
    assert!(!said.contains(CANARY), "{said}");
    // Of the beginning of the log there is none.
    let hashes: Vec<String> =
        texts(&rows, "query_hash").into_iter().flatten().filter(|hash| !hash.is_empty()).collect();
    assert!(hashes.len() == 2 && hashes[0] == hashes[1], "{said}");
}

async fn rows_of(run: &holdfast_engine::Published) -> RecordBatch {
    let sql = "select * from audit.accesses order by sequence";
    let rows: Vec<RecordBatch> = run.rows("accesses", sql).await.unwrap().try_collect().await.unwrap();
    concat_batches(&rows[0].schema(), &rows).unwrap()
}

const CONTRACT: &str = r#"
kind = "crm"
path = "people/*.csv"
format = "csv"
event_time = "at"

[columns]
id = "int64"
at = "timestamp"
region = "string"
mobile = { type = "string", pii = true }

[[identifiers]]
type = "phone"
value = "mobile"
"#;

const PEOPLE: &str = "-- People, one row each.\n-- @tag pii(mobile)\nselect\n    id,      -- The number\n    region,  -- Where\n    mobile   -- Telephone\nfrom raw.people\n";

const CASES: &str = r#"
[roles.analyst]
tables = ["core.*"]
[[roles.analyst.rows]]
where = "region in (attribute('region'))"
[[roles.analyst.columns]]
tag = "pii"
mask = "partial"
keep_last = 2

[[case]]
name = "a_region_is_seen"
roles = ["analyst"]
attributes = { region = ["north"] }
query = "select id, mobile from core.people"
[case.given]
"core.people" = """
id | region | mobile
1  | north  | 13812345678
2  | south  | 13812345679
"""
[case.expect]
rows = """
id | mobile
1  | ***78
"""

[[case]]
name = "raw_is_not"
roles = ["analyst"]
query = "select * from raw.people"
[case.expect]
refused = "raw.people"
"#;

fn project() -> ProjectFolder {
    let rules = "priority = [\"phone\"]\n[types.phone]\n";
    let folder = ProjectFolder::of_one_source("people", CONTRACT, rules, PEOPLE);
    folder.write("pipelines/churn/policy.toml", CASES);
    folder
}

/// What a command says when it is refused.
fn refused(command: &mut std::process::Command) -> String {
    let output = command.output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_policy_is_checked_tried_and_explained() {
    let folder = project();
    succeed(&mut folder.command(&["policy", "check"]));
    succeed(&mut folder.command(&["check"]));
    let tested = succeed(&mut folder.command(&["policy", "test"]));
    assert!(String::from_utf8_lossy(&tested.stderr).contains("2 of 2 cases passed"));

    folder.write("in/people/1.csv", "id,at,region,mobile\n1,2026-01-01T00:00:00Z,north,13812345678\n");
    folder.ingest();
    succeed(&mut folder.command(&["run"]));
    succeed(&mut folder.command(&[
        "access",
        "token",
        "add",
        "tool",
        "--role",
        "analyst",
        "--attribute",
        "region=o'land",
    ]));
    let said = succeed(&mut folder.command(&["policy", "explain", "tool", "core.people"]));
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(said.contains("region IN ('o''land')") && said.contains("partial (first 0, last 2 characters)"), "{said}");
    let said = succeed(&mut folder.command(&["policy", "explain", "x", "raw.people", "--role", "analyst", "--json"]));
    let said: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(said["visible"], false);

    for (from, to, expected) in [
        ("mask = \"partial\"", "mask = \"partail\"", "policy.toml:8:8"),
        ("\"core.*\"]", "\"core.peple\"]", "did you mean `core.people`?"),
        ("region in (attribute", "regoin in (attribute", "of core.people"),
        ("***78", "***79", "1 of 2 cases failed"),
    ] {
        folder.write("pipelines/churn/policy.toml", &CASES.replace(from, to));
        let command = if from.starts_with("***") { ["policy", "test"] } else { ["policy", "check"] };
        let said = refused(&mut folder.command(&command));
        assert!(said.contains(expected), "{said}");
        if command[1] == "check" {
            assert!(refused(&mut folder.command(&["check"])).contains("1 mistake"));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_binary_serves_by_policy_writes_down_who_read_and_tells_its_log_nothing() {
    let folder = project();
    folder.write("in/people/1.csv", &format!("id,at,region,mobile\n1,2026-01-01T00:00:00Z,north,{CANARY}5678\n2,2026-01-01T00:00:00Z,south,{CANARY}5679\n"));
    folder.ingest();
    succeed(&mut folder.command(&["run"]));
    let token = |arguments: &[&str]| {
        let output = succeed(folder.command(&["access"]).args(arguments));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let tool = token(&["token", "add", "tool", "--role", "analyst", "--attribute", "region=north"]);
    let password =
        token(&["user", "add", "ana", "--role", "analyst", "--attribute", "region=south", "--make-password"]);

    let said = refused(&mut folder.command(&["serve", "--users", "nowhere.toml", "--listen", "127.0.0.1:0"]));
    assert!(said.contains("nowhere.toml"), "{said}");
    let mut command =
        folder.command(&["-vv", "serve", "--listen", "127.0.0.1:0", "--users", "users.toml", "--audit", "required"]);
    let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let lines = crate::lines_of(&mut child);
    let mut log = Vec::new();
    let address = loop {
        let line = lines.recv_timeout(Duration::from_secs(120)).unwrap();
        if let Some((_, rest)) = line.split_once("grpc://") {
            break rest.split(',').next().unwrap().to_owned();
        }
        log.push(line);
    };
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let mut by_token = FlightSqlServiceClient::new(channel.clone());
    by_token.set_token(tool);
    let mut by_password = FlightSqlServiceClient::new(channel.clone());
    by_password.handshake("ana", &password).await.unwrap();
    for (client, expected) in [(&mut by_token, "***78"), (&mut by_password, "***79")] {
        let info = client.execute("select mobile from core.people".to_owned(), None).await.unwrap();
        let rows: Vec<RecordBatch> = client.do_get(ticket(&info)).await.unwrap().try_collect().await.unwrap();
        assert_eq!(texts(&rows[0], "mobile"), [Some(expected.to_owned())]);
        let failing = "select cast(mobile as bigint) from core.people".to_owned();
        let info = client.execute(failing, None).await.unwrap();
        let ended = client.do_get(ticket(&info)).await.unwrap().try_collect::<Vec<RecordBatch>>().await;
        assert!(!ended.unwrap_err().to_string().contains(CANARY));
    }
    succeed(std::process::Command::new("kill").arg("-TERM").arg(child.id().to_string()));
    assert!(child.wait().unwrap().success());
    log.extend(lines.iter());
    assert!(!log.iter().any(|line| line.contains(CANARY) || line.contains(&password)), "{log:#?}");

    let verified = succeed(&mut folder.command(&["audit", "verify", "--json"]));
    let report: serde_json::Value = serde_json::from_slice(&verified.stdout).unwrap();
    assert_eq!(report["broken"].as_array().unwrap().len(), 0, "{report}");
    // An opening, and of each of four statements its beginning and its end.
    assert_eq!(report["rows"], 9, "{report}");
    let rows = folder
        .query("select principal, count(*) as n from audit.accesses where outcome = 'begun' group by 1 order by 1");
    assert_eq!(serde_json::to_string(&rows).unwrap(), r#"[{"n":2,"principal":"ana"},{"n":2,"principal":"tool"}]"#);
    let other_key = folder.write("other.key", &"7".repeat(64));
    let output = std::process::Command::new(holdfast_binary())
        .arg("--project")
        .arg(folder.path())
        .arg("--identity-key")
        .arg(other_key)
        .args(["audit", "verify"])
        .output()
        .unwrap();
    assert!(!output.status.success(), "another key is not the lake's");
}
