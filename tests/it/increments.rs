//! Stages that are brought up to date by key: after every delivery their tables are what a full refresh makes of the same inputs (STG-1), also when a run was
//! killed at any of its calls to the store.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use chrono::{DateTime, Utc};
use holdfast_engine::{
    DeclaredTable, LakeReader, Project, Refresh, RunOptions, RunReport, Runner, Selection, SessionSettings,
    StageOutcome,
};
use holdfast_lake::{Lake, LakeSettings, RowChanges, StoreOptions, open_store};
use holdfast_testkit::{FaultStore, Moment, Random};
use holdfast_types::{FixedClock, NoProgress, TableName};

use crate::stages::Shop;
use crate::{holdfast, succeed};

const AS_OF: &str = "2026-01-01T00:00:00Z";

pub(crate) async fn open(folder: &Path) -> Lake {
    let clock = Arc::new(FixedClock(AS_OF.parse().unwrap()));
    Lake::open_to_write(&folder.display().to_string(), Path::new("/"), &StoreOptions::new(), clock).await.unwrap()
}

/// The newest rows of every table that stages made, by name.
async fn made(lake: &Lake) -> BTreeMap<TableName, Vec<RecordBatch>> {
    let reader = LakeReader::newest(lake, &SessionSettings::default()).await.unwrap();
    let session = reader.session().unwrap();
    let mut tables = BTreeMap::new();
    for name in lake.tables().await.unwrap() {
        // What was known when is another in another run.
        if matches!(name.schema(), "raw" | "identity" | "history") || name.table().starts_with("ingest") {
            continue;
        }
        let rows = session.sql(&format!("select * from {name}")).await.unwrap().collect().await.unwrap();
        tables.insert(name, rows);
    }
    tables
}

/// The newest version of every table.
pub(crate) async fn versions(lake: &Lake) -> BTreeMap<TableName, u64> {
    let mut versions = BTreeMap::new();
    for name in lake.tables().await.unwrap() {
        versions.insert(name.clone(), lake.table(&name).await.unwrap().unwrap().version());
    }
    versions
}

/// # Panics
/// When two lakes differ in a row of a table.
pub(crate) async fn assert_same(one: &Lake, other: &Lake, when: &str) {
    let (one, other) = (made(one).await, made(other).await);
    assert_eq!(one.keys().collect::<Vec<_>>(), other.keys().collect::<Vec<_>>(), "{when}");
    for (name, rows) in &one {
        let (rows, expected) = (rows.as_slice(), other[name].as_slice());
        let Some(schema) = rows.iter().chain(expected).map(RecordBatch::schema).next() else { continue };
        let difference = RowChanges::between(&schema, expected, rows).unwrap();
        assert!(
            difference.is_empty(),
            "{when}: {name} has {} rows that a full refresh has not, and lacks {}",
            difference.rows_added(),
            difference.rows_removed()
        );
    }
}

pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), &target).unwrap();
        }
    }
}

