//! POL-1 as a whole: every question over every protocol that can ask it, by every role, has one answer; and personal data that a role may not see is in no
//! byte that it is sent, in no error, and in no log or span of the service.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::util::display::array_value_to_string;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::sql::client::FlightSqlServiceClient;
use arrow_flight::sql::{CommandStatementQuery, ProstMessageExt};
use arrow_flight::{Action, FlightData, FlightDescriptor, FlightInfo, Ticket};
use futures::{StreamExt, TryStreamExt};
use holdfast_serve::{CommandMessage, FeaturesForCustomers, GetHistoricalFeatures, GetOnlineFeatures, KeyColumn};
use prost::Message;
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::features::now;
use crate::folder::ProjectFolder;
use crate::pg_client::{PgClient, Rows};
use crate::served::Served;
use crate::succeed;
use crate::telemetry::Receiver;

/// In every value of personal data, and nowhere else.
const CANARY: &str = "CANARY";

const CONTRACT: &str = "kind = \"crm\"\npath = \"people/*.csv\"\nformat = \"csv\"\nevent_time = \"at\"\n[columns]\n\
    member = \"string\"\nat = \"timestamp\"\nregion = \"string\"\nphone = { type = \"string\", pii = true }\n\
    email = { type = \"string\", pii = true }\n[[identifiers]]\ntype = \"member_id\"\nvalue = \"member\"\n";

const PEOPLE: &str = "-- People, one row each.\n-- @tag pii(phone)\n-- @tag pii(email)\nselect\n    i.customer_id,  -- Unified customer id\n\
    p.member,       -- Number\n    p.region,       -- Where\n    p.phone,        -- Telephone\n    p.email         -- Mail\n\
    from raw.people p\nleft join identity.identifiers i on i.token = identifier_token('member_id', p.member)\n";

const REACH: &str = "-- How a customer is reached.\n-- @feature online\n-- @tag pii(phone)\nselect\n    customer_id,              -- Unified customer id\n\
    max(phone) as phone,      -- Telephone\n    count(*) as entries       -- Entries\nfrom core.people\nwhere customer_id is not null\n\
    group by customer_id\n";

const POLICY: &str = r#"
[roles.analyst]
tables = ["core.*", "features.*"]
[[roles.analyst.rows]]
tables = ["core.people"]
where = "region in (attribute('region'))"
[[roles.analyst.columns]]
tag = "pii"
mask = "hash"

[roles.agent]
tables = ["core.people", "features.reach"]
[[roles.agent.columns]]
columns = ["phone"]
mask = "partial"
keep_last = 2

[roles.hidden]
tables = ["core.*", "features.*"]

[roles.regional]
tables = ["core.people", "features.reach"]
[[roles.regional.rows]]
tables = ["features.reach"]
where = "entries > 1"
[[roles.regional.columns]]
tag = "pii"
mask = "null"

[roles.owner]
tables = ["*"]
[[roles.owner.columns]]
tag = "pii"
mask = "show"
"#;

/// Every user, and the role of the same place.
const USERS: [(&str, &str); 5] =
    [("ana", "analyst"), ("agent1", "agent"), ("hid", "hidden"), ("reg", "regional"), ("boss", "owner")];
/// Who may see everything.
const OWNER: &str = "boss";

/// Questions whose columns are texts and whole numbers, which all protocols write alike. What cannot be answered is refused by all.
const QUERIES: [&str; 13] = [
    "select * from core.people order by member",
    "select member, region, phone, email from core.people order by member",
    "select member, phone from core.people where region = 'north' and member <> 'M9' order by member",
    "select count(*) as n, count(phone) as phones, min(phone) as least, max(phone) as most from core.people",
    "select region, count(distinct phone) as phones from core.people group by region order by region",
    "select p.member, f.phone, f.entries from core.people p inner join features.reach f on f.customer_id = p.customer_id \
     order by p.member",
    "with c as (select * from core.people) select c.member, upper(c.phone) as phone from c where c.region <> 'x' order by c.member",
    "select member from core.people where phone like '%ANARY-%' or email like '_ANARY%' order by member",
    "select phone from core.people union all select phone from features.reach order by 1",
    "select member, lag(phone) over (order by member) as before from core.people order by member",
    "select customer_id, phone, entries from features.reach order by customer_id",
    "select cast(phone as bigint) as n from core.people",
    "select member from core.people where 1 / (case when region = 'south' then 0 else 1 end) > 0 order by member",
];

