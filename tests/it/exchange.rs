//! Exchanges over a real port: a spine that is answered while it is sent, and keys that are answered a batch at a time for as long as the client likes.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::Int64Type;
use arrow::util::display::array_value_to_string;
use arrow_flight::decode::{DecodedPayload, FlightDataDecoder};
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_service_client::FlightServiceClient;
use arrow_flight::{Action, FlightClient, FlightDescriptor};
use chrono::{DateTime, Utc};
use futures::{StreamExt, TryStreamExt};
use holdfast_engine::{LakeReader, SessionSettings};
use holdfast_lake::{Lake, StoreOptions};
use holdfast_serve::{
    CommandMessage, GetHistoricalFeatures, GetOnlineFeatures, KeyColumn, ServeError, ServeSettings, Token, bind,
    serve_with_http,
};
use holdfast_types::Clock;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::{self, UnboundedSender};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;

use crate::features::{customer, order, run, shop};
use crate::stages::Shop;

/// The real time: runs of the binary are at it.
#[derive(Debug)]
struct Now;

impl Clock for Now {
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }
}

struct Service {
    channel: Channel,
    http: std::net::SocketAddr,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<(), ServeError>>,
}

impl Service {
    /// Serves the shop's lake; looks for new runs only when told to.
    async fn start(shop: &Shop, settings: ServeSettings) -> Self {
        let url = shop.path().join("lake").display().to_string();
        let lake = Lake::open_to_write(&url, shop.path(), &StoreOptions::new(), Arc::new(Now)).await.unwrap();
        let reader = Arc::new(LakeReader::open(lake, SessionSettings::default()).await.unwrap());
        let settings = ServeSettings { reload_interval: Duration::from_secs(3600), ..settings };
        let listener = bind("127.0.0.1:0", None).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let http = bind("127.0.0.1:0", None).await.unwrap();
        let http_address = http.local_addr().unwrap();
        let running = tokio::spawn(serve_with_http(reader, None, settings, (listener, Some(http)), async move {
            let _ = stopped.await;
        }));
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Self { channel, http: http_address, stop, running }
    }

    /// An exchange with a command; the sender takes the rows.
    fn exchange(&self, command: impl Into<bytes::Bytes>) -> (UnboundedSender<RecordBatch>, FlightDataDecoder) {
        exchange(self.channel.clone(), None, command)
    }

    /// What a body gets over HTTP: the code, and the JSON.
    async fn post(&self, headers: &str, body: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.http).await.unwrap();
        let head = "POST /get-online-features HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
        let length = body.len();
        let request =
            format!("{head}{headers}content-length: {length}\r\ncontent-type: application/json\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
    }

    async fn refresh(&self) {
        let mut client = FlightClient::new(self.channel.clone());
        let told: Vec<_> = client.do_action(Action::new("refresh", "")).await.unwrap().try_collect().await.unwrap();
        assert!(String::from_utf8_lossy(&told[0]).contains("\"swapped\":true"), "{told:?}");
    }

    async fn shut_down(self) {
        self.stop.send(()).unwrap();
        tokio::time::timeout(Duration::from_secs(20), self.running).await.unwrap().unwrap().unwrap();
    }
}

