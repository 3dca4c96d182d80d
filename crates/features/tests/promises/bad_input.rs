//! Each mistake has an error that says what and where, and what to do.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, TimeUnit};
use holdfast_features::{
    Changes, FeatureError, FeatureView, History, HistorySchema, Options, StatusColumns, Zoneless, compact,
    write_changes,
};
use holdfast_types::ErrorKind;
use object_store::ObjectStoreExt;
use object_store::path::Path;

use crate::world::{Asked, KeyKind, Row, World, join, micros};

async fn world() -> World {
    let mut world = World::new(KeyKind::Int, 2, 100);
    let rows: Vec<Row> =
        (0..20).map(|n| Row { key: n, event: 10, known: 10, version: 0, deleted: false, value: Some(n) }).collect();
    world.write(0, &rows).await;
    world
}

fn spine(fields: Vec<(&str, ArrayRef)>) -> RecordBatch {
    RecordBatch::try_from_iter_with_nullable(fields.into_iter().map(|(name, array)| (name, array, true))).unwrap()
}

fn keys(rows: usize) -> ArrayRef {
    Arc::new(Int64Array::from(vec![1; rows]))
}

async fn refused(world: &World, spine: RecordBatch, views: Vec<FeatureView>, options: Options) -> (ErrorKind, String) {
    let schema = spine.schema();
    let error = join(&world.store, vec![spine], &schema, views, options).await.unwrap_err();
    (error.kind(), error.to_string())
}

#[tokio::test]
async fn a_null_moment_is_told_with_its_row() {
    let world = world().await;
    let good = spine(vec![("customer_id", keys(3)), ("at", micros(vec![1, 2, 3]))]);
    let at = Arc::new(TimestampMicrosecondArray::from(vec![Some(1), None]).with_timezone("UTC"));
    let bad = spine(vec![("customer_id", keys(2)), ("at", at)]);
    let schema = good.schema();
    let views = vec![world.view(&Asked::default())];
    let error = join(&world.store, vec![good, bad], &schema, views, Options::new("at")).await.unwrap_err();
    assert_eq!(error.to_string(), "the spine, row 4: column at is null: a row needs its moment");
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
}

#[tokio::test]
async fn timestamps_without_a_zone_are_refused_unless_they_are_said_to_be_in_utc() {
    let world = world().await;
    let at: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![20]));
    let spine = spine(vec![("customer_id", keys(1)), ("at", at)]);
    let view = || vec![world.view(&Asked::default())];
    let (kind, message) = refused(&world, spine.clone(), view(), Options::new("at")).await;
    assert_eq!(kind, ErrorKind::InvalidInput);
    assert!(message.ends_with("expected a timestamp with a zone: cast it, or say that it is in UTC"), "{message}");
    let schema = spine.schema();
    let options = Options { zoneless: Zoneless::Utc, ..Options::new("at") };
    assert_eq!(join(&world.store, vec![spine], &schema, view(), options).await.unwrap()[0].num_rows(), 1);
}

#[tokio::test]
async fn columns_that_are_missing_or_of_another_type_are_named() {
    let world = world().await;
    let view = || vec![world.view(&Asked::default())];
    let at = micros(vec![20]);
    let (_, message) = refused(&world, spine(vec![("at", Arc::clone(&at))]), view(), Options::new("at")).await;
    assert_eq!(message, "the spine has no column customer_id");
    let good = spine(vec![("customer_id", keys(1)), ("at", Arc::clone(&at))]);
    let (_, message) = refused(&world, good, view(), Options::new("event_timestamp")).await;
    assert_eq!(message, "the spine has no column event_timestamp");
    let text: ArrayRef = Arc::new(StringArray::from(vec!["1"]));
    let bad = spine(vec![("customer_id", text), ("at", Arc::clone(&at))]);
    let (_, message) = refused(&world, bad, view(), Options::new("at")).await;
    assert_eq!(message, "the spine, joined with spend: column customer_id is Utf8, expected Int64");
    let date = cast(&at, &DataType::Date32).unwrap();
    let bad = spine(vec![("customer_id", keys(1)), ("at", date)]);
    let (_, message) = refused(&world, bad, view(), Options::new("at")).await;
    assert_eq!(message, "the spine: column at is Date32, expected a timestamp");
}

#[tokio::test]
async fn a_moment_that_microseconds_do_not_reach_is_told_with_its_row() {
    let world = world().await;
    let at = Arc::new(arrow::array::TimestampSecondArray::from(vec![1, i64::MAX]).with_timezone("UTC"));
    let bad = spine(vec![("customer_id", keys(2)), ("at", at)]);
    let (_, message) = refused(&world, bad, vec![world.view(&Asked::default())], Options::new("at")).await;
    assert_eq!(message, "the spine, row 1: column at is too far from 1970 for microseconds in 64 bits");
}