/// Questions whose answers are in the protocol's own words: only what must not be in them is looked at.
const TELLING: [&str; 7] = [
    "explain select * from core.people where phone like '%7'",
    "explain analyze select phone from core.people order by phone limit 3",
    "select emaill from core.people",
    "select to_timestamp(phone) from core.people",
    "select * from raw.people",
    "select table_name, column_name from information_schema.columns order by 1, 2",
    "select * from core.people where phone in (select phone from raw.people)",
];

/// A user, with a connection of each kind.
pub(crate) struct Asker<'a> {
    served: &'a Served,
    pub(crate) channel: Channel,
    token: String,
    wire: PgClient,
    /// Every byte that the user was sent, but for what is in `wire`.
    received: Vec<u8>,
}

/// An answer, or that it was refused.
pub(crate) type Answer = Result<Rows, String>;

impl<'a> Asker<'a> {
    pub(crate) async fn new(served: &'a Served, who: &str, password: &str) -> Self {
        let channel = served.channel().await;
        let mut sql = FlightSqlServiceClient::new(channel.clone());
        let token = String::from_utf8(sql.handshake(who, password).await.unwrap().to_vec()).unwrap();
        let wire = PgClient::connect(served.postgres, who, Some(password)).await.unwrap();
        Self { served, channel, token, wire, received: Vec::new() }
    }

