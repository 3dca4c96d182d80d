//! A file of history: what its footer says, and which parts of it matter to a spine.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::datatypes::{DataType, Int64Type, TimestampMicrosecondType};
use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use parquet::arrow::arrow_reader::statistics::StatisticsConverter;
use parquet::arrow::arrow_reader::{ArrowReaderMetadata, ArrowReaderOptions, RowSelection, RowSelector};
use parquet::arrow::async_reader::{AsyncFileReader, ParquetRecordBatchStream};
use parquet::arrow::{ParquetRecordBatchStreamBuilder, ProjectionMask};
use parquet::errors::Result as ParquetResult;
use parquet::file::metadata::{PageIndexPolicy, ParquetMetaData, ParquetMetaDataReader, RowGroupMetaData};

use crate::history::{DELETED, EVENT_TIMESTAMP, HistoryFile, HistorySchema, KNOWN_AT};
use crate::merge::Rules;
use crate::spine::{Bound, SpineBucket};
use crate::write::BUCKET_KEY;
use crate::{FeatureError, Result};

/// How much of a file's end is fetched at once: its footer, and mostly its page index, too.
const FOOTER_BYTES: usize = 64 << 10;

/// A file whose footer has been read and found to be what it is listed as.
#[derive(Debug)]
pub(crate) struct OpenFile {
    file: HistoryFile,
    metadata: ArrowReaderMetadata,
}

/// The part of a file that matters.
#[derive(Debug)]
pub(crate) struct Plan {
    row_groups: Vec<usize>,
    selection: Option<RowSelection>,
}

impl OpenFile {
    /// One request, or two for a long footer.
    pub(crate) async fn open(store: &Arc<dyn ObjectStore>, schema: &HistorySchema, file: &HistoryFile) -> Result<Self> {
        let options = ArrowReaderOptions::new().with_page_index_policy(PageIndexPolicy::Optional);
        let metadata = ArrowReaderMetadata::load_async(&mut Stored::new(store, file), options)
            .await
            .map_err(FeatureError::parquet(&file.path))?;
        let opened = Self { file: file.clone(), metadata };
        opened.check(schema)?;
        Ok(opened)
    }

    fn check(&self, schema: &HistorySchema) -> Result<()> {
        let wrong = |reason: String| Err(FeatureError::File { file: self.file.path.to_string(), reason });
        let metadata = self.metadata.metadata();
        let footer = metadata.file_metadata();
        let expected = format!("{} of {}", self.file.bucket, schema.buckets());
        let found = footer.key_value_metadata().and_then(|pairs| pairs.iter().find(|pair| pair.key == BUCKET_KEY));
        match found.and_then(|pair| pair.value.as_deref()) {
            Some(found) if found == expected => {}
            Some(found) => return wrong(format!("holds bucket {found}, listed as bucket {expected}")),
            None => return wrong("was not written as history: it does not say its bucket".to_owned()),
        }
        if u64::try_from(footer.num_rows()).ok() != Some(self.file.rows) {
            return wrong(format!("has {} rows, listed with {}", footer.num_rows(), self.file.rows));
        }
        for field in schema.file_schema().fields() {
            match self.metadata.schema().field_with_name(field.name()) {
                Ok(found) if found.data_type() == field.data_type() => {}
                Ok(found) => {
                    let (name, found, expected) = (field.name(), found.data_type(), field.data_type());
                    return wrong(format!("column {name} is {found}, the view has {expected}"));
                }
                Err(_) => return wrong(format!("has no column {}", field.name())),
            }
        }
        let order = schema.order().count();
        let is_sorted = |group: &RowGroupMetaData| {
            group.sorting_columns().is_some_and(|columns| {
                columns.len() == order && (0..).zip(columns).all(|(at, by)| by.column_idx == at && !by.descending)
            })
        };
        if !metadata.row_groups().iter().all(is_sorted) {
            return wrong("does not say that it is sorted by key, event time and known time".to_owned());
        }
        Ok(())
    }

    /// Whether any row may be a deletion.
    pub(crate) fn may_have_deletions(&self) -> bool {
        let converter = self.statistics(DELETED);
        let maxes = converter.and_then(|converter| converter.row_group_maxes(self.groups()).ok());
        maxes.is_none_or(|maxes| maxes.as_boolean_opt().is_none_or(|maxes| maxes.iter().any(|max| max != Some(false))))
    }

