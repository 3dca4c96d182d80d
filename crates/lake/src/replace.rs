//! Rows in the place of others: files that hold a row which goes are written again without it, together with the rows that come; all others stay as they are.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, RecordBatch, StringArray};
use arrow::compute::{concat_batches, filter_record_batch, lexsort_to_indices, take_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::row::{OwnedRow, RowConverter, SortField};
use datafusion::common::ScalarValue;
use datafusion::common::stats::Precision;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::execution::memory_pool::{MemoryConsumer, UnboundedMemoryPool};
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::{LexOrdering, PhysicalSortExpr};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet};
use datafusion::physical_plan::sorts::streaming_merge::StreamingMergeBuilder;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use deltalake_core::kernel::Add;
use futures::{StreamExt, TryStreamExt};
use holdfast_types::Promise;

use crate::Result;
use crate::changes::{CHANGE_TYPE, DELETED, INSERTED, with_change_type};
use crate::error::LakeError;
use crate::lake::Lake;
use crate::order::{ASCENDING, SORTED_BY_TAG, sort_columns};
use crate::provider::LakeTableProvider;
use crate::statistics::{from_json, partition_scalar};
use crate::table::{StagedFile, Table};
use crate::writer::{PartitionValues, TableWriter, WriterSettings, split};

/// Partitions that are written at the same time.
const PARTITIONS_AT_ONCE: usize = 2;
/// Rows of a merged batch.
const BATCH_ROWS: usize = 8_192;
/// Rows of change data are written together up to so many.
const ROW_GROUP_ROWS: usize = 64 * 1024;
/// What writing files again may hold where their rows have to be sorted anew.
const SORT_BYTES: usize = 256 << 20;

/// Rows that came and rows that went, each with the table's columns.
#[derive(Debug, Clone, Default)]
pub struct RowChanges {
    /// Rows that are to go, as often as each is to.
    pub removed: Vec<RecordBatch>,
    /// Rows that are to come.
    pub added: Vec<RecordBatch>,
}

/// Staged files that put rows in the place of others: for [`crate::ChangeKind::Replace`].
#[derive(Debug, Default)]
pub struct Replacement {
    /// The files whose place they take.
    pub removed: Vec<String>,
    /// What comes in their place, and new files.
    pub files: Vec<StagedFile>,
    /// Change data.
    pub told: Vec<StagedFile>,
}

impl Replacement {
    /// What it wrote.
    pub fn bytes(&self) -> u64 {
        self.files.iter().chain(&self.told).map(|file| file.bytes).sum()
    }
}

impl RowChanges {
    /// What turns the rows of `before` into those of `after`: what is on both sides is left out, as often as it is.
    ///
    /// # Errors
    /// When rows of these columns cannot be compared.
    pub fn between(schema: &SchemaRef, before: &[RecordBatch], after: &[RecordBatch]) -> Result<Self, ArrowError> {
        let mut rows = CountedRows::new(schema)?;
        rows.add(before)?;
        let mut added = Vec::new();
        for batch in after {
            // What was there and still is stays out, and is no longer counted as gone.
            let new = rows.keep(batch)?;
            if new.num_rows() > 0 {
                added.push(new);
            }
        }
        // Of equal rows the last are the ones that are gone: which, makes no difference.
        let mut removed = Vec::new();
        for batch in before.iter().rev() {
            let gone = rows.take(batch)?;
            if gone.num_rows() > 0 {
                removed.push(gone);
            }
        }
        Ok(Self { removed, added })
    }

    /// Whether nothing came or went.
    pub fn is_empty(&self) -> bool {
        self.removed.is_empty() && self.added.is_empty()
    }

    /// How many rows come.
    pub fn rows_added(&self) -> u64 {
        self.added.iter().map(|batch| batch.num_rows() as u64).sum()
    }

    /// How many rows go.
    pub fn rows_removed(&self) -> u64 {
        self.removed.iter().map(|batch| batch.num_rows() as u64).sum()
    }
}

/// Rows, and how often each is there.
struct CountedRows {
    converter: RowConverter,
    rows: HashMap<OwnedRow, u64>,
}

impl CountedRows {
    fn new(schema: &SchemaRef) -> Result<Self, ArrowError> {
        let fields = schema.fields().iter().map(|field| SortField::new(field.data_type().clone())).collect();
        Ok(Self { converter: RowConverter::new(fields)?, rows: HashMap::new() })
    }

    fn add(&mut self, batches: &[RecordBatch]) -> Result<(), ArrowError> {
        for batch in batches {
            for row in &self.converter.convert_columns(batch.columns())? {
                *self.rows.entry(row.owned()).or_default() += 1;
            }
        }
        Ok(())
    }

