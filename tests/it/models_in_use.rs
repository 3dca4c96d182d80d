//! Models at work: scores that are never lost, `predict` in SQL wherever SQL is asked, alerts by thresholds that have seasons.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Float64Type, Int64Type};
use arrow_flight::sql::client::FlightSqlServiceClient;
use chrono::{Days, NaiveDate, Utc};
use futures::TryStreamExt;
use holdfast_testkit::{Operation, Rule, S3Fault, S3Server, S3Settings};
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::train::{AS_OF, FEATURES, Process, Shop, orders_from};
use crate::{commits, ended, holdfast_binary, lines_of, succeed};

pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

const SCORES: &str = "select * from risk.churn_probability order by customer_id";

/// What `predict` says now beside what was scored: customers, the largest difference, and how many have another first reason.
const BESIDE: &str = "select count(*) as n, max(abs(predict('churn', f) - p.probability)) as worst, \
     count(*) filter (where predict_reasons('churn', f)[1] is distinct from p.raises_1) as others \
     from features.f f inner join risk.churn_probability p on p.customer_id = f.customer_id";

/// A stage that asks the champion.
const STAGE: &str = "-- One row a customer, and what the champion says of them.\n-- @stage incremental key(customer_id)\n\
     with known as (\n    select *\n    from features.f\n)\n\nselect\n    known.customer_id as customer_id,\n    \
     predict('churn', known) as probability,\n    predict_reasons('churn', known) as reasons\nfrom known\n";

fn trained() -> Shop {
    let shop = Shop::new();
    assert_eq!(shop.json(&["train", "--model", "churn"])["version"], 1);
    shop
}

fn promoted() -> Shop {
    let shop = trained();
    succeed(&mut shop.command(&["models", "promote", "churn", "1"]));
    shop
}

fn scored() -> Shop {
    let shop = promoted();
    succeed(&mut shop.command(&["score", "--model", "churn"]));
    shop
}

/// Another version, of other trees.
fn train_another(shop: &Shop) {
    shop.with_model("max_depth = 3", "max_depth = 2");
    assert_eq!(shop.json(&["train", "--model", "churn"])["version"], 2);
}

/// # Panics
/// When `predict` says something else than the table of scores.
fn assert_same(answer: &Value) {
    assert!(answer["n"].as_u64() > Some(50), "{answer}");
    assert!(answer["worst"].as_f64().unwrap() < 1e-12, "{answer}");
    assert_eq!(answer["others"], 0, "{answer}");
}

#[test]
fn a_table_of_scores_is_never_replaced_by_none() {
    let shop = promoted();
    let refused = |told: &str| {
        let before = commits(shop.path());
        let (code, said) = shop.fails(&["score", "--model", "churn"]);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(told) && said.contains("holdfast run"), "{said}");
        assert_eq!(before, commits(shop.path()), "something was kept");
    };
    // A year on everybody has been away for longer than the model looks back: no table is made for nobody.
    succeed(&mut shop.command(&["run", "--as-of", "2026-07-01T00:00:00Z"]));
    refused("nobody to score as of 2026-07-01");
    shop.run();
    succeed(&mut shop.command(&["score", "--model", "churn"]));
    let scores = shop.query(SCORES);
    assert!(scores.len() > 50);

    succeed(&mut shop.command(&["run", "--as-of", "2026-07-01T00:00:00Z"]));
    refused("risk.churn_probability is left as it is");
    // No features at all: a source that is gone.
    shop.write("sql/features/f.sql", &FEATURES.replace("where ordered_at", "where amount < 0 and ordered_at"));
    shop.run();
    refused("features.f is empty");
    assert_eq!(scores, shop.query(SCORES));
}

