//! Maintenance: whatever it merges, checkpoints and deletes, rows and positions are what they were; whoever works beside it loses nothing.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arrow::array::{Array, AsArray, Int32Array, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use chrono::Utc;
use futures::FutureExt;
use holdfast_engine::{LakeReader, SessionSettings};
use holdfast_lake::{
    Change, ChangeKind, CommitOutcome, Lake, MaintainSettings, Manifest, ManifestEntry, Position, StagedFile, Table,
    TableMaintenance, TableSpec, TableWriter, WriterSettings,
};

use crate::leases::{HandClock, interleaved, lake};
use crate::stages::{SPEND, Shop};
use crate::{commits, succeed};

const TARGET: u64 = 1 << 20;
const MEMORY: usize = 64 << 20;

pub(crate) fn spec() -> TableSpec {
    TableSpec {
        name: "raw.numbers".parse().unwrap(),
        schema: Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)])),
        partition_by: Vec::new(),
        comment: "numbers".to_owned(),
    }
}

async fn staged(table: &Table, batch: RecordBatch) -> Vec<StagedFile> {
    let mut writer = TableWriter::new(table, WriterSettings::default());
    writer.write(&batch).await.unwrap();
    writer.close().await.unwrap()
}

pub(crate) fn numbers(table: &Table, rows: std::ops::Range<i64>) -> RecordBatch {
    RecordBatch::try_new(Arc::clone(table.schema()), vec![Arc::new(Int64Array::from_iter_values(rows))]).unwrap()
}

pub(crate) async fn commit(
    lake: &Lake,
    table: &Table,
    version: i64,
    kind: ChangeKind,
    batch: RecordBatch,
) -> CommitOutcome {
    let change = Change {
        table,
        position: Position { app_id: "writer".to_owned(), version },
        fence: None,
        kind,
        files: staged(table, batch).await,
        schema: None,
        comment: None,
        metadata: serde_json::Map::new(),
    };
    lake.commit(change).await.unwrap()
}

pub(crate) async fn newest(lake: &Lake) -> Table {
    lake.table(&spec().name).await.unwrap().unwrap()
}

/// A table of ten files with ten numbers each; the writer is at position 10.
pub(crate) async fn ten_small_files(lake: &Lake) -> Table {
    let table = lake.ensure_table(&spec()).await.unwrap();
    for step in 1..=10 {
        let rows = numbers(&table, (step - 1) * 10..step * 10);
        assert!(matches!(commit(lake, &table, step, ChangeKind::Append, rows).await, CommitOutcome::Applied { .. }));
    }
    newest(lake).await
}

async fn column(lake: &Lake, query: &str) -> Vec<i64> {
    let newest = LakeReader::newest(lake, &SessionSettings::default()).await.unwrap();
    let batches = newest.session().unwrap().sql(query).await.unwrap().collect().await.unwrap();
    batches.iter().flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec()).collect()
}

pub(crate) async fn all(lake: &Lake) -> Vec<i64> {
    column(lake, "select n from raw.numbers order by n").await
}

async fn maintain(lake: &Lake, settings: &MaintainSettings) -> TableMaintenance {
    let kept = lake.maintain_runs(settings).await.unwrap();
    lake.maintain(&spec().name, settings, &kept, None).await.unwrap()
}

/// A clock that is so many days ahead of the time that files are stamped with.
pub(crate) fn clock_ahead(days: i64) -> HandClock {
    let clock = HandClock::new();
    clock.pass(Utc::now().timestamp() + days * 24 * 60 * 60);
    clock
}

fn files(folder: &Path) -> usize {
    std::fs::read_dir(folder)
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "parquet"))
        .count()
}

/// Why compaction is our own: when this fails, delta-rs has mended it and `ChangeKind::Rewrite` may be looked at again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ing_2_two_optimisations_of_delta_rs_at_once_double_the_rows() {
    let folder = tempfile::tempdir().unwrap();
    let lake = lake(folder.path(), &HandClock::new()).await;
    ten_small_files(&lake).await;
    let url = url::Url::from_directory_path(folder.path().join("raw/numbers")).unwrap();
    let stale = deltalake_core::open_table(url).await.unwrap();
    stale.clone().optimize().await.unwrap();
    stale.optimize().await.unwrap();
    assert_eq!(newest(&lake).await.row_count(), Some(200));
}