    fn sql(&self) -> FlightSqlServiceClient<Channel> {
        let mut client = FlightSqlServiceClient::new(self.channel.clone());
        client.set_token(self.token.clone());
        client
    }

    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("authorization", format!("Bearer {}", self.token).parse().unwrap());
        request
    }

    fn refused(&mut self, error: impl std::fmt::Debug) -> String {
        let said = format!("{error:?}");
        self.received.extend_from_slice(said.as_bytes());
        said
    }

    fn noted(&mut self, info: Result<FlightInfo, Status>) -> Result<Ticket, String> {
        let info = info.map_err(|error| self.refused(error))?;
        self.received.extend(info.encode_to_vec());
        Ok(info.endpoint[0].ticket.clone().unwrap())
    }

    pub(crate) async fn info(&mut self, descriptor: FlightDescriptor) -> Result<Ticket, String> {
        let request = self.request(descriptor);
        let info = FlightServiceClient::new(self.channel.clone()).get_flight_info(request).await;
        self.noted(info.map(tonic::Response::into_inner))
    }

    pub(crate) async fn fetch(&mut self, ticket: impl Into<Ticket>) -> Answer {
        let request = self.request(ticket.into());
        let answer = FlightServiceClient::new(self.channel.clone()).do_get(request).await;
        self.read(answer).await
    }

    /// Rows as they come over Flight, all bytes noted.
    async fn read(&mut self, answer: Result<tonic::Response<tonic::Streaming<FlightData>>, Status>) -> Answer {
        let mut stream = answer.map_err(|error| self.refused(error))?.into_inner();
        let mut messages = Vec::new();
        while let Some(message) = stream.next().await {
            let message = message.map_err(|error| self.refused(error))?;
            self.received.extend(message.encode_to_vec());
            messages.push(Ok(message));
        }
        let batches = FlightRecordBatchStream::new_from_flight_data(futures::stream::iter(messages));
        Ok(batches.try_collect::<Vec<_>>().await.unwrap().iter().flat_map(rows).collect())
    }

    pub(crate) async fn exchange(&mut self, command: impl Into<bytes::Bytes>, sent: RecordBatch) -> Answer {
        let messages = FlightDataEncoderBuilder::new()
            .with_flight_descriptor(Some(FlightDescriptor::new_cmd(command)))
            .build(futures::stream::iter([Ok::<_, FlightError>(sent)]))
            .map(Result::unwrap);
        let request = self.request(messages);
        let answer = FlightServiceClient::new(self.channel.clone()).do_exchange(request).await;
        self.read(answer).await
    }

    /// The answers of every protocol to a statement, by its name.
    async fn everywhere(&mut self, query: &str) -> BTreeMap<&'static str, Answer> {
        let mut answers = BTreeMap::new();
        let command = CommandStatementQuery { query: query.to_owned(), transaction_id: None }.as_any().encode_to_vec();
        let by_info = match self.info(FlightDescriptor::new_cmd(command.clone())).await {
            Ok(ticket) => self.fetch(ticket).await,
            Err(refused) => Err(refused),
        };
        answers.insert("Flight SQL", by_info);
        answers.insert("a command as ticket", self.fetch(Ticket::new(command.clone())).await);
        let request = self.request(FlightDescriptor::new_cmd(command));
        match FlightServiceClient::new(self.channel.clone()).get_schema(request).await {
            Ok(schema) => self.received.extend(schema.into_inner().encode_to_vec()),
            Err(error) => drop(self.refused(error)),
        }
        let prepared = match self.sql().prepare(query.to_owned(), None).await {
            Ok(mut prepared) => {
                self.received.extend(format!("{:?}", prepared.dataset_schema()).into_bytes());
                match prepared.execute().await {
                    Ok(info) => {
                        let ticket = self.noted(Ok(info)).unwrap();
                        self.fetch(ticket).await
                    }
                    Err(error) => Err(self.refused(error)),
                }
            }
            Err(error) => Err(self.refused(error)),
        };
        answers.insert("prepared", prepared);
        let told = |answer: Result<Rows, crate::pg_client::PgError>| answer.map_err(|error| error.message);
        let _ = self.wire.described(query).await;
        answers.insert("PostgreSQL, simple", told(self.wire.simple(query).await));
        answers.insert("PostgreSQL, extended", told(self.wire.extended(query, &[]).await));
        answers.insert("PostgreSQL, copy", told(self.wire.simple(&format!("copy ({query}) to stdout")).await));
        answers
    }

    /// The same with values for parameters.
    async fn with_parameters(&mut self) -> BTreeMap<&'static str, Answer> {
        let query = "select member, phone from core.people where region = $1 and member <> $2 order by member";
        let texts = |values: [&str; 1]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
        let values = RecordBatch::try_from_iter([("$1", texts(["north"])), ("$2", texts(["M9"]))]).unwrap();
        let by_flight = match self.sql().prepare(query.to_owned(), None).await {
            Ok(mut prepared) => {
                prepared.set_parameters(values).unwrap();
                match prepared.execute().await {
                    Ok(info) => {
                        let ticket = self.noted(Ok(info)).unwrap();
                        self.fetch(ticket).await
                    }
                    Err(error) => Err(self.refused(error)),
                }
            }
            Err(error) => Err(self.refused(error)),
        };
        let by_wire = self.wire.extended(query, &["north", "M9"]).await.map_err(|error| error.message);
        BTreeMap::from([("prepared with values", by_flight), ("PostgreSQL with values", by_wire)])
    }

    /// Features of these customers by every way to ask for them: customer, phone, entries.
    async fn features(&mut self, customers: &[String]) -> BTreeMap<&'static str, Answer> {
        let features = || vec!["reach:phone".to_owned(), "reach:entries".to_owned()];
        let ids: ArrayRef = Arc::new(StringArray::from(customers.to_vec()));
        let mut answers = BTreeMap::new();
        let command = FeaturesForCustomers {
            feature_view: "features.reach".to_owned(),
            customer_ids: customers.to_vec(),
            features: vec!["phone".to_owned(), "entries".to_owned()],
        };
        answers.insert("features for customers", self.fetch(Ticket::new(command.to_command())).await);
        let online = GetOnlineFeatures { features: features(), ..GetOnlineFeatures::default() };
        let keys = KeyColumn { name: "customer_id".to_owned(), texts: customers.to_vec(), ..KeyColumn::default() };
        let command = GetOnlineFeatures { keys: vec![keys], ..online.clone() };
        answers.insert("online", self.fetch(Ticket::new(command.to_command())).await);
        let keys = RecordBatch::try_from_iter([("customer_id", Arc::clone(&ids))]).unwrap();
        answers.insert("an exchange of keys", self.exchange(online.to_command(), keys).await);
        let moments = TimestampMicrosecondArray::from(vec![now().timestamp_micros(); customers.len()]);
        let spine = RecordBatch::try_from_iter([
            ("customer_id", ids),
            ("event_timestamp", Arc::new(moments.with_timezone("UTC")) as ArrayRef),
        ])
        .unwrap();
        let command = GetHistoricalFeatures { features: features(), ..GetHistoricalFeatures::default() };
        let historical = self.exchange(command.to_command(), spine).await;
        // The moment is the spine's own.
        let without = |rows: Rows| rows.into_iter().map(|row| [&row[..1], &row[2..]].concat()).collect();
        answers.insert("historical", historical.map(without));
        let body = json!({"entities": {"customer_id": customers}, "features": features()}).to_string();
        let answer = self.served.post(&self.token, &body).await;
        self.received.extend_from_slice(answer.as_bytes());
        answers.insert("HTTP", by_http(&answer));
        // What says why a value is not there is each one's own.
        let cut = |answer: Answer| answer.map(|rows| rows.into_iter().map(|row| row[..3].to_vec()).collect());
        answers.into_iter().map(|(name, answer)| (name, cut(answer))).collect()
    }
}