    /// Takes each row of the batch that is there off once. `true` for those.
    fn taken(&mut self, batch: &RecordBatch) -> Result<BooleanArray, ArrowError> {
        let rows = self.converter.convert_columns(batch.columns())?;
        Ok(rows
            .iter()
            .map(|row| match self.rows.get_mut(&row.owned()) {
                Some(count) if *count > 0 => {
                    *count -= 1;
                    Some(true)
                }
                _ => Some(false),
            })
            .collect())
    }

    /// The rows that are not there; those that are, are taken off.
    fn keep(&mut self, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        if self.rows.is_empty() {
            return Ok(batch.clone());
        }
        let taken = self.taken(batch)?;
        filter_record_batch(batch, &arrow::compute::not(&taken)?)
    }

    /// The rows that are there, which are taken off.
    fn take(&mut self, batch: &RecordBatch) -> Result<RecordBatch, ArrowError> {
        let taken = self.taken(batch)?;
        filter_record_batch(batch, &taken)
    }

    fn left(&self) -> u64 {
        self.rows.values().sum()
    }
}

/// What happens to one partition.
#[derive(Default)]
struct PartitionChange {
    removed: Vec<RecordBatch>,
    added: Vec<RecordBatch>,
}

impl Lake {
    /// Stages what makes `changes` of the table: reads and writes only files that may hold a row that goes, of the partitions concerned. Rows that come are
    /// sorted in among theirs where the table's files are sorted. Nothing is part of the table before a commit names it.
    ///
    /// Holds the changes and a few batches a file in memory.
    ///
    /// # Errors
    /// A broken promise when a row that is to go is not there; what the store answers. Staged files are deleted then, unless the process dies.
    pub async fn stage_replacement(&self, table: &Table, changes: &RowChanges) -> Result<Replacement> {
        let failed = || LakeError::merge(table.name());
        let mut partitions: BTreeMap<PartitionValues, PartitionChange> = BTreeMap::new();
        let in_files = table.schema().fields().len() - table.partition_columns().len();
        for batch in &changes.removed {
            for (values, rows) in split(batch, in_files).map_err(|error| failed()(error.into()))? {
                partitions.entry(values).or_default().removed.push(rows);
            }
        }
        for batch in &changes.added {
            for (values, rows) in split(batch, in_files).map_err(|error| failed()(error.into()))? {
                partitions.entry(values).or_default().added.push(rows);
            }
        }
        let mut files: HashMap<PartitionValues, Vec<Add>> = HashMap::new();
        for add in table.files() {
            let values = table.partition_columns().iter().map(|name| add.partition_values.get(name).cloned().flatten());
            files.entry(values.collect()).or_default().push(add);
        }
        let work: Vec<_> = partitions
            .into_iter()
            .map(|(values, change)| {
                let files = files.remove(&values).unwrap_or_default();
                self.stage_partition(table, change, files)
            })
            .collect();
        let mut staged = Replacement::default();
        let mut failure = None;
        let mut parts = futures::stream::iter(work).buffer_unordered(PARTITIONS_AT_ONCE);
        while let Some(part) = parts.next().await {
            match part {
                Ok(part) => {
                    staged.removed.extend(part.removed);
                    staged.files.extend(part.files);
                }
                Err(error) => failure = failure.or(Some(error)),
            }
        }
        drop(parts);
        if failure.is_none() && !changes.removed.is_empty() {
            match write_told(table, changes).await {
                Ok(told) => staged.told = told,
                Err(error) => failure = Some(error),
            }
        }
        match failure {
            None => Ok(staged),
            Some(error) => {
                self.discard(staged.files.into_iter().chain(staged.told).collect(), table).await;
                Err(error)
            }
        }
    }

    async fn stage_partition(&self, table: &Table, change: PartitionChange, files: Vec<Add>) -> Result<Replacement> {
        let failed = || LakeError::merge(table.name());
        let order = sort_columns(table.schema(), table.partition_columns());
        let mut added = sorted(table.schema(), &order, &change.added).map_err(|error| failed()(error.into()))?;
        let mut going = CountedRows::new(table.schema()).map_err(|error| failed()(error.into()))?;
        going.add(&change.removed).map_err(|error| failed()(error.into()))?;
        let mut staged = Replacement::default();
        for file in files {
            if going.left() == 0 {
                break;
            }
            if !may_hold(table, &file, &change.removed, &order) {
                continue;
            }
            let before = going.left();
            let written = self.write_again(table, &file, &mut going, &added).await;
            let written = match written {
                Ok(written) => written,
                Err(error) => {
                    self.discard(staged.files, table).await;
                    return Err(error);
                }
            };
            if going.left() == before {
                // None of its rows goes: it stays as it is.
                self.discard(written, table).await;
                continue;
            }
            staged.removed.push(file.path);
            staged.files.extend(written);
            added.clear();
        }
        let left = going.left();
        let held = Promise::Stg1.check(left == 0, || format!("{left} rows that are to go are not in {}", table.name()));
        if let Err(broken) = held {
            self.discard(staged.files, table).await;
            return Err(broken.into());
        }
        if !added.is_empty() {
            let mut writer = TableWriter::new(table, WriterSettings::default());
            for batch in &added {
                writer.write(batch).await?;
            }
            staged.files.extend(writer.close().await?);
        }
        Ok(staged)
    }

