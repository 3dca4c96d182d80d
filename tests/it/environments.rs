//! Environments: what is tried there shows nowhere else, costs what it changes, and is taken over as it was tried.

use holdfast_lake::{
    Change, ChangeKind, CommitOutcome, Lake, LakeError, MaintainSettings, Manifest, ManifestEntry, Position,
    TableWriter, WriterSettings,
};
use serde_json::Value;

use crate::increments::ORDERS;
use crate::leases::lake;
use crate::maintain::{all, clock_ahead, commit, newest, numbers, spec, ten_small_files};
use crate::stages::{SPEND, Shop};
use crate::{commits, succeed};

const AS_OF: &str = "2025-06-30T00:00:00Z";

/// Reads the stage that is changed below, and one that is not.
const TOTAL: &str = "-- One row: what all customers have spent.\n\
    select sum(spend_90d) as total, count(*) as customers\nfrom profile.spend\n";
const FIRST: &str = "-- One row a customer: the first order.\n-- @stage incremental key(customer_id)\n\
    select customer_id, min(ordered_at) as first_ordered_at\nfrom core.orders\n\
    where customer_id is not null\ngroup by customer_id\n";

/// A feature view: production keeps its history.
const ORDERED: &str = "-- Orders of a customer.\n-- @stage incremental key(customer_id)\n-- @feature entity(customer_id)\n\
    select customer_id, count(*) as orders\nfrom core.orders\nwhere customer_id is not null\ngroup by customer_id\n";

fn shop() -> Shop {
    let shop = Shop::new(&[
        ("sql/features/ordered.sql", ORDERED),
        ("sql/profile/spend.sql", SPEND),
        ("sql/profile/first_order.sql", FIRST),
        ("sql/metric/total.sql", TOTAL),
    ]);
    shop.write("sql/core/orders.sql", ORDERS);
    shop.orders("a", "o1,M1,2025-06-01T00:00:00Z,10.00\no2,M2,2025-06-01T00:00:00Z,4.00\n");
    shop.run();
    shop
}

