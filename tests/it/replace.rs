//! Rows in the place of others: whatever goes and comes, the table holds what it should, its files stay sorted, and its change data says what happened.

use std::sync::Arc;

use arrow::array::{AsArray, Int32Array, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit, TimestampMicrosecondType};
use datafusion::catalog::TableProvider;
use holdfast_engine::{LakeReader, SessionSettings};
use holdfast_lake::{Change, ChangeKind, CommitOutcome, Lake, Position, RowChanges, Table, TableSpec};
use holdfast_testkit::Random;
use holdfast_types::TableName;

use crate::leases::{HandClock, lake};

/// Customer, moment, value.
type Row = (String, i64, i64);

const BUCKETS: i32 = 3;

fn name() -> TableName {
    "core.things".parse().unwrap()
}

fn spec() -> TableSpec {
    TableSpec {
        name: name(),
        schema: Arc::new(Schema::new(vec![
            Field::new("customer_id", DataType::Utf8, true),
            Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
            Field::new("value", DataType::Int64, true),
            Field::new("customer_bucket", DataType::Int32, true),
        ])),
        partition_by: vec!["customer_bucket".to_owned()],
        comment: "things".to_owned(),
    }
}

fn batch(table: &Table, rows: &[Row]) -> RecordBatch {
    let bucket = |(customer, _, _): &Row| customer.bytes().map(i32::from).sum::<i32>() % BUCKETS;
    RecordBatch::try_new(
        Arc::clone(table.schema()),
        vec![
            Arc::new(StringArray::from_iter_values(rows.iter().map(|row| &row.0))),
            Arc::new(TimestampMicrosecondArray::from_iter_values(rows.iter().map(|row| row.1)).with_timezone("UTC")),
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.2))),
            Arc::new(Int32Array::from_iter_values(rows.iter().map(bucket))),
        ],
    )
    .unwrap()
}

fn read(batches: &[RecordBatch]) -> Vec<Row> {
    let mut rows: Vec<Row> = batches
        .iter()
        .flat_map(|batch| {
            let customers = arrow::compute::cast(batch.column(0), &DataType::Utf8).unwrap();
            let moments = batch.column(1).as_primitive::<TimestampMicrosecondType>();
            let values = batch.column(2).as_primitive::<Int64Type>();
            (0..batch.num_rows())
                .map(|row| (customers.as_string::<i32>().value(row).to_owned(), moments.value(row), values.value(row)))
                .collect::<Vec<_>>()
        })
        .collect();
    rows.sort();
    rows
}

async fn rows_of(lake: &Lake, provider: Arc<dyn TableProvider>) -> Vec<Row> {
    let reader = LakeReader::newest(lake, &SessionSettings::default()).await.unwrap();
    read(&reader.session().unwrap().read_table(provider).unwrap().collect().await.unwrap())
}

async fn newest(lake: &Lake) -> Table {
    lake.table(&name()).await.unwrap().unwrap()
}

/// `after` without what is in `before`, as often as it is.
fn less(after: &[Row], before: &[Row]) -> Vec<Row> {
    let mut left = before.to_vec();
    left.sort();
    let mut rows = Vec::new();
    for row in after {
        match left.binary_search(row) {
            Ok(at) => drop(left.remove(at)),
            Err(_) => rows.push(row.clone()),
        }
    }
    rows.sort();
    rows
}

async fn replace(lake: &Lake, table: &Table, step: i64, removed: &[Row], added: &[Row]) -> CommitOutcome {
    let changes = RowChanges { removed: vec![batch(table, removed)], added: vec![batch(table, added)] };
    let staged = lake.stage_replacement(table, &changes).await.unwrap();
    let change = Change {
        table,
        position: Position { app_id: "stage".to_owned(), version: step },
        fence: None,
        kind: ChangeKind::Replace { removed: staged.removed, told: staged.told },
        files: staged.files,
        schema: None,
        comment: None,
        metadata: serde_json::Map::new(),
    };
    lake.commit(change).await.unwrap()
}