    /// The file's rows without those that go, with `added` among them in their order.
    async fn write_again(
        &self,
        table: &Table,
        file: &Add,
        going: &mut CountedRows,
        added: &[RecordBatch],
    ) -> Result<Vec<StagedFile>> {
        let failed = || LakeError::merge(table.name());
        let schema = table.schema();
        let context = self.task_context(SORT_BYTES).map_err(failed())?;
        let scan = LakeTableProvider::new(table.clone(), Arc::clone(schema), vec![file.clone()])
            .scan_each_file()
            .map_err(failed())?;
        let rows = scan.execute(0, context).map_err(failed())?;
        let is_sorted = file.tags.as_ref().is_some_and(|tags| tags.contains_key(SORTED_BY_TAG));
        let columns = sort_columns(schema, table.partition_columns());
        let order = LexOrdering::new(columns.iter().map(|column| {
            PhysicalSortExpr::new(Arc::new(Column::new(schema.field(*column).name(), *column)), ASCENDING)
        }));
        let (sender, receiver) = tokio::sync::mpsc::channel(2);
        let kept = RecordBatchStreamAdapter::new(
            Arc::clone(schema),
            futures::stream::unfold(receiver, |mut receiver| async move { Some((receiver.recv().await?, receiver)) }),
        );
        let filtering = async {
            let mut rows = rows;
            while let Some(batch) = rows.next().await {
                let kept = batch.and_then(|batch| Ok(going.keep(&batch)?));
                let is_error = kept.is_err();
                if sender.send(kept).await.is_err() || is_error {
                    break;
                }
            }
            drop(sender);
        };
        let writing = async {
            let kept: SendableRecordBatchStream = Box::pin(kept);
            let mut merged: SendableRecordBatchStream = match order {
                Some(order) if is_sorted && !added.is_empty() => {
                    let pool: Arc<dyn datafusion::execution::memory_pool::MemoryPool> =
                        Arc::new(UnboundedMemoryPool::default());
                    StreamingMergeBuilder::new()
                        .with_streams(vec![kept, in_memory(schema, added)])
                        .with_schema(Arc::clone(schema))
                        .with_expressions(&order)
                        .with_metrics(BaselineMetrics::new(&ExecutionPlanMetricsSet::new(), 0))
                        .with_batch_size(BATCH_ROWS)
                        .with_reservation(MemoryConsumer::new("rows in the place of others").register(&pool))
                        .build()
                        .map_err(failed())?
                }
                _ => Box::pin(RecordBatchStreamAdapter::new(Arc::clone(schema), kept.chain(in_memory(schema, added)))),
            };
            let mut writer = TableWriter::new(table, WriterSettings::default());
            while let Some(batch) = merged.try_next().await.map_err(failed())? {
                writer.write(&batch).await?;
            }
            writer.close().await
        };
        let (_, written) = futures::join!(filtering, writing);
        written
    }
}

fn in_memory(schema: &SchemaRef, batches: &[RecordBatch]) -> SendableRecordBatchStream {
    let batches: Vec<_> = batches.iter().cloned().map(Ok).collect();
    Box::pin(RecordBatchStreamAdapter::new(Arc::clone(schema), futures::stream::iter(batches)))
}

/// The rows in the order that files are to have.
fn sorted(schema: &SchemaRef, order: &[usize], batches: &[RecordBatch]) -> Result<Vec<RecordBatch>, ArrowError> {
    if batches.is_empty() || order.is_empty() {
        return Ok(batches.to_vec());
    }
    let rows = concat_batches(schema, batches)?;
    let columns: Vec<_> = order
        .iter()
        .map(|column| arrow::compute::SortColumn { values: Arc::clone(rows.column(*column)), options: Some(ASCENDING) })
        .collect();
    let sorted = take_record_batch(&rows, &lexsort_to_indices(&columns, None)?)?;
    Ok((0..sorted.num_rows())
        .step_by(BATCH_ROWS)
        .map(|start| sorted.slice(start, BATCH_ROWS.min(sorted.num_rows() - start)))
        .collect())
}

