//! Feature views through the front door: what runs keep of them, what is registered, and training sets as of the moments of a spine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::util::display::array_value_to_string;
use chrono::{DateTime, SecondsFormat, TimeDelta, Utc};
use holdfast_engine::{
    LakeReader, Project, RunOptions, RunReport, Runner, Selection, SessionSettings, compact_history, history_of,
};
use holdfast_feature_store::{Asked, Datasets, OnlineColumns, OnlineStore, ValueStatus};
use holdfast_lake::{KeptRuns, Lake, LakeSettings, MaintainSettings, StoreOptions, open_store};
use holdfast_testkit::{FaultStore, Moment};
use holdfast_types::{FixedClock, NoProgress, TableName};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::increments::copy;
use crate::stages::Shop;
use crate::{commits, succeed};

const SPEND: &str = "-- What a customer spent.\n-- @stage      incremental key(customer_id)\n-- @feature    ttl(90d) online\n\
    -- @owner      data science\nselect\n    customer_id,                       -- Unified customer id\n\
    max(ordered_at) as event_timestamp, -- The last order\n    count(*) as orders,                -- Orders\n\
    sum(amount) as spend               -- Spend, CNY\nfrom core.orders\nwhere customer_id is not null\n\
    group by customer_id\nhaving sum(amount) > 0\n";

const SERVICES: &str = "[churn]\ndescription = \"For tests\"\nfeatures = [\"spend:spend\", \"spend:orders\"]\n";

/// A shop with a feature view of what customers spent, and a service.
pub(crate) fn shop() -> Shop {
    let shop = Shop::new(&[("sql/features/spend.sql", SPEND)]);
    shop.write("pipelines/churn/feature_services.toml", SERVICES);
    shop
}

#[expect(clippy::disallowed_methods, reason = "runs of the binary are at the real time")]
pub(crate) fn now() -> DateTime<Utc> {
    Utc::now()
}

fn text(moment: DateTime<Utc>) -> String {
    moment.to_rfc3339_opts(SecondsFormat::Micros, true)
}

/// Orders some days ago: `(order, member, days, amount)`.
pub(crate) fn order(shop: &Shop, name: &str, rows: &[(&str, &str, i64, &str)]) {
    let row = |(order, member, days, amount): &(&str, &str, i64, &str)| {
        format!("{order},{member},{},{amount}\n", text(now() - TimeDelta::days(*days)))
    };
    shop.write(
        &format!("in/orders/{name}.csv"),
        &format!("order_id,member,at,amount\n{}", rows.iter().map(row).collect::<String>()),
    );
    succeed(&mut shop.command(&["ingest", "--from", "in"]));
}

pub(crate) fn run(shop: &Shop) -> DateTime<Utc> {
    succeed(&mut shop.command(&["run"]));
    now()
}

/// The customer of a member, by one of their orders.
pub(crate) fn customer(shop: &Shop, order: &str) -> String {
    shop.query(&format!("select customer_id from core.orders where order_id = '{order}'"))[0]["customer_id"]
        .as_str()
        .unwrap()
        .to_owned()
}

/// Every row of a Parquet file, as texts by column; nulls are empty.
fn rows(file: &Path) -> Vec<BTreeMap<String, String>> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(std::fs::File::open(file).unwrap()).unwrap().build().unwrap();
    let batches: Vec<RecordBatch> = reader.map(Result::unwrap).collect();
    let row = |batch: &RecordBatch, row: usize| {
        let schema = batch.schema();
        let cells = schema.fields().iter().zip(batch.columns());
        cells.map(|(field, column)| (field.name().clone(), array_value_to_string(column, row).unwrap())).collect()
    };
    batches.iter().flat_map(|batch| (0..batch.num_rows()).map(|at| row(batch, at)).collect::<Vec<_>>()).collect()
}

/// Joins a spine of customers and moments with the service, and answers the rows and the id.
fn training_set(
    shop: &Shop,
    spine: &[(&str, DateTime<Utc>)],
    more: &[&str],
) -> (Vec<BTreeMap<String, String>>, String) {
    let lines: String = spine.iter().map(|(customer, at)| format!("{customer},{}\n", text(*at))).collect();
    shop.write("spine.csv", &format!("customer_id,event_timestamp\n{lines}"));
    let mut command = shop.command(&["features", "training-set", "--spine", "spine.csv", "--out", "set.parquet"]);
    let output = succeed(command.args(more));
    (rows(&shop.path().join("set.parquet")), String::from_utf8(output.stdout).unwrap().trim().to_owned())
}

fn cells<'a>(rows: &'a [BTreeMap<String, String>], columns: &[&str]) -> Vec<Vec<&'a str>> {
    rows.iter().map(|row| columns.iter().map(|column| row[*column].as_str()).collect()).collect()
}