#[test]
fn an_alias_that_is_moved_while_customers_are_scored_is_told_and_the_scores_are_of_one_version() {
    let shop = promoted();
    train_another(&shop);
    let server = S3Server::start(S3Settings::default()).unwrap();
    upload(&server, &shop.path().join("lake"), "lake");
    let on_s3 = |arguments: &[&str]| {
        let settings = S3Settings::default();
        let mut command = shop.command(&["--lake", "s3://shop/lake"]);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("AWS_")) {
            command.env_remove(name);
        }
        command.env("AWS_ENDPOINT", server.endpoint()).env("AWS_ALLOW_HTTP", "true").env("AWS_REGION", "us-east-1");
        command.env("AWS_ACCESS_KEY_ID", settings.access_key).env("AWS_SECRET_ACCESS_KEY", settings.secret_key);
        command.args(arguments);
        command
    };
    // The first file of scores is held up until the alias has moved.
    let writes = [Operation::PUTS.as_slice(), &[Operation::UploadStart]].concat();
    let rule = Rule::on(&writes, S3Fault::None).path("risk/churn_probability/customer_bucket").times(1);
    server.set_rules(vec![rule.delayed(PATIENCE)]);
    let mut score = on_s3(&["score", "--model", "churn", "--json"]);
    let mut scoring = Process(score.stdout(Stdio::piped()).spawn().unwrap());
    let began = Instant::now();
    while server.left() > 0 {
        assert!(began.elapsed() < PATIENCE, "no scores were written: {:?}", scoring.0.try_wait());
        std::thread::sleep(Duration::from_millis(20));
    }
    succeed(&mut on_s3(&["models", "promote", "churn", "2"]));
    server.set_rules(Vec::new());
    let mut said = String::new();
    scoring.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(ended(&mut scoring.0).success(), "{said}");
    let scored: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&scored["model_version"], &scored["champion_now"]), (&1.into(), &2.into()), "{scored}");
    let versions = "select distinct model_version as version from risk.churn_probability";
    let versions = || -> Value {
        let output = succeed(&mut on_s3(&["sql", versions, "--output", "json"]));
        serde_json::from_slice(&output.stdout).unwrap()
    };
    assert_eq!(versions(), json!([{"version": 1}]));
    // The next one follows.
    let output = succeed(&mut on_s3(&["score", "--model", "churn", "--json"]));
    let scored: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&scored["outcome"], &scored["model_version"]), (&"made".into(), &2.into()), "{scored}");
    assert!(scored.get("champion_now").is_none(), "{scored}");
    assert_eq!(versions(), json!([{"version": 2}]));
}

/// Every file below a folder, as an object below a prefix.
fn upload(server: &S3Server, folder: &Path, prefix: &str) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let key = format!("{prefix}/{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() {
            upload(server, &path, &key);
        } else {
            server.put("shop", &key, std::fs::read(&path).unwrap());
        }
    }
}

#[test]
fn predict_in_a_query_says_what_scoring_wrote() {
    let shop = scored();
    assert_same(&shop.query(BESIDE)[0]);
    let published = succeed(&mut shop.command(&["sql", "--published", "--output", "json", BESIDE]));
    let published: Value = serde_json::from_slice(&published.stdout).unwrap();
    assert_same(&published[0]);

    // A row may be written out, in any order, with more than the model asks for and in other types of number; what is missing in it is missing to the model.
    let written = "named_struct('spend', spend, 'days_since', cast(days_since as bigint), 'more', 1, 'basket', basket, 'orders', orders, \
         'always', true, 'nothing', null, 'orders_90d', cast(orders_90d as decimal(9, 2)))";
    let sql = format!(
        "select count(*) as n, max(abs(predict('churn', f) - predict('churn', {written}))) as worst, 0 as others from features.f f"
    );
    assert_same(&shop.query(&sql)[0]);
    let unknown = shop.query(
        "with f as (select * from features.f order by customer_id limit 1), nan as (select * replace (cast('NaN' as double) as days_since) from f), \
         gone as (select * replace (cast(null as double) as days_since) from f) \
         select predict('churn', nan) as nan, (select predict('churn', gone) from gone) as gone, predict('churn', null) as nobody from nan",
    );
    assert!(unknown[0]["nan"].as_f64() > Some(0.0) && unknown[0]["nan"] == unknown[0]["gone"], "{unknown:?}");
    assert!(unknown[0]["nobody"].is_null(), "{unknown:?}");
    // Rows that a caller brings.
    let brought = shop.query(
        "select predict('churn', r) as brought, predict('churn', named_struct('days_since', 40, 'orders', 3, 'orders_90d', 1, 'spend', 99.5, \
         'basket', 'small', 'nothing', null, 'always', 1)) as written \
         from (values (40, 3, 1, 99.5, 'small', null, 1)) as r(days_since, orders, orders_90d, spend, basket, nothing, always)",
    );
    assert!(
        brought[0]["brought"].as_f64() > Some(0.0) && brought[0]["brought"] == brought[0]["written"],
        "{brought:?}"
    );
    // Only what the model reads is read: the plan shows the columns of the scan.
    let explained = succeed(&mut shop.command(&["sql", "explain select predict('churn', f) from features.f f"]));
    let explained = String::from_utf8_lossy(&explained.stdout).into_owned();
    assert!(explained.contains("days_since") && !explained.contains("event_timestamp"), "{explained}");
    // The champion of now, and not the one that scored.
    train_another(&shop);
    succeed(&mut shop.command(&["models", "promote", "churn", "2"]));
    assert!(shop.query(BESIDE)[0]["worst"].as_f64() > Some(1e-6));
}