/// An exchange with a command; the sender takes the rows.
pub(crate) fn exchange(
    channel: Channel,
    token: Option<&str>,
    command: impl Into<bytes::Bytes>,
) -> (UnboundedSender<RecordBatch>, FlightDataDecoder) {
    let (sender, rows) = mpsc::unbounded_channel();
    let messages = FlightDataEncoderBuilder::new()
        .with_flight_descriptor(Some(FlightDescriptor::new_cmd(command)))
        .build(UnboundedReceiverStream::new(rows).map(Ok::<RecordBatch, FlightError>))
        .map(Result::unwrap);
    let mut request = tonic::Request::new(messages);
    if let Some(token) = token {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let mut client = FlightServiceClient::new(channel);
    // The answer begins with the first rows.
    let answers = tokio::spawn(async move { client.do_exchange(request).await.map(tonic::Response::into_inner) });
    let answers = futures::stream::once(async { answers.await.unwrap() }).try_flatten();
    (sender, FlightDataDecoder::new(answers.map_err(FlightError::from)))
}

/// The next rows, and what was sent beside them.
pub(crate) async fn next(answers: &mut FlightDataDecoder) -> Result<Option<(RecordBatch, String)>, FlightError> {
    while let Some(message) = tokio::time::timeout(Duration::from_secs(30), answers.next()).await.unwrap() {
        let message = message?;
        if let DecodedPayload::RecordBatch(batch) = message.payload {
            return Ok(Some((batch, String::from_utf8(message.inner.app_metadata.to_vec()).unwrap())));
        }
    }
    Ok(None)
}

pub(crate) async fn refusal(answers: &mut FlightDataDecoder) -> String {
    loop {
        match next(answers).await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the exchange ended well"),
            Err(FlightError::Tonic(status)) => return status.message().to_owned(),
            Err(error) => panic!("{error}"),
        }
    }
}

fn keys(customers: &[Option<&str>]) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable([(
        "customer_id",
        Arc::new(StringArray::from(customers.to_vec())) as ArrayRef,
        true,
    )])
    .unwrap()
}