#[test]
fn pit_1_a_row_sees_what_runs_had_made_known_by_its_moment() {
    let shop = shop();
    order(&shop, "a", &[("o1", "M1", 10, "10.00"), ("o2", "M2", 200, "7.00")]);
    let before = now();
    let first = run(&shop);
    // An order of before comes late, a customer comes, and a customer goes.
    order(&shop, "b", &[("o3", "M1", 12, "5.00"), ("o4", "M3", 1, "9.00"), ("o5", "M2", 2, "-7.00")]);
    let second = run(&shop);
    let (m1, m2, m3) = (customer(&shop, "o1"), customer(&shop, "o2"), customer(&shop, "o4"));
    let spine = [
        (m1.as_str(), before),
        (&m1, first),
        (&m1, second),
        (&m2, first),
        (&m2, second),
        (&m3, first),
        (&m3, second),
        ("nobody", second),
        (&m1, second),
    ];
    let (answer, id) = training_set(&shop, &spine, &["--service", "churn"]);
    let expected: Vec<Vec<&str>> = vec![
        vec!["", "", "NOT_FOUND"],
        vec!["10.00", "1", "PRESENT"],
        vec!["15.00", "2", "PRESENT"],
        vec!["", "", "OUTSIDE_MAX_AGE"],
        vec!["", "", "NOT_FOUND"],
        vec!["", "", "NOT_FOUND"],
        vec!["9.00", "1", "PRESENT"],
        vec!["", "", "NOT_FOUND"],
        vec!["15.00", "2", "PRESENT"],
    ];
    assert_eq!(cells(&answer, &["spend", "orders", "spend__status"]), expected);
    // PIT-2: the spine's rows, in its order.
    let keys: Vec<&str> = answer.iter().map(|row| row["customer_id"].as_str()).collect();
    assert_eq!(keys, spine.map(|(key, _)| key));
    assert!(id.starts_with("ds_"), "{id}");

    // The features by name are the same numbers; so are those of the version that the service pins.
    let (named, other) = training_set(&shop, &spine, &["--features", "spend@v1:spend,spend:orders"]);
    assert_eq!(cells(&named, &["spend", "orders", "spend__status"]), expected);
    assert_ne!(id, other);
    // What arrived later is seen only by who says so.
    let (all, _) = training_set(&shop, &[(&m1, first)], &["--service", "churn@v1", "--ignore-known-at"]);
    assert_eq!(cells(&all, &["spend"]), [["15.00"]]);
}

#[test]
fn history_grows_by_what_changed_and_a_run_with_nothing_new_adds_nothing() {
    let shop = shop();
    order(&shop, "a", &(0..50).map(|_| ("o", "M", 3, "1.00")).take(1).collect::<Vec<_>>());
    let many: Vec<(String, String)> = (0..50).map(|at| (format!("p{at}"), format!("N{at}"))).collect();
    let rows: Vec<(&str, &str, i64, &str)> =
        many.iter().map(|(order, member)| (order.as_str(), member.as_str(), 5, "2.00")).collect();
    order(&shop, "b", &rows);
    run(&shop);
    let count = || shop.query("select count(*) as n, max(_version) as v from history.spend_v1")[0].clone();
    assert_eq!((count()["n"].as_u64(), count()["v"].as_u64()), (Some(51), Some(1)));
    let before = commits(shop.path());
    run(&shop);
    assert_eq!(before, commits(shop.path()));
    order(&shop, "c", &[("o9", "M", 1, "4.00")]);
    run(&shop);
    assert_eq!((count()["n"].as_u64(), count()["v"].as_u64()), (Some(52), Some(2)));
    // The table can be read as any other, partitioned by the customers' bucket.
    let rows = shop.query("select spend, orders, _deleted from history.spend_v1 where _version = 2");
    assert_eq!((rows[0]["spend"].to_string(), rows[0]["orders"].as_i64()), ("5.0".to_owned(), Some(2)));
    let buckets = shop.query("select count(distinct customer_bucket) as n from history.spend_v1");
    assert_eq!(buckets[0]["n"], 4);
}

#[test]
fn a_view_without_an_event_timestamp_counts_from_the_run_and_one_of_now_is_not_hidden_till_midnight() {
    let shop = Shop::new(&[
        (
            "sql/features/plain.sql",
            "-- @feature\nselect customer_id, sum(amount) as spend from core.orders group by customer_id\n",
        ),
        (
            "sql/features/today.sql",
            "-- @stage incremental key(customer_id)\n-- @feature\nselect customer_id, \
             arrow_cast(now(), 'Timestamp(Microsecond, Some(\"UTC\"))') as event_timestamp, sum(amount) as total\n\
             from core.orders where ordered_at <= now() group by customer_id\n",
        ),
    ]);
    order(&shop, "a", &[("o1", "M1", 10, "10.00")]);
    let before = now();
    let after = run(&shop);
    let m1 = customer(&shop, "o1");
    let spine = [(m1.as_str(), before), (m1.as_str(), after)];
    let (answer, _) = training_set(&shop, &spine, &["--features", "plain,today", "--event-timestamps"]);
    assert_eq!(cells(&answer, &["spend", "total"]), [["", ""], ["10.00", "10.00"]]);
    for column in ["plain__event_timestamp", "today__event_timestamp"] {
        let at: DateTime<Utc> = answer[1][column].parse().unwrap();
        assert!(before <= at && at <= after, "{column} {at}");
    }
}