/// The other reason: a delete or overwrite that was decided before an optimisation takes away the files that it knew, which are gone, and the rows stay in the new ones.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ing_2_an_optimisation_of_delta_rs_brings_deleted_rows_back() {
    for is_overwrite in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let lake = lake(folder.path(), &HandClock::new()).await;
        let table = ten_small_files(&lake).await;
        let url = url::Url::from_directory_path(folder.path().join("raw/numbers")).unwrap();
        let stale = deltalake_core::open_table(url).await.unwrap();
        stale.clone().optimize().await.unwrap();
        let expected = if is_overwrite {
            let rows = numbers(&table, 0..3);
            let overwrite = stale.write([rows]).with_save_mode(deltalake_core::protocol::SaveMode::Overwrite);
            overwrite.await.unwrap();
            3
        } else {
            stale.delete().await.unwrap();
            0
        };
        assert_eq!(newest(&lake).await.row_count(), Some(expected + 100), "overwrite: {is_overwrite}");
    }
}

#[tokio::test]
async fn ing_2_of_two_compactions_at_once_one_conflicts_and_the_rows_are_as_before() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), HandClock::new());
    let lake = lake(folder.path(), &clock).await;
    let table = ten_small_files(&lake).await;
    let rows = all(&lake).await;
    let one = lake.stage_rewrite(&table, &table.merges(TARGET), MEMORY).await.unwrap();
    let two = lake.stage_rewrite(&table, &table.merges(TARGET), MEMORY).await.unwrap();
    let first = lake.commit_rewrite(&table, one, None).await.unwrap();
    let second = lake.commit_rewrite(&table, two, None).await.unwrap();
    assert!(matches!(first, CommitOutcome::Applied { .. }), "{first:?}");
    assert!(matches!(second, CommitOutcome::Conflicted { .. }), "{second:?}");
    assert_eq!(newest(&lake).await.file_count(), 1);
    assert_eq!(all(&lake).await, rows);
    // What was refused is deleted: ten old files, one new.
    assert_eq!(files(&folder.path().join("raw/numbers")), 11);
}

#[tokio::test]
async fn ing_2_a_compaction_overtaken_between_look_and_commit_conflicts() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), HandClock::new());
    let quick = lake(folder.path(), &clock).await;
    let table = ten_small_files(&quick).await;
    let rows = all(&quick).await;
    let before = {
        let (quick, table) = (quick.clone(), table.clone());
        async move {
            let rewrite = quick.stage_rewrite(&table, &table.merges(TARGET), MEMORY).await.unwrap();
            let outcome = quick.commit_rewrite(&table, rewrite, None).await.unwrap();
            assert!(matches!(outcome, CommitOutcome::Applied { .. }));
        }
        .boxed()
    };
    let (slow, store) = interleaved(folder.path(), &clock, "numbers/_delta_log/", before).await;
    let rewrite = slow.stage_rewrite(&table, &table.merges(TARGET), MEMORY).await.unwrap();
    let outcome = slow.commit_rewrite(&table, rewrite, None).await.unwrap();
    assert!(store.has_happened());
    assert!(matches!(outcome, CommitOutcome::Conflicted { .. }), "{outcome:?}");
    assert_eq!(all(&quick).await, rows);
}

