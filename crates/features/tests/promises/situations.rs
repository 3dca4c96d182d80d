//! One situation after the other, with the answer written down.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch, StringArray};
use arrow::array::{TimestampMillisecondArray, TimestampNanosecondArray};
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema, TimeUnit};
use futures::{StreamExt, stream};
use holdfast_features::{
    Changes, FeatureView, History, HistorySchema, Options, StatusColumns, WriteSettings, Zoneless, point_in_time,
    write_changes,
};
use object_store::path::Path;

use crate::oracle::{Expected, expected};
use crate::world::{Asked, KeyKind, Row, World, join, micros, words};

fn row(key: i64, event: i64, known: i64, value: i64) -> Row {
    Row { key, event, known, version: 0, deleted: false, value: Some(value) }
}

fn present(value: i64, event: i64) -> Expected {
    Expected { status: "PRESENT", value: Some(value), event: Some(event) }
}

fn not_found() -> Expected {
    Expected { status: "NOT_FOUND", value: None, event: None }
}

async fn world(rows: &[Row]) -> World {
    let mut world = World::new(KeyKind::Int, 2, 100);
    world.write(0, rows).await;
    world
}

#[tokio::test]
async fn pit_1_a_value_that_arrived_later_is_stepped_over() {
    let world = world(&[row(1, 10, 10, 100), row(1, 20, 50, 200)]).await;
    let spine = [(Some(1), 30), (Some(1), 50)];
    assert_eq!(world.ask(&spine, 10, &Asked::default()).await, [present(100, 10), present(200, 20)]);
    let asked = Asked { known_only: false, ..Asked::default() };
    assert_eq!(world.ask(&spine, 10, &asked).await, [present(200, 20), present(200, 20)]);
}

#[tokio::test]
async fn an_event_at_the_very_moment_counts_unless_strict() {
    let world = world(&[row(1, 10, 10, 100), row(1, 20, 20, 200)]).await;
    let spine = [(Some(1), 20), (Some(1), 10), (Some(1), 9)];
    let found = world.ask(&spine, 10, &Asked::default()).await;
    assert_eq!(found, [present(200, 20), present(100, 10), not_found()]);
    let strict = Asked { strict: true, ..Asked::default() };
    assert_eq!(world.ask(&spine, 10, &strict).await, [present(100, 10), not_found(), not_found()]);
}

#[tokio::test]
async fn a_row_as_old_as_the_ttl_counts_and_one_older_does_not() {
    let world = world(&[row(1, 10, 10, 100)]).await;
    let asked = Asked { ttl: Some(5), ..Asked::default() };
    let too_old = Expected { status: "OUTSIDE_MAX_AGE", value: None, event: Some(10) };
    assert_eq!(world.ask(&[(Some(1), 15), (Some(1), 16)], 10, &asked).await, [present(100, 10), too_old]);
}

#[tokio::test]
async fn ties_are_broken_by_known_time_then_version_then_order() {
    let mut world = world(&[row(1, 10, 12, 1), row(1, 10, 11, 2), row(2, 10, 11, 3), row(2, 10, 11, 4)]).await;
    let spine = [(Some(1), 20), (Some(2), 20)];
    assert_eq!(world.ask(&spine, 10, &Asked::default()).await, [present(1, 10), present(4, 10)]);
    world.write(1, &[row(1, 10, 11, 5), row(2, 10, 11, 6)]).await;
    assert_eq!(world.ask(&spine, 10, &Asked::default()).await, [present(1, 10), present(6, 10)]);
    world.merge(0..=1).await;
    assert_eq!(world.ask(&spine, 10, &Asked::default()).await, [present(1, 10), present(6, 10)]);
}

#[tokio::test]
async fn a_deletion_ends_a_key_until_it_comes_back() {
    let gone = Row { deleted: true, value: None, ..row(1, 20, 20, 0) };
    let world = world(&[row(1, 10, 10, 100), gone, row(1, 30, 30, 300)]).await;
    let asked = Asked { ttl: Some(3), ..Asked::default() };
    let spine = [(Some(1), 13), (Some(1), 20), (Some(1), 29), (Some(1), 30)];
    let expected = [present(100, 10), not_found(), not_found(), present(300, 30)];
    assert_eq!(world.ask(&spine, 10, &asked).await, expected);
}

