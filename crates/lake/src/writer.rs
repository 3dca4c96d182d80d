use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{RecordBatch, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::error::ArrowError;
use datafusion::common::ScalarValue;
use deltalake_core::kernel::Add;
use object_store::buffered::BufWriter;
use object_store::path::Path;
use parquet::arrow::AsyncArrowWriter;
use parquet::basic::{Compression, Encoding};
use parquet::errors::ParquetError;
use parquet::file::properties::{EnabledStatistics, WriterProperties};
use parquet::schema::types::ColumnPath;

use crate::Result;
use crate::error::LakeError;
use crate::folder::TableFolder;
use crate::order::{SORTED_BY_TAG, SortedRows, sort_columns, sorted_by};
use crate::schema::{to_delta_compatible, without_columns};
use crate::statistics::{is_personal, to_json};
use crate::table::{StagedFile, Table};

/// Where change data is, within a table.
const CHANGE_DATA: &str = "_change_data/";

/// Limits of a [`TableWriter`].
#[derive(Debug, Clone)]
pub struct WriterSettings {
    /// A file is closed and the next begun once it holds about this much.
    pub file_bytes_max: usize,
    /// The rows of a Parquet row group.
    pub row_group_rows_max: usize,
    /// A row group is written out once its encoded pages hold this much, however few rows it has.
    pub row_group_bytes_max: usize,
}

impl Default for WriterSettings {
    fn default() -> Self {
        Self { file_bytes_max: 256 << 20, row_group_rows_max: 512 * 1024, row_group_bytes_max: 32 << 20 }
    }
}

/// Writes batches into staged Parquet files of a table, one file a partition value at a time.
///
/// Nothing it writes is part of the table until [`crate::Lake::commit`] names it. Rows of one partition keep their order; where that is the one that the table's files are to
/// have, the file is tagged with it. Memory
/// is bounded by the open partitions times a row group; for parallel work use one writer a task.
#[derive(Debug)]
pub struct TableWriter {
    folder: TableFolder,
    /// Where its files go, within the folder; empty, or with a slash at its end.
    below: &'static str,
    settings: WriterSettings,
    properties: WriterProperties,
    file_schema: SchemaRef,
    /// The columns that rows are to be sorted by within a file.
    order: Vec<usize>,
    is_in_order: bool,
    open: HashMap<PartitionValues, OpenFile>,
    closed: Vec<StagedFile>,
}

/// One value a partition column, as the log writes it.
pub(crate) type PartitionValues = Vec<Option<String>>;

struct OpenFile {
    path: String,
    rows: u64,
    /// As long as the rows came in the order that they are to have.
    sorted: Option<SortedRows>,
    writer: AsyncArrowWriter<BufWriter>,
}

impl std::fmt::Debug for OpenFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OpenFile").field("path", &self.path).field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl TableWriter {
    /// A writer for the columns that `table` has.
    pub fn new(table: &Table, settings: WriterSettings) -> Self {
        Self::with_schema(table, Arc::clone(table.schema()), settings)
    }

    /// A writer for the columns that the table will have once a change with this schema is committed. Partition columns last.
    pub fn with_schema(table: &Table, schema: SchemaRef, settings: WriterSettings) -> Self {
        Self::into_folder(table.folder(), schema, settings)
    }

    /// The same for who has nothing of the table but where its files go.
    pub fn into_folder(folder: TableFolder, schema: SchemaRef, settings: WriterSettings) -> Self {
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::SNAPPY)
            .set_max_row_group_row_count(Some(settings.row_group_rows_max))
            .set_created_by(concat!("holdfast ", env!("CARGO_PKG_VERSION")).to_owned());
        for field in schema.fields().iter().filter(|field| is_mostly_distinct(field)) {
            let column = ColumnPath::new(vec![field.name().clone()]);
            properties = properties
                .set_column_dictionary_enabled(column.clone(), false)
                .set_column_encoding(column, Encoding::DELTA_BINARY_PACKED);
        }
        for field in schema.fields().iter().filter(|field| is_personal(field)) {
            // Nested personal data is below this path: switching the parent off covers its leaves one by one.
            for leaf in leaves(field) {
                properties = properties.set_column_statistics_enabled(ColumnPath::new(leaf), EnabledStatistics::None);
            }
        }
        Self {
            file_schema: without_columns(&schema, folder.partition_columns()),
            order: sort_columns(&schema, folder.partition_columns()),
            is_in_order: true,
            folder,
            below: "",
            settings,
            properties: properties.build(),
            open: HashMap::new(),
            closed: Vec::new(),
        }
    }

    /// A writer of change data, which has the columns of `schema` and no order.
    pub(crate) fn for_changes(table: &Table, schema: SchemaRef, settings: WriterSettings) -> Self {
        Self { below: CHANGE_DATA, order: Vec::new(), ..Self::with_schema(table, schema, settings) }
    }

    /// Adds rows. The batch has the table's columns, partition columns last, in types that Delta knows or can be cast to.
    ///
    /// # Errors
    /// [`LakeError::Schema`] when the columns are others; what the store answers. After an error the writer is of no further use.
    pub async fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        let partition_count = self.folder.partition_columns().len();
        let file_columns = self.file_schema.fields().len();
        if batch.num_columns() != file_columns + partition_count {
            return Err(self.mismatch(format!(
                "a batch of {} columns does not fit a table of {}",
                batch.num_columns(),
                file_columns + partition_count
            )));
        }
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let data: Vec<usize> = (0..file_columns).collect();
        if partition_count == 0 {
            let rows =
                to_delta_compatible(batch, &self.file_schema).map_err(|error| self.mismatch(error.to_string()))?;
            return self.write_partition(Vec::new(), &rows).await;
        }
        for (values, part) in split(batch, file_columns).map_err(|error| self.mismatch(error.to_string()))? {
            let part = part.project(&data).map_err(|error| self.mismatch(error.to_string()))?;
            let rows =
                to_delta_compatible(&part, &self.file_schema).map_err(|error| self.mismatch(error.to_string()))?;
            self.write_partition(values, &rows).await?;
        }
        Ok(())
    }

    async fn write_partition(&mut self, values: PartitionValues, rows: &RecordBatch) -> Result<()> {
        if !self.open.contains_key(&values) {
            let file = self.create(&values)?;
            self.open.insert(values.clone(), file);
        }
        let Some(file) = self.open.get_mut(&values) else { return Ok(()) };
        let failed = parquet_error(&self.folder);
        if let Some(sorted) = &mut file.sorted
            && !sorted.go_on_with(rows).map_err(|error| failed(error.into()))?
        {
            file.sorted = None;
            self.is_in_order = false;
        }
        file.writer.write(rows).await.map_err(&failed)?;
        file.rows += rows.num_rows() as u64;
        if file.writer.in_progress_size() >= self.settings.row_group_bytes_max {
            file.writer.flush().await.map_err(&failed)?;
        }
        if file.writer.bytes_written() + file.writer.in_progress_size() >= self.settings.file_bytes_max
            && let Some(file) = self.open.remove(&values)
        {
            self.close_file(values, file).await?;
        }
        Ok(())
    }

    fn create(&self, values: &[Option<String>]) -> Result<OpenFile> {
        let mut path = self.below.to_owned();
        for (column, value) in self.folder.partition_columns().iter().zip(values) {
            let value = value.as_deref().unwrap_or("__HIVE_DEFAULT_PARTITION__");
            path.push_str(&format!("{column}={value}/"));
        }
        path.push_str(&self.folder.new_file_name());
        let location: Path = path.split('/').fold(self.folder.prefix().clone(), |path, part| path.join(part));
        let sink = BufWriter::new(Arc::clone(self.folder.store()), location);
        let writer = AsyncArrowWriter::try_new(sink, Arc::clone(&self.file_schema), Some(self.properties.clone()))
            .map_err(parquet_error(&self.folder))?;
        // Rows that cannot be compared are in no order that could be proven.
        let sorted = SortedRows::new(&self.file_schema, &self.order).ok().filter(|_| !self.order.is_empty());
        Ok(OpenFile { path, rows: 0, sorted, writer })
    }

    async fn close_file(&mut self, values: PartitionValues, file: OpenFile) -> Result<()> {
        let OpenFile { path, rows, sorted, mut writer } = file;
        let metadata = writer.finish().await.map_err(parquet_error(&self.folder))?;
        let bytes = writer.bytes_written() as u64;
        let add = Add {
            stats: Some(to_json(&self.file_schema, &metadata)),
            size: i64::try_from(bytes).unwrap_or(i64::MAX),
            modification_time: self.folder.clock().now().timestamp_millis(),
            data_change: true,
            partition_values: self.folder.partition_columns().iter().cloned().zip(values).collect(),
            path,
            tags: sorted
                .map(|_| HashMap::from([(SORTED_BY_TAG.to_owned(), Some(sorted_by(&self.file_schema, &self.order)))])),
            deletion_vector: None,
            base_row_id: None,
            default_row_commit_version: None,
            clustering_provider: None,
        };
        self.closed.push(StagedFile { add, rows, bytes });
        Ok(())
    }

    /// Whether all files so far have their rows in the order that the table's files are to have.
    pub(crate) fn is_in_order(&self) -> bool {
        self.is_in_order
    }

    /// Finishes the open files and hands over all that were written, in the order of their paths.
    ///
    /// # Errors
    /// What the store answers.
    pub async fn close(mut self) -> Result<Vec<StagedFile>> {
        for (values, file) in std::mem::take(&mut self.open) {
            self.close_file(values, file).await?;
        }
        self.closed.sort_by(|left, right| left.add.path.cmp(&right.add.path));
        Ok(self.closed)
    }

    fn mismatch(&self, reason: String) -> LakeError {
        LakeError::Schema { table: self.folder.table().to_string(), reason }
    }
}

