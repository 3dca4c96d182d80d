//! Makes training sets, and makes them again.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::compute::{BatchCoalescer, cast};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use futures::TryStreamExt;
use holdfast_engine::Registry;
use holdfast_features::{Status, status_column_of};
use holdfast_lake::Lake;
use holdfast_types::{COMMENT_KEY, Progress, Promise};
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::metadata::KeyValue;
use parquet::file::properties::WriterProperties;

use crate::dataset::{Dataset, DatasetLabel, DatasetOutput, DatasetSpine, DatasetTable, Datasets};
use crate::historical::{HistoricalFeatures, HistoricalOptions, Label, historical_features};
use crate::on_demand::OnDemand;
use crate::retrieval::{Asked, Retrieval, RetrievedView};
use crate::spine::{OpenSpine, Spine};
use crate::{FeatureStoreError, Result};

/// Rows are written in batches of so many, whatever sizes they come in: so the bytes of a file depend on its rows alone.
const WRITE_ROWS: usize = 65_536;
const ROW_GROUP_ROWS: usize = 262_144;

/// Changes whenever equal rows are written, or worked out, otherwise.
const FORMAT: &str = "holdfast-dataset/1";

/// What a training set is to be made from.
#[derive(Debug, Clone)]
pub struct TrainingSetRequest {
    /// The features.
    pub asked: Asked,
    /// The label: columns of one view, `view` or `view:column`, and how long after each row's moment.
    pub label: Option<(String, Duration)>,
    /// Takes rows whose horizon is not over.
    pub open_horizon: bool,
    /// The spine.
    pub spine: Spine,
    /// How they are joined.
    pub options: HistoricalOptions,
    /// What the join may take.
    pub memory_bytes: usize,
    /// Who asks, where that is known.
    pub made_by: Option<String>,
}

/// A training set that was written.
#[derive(Debug, Clone)]
pub struct Made {
    /// What it is.
    pub dataset: Dataset,
    /// Whether it was recorded before.
    pub was_known: bool,
    /// Of each view how many rows found nothing, and how many were too old, when statuses were asked for.
    pub missing: Vec<(String, u64, u64)>,
}

/// Joins the spine with the features, writes the rows to `output` as Parquet, and records what they are from. The same request of the same lake has the same id, and the same bytes
/// (PIT-4).
///
/// # Errors
/// What is asked for is not there, the spine cannot be used, what the lake answers. Nothing is recorded then; what was written to `output` is no training set.
pub async fn make_training_set(
    lake: &Lake,
    request: &TrainingSetRequest,
    output: impl Write + Send,
    progress: &dyn Progress,
) -> Result<Made> {
    let retrieval = Retrieval::of(lake, &request.asked).await?;
    let label = match &request.label {
        Some((reference, horizon)) => Some(label(lake, reference, *horizon, request.open_horizon).await?),
        None => None,
    };
    let (digest, bytes) = request.spine.digest()?;
    let id = identity(&retrieval, label.as_ref(), &digest, &request.options);
    let (written, missing) = write(
        lake,
        &retrieval,
        label.as_ref(),
        &request.spine,
        &request.options,
        &id,
        request.memory_bytes,
        output,
        progress,
    )
    .await?;
    let tables = retrieval.views.iter().chain(label.as_ref().map(|label| &label.view)).map(table_of).collect();
    let dataset = Dataset {
        id: id.clone(),
        made_at: lake.clock().now(),
        made_by: request.made_by.clone(),
        service: retrieval.service_name(),
        features: retrieval.features(),
        label: label.as_ref().map(|label| DatasetLabel {
            features: label
                .view
                .features
                .iter()
                .map(|name| format!("{}@v{}:{name}", label.view.view.view.name, label.view.view.version))
                .collect(),
            horizon_s: label.horizon.as_secs(),
            is_open: label.known_until.is_none(),
        }),
        options: request.options.clone(),
        run: retrieval.run,
        tables,
        shown: retrieval.on_demand.as_ref().map(|asked| asked.parts.clone()).unwrap_or_default(),
        spine: DatasetSpine { format: request.spine.format, blake3: digest, bytes, rows: written.rows },
        output: written,
        released_at: None,
    };
    let datasets = Datasets::new(lake);
    let Some(known) = datasets.known(&id).await? else {
        let dataset = datasets.record(&dataset, &request.spine).await?;
        return Ok(Made { dataset, was_known: false, missing });
    };
    same_bytes(&known, &dataset.output)?;
    if known.released_at.is_some() {
        datasets.take_back(&known, &request.spine).await?;
    }
    Ok(Made { dataset: Dataset { released_at: None, ..known }, was_known: true, missing })
}

