//! The commit rule of the lake, on real tables: a position is applied once, whoever tries it and whatever the store answers.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use chrono::DateTime;
use holdfast_lake::{
    Change, ChangeKind, CommitOutcome, Lake, LakeSettings, Position, StagedFile, StoreOptions, Table, TableSpec,
    TableWriter, WriterSettings, open_store,
};
use holdfast_testkit::{Fault, FaultStore};
use holdfast_types::{ErrorKind, FixedClock};

async fn lake(folder: &Path) -> Lake {
    let clock = Arc::new(FixedClock(DateTime::UNIX_EPOCH));
    let place = folder.display().to_string();
    Lake::create_or_open(&place, Path::new("/"), &StoreOptions::new(), LakeSettings::default(), clock).await.unwrap()
}

fn spec() -> TableSpec {
    TableSpec {
        name: "raw.numbers".parse().unwrap(),
        schema: Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)])),
        partition_by: Vec::new(),
        comment: "numbers".to_owned(),
    }
}

async fn staged(table: &Table, rows: std::ops::Range<i64>) -> Vec<StagedFile> {
    let column = Arc::new(Int64Array::from_iter_values(rows));
    let batch = RecordBatch::try_new(Arc::clone(table.schema()), vec![column]).unwrap();
    let mut writer = TableWriter::new(table, WriterSettings::default());
    writer.write(&batch).await.unwrap();
    writer.close().await.unwrap()
}

fn change<'a>(table: &'a Table, app_id: &str, version: i64, kind: ChangeKind, files: Vec<StagedFile>) -> Change<'a> {
    Change {
        table,
        position: Position { app_id: app_id.to_owned(), version },
        fence: None,
        kind,
        files,
        schema: None,
        comment: None,
        metadata: serde_json::Map::new(),
    }
}

async fn count(lake: &Lake) -> u64 {
    lake.table(&spec().name).await.unwrap().unwrap().row_count().unwrap()
}

