//! Training sets as rows on their way: of a spine that comes in batches, and again of what was recorded.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::BatchCoalescer;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use holdfast_lake::Lake;
use holdfast_types::NoProgress;
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tempfile::{NamedTempFile, TempPath};

use crate::dataset::Dataset;
use crate::spine::{Spine, SpineFormat};
use crate::training_set::{TrainingSetRequest, as_plain, make_training_set, plain, replay_training_set};
use crate::{FeatureStoreError, Result};

/// Rows of one batch of an answer.
const BATCH_ROWS: usize = 8_192;
/// Rows of a spine are written in batches of so many, whatever sizes they come in: so its bytes depend on its rows alone.
const WRITE_ROWS: usize = 65_536;

/// A spine whose rows came in batches. Its file goes when this is dropped.
#[derive(Debug)]
pub struct SentSpine {
    /// The spine.
    pub spine: Spine,
    _file: TempPath,
}

impl SentSpine {
    /// Takes all rows.
    ///
    /// # Errors
    /// [`FeatureStoreError::Request`] when they have more than `bytes_max` in memory; what the rows say that cannot be had, and the system of the file.
    pub async fn of_rows<S>(schema: &SchemaRef, mut rows: S, bytes_max: u64) -> Result<Self>
    where
        S: Stream<Item = std::result::Result<RecordBatch, ArrowError>> + Send + Unpin,
    {
        let schema = plain(schema);
        let (file, path) = temporary()?.into_parts();
        let failed = |error: parquet::errors::ParquetError| FeatureStoreError::Write(error.to_string());
        let mut writer = ArrowWriter::try_new(BufWriter::new(file), Arc::clone(&schema), None).map_err(failed)?;
        let mut batches = BatchCoalescer::new(Arc::clone(&schema), WRITE_ROWS);
        let mut bytes = 0;
        while let Some(batch) = rows.try_next().await? {
            let batch = as_plain(&batch, &schema)?;
            bytes += batch.get_array_memory_size() as u64;
            if bytes > bytes_max {
                let limit = bytes_max >> 20;
                return Err(FeatureStoreError::Request(format!(
                    "the spine has more than {limit} MiB, the limit of one that is sent: make the training set in parts, or from a \
                     file with `holdfast features training-set`"
                )));
            }
            batches.push_batch(batch)?;
            while let Some(batch) = batches.next_completed_batch() {
                writer.write(&batch).map_err(failed)?;
            }
        }
        batches.finish_buffered_batch()?;
        while let Some(batch) = batches.next_completed_batch() {
            writer.write(&batch).map_err(failed)?;
        }
        let mut written = writer.into_inner().map_err(failed)?;
        written.flush().map_err(|source| unwritable(&path, source))?;
        Ok(Self { spine: Spine { file: path.to_path_buf(), format: SpineFormat::Parquet }, _file: path })
    }
}

/// The rows of a training set, as they are read from a file of their own that goes with them.
pub struct DatasetRows {
    /// What it is.
    pub dataset: Dataset,
    /// Its columns.
    pub schema: SchemaRef,
    /// Its rows, in order.
    pub batches: BoxStream<'static, Result<RecordBatch>>,
}

impl std::fmt::Debug for DatasetRows {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DatasetRows").field("dataset", &self.dataset.id).finish_non_exhaustive()
    }
}

/// Makes a training set, records it, and answers its rows.
///
/// # Errors
/// As of [`make_training_set`].
pub async fn make_dataset_rows(lake: &Lake, request: &TrainingSetRequest) -> Result<DatasetRows> {
    let (file, path) = temporary()?.into_parts();
    let mut output = BufWriter::new(file);
    let made = make_training_set(lake, request, &mut output, &NoProgress).await?;
    output.flush().map_err(|source| unwritable(&path, source))?;
    rows_of(made.dataset, path, 0)
}

/// Makes a recorded training set again, checks it against what was recorded, and answers its rows but for the first `skip`.
///
/// # Errors
/// As of [`replay_training_set`].
pub async fn replay_dataset_rows(lake: &Lake, id: &str, skip: u64, memory_bytes: usize) -> Result<DatasetRows> {
    let (file, path) = temporary()?.into_parts();
    let mut output = BufWriter::new(file);
    let dataset = replay_training_set(lake, id, memory_bytes, &mut output, &NoProgress).await?;
    output.flush().map_err(|source| unwritable(&path, source))?;
    rows_of(dataset, path, skip)
}

fn rows_of(dataset: Dataset, path: TempPath, skip: u64) -> Result<DatasetRows> {
    let failed = |error: parquet::errors::ParquetError| FeatureStoreError::Write(error.to_string());
    let file = File::open(&path).map_err(|source| unwritable(&path, source))?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(failed)?;
    let reader = reader.with_batch_size(BATCH_ROWS).with_offset(usize::try_from(skip).unwrap_or(usize::MAX));
    let fields = reader.schema().fields().clone();
    let reader = reader.build().map_err(failed)?;
    let mut metadata = std::collections::HashMap::from([
        ("holdfast.dataset_id".to_owned(), dataset.id.clone()),
        ("holdfast.features".to_owned(), dataset.features.join(",")),
        ("holdfast.run".to_owned(), dataset.run.to_string()),
    ]);
    if let Some(service) = &dataset.service {
        metadata.insert("holdfast.feature_service".to_owned(), service.clone());
    }
    let schema = Arc::new(Schema::new_with_metadata(fields, metadata));
    let named = Arc::clone(&schema);
    let batches = futures::stream::iter(reader).map(move |batch| {
        let _until_read = &path;
        Ok(batch?.with_schema(Arc::clone(&named))?)
    });
    Ok(DatasetRows { dataset, schema, batches: batches.boxed() })
}

fn temporary() -> Result<NamedTempFile> {
    NamedTempFile::new().map_err(|source| FeatureStoreError::File {
        what: "cannot write a temporary file in",
        path: std::env::temp_dir(),
        source,
    })
}

fn unwritable(path: &Path, source: std::io::Error) -> FeatureStoreError {
    FeatureStoreError::File { what: "cannot write", path: path.to_owned(), source }
}
