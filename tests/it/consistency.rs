//! Served values and history: what was kept of answers is worked out again, and a value that is another is found.

use std::num::NonZeroU64;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatch, StringArray};
use arrow::compute::{concat_batches, take_record_batch};
use holdfast_feature_store::{
    Asked, OnlineColumns, OnlineStore, ServedLog, ValueStatus, compare_served, forget_served,
};
use holdfast_lake::{Lake, StoreOptions};
use holdfast_types::FixedClock;

use crate::features::{customer, now, order, run, shop};
use crate::stages::Shop;
use crate::succeed;

const MEMORY: usize = 64 << 20;

async fn lake(shop: &Shop) -> Lake {
    let folder = shop.path().join("lake").display().to_string();
    Lake::open_to_write(&folder, Path::new("/"), &StoreOptions::new(), Arc::new(FixedClock(now()))).await.unwrap()
}

fn keys(customers: &[&str]) -> RecordBatch {
    let keys = StringArray::from_iter(customers.iter().map(|key| (!key.is_empty()).then_some(*key)));
    RecordBatch::try_from_iter_with_nullable([("customer_id", Arc::new(keys) as ArrayRef, true)]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pit_3_what_was_served_over_several_runs_is_what_history_gives() {
    let shop = shop();
    order(&shop, "a", &[("o1", "M1", 10, "10.00"), ("o2", "M2", 200, "7.00")]);
    run(&shop);
    let store = OnlineStore::new(&lake(&shop).await);
    let log = ServedLog::new(NonZeroU64::new(2));
    let kinds = [
        (
            Asked::Service("churn".to_owned()),
            OnlineColumns { full_names: true, status: ValueStatus::Value, event_timestamps: true },
        ),
        (
            Asked::Features(vec!["spend:spend".parse().unwrap()]),
            OnlineColumns { full_names: false, status: ValueStatus::None, event_timestamps: false },
        ),
    ];
    let customers = [customer(&shop, "o1"), customer(&shop, "o2")];
    let mut served = 0;
    for round in 0..4 {
        store.refresh().await.unwrap();
        let lake = lake(&shop).await;
        for (asked, columns) in &kinds {
            for keys in [keys(&[&customers[0], "nobody", &customers[1], "", &customers[0]]), keys(&[&customers[1]])] {
                let plan = store.plan(asked, *columns).unwrap();
                let at = now().max(store.now());
                log.note(&plan, &plan.answer(&keys, at).unwrap(), at);
                served += 1;
            }
        }
        // Every second one, in one document.
        assert_eq!(log.keep(&lake).await.unwrap(), 2);
        assert_eq!(log.keep(&lake).await.unwrap(), 0);
        // A customer goes, comes back, and files are merged meanwhile.
        order(
            &shop,
            &format!("b{round}"),
            &[(&format!("p{round}"), "M1", 1, if round % 2 == 0 { "-90.00" } else { "95.00" })],
        );
        run(&shop);
        if round == 2 {
            succeed(&mut shop.command(&["maintain", "--table", "history.*"]));
        }
    }
    let lake = lake(&shop).await;
    let comparison = compare_served(&lake, MEMORY).await.unwrap();
    assert_eq!((comparison.answers, comparison.rows, comparison.mismatches()), (served / 2, 4 * 10, 0));
    let told: Vec<_> = comparison.features.iter().map(|feature| (feature.feature.as_deref(), feature.values)).collect();
    assert_eq!(told, [(None, 20), (Some("orders"), 20), (Some("spend"), 40)]);

    // The command says so, keeps it in a table, and forgets the samples.
    let output = succeed(&mut shop.command(&["features", "consistency"]));
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains("8 answers of 40 rows, 80 values: all are those of history"), "{said}");
    let rows = shop.query(
        "select feature_view, view_version, feature, values_compared, mismatches from metric.feature_consistency \
         where feature is not null order by feature",
    );
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[1]["feature"], "spend");
    assert_eq!((&rows[1]["values_compared"], &rows[1]["mismatches"]), (&40.into(), &0.into()));
    assert_eq!(compare_served(&lake, MEMORY).await.unwrap().answers, 0);
    succeed(&mut shop.command(&["features", "consistency"]));
    assert_eq!(shop.query("select count(*) as n from metric.feature_consistency")[0]["n"], 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_served_value_that_is_another_is_found_and_fails_the_command() {
    let shop = shop();
    order(&shop, "a", &[("o1", "M1", 10, "10.00"), ("o2", "M2", 20, "7.00")]);
    run(&shop);
    let lake = lake(&shop).await;
    let store = OnlineStore::new(&lake);
    store.refresh().await.unwrap();
    let log = ServedLog::new(NonZeroU64::new(1));
    let columns = OnlineColumns { full_names: false, status: ValueStatus::View, event_timestamps: false };
    let plan = store.plan(&Asked::Service("churn".to_owned()), columns).unwrap();
    let at = now().max(store.now());
    let asked = keys(&[&customer(&shop, "o1"), &customer(&shop, "o2")]);
    let right = plan.answer(&asked, at).unwrap();
    log.note(&plan, &right, at);
    // The values of one customer under the key of the other.
    let swapped = take_record_batch(&right, &arrow::array::UInt32Array::from(vec![1, 0])).unwrap();
    let mut mixed = swapped.columns().to_vec();
    mixed[0] = Arc::clone(right.column(0));
    let wrong = RecordBatch::try_new(right.schema(), mixed).unwrap();
    assert_ne!(concat_batches(&right.schema(), [&right]).unwrap(), wrong);
    log.note(&plan, &wrong, at);
    assert_eq!(log.keep(&lake).await.unwrap(), 2);
    let found = compare_served(&lake, MEMORY).await.unwrap();
    let told: Vec<_> = found.features.iter().map(|of| (of.feature.as_deref(), of.values, of.mismatches)).collect();
    // Both have one order.
    assert_eq!(told, [(None, 4, 0), (Some("orders"), 4, 0), (Some("spend"), 4, 2)]);
    let (_, said) = shop.fails(&["features", "consistency"]);
    assert!(said.contains("2 of 12 served values are not those that history gives"), "{said}");
    let rows = shop.query("select mismatches from metric.feature_consistency where feature = 'spend'");
    assert_eq!(rows[0]["mismatches"], 2);
    forget_served(&lake, &found).await.unwrap();

    // More than there is room for: the oldest go.
    for minute in 0..260 {
        let clock = Arc::new(FixedClock(now() + chrono::TimeDelta::minutes(minute)));
        let folder = shop.path().join("lake").display().to_string();
        let later = Lake::open(&folder, Path::new("/"), &StoreOptions::new(), clock).await.unwrap();
        log.note(&plan, &right, at);
        log.keep(&later).await.unwrap();
    }
    assert_eq!(lake.documents("features/served").await.unwrap().len(), 256);
}

#[test]
fn features_that_moved_from_a_baseline_are_told_and_kept_in_a_table() {
    let shop = shop();
    // A hundred customers with 1 to 100 CNY each.
    let orders = |round: usize, from: usize| -> Vec<(String, String, String)> {
        (0..100).map(|at| (format!("o{round}_{at}"), format!("M{at}"), format!("{}.00", from + at))).collect()
    };
    let place = |name: &str, rows: &[(String, String, String)]| {
        let rows: Vec<(&str, &str, i64, &str)> =
            rows.iter().map(|(order, member, amount)| (order.as_str(), member.as_str(), 3, amount.as_str())).collect();
        order(&shop, name, &rows);
    };
    place("a", &orders(0, 1));
    run(&shop);
    let output = succeed(&mut shop.command(&["features", "stats", "--keep-baseline", "june", "--json"]));
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let of = |told: &serde_json::Value, feature: &str| {
        told.as_array().unwrap().iter().find(|of| of["feature"] == feature).unwrap().clone()
    };
    let spend = of(&told, "spend");
    assert_eq!((&spend["rows"], &spend["nulls"], &spend["distinct"]), (&100.into(), &0.into(), &100.into()));
    let numbers = &spend["numbers"];
    assert_eq!((numbers["least"].as_f64(), numbers["greatest"].as_f64()), (Some(1.0), Some(100.0)));
    assert_eq!((numbers["mean"].as_f64(), numbers["quantiles"][2].as_f64()), (Some(50.5), Some(50.0)));

    // Nothing has moved; a baseline stays as it is, and one that is not there is told.
    succeed(&mut shop.command(&["features", "stats", "--baseline", "june", "--fail-on", "moderate"]));
    let (_, said) = shop.fails(&["features", "stats", "--keep-baseline", "june"]);
    assert!(said.contains("baselines do not change"), "{said}");
    let (_, said) = shop.fails(&["features", "stats", "--baseline", "july"]);
    assert!(said.contains("there are: june"), "{said}");

    // Everybody spends as much again and more.
    place("b", &orders(1, 300));
    run(&shop);
    let (_, said) = shop.fails(&["features", "stats", "--baseline", "june", "--fail-on", "large"]);
    assert!(said.contains("Moved spend:spend"), "{said}");
    let rows = shop.query(
        "select feature, row_count, null_rate, psi, ks from metric.feature_stats where baseline = 'june' and feature = 'spend' \
         order by measured_at",
    );
    assert_eq!(rows.len(), 2, "{rows:?}");
    let number = |row: usize, column: &str| rows[row][column].as_f64().unwrap();
    assert!(number(0, "psi") < 0.1 && number(0, "ks") < 0.05, "{rows:?}");
    assert!(number(1, "psi") > 0.25 && number(1, "ks") > 0.9, "{rows:?}");
}
