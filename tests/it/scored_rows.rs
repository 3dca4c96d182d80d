//! Rows that a client sends are scored as `predict` and the table of scores have it, for as long as the client likes, or it is told what is wrong.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, ListArray, RecordBatch, StringArray};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Float64Type};
use arrow_flight::decode::FlightDataDecoder;
use arrow_flight::sql::client::FlightSqlServiceClient;
use holdfast_serve::{CommandMessage, ScoreRows};
use tokio::sync::mpsc::UnboundedSender;
use tonic::transport::Channel;

use crate::exchange::{exchange, next, refusal};
use crate::models_in_use::{PATIENCE, flight_sql, promoted, scored, train_another};
use crate::served::Served;
use crate::succeed;
use crate::train::Shop;

/// The features of the shop's model, in an order that is not the model's.
const FEATURES: [&str; 7] = ["basket", "spend", "days_since", "always", "orders", "nothing", "orders_90d"];

/// Rows as somebody writes them: missing values of both kinds, a text that the model has not learnt from, other types of number.
const WRITTEN: &str = "(values (40, 3, 1, 99.5, 'small', null, 1), (2, 17, 9, cast('NaN' as double), 'large', null, 1), \
     (null, 1, 0, 12.25, 'enormous', null, 1), (300, 1, 0, 5.0, null, null, 1)) \
     as r(days_since, orders, orders_90d, spend, basket, nothing, always)";

struct Caller {
    channel: Channel,
    token: Option<String>,
}

impl Caller {
    async fn new(served: &Served) -> Self {
        Self { channel: served.channel().await, token: None }
    }

    fn ask(&self, model: &str, reasons: u32) -> (UnboundedSender<RecordBatch>, FlightDataDecoder) {
        let command = ScoreRows { model: model.to_owned(), reasons };
        exchange(self.channel.clone(), self.token.as_deref(), command.to_command())
    }

    /// The one answer to one batch.
    async fn score(&self, model: &str, reasons: u32, rows: RecordBatch) -> RecordBatch {
        let (sender, mut answers) = self.ask(model, reasons);
        sender.send(rows).unwrap();
        drop(sender);
        let (answer, _) = next(&mut answers).await.unwrap().expect("an answer");
        assert!(next(&mut answers).await.unwrap().is_none());
        answer
    }

    async fn refused(&self, model: &str, reasons: u32, rows: &RecordBatch) -> String {
        let (sender, mut answers) = self.ask(model, reasons);
        sender.send(rows.clone()).unwrap();
        refusal(&mut answers).await
    }

    async fn sql(&self, query: &str) -> RecordBatch {
        let mut client = FlightSqlServiceClient::new(self.channel.clone());
        if let Some(token) = &self.token {
            client.set_token(token.clone());
        }
        let batches = flight_sql(&mut client, query).await;
        concat_batches(&batches[0].schema(), &batches).unwrap()
    }
}

fn bits(batch: &RecordBatch, column: &str) -> Vec<u64> {
    let values = batch.column_by_name(column).unwrap().as_primitive::<Float64Type>();
    assert_eq!(values.null_count(), 0);
    values.values().iter().map(|value| value.to_bits()).collect()
}

fn texts(batch: &RecordBatch, column: &str) -> Vec<Option<String>> {
    let column = cast(batch.column_by_name(column).unwrap(), &DataType::Utf8).unwrap();
    column.as_string::<i32>().iter().map(|text| text.map(str::to_owned)).collect()
}

/// The texts of the list in a row.
fn list(lists: &ListArray, row: usize) -> Vec<String> {
    lists.value(row).as_string::<i32>().iter().map(|text| text.unwrap().to_owned()).collect()
}

fn only(batch: &RecordBatch, columns: &[&str]) -> RecordBatch {
    let places: Vec<usize> = columns.iter().map(|name| batch.schema().index_of(name).unwrap()).collect();
    batch.project(&places).unwrap()
}