fn json(shop: &Shop, arguments: &[&str]) -> Value {
    let output = succeed(shop.command(arguments).arg("--json"));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The stages of a report that were made.
fn made(report: &Value) -> Vec<&str> {
    let stages = report["stages"].as_array().unwrap().iter();
    stages.filter(|stage| stage["outcome"] == "built").map(|stage| stage["stage"].as_str().unwrap()).collect()
}

/// In cents.
fn total(shop: &Shop, environment: &[&str]) -> i64 {
    let mut arguments = vec!["sql", "select total from metric.total", "--output", "json", "--published"];
    arguments.extend(environment);
    let rows: Value = serde_json::from_slice(&succeed(&mut shop.command(&arguments)).stdout).unwrap();
    #[expect(clippy::cast_possible_truncation, reason = "a few yuan")]
    let cents = (rows[0]["total"].as_f64().unwrap() * 100.0).round() as i64;
    cents
}

/// Commits outside of environments.
fn of_production(shop: &Shop) -> Vec<String> {
    commits(shop.path()).into_iter().filter(|path| !path.contains("/environments/")).collect()
}

const DEV: [&str; 2] = ["--env", "dev"];

#[test]
fn an_environment_makes_what_differs_and_what_rests_on_it_and_production_sees_nothing_of_it() {
    let shop = shop();
    let before = of_production(&shop);
    let run = json(&shop, &["run", "--env", "dev"]);
    assert_eq!(made(&run), [""; 0], "what is as in production is read there: {run}");
    assert_eq!(total(&shop, &DEV), 1400);

    shop.write("sql/profile/spend.sql", &SPEND.replace("sum(amount)", "2 * sum(amount)"));
    let plan = json(&shop, &["plan", "--env", "dev"]);
    let actions: Vec<_> = plan["stages"].as_array().unwrap().iter().map(|stage| &stage["action"]).collect();
    assert_eq!(actions.iter().filter(|action| **action == "full").count(), 2, "{plan}");
    let run = json(&shop, &["run", "--env", "dev"]);
    assert_eq!(made(&run), ["profile.spend", "metric.total"], "{run}");
    assert_eq!((total(&shop, &DEV), total(&shop, &[])), (2800, 1400));
    assert_eq!(of_production(&shop), before);
    // With nothing new nothing is committed there, either.
    let all = commits(shop.path());
    assert_eq!(made(&json(&shop, &["run", "--env", "dev"])), [""; 0]);
    assert_eq!(commits(shop.path()), all);

    // What it does not make is production's, at the version of its own run, until it runs again.
    shop.write("sql/profile/spend.sql", SPEND);
    shop.orders("b", "o3,M1,2025-06-02T00:00:00Z,5.00\n");
    shop.run();
    shop.write("sql/profile/spend.sql", &SPEND.replace("sum(amount)", "2 * sum(amount)"));
    assert_eq!((total(&shop, &DEV), total(&shop, &[])), (2800, 1900));
    let run = json(&shop, &["run", "--env", "dev"]);
    let spend = run["stages"].as_array().unwrap().iter().find(|stage| stage["stage"] == "profile.spend").unwrap();
    assert_eq!((&spend["refresh"]["kind"], &spend["refresh"]["keys"]), (&"keys".into(), &1.into()), "{run}");
    assert_eq!((total(&shop, &DEV), total(&shop, &[])), (3800, 1900));
    let verified = json(&shop, &["verify", "--env", "dev", "--sample", "100%"]);
    assert!(verified["stages"].as_array().unwrap().iter().all(|stage| stage["differing"] != 1), "{verified}");

    let listed = json(&shop, &["env", "list"]);
    assert_eq!(listed[0]["name"], "dev");
    let own = listed[0]["tables"].as_array().unwrap();
    assert_eq!(own.iter().filter(|table| !table.as_str().unwrap().starts_with("quarantine")).count(), 2, "{listed}");
    let status = json(&shop, &["status", "--env", "dev"]);
    let of_production = status["stages"].as_array().unwrap().iter().filter(|stage| stage["is_of_production"] == true);
    assert_eq!(of_production.count(), 3, "{status}");
    let views = json(&shop, &["features", "list", "--env", "dev"]);
    assert_eq!(views, json(&shop, &["features", "list"]), "what views there are is production's to say");
}

#[test]
fn what_was_tried_is_promoted_as_it_was_tried_or_not_at_all() {
    let shop = shop();
    shop.write("sql/profile/spend.sql", &SPEND.replace("sum(amount)", "2 * sum(amount)"));
    succeed(&mut shop.command(&["run", "--env", "dev"]));
    let before = commits(shop.path());

    shop.write("sql/profile/spend.sql", &SPEND.replace("sum(amount)", "3 * sum(amount)"));
    let (code, said) = shop.fails(&["promote", "dev", "--yes"]);
    assert!(code == Some(2) && said.contains("profile.spend") && said.contains("holdfast run --env dev"), "{said}");
    shop.write("sql/profile/spend.sql", &SPEND.replace("sum(amount)", "2 * sum(amount)"));
    let (code, said) = shop.fails(&["promote", "dev", "--as-of", AS_OF]);
    assert!(code == Some(2) && said.contains("--yes"), "{said}");
    let plan = json(&shop, &["promote", "dev", "--dry-run", "--as-of", AS_OF]);
    let planned: Vec<_> =
        plan["stages"].as_array().unwrap().iter().map(|stage| stage["stage"].as_str().unwrap()).collect();
    assert_eq!(planned, ["profile.spend", "metric.total"], "{plan}");
    assert_eq!(commits(shop.path()), before);
    assert_eq!(total(&shop, &[]), 1400);

    let report = json(&shop, &["promote", "dev", "--yes", "--as-of", AS_OF]);
    assert_eq!(made(&report), ["profile.spend", "metric.total"]);
    assert_eq!(total(&shop, &[]), 2800);
    let again = of_production(&shop);
    assert_eq!(made(&json(&shop, &["promote", "dev", "--yes", "--as-of", AS_OF])), [""; 0]);
    assert_eq!(of_production(&shop), again);

    succeed(&mut shop.command(&["env", "drop", "dev", "--yes"]));
    assert_eq!(json(&shop, &["env", "list"]), Value::Array(Vec::new()));
    assert!(!shop.path().join("lake/_holdfast/environments/dev").exists());
    assert_eq!(total(&shop, &[]), 2800);
}

#[test]
fn what_does_not_know_environments_or_names_none_says_so_and_writes_nothing() {
    let shop = shop();
    let before = commits(shop.path());
    for arguments in [
        &["ingest", "--from", "in"][..],
        &["identity", "block", "member_id", "M1", "--why", "a test", "--by", "ann"],
        &["quarantine", "replay"],
    ] {
        let (code, said) = shop.fails(&[arguments, &DEV].concat());
        assert!(code == Some(2) && said.contains("works on production alone"), "{arguments:?}: {said}");
    }
    let (code, said) = shop.fails(&["sql", "select 1", "--env", "dev"]);
    assert!(code == Some(2) && said.contains("there is no environment `dev`") && said.contains("run --env"), "{said}");
    let (code, said) = shop.fails(&["env", "drop", "dev", "--yes"]);
    assert!(code == Some(2) && said.contains("there is no environment `dev`"), "{said}");
    for name in ["Dev", "../x", "production"] {
        let (code, said) = shop.fails(&["run", "--env", name]);
        assert!(code == Some(2) && said.contains("cannot name an environment"), "{said}");
    }
    assert_eq!(commits(shop.path()), before);

    let empty = Shop::new(&[("sql/profile/spend.sql", SPEND)]);
    empty.orders("a", "o1,M1,2025-06-01T00:00:00Z,10.00\n");
    let (code, said) = empty.fails(&["run", "--env", "dev"]);
    assert!(code == Some(2) && said.contains("no run of") && said.contains("was published"), "{said}");
}

#[tokio::test]
async fn what_an_environments_newest_run_reads_of_production_stays_and_cannot_be_written_from_there() {
    let folder = tempfile::tempdir().unwrap();
    let before = lake(folder.path(), &clock_ahead(0)).await;
    let table = ten_small_files(&before).await;
    let publish = async |lake: &Lake, sequence: u64, version: u64| {
        let is_of_production = lake.environment_name().is_some();
        let tables = vec![ManifestEntry {
            name: spec().name,
            version,
            rows: None,
            is_of_production,
            looked_at: Default::default(),
        }];
        let at = lake.clock().now();
        let run_id = format!("run {sequence}");
        lake.publish(Manifest { sequence, run_id, as_of: at, published_at: at, tables }).await.unwrap();
    };
    publish(&before, 1, table.version()).await;
    let dev = before.environment(&"dev".parse().unwrap()).await.unwrap();
    publish(&dev, 1, table.version()).await;

    let seen = dev.table(&spec().name).await.unwrap().unwrap();
    let mut writer = TableWriter::new(&seen, WriterSettings::default());
    writer.write(&numbers(&seen, 0..3)).await.unwrap();
    let change = Change {
        table: &seen,
        position: Position { app_id: "writer".to_owned(), version: 99 },
        fence: None,
        kind: ChangeKind::ReplaceAll,
        files: writer.close().await.unwrap(),
        schema: None,
        comment: None,
        metadata: serde_json::Map::new(),
    };
    assert!(matches!(dev.commit(change).await, Err(LakeError::NotOwn { .. })));
    assert!(matches!(dev.drop_table(&spec().name).await, Err(LakeError::NotOwn { .. })));

    // Production goes on, and a month passes.
    let replaced = commit(&before, &table, 11, ChangeKind::ReplaceAll, numbers(&table, 0..3)).await;
    assert!(matches!(replaced, CommitOutcome::Applied { .. }), "{replaced:?}");
    publish(&before, 2, newest(&before).await.version()).await;
    let later = lake(folder.path(), &clock_ahead(30)).await;
    let maintain = async || {
        let kept = later.maintain_runs(&MaintainSettings::default()).await.unwrap();
        later.maintain(&spec().name, &MaintainSettings::default(), &kept, None).await.unwrap()
    };
    maintain().await;
    let read = later.environment_as_run(&"dev".parse().unwrap()).await.unwrap();
    assert_eq!(all(&read).await, (0..100).collect::<Vec<_>>());
    later.drop_environment(&"dev".parse().unwrap()).await.unwrap();
    assert_eq!(maintain().await.files_vacuumed, 10, "nobody keeps them any more");
    assert_eq!(all(&later).await, [0, 1, 2]);
}
