//! What comes twice, late or empty is counted, stays in `raw`, is one fact in `core`, and opens alerts.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use chrono::{DateTime, TimeDelta, Utc};
use holdfast_ingest::{AlertRule, IngestSettings, IngestStep, Severity, SourceReport, SourceSpec, ingest_source};
use holdfast_lake::{Lake, LakeSettings, StoreOptions, open_store};
use holdfast_types::{FixedClock, NoProgress};
use serde_json::{Value, json};

use crate::quarantine::{ORDERS, Shop};
use crate::{holdfast, succeed};

/// A landing folder, a lake, and a clock that stands until it is put forward.
struct Place {
    folder: tempfile::TempDir,
    now: DateTime<Utc>,
    spec: SourceSpec,
}

const CONTRACT: &str = "kind = \"orders\"\npath = \"orders/*.ndjson\"\nformat = \"ndjson\"\nevent_time = \"at\"\nkey = [\"store\", \"no\"]\n";
const COLUMNS: &str = "[columns]\nstore = \"string\"\nno = \"int64\"\nat = \"timestamp\"\nmobile = \"string\"\n";

impl Place {
    fn new(quality: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("in/orders")).unwrap();
        let spec = SourceSpec::parse("orders.toml", &format!("{CONTRACT}{quality}{COLUMNS}")).unwrap();
        Self { folder, now: "2026-03-01T00:00:00Z".parse().unwrap(), spec }
    }

    fn put(&self, name: &str, rows: &[Value]) {
        let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
        fs::write(self.folder.path().join("in/orders").join(name), text).unwrap();
    }

    async fn lake(&self) -> Lake {
        let location = self.folder.path().join("lake");
        let settings = LakeSettings::default();
        let clock = Arc::new(FixedClock(self.now));
        let (location, options) = (location.to_str().unwrap(), StoreOptions::new());
        Lake::create_or_open(location, self.folder.path(), &options, settings, clock).await.unwrap()
    }

    /// Each call as by a process of its own.
    async fn ingest(&self) -> SourceReport {
        let from = open_store("in", self.folder.path(), &StoreOptions::new()).unwrap();
        let settings = IngestSettings::default();
        ingest_source(&self.lake().await, "test", &self.spec, &from, &settings, &NoProgress).await.unwrap()
    }

    fn query(&self, query: &str) -> Vec<Value> {
        let lake: PathBuf = self.folder.path().join("lake");
        let output = succeed(holdfast().arg("--lake").arg(lake).args(["sql", query, "--output", "json"]));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    async fn versions(&self) -> Vec<(String, u64)> {
        let lake = self.lake().await;
        let mut versions = Vec::new();
        for name in lake.tables().await.unwrap() {
            versions.push((name.to_string(), lake.table(&name).await.unwrap().unwrap().version()));
        }
        versions
    }
}