/// The same rows with a column made anew, or added.
fn with(batch: &RecordBatch, name: &str, values: ArrayRef) -> RecordBatch {
    let schema = batch.schema();
    let others = schema.fields().iter().zip(batch.columns()).filter(|(field, _)| field.name() != name);
    let others = others.map(|(field, column)| (field.name().clone(), Arc::clone(column)));
    RecordBatch::try_from_iter_with_nullable(
        others.chain([(name.to_owned(), values)]).map(|(name, column)| (name, column, true)),
    )
    .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rows_that_are_sent_are_scored_to_the_bit_as_predict_and_the_table_of_scores_have_it() {
    let shop = scored();
    let served = Served::start(&shop, &[], &[]);
    let caller = Caller::new(&served).await;

    // All customers of the table of scores, in two batches over one line, with columns that the model does not ask for.
    let known = caller
        .sql(
            "select f.*, predict('churn', f) as predicted, predict_reasons('churn', f) as why, p.probability as kept, p.probability_raw as kept_raw, \
             p.band as kept_band, p.raises_1, p.raises_2, p.raises_3, p.lowers_1, p.lowers_2 \
             from features.f f inner join risk.churn_probability p on p.customer_id = f.customer_id order by f.customer_id desc",
        )
        .await;
    assert!(known.num_rows() > 50);
    let sent = only(&known, &[&FEATURES[..4], &["customer_id"], &FEATURES[4..]].concat());
    let (sender, mut answers) = caller.ask("churn", 3);
    let half = sent.num_rows() / 2;
    let mut answered = Vec::new();
    for part in [sent.slice(0, half), sent.slice(half, sent.num_rows() - half)] {
        // Each is answered before the next one is sent.
        sender.send(part.clone()).unwrap();
        let (answer, _) = next(&mut answers).await.unwrap().expect("an answer");
        assert_eq!(answer.num_rows(), part.num_rows());
        answered.push(answer);
    }
    drop(sender);
    assert!(next(&mut answers).await.unwrap().is_none());
    let schema = answered[0].schema();
    let names: Vec<&str> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    assert_eq!(names, ["customer_id", "probability", "probability_raw", "band", "raises", "lowers"]);
    let of = |key: &str| schema.metadata()[key].as_str();
    assert_eq!((of("holdfast.model"), of("holdfast.model_version")), ("churn", "1"));
    assert!(of("holdfast.run").parse::<u64>().unwrap() > 0);

    let answered = concat_batches(&schema, &answered).unwrap();
    assert_eq!(texts(&answered, "customer_id"), texts(&known, "customer_id"));
    assert_eq!(bits(&answered, "probability"), bits(&known, "predicted"));
    // The table of scores is kept by another process; the trees are added in the same order.
    assert_eq!(bits(&answered, "probability"), bits(&known, "kept"));
    assert_eq!(bits(&answered, "probability_raw"), bits(&known, "kept_raw"));
    assert_eq!(texts(&answered, "band"), texts(&known, "kept_band"));
    assert!(texts(&answered, "band").iter().flatten().any(|band| band == "high"), "one of them is to be told");
    let lists = |batch: &RecordBatch, column: &str| batch.column_by_name(column).unwrap().as_list::<i32>().clone();
    let (raises, lowers, why) = (lists(&answered, "raises"), lists(&answered, "lowers"), lists(&known, "why"));
    let kept = |columns: &[&str], row: usize| -> Vec<String> {
        columns.iter().filter_map(|column| texts(&known, column)[row].clone()).collect()
    };
    for row in 0..known.num_rows() {
        assert_eq!(list(&raises, row), list(&why, row));
        assert_eq!(list(&raises, row), kept(&["raises_1", "raises_2", "raises_3"], row));
        assert_eq!(list(&lowers, row)[..list(&lowers, row).len().min(2)], kept(&["lowers_1", "lowers_2"], row));
    }

    // Rows that a caller writes: the same values, asked in SQL and sent, with reasons and without.
    let written = caller.sql(&format!("select * from {WRITTEN}")).await;
    let predicted = caller.sql(&format!("select predict('churn', r) as predicted from {WRITTEN}")).await;
    for reasons in [0, 1] {
        let answer = caller.score("churn@champion", reasons, written.clone()).await;
        assert_eq!(bits(&answer, "probability"), bits(&predicted, "predicted"));
        assert_eq!(answer.num_columns(), if reasons == 0 { 3 } else { 5 });
    }
    // NaN is null; a dictionary of texts is texts, and all numbers are numbers.
    let nulls = Float64Array::from(vec![Some(99.5), None, Some(12.25), Some(5.0)]);
    let basket = cast(
        written.column_by_name("basket").unwrap(),
        &DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)),
    );
    let orders = cast(written.column_by_name("orders").unwrap(), &DataType::Decimal128(12, 2)).unwrap();
    let otherwise = with(&with(&with(&written, "spend", Arc::new(nulls)), "basket", basket.unwrap()), "orders", orders);
    let answer = caller.score("churn", 0, otherwise).await;
    assert_eq!(bits(&answer, "probability"), bits(&predicted, "predicted"));
    served.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_keeps_the_version_that_it_began_with_and_others_are_asked_by_number_or_alias() {
    let shop = promoted();
    let served = Served::start(&shop, &["--reload-interval-ms", "50"], &[]);
    let caller = Caller::new(&served).await;
    let rows = only(&caller.sql("select * from features.f order by customer_id").await, &FEATURES);
    let (sender, mut answers) = caller.ask("churn", 0);
    sender.send(rows.clone()).unwrap();
    let (first, _) = next(&mut answers).await.unwrap().unwrap();

    train_another(&shop);
    succeed(&mut shop.command(&["models", "promote", "churn", "2"]));
    let began = Instant::now();
    let second = loop {
        let answer = caller.score("churn", 0, rows.clone()).await;
        if answer.schema().metadata()["holdfast.model_version"] == "2" {
            break answer;
        }
        assert!(began.elapsed() < PATIENCE, "it still asks the champion before");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    assert_ne!(bits(&first, "probability"), bits(&second, "probability"));
    for (model, expected) in [("churn@v1", &first), ("churn@v2", &second), ("churn@challenger", &second)] {
        let answer = caller.score(model, 0, rows.clone()).await;
        assert_eq!(answer.columns(), expected.columns(), "{model}");
    }
    sender.send(rows.clone()).unwrap();
    let (kept, _) = next(&mut answers).await.unwrap().unwrap();
    assert_eq!(bits(&kept, "probability"), bits(&first, "probability"));
    served.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_scored_is_told_with_what_to_do() {
    let shop = promoted();
    let served = Served::start(&shop, &[], &[]);
    let caller = Caller::new(&served).await;
    let rows = only(&caller.sql("select * from features.f order by customer_id limit 3").await, &FEATURES);
    for (model, reasons, told) in [
        ("chrn", 0, "there is no model `chrn`: did you mean `churn`?"),
        ("churn@v9", 0, "`churn` has no version 9: there are 1"),
        ("churn@3", 0, "churn@v3"),
        ("", 0, "name a model"),
        ("churn", 101, "may be 100"),
    ] {
        let said = caller.refused(model, reasons, &rows).await;
        assert!(said.contains(told), "{told}: {said}");
    }

    let number = || Arc::new(Float64Array::from(vec![1.0; 3])) as ArrayRef;
    let text = || Arc::new(StringArray::from(vec!["a"; 3])) as ArrayRef;
    let renamed =
        with(&only(&rows, &["basket", "spend", "always", "orders", "nothing", "orders_90d"]), "days_sinc", number());
    let infinite = Arc::new(Float64Array::from(vec![1.0, f64::INFINITY, 2.0]));
    for (rows, told) in [
        (renamed.clone(), &["version 1 of `churn`", "`days_since` is missing (there is `days_sinc`)"][..]),
        (with(&renamed, "basket", number()), &["`days_since` is missing", "`basket` is Float64 where text is needed"]),
        (with(&rows, "orders", text()), &["`orders` is Utf8 where a number is needed", "the columns of features.f"]),
        (with(&rows, "spend", infinite), &["\"spend\"", "row 1 is infinite"]),
        (with(&rows, "band", text()), &["the answer has a column `band` of its own"]),
    ] {
        let said = caller.refused("churn", 0, &rows).await;
        told.iter().for_each(|told| assert!(said.contains(told), "{told}: {said}"));
    }
    let fields =
        rows.schema().fields().iter().chain(rows.schema().fields().iter().take(1)).cloned().collect::<Vec<_>>();
    let columns = [rows.columns(), &rows.columns()[..1]].concat();
    let twice = RecordBatch::try_new(Arc::new(arrow::datatypes::Schema::new(fields)), columns).unwrap();
    assert!(caller.refused("churn", 0, &twice).await.contains("two columns are called `basket`"));
    let many = concat_batches(&rows.schema(), &vec![rows.clone(); 3_334]).unwrap();
    assert!(caller.refused("churn", 0, &many).await.contains("10002 scores were asked for, and may be 10000"));

    // As JSON, which is what the protobuf says; and where it does not belong.
    let json = r#"{"@type": "holdfast.v1.ScoreRows", "model": "churn", "reasons": 1}"#;
    let (sender, mut answers) = exchange(caller.channel.clone(), None, json);
    sender.send(rows.clone()).unwrap();
    let (answer, _) = next(&mut answers).await.unwrap().unwrap();
    assert_eq!(answer, caller.score("churn", 1, rows.clone()).await);
    let mut client = arrow_flight::FlightClient::new(caller.channel.clone());
    let command = ScoreRows { model: "churn".to_owned(), reasons: 0 };
    let error = client.do_get(arrow_flight::Ticket::new(command.to_command())).await.unwrap_err().to_string();
    assert!(error.contains("ScoreRows is an exchange") && error.contains("the rows behind it"), "{error}");
    served.stop();
}

/// Sees none of the lake's tables, and gets no more than four rows.
const POLICY: &str = "[roles.caller]\ntables = [\"core.none\"]\n[roles.caller.limits]\nrows = 4\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_ask_predict_may_send_rows_within_its_limits_and_it_is_written_down() {
    let shop = promoted();
    shop.write("pipelines/churn/policy.toml", POLICY);
    let add = ["access", "user", "add", "till", "--role", "caller", "--make-password"];
    let password = String::from_utf8(succeed(&mut shop.command(&add)).stdout).unwrap();
    let served = Served::start(&shop, &["--users", "users.toml", "--audit", "on"], &[]);
    let mut caller = Caller::new(&served).await;
    let stranger = caller.refused("churn", 0, &written()).await;
    assert!(stranger.contains("token is required"), "{stranger}");

    let mut login = FlightSqlServiceClient::new(caller.channel.clone());
    let token = login.handshake("till", password.trim()).await.unwrap();
    caller.token = Some(String::from_utf8(token.to_vec()).unwrap());
    let predicted = caller.sql(&format!("select predict('churn', r) as predicted from {WRITTEN}")).await;
    let answer = caller.score("churn", 2, written()).await;
    assert_eq!(bits(&answer, "probability"), bits(&predicted, "predicted"));
    let more = concat_batches(&written().schema(), &[written(), written()]).unwrap();
    assert!(caller.refused("churn", 0, &more).await.contains("more than 4 rows"));
    let _ = caller.refused("chrn", 0, &written()).await;
    served.stop();

    let audited = shop
        .query("select action, rows, outcome from audit.accesses where action like 'score_rows%' order by sequence");
    let audited: Vec<String> = audited.iter().map(ToString::to_string).collect();
    let row = |action: &str, rows: u32, outcome: &str| {
        format!(r#"{{"action":"{action}","outcome":"{outcome}","rows":{rows}}}"#)
    };
    let expected = [
        row("score_rows:churn@v1", 4, "ok"),
        row("score_rows:churn@v1", 0, "invalid_input"),
        row("score_rows", 0, "not_found"),
    ];
    assert_eq!(audited, expected);
}

/// The rows of [`WRITTEN`].
fn written() -> RecordBatch {
    let number = |values: [Option<f64>; 4]| Arc::new(Float64Array::from(values.to_vec())) as ArrayRef;
    let basket = StringArray::from(vec![Some("small"), Some("large"), Some("enormous"), None]);
    RecordBatch::try_from_iter_with_nullable([
        ("days_since", number([Some(40.0), Some(2.0), None, Some(300.0)]), true),
        ("orders", number([Some(3.0), Some(17.0), Some(1.0), Some(1.0)]), true),
        ("orders_90d", number([Some(1.0), Some(9.0), Some(0.0), Some(0.0)]), true),
        ("spend", number([Some(99.5), Some(f64::NAN), Some(12.25), Some(5.0)]), true),
        ("basket", Arc::new(basket), true),
        ("nothing", number([None; 4]), true),
        ("always", number([Some(1.0); 4]), true),
    ])
    .unwrap()
}

/// Asks a hybrid, which no row can be enough for.
pub(crate) fn refused_by_hybrid(shop: &Shop) -> String {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let served = Served::start(shop, &[], &[]);
        let said = Caller::new(&served).await.refused("churn", 0, &written()).await;
        served.stop();
        said
    })
}
