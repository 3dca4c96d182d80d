//! Writes changes of a view as sorted files, one a bucket.

use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Int64Array, RecordBatch, TimestampMicrosecondArray};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use object_store::ObjectStore;
use object_store::buffered::BufWriter;
use object_store::path::Path;
use parquet::arrow::AsyncArrowWriter;
use parquet::basic::{Compression, Encoding};
use parquet::file::metadata::{KeyValue, SortingColumn};
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;
use tokio::task::JoinSet;

use crate::history::{DELETED, EVENT_TIMESTAMP, HistoryFile, HistorySchema, KNOWN_AT, VERSION};
use crate::keys::Bucketing;
use crate::moment::{Rounding, Zoneless, micros};
use crate::order::{Ordered, first_null, gather, sort};
use crate::{FeatureError, Result};

/// The key of a file's metadata that says which bucket of how many it is.
pub(crate) const BUCKET_KEY: &str = "holdfast.bucket";

/// How many rows are put in order at a time.
const WRITE_ROWS: usize = 16_384;

/// How files are written.
#[derive(Debug, Clone)]
pub struct WriteSettings {
    /// Rows of a row group: what a reader fetches at once, and holds in memory for each bucket it works on.
    pub row_group_rows: NonZeroUsize,
    /// Rows of a page at most: what a reader with few keys skips.
    pub page_rows: NonZeroUsize,
    /// How pages are compressed.
    pub compression: Compression,
    /// How many buckets are written side by side.
    pub workers: NonZeroUsize,
}

impl Default for WriteSettings {
    fn default() -> Self {
        const fn rows(rows: usize) -> NonZeroUsize {
            match NonZeroUsize::new(rows) {
                Some(rows) => rows,
                None => NonZeroUsize::MIN,
            }
        }
        Self {
            row_group_rows: rows(262_144),
            page_rows: rows(8_192),
            compression: Compression::SNAPPY,
            workers: std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN),
        }
    }
}

/// What a version of a view brought.
#[derive(Debug, Clone, Copy)]
pub struct Changes<'a> {
    /// The version.
    pub version: i64,
    /// When rows became known that do not say so themselves, in microseconds since 1970.
    pub known_at: i64,
    /// Keys, [`EVENT_TIMESTAMP`] and features; [`KNOWN_AT`] and [`DELETED`] where they differ from the above and from `false`. Rows that agree in key, event time and
    /// known time count in the order in which they are given: the last one wins. Memory grows with the changes.
    pub batches: &'a [RecordBatch],
    /// What a timestamp without a zone is.
    pub zoneless: Zoneless,
}

/// Writes the changes into `folder`, one file for each bucket that they touch, and returns these files by bucket. Nothing that is there is read. Writing a version
/// again writes the same rows to the same names. A file appears whole or not at all, but not all files at once: they count when they are listed in a [`crate::History`].
///
/// # Errors
/// A column that is missing or of another type; a null in a key, event time or known time, with its row; what the store says. What was written before an error is
/// not listed anywhere and is written over by the next try.
pub async fn write_changes(
    store: &Arc<dyn ObjectStore>,
    folder: &Path,
    schema: &HistorySchema,
    changes: Changes<'_>,
    settings: &WriteSettings,
) -> Result<Vec<HistoryFile>> {
    let mut batches = Vec::with_capacity(changes.batches.len());
    let mut by_bucket: Vec<Vec<(usize, usize)>> = vec![Vec::new(); usize::try_from(schema.buckets()).unwrap_or(1)];
    let mut first_row = 0;
    for batch in changes.batches {
        let rows = batch.num_rows();
        let batch = as_history(schema, batch, &changes, first_row)?;
        let bucketing = Bucketing::new(&batch.columns()[..schema.keys().len()], schema.buckets());
        for row in 0..rows {
            by_bucket[bucketing.bucket(row)].push((batches.len(), row));
        }
        batches.push(Ordered::new(schema, batch)?);
        first_row += rows;
    }
    let batches = Arc::new(batches);
    let mut tasks = JoinSet::new();
    let mut files = Vec::new();
    for (bucket, mut rows) in (0..).zip(by_bucket) {
        if rows.is_empty() {
            continue;
        }
        if tasks.len() >= settings.workers.get() {
            files.extend(tasks.join_next().await.transpose()?.transpose()?);
        }
        let versions = changes.version..=changes.version;
        let mut file = FileWriter::create(store, folder, schema, bucket, versions, settings)?;
        let batches = Arc::clone(&batches);
        tasks.spawn(async move {
            let batches: Vec<&Ordered> = batches.iter().collect();
            sort(&batches, &mut rows);
            for rows in rows.chunks(WRITE_ROWS) {
                file.write(&gather(&batches, rows)?).await?;
            }
            file.close().await
        });
    }
    while let Some(file) = tasks.join_next().await {
        files.push(file??);
    }
    files.sort_by_key(|file| file.bucket);
    Ok(files)
}