/// Holds back what the last month brought, and hands it over in parts, in no order; some rows of before come again.
fn held_back(sources: &Path, parts: usize, random: &mut Random) -> Vec<Vec<(std::path::PathBuf, String)>> {
    let mut deliveries = vec![Vec::new(); parts];
    for source in std::fs::read_dir(sources).unwrap() {
        let folder = source.unwrap().path();
        if !folder.is_dir() || folder.ends_with("truth") {
            continue;
        }
        let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path()).collect();
        files.sort();
        // Text in another encoding would not survive being cut into lines.
        let Some((last, text)) = files.iter().rev().find_map(|file| Some((file, std::fs::read_to_string(file).ok()?)))
        else {
            continue;
        };
        if files.len() < 2 {
            continue;
        }
        std::fs::remove_file(last).unwrap();
        let extension = last.extension().unwrap().to_str().unwrap().to_owned();
        let mut lines: Vec<&str> = text.lines().collect();
        let header = if extension == "csv" { Some(lines.remove(0)) } else { None };
        let mut shares: Vec<Vec<&str>> = vec![Vec::new(); parts];
        for line in &lines {
            shares[usize::try_from(random.below(parts as u64)).unwrap()].push(line);
            if random.below(50) == 0 {
                shares[parts - 1].push(line);
            }
        }
        for (part, share) in shares.into_iter().enumerate() {
            let text: String = header.into_iter().chain(share).map(|line| format!("{line}\n")).collect();
            deliveries[part].push((folder.join(format!("part-{part}.{extension}")), text));
        }
    }
    deliveries
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stg_1_the_shipped_stages_equal_a_full_refresh_after_every_delivery() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    succeed(
        holdfast()
            .args(["generate", "--customers", "400", "--days", "150", "--seed", "11", "--quiet", "--out"])
            .arg(path("sources")),
    );
    let deliveries = held_back(&path("sources"), 3, &mut Random::new(5));
    let bring = |lake: &Path| {
        let mut ingest = holdfast();
        ingest.args(["ingest", "--as-of", AS_OF, "--from"]).arg(path("sources"));
        ingest.arg("--lake").arg(lake).arg("--identity-key").arg(path("key"));
        succeed(&mut ingest);
        let mut run = holdfast();
        run.args(["run", "--json", "--as-of", AS_OF, "--lake"]).arg(lake).arg("--identity-key").arg(path("key"));
        String::from_utf8(succeed(&mut run).stdout).unwrap()
    };
    bring(&path("lake"));
    let mut by_key = 0;
    for (round, delivery) in deliveries.into_iter().enumerate() {
        for (file, text) in delivery {
            std::fs::write(file, text).unwrap();
        }
        let report: serde_json::Value = serde_json::from_str(&bring(&path("lake"))).unwrap();
        let stages = report["stages"].as_array().unwrap();
        by_key += stages.iter().filter(|stage| stage["refresh"]["kind"] == "keys").count();

        let full = path(&format!("full-{round}"));
        copy(&path("lake"), &full);
        let mut refresh = holdfast();
        refresh.args(["run", "--full", "--as-of", AS_OF, "--lake"]).arg(&full);
        succeed(refresh.arg("--identity-key").arg(path("key")));
        assert_same(&open(&path("lake")).await, &open(&full).await, &format!("delivery {round}")).await;
    }
    assert!(by_key >= 20, "only {by_key} stages were brought up to date by key");

    let mut verify = holdfast();
    verify.args(["verify", "--sample", "100%", "--json", "--lake"]).arg(path("lake"));
    let verified = succeed(verify.arg("--identity-key").arg(path("key"))).stdout;
    let verified: serde_json::Value = serde_json::from_slice(&verified).unwrap();
    for stage in verified["stages"].as_array().unwrap() {
        assert_eq!(stage["outcome"], "same", "{stage}");
    }
}

pub(crate) const ORDERS: &str = "-- @stage incremental key(order_id)\n-- @expect quarantine sane: amount >= 0\n\
    with latest as (\n    select * from raw.orders where order_id is not null\n\
    qualify row_number() over (partition by order_id order by _batch desc, _source_line desc) = 1\n)\n\
    select member as customer_id, order_id, at as ordered_at, amount from latest\n";

const SPEND: &str = "-- @stage incremental key(customer_id)\n\
    select customer_id, count(*) as orders, sum(amount) as spend\nfrom core.orders\nwhere ordered_at <= now()\ngroup by customer_id\n";

fn project(shop: &Shop, declared: &[DeclaredTable]) -> Project {
    Project::load(&shop.path().join("sql"), declared.to_vec()).unwrap()
}

async fn run(lake: &Lake, project: &Project, name: &str, full: bool) -> RunReport {
    try_run(lake, project, name, full).await.unwrap()
}

async fn try_run(
    lake: &Lake,
    project: &Project,
    name: &str,
    full: bool,
) -> Result<RunReport, holdfast_engine::EngineError> {
    let as_of: DateTime<Utc> = AS_OF.parse().unwrap();
    let options = RunOptions {
        run_id: name.to_owned(),
        as_of,
        selection: Selection::All,
        full,
        range: None,
        publish: true,
        parallel_stages: 2,
    };
    let settings = SessionSettings::default();
    Runner::new(lake.clone(), project.clone(), settings).run(&options, &NoProgress).await
}