fn parquet_error(folder: &TableFolder) -> impl Fn(ParquetError) -> LakeError + use<> {
    let table = folder.table().to_string();
    move |source| LakeError::Parquet { table: table.clone(), source }
}

/// Moments and 64-bit numbers (line numbers, counts, positions) rarely repeat, or run in long stretches: differences are
/// smaller than a dictionary, and need no hashing.
fn is_mostly_distinct(field: &Field) -> bool {
    matches!(field.data_type(), DataType::Int64 | DataType::Timestamp(_, _))
}

fn leaves(field: &Field) -> Vec<Vec<String>> {
    match field.data_type() {
        DataType::Struct(children) => children
            .iter()
            .flat_map(|child| leaves(child))
            .map(|leaf| std::iter::once(field.name().clone()).chain(leaf).collect())
            .collect(),
        DataType::List(item) => leaves(item)
            .into_iter()
            .map(|leaf| [field.name().clone(), "list".to_owned()].into_iter().chain(leaf).collect())
            .collect(),
        _ => vec![vec![field.name().clone()]],
    }
}

/// The rows of each combination of partition values (the columns from `first` on), in their order.
pub(crate) fn split(batch: &RecordBatch, first: usize) -> Result<Vec<(PartitionValues, RecordBatch)>, ArrowError> {
    let mut groups: Vec<(Vec<ScalarValue>, Vec<u32>)> = Vec::new();
    let mut index: HashMap<Vec<ScalarValue>, usize> = HashMap::new();
    let columns = &batch.columns()[first..];
    let mut last: Option<usize> = None;
    for row in 0..batch.num_rows() {
        let values = columns
            .iter()
            .map(|column| ScalarValue::try_from_array(column, row))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| ArrowError::ExternalError(Box::new(error)))?;
        let group = match last {
            Some(group) if groups[group].0 == values => group,
            _ => *index.entry(values.clone()).or_insert_with(|| {
                groups.push((values, Vec::new()));
                groups.len() - 1
            }),
        };
        last = Some(group);
        let row = u32::try_from(row).map_err(|error| ArrowError::ComputeError(error.to_string()))?;
        groups[group].1.push(row);
    }
    groups
        .into_iter()
        .map(|(values, rows)| {
            let texts = values.iter().map(|value| (!value.is_null()).then(|| value.to_string())).collect();
            let part = if rows.len() == batch.num_rows() {
                batch.clone()
            } else {
                take_record_batch(batch, &UInt32Array::from(rows))?
            };
            Ok((texts, part))
        })
        .collect()
}