#[tokio::test]
async fn ing_2_an_append_and_a_compaction_both_survive_whoever_is_first() {
    for append_first in [true, false] {
        let (folder, clock) = (tempfile::tempdir().unwrap(), HandClock::new());
        let quick = lake(folder.path(), &clock).await;
        let table = ten_small_files(&quick).await;
        let merged = quick.stage_rewrite(&table, &table.merges(TARGET), MEMORY).await.unwrap();
        // The quick one comes right between the other's look at the table and its commit.
        let before = {
            let (quick, table) = (quick.clone(), table.clone());
            let mut merged = (!append_first).then_some(merged);
            async move {
                let outcome = match merged.take() {
                    Some(merged) => quick.commit_rewrite(&table, merged, None).await.unwrap(),
                    None => commit(&quick, &table, 11, ChangeKind::Append, numbers(&table, 100..110)).await,
                };
                assert!(matches!(outcome, CommitOutcome::Applied { .. }));
            }
            .boxed()
        };
        let (slow, store) = interleaved(folder.path(), &clock, "numbers/_delta_log/", before).await;
        let outcome = if append_first {
            let rewrite = slow.stage_rewrite(&table, &table.merges(TARGET), MEMORY).await.unwrap();
            slow.commit_rewrite(&table, rewrite, None).await.unwrap()
        } else {
            commit(&slow, &table, 11, ChangeKind::Append, numbers(&table, 100..110)).await
        };
        assert!(store.has_happened());
        assert!(matches!(outcome, CommitOutcome::Applied { .. }), "{outcome:?}");
        assert_eq!(all(&quick).await, (0..110).collect::<Vec<_>>());
        let table = newest(&quick).await;
        assert_eq!((table.file_count(), table.position("writer").await.unwrap()), (2, Some(11)));
        // Ten appends and one creation came before; the version with the append is news, the merge is not.
        let version = table.data_version().await.unwrap();
        assert_eq!(version, if append_first { 11 } else { 12 });
    }
}

