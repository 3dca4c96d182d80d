//! A view with its history in an in-memory store, and a spine to join with it.

use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray,
};
use arrow::datatypes::{DataType, Field, Int8Type, Int64Type, Schema, TimestampMicrosecondType};
use futures::TryStreamExt;
use futures::stream;
use holdfast_features::{
    Changes, FeatureError, FeatureView, History, HistoryFile, HistorySchema, Options, StatusColumns, WriteSettings,
    Zoneless, compact, point_in_time, write_changes,
};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path;

use crate::oracle::Expected;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) key: i64,
    pub(crate) event: i64,
    pub(crate) known: i64,
    pub(crate) version: i64,
    pub(crate) deleted: bool,
    pub(crate) value: Option<i64>,
}

/// What the contract leaves to who asks.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) strict: bool,
    pub(crate) known_only: bool,
    pub(crate) ttl: Option<i64>,
    pub(crate) as_of_version: Option<i64>,
    pub(crate) memory_bytes: usize,
    pub(crate) workers: usize,
}

impl Default for Asked {
    fn default() -> Self {
        Self { strict: false, known_only: true, ttl: None, as_of_version: None, memory_bytes: 64 << 20, workers: 2 }
    }
}

/// How a key looks in columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeyKind {
    Int,
    Text,
    /// Two columns: text that says whether it is odd, and the number.
    Several,
}

impl KeyKind {
    pub(crate) fn fields(self) -> Vec<Field> {
        match self {
            Self::Int => vec![Field::new("customer_id", DataType::Int64, true)],
            Self::Text => vec![Field::new("customer_id", DataType::Utf8, true)],
            Self::Several => {
                vec![Field::new("shop", DataType::Utf8, true), Field::new("number", DataType::Int64, true)]
            }
        }
    }

    pub(crate) fn columns(self, keys: &[Option<i64>]) -> Vec<ArrayRef> {
        // Of different lengths, so that bytes and numbers sort differently.
        let text = |key: &Option<i64>| {
            key.map(|key| format!("c{}", "x".repeat(usize::try_from(key % 5).unwrap()) + &key.to_string()))
        };
        match self {
            Self::Int => vec![Arc::new(Int64Array::from(keys.to_vec()))],
            Self::Text => vec![Arc::new(keys.iter().map(text).collect::<StringArray>())],
            Self::Several => vec![
                Arc::new(
                    keys.iter()
                        .map(|key| key.map(|key| if key % 2 == 0 { "even" } else { "odd" }))
                        .collect::<StringArray>(),
                ),
                Arc::new(Int64Array::from(keys.to_vec())),
            ],
        }
    }
}

pub(crate) struct World {
    pub(crate) store: Arc<dyn ObjectStore>,
    pub(crate) schema: HistorySchema,
    pub(crate) keys: KeyKind,
    pub(crate) settings: WriteSettings,
    pub(crate) files: Vec<HistoryFile>,
}

pub(crate) fn micros(values: Vec<i64>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from(values).with_timezone("UTC"))
}

pub(crate) fn folder() -> Path {
    Path::from("features/spend")
}

impl World {
    /// A view `spend` with one feature, `total`. Row groups of `rows` rows and pages of half as many.
    pub(crate) fn new(keys: KeyKind, buckets: u32, rows: usize) -> Self {
        let features = vec![Field::new("total", DataType::Int64, true)];
        Self {
            store: Arc::new(InMemory::new()),
            schema: HistorySchema::new("spend", keys.fields(), features, buckets).unwrap(),
            keys,
            settings: WriteSettings {
                row_group_rows: NonZeroUsize::new(rows).unwrap(),
                page_rows: NonZeroUsize::new(rows.div_ceil(2)).unwrap(),
                ..WriteSettings::default()
            },
            files: Vec::new(),
        }
    }

    pub(crate) fn changes(&self, rows: &[Row]) -> RecordBatch {
        let keys: Vec<Option<i64>> = rows.iter().map(|row| Some(row.key)).collect();
        let mut fields = self.keys.fields();
        let mut columns = self.keys.columns(&keys);
        let utc = self.schema.file_schema().field_with_name("known_at").unwrap().data_type().clone();
        fields.extend([
            Field::new("event_timestamp", utc.clone(), true),
            Field::new("known_at", utc, true),
            Field::new("_deleted", DataType::Boolean, true),
            Field::new("total", DataType::Int64, true),
        ]);
        columns.push(micros(rows.iter().map(|row| row.event).collect()));
        columns.push(micros(rows.iter().map(|row| row.known).collect()));
        columns.push(Arc::new(BooleanArray::from_iter(rows.iter().map(|row| Some(row.deleted)))));
        columns.push(Arc::new(Int64Array::from_iter(rows.iter().map(|row| row.value))));
        RecordBatch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
    }

    /// Writes rows of one version, in two batches.
    pub(crate) async fn write(&mut self, version: i64, rows: &[Row]) -> Vec<HistoryFile> {
        let (first, second) = rows.split_at(rows.len() / 2);
        let batches = [self.changes(first), self.changes(second)];
        let changes = Changes { version, known_at: 0, batches: &batches, zoneless: Zoneless::Refuse };
        let files = write_changes(&self.store, &folder(), &self.schema, changes, &self.settings).await.unwrap();
        self.files.extend(files.clone());
        files
    }