#[tokio::test]
async fn a_version_is_read_as_it_was_even_after_files_were_merged() {
    let mut world = world(&[row(1, 10, 10, 100)]).await;
    world.write(1, &[row(1, 10, 10, 101), row(1, 11, 11, 102)]).await;
    world.write(2, &[row(1, 12, 12, 103)]).await;
    let asked = Asked { as_of_version: Some(0), ..Asked::default() };
    assert_eq!(world.ask(&[(Some(1), 20)], 10, &asked).await, [present(100, 10)]);
    world.merge(0..=2).await;
    assert_eq!(world.ask(&[(Some(1), 20)], 10, &asked).await, [present(100, 10)]);
}

#[tokio::test]
async fn unknown_and_null_keys_find_nothing_and_keep_their_rows() {
    for keys in [KeyKind::Int, KeyKind::Text, KeyKind::Several] {
        let mut world = World::new(keys, 2, 100);
        world.write(0, &[row(1, 10, 10, 100)]).await;
        let spine = [(Some(9), 20), (None, 20), (Some(1), 20), (None, 20), (Some(1), 20)];
        let found = world.ask(&spine, 2, &Asked::default()).await;
        assert_eq!(found, [not_found(), not_found(), present(100, 10), not_found(), present(100, 10)]);
    }
}

#[tokio::test]
async fn moments_before_all_history_and_far_in_the_future_have_an_answer() {
    let world = world(&[row(1, 10, 10, 100)]).await;
    let asked = Asked { ttl: Some(i64::MAX), ..Asked::default() };
    let spine = [(Some(1), i64::MIN), (Some(1), i64::MAX)];
    assert_eq!(world.ask(&spine, 10, &asked).await, [not_found(), present(100, 10)]);
}

#[tokio::test]
async fn a_history_that_became_known_at_once_and_late_is_not_walked_through_for_each_moment() {
    let rows: Vec<Row> = (0..20_000).map(|n| row(1, n, if n < 10 { n } else { 1_000_000 }, n)).collect();
    let world = world(&rows).await;
    let spine: Vec<_> = (0..20_000).map(|n| (Some(1), n)).chain([(Some(1), 1_000_000)]).collect();
    let found = world.ask(&spine, 50_000, &Asked::default()).await;
    for (at, found) in (0..20_000).zip(&found) {
        assert_eq!(*found, present(at.min(9), at.min(9)));
    }
    assert_eq!(found[20_000], present(19_999, 19_999));
}

#[tokio::test]
async fn a_key_that_fills_many_batches_forgets_what_was_overtaken() {
    // More rows of one key than are read at a time, and every moment sees them all.
    let rows: Vec<Row> = (0..100_000).map(|n| row(1, n, n, n)).collect();
    let mut world = World::new(KeyKind::Int, 1, 30_000);
    world.write(0, &rows).await;
    let spine: Vec<_> = (0..40_000).map(|n| (Some(1), 200_000 + n)).collect();
    let found = world.ask(&spine, 50_000, &Asked::default()).await;
    assert!(found.iter().all(|found| *found == present(99_999, 99_999)));
}

#[tokio::test]
async fn a_spine_that_needs_more_memory_is_answered_in_parts() {
    let rows: Vec<Row> = (0..5_000).map(|n| row(n % 500, n, n, n)).collect();
    let world = world(&rows).await;
    let spine: Vec<_> = (0..9_000).map(|n| (Some(n * 7 % 600), n % 6_000)).collect();
    for memory_bytes in [1, 100_000, 64 << 20] {
        let asked = Asked { memory_bytes, ..Asked::default() };
        if memory_bytes == 1 {
            let batches = world.spine(&spine, 4_000);
            let schema = batches[0].schema();
            let error = join(&world.store, batches, &schema, vec![world.view(&asked)], World::options(&asked)).await;
            assert_eq!(error.unwrap_err().kind(), holdfast_types::ErrorKind::InvalidInput);
            continue;
        }
        for (row, found) in world.ask(&spine, 4_000, &asked).await.iter().enumerate() {
            let (key, at) = spine[row];
            assert_eq!(*found, expected(&rows, key, at, &asked), "memory {memory_bytes}, row {row}");
        }
    }
}