#[test]
fn a_shadow_scores_beside_the_champion_and_nobody_is_told_by_it() {
    let shop = scored();
    train_another(&shop);
    let champions = shop.query(SCORES);
    let shadow = ["models", "shadow", "churn", "2"];
    let made = shop.json(&shadow);
    assert_eq!((&made["outcome"], &made["model_version"]), (&"made".into(), &2.into()), "{made}");
    assert_eq!(made["table"], "risk.churn_probability_shadow");
    let beside = &made["beside_champion"];
    assert_eq!((&beside["champion"], &beside["customers"]), (&1.into(), &made["customers"]), "{made}");
    assert!(beside["correlation"].as_f64() > Some(0.5) && beside["other_band"].as_u64().is_some(), "{made}");
    assert_eq!(champions, shop.query(SCORES));
    let before = commits(shop.path());
    assert_eq!(shop.json(&shadow)["outcome"], "unchanged");
    assert_eq!(before, commits(shop.path()));

    // They are what the version says as a champion.
    let of = |table: &str| {
        shop.query(&format!(
            "select customer_id, model_version, probability, band, raises_1 from {table} order by customer_id"
        ))
    };
    let shadows = of("risk.churn_probability_shadow");
    succeed(&mut shop.command(&["models", "promote", "churn", "2"]));
    succeed(&mut shop.command(&["score", "--model", "churn"]));
    assert_eq!(shadows, of("risk.churn_probability"));
    let (code, said) = shop.fails(&shadow);
    assert!(code == Some(2) && said.contains("is the champion"), "{said}");
}

#[test]
fn what_cannot_be_predicted_is_told_when_it_is_planned_with_what_to_do() {
    let shop = trained();
    let refused = |sql: &str, told: &[&str]| {
        let (code, said) = shop.fails(&["sql", sql]);
        assert_eq!(code, Some(2), "{said}");
        told.iter().for_each(|told| assert!(said.contains(told), "{told}: {said}"));
    };
    refused("select predict('churn', f) from features.f f", &["`churn` has no champion", "models promote churn 1"]);
    succeed(&mut shop.command(&["models", "promote", "churn", "1"]));
    refused("select predict('chrn', f) from features.f f", &["there is no model `chrn`", "did you mean `churn`?"]);
    refused(
        "select predict(f.customer_id, f) from features.f f",
        &["the first argument of predict is the name of a model"],
    );
    refused("select predict('churn', g) from features.f f", &["line 1, column 25: No field named g"]);
    refused("select predict('churn', f.spend) from features.f f", &["the second argument of predict is a row"]);
    let columns = "select customer_id, days_since, orders, orders_90d as order_90d, spend, 1 as basket, nothing, always from features.f";
    refused(
        &format!("with f as ({columns}) select predict('churn', f) from f"),
        &[
            "version 1 of `churn`",
            "`orders_90d` is missing (there is `order_90d`)",
            "`basket` is Int64 where text is needed",
        ],
    );
}

