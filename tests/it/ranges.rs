//! Stages by time: late rows find their day, and a range is worked out anew when somebody asks.

use std::sync::Arc;

use arrow::array::{ArrayRef, Date32Array, Decimal128Array, Int64Array, RecordBatch};
use holdfast_engine::{TableRows, write_table};
use holdfast_lake::{CommitOutcome, Lake, Position, StoreOptions, TableSpec};
use holdfast_types::FixedClock;
use serde_json::Value;

use crate::increments::ORDERS;
use crate::stages::Shop;
use crate::{commits, succeed};

const AS_OF: [&str; 2] = ["--as-of", "2025-07-30T00:00:00Z"];
const DAILY: &str = "-- Sales of a day.\n-- @stage incremental time(day)\n\
    select\n    cast(ordered_at as date) as day,  -- Day of the order, UTC\n    sum(amount) as amount,            -- CNY\n\
    \x20   count(*) as orders                -- Orders\nfrom core.orders\nwhere ordered_at is not null\ngroup by cast(ordered_at as date)\n";

fn shop() -> Shop {
    let shop = Shop::new(&[("sql/metric/daily.sql", DAILY)]);
    shop.write("sql/core/orders.sql", ORDERS);
    shop.orders(
        "a",
        "o1,M1,2025-06-01T08:00:00Z,10.00\no2,M2,2025-06-01T09:00:00Z,4.00\no3,M1,2025-06-30T23:59:59Z,1.00\no4,M1,2025-07-01T00:00:00Z,2.00\n",
    );
    run(&shop, &[]);
    shop
}

fn run(shop: &Shop, arguments: &[&str]) -> Value {
    let output = succeed(shop.command(&["run", "--json"]).args(AS_OF).args(arguments));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Day and orders.
fn daily(shop: &Shop) -> Vec<String> {
    let rows = shop.query("select cast(day as varchar) as day, orders from metric.daily order by day, orders");
    rows.iter().map(|row| format!("{} {}", row["day"].as_str().unwrap(), row["orders"])).collect()
}

/// Somebody writes rows for these days past the stage.
async fn tamper(shop: &Shop, days: &[i32]) {
    let clock = Arc::new(FixedClock(chrono::Utc::now()));
    let lake = Lake::open_to_write("lake", shop.path(), &StoreOptions::new(), clock).await.unwrap();
    let table = lake.table(&"metric.daily".parse().unwrap()).await.unwrap().unwrap();
    let amounts = Decimal128Array::from_iter_values(days.iter().map(|_| 100));
    let amount = table.schema().field_with_name("amount").unwrap().data_type().clone();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Date32Array::from_iter_values(days.iter().copied())),
        arrow::compute::cast(&amounts, &amount).unwrap(),
        Arc::new(Int64Array::from_iter_values(days.iter().map(|_| 99))),
    ];
    let spec = TableSpec {
        name: table.name().clone(),
        schema: Arc::clone(table.schema()),
        partition_by: Vec::new(),
        comment: String::new(),
    };
    let rows = RecordBatch::try_new(Arc::clone(table.schema()), columns).unwrap();
    let position = Position { app_id: "somebody".to_owned(), version: 1 };
    let written = write_table(&lake, &spec, TableRows::Added(vec![rows]), position, serde_json::Map::new()).await;
    assert!(matches!(written, Ok(CommitOutcome::Applied { .. })), "{written:?}");
}

#[tokio::test]
async fn a_range_is_worked_out_anew_and_nothing_else_is() {
    let shop = shop();
    let right = ["2025-06-01 2", "2025-06-30 1", "2025-07-01 1"];
    assert_eq!(daily(&shop), right);
    // 2025-05-31, 2025-06-15 and 2025-07-01.
    tamper(&shop, &[20_239, 20_254, 20_270]).await;
    let june = ["--select", "metric.daily", "--from", "2025-06-01", "--to", "2025-07-01"];
    assert_eq!(daily(&shop).len(), 6);
    let before = commits(shop.path());
    let plan: Value =
        serde_json::from_slice(&succeed(shop.command(&["plan", "--json"]).args(june).args(AS_OF)).stdout).unwrap();
    assert_eq!((&plan["stages"][0]["action"], &plan["stages"][0]["keys"]), (&"keys".into(), &3.into()), "{plan}");
    assert_eq!(commits(shop.path()), before);

    let report = run(&shop, &june);
    let refresh = &report["stages"][0]["refresh"];
    assert_eq!((&refresh["rows_added"], &refresh["rows_removed"]), (&0.into(), &1.into()), "{report}");
    assert_eq!(daily(&shop), ["2025-05-31 99", "2025-06-01 2", "2025-06-30 1", "2025-07-01 1", "2025-07-01 99"]);
    let before = commits(shop.path());
    run(&shop, &june);
    assert_eq!(commits(shop.path()), before, "it is right by now");
    run(&shop, &["--select", "metric.daily", "--from", "2025-05-01T00:00:00Z", "--to", "2025-08-01T00:00:00Z"]);
    assert_eq!(daily(&shop), right);
}

#[test]
fn a_range_leaves_what_changed_elsewhere_to_the_next_run() {
    let shop = shop();
    shop.orders("b", "o5,M1,2025-06-02T00:00:00Z,1.00\no6,M1,2025-07-02T00:00:00Z,1.00\n");
    run(&shop, &["--select", "metric.daily", "--from", "2025-06-01", "--to", "2025-07-01"]);
    assert_eq!(daily(&shop), ["2025-06-01 2", "2025-06-02 1", "2025-06-30 1", "2025-07-01 1"]);
    let report = run(&shop, &[]);
    let stages = report["stages"].as_array().unwrap();
    let by_time = stages.iter().find(|stage| stage["stage"] == "metric.daily").unwrap();
    assert_eq!((&by_time["refresh"]["kind"], &by_time["refresh"]["keys"]), (&"keys".into(), &2.into()), "{report}");
    assert_eq!(daily(&shop).len(), 5);
}

#[test]
fn a_range_that_cannot_be_worked_out_is_refused_with_the_reason() {
    let shop = shop();
    let refused = |arguments: &[&str], expected: &[&str]| {
        let before = commits(shop.path());
        let (code, said) = shop.fails(arguments);
        assert!(code == Some(2), "{arguments:?}: {said}");
        expected.iter().for_each(|part| assert!(said.contains(part), "{arguments:?}: {said}"));
        assert_eq!(commits(shop.path()), before);
    };
    refused(&["run", "--from", "2025-06-01", "--to", "2025-07-01"], &["core.orders is none", "--select"]);
    let daily = ["run", "--select", "metric.daily", "--from"];
    refused(&[&daily[..], &["2025-06-01", "--to", "2025-06-01"]].concat(), &["the range is empty"]);
    refused(&[&daily[..], &["June", "--to", "2025-06-01"]].concat(), &["write a day such as"]);
    refused(&[&daily[..], &["2025-06-01"]].concat(), &["--to"]);
    shop.write("sql/metric/daily.sql", &DAILY.replace("count(*)", "2 * count(*)"));
    let june = [&daily[..], &["2025-06-01", "--to", "2025-07-01"]].concat();
    refused(&june, &["metric.daily", "its query", "run it without a range first"]);
    shop.write("sql/metric/daily.sql", &DAILY.replace("as date)", "as varchar)"));
    refused(&["check"], &["error[E0110]", "the time `day` of metric.daily is of type", "daily.sql:2"]);
}