#[tokio::test]
async fn stg_1_a_run_that_is_killed_at_any_call_is_made_up_for_by_the_next() {
    let shop = Shop::new(&[("sql/core/orders.sql", ORDERS), ("sql/profile/spend.sql", SPEND)]);
    let orders: String =
        (0..60).map(|order| format!("o{order},M{},2025-06-01T00:00:00Z,{}.00\n", order % 20, order % 7)).collect();
    shop.orders("a", &orders);
    let lake = open(&shop.path().join("lake")).await;
    let raw: TableName = "raw.orders".parse().unwrap();
    let schema = Arc::clone(lake.table(&raw).await.unwrap().unwrap().schema());
    let project = project(&shop, &[DeclaredTable { name: raw, schema, identifiers: Vec::new() }]);
    assert!(run(&lake, &project, "first", false).await.succeeded());
    // A change, a row that goes to quarantine, another owner, a new order.
    shop.write(
        "in/orders/b.csv",
        "order_id,member,at,amount\no1,M1,2025-06-01T00:00:00Z,99.00\no2,M2,2025-06-01T00:00:00Z,-1.00\n\
         o3,M7,2025-06-01T00:00:00Z,3.00\no99,M30,2025-06-02T00:00:00Z,1.00\n",
    );
    succeed(&mut shop.command(&["ingest", "--raw-only", "--from", "in"]));

    let expected = tempfile::tempdir().unwrap();
    copy(&shop.path().join("lake"), expected.path());
    let expected = open(expected.path()).await;
    assert!(run(&expected, &project, "full", true).await.succeeded());

    let undisturbed = tempfile::tempdir().unwrap();
    copy(&shop.path().join("lake"), undisturbed.path());
    let undisturbed = open(undisturbed.path()).await;
    assert!(run(&undisturbed, &project, "by key", false).await.succeeded());
    let commits = versions(&undisturbed).await;

    let mut deaths = 0;
    // Every third call is enough here: what comes between two commits is the same to the next run.
    for call in (1..).step_by(3) {
        for moment in [Moment::Before, Moment::After] {
            let folder = tempfile::tempdir().unwrap();
            copy(&shop.path().join("lake"), folder.path());
            let mut place =
                open_store(&folder.path().display().to_string(), Path::new("/"), &StoreOptions::new()).unwrap();
            let store = Arc::new(FaultStore::over(place.store).dying_at(call, moment));
            place.store = Arc::clone(&store) as _;
            let clock = Arc::new(FixedClock(AS_OF.parse().unwrap()));
            let dying = async {
                // What it says once it is dead, nobody hears.
                let lake = Lake::create_or_open_at(place, LakeSettings::default(), clock).await.ok()?;
                try_run(&lake, &project, "dies", false).await.ok()
            };
            tokio::select! {
                _ = dying => {}
                () = store.died() => {}
            }
            let was_killed = store.is_dead();
            deaths += u32::from(was_killed);
            let lake = open(folder.path()).await;
            let report = run(&lake, &project, "again", false).await;
            let when = format!("killed {moment:?} call {call}");
            assert!(report.succeeded(), "{when}: {report:?}");
            assert_same(&lake, &expected, &when).await;
            // Nothing that was committed is done again: there are as many commits as nobody's death leaves.
            assert_eq!(versions(&lake).await, commits, "{when}");
            if !was_killed {
                let by_key = |stage: &holdfast_engine::StageReport| {
                    matches!(
                        &stage.outcome,
                        StageOutcome::Fresh { .. } | StageOutcome::Built { refresh: Refresh::Keys { .. }, .. }
                    )
                };
                assert!(report.stages.iter().all(by_key), "{report:?}");
                assert!(deaths > 10, "only {deaths} deaths");
                return;
            }
        }
    }
}