fn rows(batch: &RecordBatch) -> Rows {
    let cell =
        |row: usize, column: &ArrayRef| (!column.is_null(row)).then(|| array_value_to_string(column, row).unwrap());
    (0..batch.num_rows()).map(|row| batch.columns().iter().map(|column| cell(row, column)).collect()).collect()
}

fn by_http(answer: &str) -> Answer {
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    if !head.starts_with("HTTP/1.1 200") {
        return Err(body.to_owned());
    }
    let body: Value = serde_json::from_str(body).unwrap();
    let columns = body["results"].as_array().unwrap();
    let text = |value: &Value| match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    };
    let count = columns[0]["values"].as_array().unwrap().len();
    Ok((0..count).map(|row| columns.iter().map(|column| text(&column["values"][row])).collect()).collect())
}

fn has(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

fn agree(who: &str, what: &str, answers: &BTreeMap<&'static str, Answer>) -> Answer {
    let (first, expected) = answers.first_key_value().unwrap();
    for (name, answer) in answers {
        match (expected, answer) {
            (Ok(expected), Ok(answer)) => assert_eq!(answer, expected, "{who}: {what}: {name} and {first}"),
            (Err(_), Err(_)) => {}
            _ => panic!("{who}: {what}: {name} and {first}: {answers:#?}"),
        }
    }
    expected.clone()
}

pub(crate) fn project() -> (ProjectFolder, BTreeMap<&'static str, String>) {
    let rules = "priority = [\"member_id\"]\n[types.member_id]\nunique = true\n";
    let folder = ProjectFolder::of_one_source("people", CONTRACT, rules, PEOPLE);
    folder.write("sql/features/reach.sql", REACH);
    folder.write("pipelines/churn/policy.toml", POLICY);
    let mut lines = "member,at,region,phone,email\n".to_owned();
    for number in 0..6 {
        let region = ["north", "south"][number % 2];
        lines.push_str(&format!(
            "M{number},2026-01-0{}T00:00:00Z,{region},{CANARY}-1380{number:03},{CANARY}{number}@example.org\n",
            number + 1
        ));
    }
    folder.write("in/people/1.csv", &lines);
    folder.ingest();
    succeed(&mut folder.command(&["run"]));
    let passwords = USERS.map(|(user, role)| {
        let arguments =
            ["access", "user", "add", user, "--role", role, "--attribute", "region=north", "--make-password"];
        let output = succeed(&mut folder.command(&arguments));
        (user, String::from_utf8(output.stdout).unwrap().trim().to_owned())
    });
    (folder, BTreeMap::from(passwords))
}

#[tokio::test(flavor = "multi_thread")]
async fn pol_1_every_protocol_gives_a_role_one_answer_and_no_byte_of_what_it_may_not_see() {
    let (folder, passwords) = project();
    let spans = Receiver::start().await;
    let served = Served::start(
        &folder,
        &["--users", "users.toml", "--audit", "on"],
        &[("OTEL_EXPORTER_OTLP_ENDPOINT", &spans.endpoint)],
    );
    let ids = folder.query("select customer_id from features.reach order by customer_id");
    let customers: Vec<String> = ids.iter().map(|row| row["customer_id"].as_str().unwrap().to_owned()).collect();
    assert_eq!(customers.len(), 6);

    let mut answered: BTreeMap<(&str, &str), Answer> = BTreeMap::new();
    for (who, _) in USERS {
        let mut asker = Asker::new(&served, who, &passwords[who]).await;
        for query in QUERIES {
            let answers = asker.everywhere(query).await;
            answered.insert((who, query), agree(who, query, &answers));
        }
        let by_values = asker.with_parameters().await;
        let mut with_literal = by_values.clone();
        with_literal.insert("with literals", answered[&(who, QUERIES[2])].clone());
        let _ = agree(who, "values", &with_literal);

        // The table by its path has the rows of `select *`, in some order.
        let path = FlightDescriptor::new_path(vec!["core".to_owned(), "people".to_owned()]);
        let ticket = asker.info(path).await.unwrap();
        let sorted = |answer: &Answer| {
            let mut rows = answer.clone().unwrap();
            rows.sort();
            rows
        };
        let by_path = asker.fetch(ticket).await;
        assert_eq!(sorted(&by_path), sorted(&answered[&(who, QUERIES[0])]), "{who}");

        for query in TELLING {
            let _ = asker.everywhere(query).await;
        }
        for action in ["list_features", "describe_features", "get_dataset"] {
            let body = if action == "describe_features" { "reach" } else { "" };
            let request = asker.request(Action::new(action, body));
            match FlightServiceClient::new(asker.channel.clone()).do_action(request).await {
                Ok(told) => {
                    let told: Vec<_> = told.into_inner().try_collect().await.unwrap();
                    asker.received.extend(told.iter().flat_map(Message::encode_to_vec));
                }
                Err(error) => drop(asker.refused(error)),
            }
        }

        let mut features = asker.features(&customers).await;
        if who == "reg" {
            // The feature store knows no rows; what knows them gives none.
            let by_plan = features.remove("features for customers").unwrap().unwrap();
            assert!(by_plan.iter().all(|row| row[1..] == [None, None]), "{by_plan:?}");
            assert!(agree(who, "features", &features).is_err());
        } else {
            let given = agree(who, "features", &features);
            assert_eq!(given.as_ref().ok(), answered[&(who, QUERIES[10])].as_ref().ok(), "{who}: features and SQL");
        }

        let told = has(&asker.received, CANARY) || has(&asker.wire.received, CANARY);
        assert_eq!(told, who == OWNER, "{who}");
        assert!(!has(&asker.received, passwords[who].as_str()));
    }

    // What the answers are: a protocol that gives nothing to anybody would agree with itself, too.
    let rows = |who: &str, query: usize| answered[&(who, QUERIES[query])].as_ref().map(Vec::len).ok();
    for (who, seen) in [("ana", Some(3)), ("agent1", None), ("hid", None), ("reg", Some(6)), ("boss", Some(6))] {
        assert_eq!(rows(who, 1), seen, "{who}");
    }
    assert_eq!(["ana", "agent1", "hid", "reg", "boss"].map(|who| rows(who, 0).unwrap()), [3, 6, 6, 6, 6]);
    let cell = |who: &str, query: usize, row: usize, column: usize| {
        answered[&(who, QUERIES[query])].as_ref().unwrap()[row][column].clone()
    };
    assert_eq!(cell("ana", 2, 0, 1).unwrap().len(), 32);
    assert_eq!(cell("agent1", 2, 0, 1).as_deref(), Some("***00"));
    assert_eq!(cell("reg", 2, 0, 1), None);
    assert_eq!(cell("boss", 2, 0, 1), Some(format!("{CANARY}-1380000")));
    assert_eq!(["ana", "reg", "boss"].map(|who| rows(who, 7).unwrap()), [0, 0, 6]);
    // A telephone is no number, but for whom it is nothing.
    assert_eq!(["ana", "agent1", "hid", "reg", "boss"].map(|who| rows(who, 11)), [None, None, None, Some(6), None]);
    // The division fails on a row of the south, which one of them does not see.
    assert_eq!((rows("ana", 12), rows("boss", 12)), (Some(3), None));

    let said = served.stop();
    let is_told = |line: &&String| line.contains(CANARY) || passwords.values().any(|password| line.contains(password));
    assert!(said.len() > 200, "the log is read");
    assert_eq!(said.iter().find(is_told), None);
    assert!(spans.spans().iter().any(|span| span.name == "flight"), "spans arrive");
    assert!(!spans.bytes().contains(CANARY), "a span tells");
    let audited = folder.query("select * from audit.accesses");
    assert!(audited.len() > 200 && !serde_json::to_string(&audited).unwrap().contains(CANARY));
}
