//! What principals see through the port, whichever way it is asked (POL-1); below it who may come in, how much they may use and what is written down of it.

mod commands;
mod doors;
mod earlier;
mod limits;
mod log;

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
use arrow_flight::{FlightClient, FlightDescriptor, FlightInfo, Ticket};
use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};
use holdfast_access::{Access, AccessSettings, Audit, AuditKey, MaskKey, NewPrincipal, Users};
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
            ..AccessSettings::default()
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

async fn rows_of(run: &holdfast_engine::Published) -> RecordBatch {
    let sql = "select * from audit.accesses order by sequence";
    let rows: Vec<RecordBatch> = run.rows("accesses", sql).await.unwrap().try_collect().await.unwrap();
    concat_batches(&rows[0].schema(), &rows).unwrap()
}
