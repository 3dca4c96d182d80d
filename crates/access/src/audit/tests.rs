use std::path::Path;

use arrow::array::{ArrayRef, Int64Array, RecordBatch};
use futures::TryStreamExt;
use holdfast_engine::{LakeReader, SessionSettings};
use holdfast_lake::{LakeSettings, StoreOptions};
use holdfast_types::FixedClock;

use super::*;
use crate::principal::Principal;

async fn lake(folder: &Path) -> Lake {
    let clock = Arc::new(FixedClock(DateTime::UNIX_EPOCH));
    Lake::create_or_open("lake", folder, &StoreOptions::new(), LakeSettings::default(), clock).await.unwrap()
}

fn entry(action: &str) -> AuditEntry {
    let touched = Touched::table(&"core.orders".parse().unwrap(), ["amount"]);
    AuditEntry { touched, outcome: "ok", ..AuditEntry::of(&Principal::loopback(&[]), "flight", action) }
}

fn key() -> AuditKey {
    AuditKey::derive(b"secret")
}

async fn write_chain(lake: &Lake, actions: &[&str]) {
    let audit = Audit::start(lake.clone(), key(), false);
    for action in actions {
        audit.note(entry(action), DateTime::UNIX_EPOCH);
    }
    audit.close(Duration::from_secs(60)).await;
}

async fn report(lake: &Lake) -> AuditReport {
    verify(lake, &SessionSettings::default(), &key()).await.unwrap()
}

/// The log as somebody with the lake's credentials would write it anew.
async fn tamper(lake: &Lake, change: impl FnOnce(Vec<RecordBatch>) -> Vec<RecordBatch>) {
    let name = table_name().unwrap();
    let table = lake.table(&name).await.unwrap().unwrap();
    let all = LakeReader::newest_of(lake, &SessionSettings::default(), &[name]).await.unwrap();
    let rows = all.rows("rows", "select * from audit.accesses order by chain, sequence").await.unwrap();
    let rows: Vec<RecordBatch> = rows.try_collect().await.unwrap();
    let rows = vec![arrow::compute::concat_batches(&rows[0].schema(), &rows).unwrap()];
    let mut writer = TableWriter::new(&table, WriterSettings::default());
    for batch in change(rows) {
        let columns = batch.columns().iter().zip(table.schema().fields());
        let columns = columns.map(|(column, field)| arrow::compute::cast(column, field.data_type()).unwrap()).collect();
        writer.write(&RecordBatch::try_new(Arc::clone(table.schema()), columns).unwrap()).await.unwrap();
    }
    let files = writer.close().await.unwrap();
    let version = i64::try_from(table.version()).unwrap();
    let change = Change {
        table: &table,
        position: Position { app_id: "somebody".to_owned(), version },
        fence: None,
        kind: ChangeKind::ReplaceAll,
        files,
        schema: None,
        comment: None,
        metadata: serde_json::Map::new(),
    };
    assert!(matches!(lake.commit(change).await.unwrap(), CommitOutcome::Applied { .. }));
}

fn replaced(batch: &RecordBatch, name: &str, column: ArrayRef) -> RecordBatch {
    let mut columns = batch.columns().to_vec();
    columns[batch.schema().index_of(name).unwrap()] = column;
    RecordBatch::try_new(batch.schema(), columns).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn chains_are_whole_and_each_names_the_ends_of_those_before_it() {
    let folder = tempfile::tempdir().unwrap();
    let lake = lake(folder.path()).await;
    assert_eq!(report(&lake).await, AuditReport::default());
    write_chain(&lake, &["statement", "table"]).await;
    write_chain(&lake, &["statement"]).await;
    let found = report(&lake).await;
    assert_eq!((found.chains, found.rows, found.lost), (2, 5, 0));
    assert!(found.broken.is_empty(), "{found:?}");
    assert!(open_ends_count(&lake).await == 1, "the first chain's end is named by the second");
    let other = verify(&lake, &SessionSettings::default(), &AuditKey::derive(b"other")).await.unwrap();
    assert_eq!(other.broken.len(), 5, "another key fits no row");
}

async fn open_ends_count(lake: &Lake) -> usize {
    super::verify::open_ends(lake).await.unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_was_changed_removed_or_moved_is_found() {
    let take = |rows: &RecordBatch, indices: &[usize]| {
        let parts: Vec<RecordBatch> = indices.iter().map(|index| rows.slice(*index, 1)).collect();
        arrow::compute::concat_batches(&rows.schema(), &parts).unwrap()
    };
    // Rows 0 to 3 are the first chain, 4 and 5 the second.
    type Change = Box<dyn FnOnce(&RecordBatch) -> RecordBatch>;
    let changes: Vec<(&str, Change, &str)> = vec![
        (
            "changed",
            Box::new(|rows| {
                let counts: Int64Array = [0, 0, 99, 0, 0, 0].into_iter().map(Some).collect();
                replaced(rows, "rows", Arc::new(counts))
            }),
            "the row was changed",
        ),
        ("removed", Box::new(move |rows| take(rows, &[0, 1, 3, 4, 5])), "rows are gone"),
        ("twice", Box::new(move |rows| take(rows, &[0, 1, 2, 2, 3, 4, 5])), "the row is there twice"),
        (
            "moved",
            Box::new(|rows| {
                let places: Int64Array = [0, 2, 1, 3, 0, 1].into_iter().map(Some).collect();
                replaced(rows, "sequence", Arc::new(places))
            }),
            "the row was changed",
        ),
        ("cut", Box::new(move |rows| take(rows, &[0, 1, 2, 3, 4])), "rows at the end of the chain are gone"),
        ("a whole chain", Box::new(move |rows| take(rows, &[4, 5])), "began behind this row"),
    ];
    for (situation, change, expected) in changes {
        let folder = tempfile::tempdir().unwrap();
        let lake = lake(folder.path()).await;
        write_chain(&lake, &["statement", "table", "statement"]).await;
        write_chain(&lake, &["statement"]).await;
        tamper(&lake, |rows| rows).await;
        assert!(report(&lake).await.broken.is_empty(), "written anew as it was, nothing is wrong");
        tamper(&lake, |rows| vec![change(&rows[0])]).await;
        let found = report(&lake).await;
        assert!(found.broken.iter().any(|broken| broken.what.contains(expected)), "{situation}: {found:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_it_is_required_an_access_is_in_the_lake_before_it_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let lake = lake(folder.path()).await;
    let audit = Audit::start(lake.clone(), key(), true);
    audit.begin(entry("statement"), DateTime::UNIX_EPOCH).await.unwrap();
    assert_eq!(report(&lake).await.rows, 2);
    audit.close(Duration::from_secs(60)).await;
    let error = audit.begin(entry("statement"), DateTime::UNIX_EPOCH).await.unwrap_err();
    assert!(matches!(error, AccessError::NotAudited(_)), "{error}");
}