#[test]
fn a_stage_that_asks_the_champion_follows_it_and_goes_by_key() {
    let shop = Shop::new();
    shop.write("sql/risk/now.sql", STAGE);
    succeed(&mut shop.command(&["check"]));
    // Before there is a champion the stage fails by itself, and what training needs is made.
    let output = shop.command(&["run", "--as-of", AS_OF]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("`churn` has no version yet"), "{said}");
    succeed(&mut shop.command(&["train", "--model", "churn"]));
    succeed(&mut shop.command(&["models", "promote", "churn", "1"]));
    let run = || -> Value {
        let report = shop.json(&["run", "--as-of", AS_OF]);
        let stages = report["stages"].as_array().unwrap();
        stages.iter().find(|stage| stage["stage"] == "risk.now").unwrap().clone()
    };
    let same = || {
        let sql = "select count(*) as n, max(abs(predict('churn', f) - r.probability)) as worst, \
             count(*) filter (where array_to_string(predict_reasons('churn', f), '|') is distinct from array_to_string(r.reasons, '|')) as others \
             from features.f f inner join risk.now r on r.customer_id = f.customer_id";
        assert_same(&shop.query(sql)[0]);
    };
    assert_eq!(run()["outcome"], "built");
    same();
    let before = commits(shop.path());
    assert_eq!(run()["outcome"], "fresh");
    assert_eq!(before, commits(shop.path()));

    // One customer ordered: one row is worked out.
    shop.bring("b", "late,M0,2025-06-29T08:00:00Z,10.00,,completed,0\n");
    let by_key = run();
    let refresh = &by_key["refresh"];
    assert_eq!((&refresh["kind"], &refresh["keys"]), (&"keys".into(), &1.into()), "{by_key}");
    same();
    succeed(&mut shop.command(&["verify", "--sample", "100%", "--select", "risk.now"]));

    // Another champion is another stage; the same one again is not.
    train_another(&shop);
    assert_eq!(run()["outcome"], "fresh", "a challenger changes nothing");
    succeed(&mut shop.command(&["models", "promote", "churn", "2"]));
    let rescored = run();
    assert_eq!(rescored["outcome"], "built", "{rescored}");
    assert_ne!(rescored["refresh"]["kind"], "keys", "{rescored}");
    assert_eq!(rescored["refresh"]["reason"], "model churn: version 2", "{rescored}");
    same();
}