    /// When the last row became known, if the file says so.
    pub(crate) fn known_last(&self) -> Option<i64> {
        let maxes = self.statistics(KNOWN_AT)?.row_group_maxes(self.groups()).ok()?;
        let maxes = maxes.as_primitive_opt::<TimestampMicrosecondType>()?;
        if maxes.null_count() > 0 { None } else { maxes.values().iter().copied().max() }
    }

    /// What of the file has rows that a key of the spine could see at one of its moments. `None`: nothing.
    pub(crate) fn plan(&self, schema: &HistorySchema, spine: &SpineBucket, rules: &Rules) -> Option<Plan> {
        let first_key = schema.keys().first()?.name();
        let keys = self.statistics(first_key);
        let bounds = |of: Option<ArrayRef>| of.unwrap_or_else(|| arrow::array::new_null_array(&DataType::Null, 0));
        let (lows, highs) = (
            bounds(keys.as_ref().and_then(|keys| keys.row_group_mins(self.groups()).ok())),
            bounds(keys.as_ref().and_then(|keys| keys.row_group_maxes(self.groups()).ok())),
        );
        let events = self.first_moments(EVENT_TIMESTAMP);
        let knowns = if rules.known_only { self.first_moments(KNOWN_AT) } else { Vec::new() };
        let since = |group: usize| {
            let event = events.get(group).copied().flatten().unwrap_or(i64::MIN);
            event.max(knowns.get(group).copied().flatten().unwrap_or(i64::MIN))
        };
        let row_groups: Vec<usize> = (0..self.metadata.metadata().num_row_groups())
            .filter(|&group| spine.touches(bound(&lows, group), bound(&highs, group), since(group)))
            .collect();
        if row_groups.is_empty() {
            return None;
        }
        let selection = keys.and_then(|keys| self.pages(&keys, &row_groups, spine, since));
        if selection.as_ref().is_some_and(|selection| !selection.selects_any()) {
            return None;
        }
        Some(Plan { row_groups, selection })
    }

    /// The pages of the row groups that have keys of the spine. `None` when that is all of them, or they do not say.
    fn pages(
        &self,
        keys: &StatisticsConverter<'_>,
        row_groups: &[usize],
        spine: &SpineBucket,
        since: impl Fn(usize) -> i64,
    ) -> Option<RowSelection> {
        let metadata = self.metadata.metadata();
        let (columns, offsets) = (metadata.column_index()?, metadata.offset_index()?);
        let mut selectors = Vec::new();
        for group in row_groups {
            let lows = keys.data_page_mins(columns, offsets, [group]).ok()?;
            let highs = keys.data_page_maxes(columns, offsets, [group]).ok()?;
            let counts = keys.data_page_row_counts(offsets, metadata.row_groups(), [group]).ok()??;
            for (page, count) in counts.values().iter().enumerate() {
                let count = usize::try_from(*count).ok()?;
                let touched = spine.touches(bound(&lows, page), bound(&highs, page), since(*group));
                selectors.push(if touched { RowSelector::select(count) } else { RowSelector::skip(count) });
            }
        }
        selectors.iter().any(|selector| selector.skip).then(|| RowSelection::from(selectors))
    }

    /// The first moment of each row group, where it is known.
    fn first_moments(&self, column: &str) -> Vec<Option<i64>> {
        let mins = self.statistics(column).and_then(|column| column.row_group_mins(self.groups()).ok());
        mins.and_then(|mins| Some(mins.as_primitive_opt::<TimestampMicrosecondType>()?.iter().collect()))
            .unwrap_or_default()
    }