fn cells(batch: &RecordBatch, columns: &[&str]) -> Vec<Vec<String>> {
    let cell = |row: usize, column: &&str| array_value_to_string(batch.column_by_name(column).unwrap(), row).unwrap();
    (0..batch.num_rows()).map(|row| columns.iter().map(|column| cell(row, column)).collect()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_of_keys_goes_on_over_a_publish_with_the_versions_it_began_with() {
    let shop = shop();
    order(&shop, "a", &[("o1", "M1", 10, "10.00"), ("o2", "M2", 200, "7.00")]);
    run(&shop);
    let (m1, m2) = (customer(&shop, "o1"), customer(&shop, "o2"));
    let service = Service::start(&shop, ServeSettings { max_customer_ids: 5, ..ServeSettings::default() }).await;
    // As JSON: what it says is what the protobuf says.
    let command = r#"{"@type": "holdfast.v1.GetOnlineFeatures", "feature_service": "churn", "event_timestamps": true}"#;
    let (sender, mut answers) = service.exchange(command);
    let asked = keys(&[Some(&m1), Some("nobody"), None, Some(&m2), Some(&m1)]);
    sender.send(asked.clone()).unwrap();
    let columns = ["customer_id", "spend", "orders", "spend__status"];
    let (batch, of_run) = next(&mut answers).await.unwrap().unwrap();
    assert_eq!(
        cells(&batch, &columns),
        [
            [m1.as_str(), "10.00", "1", "PRESENT"],
            ["nobody", "", "", "NOT_FOUND"],
            ["", "", "", "NOT_FOUND"],
            [&m2, "", "", "OUTSIDE_MAX_AGE"],
            [&m1, "10.00", "1", "PRESENT"]
        ]
    );
    assert!(batch.column_by_name("spend__event_timestamp").unwrap().is_null(1));
    let schema = answers.schema().cloned();
    let metadata = schema.as_ref().map(|schema| schema.metadata().clone()).unwrap();
    assert_eq!(metadata["holdfast.feature_service"], "churn@v1");
    assert_eq!(metadata["holdfast.features"], "spend@v1:spend,spend@v1:orders");
    assert_eq!(metadata["holdfast.run"], of_run);
    assert!(metadata["holdfast.tables"].contains("\"history.spend_v1\":"), "{metadata:?}");

    // Another run, with another service of that name.
    order(&shop, "b", &[("o3", "M1", 3, "5.00"), ("o4", "M2", 2, "1.00")]);
    shop.write("pipelines/churn/feature_services.toml", "[churn]\nfeatures = [\"spend:orders\"]\n");
    run(&shop);
    service.refresh().await;
    sender.send(asked).unwrap();
    let (batch, of_next) = next(&mut answers).await.unwrap().unwrap();
    assert_eq!(cells(&batch, &columns)[0], [m1.as_str(), "15.00", "2", "PRESENT"]);
    assert_eq!(cells(&batch, &columns)[3], [m2.as_str(), "8.00", "2", "PRESENT"]);
    assert!(of_next.parse::<u64>().unwrap() > of_run.parse().unwrap());

    drop(sender);
    assert!(next(&mut answers).await.unwrap().is_none());
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_exchange_of_keys_cannot_answer_is_told_and_ends_it() {
    let shop = shop();
    order(&shop, "a", &[("o1", "M1", 10, "10.00")]);
    run(&shop);
    let service = Service::start(
        &shop,
        ServeSettings {
            max_customer_ids: 2,
            max_online_exchanges: 1,
            query_timeout: Duration::from_secs(5),
            ..ServeSettings::default()
        },
    )
    .await;
    let churn = GetOnlineFeatures { feature_service: "churn".to_owned(), ..GetOnlineFeatures::default() };
    let integers =
        RecordBatch::try_from_iter([("customer_id", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]).unwrap();
    let shops = RecordBatch::try_from_iter([("shop", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]).unwrap();
    let with_keys = KeyColumn { texts: vec!["a".to_owned()], ..KeyColumn::default() };
    for (command, rows, told) in [
        (churn.clone(), keys(&[Some("a"), Some("b"), Some("c")]), "3 keys were asked for, and may be 2"),
        (churn.clone(), integers, "the key customer_id is Int64, expected Utf8"),
        (churn.clone(), shops, "no key column `customer_id`"),
        (GetOnlineFeatures { keys: vec![with_keys], ..churn.clone() }, keys(&[None]), "leave `keys` out"),
        (
            GetOnlineFeatures { feature_service: "chrn".to_owned(), ..GetOnlineFeatures::default() },
            keys(&[None]),
            "no feature service is called `chrn`; there are: churn",
        ),
    ] {
        let (sender, mut answers) = service.exchange(command.to_command());
        sender.send(rows).unwrap();
        let said = refusal(&mut answers).await;
        assert!(said.contains(told), "{said}");
    }
    // One that stays open has the only place; one that says nothing gives it back after a while.
    let (quiet, mut quiet_answers) = service.exchange(churn.to_command());
    quiet.send(keys(&[Some("a")])).unwrap();
    assert_eq!(next(&mut quiet_answers).await.unwrap().unwrap().0.num_rows(), 1);
    let (sender, mut answers) = service.exchange(churn.to_command());
    sender.send(keys(&[Some("a")])).unwrap();
    let said = refusal(&mut answers).await;
    assert!(said.contains("which is the limit"), "{said}");
    let said = refusal(&mut quiet_answers).await;
    assert!(said.contains("stopped after 5 s"), "{said}");
    let (sender, mut answers) = service.exchange(churn.to_command());
    sender.send(keys(&[Some("a")])).unwrap();
    assert_eq!(next(&mut answers).await.unwrap().unwrap().0.num_rows(), 1);
    // Who goes away leaves nothing behind.
    drop((sender, answers));
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pit_2_a_spine_is_answered_row_by_row_while_it_is_sent() {
    let shop = shop();
    order(&shop, "a", &[("o1", "M1", 10, "10.00"), ("o2", "M2", 1, "7.00")]);
    let before = Utc::now();
    let after = run(&shop);
    let customers = [customer(&shop, "o1"), customer(&shop, "o2"), "nobody".to_owned()];
    let service = Service::start(&shop, ServeSettings::default()).await;
    let command = GetHistoricalFeatures {
        features: vec!["spend:orders".to_owned()],
        timestamp: "at".to_owned(),
        ..GetHistoricalFeatures::default()
    };
    let (sender, mut answers) = service.exchange(command.to_command());
    let (batches, batch_rows) = (40, 5_000_usize);
    let answered = tokio::spawn(async move {
        let mut rows = Vec::new();
        while let Some((batch, _)) = next(&mut answers).await.unwrap() {
            rows.push(batch);
        }
        let metadata = answers.schema().unwrap().metadata().clone();
        (rows, metadata)
    });
    for number in 0..batches {
        let rows = number * batch_rows..(number + 1) * batch_rows;
        let moments = rows.clone().map(|row| if row % 2 == 0 { before } else { after }.timestamp_micros());
        let batch = RecordBatch::try_from_iter([
            ("row", Arc::new(Int64Array::from_iter_values(rows.clone().map(|row| row as i64))) as ArrayRef),
            ("at", Arc::new(TimestampMicrosecondArray::from_iter_values(moments).with_timezone("UTC")) as ArrayRef),
            ("customer_id", Arc::new(StringArray::from_iter_values(rows.map(|row| &customers[row % 3]))) as ArrayRef),
        ])
        .unwrap();
        sender.send(batch).unwrap();
    }
    drop(sender);
    let (answer, metadata) = answered.await.unwrap();
    assert_eq!(metadata["holdfast.features"], "spend@v1:orders");
    let mut seen = 0_i64;
    for batch in &answer {
        let rows = batch.column_by_name("row").unwrap().as_primitive::<Int64Type>();
        let orders = batch.column_by_name("orders").unwrap().as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            assert_eq!(rows.value(row), seen);
            let is_known = seen % 2 == 1 && seen % 3 != 2;
            assert_eq!((!arrow::array::Array::is_null(orders, row)).then(|| orders.value(row)), is_known.then_some(1));
            seen += 1;
        }
    }
    assert_eq!(seen, i64::try_from(batches * batch_rows).unwrap());

    // Not even a command.
    let (sender, mut answers) = service.exchange(command.to_command());
    drop(sender);
    let said = refusal(&mut answers).await;
    assert!(said.contains("nothing came"), "{said}");
    let (sender, mut answers) = service.exchange("{\"@type\": \"holdfast.v1.ScoresAbove\"}");
    sender.send(keys(&[None])).unwrap();
    let said = refusal(&mut answers).await;
    assert!(
        said.contains("DoExchange answers GetHistoricalFeatures, CreateDataset, GetOnlineFeatures and ScoreRows alone"),
        "{said}"
    );
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn features_come_over_http_in_the_shape_of_feast() {
    let shop = shop();
    order(&shop, "a", &[("o1", "M1", 10, "10.50"), ("o2", "M2", 200, "7.00")]);
    run(&shop);
    let (m1, m2) = (customer(&shop, "o1"), customer(&shop, "o2"));
    let token = Token::parse("a-token-to-read-with").unwrap();
    let service = Service::start(&shop, ServeSettings { token: Some(token), ..ServeSettings::default() }).await;
    let open = "authorization: Bearer a-token-to-read-with\r\n";
    let entities = json!({"customer_id": [m1, "nobody", m2]});
    let body = json!({"entities": entities, "feature_service": "churn", "include_feature_view_version_metadata": true});
    let (code, answer) = service.post(open, &body.to_string()).await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(answer["metadata"]["feature_names"], json!(["customer_id", "spend", "orders"]));
    assert_eq!(answer["metadata"]["feature_view_metadata"], json!([{"name": "spend", "version": 1}]));
    let results = answer["results"].as_array().unwrap();
    assert_eq!(results[0]["values"], json!([m1, "nobody", m2]));
    assert_eq!(results[1]["values"], json!([10.5, null, null]));
    assert_eq!(results[2]["values"], json!([1, null, null]));
    assert_eq!(results[2]["statuses"], json!(["PRESENT", "NOT_FOUND", "OUTSIDE_MAX_AGE"]));
    let moments = results[2]["event_timestamps"].as_array().unwrap();
    assert_eq!(moments[1], "1970-01-01T00:00:00Z");
    let moment: DateTime<Utc> = moments[0].as_str().unwrap().parse().unwrap();
    assert!((Utc::now() - moment).num_days() == 10, "{moment}");

    let body = json!({"entities": entities, "features": ["spend:orders"], "full_feature_names": true});
    let (_, answer) = service.post(open, &body.to_string()).await;
    assert_eq!(answer["metadata"]["feature_names"], json!(["customer_id", "spend__orders"]));

    for (headers, body, code, told) in [
        ("", body, 401, "a token is required"),
        (open, json!({"entities": entities, "features": ["spend:order"]}), 404, "has no feature `order`"),
        (
            open,
            json!({"entities": {"customer_id": [1.5]}, "features": ["spend"]}),
            422,
            "the keys of `customer_id` are texts",
        ),
        (open, json!({"entities": {"shop": ["a"]}, "features": ["spend"]}), 422, "no key column `customer_id`"),
        (open, json!({"features": ["spend"]}), 422, "missing field `entities`"),
    ] {
        let (found, answer) = service.post(headers, &body.to_string()).await;
        assert_eq!(found, code, "{answer}");
        assert!(answer["detail"].as_str().unwrap().contains(told), "{answer}");
    }
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_demand_features_come_over_every_protocol_with_the_same_values() {
    let shop = crate::on_demand::shop_with_baskets();
    let (m1, m3) = (customer(&shop, "o1"), customer(&shop, "o3"));
    let service = Service::start(&shop, ServeSettings::default()).await;
    let expected = [vec![m1.clone(), "0.5".to_owned()], vec![m3.clone(), "2.5".to_owned()]];
    let columns = ["customer_id", "to_usual"];

    // A call, as JSON.
    let command = json!({
        "@type": "holdfast.v1.GetOnlineFeatures",
        "feature_service": "churn",
        "keys": [
            {"name": "customer_id", "texts": [m1, m3]},
            {"name": "amount", "doubles": [5.0, 100.0]},
            {"name": "channel", "texts": ["web", "shop"]},
        ],
    });
    let mut client = FlightClient::new(service.channel.clone());
    let ticket = arrow_flight::Ticket::new(command.to_string());
    let answer: Vec<RecordBatch> = client.do_get(ticket).await.unwrap().try_collect().await.unwrap();
    assert_eq!(cells(&answer[0], &columns), expected);
    // One without a value of the request.
    let mut short = command.clone();
    short["keys"].as_array_mut().unwrap().remove(1);
    let refused = client.do_get(arrow_flight::Ticket::new(short.to_string())).await.unwrap_err().to_string();
    assert!(refused.contains("needs the request value `amount`"), "{refused}");

    // An open line, and a spine.
    let asked = RecordBatch::try_from_iter([
        ("customer_id", Arc::new(StringArray::from(vec![m1.as_str(), &m3])) as ArrayRef),
        ("amount", Arc::new(arrow::array::Float64Array::from(vec![5.0, 100.0])) as ArrayRef),
        ("channel", Arc::new(StringArray::from(vec!["web", "shop"])) as ArrayRef),
    ])
    .unwrap();
    let churn = GetOnlineFeatures { feature_service: "churn".to_owned(), ..GetOnlineFeatures::default() };
    let (sender, mut answers) = service.exchange(churn.to_command());
    sender.send(asked.clone()).unwrap();
    assert_eq!(cells(&next(&mut answers).await.unwrap().unwrap().0, &columns), expected);
    let metadata = answers.schema().unwrap().metadata().clone();
    assert_eq!(metadata["holdfast.features"], "spend@v1:spend,basket@v1:to_usual,basket@v1:orders_and_year");
    drop(sender);
    let churn = GetHistoricalFeatures { feature_service: "churn".to_owned(), ..GetHistoricalFeatures::default() };
    let (sender, mut answers) = service.exchange(churn.to_command());
    let moments = TimestampMicrosecondArray::from_value(Utc::now().timestamp_micros(), 2).with_timezone("UTC");
    let mut fields = asked.schema_ref().fields().to_vec();
    fields.push(Arc::new(arrow::datatypes::Field::new(
        "event_timestamp",
        arrow::array::Array::data_type(&moments).clone(),
        false,
    )));
    let spine = asked.columns().iter().cloned().chain([Arc::new(moments) as ArrayRef]).collect();
    sender.send(RecordBatch::try_new(Arc::new(arrow::datatypes::Schema::new(fields)), spine).unwrap()).unwrap();
    drop(sender);
    assert_eq!(cells(&next(&mut answers).await.unwrap().unwrap().0, &columns), expected);

    // JSON writes whole numbers and others in one list.
    let entities = json!({"customer_id": [m1, m3], "amount": [5, 100.0], "channel": ["web", "shop"]});
    let body = json!({"entities": entities, "features": ["basket:to_usual"]});
    let (code, answer) = service.post("", &body.to_string()).await;
    assert_eq!(code, 200, "{answer}");
    assert_eq!(answer["metadata"]["feature_names"], json!(["customer_id", "to_usual"]));
    assert_eq!(answer["results"][1]["values"], json!([0.5, 2.5]));
    assert_eq!(answer["results"][1]["statuses"], json!(["PRESENT", "PRESENT"]));
    service.shut_down().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_with_a_share_of_the_buckets_answer_for_all_keys_together() {
    let shop = shop();
    let names: Vec<(String, String)> = (0..40).map(|at| (format!("o{at}"), format!("M{at}"))).collect();
    let rows: Vec<_> = names.iter().map(|(order, member)| (order.as_str(), member.as_str(), 3, "5.00")).collect();
    order(&shop, "a", &rows);
    run(&shop);
    let customers: Vec<String> = shop
        .query("select distinct customer_id from core.orders")
        .iter()
        .map(|row| row["customer_id"].as_str().unwrap().to_owned())
        .collect();
    let mut nodes = Vec::new();
    for share in ["1/2", "2/2"] {
        let settings = ServeSettings { online_share: share.parse().unwrap(), ..ServeSettings::default() };
        nodes.push(Service::start(&shop, settings).await);
    }
    let ask = async |node: &Service, customer: &str| {
        let mut client = FlightClient::new(node.channel.clone());
        let command = json!({
            "@type": "holdfast.v1.GetOnlineFeatures",
            "feature_service": "churn",
            "keys": [{"texts": [customer]}],
        });
        let rows =
            client.do_get(arrow_flight::Ticket::new(command.to_string())).await.map_err(|error| error.to_string())?;
        rows.try_collect::<Vec<RecordBatch>>().await.map_err(|error| error.to_string())
    };
    let mut held = [0, 0];
    for customer in &customers {
        let answers = [ask(&nodes[0], customer).await, ask(&nodes[1], customer).await];
        let holds = answers.iter().position(Result::is_ok).unwrap();
        held[holds] += 1;
        assert_eq!(cells(&answers[holds].as_ref().unwrap()[0], &["spend", "spend__status"]), [["5.00", "PRESENT"]]);
        let refused = answers[1 - holds].as_ref().unwrap_err();
        assert!(refused.contains(&format!("which node {} of 2 holds", holds + 1)), "{refused}");
    }
    assert!(held[0] > 0 && held[1] > 0, "{held:?}");
    // What each has in memory, and how keys are spread, is told to who routes.
    let mut in_memory = 0;
    for (at, node) in nodes.iter().enumerate() {
        let mut client = FlightClient::new(node.channel.clone());
        let told: Vec<_> =
            client.do_action(Action::new("list_features", "")).await.unwrap().try_collect().await.unwrap();
        let told: Value = serde_json::from_slice(&told[0]).unwrap();
        assert_eq!(told["online_share"], json!({"node": at + 1, "of": 2}));
        let view = &told["views"][0];
        assert!(view["buckets"].as_u64().unwrap() > 1, "{view}");
        in_memory += view["rows_in_memory"].as_u64().unwrap();
    }
    assert_eq!(in_memory, customers.len() as u64);
    for node in nodes {
        node.shut_down().await;
    }
}
