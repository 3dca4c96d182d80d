//! What is written: cost, repetition, order, and what a spine with few keys reads.

use std::sync::Arc;

use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{Int64Type, TimestampMicrosecondType};
use futures::TryStreamExt;
use holdfast_features::History;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::counting::Counting;
use crate::oracle::expected;
use crate::world::{Asked, KeyKind, Row, World, folder};

fn rows(version: i64, count: i64) -> Vec<Row> {
    let row = |n: i64| Row {
        key: n * 7919 % 97,
        event: n * 104_729 % 1_000 + version,
        known: n * 104_729 % 1_000 + version + n % 3,
        version,
        deleted: n % 50 == 7,
        value: Some(version * 1_000_000 + n),
    };
    (0..count).map(row).collect()
}

async fn objects(store: &Arc<dyn ObjectStore>) -> Vec<(String, Vec<u8>)> {
    let listed: Vec<_> = store.list(Some(&folder())).try_collect().await.unwrap();
    let mut found = Vec::new();
    for object in listed {
        let bytes = store.get(&object.location).await.unwrap().bytes().await.unwrap();
        found.push((object.location.to_string(), bytes.to_vec()));
    }
    found.sort();
    found
}

#[tokio::test]
async fn a_version_written_again_is_the_same_bytes_under_the_same_names() {
    let mut world = World::new(KeyKind::Text, 4, 50);
    let first = world.write(3, &rows(3, 500)).await;
    let before = objects(&world.store).await;
    assert_eq!(world.write(3, &rows(3, 500)).await, first);
    assert_eq!(objects(&world.store).await, before);
    assert_eq!(before.len(), 4);
}

#[tokio::test]
async fn adding_a_day_reads_nothing_and_writes_the_day() {
    let (store, counts) = Counting::store();
    let mut world = World::new(KeyKind::Int, 4, 1_000);
    world.store = store;
    let mut bytes = Vec::new();
    for day in 0..20 {
        let before = counts.get();
        world.write(day, &rows(day, 2_000)).await;
        let after = counts.get();
        assert_eq!(after.read_bytes, before.read_bytes, "day {day} read history");
        bytes.push(after.written_bytes - before.written_bytes);
    }
    let (first, last) = (bytes[0], bytes[19]);
    assert!(last < first + first / 10, "the first day wrote {first} bytes, the last one {last}");
}

#[tokio::test]
async fn merged_files_hold_all_rows_in_the_order_of_history() {
    for keys in [KeyKind::Int, KeyKind::Text, KeyKind::Several] {
        let mut world = World::new(keys, 1, 1_000);
        let mut history = Vec::new();
        for version in 0..4 {
            // More than what is in memory of a file at a time.
            let rows = rows(version, 12_000);
            world.write(version, &rows).await;
            history.extend(rows);
        }
        world.merge(0..=3).await;
        let file = &world.files[0];
        assert_eq!((file.rows, file.versions.clone()), (48_000, 0..=3));
        let bytes = world.store.get(&file.path).await.unwrap().bytes().await.unwrap();
        let batches = ParquetRecordBatchReaderBuilder::try_new(bytes).unwrap().build().unwrap();
        let batches: Vec<RecordBatch> = batches.collect::<Result<_, _>>().unwrap();
        let all = arrow::compute::concat_batches(&batches[0].schema(), &batches).unwrap();
        let column = |name: &str| all.column_by_name(name).unwrap();
        let values = column("total").as_primitive::<Int64Type>().values();
        let moments = |name: &str| column(name).as_primitive::<TimestampMicrosecondType>().values().to_vec();
        let (events, knowns) = (moments("event_timestamp"), moments("known_at"));
        // By the key as it is compared, then times, then in the order in which rows came.
        history.sort_by_key(|row| (key_of(keys, row.key), row.event, row.known));
        for (at, row) in history.iter().enumerate() {
            assert_eq!(
                (events[at], knowns[at], Some(values[at])),
                (row.event, row.known, row.value),
                "{keys:?}, row {at}"
            );
        }
    }
}

fn key_of(keys: KeyKind, key: i64) -> (String, i64) {
    match keys {
        KeyKind::Int => (String::new(), key),
        KeyKind::Text => (keys.columns(&[Some(key)])[0].as_string::<i32>().value(0).to_owned(), 0),
        KeyKind::Several => (if key % 2 == 0 { "even" } else { "odd" }.to_owned(), key),
    }
}

#[tokio::test]
async fn few_keys_read_few_pages() {
    for keys in [KeyKind::Int, KeyKind::Text] {
        let (store, counts) = Counting::store();
        let mut world = World::new(keys, 1, 100_000);
        world.store = store;
        world.settings.page_rows = std::num::NonZeroUsize::new(1_000).unwrap();
        let history: Vec<Row> = (0..200_000_i64)
            .map(|n| Row {
                key: n / 20,
                event: n % 20,
                known: n % 20,
                version: 0,
                deleted: false,
                value: Some(n.wrapping_mul(n).wrapping_mul(0x5851_f42d_4c95_7f2d)),
            })
            .collect();
        world.write(0, &history).await;
        let size = world.files[0].bytes;
        let spine = [(Some(5_000), 10), (Some(77), 3), (Some(123_456), 3)];
        let before = counts.get().read_bytes;
        let found = world.ask(&spine, 10, &Asked::default()).await;
        let read = counts.get().read_bytes - before;
        for ((key, at), found) in spine.iter().zip(&found) {
            assert_eq!(*found, expected(&history, *key, *at, &Asked::default()));
        }
        // A footer with its page index, the names of keys, and a few pages of each column.
        assert!(read < 64 * 1024 + size / 5, "{keys:?}: {read} of {size} bytes were read");
        // Nobody knew anything then.
        let before = counts.get().read_bytes;
        world.ask(&[(Some(5_000), -1)], 10, &Asked::default()).await;
        assert!(counts.get().read_bytes - before <= 64 * 1024, "{keys:?}: rows were read that cannot be seen");
    }
}

#[tokio::test]
async fn small_files_are_merged_and_big_ones_are_left_alone() {
    let mut world = World::new(KeyKind::Int, 1, 10_000);
    world.write(0, &rows(0, 5_000)).await;
    let mut written = 0;
    for day in 1..=64 {
        world.write(day, &rows(day, 100)).await;
        let history = History::new(&world.schema, world.files.clone()).unwrap();
        for stretch in history.compactions(4) {
            written += stretch.iter().map(|file| file.rows).sum::<u64>();
            let (from, to) = (*stretch[0].versions.start(), *stretch.last().unwrap().versions.end());
            world.merge(from..=to).await;
        }
        assert!(world.files.len() <= 12, "{} files on day {day}", world.files.len());
    }
    assert_eq!(world.files.iter().map(|file| file.rows).sum::<u64>(), 5_000 + 6_400);
    assert!(written < 6 * 6_400 + 5_000, "{written} rows were rewritten for 6,400 new ones");
    let history: Vec<Row> = (1..=64).flat_map(|day| rows(day, 100)).collect();
    let history: Vec<Row> = rows(0, 5_000).into_iter().chain(history).collect();
    let spine: Vec<_> = (0..500).map(|n| (Some(n % 100), n * 3)).collect();
    let found = world.ask(&spine, 100, &Asked::default()).await;
    for ((key, at), found) in spine.iter().zip(&found) {
        assert_eq!(*found, expected(&history, *key, *at, &Asked::default()));
    }
}