/// Makes a recorded training set again, from its spine and the versions it was made from, and checks that the bytes are the same (PIT-4).
///
/// # Errors
/// [`FeatureStoreError::NotFound`] when it was released, [`FeatureStoreError::OtherWriter`] when the rows are the same and another version of the program wrote them.
pub async fn replay_training_set(
    lake: &Lake,
    id: &str,
    memory_bytes: usize,
    output: impl Write + Send,
    progress: &dyn Progress,
) -> Result<Dataset> {
    let datasets = Datasets::new(lake);
    let dataset = datasets.get(id).await?;
    if let Some(released_at) = dataset.released_at {
        return Err(FeatureStoreError::NotFound(format!(
            "training set {} was released at {}: what it was made from is no longer kept",
            dataset.id,
            released_at.to_rfc3339()
        )));
    }
    let registry = Registry::new(lake);
    let mut views = Vec::with_capacity(dataset.tables.len());
    for table in &dataset.tables {
        let view = registry.view(&table.view, Some(table.version)).await?;
        let (label, features) = (table.label.clone(), table.features.clone());
        views.push(RetrievedView::at(lake, view, label, features, table.table_version, Some(table.step)).await?);
    }
    let label = match &dataset.label {
        Some(label) => views.pop().map(|view| Label {
            view,
            horizon: Duration::from_secs(label.horizon_s),
            // It was let through when the set was made.
            known_until: None,
        }),
        None => None,
    };
    let service = match &dataset.service {
        Some(name) => {
            let (name, version) = holdfast_engine::named(name).map_err(FeatureStoreError::Request)?;
            Some(registry.service(&name, version).await?)
        }
        None => None,
    };
    let on_demand = OnDemand::of(&registry, &dataset.shown).await?;
    let retrieval = Retrieval { service, views, run: dataset.run, on_demand };
    let (spine, _kept) = datasets.spine(&dataset).await?;
    let (written, _) =
        write(lake, &retrieval, label.as_ref(), &spine, &dataset.options, &dataset.id, memory_bytes, output, progress)
            .await?;
    same_bytes(&dataset, &written)?;
    Ok(dataset)
}

/// The view of a label, as the newest published run has it.
async fn label(lake: &Lake, reference: &str, horizon: Duration, is_open: bool) -> Result<Label> {
    let reference = reference.parse().map_err(FeatureStoreError::Request)?;
    let retrieval = Retrieval::of(lake, &Asked::Features(vec![reference])).await?;
    let Some(view) = retrieval.views.into_iter().next() else {
        return Err(FeatureStoreError::Request("no label is asked for".to_owned()));
    };
    if horizon.as_secs() == 0 {
        return Err(FeatureStoreError::Request("the horizon of a label is at least a second".to_owned()));
    }
    let known_until = if is_open { None } else { holdfast_engine::known_until(&view.table).await? };
    Ok(Label { view, horizon, known_until })
}

/// Changes with all that decides the rows of a training set, and with nothing else: merging the files of a history changes no row.
fn identity(retrieval: &Retrieval, label: Option<&Label>, spine: &str, options: &HistoricalOptions) -> String {
    let mut hasher = blake3::Hasher::new();
    let mut part = |text: &str| {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    };
    part(FORMAT);
    part(spine);
    part(&serde_json::to_string(options).unwrap_or_default());
    part(&retrieval.service_name().unwrap_or_default());
    let mut view = |kind: &str, view: &RetrievedView| {
        part(kind);
        part(&view.label);
        part(&view.view.hash);
        part(&view.table.name().to_string());
        part(&view.step.to_string());
        part(&view.features.join(","));
    };
    retrieval.views.iter().for_each(|features| view("features", features));
    if let Some(label) = label {
        view("label", &label.view);
        part(&format!("{} {}", label.horizon.as_secs(), label.known_until.is_none()));
    }
    if let Some(asked) = &retrieval.on_demand {
        for part_of in &asked.parts {
            part(&format!("shown {}", part_of.references().collect::<Vec<_>>().join(",")));
        }
        asked.versions.iter().for_each(|version| part(&version.hash));
    }
    format!("ds_{}", hasher.finalize().to_hex().chars().take(24).collect::<String>())
}

fn table_of(view: &RetrievedView) -> DatasetTable {
    DatasetTable {
        view: view.view.view.name.clone(),
        version: view.view.version,
        hash: view.view.hash.clone(),
        table: view.table.name().clone(),
        table_version: view.table.version(),
        step: view.step,
        view_version: view.view_version,
        features: view.features.clone(),
        label: view.label.clone(),
    }
}

fn same_bytes(recorded: &Dataset, written: &DatasetOutput) -> Result<()> {
    let is_same = recorded.output.blake3 == written.blake3;
    if !is_same && recorded.output.writer != written.writer && recorded.output.rows == written.rows {
        return Err(FeatureStoreError::OtherWriter {
            id: recorded.id.clone(),
            made_by: recorded.output.writer.clone(),
            this: written.writer.clone(),
        });
    }
    Ok(Promise::Pit4.check(is_same, || {
        format!(
            "training set {} has {} rows and {} bytes, and was recorded with {} rows and {} bytes",
            recorded.id, written.rows, written.bytes, recorded.output.rows, recorded.output.bytes
        )
    })?)
}