#[tokio::test]
async fn nanoseconds_are_rounded_away_from_the_future_and_zones_are_brought_together() {
    let store = World::new(KeyKind::Int, 1, 10).store;
    let schema = HistorySchema::new(
        "spend",
        vec![Field::new("customer_id", DataType::Int64, false)],
        vec![Field::new("total", DataType::Int64, true)],
        1,
    )
    .unwrap();
    // 10.2 µs and 20 µs.
    let shanghai = |unit| DataType::Timestamp(unit, Some("+08:00".into()));
    let changes = RecordBatch::try_new(
        Arc::new(Schema::new(vec![
            Field::new("customer_id", DataType::Int64, false),
            Field::new("event_timestamp", shanghai(TimeUnit::Nanosecond), false),
            Field::new("total", DataType::Int64, false),
        ])),
        vec![
            Arc::new(Int64Array::from(vec![1, 1])) as ArrayRef,
            Arc::new(TimestampNanosecondArray::from(vec![10_200, 2_000_000]).with_timezone("+08:00")),
            Arc::new(Int64Array::from(vec![100, 200])),
        ],
    )
    .unwrap();
    let changes = Changes { version: 0, known_at: 0, batches: &[changes], zoneless: Zoneless::Refuse };
    let files = write_changes(&store, &Path::from("x"), &schema, changes, &WriteSettings::default()).await.unwrap();
    let view = || FeatureView::all(schema.clone(), History::new(&schema, files.clone()).unwrap());
    let ask = async |at: ArrayRef| {
        let fields =
            vec![Field::new("customer_id", DataType::Int32, false), Field::new("at", at.data_type().clone(), false)];
        let keys: ArrayRef = Arc::new(arrow::array::Int32Array::from(vec![1; at.len()]));
        let spine = RecordBatch::try_new(Arc::new(Schema::new(fields)), vec![keys, at]).unwrap();
        let schema = spine.schema();
        let found = join(&store, vec![spine], &schema, vec![view()], Options::new("at")).await.unwrap();
        found[0].column_by_name("total").unwrap().as_primitive::<Int64Type>().iter().collect::<Vec<_>>()
    };
    // 10.1 and 10.9 µs are before the event, as far as microseconds can tell; 11 µs is not.
    let nanos = TimestampNanosecondArray::from(vec![10_100, 10_900, 11_000]).with_timezone("Asia/Shanghai");
    assert_eq!(ask(Arc::new(nanos)).await, [None, None, Some(100)]);
    let millis = TimestampMillisecondArray::from(vec![1, 2]).with_timezone("America/New_York");
    assert_eq!(ask(Arc::new(millis)).await, [Some(100), Some(200)]);
}