#[test]
fn a_model_may_not_learn_from_what_a_champion_says() {
    let shop = promoted();
    shop.write("sql/features/base.sql", FEATURES);
    shop.write(
        "sql/features/f.sql",
        "-- @stage incremental key(customer_id)\nselect\n    base.customer_id,\n    base.event_timestamp,\n    base.days_since,\n    \
         predict('churn', base) as earlier\nfrom features.base as base\n",
    );
    shop.refuses(2, &["churn.toml:4:9", "the champion of `churn`", "a stage of its own"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn predict_is_asked_over_flight_sql_and_the_wire_of_postgresql_and_follows_the_published_champion() {
    let shop = scored();
    let mut command = shop.command(&["serve", "--listen", "127.0.0.1:0", "--pg-listen", "127.0.0.1:0"]);
    command.args(["--reload-interval-ms", "50"]).stderr(Stdio::piped());
    let mut server = Process(command.spawn().unwrap());
    let lines = lines_of(&mut server.0);
    let said = std::iter::from_fn(|| lines.recv_timeout(PATIENCE).ok()).find(|line| line.contains("Ctrl-C")).unwrap();
    let address = |before: &str| {
        let after = said.split(before).nth(1).unwrap_or_else(|| panic!("no {before} in {said}"));
        after.split([',', '/', ' ']).next().unwrap().to_owned()
    };
    let (grpc, postgres) = (address("grpc://"), address("postgresql://"));
    let channel = Channel::from_shared(format!("http://{grpc}")).unwrap().connect().await.unwrap();
    let mut client = FlightSqlServiceClient::new(channel);
    let batches = flight_sql(&mut client, BESIDE).await;
    let number =
        |batches: &[RecordBatch], column: usize| batches[0].column(column).as_primitive::<Int64Type>().value(0);
    assert!(number(&batches, 0) > 50 && number(&batches, 2) == 0, "{batches:?}");
    assert!(batches[0].column(1).as_primitive::<Float64Type>().value(0) < 1e-12, "{batches:?}");

    let rows = simple_query(&postgres, BESIDE);
    assert!(rows[0][1].as_ref().unwrap().parse::<f64>().unwrap() < 1e-12, "{rows:?}");
    assert_eq!(rows[0][2].as_deref(), Some("0"), "{rows:?}");
    let reasons =
        simple_query(&postgres, "select predict_reasons('churn', f) from features.f f where orders > 1 limit 1");
    assert!(reasons[0][0].as_ref().unwrap().starts_with('{'), "an array, {reasons:?}");

    // A promotion is published, and those who read follow it without being started again.
    train_another(&shop);
    succeed(&mut shop.command(&["models", "promote", "churn", "2"]));
    let began = Instant::now();
    loop {
        let batches = flight_sql(&mut client, BESIDE).await;
        if batches[0].column(1).as_primitive::<Float64Type>().value(0) > 1e-6 {
            break;
        }
        assert!(began.elapsed() < PATIENCE, "it still asks the champion before");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub(crate) async fn flight_sql(client: &mut FlightSqlServiceClient<Channel>, query: &str) -> Vec<RecordBatch> {
    let info = client.execute(query.to_owned(), None).await.unwrap();
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    client.do_get(ticket).await.unwrap().try_collect().await.unwrap()
}

/// The rows of a query by PostgreSQL's simple protocol (its documentation, 54.2.3), as text.
pub(crate) fn simple_query(address: &str, sql: &str) -> Vec<Vec<Option<String>>> {
    let mut stream = TcpStream::connect(address).unwrap();
    let startup = b"\0\x03\0\0user\0test\0database\0holdfast\0\0";
    stream.write_all(&u32::try_from(startup.len() + 4).unwrap().to_be_bytes()).unwrap();
    stream.write_all(startup).unwrap();
    let mut rows = Vec::new();
    let mut is_asked = false;
    loop {
        let mut head = [0; 5];
        stream.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize - 4;
        let mut body = vec![0; length];
        stream.read_exact(&mut body).unwrap();
        match head[0] {
            b'E' => panic!("{}", String::from_utf8_lossy(&body)),
            b'D' => rows.push(fields(&body)),
            b'Z' if is_asked => return rows,
            b'Z' => {
                is_asked = true;
                stream.write_all(b"Q").unwrap();
                stream.write_all(&u32::try_from(sql.len() + 5).unwrap().to_be_bytes()).unwrap();
                stream.write_all(sql.as_bytes()).unwrap();
                stream.write_all(b"\0").unwrap();
            }
            _ => {}
        }
    }
}

/// The fields of a message `DataRow`.
fn fields(body: &[u8]) -> Vec<Option<String>> {
    let (count, mut rest) = body.split_at(2);
    let mut fields = Vec::new();
    for _ in 0..u16::from_be_bytes([count[0], count[1]]) {
        let (length, after) = rest.split_at(4);
        let length = i32::from_be_bytes([length[0], length[1], length[2], length[3]]);
        let (value, after) = after.split_at(usize::try_from(length).unwrap_or(0));
        fields.push((length >= 0).then(|| String::from_utf8_lossy(value).into_owned()));
        rest = after;
    }
    fields
}

#[test]
fn a_test_divides_customers_for_good_and_is_looked_at_by_what_became_of_them() {
    // A test begins by the wall's clock: the shop has a past, and a future that a later look knows.
    let today = Utc::now().date_naive();
    let shop = Shop::of(&orders_from(today - Days::new(300), |_| true));
    succeed(&mut shop.command(&["run"]));
    assert_eq!(shop.json(&["train", "--model", "churn"])["version"], 1);
    succeed(&mut shop.command(&["models", "promote", "churn", "1"]));
    train_another(&shop);
    let (code, said) = shop.fails(&["models", "test", "show", "churn"]);
    assert!(code == Some(2) && said.contains("models test start churn"), "{said}");
    let (code, said) = shop.fails(&["models", "test", "start", "churn", "1"]);
    assert!(code == Some(2) && said.contains("is the champion"), "{said}");
    let started = shop.json(&["models", "test", "start", "churn", "2", "--share", "0.3", "--effect", "0.1"]);
    assert_eq!((&started["test"], &started["champion"]), (&1.into(), &1.into()), "{started}");
    for refused in [&["models", "promote", "churn", "2"][..], &["models", "test", "start", "churn", "2"]] {
        let (code, said) = shop.fails(refused);
        assert!(code == Some(2) && said.contains("models test stop churn"), "{said}");
    }

    let score = || shop.json(&["score", "--model", "churn"]);
    let arms = || shop.query("select customer_id, model_version from risk.churn_probability order by customer_id");
    let scored = score();
    let customers = scored["customers"].as_u64().unwrap();
    let tested = scored["tested"]["customers"].as_u64().unwrap();
    assert!(customers > 50 && tested > customers / 8 && tested < customers / 2, "{scored}");
    let first = arms();
    assert_eq!(first.iter().filter(|row| row["model_version"] == 2).count() as u64, tested);
    assert_eq!(score()["outcome"], "unchanged");
    // Other features, the same arms.
    shop.bring("b", &format!("late,M0,{}T00:00:01Z,10.00,,completed,0\n", today - Days::new(1)));
    succeed(&mut shop.command(&["run"]));
    assert_eq!(score()["outcome"], "made");
    let later = arms();
    let known: BTreeMap<&str, &Value> =
        first.iter().map(|row| (row["customer_id"].as_str().unwrap(), &row["model_version"])).collect();
    for row in &later {
        let before = known.get(row["customer_id"].as_str().unwrap());
        assert!(before.is_none_or(|version| *version == &row["model_version"]), "{row}");
    }

    // Nothing is known before a horizon is over; then a look has a difference, and p is one that may be looked at every day.
    let show =
        |as_of: NaiveDate| shop.json(&["models", "test", "show", "churn", "--as-of", &format!("{as_of}T00:00:00Z")]);
    let early = show(today + Days::new(60));
    assert!(early["look"]["difference"].is_null() && early["look"]["p"] == 1.0, "{early}");
    assert!(early["entered"][0].as_u64() > early["entered"][1].as_u64(), "{early}");
    let mut last = 1.0;
    for days in [100, 150, 240] {
        let shown = show(today + Days::new(days));
        let (arms, look) = (&shown["arms"], &shown["look"]);
        assert!(arms[0]["rows"].as_u64() > Some(20) && arms[1]["rows"].as_u64() > Some(5), "{shown}");
        assert!(
            look["low"].as_f64() < look["difference"].as_f64() && look["difference"].as_f64() < look["high"].as_f64()
        );
        let p = look["p"].as_f64().unwrap();
        assert!(p <= last && p > 0.0, "{shown}");
        last = p;
    }
    assert!(succeed(&mut shop.command(&["models", "test", "show", "churn"])).stdout.starts_with(b"Test 1 of churn"));

    succeed(&mut shop.command(&["models", "test", "stop", "churn"]));
    let scored = score();
    assert!(scored["outcome"] == "made" && scored.get("tested").is_none(), "{scored}");
    assert!(arms().iter().all(|row| row["model_version"] == 1));
    succeed(&mut shop.command(&["models", "promote", "churn", "2"]));
    assert!(!show(today + Days::new(240))["stopped_at"].is_null());
}

/// Thresholds of the shop, one a line of the file's end.
fn thresholds(more: &str) -> String {
    format!(
        "model = \"churn\"\nsegments = [\"new\"]\n[[threshold]]\nseason = \"everyday\"\nfrom = 2024-01-01\nhigh = 0.70\nmedium = 0.40\n{more}"
    )
}

#[test]
fn thresholds_are_a_table_with_versions_and_days_without_or_with_two_are_told_with_their_line() {
    let shop = Shop::new();
    let file = "pipelines/churn/thresholds.toml";
    let table = || {
        shop.query("select version, segment, season, valid_from, valid_to, high from model.thresholds order by segment, valid_from")
    };
    shop.write(file, &thresholds(""));
    shop.run();
    let first = json!({"version": 1, "segment": "everybody", "season": "everyday", "valid_from": "2024-01-01", "valid_to": null, "high": 0.7});
    assert_eq!(table(), std::slice::from_ref(&first));
    let counted = "select count(*) as n from model.thresholds";
    let published = succeed(&mut shop.command(&["sql", "--published", "--output", "json", counted]));
    assert_eq!(serde_json::from_slice::<Value>(&published.stdout).unwrap(), json!([{"n": 1}]));
    // What is no change of a threshold is none of the table.
    let before = commits(shop.path());
    shop.write(file, &thresholds("# words\n"));
    shop.run();
    assert_eq!(before, commits(shop.path()));

    let sale = "[[threshold]]\nsegment = \"new\"\nseason = \"sale\"\nfrom = 2024-11-01\nuntil = 2024-11-12\nhigh = 0.8\nmedium = 0.5\n";
    let after = sale.replace("sale", "everyday").replace("from = 2024-11-01\nuntil = 2024-11-12", "from = 2024-11-12");
    shop.write(file, &thresholds(&format!("{sale}{after}")));
    shop.run();
    let rows = table();
    assert_eq!(rows.len(), 3);
    assert_eq!(
        rows[0],
        json!({"version": 2, "segment": "everybody", "season": "everyday", "valid_from": "2024-01-01", "valid_to": null, "high": 0.7})
    );
    assert_eq!(rows[1]["valid_to"], "2024-11-12");
    assert_eq!((&rows[2]["segment"], &rows[2]["version"]), (&"new".into(), &2.into()));

    // Mistakes are told before anything is done, by the command that touches no lake as well.
    let before = commits(shop.path());
    for (more, told) in [
        (sale.to_owned(), "for `new` there is no threshold from 2024-11-12 on"),
        (format!("{sale}{}", after.replace("11-12", "11-20")), "there is no threshold from 2024-11-12 to 2024-11-20"),
        (format!("{sale}{}", after.replace("11-12", "11-09")), "two thresholds hold on 2024-11-09"),
        (after.replace("\"new\"", "\"nwe\""), "did you mean `new`?"),
    ] {
        shop.write(file, &thresholds(&more));
        for arguments in [&["check"][..], &["run", "--as-of", AS_OF]] {
            let (code, said) = shop.fails(arguments);
            assert!(code == Some(2) && said.contains("thresholds.toml:") && said.contains(told), "{told}: {said}");
        }
    }
    assert_eq!(before, commits(shop.path()));
}

/// The command of an executor and a scheduler, for a stage that only the driver can work out.
#[test]
fn on_a_cluster_a_stage_that_asks_a_champion_is_worked_out_by_the_driver_and_it_is_said_why() {
    let shop = promoted();
    shop.write("sql/risk/now.sql", STAGE);
    let start = |arguments: &[&str]| {
        let mut command = Command::new(holdfast_binary());
        command.args(["cluster"]).args(arguments).current_dir(shop.path()).stderr(Stdio::piped());
        let mut process = Process(command.spawn().unwrap());
        let lines = lines_of(&mut process.0);
        let said = std::iter::from_fn(|| lines.recv_timeout(PATIENCE).ok()).find(|line| line.contains("Ctrl-C"));
        (process, said.expect("it started"), lines)
    };
    let (_scheduler, said, _said) = start(&["scheduler", "--listen", "127.0.0.1:0"]);
    let address = said.split("Scheduling on ").nth(1).unwrap().split(',').next().unwrap().to_owned();
    let work = shop.path().join("work");
    let (_executor, _, _more) = start(&[
        "executor",
        "--listen",
        "127.0.0.1:0",
        "--scheduler",
        &address,
        "--work-dir",
        work.to_str().unwrap(),
        "--memory-mb",
        "256",
    ]);
    let report =
        shop.json(&["run", "--as-of", AS_OF, "--full", "--cluster", &address, "--select", "features.f", "risk.now"]);
    let place = |name: &str| {
        let stages = report["stages"].as_array().unwrap();
        stages.iter().find(|stage| stage["stage"] == name).unwrap()["place"].clone()
    };
    assert_eq!(place("features.f")["kind"], "executor", "{report}");
    assert_eq!(place("risk.now")["kind"], "here", "{report}");
    assert!(place("risk.now")["reason"].as_str().unwrap().contains("`predict"), "{report}");
    let sql = "select count(*) as n, max(abs(predict('churn', f) - r.probability)) as worst, 0 as others \
         from features.f f inner join risk.now r on r.customer_id = f.customer_id";
    assert_same(&shop.query(sql)[0]);
}