#[tokio::test]
async fn rows_come_and_go_and_the_table_holds_the_rest_in_order_with_a_record_of_what_happened() {
    for seed in 0..4 {
        let mut random = Random::new(seed);
        let folder = tempfile::tempdir().unwrap();
        let lake = lake(folder.path(), &HandClock::new()).await;
        let table = lake.ensure_table(&spec()).await.unwrap();
        let mut model: Vec<Row> = Vec::new();
        let mut table = table;
        for step in 1..=25 {
            let row = |random: &mut Random| {
                (
                    format!("c{}", random.below(9)),
                    i64::try_from(random.below(5)).unwrap(),
                    i64::try_from(random.below(3)).unwrap(),
                )
            };
            let added: Vec<Row> = (0..random.below(6)).map(|_| row(&mut random)).collect();
            let mut removed = Vec::new();
            for _ in 0..random.below(4).min(model.len() as u64) {
                let at = usize::try_from(random.below(model.len() as u64)).unwrap();
                removed.push(model.swap_remove(at));
            }
            model.extend(added.clone());
            let before = table.clone();
            assert!(
                matches!(replace(&lake, &table, step, &removed, &added).await, CommitOutcome::Applied { .. }),
                "seed {seed}, step {step}"
            );
            // Who merges files changes nothing.
            if random.below(5) == 0 {
                let table = newest(&lake).await;
                let merged = lake.stage_rewrite(&table, &table.merges(1 << 20), 64 << 20).await.unwrap();
                let _ = lake.commit_rewrite(&table, merged, None).await.unwrap();
            }
            table = newest(&lake).await;
            model.sort();
            assert_eq!(rows_of(&lake, table.provider()).await, model, "seed {seed}, step {step}");
            assert!(table.file_orders().iter().all(|(_, order)| order.is_some()), "seed {seed}, step {step}");

            let changes = table.changes_since(before.version()).await.unwrap().unwrap();
            let went = rows_of(&lake, changes.removed_rows().unwrap()).await;
            let came = rows_of(&lake, changes.added_rows().unwrap()).await;
            assert_eq!(went, less(&removed, &[]), "seed {seed}, step {step}");
            assert_eq!(came, less(&added, &[]), "seed {seed}, step {step}");
        }
        // Over all steps at once: what came and went again is on both sides, the difference is what there is.
        let first = lake.table_at(&name(), 0).await.unwrap();
        let changes = table.changes_since(first.version()).await.unwrap().unwrap();
        let went = rows_of(&lake, changes.removed_rows().unwrap()).await;
        let came = rows_of(&lake, changes.added_rows().unwrap()).await;
        assert_eq!(less(&came, &went), model, "seed {seed}");
    }
}

#[tokio::test]
async fn only_files_with_a_row_that_goes_are_written_again() {
    let folder = tempfile::tempdir().unwrap();
    let lake = lake(folder.path(), &HandClock::new()).await;
    let table = lake.ensure_table(&spec()).await.unwrap();
    let rows: Vec<Row> = (0..300).map(|number| (format!("c{:03}", number % 30), number, 0)).collect();
    assert!(matches!(replace(&lake, &table, 1, &[], &rows).await, CommitOutcome::Applied { .. }));
    let before = newest(&lake).await;
    let gone = ("c003".to_owned(), 3, 0);
    assert!(matches!(
        replace(&lake, &before, 2, std::slice::from_ref(&gone), &[]).await,
        CommitOutcome::Applied { .. }
    ));
    let after = newest(&lake).await;
    let files = |table: &Table| table.file_orders().into_iter().map(|(path, _)| path).collect::<Vec<_>>();
    let kept = files(&after).iter().filter(|path| files(&before).contains(path)).count();
    assert_eq!((files(&before).len(), kept), (3, 2));
    assert_eq!(rows_of(&lake, after.provider()).await.len(), 299);
}

#[tokio::test]
async fn a_row_that_is_not_there_cannot_go() {
    let folder = tempfile::tempdir().unwrap();
    let lake = lake(folder.path(), &HandClock::new()).await;
    let table = lake.ensure_table(&spec()).await.unwrap();
    let rows = [("a".to_owned(), 1, 1), ("b".to_owned(), 1, 1)];
    assert!(matches!(replace(&lake, &table, 1, &[], &rows).await, CommitOutcome::Applied { .. }));
    let table = newest(&lake).await;
    let missing = RowChanges { removed: vec![batch(&table, &[("a".to_owned(), 1, 2)])], added: Vec::new() };
    let error = lake.stage_replacement(&table, &missing).await.unwrap_err();
    assert!(error.to_string().contains("STG-1"), "{error}");
}

#[tokio::test]
async fn a_replacement_decided_on_rows_that_changed_or_files_that_were_merged_conflicts() {
    let folder = tempfile::tempdir().unwrap();
    let lake = lake(folder.path(), &HandClock::new()).await;
    let table = lake.ensure_table(&spec()).await.unwrap();
    let row = |value: i64| ("a".to_owned(), value, value);
    assert!(matches!(replace(&lake, &table, 1, &[], &[row(1), row(2)]).await, CommitOutcome::Applied { .. }));
    let old = newest(&lake).await;
    assert!(matches!(replace(&lake, &old, 2, &[row(1)], &[row(3)]).await, CommitOutcome::Applied { .. }));
    assert!(matches!(replace(&lake, &old, 3, &[row(2)], &[]).await, CommitOutcome::Conflicted { .. }));
    // The same position again is the same step.
    assert!(matches!(replace(&lake, &old, 2, &[row(1)], &[row(3)]).await, CommitOutcome::AlreadyApplied { .. }));

    let added = newest(&lake).await;
    assert!(matches!(replace(&lake, &added, 3, &[], &[row(4)]).await, CommitOutcome::Applied { .. }));
    let scattered = newest(&lake).await;
    let merged = lake.stage_rewrite(&scattered, &scattered.merges(1 << 20), 64 << 20).await.unwrap();
    assert!(matches!(lake.commit_rewrite(&scattered, merged, None).await.unwrap(), CommitOutcome::Applied { .. }));
    assert!(matches!(replace(&lake, &scattered, 4, &[row(4)], &[]).await, CommitOutcome::Conflicted { .. }));
    assert_eq!(rows_of(&lake, newest(&lake).await.provider()).await, [row(2), row(3), row(4)]);
}