#[test]
fn a_changed_definition_is_a_new_version_and_the_old_one_stays_readable() {
    let shop = shop();
    order(&shop, "a", &[("o1", "M1", 10, "10.00")]);
    let first = run(&shop);
    let said = |arguments: &[&str]| String::from_utf8(succeed(&mut shop.command(arguments)).stdout).unwrap();
    assert!(said(&["features", "diff"]).contains("as the files say"), "{}", said(&["features", "diff"]));

    // What is said for people makes no version; a ttl makes one that goes on with the history; another query begins anew.
    shop.write("sql/features/spend.sql", &SPEND.replace("What a customer spent", "Spend"));
    assert!(said(&["features", "diff"]).contains("as the files say"));
    shop.write("sql/features/spend.sql", &SPEND.replace("ttl(90d)", "ttl(5d)"));
    let told = said(&["features", "diff"]);
    assert!(
        told.contains("view spend@v1: a run registers v2\n") && told.contains("~ ttl 432000 s was 7776000 s"),
        "{told}"
    );
    assert!(told.contains("service churn@v1: a run registers v2"), "{told}");
    run(&shop);
    let changed = SPEND
        .replace("sum(amount) as spend ", "sum(amount) + 1 as spend ")
        .replace("    count(*) as orders,                -- Orders\n", "");
    assert_ne!(changed, SPEND);
    shop.write("sql/features/spend.sql", &changed);
    shop.write("pipelines/churn/feature_services.toml", &SERVICES.replace(", \"spend:orders\"", ""));
    let told = said(&["features", "diff"]);
    assert!(
        told.contains("spend@v2: a run registers v3, whose history begins anew") && told.contains("- orders"),
        "{told}"
    );
    let third = run(&shop);

    let m1 = customer(&shop, "o1");
    let both = [(m1.as_str(), first), (m1.as_str(), third)];
    let ask = |reference: &str| training_set(&shop, &both, &["--features", reference]).0;
    assert_eq!(cells(&ask("spend@v1:spend"), &["spend", "spend__status"]), [["10.00", "PRESENT"]; 2]);
    assert_eq!(cells(&ask("spend@v2:spend"), &["spend", "spend__status"]), [["", "OUTSIDE_MAX_AGE"]; 2]);
    assert_eq!(cells(&ask("spend:spend"), &["spend", "spend__status"]), [["", "NOT_FOUND"], ["11.00", "PRESENT"]]);
    // Two versions beside each other have names of their own.
    let (two, _) = training_set(&shop, &both, &["--features", "spend@v1:spend,spend@v3:spend", "--full-names"]);
    assert_eq!(cells(&two, &["spend_v1__spend", "spend_v3__spend"]), [["10.00", ""], ["10.00", "11.00"]]);

    let shown: serde_json::Value = serde_json::from_str(&said(&["features", "show", "spend", "--json"])).unwrap();
    assert_eq!(shown["shown"]["version"], 3);
    let histories: Vec<&str> =
        shown["versions"].as_array().unwrap().iter().map(|version| version["history"].as_str().unwrap()).collect();
    assert_eq!(histories, ["history.spend_v1", "history.spend_v1", "history.spend_v3"]);
    let shown = said(&["features", "show", "churn@v1"]);
    assert!(shown.contains("spend@v1:spend\nspend@v1:orders\n"), "{shown}");
    let listed = said(&["features", "list"]);
    assert!(listed.contains("spend  v3") && listed.contains("churn"), "{listed}");

    // Back to what it was: another version, which goes on with the first history.
    shop.write("sql/features/spend.sql", SPEND);
    run(&shop);
    let shown: serde_json::Value = serde_json::from_str(&said(&["features", "show", "spend", "--json"])).unwrap();
    assert_eq!(
        (shown["shown"]["version"].as_u64(), shown["shown"]["history"].as_str()),
        (Some(4), Some("history.spend_v1"))
    );
    assert_eq!(shop.query("select count(*) as n from history.spend_v1")[0]["n"], 1);
}