#[tokio::test]
async fn ing_2_a_replacement_and_a_compaction_never_bring_old_rows_back() {
    // The replacement first: what was to be merged is gone.
    let folder = tempfile::tempdir().unwrap();
    let first = lake(folder.path(), &HandClock::new()).await;
    let table = ten_small_files(&first).await;
    let rewrite = first.stage_rewrite(&table, &table.merges(TARGET), MEMORY).await.unwrap();
    let replaced = commit(&first, &table, 11, ChangeKind::ReplaceAll, numbers(&table, 0..3)).await;
    assert!(matches!(replaced, CommitOutcome::Applied { .. }));
    let outcome = first.commit_rewrite(&table, rewrite, None).await.unwrap();
    assert!(matches!(outcome, CommitOutcome::Conflicted { .. }), "{outcome:?}");
    assert_eq!(all(&first).await, [0, 1, 2]);

    // The merge first, even between the look of the replacement and its commit: it takes the merged file away.
    let (folder, clock) = (tempfile::tempdir().unwrap(), HandClock::new());
    let quick = lake(folder.path(), &clock).await;
    let table = ten_small_files(&quick).await;
    let before = {
        let (quick, table) = (quick.clone(), table.clone());
        async move {
            let rewrite = quick.stage_rewrite(&table, &table.merges(TARGET), MEMORY).await.unwrap();
            let outcome = quick.commit_rewrite(&table, rewrite, None).await.unwrap();
            assert!(matches!(outcome, CommitOutcome::Applied { .. }));
        }
        .boxed()
    };
    let (slow, store) = interleaved(folder.path(), &clock, "numbers/_delta_log/", before).await;
    let outcome = commit(&slow, &table, 11, ChangeKind::ReplaceAll, numbers(&table, 0..3)).await;
    assert!(store.has_happened());
    assert!(matches!(outcome, CommitOutcome::Applied { .. }), "{outcome:?}");
    assert_eq!(all(&quick).await, [0, 1, 2]);

    // An append in between is news to a replacement.
    let stale = newest(&quick).await;
    let appended = commit(&quick, &stale, 12, ChangeKind::Append, numbers(&stale, 3..4)).await;
    assert!(matches!(appended, CommitOutcome::Applied { .. }));
    maintain(&quick, &MaintainSettings::default()).await;
    let outcome = commit(&quick, &stale, 13, ChangeKind::ReplaceAll, numbers(&stale, 0..1)).await;
    assert!(matches!(outcome, CommitOutcome::Conflicted { .. }), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_and_rows_survive_merging_checkpoints_and_a_cleaned_log() {
    let folder = tempfile::tempdir().unwrap();
    let before = lake(folder.path(), &HandClock::new()).await;
    ten_small_files(&before).await;
    let rows = all(&before).await;
    let settings = MaintainSettings { commits_kept: 2, checkpoint_after: 3, ..MaintainSettings::default() };
    let log = folder.path().join("raw/numbers/_delta_log");
    let logged = || std::fs::read_dir(&log).unwrap().count();

    // Merged and checkpointed now; cleaned a month later, when a checkpoint lies before all that is to be kept.
    let done = maintain(&before, &settings).await;
    assert_eq!((done.files_before, done.files_after, done.files_merged, done.rows_merged), (10, 1, 10, 100));
    assert_eq!(done.checkpoint, Some(11));
    assert_eq!((done.log_files_deleted, done.files_vacuumed), (0, 0));
    assert!(maintain(&before, &settings).await.is_idle());
    for step in 11..=14 {
        let table = newest(&before).await;
        let appended =
            commit(&before, &table, step, ChangeKind::Append, numbers(&table, step * 10..step * 10 + 1)).await;
        assert!(matches!(appended, CommitOutcome::Applied { .. }));
    }
    let later = lake(folder.path(), &clock_ahead(30)).await;
    let table = newest(&later).await;
    let files_logged = logged();
    let dry = maintain(&later, &MaintainSettings { is_dry_run: true, ..settings.clone() }).await;
    assert_eq!(logged(), files_logged, "a dry run deleted from the log");
    assert_eq!(newest(&later).await.version(), table.version());
    assert!(dry.files_vacuumed == 10 && dry.log_files_deleted == 11, "{dry:?}");

    let done = maintain(&later, &settings).await;
    assert_eq!(done.log_files_deleted, 11, "{done:?}");
    assert!(logged() < files_logged);
    assert_eq!(files(&folder.path().join("raw/numbers")), 6, "{done:?}");
    let table = newest(&later).await;
    assert_eq!(table.position("writer").await.unwrap(), Some(14));
    assert_eq!(all(&later).await, [rows, vec![110, 120, 130, 140]].concat());
    let again = commit(&later, &table, 14, ChangeKind::Append, numbers(&table, 0..1)).await;
    assert!(matches!(again, CommitOutcome::AlreadyApplied { .. }), "{again:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_kept_run_names_stays_readable_and_what_is_young_is_not_touched() {
    let folder = tempfile::tempdir().unwrap();
    let before = lake(folder.path(), &clock_ahead(0)).await;
    let table = ten_small_files(&before).await;
    let publish = |lake: Lake, sequence: u64, version: u64| async move {
        let manifest = Manifest {
            sequence,
            run_id: format!("run {sequence}"),
            as_of: lake.clock().now(),
            published_at: lake.clock().now(),
            tables: vec![ManifestEntry {
                name: spec().name,
                version,
                rows: None,
                is_of_production: false,
                looked_at: Default::default(),
            }],
        };
        lake.publish(manifest).await.unwrap();
    };
    publish(before.clone(), 1, 3).await;
    publish(before.clone(), 2, table.version()).await;
    let replaced = commit(&before, &table, 11, ChangeKind::ReplaceAll, numbers(&table, 0..3)).await;
    assert!(matches!(replaced, CommitOutcome::Applied { .. }));
    let data = folder.path().join("raw/numbers");

    // Within the retention nothing goes, orphans included: a slow writer may still commit them.
    let abandoned = staged(&table, numbers(&table, 0..5)).await;
    assert_eq!(abandoned.len(), 1);
    let soon = lake(folder.path(), &clock_ahead(3)).await;
    let done = maintain(&soon, &MaintainSettings::default()).await;
    assert_eq!((done.files_vacuumed, files(&data)), (0, 12));

    // A month later the newest run is all that keeps the ten files; the run before it, and the orphan, go.
    let later = lake(folder.path(), &clock_ahead(30)).await;
    let kept = later.maintain_runs(&MaintainSettings::default()).await.unwrap();
    assert_eq!(kept.deleted, 1);
    let done = later.maintain(&spec().name, &MaintainSettings::default(), &kept, None).await.unwrap();
    assert_eq!((done.files_vacuumed, files(&data)), (1, 11));
    assert_eq!(later.table_at(&spec().name, table.version()).await.unwrap().row_count(), Some(100));
    assert_eq!(later.latest_manifest().await.unwrap().unwrap().sequence, 2);
    assert_eq!(later.maintain_runs(&MaintainSettings::default()).await.unwrap().deleted, 0);

    // Once a newer run names the new rows, and is itself the one to keep, the old files go; unless somebody else named the old version, too.
    publish(later.clone(), 3, newest(&later).await.version()).await;
    let last = lake(folder.path(), &clock_ahead(60)).await;
    let mut kept = last.maintain_runs(&MaintainSettings::default()).await.unwrap();
    kept.keep(&spec().name, table.version());
    let done = last.maintain(&spec().name, &MaintainSettings::default(), &kept, None).await.unwrap();
    assert_eq!((done.files_vacuumed, files(&data)), (0, 11));
    assert_eq!(last.table_at(&spec().name, table.version()).await.unwrap().row_count(), Some(100));
    let done = maintain(&last, &MaintainSettings::default()).await;
    assert_eq!((done.files_vacuumed, files(&data)), (10, 1));
    assert_eq!(all(&last).await, [0, 1, 2]);
}

#[tokio::test]
async fn merged_files_of_customers_are_sorted_also_where_one_of_them_was_not() {
    let folder = tempfile::tempdir().unwrap();
    let lake = lake(folder.path(), &HandClock::new()).await;
    let fields = vec![
        Field::new("customer_id", DataType::Utf8, true),
        Field::new("n", DataType::Int64, true),
        Field::new("customer_bucket", DataType::Int32, true),
    ];
    for is_sorted in [true, false] {
        let name = if is_sorted { "core.sorted" } else { "core.unsorted" };
        let table_spec = TableSpec {
            name: name.parse().unwrap(),
            schema: Arc::new(Schema::new(fields.clone())),
            partition_by: vec!["customer_bucket".to_owned()],
            comment: String::new(),
        };
        let mut table = lake.ensure_table(&table_spec).await.unwrap();
        let mut rows = 0;
        for step in 0..5_i64 {
            let mut customers: Vec<Option<String>> =
                (0..300).map(|index| (index > 0).then(|| format!("c{:05}", index * 5 + step))).collect();
            if !is_sorted && step == 3 {
                customers.reverse();
            }
            let buckets = Int32Array::from_iter_values((0..300).map(|index| index % 2));
            let count = i64::try_from(customers.len()).unwrap();
            let columns: Vec<Arc<dyn Array>> = vec![
                Arc::new(StringArray::from(customers)),
                Arc::new(Int64Array::from_iter_values(rows..rows + count)),
                Arc::new(buckets),
            ];
            let batch = RecordBatch::try_new(Arc::clone(table.schema()), columns).unwrap();
            rows += count;
            let appended = commit(&lake, &table, step + 1, ChangeKind::Append, batch).await;
            assert!(matches!(appended, CommitOutcome::Applied { .. }));
        }
        table = lake.table(&table_spec.name).await.unwrap().unwrap();
        // Which files are sorted is in the log, from whoever wrote them.
        let orders = |table: &Table| table.file_orders().into_iter().map(|(_, order)| order).collect::<Vec<_>>();
        let proven = Some(vec!["customer_id".to_owned()]);
        let unproven = orders(&table).iter().filter(|order| **order != proven).count();
        assert_eq!(unproven, if is_sorted { 0 } else { 2 });
        let rewrite = lake.stage_rewrite(&table, &table.merges(TARGET), MEMORY).await.unwrap();
        assert_eq!(rewrite.merges_sorted, if is_sorted { 0 } else { 2 });
        lake.discard(rewrite.into_files(), &table).await;
        let kept = lake.maintain_runs(&MaintainSettings::default()).await.unwrap();
        let done = lake.maintain(&table_spec.name, &MaintainSettings::default(), &kept, None).await.unwrap();
        assert_eq!((done.files_before, done.files_after), (10, 2));
        table = lake.table(&table_spec.name).await.unwrap().unwrap();
        assert_eq!(table.row_count(), Some(1_500));
        assert_eq!(orders(&table), [proven.clone(), proven.clone()]);
        // Also from a checkpoint.
        let settings = MaintainSettings { checkpoint_after: 1, ..MaintainSettings::default() };
        lake.maintain(&table_spec.name, &settings, &kept, None).await.unwrap();
        let anew = crate::leases::lake(folder.path(), &HandClock::new()).await;
        assert_eq!(orders(&anew.table(&table_spec.name).await.unwrap().unwrap()), [proven.clone(), proven]);
        let all = column(&lake, &format!("select n from {name} order by n")).await;
        assert_eq!(all, (0..1_500).collect::<Vec<_>>());
        // Straight from the newest file of each partition, row after row.
        for bucket in 0..2 {
            let newest =
                std::fs::read_dir(folder.path().join(name.replace('.', "/")).join(format!("customer_bucket={bucket}")))
                    .unwrap()
                    .map(|entry| entry.unwrap().path())
                    .max()
                    .unwrap();
            let file = std::fs::File::open(newest).unwrap();
            let reader =
                parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
            let customers: Vec<Option<String>> = reader
                .flat_map(|batch| {
                    let batch = batch.unwrap();
                    let column = batch.column(0).as_string::<i32>().clone();
                    (0..column.len())
                        .map(move |row| column.is_valid(row).then(|| column.value(row).to_owned()))
                        .collect::<Vec<_>>()
                })
                .collect();
            assert_eq!(customers.len(), 750);
            assert!(customers.is_sorted(), "{name} bucket {bucket}");
        }
    }
}

/// Files of orders, each a batch of its own.
fn orders(shop: &Shop, files: std::ops::Range<u32>) {
    for file in files {
        let mut text = "order_id,member,at,amount\n".to_owned();
        for row in 0..20 {
            let member = (file * 7 + row) % 50;
            text.push_str(&format!("o{file}-{row},M{member},2025-06-{:02}T00:00:{row:02}Z,{row}.25\n", file % 27 + 1));
        }
        shop.write(&format!("in/orders/{file:04}.csv"), &text);
    }
}

fn shop() -> Shop {
    let shop = Shop::new(&[("sql/profile/spend.sql", SPEND)]);
    shop.write("holdfast.toml", "[lake]\nurl = \"lake\"\n[ingest]\nbatch_files_max = 1\n");
    shop
}

fn report(shop: &Shop, arguments: &[&str]) -> serde_json::Value {
    let output = succeed(shop.command(&["maintain", "--json"]).args(arguments));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn sum(report: &serde_json::Value, key: &str) -> u64 {
    report["tables"].as_array().unwrap().iter().map(|table| table[key].as_u64().unwrap_or(0)).sum()
}

/// What is committed; leases come and go.
fn committed(shop: &Shop) -> Vec<String> {
    commits(&shop.path().join("lake")).into_iter().filter(|path| !path.contains("/_holdfast/leases/")).collect()
}

const CONTENTS: [&str; 5] = [
    "select * from raw.orders order by order_id",
    "select * from metric.ingest_batches order by batch",
    "select * from identity.edges order by 1, 2, 3, 4",
    "select * from core.orders order by order_id",
    "select * from profile.spend order by customer_id",
];

#[test]
fn stg_3_many_small_batches_become_few_files_and_nothing_else_changes() {
    let shop = shop();
    orders(&shop, 0..40);
    let ingest = ["ingest", "--from", "in", "--as-of", "2025-06-30T00:00:00Z"];
    succeed(&mut shop.command(&ingest));
    shop.run();
    let contents = || CONTENTS.map(|query| shop.query(query));
    let before = contents();
    assert_eq!(before[0].len(), 800);

    let committed_before = committed(&shop);
    let dry = report(&shop, &["--dry-run"]);
    assert_eq!(committed(&shop), committed_before, "a dry run committed");
    let done = report(&shop, &[]);
    assert_eq!(sum(&dry, "files_merged"), sum(&done, "files_merged"));
    assert!(sum(&done, "files_after") < sum(&done, "files_before") / 4, "{done}");
    let raw = done["tables"].as_array().unwrap().iter().find(|table| table["table"] == "raw.orders").unwrap();
    assert_eq!((raw["files_before"].as_u64(), raw["files_after"].as_u64()), (Some(40), Some(1)));
    assert!(raw["checkpoint"].is_u64(), "{raw}");
    assert_eq!(contents(), before);

    // Again: nothing is left to do.
    let committed_before = committed(&shop);
    let again = report(&shop, &[]);
    assert_eq!((sum(&again, "files_merged"), sum(&again, "files_vacuumed")), (0, 0));
    assert!(again["tables"].as_array().unwrap().iter().all(|table| table["checkpoint"].is_null()), "{again}");
    assert_eq!(committed(&shop), committed_before);

    // The same files are known, and no stage is stale: merged files hold the rows that were there.
    succeed(&mut shop.command(&ingest));
    let output = succeed(&mut shop.command(&["run", "--as-of", "2025-06-30T00:00:00Z", "--json"]));
    let run: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(run["stages"].as_array().unwrap().iter().all(|stage| stage["outcome"] == "fresh"), "{run}");
    // Readers are taken to the merged files; nothing but that run was committed.
    let now = committed(&shop);
    let added: Vec<&String> = now.iter().filter(|path| !committed_before.contains(path)).collect();
    assert!(added.len() == 1 && added[0].contains("/_holdfast/runs/"), "{added:?}");
    assert_eq!(contents(), before);

    // What comes later is merged with what was.
    orders(&shop, 40..45);
    succeed(&mut shop.command(&ingest));
    shop.run();
    let done = report(&shop, &["--table", "raw.*"]);
    assert_eq!((sum(&done, "files_merged"), sum(&done, "files_after")), (6, 1));
    assert_eq!(shop.query("select count(*) as n from raw.orders")[0]["n"], 900);
    let (code, said) = shop.fails(&["maintain", "--table", "nothing.*"]);
    assert!(code == Some(2) && said.contains("fits no table"), "{said}");
    let (code, said) = shop.fails(&["maintain", "--retention", "10m"]);
    assert!(code == Some(2) && said.contains("at least 1h"), "{said}");
}

#[test]
fn ing_2_maintenance_killed_at_any_moment_leaves_the_lake_as_it_was() {
    let shop = shop();
    let mut files = 0;
    for round in 0..8_u64 {
        orders(&shop, files..files + 6);
        files += 6;
        succeed(&mut shop.command(&["ingest", "--from", "in", "--raw-only"]));
        let mut maintain = shop
            .command(&["maintain", "--lease", "1s", "--quiet"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(20 + round * 47));
        let _ = maintain.kill();
        maintain.wait().unwrap();
        let rows = shop.query("select count(*) as n, count(distinct order_id) as orders from raw.orders");
        let expected = u64::from(files) * 20;
        assert_eq!(
            (rows[0]["n"].as_u64(), rows[0]["orders"].as_u64()),
            (Some(expected), Some(expected)),
            "round {round}"
        );
    }
    // Whoever died keeps its table for the rest of its lease, and no longer.
    std::thread::sleep(Duration::from_millis(1_200));
    let done = report(&shop, &["--lease", "1s"]);
    assert_eq!(done["skipped"].as_array().unwrap().len(), 0, "{done}");
    let raw = done["tables"].as_array().unwrap().iter().find(|table| table["table"] == "raw.orders").unwrap();
    assert_eq!(raw["files_after"], 1);
    let (sum_before, orders) = (u64::from(files) * 20, "select count(distinct order_id) as n from raw.orders");
    assert_eq!(shop.query(orders)[0]["n"], sum_before);

    // What the dead left behind goes once it is old.
    let data = shop.path().join("lake/raw/orders");
    let before = self::files(&data);
    let week = SystemTime::now() - Duration::from_secs(8 * 24 * 60 * 60);
    let orphan = data.join("part-00000000-0000-7000-8000-000000000000.snappy.parquet");
    std::fs::write(&orphan, "never finished").unwrap();
    assert_eq!(sum(&report(&shop, &[]), "files_vacuumed"), 0);
    std::fs::File::options().write(true).open(&orphan).unwrap().set_modified(week).unwrap();
    assert_eq!(sum(&report(&shop, &[]), "files_vacuumed"), 1);
    assert!(!orphan.exists());
    assert_eq!(self::files(&data), before);
    assert_eq!(shop.query(orders)[0]["n"], sum_before);
}

#[tokio::test]
async fn a_table_that_somebody_else_maintains_is_skipped() {
    let shop = shop();
    orders(&shop, 0..3);
    succeed(&mut shop.command(&["ingest", "--from", "in", "--raw-only"]));
    let lake = lake(&shop.path().join("lake"), &clock_ahead(0)).await;
    let lease = lake.lease("maintain/raw.orders", "somebody else", Duration::from_secs(600)).await.unwrap().unwrap();
    let done = report(&shop, &["--table", "raw.*"]);
    assert_eq!(done["skipped"], serde_json::json!(["raw.orders"]));
    lease.release().await.unwrap();
    let done = report(&shop, &["--table", "raw.*"]);
    assert_eq!((done["skipped"].as_array().unwrap().len(), sum(&done, "files_merged")), (0, 3));
}