#[tokio::test]
async fn columns_of_one_name_are_told_with_both_views() {
    let world = world().await;
    let good = || spine(vec![("customer_id", keys(1)), ("at", micros(vec![20]))]);
    let other =
        HistorySchema::new("refunds", KeyKind::Int.fields(), vec![Field::new("total", DataType::Int64, true)], 1);
    let other = FeatureView::all(other.unwrap(), History::default());
    let views = || vec![world.view(&Asked::default()), other.clone()];
    let (kind, message) = refused(&world, good(), views(), Options::new("at")).await;
    assert_eq!(kind, ErrorKind::InvalidInput);
    assert_eq!(
        message,
        "two columns of the answer are called total: spend:total and refunds:total; ask for full names, or rename one"
    );
    let schema = good().schema();
    let full = Options { full_names: true, ..Options::new("at") };
    let found = join(&world.store, vec![good()], &schema, views(), full).await.unwrap();
    assert!(found[0].column_by_name("spend__total").is_some() && found[0].column_by_name("refunds__total").is_some());
    let taken = spine(vec![("customer_id", keys(1)), ("at", micros(vec![20])), ("total", keys(1))]);
    let (_, message) = refused(&world, taken, vec![world.view(&Asked::default())], Options::new("at")).await;
    assert!(message.starts_with("two columns of the answer are called total: the spine and spend:total"), "{message}");
    // A feature that is called as its own view's status would be.
    let status =
        HistorySchema::new("spend", KeyKind::Int.fields(), vec![Field::new("status", DataType::Int64, true)], 1);
    let status = FeatureView::all(status.unwrap(), History::default());
    let full = Options { full_names: true, status: StatusColumns::View, ..Options::new("at") };
    let (_, message) = refused(&world, good(), vec![status], full).await;
    assert!(message.contains("called spend__status: spend:status and the status of view spend"), "{message}");
}

#[tokio::test]
async fn an_unknown_feature_is_told_with_a_suggestion() {
    let world = world().await;
    let good = spine(vec![("customer_id", keys(1)), ("at", micros(vec![20]))]);
    let view = FeatureView { features: vec!["totl".to_owned()], ..world.view(&Asked::default()) };
    let (kind, message) = refused(&world, good, vec![view], Options::new("at")).await;
    assert_eq!(kind, ErrorKind::NotFound);
    assert_eq!(message, "view spend has no feature totl: did you mean total?; it has: total");
}

#[tokio::test]
async fn a_version_that_is_gone_is_told_with_the_first_one() {
    let mut world = World::new(KeyKind::Int, 1, 10);
    world.write(7, &[Row { key: 1, event: 1, known: 1, version: 7, deleted: false, value: None }]).await;
    let good = spine(vec![("customer_id", keys(1)), ("at", micros(vec![20]))]);
    let view = FeatureView { as_of_version: Some(3), ..world.view(&Asked::default()) };
    let (kind, message) = refused(&world, good, vec![view], Options::new("at")).await;
    assert_eq!(
        (kind, message.as_str()),
        (ErrorKind::NotFound, "view spend as of version 3: the files begin with version 7")
    );
}

#[tokio::test]
async fn changes_with_nulls_where_history_has_none_are_told_with_their_row() {
    let world = world().await;
    let write = async |batch: RecordBatch| {
        let batches = [world.changes(&[]), batch];
        let changes = Changes { version: 1, known_at: 0, batches: &batches, zoneless: Zoneless::Refuse };
        write_changes(&world.store, &Path::from("x"), &world.schema, changes, &world.settings).await.unwrap_err()
    };
    let total: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
    let no_key: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None]));
    let error = write(spine(vec![
        ("customer_id", no_key),
        ("event_timestamp", micros(vec![1, 2])),
        ("total", Arc::clone(&total)),
    ]))
    .await;
    assert_eq!(
        error.to_string(),
        "changes of view spend, row 1: column customer_id is null: history needs it in every row"
    );
    let no_time: ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![None, Some(1)]).with_timezone("UTC"));
    let error = write(spine(vec![("customer_id", keys(2)), ("event_timestamp", no_time), ("total", total)])).await;
    assert_eq!(
        error.to_string(),
        "changes of view spend, row 0: column event_timestamp is null: a row needs its moment"
    );
    let error = write(spine(vec![("customer_id", keys(2)), ("event_timestamp", micros(vec![1, 2]))])).await;
    assert_eq!(error.to_string(), "changes of view spend has no column total");
}