#[test]
fn mistakes_in_views_and_services_are_told_with_their_place_and_a_suggestion() {
    let shop = Shop::new(&[
        (
            "sql/features/a.sql",
            "-- @feature entity(customer) ttl(90d)\nselect customer_id, count(*) as n from core.orders group by customer_id\n",
        ),
        (
            "sql/features/b.sql",
            "-- @feature onlin\nselect customer_id, count(*) as n from core.orders group by customer_id\n",
        ),
        (
            "sql/features/c.sql",
            "-- @feature ttl(soon)\nselect customer_id, count(*) as n from core.orders group by customer_id\n",
        ),
        ("sql/features/d.sql", "-- @feature\nselect customer_id, amount from core.orders\n"),
        (
            "sql/features/e.sql",
            "-- @feature event_timestamp(n)\nselect customer_id, count(*) as n from core.orders group by customer_id\n",
        ),
        (
            "sql/profile/good.sql",
            "-- @feature view(good)\nselect customer_id, count(*) as orders from core.orders group by customer_id\n",
        ),
        (
            "sql/features/good.sql",
            "-- @feature\nselect customer_id, count(*) as orders from core.orders group by customer_id\n",
        ),
        ("sql/history/x.sql", "select 1 as one\n"),
        (
            "pipelines/churn/feature_services.toml",
            "[one]\nfeatures = [\"god:orders\", \"good:order\", \"good:orders\", \"good@3:orders\"]\n[two]\nfeature = [\"good\"]\n",
        ),
    ]);
    let output = shop.command(&["check", "--json"]).output().unwrap();
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let found: Vec<String> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| {
            let file = finding["file"].as_str().unwrap().rsplit('/').next().unwrap();
            format!(
                "{} {file}:{}:{} {}",
                finding["code"].as_str().unwrap(),
                finding["line"],
                finding["column"],
                finding["help"].as_str().unwrap_or("")
            )
        })
        .collect();
    let told = found.join("\n");
    for expected in [
        "E0605 feature_services.toml:2:13 did you mean `good`?",
        "E0605 feature_services.toml:2:27 did you mean `good:orders`?",
        "E0604 feature_services.toml:2:56 ",
        "E0604 feature_services.toml:3:2 add features",
        "E0604 feature_services.toml:4:1 did you mean `features`?",
        "E0602 a.sql:1:20 did you mean `customer_id`?",
        "E0102 b.sql:1:13 did you mean `online`?",
        "E0102 c.sql:1:13 ",
        "E0603 d.sql:1:1 add `@expect fail",
        "E0602 e.sql:1:29 cast it",
        "E0602 good.sql:1:",
        "E0210 x.sql:0:0",
    ] {
        assert!(told.contains(expected), "{expected} is not in\n{told}");
    }
    assert_eq!(found.len(), 13, "{told}");
}