#[expect(clippy::too_many_arguments, reason = "all of it decides the file")]
async fn write(
    lake: &Lake,
    retrieval: &Retrieval,
    label: Option<&Label>,
    spine: &Spine,
    options: &HistoricalOptions,
    id: &str,
    memory_bytes: usize,
    output: impl Write + Send,
    progress: &dyn Progress,
) -> Result<(DatasetOutput, Vec<(String, u64, u64)>)> {
    let views = || retrieval.views.iter().chain(label.map(|label| &label.view));
    let request = match &retrieval.on_demand {
        Some(asked) => asked.request()?,
        None => Vec::new(),
    };
    let keys: BTreeMap<String, DataType> = views()
        .flat_map(|view| view.schema().keys())
        .chain(&request)
        .map(|key| (key.name().clone(), key.data_type().clone()))
        .collect();
    let OpenSpine { schema, batches, rows } = spine.open(&keys, &options.timestamp, options.zoneless_is_utc)?;
    let metadata = HashMap::from([("holdfast.dataset_id".to_owned(), id.to_owned())]);
    let mut answer = historical_features(lake, retrieval, label, (&schema, batches), options, memory_bytes, metadata)?;
    let labels: Vec<String> = views().map(|view| view.label.clone()).collect();
    let mut counts: Vec<(String, u64, u64)> = labels.into_iter().map(|label| (label, 0, 0)).collect();
    let output = written(id, &mut answer, output, |batch, done| {
        for (view, not_found, too_old) in &mut counts {
            count(batch, view, not_found, too_old);
        }
        progress.advance("training set", done, rows, "rows");
    })
    .await?;
    counts.retain(|(_, not_found, too_old)| *not_found + *too_old > 0);
    Ok((output, counts))
}

fn count(batch: &RecordBatch, view: &str, not_found: &mut u64, too_old: &mut u64) {
    let Some(column) = batch.column_by_name(&status_column_of(view)) else { return };
    let Some(words) = column.as_any().downcast_ref::<arrow::array::StringArray>() else { return };
    for word in words.iter().flatten() {
        *not_found += u64::from(word == Status::NotFound.as_str());
        *too_old += u64::from(word == Status::OutsideMaxAge.as_str());
    }
}

async fn written(
    id: &str,
    answer: &mut HistoricalFeatures,
    output: impl Write + Send,
    mut seen: impl FnMut(&RecordBatch, u64),
) -> Result<DatasetOutput> {
    let failed = |error: parquet::errors::ParquetError| FeatureStoreError::Write(error.to_string());
    let schema = plain(answer.schema());
    let properties = WriterProperties::builder()
        .set_compression(Compression::SNAPPY)
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        // Which build wrote it is no part of a training set.
        .set_created_by("holdfast".to_owned())
        .set_key_value_metadata(Some(vec![KeyValue::new("holdfast.dataset_id".to_owned(), id.to_owned())]))
        .build();
    let output = Hashing { inner: output, hasher: blake3::Hasher::new(), bytes: 0 };
    let mut writer = ArrowWriter::try_new(output, Arc::clone(&schema), Some(properties)).map_err(failed)?;
    let mut batches = BatchCoalescer::new(Arc::clone(&schema), WRITE_ROWS);
    let mut rows = 0;
    while let Some(batch) = answer.try_next().await? {
        let batch = as_plain(&batch, &schema)?;
        rows += batch.num_rows() as u64;
        seen(&batch, rows);
        batches.push_batch(batch)?;
        while let Some(batch) = batches.next_completed_batch() {
            writer.write(&batch).map_err(failed)?;
        }
    }
    batches.finish_buffered_batch()?;
    while let Some(batch) = batches.next_completed_batch() {
        writer.write(&batch).map_err(failed)?;
    }
    let output = writer.into_inner().map_err(failed)?;
    Ok(DatasetOutput {
        blake3: output.hasher.finalize().to_hex().to_string(),
        bytes: output.bytes,
        rows,
        columns: schema.fields().len() as u64,
        writer: concat!("holdfast ", env!("CARGO_PKG_VERSION")).to_owned(),
    })
}

/// Words as text: Parquet has dictionaries of its own. Of metadata only the comments stay: the order of a hash map is another each time, and a file's bytes are not.
pub(crate) fn plain(schema: &SchemaRef) -> SchemaRef {
    let field = |field: &Arc<Field>| {
        let comment = field.metadata().get_key_value(COMMENT_KEY).map(|(key, value)| (key.clone(), value.clone()));
        let data_type = match field.data_type() {
            DataType::Dictionary(_, values) => values.as_ref().clone(),
            other => other.clone(),
        };
        Field::new(field.name(), data_type, field.is_nullable()).with_metadata(comment.into_iter().collect())
    };
    Arc::new(Schema::new(schema.fields().iter().map(field).collect::<Vec<_>>()))
}

pub(crate) fn as_plain(batch: &RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    let columns = batch.columns().iter().zip(schema.fields()).map(|(column, field)| cast(column, field.data_type()));
    Ok(RecordBatch::try_new(Arc::clone(schema), columns.collect::<std::result::Result<_, _>>()?)?)
}

/// Hashes what is written on its way.
struct Hashing<W> {
    inner: W,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        let written = self.inner.write(buffer)?;
        self.hasher.update(&buffer[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}