#[tokio::test]
async fn ing_2_a_position_is_applied_once_however_often_it_is_tried() {
    let folder = tempfile::tempdir().unwrap();
    let lake = lake(folder.path()).await;
    let table = lake.ensure_table(&spec()).await.unwrap();
    let first = change(&table, "a", 1, ChangeKind::Append, staged(&table, 0..10).await);
    assert!(matches!(lake.commit(first).await.unwrap(), CommitOutcome::Applied { .. }));
    for version in [1, 0] {
        let again = change(&table, "a", version, ChangeKind::Append, staged(&table, 0..10).await);
        assert!(matches!(lake.commit(again).await.unwrap(), CommitOutcome::AlreadyApplied { .. }));
    }
    assert_eq!(count(&lake).await, 10);
    let second = change(&table, "a", 2, ChangeKind::Append, staged(&table, 10..15).await);
    assert!(matches!(lake.commit(second).await.unwrap(), CommitOutcome::Applied { .. }));
    assert_eq!(count(&lake).await, 15);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn ing_2_workers_with_the_same_position_apply_it_once_and_others_do_not_disturb() {
    let folder = tempfile::tempdir().unwrap();
    let lake = lake(folder.path()).await;
    let table = lake.ensure_table(&spec()).await.unwrap();
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..8 {
        let (lake, table) = (lake.clone(), table.clone());
        workers.spawn(async move {
            let mut applied = 0;
            for version in 1..=4 {
                // Four workers share a position each step; four have their own.
                let app_id = if worker < 4 { "shared".to_owned() } else { format!("own-{worker}") };
                let files = staged(&table, 0..3).await;
                match lake.commit(change(&table, &app_id, version, ChangeKind::Append, files)).await.unwrap() {
                    CommitOutcome::Applied { .. } => applied += 1,
                    CommitOutcome::AlreadyApplied { .. } => {}
                    CommitOutcome::Conflicted { .. } => panic!("an append conflicted"),
                }
            }
            applied
        });
    }
    let applied: i32 = workers.join_all().await.into_iter().sum();
    assert_eq!(applied, 4 + 4 * 4);
    assert_eq!(count(&lake).await, 3 * (4 + 4 * 4));
}

#[tokio::test]
async fn ing_2_a_commit_whose_answer_is_lost_counts_and_one_that_was_refused_does_not() {
    for (fault, expected) in [(Fault::AnswerLost, 10), (Fault::Refused, 0)] {
        let folder = tempfile::tempdir().unwrap();
        lake(folder.path()).await.ensure_table(&spec()).await.unwrap();
        let mut place = open_store(&folder.path().display().to_string(), Path::new("/"), &StoreOptions::new()).unwrap();
        let store = Arc::new(FaultStore::new(place.store, "numbers/_delta_log/", fault, 1));
        place.store = Arc::clone(&store) as _;
        let clock = Arc::new(FixedClock(DateTime::UNIX_EPOCH));
        let lake = Lake::create_or_open_at(place, LakeSettings::default(), clock).await.unwrap();
        let table = lake.table(&spec().name).await.unwrap().unwrap();

        let first = lake.commit(change(&table, "a", 1, ChangeKind::Append, staged(&table, 0..10).await)).await;
        assert_eq!(store.left(), 0, "the fault did not strike");
        match fault {
            Fault::AnswerLost => assert!(matches!(first.unwrap(), CommitOutcome::Applied { .. })),
            _ => assert_eq!(first.unwrap_err().kind(), ErrorKind::Retry),
        }
        assert_eq!(count(&lake).await, expected);
        // Whoever tries again gets the same rows, once.
        let again = lake.commit(change(&table, "a", 1, ChangeKind::Append, staged(&table, 0..10).await)).await;
        assert!(matches!(again.unwrap(), CommitOutcome::Applied { .. } | CommitOutcome::AlreadyApplied { .. }));
        assert_eq!(count(&lake).await, 10);
    }
}

#[tokio::test]
async fn a_replacement_decided_on_an_older_version_is_conflicted_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let lake = lake(folder.path()).await;
    let old = lake.ensure_table(&spec()).await.unwrap();
    let append = change(&old, "a", 1, ChangeKind::Append, staged(&old, 0..10).await);
    assert!(matches!(lake.commit(append).await.unwrap(), CommitOutcome::Applied { .. }));
    let stale = change(&old, "b", 1, ChangeKind::ReplaceAll, staged(&old, 0..1).await);
    assert!(matches!(lake.commit(stale).await.unwrap(), CommitOutcome::Conflicted { .. }));
    assert_eq!(count(&lake).await, 10);

    let now = lake.table(&spec().name).await.unwrap().unwrap();
    let replace = change(&now, "b", 1, ChangeKind::ReplaceAll, staged(&now, 0..2).await);
    assert!(matches!(lake.commit(replace).await.unwrap(), CommitOutcome::Applied { .. }));
    assert_eq!(count(&lake).await, 2);
    // What was there stays readable as it was.
    assert_eq!(lake.table_at(&spec().name, now.version()).await.unwrap().row_count(), Some(10));
}

#[tokio::test]
async fn a_table_is_widened_by_new_columns_and_keeps_the_types_it_has() {
    let folder = tempfile::tempdir().unwrap();
    let lake = lake(folder.path()).await;
    lake.ensure_table(&spec()).await.unwrap();
    let wider = |data_type: DataType| {
        let fields = vec![Field::new("n", data_type, true), Field::new("text", DataType::Utf8, true)];
        TableSpec { schema: Arc::new(Schema::new(fields)), ..spec() }
    };
    let table = lake.ensure_table(&wider(DataType::Int64)).await.unwrap();
    assert_eq!(table.schema().fields().len(), 2);
    let error = lake.ensure_table(&wider(DataType::Utf8)).await.unwrap_err().to_string();
    assert!(error.contains("raw.numbers") && error.contains("column n"), "{error}");
}