#[test]
fn bad_spines_and_requests_have_a_defined_answer() {
    let shop = shop();
    order(&shop, "a", &[("o1", "M1", 10, "10.00")]);
    let after = run(&shop);
    let m1 = customer(&shop, "o1");
    let ask = |spine: &str, more: &[&str]| {
        shop.write("spine.csv", spine);
        let mut command = shop.command(&["features", "training-set", "--spine", "spine.csv", "--out", "set.parquet"]);
        let output = command.args(more).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let service = ["--service", "churn"];
    let good = format!("customer_id,event_timestamp\n{m1},{}\n", text(after));
    let refused: Vec<(String, Vec<&str>, i32, &str)> = vec![
        (good.clone(), vec!["--service", "chrn"], 2, "did you mean `churn`?"),
        (good.clone(), vec!["--service", "churn@v7"], 2, "has no version v7: its newest is v1"),
        (good.clone(), vec!["--features", "spend:spent"], 2, "did you mean spend?"),
        (good.clone(), vec!["--features", "spnd"], 2, "did you mean `spend`?"),
        (good.clone(), vec!["--features", "spend:"], 2, "names no feature"),
        (good.replace("customer_id", "customer"), service.to_vec(), 2, "the spine has no column customer_id"),
        (good.replace("event_timestamp", "at"), service.to_vec(), 2, "the spine has no column event_timestamp"),
        (
            format!("customer_id,event_timestamp\n{m1},2026-01-01 08:00:00\n"),
            service.to_vec(),
            2,
            "row 0: its moment is no timestamp with a zone",
        ),
        (format!("{good}{m1},\n"), service.to_vec(), 2, "row 1: column event_timestamp is null"),
        (
            format!("customer_id,event_timestamp,spend\n{m1},{},1\n", text(after)),
            service.to_vec(),
            2,
            "two columns of the answer are called spend",
        ),
    ];
    for (spine, more, code, expected) in refused {
        let (found, said) = ask(&spine, &more);
        assert_eq!(found, Some(code), "{said}");
        assert!(said.contains(expected) && !said.contains(&m1), "{expected} is not in {said}");
        assert!(!shop.path().join("set.parquet").exists());
    }
    // No key, no such key, before all history, the far future, twice the same: answered. A spine without rows has an answer without.
    let odd = format!(
        "customer_id,event_timestamp,note\n,{t},a\nx,{t},b\n{m1},1990-01-01T00:00:00Z,c\n{m1},2099-01-01T00:00:00+08:00,d\n{m1},{t},e\n{m1},{t},e\n",
        t = text(after)
    );
    assert_eq!(ask(&odd, &service).0, Some(0));
    let answer = rows(&shop.path().join("set.parquet"));
    let statuses: Vec<&str> = answer.iter().map(|row| row["spend__status"].as_str()).collect();
    assert_eq!(statuses, ["NOT_FOUND", "NOT_FOUND", "NOT_FOUND", "OUTSIDE_MAX_AGE", "PRESENT", "PRESENT"]);
    assert_eq!(answer.iter().map(|row| row["note"].as_str()).collect::<Vec<_>>(), ["a", "b", "c", "d", "e", "e"]);
    assert_eq!(ask("customer_id,event_timestamp\n", &service).0, Some(0));
    assert!(rows(&shop.path().join("set.parquet")).is_empty());
    assert_eq!(ask(&good.replace('Z', ""), &["--service", "churn", "--timestamps-are-utc"]).0, Some(0));
}

#[test]
fn labels_lie_behind_the_moment_and_within_the_horizon() {
    let shop = shop();
    shop.write(
        "sql/label/bought.sql",
        "-- @feature\n-- @tag label(amount)\nselect customer_id, max(ordered_at) as event_timestamp, sum(amount) as amount\n\
         from core.orders where order_id like 'later%' group by customer_id\n",
    );
    order(&shop, "a", &[("o1", "M1", 30, "10.00"), ("later1", "M1", 5, "3.00"), ("o2", "M2", 30, "1.00")]);
    run(&shop);
    let (m1, m2) = (customer(&shop, "o1"), customer(&shop, "o2"));
    let days_ago = |days: i64| now() - TimeDelta::days(days);
    let spine = [(m1.as_str(), days_ago(10)), (&m1, days_ago(20)), (&m1, days_ago(13)), (&m2, days_ago(10))];
    let label = ["--service", "churn", "--ignore-known-at", "--label", "bought:amount", "--horizon", "9d"];
    let (answer, id) = training_set(&shop, &spine, &label);
    assert_eq!(
        cells(&answer, &["amount", "bought__status"]),
        [["3.00", "PRESENT"], ["", "NOT_FOUND"], ["3.00", "PRESENT"], ["", "NOT_FOUND"]]
    );
    assert!(!answer[0].contains_key("_label_horizon"));
    let replayed = succeed(&mut shop.command(&["features", "datasets", "replay", &id, "--out", "again.parquet"]));
    assert_eq!(String::from_utf8(replayed.stdout).unwrap().trim(), id);

    // A horizon that is not over has no label yet.
    shop.write("spine.csv", &format!("customer_id,event_timestamp\n{m1},{}\n", text(days_ago(3))));
    let open = |more: &[&str]| {
        let mut command = shop.command(&["features", "training-set", "--spine", "spine.csv", "--out", "set.parquet"]);
        command.args(label).args(more).output().unwrap()
    };
    let said = String::from_utf8_lossy(&open(&[]).stderr).into_owned();
    assert!(said.contains("row 0: its horizon ends after"), "{said}");
    assert!(open(&["--open-horizon"]).status.success());
    // No service bundles labels.
    shop.write("pipelines/churn/feature_services.toml", "[churn]\nfeatures = [\"bought:amount\"]\n");
    let said = String::from_utf8_lossy(&shop.command(&["check"]).output().unwrap().stderr).into_owned();
    assert!(said.contains("E0605") && said.contains("names the labels of label.bought"), "{said}");
}

/// The lake of a shop, at a moment of the test's own.
async fn lake(shop: &Shop, at: DateTime<Utc>) -> Lake {
    let folder = shop.path().join("lake").display().to_string();
    Lake::open_to_write(&folder, Path::new("/"), &StoreOptions::new(), Arc::new(FixedClock(at))).await.unwrap()
}

#[test]
fn pit_3_a_row_of_an_earlier_event_is_seen_when_it_corrects_goes_or_comes_back() {
    // The event is the first order: orders of before that come late move it back.
    let shop = Shop::new(&[("sql/features/spend.sql", &SPEND.replace("max(ordered_at)", "min(ordered_at)"))]);
    shop.write("pipelines/churn/feature_services.toml", SERVICES);
    let mut moments = Vec::new();
    for (at, orders) in [
        vec![("o1", "M1", 10, "10.00"), ("p1", "M2", 3, "1.00")],
        // Corrected to an earlier event.
        vec![("o2", "M1", 20, "5.00")],
        // Gone, from an event that is earlier than the one history has.
        vec![("o3", "M1", 1, "-100.00")],
        // Back, with an event that is earlier still; and the other one goes and comes in one run.
        vec![("o4", "M1", 40, "500.00"), ("p2", "M2", 2, "-9.00"), ("p3", "M2", 30, "20.00")],
        vec![("p4", "M2", 60, "1.00")],
    ]
    .iter()
    .enumerate()
    {
        order(&shop, &format!("r{at}"), orders);
        moments.push(run(&shop));
    }
    let (m1, m2) = (customer(&shop, "o1"), customer(&shop, "p1"));
    let spine: Vec<(&str, DateTime<Utc>)> =
        moments.iter().flat_map(|at| [(m1.as_str(), *at), (m2.as_str(), *at)]).collect();
    let expected = [
        ["10.00", "PRESENT"],
        ["1.00", "PRESENT"],
        ["15.00", "PRESENT"],
        ["1.00", "PRESENT"],
        ["", "NOT_FOUND"],
        ["1.00", "PRESENT"],
        ["415.00", "PRESENT"],
        ["12.00", "PRESENT"],
        ["415.00", "PRESENT"],
        ["13.00", "PRESENT"],
    ];
    let (answer, _) = training_set(&shop, &spine, &["--service", "churn"]);
    assert_eq!(cells(&answer, &["spend", "spend__status"]), expected);
    succeed(&mut shop.command(&["maintain", "--table", "history.*"]));
    let (answer, _) = training_set(&shop, &spine, &["--service", "churn"]);
    assert_eq!(cells(&answer, &["spend", "spend__status"]), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pit_4_a_training_set_is_had_again_byte_for_byte_until_it_is_released() {
    let shop = shop();
    order(&shop, "a", &[("o1", "M1", 10, "10.00"), ("o2", "M2", 20, "3.00")]);
    let mut moments = vec![run(&shop)];
    for round in 0..6 {
        let orders: Vec<(String, &str)> =
            ["M1", "M2", "M3"].iter().map(|member| (format!("r{round}{member}"), *member)).collect();
        let rows: Vec<(&str, &str, i64, &str)> =
            orders.iter().map(|(order, member)| (order.as_str(), *member, 1, "1.00")).collect();
        order(&shop, &format!("r{round}"), &rows);
        moments.push(run(&shop));
    }
    let (m1, m2) = (customer(&shop, "o1"), customer(&shop, "o2"));
    let spine: Vec<(&str, DateTime<Utc>)> =
        moments.iter().flat_map(|at| [(m1.as_str(), *at), (m2.as_str(), *at)]).collect();
    let (answer, id) = training_set(&shop, &spine, &["--service", "churn"]);
    let bytes = std::fs::read(shop.path().join("set.parquet")).unwrap();
    assert_eq!(answer.iter().filter(|row| row["spend__status"] == "PRESENT").count(), spine.len());
    // Asked once more it is the same set.
    assert_eq!(training_set(&shop, &spine, &["--service", "churn"]).1, id);

    // The view goes on, files are merged, and what nobody needs is deleted, a month later.
    order(&shop, "z", &[("z1", "M1", 0, "100.00")]);
    run(&shop);
    let later = lake(&shop, now() + TimeDelta::days(30)).await;
    let history: TableName = "history.spend_v1".parse().unwrap();
    let merged = compact_history(&later, &history, None, false).await.unwrap();
    assert!(merged.files >= 8, "{merged:?}");
    let maintain = async |kept: KeptRuns| {
        let settings = MaintainSettings { retention: Duration::from_secs(3_600), ..MaintainSettings::default() };
        later.maintain(&history, &settings, &kept, None).await.unwrap().files_vacuumed
    };
    let datasets = Datasets::new(&later);
    let mut kept = KeptRuns::default();
    datasets.keep(&mut kept).await.unwrap();
    maintain(kept).await;
    let replay =
        |file: &str| shop.command(&["features", "datasets", "replay", &id[..9], "--out", file]).output().unwrap();
    assert!(replay("again.parquet").status.success(), "{:?}", replay("again.parquet"));
    assert_eq!(std::fs::read(shop.path().join("again.parquet")).unwrap(), bytes);
    // The merged files give the same set as well: only the version of the table is another.
    succeed(&mut shop.command(&["run", "--full"]));
    let described = succeed(&mut shop.command(&["features", "datasets", "describe", &id]));
    let described = String::from_utf8(described.stdout).unwrap();
    assert!(described.contains("churn@v1") && described.contains("history.spend_v1 v"), "{described}");

    succeed(&mut shop.command(&["features", "datasets", "release", &id]));
    let mut kept = KeptRuns::default();
    datasets.keep(&mut kept).await.unwrap();
    assert!(maintain(kept).await >= 8, "what was merged is no longer needed");
    let refused = replay("again.parquet");
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("was released at"), "{refused:?}");
    let listed = succeed(&mut shop.command(&["features", "datasets", "list"]));
    assert!(String::from_utf8_lossy(&listed.stdout).contains("released"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn merging_history_changes_no_answer_and_the_command_does_it() {
    let shop = shop();
    let mut spine = Vec::new();
    for round in 0..5 {
        order(
            &shop,
            &format!("r{round}"),
            &[(&format!("a{round}"), "M1", 2, "1.00"), (&format!("b{round}"), "M2", 3, "2.00")],
        );
        spine.push(run(&shop));
    }
    let (m1, m2) = (customer(&shop, "a0"), customer(&shop, "b0"));
    let spine: Vec<(&str, DateTime<Utc>)> =
        spine.iter().flat_map(|at| [(m1.as_str(), *at), (m2.as_str(), *at)]).collect();
    let (before, _) = training_set(&shop, &spine, &["--service", "churn"]);
    let table = async || lake(&shop, now()).await.table(&"history.spend_v1".parse().unwrap()).await.unwrap().unwrap();
    let files = table().await.file_count();
    let report = succeed(&mut shop.command(&["maintain", "--table", "history.*", "--json"]));
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
    assert!(report["tables"][0]["files_merged"].as_u64().unwrap() >= 8, "{report}");
    assert!(table().await.file_count() < files);
    // Readers see them from the next published run on.
    order(&shop, "z", &[("z", "M9", 1, "1.00")]);
    run(&shop);
    let (after, _) = training_set(&shop, &spine, &["--service", "churn"]);
    assert_eq!(before, after);
    let (_, history) = history_of(&table().await).unwrap();
    assert!(history.compactions(4).is_empty());
    let idle = succeed(&mut shop.command(&["maintain", "--table", "history.*", "--json"]));
    let idle: serde_json::Value = serde_json::from_slice(&idle.stdout).unwrap();
    assert_eq!(idle["tables"][0]["files_merged"], 0, "{idle}");
}

async fn try_run(lake: &Lake, project: &Project) -> Result<RunReport, holdfast_engine::EngineError> {
    let options = RunOptions {
        run_id: uuid::Uuid::now_v7().to_string(),
        as_of: lake.clock().now(),
        selection: Selection::Patterns(vec!["features.spend".to_owned()]),
        full: false,
        range: None,
        publish: true,
        parallel_stages: 1,
    };
    Runner::new(lake.clone(), project.clone(), SessionSettings::default()).run(&options, &NoProgress).await
}

async fn kept(lake: &Lake) -> Vec<String> {
    let reader = LakeReader::newest(lake, &SessionSettings::default()).await.unwrap();
    let sql = "select customer_id, event_timestamp, known_at, _version, _deleted, orders, spend from history.spend_v1 order by customer_id, _version";
    let batches = reader.session().unwrap().sql(sql).await.unwrap().collect().await.unwrap();
    let shown = arrow::util::pretty::pretty_format_batches(&batches).unwrap().to_string();
    shown.lines().map(str::to_owned).collect()
}

#[tokio::test]
async fn history_is_whole_and_nothing_is_in_it_twice_after_a_run_that_died_at_any_call() {
    let stage = SPEND.replace("from core.orders", "from core.orders as o");
    let shop = Shop::new(&[("sql/features/spend.sql", &stage)]);
    order(&shop, "a", &[("o1", "M1", 10, "10.00"), ("o2", "M2", 200, "7.00")]);
    run(&shop);
    order(&shop, "b", &[("o3", "M1", 12, "5.00"), ("o4", "M3", 1, "9.00"), ("o5", "M2", 2, "-7.00")]);
    let at = now() + TimeDelta::hours(1);
    // The stages as the binary reads them, without the functions of identity: core is up to date.
    let sql = shop.path().join("only/features");
    std::fs::create_dir_all(&sql).unwrap();
    std::fs::write(sql.join("spend.sql"), &stage).unwrap();
    let orders: TableName = "core.orders".parse().unwrap();
    let open = async |folder: &Path| {
        let clock = Arc::new(FixedClock(at));
        Lake::open_to_write(&folder.display().to_string(), Path::new("/"), &StoreOptions::new(), clock).await.unwrap()
    };
    let base = shop.path().join("lake");
    let schema = Arc::clone(open(&base).await.table(&orders).await.unwrap().unwrap().schema());
    let declared = holdfast_engine::DeclaredTable { name: orders, schema, identifiers: Vec::new() };
    let project = Project::load(&shop.path().join("only"), vec![declared]).unwrap();

    let whole = shop.path().join("whole");
    copy(&base, &whole);
    assert!(try_run(&open(&whole).await, &project).await.unwrap().succeeded());
    let expected = kept(&open(&whole).await).await;
    assert_eq!(expected.len(), 4 + 5, "{expected:#?}");
    let mut deaths = 0;
    // Every third call, before it in one pass and behind the one that follows in the other.
    for (moment, first) in [(Moment::Before, 1), (Moment::After, 2)] {
        for call in (first..).step_by(3) {
            let folder: PathBuf = shop.path().join(format!("dies-{call}"));
            copy(&base, &folder);
            let mut place = open_store(&folder.display().to_string(), Path::new("/"), &StoreOptions::new()).unwrap();
            let store = Arc::new(FaultStore::over(place.store).dying_at(call, moment));
            place.store = Arc::clone(&store) as _;
            let dying = async {
                let lake =
                    Lake::create_or_open_at(place, LakeSettings::default(), Arc::new(FixedClock(at))).await.ok()?;
                try_run(&lake, &project).await.ok()
            };
            tokio::select! {
                _ = dying => {}
                () = store.died() => {}
            }
            let was_killed = store.is_dead();
            deaths += u32::from(was_killed);
            let lake = open(&folder).await;
            assert!(try_run(&lake, &project).await.unwrap().succeeded());
            assert_eq!(kept(&lake).await, expected, "killed {moment:?} call {call}");
            std::fs::remove_dir_all(&folder).unwrap();
            if !was_killed {
                break;
            }
        }
    }
    assert!(deaths > 20, "only {deaths} deaths");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pit_3_online_values_are_those_of_a_training_row_of_the_same_moment() {
    let shop = shop();
    let store = OnlineStore::new(&{
        order(&shop, "a", &[("o0", "M0", 1, "1.00")]);
        lake(&shop, now()).await
    });
    let mut customers = vec!["nobody".to_owned()];
    for round in 0..6_i64 {
        let orders: Vec<(String, String, i64, String)> = (0..7)
            .map(|at| {
                // Some are too old, some go, some come back.
                let days = if at == 3 { 200 } else { at + round };
                let amount = if at == 5 && round % 2 == 1 { "-50.00".to_owned() } else { format!("{}.00", 10 + round) };
                (format!("o{round}_{at}"), format!("M{}", at + round % 3), days, amount)
            })
            .collect();
        let rows: Vec<(&str, &str, i64, &str)> = orders
            .iter()
            .map(|(order, member, days, amount)| (order.as_str(), member.as_str(), *days, amount.as_str()))
            .collect();
        order(&shop, &format!("r{round}"), &rows);
        run(&shop);
        if round == 3 {
            succeed(&mut shop.command(&["maintain", "--table", "history.*"]));
        }
        assert!(store.refresh().await.unwrap());
        assert!(!store.refresh().await.unwrap());
        customers = shop
            .query("select distinct customer_id from core.orders")
            .iter()
            .map(|row| row["customer_id"].as_str().unwrap().to_owned())
            .collect();
        customers.push("nobody".to_owned());
        // The moment has microseconds, as the spine's text has.
        let at: DateTime<Utc> = text(now()).parse().unwrap();
        let spine: Vec<(&str, DateTime<Utc>)> = customers.iter().map(|customer| (customer.as_str(), at)).collect();
        let (offline, _) = training_set(
            &shop,
            &spine,
            &["--service", "churn", "--status", "value", "--event-timestamps", "--full-names"],
        );
        let keys = RecordBatch::try_from_iter([(
            "customer_id",
            Arc::new(arrow::array::StringArray::from(customers.clone())) as arrow::array::ArrayRef,
        )])
        .unwrap();
        let columns = OnlineColumns { full_names: true, status: ValueStatus::Value, event_timestamps: true };
        let online = store.answer(&Asked::Service("churn".to_owned()), &keys, columns, at).unwrap();
        for (row, expected) in offline.iter().enumerate() {
            for (field, column) in online.schema().fields().iter().zip(online.columns()) {
                let found = array_value_to_string(column, row).unwrap();
                assert_eq!(found, expected[field.name()], "round {round}, {}", field.name());
            }
        }
        let columns: Vec<String> = online.schema().fields().iter().map(|field| field.name().clone()).collect();
        assert_eq!(columns.len() + 1, offline[0].len(), "{columns:?}");
    }
    let statuses: Vec<String> = {
        let keys = RecordBatch::try_from_iter([(
            "customer_id",
            Arc::new(arrow::array::StringArray::from(customers)) as arrow::array::ArrayRef,
        )])
        .unwrap();
        let columns = OnlineColumns { full_names: false, status: ValueStatus::View, event_timestamps: false };
        let asked = Asked::Features(vec!["spend".parse().unwrap()]);
        let early = store.answer(&asked, &keys, columns, now() - TimeDelta::days(1)).unwrap_err().to_string();
        assert!(early.contains("became known after that moment"), "{early}");
        let rows = store.answer(&asked, &keys, columns, store.now()).unwrap();
        let column = rows.column_by_name("spend__status").unwrap();
        (0..rows.num_rows()).map(|row| array_value_to_string(column, row).unwrap()).collect()
    };
    for status in ["PRESENT", "NOT_FOUND"] {
        assert!(statuses.iter().any(|found| found == status), "{statuses:?}");
    }
    assert_eq!(store.views(), [("spend".to_owned(), statuses.len() as u64 - 1)]);
}