#[tokio::test]
async fn views_that_cannot_be_kept_are_refused() {
    let refused = |keys: Vec<Field>, features: Vec<Field>, buckets| {
        let error = HistorySchema::new("spend", keys, features, buckets).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidConfig);
        error.to_string()
    };
    let key = || Field::new("id", DataType::Int64, false);
    assert_eq!(refused(vec![], vec![], 1), "view spend: there is no key column: name at least one");
    assert!(refused(vec![key()], vec![], 0).starts_with("view spend: 0 buckets"));
    let message = refused(vec![key()], vec![Field::new("_version", DataType::Int64, true)], 1);
    assert_eq!(message, "view spend: two columns are called _version: rename one");
    let message = refused(vec![Field::new("id", DataType::Float64, false)], vec![], 1);
    assert_eq!(message, "view spend: key id is Float64, expected Int64 or Utf8: cast it in the view");
}

#[tokio::test]
async fn files_that_are_not_what_they_are_listed_as_are_found() {
    let mut world = world().await;
    world.merge(0..=0).await;
    let good = || {
        spine(vec![
            ("customer_id", Arc::new(Int64Array::from_iter_values(0..20)) as ArrayRef),
            ("at", micros(vec![20; 20])),
        ])
    };
    let ask = async |files: Vec<holdfast_features::HistoryFile>, schema: &HistorySchema| {
        let spine = good();
        let columns = spine.schema();
        let view = FeatureView::all(schema.clone(), History::new(schema, files)?);
        join(&world.store, vec![spine], &columns, vec![view], Options::new("at")).await
    };
    let told = |found: Result<Vec<RecordBatch>, FeatureError>, part: &str| {
        let error = found.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CorruptData, "{error}");
        assert!(error.to_string().contains(part), "{error}");
    };
    let (first, second) = (world.files[0].clone(), world.files[1].clone());
    let swapped = holdfast_features::HistoryFile { bucket: second.bucket, ..first.clone() };
    told(ask(vec![swapped], &world.schema).await, "listed as bucket");
    let short = holdfast_features::HistoryFile { rows: first.rows + 1, ..first.clone() };
    told(ask(vec![short], &world.schema).await, "listed with");
    let again = holdfast_features::HistoryFile { versions: 0..=3, ..first.clone() };
    told(ask(vec![first.clone(), again], &world.schema).await, "both hold version 0");
    let other = HistorySchema::new("spend", KeyKind::Int.fields(), vec![Field::new("total", DataType::Utf8, true)], 2);
    told(ask(vec![first.clone()], &other.unwrap()).await, "column total is Int64, the view has Utf8");
    let beyond = holdfast_features::HistoryFile { bucket: 9, ..first.clone() };
    told(ask(vec![beyond], &world.schema).await, "has 2 buckets");
    // Cut short, and gone.
    let bytes = world.store.get(&first.path).await.unwrap().bytes().await.unwrap();
    world.store.put(&first.path, bytes.slice(..bytes.len() / 2).into()).await.unwrap();
    let found = ask(vec![first.clone()], &world.schema).await.unwrap_err();
    assert!(found.to_string().starts_with(&format!("history file {}", first.path)), "{found}");
    world.store.delete(&first.path).await.unwrap();
    assert_eq!(ask(vec![first], &world.schema).await.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn only_files_that_belong_together_are_merged() {
    let world = world().await;
    let merge = async |files: &[holdfast_features::HistoryFile]| {
        let merged = compact(&world.store, &Path::from("x"), &world.schema, files, &world.settings).await;
        merged.unwrap_err().to_string()
    };
    assert_eq!(merge(&[]).await, "view spend: there are no files to merge");
    assert_eq!(merge(&world.files).await, "view spend: only files of one bucket can be merged");
    let twice = [world.files[0].clone(), world.files[0].clone()];
    assert_eq!(merge(&twice).await, "view spend: two of the files to merge hold the same version");
}

#[tokio::test]
async fn a_batch_with_other_columns_than_announced_is_refused() {
    let world = world().await;
    let announced = Arc::new(Schema::new(vec![
        Field::new("customer_id", DataType::Int64, true),
        Field::new("at", DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), true),
    ]));
    let batch = spine(vec![("at", micros(vec![20])), ("customer_id", keys(1))]);
    let views = vec![world.view(&Asked::default())];
    let error = join(&world.store, vec![batch], &announced, views, Options::new("at")).await.unwrap_err();
    assert!(error.to_string().starts_with("a batch of the spine has other columns than announced"), "{error}");
}