    fn statistics(&self, column: &str) -> Option<StatisticsConverter<'_>> {
        StatisticsConverter::try_new(column, self.metadata.schema(), self.metadata.parquet_schema()).ok()
    }

    fn groups(&self) -> impl Iterator<Item = &RowGroupMetaData> {
        self.metadata.metadata().row_groups().iter()
    }

    /// The rows of a plan, in order, with the columns that `wanted` names.
    pub(crate) fn read(
        &self,
        store: &Arc<dyn ObjectStore>,
        plan: Plan,
        wanted: impl Fn(&str) -> bool,
        batch_rows: usize,
    ) -> Result<ParquetRecordBatchStream<Stored>> {
        let columns = self.metadata.schema().fields().iter().enumerate();
        let columns = columns.filter(|(_, field)| wanted(field.name())).map(|(at, _)| at);
        let projection = ProjectionMask::roots(self.metadata.parquet_schema(), columns);
        let mut builder =
            ParquetRecordBatchStreamBuilder::new_with_metadata(Stored::new(store, &self.file), self.metadata.clone())
                .with_projection(projection)
                .with_batch_size(batch_rows)
                .with_row_groups(plan.row_groups);
        if let Some(selection) = plan.selection {
            builder = builder.with_row_selection(selection);
        }
        builder.build().map_err(FeatureError::parquet(&self.file.path))
    }

    /// All rows, in order, with the columns of the view's files.
    pub(crate) fn read_all(
        &self,
        store: &Arc<dyn ObjectStore>,
        schema: &HistorySchema,
        batch_rows: usize,
    ) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let all = Plan { row_groups: (0..self.metadata.metadata().num_row_groups()).collect(), selection: None };
        let expected = Arc::clone(schema.file_schema());
        let path = self.file.path.clone();
        let batches = self.read(store, all, |_| true, batch_rows)?;
        let batches = batches.map_err(FeatureError::parquet(&path)).map(move |batch| {
            let batch = batch?;
            let columns = expected.fields().iter().map(|field| column(&batch, &path, field.name()).cloned());
            Ok(RecordBatch::try_new(Arc::clone(&expected), columns.collect::<Result<_>>()?)?)
        });
        Ok(batches.boxed())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.file.path
    }

    pub(crate) fn versions_end(&self) -> i64 {
        *self.file.versions.end()
    }
}

/// All rows of a file of history, in its order: by key, event time, known time and version.
///
/// # Errors
/// A file that is not what it is listed as; what the store says, also later, as an item of the stream.
pub async fn read_history_file(
    store: &Arc<dyn ObjectStore>,
    schema: &HistorySchema,
    file: &HistoryFile,
    batch_rows: usize,
) -> Result<BoxStream<'static, Result<RecordBatch>>> {
    OpenFile::open(store, schema, file).await?.read_all(store, schema, batch_rows)
}

/// A column that [`OpenFile::check`] has seen.
pub(crate) fn column<'a>(batch: &'a RecordBatch, path: &Path, name: &str) -> Result<&'a ArrayRef> {
    batch
        .column_by_name(name)
        .ok_or_else(|| FeatureError::MissingColumn { place: format!("history file {path}"), column: name.to_owned() })
}

/// A file as the Parquet library reads it.
#[derive(Debug)]
pub(crate) struct Stored {
    store: Arc<dyn ObjectStore>,
    path: Path,
    bytes: u64,
}

impl Stored {
    fn new(store: &Arc<dyn ObjectStore>, file: &HistoryFile) -> Self {
        Self { store: Arc::clone(store), path: file.path.clone(), bytes: file.bytes }
    }
}

impl AsyncFileReader for Stored {
    fn get_bytes(&mut self, range: Range<u64>) -> BoxFuture<'_, ParquetResult<Bytes>> {
        async move { Ok(self.store.get_range(&self.path, range).await?) }.boxed()
    }

    fn get_byte_ranges(&mut self, ranges: Vec<Range<u64>>) -> BoxFuture<'_, ParquetResult<Vec<Bytes>>> {
        async move { Ok(self.store.get_ranges(&self.path, &ranges).await?) }.boxed()
    }

    fn get_metadata<'a>(
        &'a mut self,
        options: Option<&'a ArrowReaderOptions>,
    ) -> BoxFuture<'a, ParquetResult<Arc<ParquetMetaData>>> {
        let policy = options.map_or(PageIndexPolicy::Skip, ArrowReaderOptions::column_index_policy);
        let bytes = self.bytes;
        async move {
            let reader = ParquetMetaDataReader::new().with_column_index_policy(policy).with_offset_index_policy(policy);
            Ok(Arc::new(reader.with_prefetch_hint(Some(FOOTER_BYTES)).load_and_finish(self, bytes).await?))
        }
        .boxed()
    }
}

fn bound(bounds: &ArrayRef, at: usize) -> Bound<'_> {
    if at >= bounds.len() || bounds.is_null(at) {
        return Bound::Unknown;
    }
    match bounds.data_type() {
        DataType::Int64 => Bound::Int(bounds.as_primitive::<Int64Type>().value(at)),
        DataType::Utf8 => Bound::Bytes(bounds.as_string::<i32>().value(at).as_bytes()),
        _ => Bound::Unknown,
    }
}