/// Orders `first..first + count` of a store at a moment.
fn orders(store: &str, first: i64, count: i64, at: DateTime<Utc>) -> Vec<Value> {
    let order = |no| json!({"store": store, "no": no, "at": at.to_rfc3339(), "mobile": format!("1380000{no}")});
    (first..first + count).map(order).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn duplicates_late_rows_and_empty_values_are_counted_and_kept() {
    let mut place = Place::new("");
    let day = |days: i64| place_start() + TimeDelta::days(days);
    // Within a file twice, and in another file of the batch once.
    let mut first = orders("a", 0, 30, day(-2));
    first.extend(orders("a", 5, 2, day(-2)));
    first.push(json!({"store": null, "no": 7, "at": day(-2).to_rfc3339()}));
    first.push(json!({"store": null, "no": 7, "at": day(-2).to_rfc3339()}));
    place.put("1.ndjson", &first);
    place.put("2.ndjson", &[orders("a", 29, 1, day(-2)), orders("b", 29, 1, day(-2))].concat());
    let report = place.ingest().await;
    assert_eq!(
        (report.rows_stored, report.duplicates_in_file, report.duplicates_across_files),
        (36, 2, 1),
        "{report:?}"
    );
    assert_eq!(report.rows_late, 0, "nothing came before");

    // Of an earlier batch, read by another process; late by more than an hour, and by less.
    place.now += TimeDelta::days(1);
    let late = day(-2) - TimeDelta::minutes(61);
    let hardly_late = day(-2) - TimeDelta::minutes(59);
    place.put(
        "3.ndjson",
        &[orders("a", 0, 4, day(-1)), orders("c", 0, 3, late), orders("c", 3, 2, hardly_late), orders("c", 9, 1, late)]
            .concat(),
    );
    let report = place.ingest().await;
    assert_eq!(
        (report.rows_stored, report.duplicates_in_file, report.duplicates_across_files),
        (10, 0, 4),
        "{report:?}"
    );
    assert_eq!(report.rows_late, 4);

    // An event of the future does not make all that follows late.
    place.now += TimeDelta::days(1);
    place.put("4.ndjson", &orders("d", 0, 1, day(3_000)));
    place.ingest().await;
    place.put("5.ndjson", &orders("d", 1, 1, place.now - TimeDelta::minutes(30)));
    assert_eq!(place.ingest().await.rows_late, 0);

    let batches = place.query(
        "select batch, rows_late, duplicates_in_file, duplicates_across_files from metric.ingest_batches order by batch limit 2",
    );
    let batch = |batch, late, in_file, across| json!({"batch": batch, "rows_late": late, "duplicates_in_file": in_file, "duplicates_across_files": across});
    assert_eq!(batches, [batch(1, 0, 2, 1), batch(2, 4, 0, 4)]);
    let nulls = place.query(
        "select c['column'] as name, c['nulls'] as nulls from (select unnest(column_nulls) as c from metric.ingest_batches where batch = 1)",
    );
    let null = |name, nulls| json!({"name": name, "nulls": nulls});
    assert_eq!(nulls, [null("store", 2), null("no", 0), null("at", 0), null("mobile", 2)]);
    assert_eq!(place.query("select count(*) as n from raw.orders"), [json!({"n": 48})]);
}

fn place_start() -> DateTime<Utc> {
    "2026-03-01T00:00:00Z".parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_counted_outlives_the_worker_that_counted_it() {
    let place = Place::new("");
    place.put("1.ndjson", &[orders("a", 0, 30, place.now), orders("a", 1, 3, place.now)].concat());
    let lake = place.lake().await;
    let (spec, folder) = (place.spec.clone(), place.folder.path().to_owned());
    let settings = IngestSettings {
        on_step: Some(Arc::new(|reached| assert!(reached != IngestStep::RawCommitted, "stopped on purpose"))),
        ..IngestSettings::default()
    };
    let stopped = tokio::spawn(async move {
        let from = open_store("in", &folder, &StoreOptions::new()).unwrap();
        ingest_source(&lake, "test", &spec, &from, &settings, &NoProgress).await.map(|_| ())
    });
    assert!(stopped.await.unwrap_err().is_panic());
    let report = place.ingest().await;
    assert_eq!((report.batches, report.duplicates_in_file), (1, 3), "{report:?}");
    let counted = "select duplicates_in_file as n, array_length(column_nulls) as columns from metric.ingest_batches";
    assert_eq!(place.query(counted), [json!({"n": 3, "columns": 4})]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_open_where_a_source_leaves_what_is_usual_and_close_when_it_is_back() {
    let mut place = Place::new("");
    for day in 0..6 {
        place.put(&format!("{day}.ndjson"), &orders("a", day * 100, 50, place.now));
        let report = place.ingest().await;
        assert!(report.alerts.is_empty(), "day {day}: {report:?}");
        place.now += TimeDelta::days(1);
    }
    // Less than half of what is usual, and without phone numbers.
    let empty = |mut row: Value| {
        row["mobile"] = Value::Null;
        row
    };
    place.put("6.ndjson", &orders("a", 900, 20, place.now).into_iter().map(empty).collect::<Vec<_>>());
    let opened_at = place.now;
    let report = place.ingest().await;
    let rules: Vec<_> =
        report.alerts.iter().map(|alert| (alert.rule, alert.column.as_deref(), alert.severity)).collect();
    assert_eq!(
        rules,
        [(AlertRule::NullShare, Some("mobile"), Severity::Critical), (AlertRule::Volume, None, Severity::Warning)],
        "{report:?}"
    );
    assert!(report.alerts.iter().all(|alert| alert.since == opened_at && alert.batch == 7), "{report:?}");
    assert!(report.alerts[0].message.contains("empty in 100.0 % of 20 rows"), "{report:?}");
    assert_eq!(report.alerts_changed, 2);

    // They stay open, and nothing is written down again.
    let versions = place.versions().await;
    place.now += TimeDelta::hours(2);
    let report = place.ingest().await;
    assert_eq!((report.alerts.len(), report.alerts_changed), (2, 0), "{report:?}");
    assert_eq!(report.alerts[0].since, opened_at);
    assert_eq!(place.versions().await, versions);

    place.now += TimeDelta::days(1);
    place.put("7.ndjson", &orders("a", 1_000, 50, place.now));
    let report = place.ingest().await;
    assert_eq!((report.alerts.len(), report.alerts_changed), (0, 2), "{report:?}");

    // Daily until now: four days of silence are more than three times that.
    place.now += TimeDelta::days(2);
    assert!(place.ingest().await.alerts.is_empty());
    place.now += TimeDelta::days(2);
    let report = place.ingest().await;
    assert_eq!(report.alerts[0].rule, AlertRule::Freshness, "{report:?}");
    let told = place.query("select told, rule, state from metric.ingest_alerts order by told, rule");
    let row = |told, rule, state| json!({"told": told, "rule": rule, "state": state});
    assert_eq!(
        told,
        [
            row(1, "null_share", "open"),
            row(1, "volume", "open"),
            row(2, "null_share", "closed"),
            row(2, "volume", "closed"),
            row(3, "freshness", "open")
        ]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_of_the_contract_come_before_what_is_usual() {
    let quality = "[quality]\nmax_null_share = { mobile = 0.1 }\nmax_duplicate_share = 0.2\nmax_late_share = 0\n\
                   late_after = \"0s\"\nmax_refused_share = 0.05\nfreshness_max = \"2h\"\n";
    let mut place = Place::new(quality);
    place.put("1.ndjson", &orders("a", 0, 20, place.now));
    assert!(place.ingest().await.alerts.is_empty());
    place.now += TimeDelta::hours(1);
    let mut rows = orders("a", 0, 6, place.now);
    rows.extend(orders("b", 0, 18, place.now));
    rows.push(json!({"store": "b", "no": 99, "at": (place.now - TimeDelta::hours(2)).to_rfc3339()}));
    rows.extend([json!({"store": "b", "no": "x"}), json!({"store": "b", "no": "y"})]);
    place.put("2.ndjson", &rows);
    let report = place.ingest().await;
    let found: Vec<_> = report.alerts.iter().map(|alert| (alert.rule, alert.severity)).collect();
    assert_eq!(
        found,
        [
            (AlertRule::RefusedShare, Severity::Warning),
            (AlertRule::DuplicateShare, Severity::Warning),
            (AlertRule::LateShare, Severity::Critical)
        ],
        "{report:?}"
    );
    assert!(!format!("{report:?}").contains("1380000"), "an alert tells no value");
    place.now += TimeDelta::minutes(119);
    assert!(place.ingest().await.alerts.iter().all(|alert| alert.rule != AlertRule::Freshness));
    place.now += TimeDelta::minutes(2);
    let report = place.ingest().await;
    let fresh = report.alerts.iter().find(|alert| alert.rule == AlertRule::Freshness).unwrap();
    assert_eq!((fresh.limit, fresh.severity), (7_200.0, Severity::Warning));
    assert_eq!(fresh.since, place.now - TimeDelta::minutes(1));
}

/// Orders in pieces, with repeats and late ones, give the same core and the same figures of the past as all of them at once.
#[test]
fn core_has_each_fact_once_and_a_late_row_changes_the_past() {
    let order = |id: &str, day: u32, status: &str, amount: &str| {
        format!(
            "{{\"order_id\":\"{id}\",\"member\":\"M-{id}\",\"at\":\"2026-01-{day:02}T08:00:00Z\",\"status\":\"{status}\",\"amount\":{amount}}}\n"
        )
    };
    let daily = "-- Orders of a day.\n-- @expect fail has_day: day is not null\n\
                 select cast(at as date) as day, count(*) as orders, sum(amount) as amount\nfrom core.orders\ngroup by cast(at as date)\n";
    let shop = || {
        let shop = Shop::new();
        shop.contract("orders", &ORDERS.replacen("[columns]", "key = [\"order_id\"]\n[columns]", 1));
        shop.write("sql/metric/daily.sql", daily);
        shop
    };
    let figures = |shop: &Shop| {
        shop.run(&["run"]);
        let core = shop.query("select order_id, at, status, amount from core.orders order by order_id");
        (core, shop.query("select day, orders, cast(amount as varchar) as amount from metric.daily order by day"))
    };

    let pieces = shop();
    pieces.write("in/orders/1.ndjson", order("a", 1, "paid", "10.00") + &order("b", 1, "paid", "20.00"));
    pieces.ingest();
    pieces.write("in/orders/2.ndjson", order("c", 3, "paid", "5.00") + &order("c", 3, "paid", "5.00"));
    pieces.ingest();
    let (_, before) = figures(&pieces);
    assert_eq!(before[0], json!({"day": "2026-01-01", "orders": 2, "amount": "30.00"}));

    // A repeat, a newer state, and an order of the first day that comes after the third.
    pieces.write(
        "in/orders/3.ndjson",
        order("a", 1, "paid", "10.00") + &order("b", 1, "returned", "0.00") + &order("d", 1, "paid", "40.00"),
    );
    let report = pieces.json(&["ingest", "--from", "in", "--json"]);
    let source = &report["sources"][0];
    assert_eq!(
        (&source["rows_stored"], &source["duplicates_across_files"], &source["rows_late"]),
        (&json!(3), &json!(2), &json!(3))
    );
    let (core, after) = figures(&pieces);
    assert_eq!(after[0], json!({"day": "2026-01-01", "orders": 3, "amount": "50.00"}));
    assert_eq!(after.len(), 2);
    assert_eq!(pieces.query("select count(*) as n from raw.orders"), [json!({"n": 7})]);

    let whole = shop();
    whole.write(
        "in/orders/1.ndjson",
        [("a", 1, "paid", "10.00"), ("b", 1, "returned", "0.00"), ("c", 3, "paid", "5.00"), ("d", 1, "paid", "40.00")]
            .map(|(id, day, status, amount)| order(id, day, status, amount))
            .concat(),
    );
    whole.ingest();
    assert_eq!(figures(&whole), (core, after));
}

#[test]
fn open_alerts_are_told_at_the_end_of_an_ingestion_and_stand_in_their_stage() {
    let shop = Shop::new();
    shop.contract("orders", &ORDERS.replacen("[columns]", "[quality]\nmax_null_share = { status = 0 }\n[columns]", 1));
    shop.write("sql/metric/alerts.sql", fs::read(crate::workspace().join("sql/metric/alerts.sql")).unwrap());
    let rows: String = (0..20)
        .map(|n| format!("{{\"order_id\":\"{n}\",\"member\":\"M\",\"at\":\"2026-01-01T00:00:00Z\",\"amount\":1}}\n"))
        .collect();
    shop.write("in/orders/1.ndjson", rows);
    let output = shop.run(&["--quiet", "ingest", "--from", "in"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        said.contains("Critical orders: column status is empty in 100.0 % of 20 rows, more than the contract allows"),
        "{said}"
    );
    assert!(said.contains("max_null_share.status"), "{said}");
    let report = shop.json(&["ingest", "--from", "in", "--json"]);
    assert_eq!(report["sources"][0]["alerts"][0]["rule"], "null_share", "{report}");
    assert_eq!(report["sources"][0]["alerts"][0]["severity"], "critical");
    shop.run(&["run"]);
    assert_eq!(
        shop.query("select source, rule, column_name, severity from metric.alerts"),
        [json!({"source": "orders", "rule": "null_share", "column_name": "status", "severity": "critical"})]
    );
}