    /// Merges the files of each bucket that have versions in `versions`.
    pub(crate) async fn merge(&mut self, versions: std::ops::RangeInclusive<i64>) {
        for bucket in 0..self.schema.buckets() {
            let (merged, rest): (Vec<_>, Vec<_>) = std::mem::take(&mut self.files)
                .into_iter()
                .partition(|file| file.bucket == bucket && versions.contains(file.versions.start()));
            self.files = rest;
            if !merged.is_empty() {
                let file = compact(&self.store, &folder(), &self.schema, &merged, &self.settings).await.unwrap();
                self.files.push(file);
            }
        }
    }

    pub(crate) fn view(&self, asked: &Asked) -> FeatureView {
        let history = History::new(&self.schema, self.files.clone()).unwrap();
        let mut view = FeatureView::all(self.schema.clone(), history);
        view.ttl = asked.ttl.map(|ttl| Duration::from_micros(ttl.try_into().unwrap()));
        view.as_of_version = asked.as_of_version;
        view
    }

    pub(crate) fn options(asked: &Asked) -> Options {
        Options {
            strict: asked.strict,
            known_only: asked.known_only,
            status: StatusColumns::Value,
            event_timestamps: true,
            memory_bytes: asked.memory_bytes,
            workers: NonZeroUsize::new(asked.workers).unwrap(),
            batch_rows: NonZeroUsize::new(3000).unwrap(),
            ..Options::new("at")
        }
    }

    /// The spine in batches of `batch_rows`: keys, `at`, and `row`, which counts them.
    pub(crate) fn spine(&self, rows: &[(Option<i64>, i64)], batch_rows: usize) -> Vec<RecordBatch> {
        let mut fields = self.keys.fields();
        fields.push(Field::new(
            "at",
            self.schema.file_schema().field_with_name("known_at").unwrap().data_type().clone(),
            true,
        ));
        fields.push(Field::new("row", DataType::Int64, false));
        let schema = Arc::new(Schema::new(fields));
        let mut first = 0;
        let mut batches = Vec::new();
        for rows in rows.chunks(batch_rows.max(1)) {
            let mut columns = self.keys.columns(&rows.iter().map(|(key, _)| *key).collect::<Vec<_>>());
            columns.push(micros(rows.iter().map(|(_, at)| *at).collect()));
            columns.push(Arc::new((first..).take(rows.len()).collect::<Int64Array>()));
            first += i64::try_from(rows.len()).unwrap();
            batches.push(RecordBatch::try_new(Arc::clone(&schema), columns).unwrap());
        }
        batches
    }

    /// What is found for each row of the spine. Checks that there is one row for each, in order.
    pub(crate) async fn ask(&self, rows: &[(Option<i64>, i64)], batch_rows: usize, asked: &Asked) -> Vec<Expected> {
        let spine = self.spine(rows, batch_rows);
        let Some(first) = spine.first() else { return Vec::new() };
        let batches = join(&self.store, spine.clone(), &first.schema(), vec![self.view(asked)], Self::options(asked))
            .await
            .unwrap();
        let mut found = Vec::new();
        for batch in batches {
            let column = |name: &str| batch.column_by_name(name).unwrap();
            let counted = column("row").as_primitive::<Int64Type>();
            let values = column("total").as_primitive::<Int64Type>();
            let events = column("spend__event_timestamp").as_primitive::<TimestampMicrosecondType>();
            let (of_value, of_view) = (words(column("total__status")), words(column("spend__status")));
            for row in 0..batch.num_rows() {
                assert_eq!(counted.value(row), i64::try_from(found.len()).unwrap(), "a row is missing or out of order");
                let status = if of_value[row] == "NULL_VALUE" { "PRESENT" } else { of_value[row] };
                assert_eq!(of_view[row], status);
                found.push(Expected {
                    status: of_value[row],
                    value: values.is_valid(row).then(|| values.value(row)),
                    event: events.is_valid(row).then(|| events.value(row)),
                });
            }
        }
        assert_eq!(found.len(), rows.len(), "one row for each of the spine");
        found
    }
}

pub(crate) async fn join(
    store: &Arc<dyn ObjectStore>,
    spine: Vec<RecordBatch>,
    schema: &arrow::datatypes::SchemaRef,
    views: Vec<FeatureView>,
    options: Options,
) -> Result<Vec<RecordBatch>, FeatureError> {
    let found = point_in_time(Arc::clone(store), schema, stream::iter(spine.into_iter().map(Ok)), views, options)?;
    let expected = Arc::clone(found.schema());
    let batches: Vec<RecordBatch> = found.try_collect().await?;
    assert!(batches.iter().all(|batch| batch.schema() == expected));
    Ok(batches)
}

/// The words of a status column.
pub(crate) fn words(column: &ArrayRef) -> Vec<&'static str> {
    let column = column.as_dictionary::<Int8Type>();
    let words = column.values().as_string::<i32>();
    let of = |key: i8| match words.value(usize::try_from(key).unwrap()) {
        "PRESENT" => "PRESENT",
        "NULL_VALUE" => "NULL_VALUE",
        "NOT_FOUND" => "NOT_FOUND",
        "OUTSIDE_MAX_AGE" => "OUTSIDE_MAX_AGE",
        other => panic!("{other} is no status"),
    };
    column.keys().values().iter().map(|&key| of(key)).collect()
}