#[tokio::test]
async fn views_of_other_keys_buckets_and_types_are_joined_at_once() {
    let world = world(&[row(1, 10, 10, 100)]).await;
    let shop = HistorySchema::new(
        "shop",
        vec![Field::new("shop_id", DataType::Utf8, false)],
        vec![Field::new("rating", DataType::Float64, true), Field::new("city", DataType::Utf8, true)],
        3,
    )
    .unwrap();
    let changes = RecordBatch::try_new(
        Arc::new(Schema::new(vec![
            Field::new("shop_id", DataType::Utf8, false),
            Field::new("event_timestamp", world.schema.file_schema().field(1).data_type().clone(), false),
            Field::new("rating", DataType::Float64, true),
            Field::new("city", DataType::Utf8, true),
        ])),
        vec![
            Arc::new(StringArray::from(vec!["s1", "s2"])) as ArrayRef,
            micros(vec![5, 5]),
            Arc::new(Float64Array::from(vec![Some(4.5), None])),
            Arc::new(StringArray::from(vec!["Hangzhou", "Suzhou"])),
        ],
    )
    .unwrap();
    let changes = Changes { version: 7, known_at: 15, batches: &[changes], zoneless: Zoneless::Refuse };
    let files = write_changes(&world.store, &Path::from("shop"), &shop, changes, &world.settings).await.unwrap();
    let shop = FeatureView {
        join_keys: vec!["store".to_owned()],
        features: vec!["city".to_owned(), "rating".to_owned()],
        ..FeatureView::all(shop.clone(), History::new(&shop, files).unwrap())
    };
    let spine = RecordBatch::try_new(
        Arc::new(Schema::new(vec![
            Field::new("store", DataType::LargeUtf8, true),
            Field::new("customer_id", DataType::Int64, true),
            Field::new("at", world.schema.file_schema().field(1).data_type().clone(), false),
        ])),
        vec![
            Arc::new(arrow::array::LargeStringArray::from(vec![Some("s2"), Some("s1"), Some("s1"), None])) as ArrayRef,
            Arc::new(Int64Array::from(vec![Some(1), Some(2), None, Some(1)])),
            micros(vec![20, 20, 14, 9]),
        ],
    )
    .unwrap();
    let options = Options { full_names: true, status: StatusColumns::Value, ..Options::new("at") };
    let schema = spine.schema();
    let found = join(&world.store, vec![spine], &schema, vec![world.view(&Asked::default()), shop], options).await;
    let found = &found.unwrap()[0];
    let names: Vec<String> = found.schema().fields().iter().map(|field| field.name().clone()).collect();
    let expected = [
        "store",
        "customer_id",
        "at",
        "spend__total",
        "spend__total__status",
        "spend__status",
        "shop__city",
        "shop__city__status",
        "shop__rating",
        "shop__rating__status",
        "shop__status",
    ];
    assert_eq!(names, expected);
    let column = |name: &str| found.column_by_name(name).unwrap();
    let totals: Vec<_> = column("spend__total").as_primitive::<Int64Type>().iter().collect();
    assert_eq!(totals, [Some(100), None, None, None]);
    let cities: Vec<_> = column("shop__city").as_string::<i32>().iter().collect();
    assert_eq!(cities, [Some("Suzhou"), Some("Hangzhou"), None, None]);
    let ratings: Vec<_> = column("shop__rating").as_primitive::<Float64Type>().iter().collect();
    assert_eq!(ratings, [None, Some(4.5), None, None]);
    assert_eq!(words(column("shop__rating__status")), ["NULL_VALUE", "PRESENT", "NOT_FOUND", "NOT_FOUND"]);
    assert_eq!(words(column("shop__status")), ["PRESENT", "PRESENT", "NOT_FOUND", "NOT_FOUND"]);
}

#[tokio::test]
async fn a_reader_that_stops_stops_the_work() {
    let rows: Vec<Row> = (0..1_000).map(|n| row(n, n, n, n)).collect();
    let world = world(&rows).await;
    let batches = world.spine(&(0..50_000).map(|n| (Some(n % 1_000), 2_000)).collect::<Vec<_>>(), 1_000);
    let schema = batches[0].schema();
    let taken = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = Arc::clone(&taken);
    let spine = stream::iter(batches).map(move |batch| {
        counted.fetch_add(batch.num_rows(), std::sync::atomic::Ordering::Relaxed);
        Ok(batch)
    });
    let asked = Asked { memory_bytes: 1 << 20, ..Asked::default() };
    let options = World::options(&asked);
    let mut found = point_in_time(Arc::clone(&world.store), &schema, spine, vec![world.view(&asked)], options).unwrap();
    assert_eq!(taken.load(std::sync::atomic::Ordering::Relaxed), 0, "nothing happens before somebody reads");
    assert_eq!(found.next().await.unwrap().unwrap().num_rows(), 1_000);
    drop(found);
    let taken = taken.load(std::sync::atomic::Ordering::Relaxed);
    assert!(taken < 20_000, "{taken} rows of the spine were read for one batch");
}

#[tokio::test]
async fn a_spine_without_rows_has_columns_and_no_rows() {
    let world = world(&[row(1, 10, 10, 100)]).await;
    let schema = world.spine(&[(Some(1), 1)], 1)[0].schema();
    for spine in [Vec::new(), vec![RecordBatch::new_empty(Arc::clone(&schema))]] {
        let options = World::options(&Asked::default());
        let spine = stream::iter(spine.into_iter().map(Ok));
        let views = vec![world.view(&Asked::default())];
        let mut found = point_in_time(Arc::clone(&world.store), &schema, spine, views, options).unwrap();
        assert!(found.schema().field_with_name("total").is_ok());
        assert!(found.next().await.is_none());
    }
}

#[tokio::test]
async fn a_view_without_history_finds_nothing() {
    let world = World::new(KeyKind::Text, 4, 10);
    assert_eq!(world.ask(&[(Some(1), 20)], 10, &Asked::default()).await, [not_found()]);
}