/// The batch with the columns of the view's files.
fn as_history(
    schema: &HistorySchema,
    batch: &RecordBatch,
    changes: &Changes<'_>,
    first_row: usize,
) -> Result<RecordBatch> {
    let place = format!("changes of view {}", schema.view());
    let rows = batch.num_rows();
    let timestamps = |name: &str, column: &ArrayRef| -> Result<ArrayRef> {
        let moments = micros(&place, name, column, changes.zoneless, Rounding::Up, first_row)?;
        Ok(Arc::new(TimestampMicrosecondArray::from(moments).with_timezone("UTC")))
    };
    let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.file_schema().fields().len());
    for field in schema.file_schema().fields() {
        let found = batch.column_by_name(field.name());
        let column: ArrayRef = match (field.name().as_str(), found) {
            (VERSION, _) => Arc::new(Int64Array::from_value(changes.version, rows)),
            (DELETED, None) => Arc::new(BooleanArray::from(vec![false; rows])),
            (KNOWN_AT, None) => {
                Arc::new(TimestampMicrosecondArray::from_value(changes.known_at, rows).with_timezone("UTC"))
            }
            (_, None) => {
                return Err(FeatureError::MissingColumn { place, column: field.name().clone() });
            }
            (name @ (EVENT_TIMESTAMP | KNOWN_AT), Some(column)) => timestamps(name, column)?,
            (name, Some(column)) => fitted(&place, name, column, field.data_type())?,
        };
        if !field.is_nullable()
            && let Some(row) = first_null(&column)
        {
            let reason = "is null: history needs it in every row";
            return Err(FeatureError::Row { place, row: first_row + row, column: field.name().clone(), reason });
        }
        columns.push(column);
    }
    Ok(RecordBatch::try_new(Arc::clone(schema.file_schema()), columns)?)
}

/// The column in the type that is expected, when no value can change on the way.
pub(crate) fn fitted(place: &str, name: &str, column: &ArrayRef, expected: &DataType) -> Result<ArrayRef> {
    if !fits(column.data_type(), expected) {
        return Err(FeatureError::ColumnType {
            place: place.to_owned(),
            column: name.to_owned(),
            found: column.data_type().clone(),
            expected: expected.to_string(),
        });
    }
    if column.data_type() == expected { Ok(Arc::clone(column)) } else { Ok(cast(column, expected)?) }
}

/// Whether values of one type are all values of the other: the same, a narrower integer, another way to keep text.
pub(crate) fn fits(found: &DataType, expected: &DataType) -> bool {
    match (found, expected) {
        (DataType::Dictionary(_, values), _) => found == expected || fits(values, expected),
        (DataType::Int8 | DataType::Int16 | DataType::Int32, DataType::Int64)
        | (DataType::UInt8 | DataType::UInt16 | DataType::UInt32, DataType::Int64)
        | (DataType::LargeUtf8 | DataType::Utf8View, DataType::Utf8) => true,
        _ => found == expected,
    }
}