/// Whether a file may hold one of the rows, as far as the log's statistics of the first column in its order (or the first at all) say.
fn may_hold(table: &Table, file: &Add, rows: &[RecordBatch], order: &[usize]) -> bool {
    let column = order.first().copied().unwrap_or(0);
    let schema = table.schema();
    let partition_values: Option<Vec<ScalarValue>> = table
        .partition_columns()
        .iter()
        .map(|name| {
            let text = file.partition_values.get(name).and_then(Option::as_deref);
            partition_scalar(text, schema.field_with_name(name).ok()?.data_type())
        })
        .collect();
    let Some(partition_values) = partition_values else { return true };
    let known = from_json(file.stats.as_deref(), schema, &partition_values);
    let Some(known) = known.column_statistics.get(column) else { return true };
    let (Precision::Exact(min), Precision::Exact(max)) = (&known.min_value, &known.max_value) else { return true };
    let has_nulls = known.null_count != Precision::Exact(0);
    rows.iter().any(|batch| {
        let values: &ArrayRef = batch.column(column);
        (0..values.len()).any(|row| match ScalarValue::try_from_array(values, row) {
            Ok(value) if value.is_null() => has_nulls,
            Ok(value) => {
                let below = value.partial_cmp(min) == Some(std::cmp::Ordering::Less);
                let above = value.partial_cmp(max) == Some(std::cmp::Ordering::Greater);
                !below && !above
            }
            Err(_) => true,
        })
    })
}

/// Change data of the rows: those that went, then those that came.
async fn write_told(table: &Table, changes: &RowChanges) -> Result<Vec<StagedFile>> {
    let schema = with_change_type(table.schema(), table.partition_columns().len());
    let settings = WriterSettings { row_group_rows_max: ROW_GROUP_ROWS, ..WriterSettings::default() };
    let mut writer = TableWriter::for_changes(table, Arc::clone(&schema), settings);
    let kinds = [(DELETED, &changes.removed), (INSERTED, &changes.added)];
    for (kind, batches) in kinds {
        for batch in batches {
            let in_files = batch.num_columns() - table.partition_columns().len();
            let kinds: ArrayRef = Arc::new(StringArray::from_iter_values(std::iter::repeat_n(kind, batch.num_rows())));
            let columns = batch.columns();
            let columns = columns[..in_files].iter().cloned().chain([kinds]).chain(columns[in_files..].iter().cloned());
            let told = RecordBatch::try_new(Arc::clone(&schema), columns.collect())
                .map_err(|error| LakeError::merge(table.name())(error.into()))?;
            debug_assert!(told.column_by_name(CHANGE_TYPE).is_some());
            writer.write(&told).await?;
        }
    }
    writer.close().await
}

#[cfg(test)]
mod tests {
    use arrow::array::Int64Array;
    use arrow::datatypes::{DataType, Field, Schema};

    use super::*;

    fn rows(values: &[(i64, Option<i64>)]) -> RecordBatch {
        let schema =
            Schema::new(vec![Field::new("key", DataType::Int64, true), Field::new("value", DataType::Int64, true)]);
        let keys = Int64Array::from_iter_values(values.iter().map(|(key, _)| *key));
        let values = Int64Array::from_iter(values.iter().map(|(_, value)| *value));
        RecordBatch::try_new(Arc::new(schema), vec![Arc::new(keys), Arc::new(values)]).unwrap()
    }

    fn values(batches: &[RecordBatch]) -> Vec<(i64, Option<i64>)> {
        use arrow::array::AsArray;
        use arrow::datatypes::Int64Type;
        let mut found: Vec<_> = batches
            .iter()
            .flat_map(|batch| {
                let keys = batch.column(0).as_primitive::<Int64Type>().clone();
                let values = batch.column(1).as_primitive::<Int64Type>().clone();
                (0..batch.num_rows())
                    .map(move |row| (keys.value(row), values.is_valid(row).then(|| values.value(row))))
                    .collect::<Vec<_>>()
            })
            .collect();
        found.sort();
        found
    }

    #[test]
    fn rows_on_both_sides_are_no_change_as_often_as_they_are_on_both() {
        let before = rows(&[(1, Some(1)), (1, Some(1)), (2, None), (3, Some(3))]);
        let after = rows(&[(1, Some(1)), (2, None), (2, None), (4, Some(4))]);
        let schema = before.schema();
        let changes = RowChanges::between(&schema, std::slice::from_ref(&before), &[after]).unwrap();
        assert_eq!(values(&changes.removed), [(1, Some(1)), (3, Some(3))]);
        assert_eq!(values(&changes.added), [(2, None), (4, Some(4))]);
        assert!(
            RowChanges::between(&schema, std::slice::from_ref(&before), std::slice::from_ref(&before))
                .unwrap()
                .is_empty()
        );
    }
}
