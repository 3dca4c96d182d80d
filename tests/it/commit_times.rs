//! What a commit costs in a log that grows. Measured, not tested: `cargo test --workspace --test it -- --ignored --nocapture commit_times`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use chrono::{DateTime, Utc};
use holdfast_lake::{
    Change, ChangeKind, CommitOutcome, Lake, LakeSettings, MaintainSettings, Position, StoreOptions, Table, TableSpec,
    TableWriter, WriterSettings, open_store,
};
use holdfast_types::Clock;

const COMMITS: i64 = 10_000;
const SERIES: i64 = 1_000;
/// A watching worker maintains a table after so many commits, by default.
const MAINTAINED_EVERY: i64 = 500;
const COLD: usize = 9;

#[derive(Debug)]
struct WallClock;

impl Clock for WallClock {
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }
}

async fn open(folder: &std::path::Path) -> Lake {
    let place = open_store(&folder.display().to_string(), std::path::Path::new("/"), &StoreOptions::new()).unwrap();
    Lake::create_or_open_at(place, LakeSettings::default(), Arc::new(WallClock)).await.unwrap()
}

fn spec() -> TableSpec {
    TableSpec {
        name: "raw.numbers".parse().unwrap(),
        schema: Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)])),
        partition_by: Vec::new(),
        comment: "numbers".to_owned(),
    }
}

/// Appends a file of ten rows; answers what the commit alone took.
async fn append(lake: &Lake, table: &Table, app_id: &str, version: i64) -> Duration {
    let rows = Int64Array::from_iter_values(version * 10..(version + 1) * 10);
    let mut writer = TableWriter::new(table, WriterSettings::default());
    writer.write(&RecordBatch::try_new(Arc::clone(table.schema()), vec![Arc::new(rows)]).unwrap()).await.unwrap();
    let files = writer.close().await.unwrap();
    let began = Instant::now();
    let outcome = lake
        .commit(Change {
            table,
            position: Position { app_id: app_id.to_owned(), version },
            fence: None,
            kind: ChangeKind::Append,
            files,
            schema: None,
            comment: None,
            metadata: serde_json::Map::new(),
        })
        .await
        .unwrap();
    assert!(matches!(outcome, CommitOutcome::Applied { .. }), "{outcome:?}");
    began.elapsed()
}

fn millis(mut taken: Vec<Duration>) -> impl Fn(f64) -> f64 {
    taken.sort_unstable();
    move |part| {
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rank"
        )]
        let rank = ((taken.len() as f64 * part).ceil() as usize).clamp(1, taken.len());
        taken[rank - 1].as_secs_f64() * 1e3
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute and prints what it measured"]
async fn commit_times_over_ten_thousand_versions() {
    for is_maintained in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let lake = open(folder.path()).await;
        let table = lake.ensure_table(&spec()).await.unwrap();
        eprintln!("\n{}", if is_maintained { "maintained every 500 commits" } else { "never maintained" });
        eprintln!(
            "| versions | p50 ms | p99 ms | p99.9 ms | max ms | maintenance s | a new process: open and append, median ms |"
        );
        eprintln!("|---|---|---|---|---|---|---|");
        for series in 0..COMMITS / SERIES {
            let mut taken = Vec::new();
            let mut maintaining = Duration::ZERO;
            for step in series * SERIES + 1..=(series + 1) * SERIES {
                taken.push(append(&lake, &table, "writer", step).await);
                if is_maintained && step % MAINTAINED_EVERY == 0 {
                    let began = Instant::now();
                    let settings = MaintainSettings::default();
                    let kept = lake.maintain_runs(&settings).await.unwrap();
                    lake.maintain(&spec().name, &settings, &kept, None).await.unwrap();
                    maintaining += began.elapsed();
                }
            }
            let mut cold = Vec::new();
            for attempt in 0..COLD {
                let began = Instant::now();
                let fresh = open(folder.path()).await;
                let table = fresh.ensure_table(&spec()).await.unwrap();
                append(&fresh, &table, &format!("cold {series}"), attempt as i64 + 1).await;
                cold.push(began.elapsed());
            }
            let (hot, cold) = (millis(taken), millis(cold));
            eprintln!(
                "| {} to {} | {:.2} | {:.2} | {:.2} | {:.2} | {:.1} | {:.1} |",
                series * SERIES + 1,
                (series + 1) * SERIES,
                hot(0.5),
                hot(0.99),
                hot(0.999),
                hot(1.0),
                maintaining.as_secs_f64(),
                cold(0.5),
            );
        }
        let rows = lake.table(&spec().name).await.unwrap().unwrap().row_count();
        let cold = u64::try_from(COMMITS / SERIES).unwrap() * COLD as u64;
        assert_eq!(rows, Some((u64::try_from(COMMITS).unwrap() + cold) * 10));
    }
}