/// One file on its way.
pub(crate) struct FileWriter {
    writer: AsyncArrowWriter<BufWriter>,
    file: HistoryFile,
}

impl FileWriter {
    pub(crate) fn create(
        store: &Arc<dyn ObjectStore>,
        folder: &Path,
        schema: &HistorySchema,
        bucket: u32,
        versions: RangeInclusive<i64>,
        settings: &WriteSettings,
    ) -> Result<Self> {
        let (first, last) = (versions.start(), versions.end());
        // The name says all there is to say: what is written twice is written to one place.
        let path = folder.clone().join(format!("bucket={bucket}")).join(format!("{first:020}-{last:020}.parquet"));
        let writer = AsyncArrowWriter::try_new(
            BufWriter::new(Arc::clone(store), path.clone()),
            Arc::clone(schema.file_schema()),
            Some(properties(schema, bucket, settings)),
        )
        .map_err(FeatureError::parquet(&path))?;
        Ok(Self { writer, file: HistoryFile { bucket, path, bytes: 0, rows: 0, versions } })
    }

    /// Adds rows, which come in order.
    pub(crate) async fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.file.rows += batch.num_rows() as u64;
        self.writer.write(batch).await.map_err(FeatureError::parquet(&self.file.path))
    }

    pub(crate) async fn close(mut self) -> Result<HistoryFile> {
        self.writer.finish().await.map_err(FeatureError::parquet(&self.file.path))?;
        self.file.bytes = self.writer.bytes_written() as u64;
        Ok(self.file)
    }
}

/// What is mostly distinct is kept as differences; keys and versions repeat. Values of features are named in a dictionary only while that is small: a reader of few pages
/// reads it whole. Features have no statistics: nobody searches by them, and they may be personal.
fn properties(schema: &HistorySchema, bucket: u32, settings: &WriteSettings) -> WriterProperties {
    let sorting = (0..).zip(schema.order()).map(|(column_idx, _)| SortingColumn {
        column_idx,
        descending: false,
        nulls_first: false,
    });
    let column = |name: &str| ColumnPath::new(vec![name.to_owned()]);
    let mut properties = WriterProperties::builder()
        .set_compression(settings.compression)
        .set_max_row_group_row_count(Some(settings.row_group_rows.get()))
        .set_data_page_row_count_limit(settings.page_rows.get())
        .set_write_batch_size(settings.page_rows.get().min(1024))
        .set_statistics_enabled(EnabledStatistics::None)
        .set_dictionary_page_size_limit(64 << 10)
        .set_sorting_columns(Some(sorting.collect()))
        .set_key_value_metadata(Some(vec![KeyValue::new(
            BUCKET_KEY.to_owned(),
            format!("{bucket} of {}", schema.buckets()),
        )]))
        .set_created_by(concat!("holdfast ", env!("CARGO_PKG_VERSION")).to_owned());
    for key in schema.keys() {
        properties = properties
            .set_column_statistics_enabled(column(key.name()), EnabledStatistics::Page)
            .set_column_dictionary_page_size_limit(column(key.name()), 1 << 20);
    }
    let whole_numbers = schema.features().iter().filter(|feature| *feature.data_type() == DataType::Int64);
    for name in [EVENT_TIMESTAMP, KNOWN_AT, VERSION, DELETED] {
        properties = properties.set_column_statistics_enabled(column(name), EnabledStatistics::Chunk);
    }
    for name in [EVENT_TIMESTAMP, KNOWN_AT].into_iter().chain(whole_numbers.map(|feature| feature.name().as_str())) {
        properties = properties
            .set_column_dictionary_enabled(column(name), false)
            .set_column_encoding(column(name), Encoding::DELTA_BINARY_PACKED);
    }
    properties.build()
}
