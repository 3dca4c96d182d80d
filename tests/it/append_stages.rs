//! Stages to which rows are added: for what came alone, as long as that is all that can have changed.

use serde_json::Value;

use crate::stages::Shop;
use crate::{commits, succeed};

const AS_OF: [&str; 2] = ["--as-of", "2025-06-30T00:00:00Z"];
/// Rates are looked up: they are written as a stage of their own, so that they can change.
const RATES: &str = "select 'CNY' as currency, cast(2 as decimal(12,2)) as rate\n";
const LARGE: &str = "-- Orders that are no trifle, one row each.\n-- @stage append\n\
    -- @expect quarantine sane: amount < 1000\n-- @expect warn some: count(*) > 0\n\
    select\n    o.order_id,                   -- Order\n    o.amount * r.rate as amount,  -- Doubled\n\
    \x20   o.at as ordered_at            -- When\nfrom raw.orders o\ncross join core.rates r\nwhere o.amount > 5\n";

fn shop() -> Shop {
    Shop::new(&[("sql/core/rates.sql", RATES), ("sql/metric/large.sql", LARGE)])
}

fn run(shop: &Shop) -> Value {
    let output = succeed(shop.command(&["run", "--json", "--select", "core.rates", "metric.large"]).args(AS_OF));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let stages = report["stages"].as_array().unwrap();
    stages.iter().find(|stage| stage["stage"] == "metric.large").unwrap().clone()
}

fn large(shop: &Shop) -> Vec<String> {
    let rows = shop.query("select order_id, cast(amount as int) as amount from metric.large order by order_id");
    rows.iter().map(|row| format!("{} {}", row["order_id"].as_str().unwrap(), row["amount"])).collect()
}

/// What the query gives over all there is.
fn assert_is_as_in_full(shop: &Shop) {
    let output = succeed(&mut shop.command(&["verify", "--sample", "100%", "--select", "metric.large", "--json"]));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(output.status.success() && !report["stages"].as_array().unwrap().is_empty(), "{report}");
}

#[test]
fn stg_1_rows_are_added_for_what_came_and_nothing_else_is_written() {
    let shop = shop();
    shop.orders("a", "o1,M1,2025-06-01T00:00:00Z,10.00\no2,M1,2025-06-01T00:00:00Z,1.00\n");
    assert_eq!(run(&shop)["refresh"]["kind"], "full");
    assert_eq!(large(&shop), ["o1 20"]);
    let data = || commits(&shop.path().join("lake/metric/large"));
    let before = data();
    run(&shop);
    assert_eq!(data(), before);

    for (file, rows, added) in [
        ("b", "o3,M1,2025-06-02T00:00:00Z,6.00\no4,M2,2025-06-02T00:00:00Z,5.00\n", 1),
        ("c", "o5,M1,2025-06-02T00:00:00Z,4.00\n", 0),
        ("d", "o6,M1,2025-06-02T00:00:00Z,600.00\no7,M1,2025-06-02T00:00:00Z,7.00\n", 1),
    ] {
        shop.orders(file, rows);
        let plan = succeed(shop.command(&["plan", "--select", "metric.large"]).args(AS_OF));
        let plan = String::from_utf8(plan.stdout).unwrap();
        assert!(plan.contains("Append metric.large  the rows for what comes in raw.orders"), "{plan}");
        let report = run(&shop);
        assert_eq!((&report["refresh"]["kind"], &report["refresh"]["rows_added"]), (&"append".into(), &added.into()));
        assert_is_as_in_full(&shop);
    }
    assert_eq!(large(&shop), ["o1 20", "o3 12", "o7 14"]);
    let refused = shop.query("select order_id from quarantine.metric_large");
    assert_eq!(refused.iter().map(|row| row["order_id"].as_str().unwrap()).collect::<Vec<_>>(), ["o6"]);
    // The first file of the table is the one of the first run.
    let first: Vec<_> = before.iter().filter(|path| path.contains("00000000000000000001.json")).collect();
    assert!(!first.is_empty() && first.iter().all(|commit| data().contains(commit)));
}

#[test]
fn what_else_can_have_changed_is_a_full_refresh_and_says_why() {
    let shop = shop();
    shop.orders("a", "o1,M1,2025-06-01T00:00:00Z,10.00\n");
    run(&shop);
    // What is looked up changed: rows that are there are others now.
    shop.write("sql/core/rates.sql", &RATES.replace("cast(2", "cast(3"));
    shop.orders("b", "o2,M1,2025-06-02T00:00:00Z,6.00\n");
    let report = run(&shop);
    assert_eq!(report["refresh"]["kind"], "full");
    assert_eq!(large(&shop), ["o1 30", "o2 18"]);

    for (number, (query, stop)) in [
        ("select max(o.order_id) as order_id, sum(o.amount) as amount from raw.orders o", "Aggregate"),
        ("select distinct o.order_id, o.amount from raw.orders o", "Distinct"),
        ("select o.order_id, o.amount from raw.orders o union all select order_id, amount from raw.orders", "Union"),
        ("select o.order_id, o.amount from raw.orders o order by o.order_id limit 100", "Limit"),
        ("select o.order_id, o.amount from raw.orders o where o.amount >= (select max(amount) from raw.orders)", ""),
    ]
    .into_iter()
    .enumerate()
    {
        shop.write("sql/metric/large.sql", &format!("-- @stage append\n{query}\n"));
        run(&shop);
        shop.orders(&format!("more{number}"), &format!("n{number},M1,2025-06-02T00:00:00Z,7.00\n"));
        let report = run(&shop);
        let reason = report["refresh"]["reason"].as_str().unwrap_or_default();
        assert!(report["refresh"]["kind"] == "full" && reason.contains("raw.orders changed"), "{query}: {report}");
        assert_is_as_in_full(&shop);
        shop.orders(&format!("again{number}"), &format!("m{number},M1,2025-06-03T00:00:00Z,8.00\n"));
        let plan = succeed(shop.command(&["plan", "--select", "metric.large"]).args(AS_OF));
        let plan = String::from_utf8(plan.stdout).unwrap();
        assert!(plan.contains(stop), "{query}: {plan}");
    }
}

#[test]
fn stg_2_rows_that_come_and_fail_an_expectation_get_no_version() {
    let shop = shop();
    shop.orders("a", "o1,M1,2025-06-01T00:00:00Z,10.00\n");
    shop.write("sql/metric/large.sql", &LARGE.replace("quarantine sane", "fail sane"));
    run(&shop);
    let before = commits(&shop.path().join("lake/metric/large"));
    shop.orders("b", "o2,M1,2025-06-02T00:00:00Z,900.00\n");
    let (code, said) = shop.fails(&[&["run", "--select", "metric.large"], &AS_OF[..]].concat());
    assert!(code == Some(3) && said.contains("expectation `sane`") && said.contains("1 of 1 rows"), "{said}");
    assert_eq!(commits(&shop.path().join("lake/metric/large")), before);
    assert_eq!(large(&shop), ["o1 20"]);
}
