//! What was served from memory, by sample, kept in the lake until it is compared with what history says (PIT-3).
//!
//! A sample is an answer as it was given, with its moment and the versions it came from. Documents below `features/served` hold some of them each; there are never more than
//! [`DOCUMENTS_MAX`].

use std::collections::{BTreeMap, HashMap};
use std::io::Cursor;
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{ArrayRef, RecordBatch, TimestampMicrosecondArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{Field, Schema, SchemaRef};
use arrow::ipc::reader::StreamReader;
use arrow::ipc::writer::StreamWriter;
use arrow::row::{RowConverter, SortField};
use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use holdfast_engine::Registry;
use holdfast_features::{feature_column, status_column_of};
use holdfast_lake::{Lake, LakeError};
use holdfast_types::TableName;
use serde::{Deserialize, Serialize};

use crate::historical::{HistoricalOptions, ValueStatus, historical_features};
use crate::on_demand::{OnDemand, ShownPart};
use crate::online::{OnlineColumns, OnlinePlan};
use crate::retrieval::{Retrieval, RetrievedView};
use crate::{FeatureStoreError, Result};

const FOLDER: &str = "features/served";
/// Documents that are kept: the oldest go first.
const DOCUMENTS_MAX: usize = 256;
/// Rows that are held until they are written; samples beyond that are left out.
const HELD_ROWS_MAX: usize = 20_000;
/// Answers that are held until they are written.
const HELD_ANSWERS_MAX: usize = 1_000;
/// The keys of a sample's metadata.
const FROM: &str = "holdfast.served_from";
const AT: &str = "holdfast.served_at";
/// The spine's column with the moments of answers.
const MOMENT: &str = "_served_at";

/// Where an answer from memory came from: all that it takes to work it out again.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct ServedFrom {
    pub(crate) run: u64,
    pub(crate) columns: OnlineColumns,
    pub(crate) keys: Vec<String>,
    pub(crate) views: Vec<ServedView>,
    /// The values of the request, among the columns.
    #[serde(default)]
    pub(crate) request: Vec<String>,
    /// What is shown, where on-demand features are among it.
    #[serde(default)]
    pub(crate) shown: Vec<ShownPart>,
}

/// A view of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct ServedView {
    pub(crate) view: String,
    pub(crate) version: u32,
    /// What columns call it.
    pub(crate) label: String,
    pub(crate) table: TableName,
    pub(crate) table_version: u64,
    /// Up to which version of history: what was merged since says the same.
    pub(crate) step: i64,
    pub(crate) features: Vec<String>,
}

/// Takes every so many answers down.
#[derive(Debug)]
pub struct ServedLog {
    every: Option<NonZeroU64>,
    seen: AtomicU64,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    samples: Vec<Sample>,
    rows: usize,
}

#[derive(Debug)]
struct Sample {
    from: Arc<str>,
    at: DateTime<Utc>,
    rows: RecordBatch,
}

impl ServedLog {
    /// Takes down the first answer and every `every`th behind it; none without.
    pub fn new(every: Option<NonZeroU64>) -> Self {
        Self { every, seen: AtomicU64::new(0), held: Mutex::default() }
    }

    /// Notes an answer, if it is its turn and there is room. Copies nothing.
    pub fn note(&self, plan: &OnlinePlan, rows: &RecordBatch, at: DateTime<Utc>) {
        let Some(every) = self.every else { return };
        if self.seen.fetch_add(1, Ordering::Relaxed) % every != 0 || rows.num_rows() == 0 {
            return;
        }
        let mut held = self.held();
        if held.samples.len() < HELD_ANSWERS_MAX && held.rows + rows.num_rows() <= HELD_ROWS_MAX {
            held.rows += rows.num_rows();
            held.samples.push(Sample { from: Arc::clone(plan.served_from()), at, rows: rows.clone() });
        }
    }

    /// Writes what was noted into the lake, as one document; answers how many answers that were. Deletes the oldest documents beyond [`DOCUMENTS_MAX`]. What cannot be written
    /// is lost.
    ///
    /// # Errors
    /// What the lake answers.
    pub async fn keep(&self, lake: &Lake) -> Result<usize> {
        let held = std::mem::take(&mut *self.held());
        if held.samples.is_empty() {
            return Ok(0);
        }
        let mut body = Vec::new();
        for sample in &held.samples {
            let metadata =
                [(FROM.to_owned(), sample.from.to_string()), (AT.to_owned(), sample.at.timestamp_micros().to_string())];
            let fields = sample.rows.schema().fields().clone();
            let schema: SchemaRef = Arc::new(Schema::new_with_metadata(fields, HashMap::from(metadata)));
            // One stream behind the other.
            let mut writer = StreamWriter::try_new(&mut body, &schema)?;
            writer.write(&RecordBatch::try_new(schema, sample.rows.columns().to_vec())?)?;
            writer.finish()?;
        }
        let now = lake.clock().now().timestamp_micros();
        let name = format!("{now:020}-{}.arrows", &blake3::hash(&body).to_hex()[..12]);
        lake.create_document(&format!("{FOLDER}/{name}"), Bytes::from(body)).await?;
        let documents = lake.documents(FOLDER).await?;
        for old in &documents[..documents.len().saturating_sub(DOCUMENTS_MAX)] {
            lake.delete_document(&format!("{FOLDER}/{old}")).await?;
        }
        Ok(held.samples.len())
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        // Whoever panicked left a list that is a sample too long at most.
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What served answers came to beside those that history gives.
#[derive(Debug, Clone, Default, Serialize)]
pub struct ServedComparison {
    /// Answers.
    pub answers: u64,
    /// Their rows.
    pub rows: u64,
    /// By view, version and feature.
    pub features: Vec<ComparedFeature>,
    /// What was compared, for [`forget_served`].
    #[serde(skip)]
    documents: Vec<String>,
}

/// A feature of a view, or whether the view has a row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ComparedFeature {
    /// The view.
    pub view: String,
    /// Its version.
    pub version: u32,
    /// The feature; none for the view's own columns, status and event timestamp.
    pub feature: Option<String>,
    /// The history that it was compared with.
    pub table: TableName,
    /// Values that were compared.
    pub values: u64,
    /// Those that differ, or whose status does.
    pub mismatches: u64,
    /// When the first of them was served.
    pub served_first: DateTime<Utc>,
    /// When the last of them was served.
    pub served_last: DateTime<Utc>,
}

impl ServedComparison {
    /// Values that differ.
    pub fn mismatches(&self) -> u64 {
        self.features.iter().map(|feature| feature.mismatches).sum()
    }
}

/// Works out from history what was served, a document at a time, and compares: each value of each sample, its status, and the view's columns. `memory_bytes` is as of
/// [`historical_features`].
///
/// # Errors
/// A document that cannot be read; a view that is not in the registry any more; what the lake answers.
pub async fn compare_served(lake: &Lake, memory_bytes: usize) -> Result<ServedComparison> {
    let mut comparison = ServedComparison::default();
    let mut found: BTreeMap<(String, u32, Option<String>), ComparedFeature> = BTreeMap::new();
    for name in lake.documents(FOLDER).await? {
        let path = format!("{FOLDER}/{name}");
        let Some(body) = lake.read_document(&path).await? else { continue };
        let mut kinds: BTreeMap<ServedFrom, Vec<(i64, RecordBatch)>> = BTreeMap::new();
        for (from, at, rows) in samples(&path, &body)? {
            comparison.answers += 1;
            comparison.rows += rows.num_rows() as u64;
            kinds.entry(from).or_default().push((at, rows));
        }
        for (from, answers) in kinds {
            compare(lake, &from, &answers, memory_bytes, &mut found).await?;
        }
        comparison.documents.push(path);
    }
    comparison.features = found.into_values().collect();
    Ok(comparison)
}

/// Deletes what was compared. May be repeated.
///
/// # Errors
/// What the lake answers.
pub async fn forget_served(lake: &Lake, comparison: &ServedComparison) -> Result<()> {
    for document in &comparison.documents {
        lake.delete_document(document).await?;
    }
    Ok(())
}

/// The samples of a document.
fn samples(path: &str, body: &Bytes) -> Result<Vec<(ServedFrom, i64, RecordBatch)>> {
    let damaged = |reason: String| FeatureStoreError::Lake(LakeError::Damaged { path: path.to_owned(), reason });
    let mut cursor = Cursor::new(body.as_ref());
    let mut samples = Vec::new();
    while cursor.position() < body.len() as u64 {
        let reader = StreamReader::try_new(&mut cursor, None).map_err(|error| damaged(error.to_string()))?;
        let schema = reader.schema();
        let said =
            |key: &str| schema.metadata().get(key).ok_or_else(|| damaged(format!("a sample of answers without {key}")));
        let from = serde_json::from_str(said(FROM)?).map_err(|error| damaged(error.to_string()))?;
        let at = said(AT)?.parse().map_err(|_| damaged(format!("{AT} is no number")))?;
        let rows: Vec<RecordBatch> =
            reader.collect::<std::result::Result<_, _>>().map_err(|error| damaged(error.to_string()))?;
        samples.push((from, at, concat_batches(&schema, &rows)?));
    }
    Ok(samples)
}

/// Compares answers of one kind.
async fn compare(
    lake: &Lake,
    from: &ServedFrom,
    answers: &[(i64, RecordBatch)],
    memory_bytes: usize,
    found: &mut BTreeMap<(String, u32, Option<String>), ComparedFeature>,
) -> Result<()> {
    let registry = Registry::new(lake);
    let mut views = Vec::with_capacity(from.views.len());
    for served in &from.views {
        let view = registry.view(&served.view, Some(served.version)).await?;
        let table = lake.table(&served.table).await?.ok_or_else(|| {
            FeatureStoreError::NotFound(format!(
                "{} is not in the lake any more: what was served of it cannot be compared",
                served.table
            ))
        })?;
        let (label, features) = (served.label.clone(), served.features.clone());
        views.push(RetrievedView::at(lake, view, label, features, table.version(), Some(served.step)).await?);
    }
    let served: Vec<RecordBatch> = answers
        .iter()
        .map(|(_, rows)| RecordBatch::try_new(plain(&rows.schema()), rows.columns().to_vec()))
        .collect::<std::result::Result<_, _>>()?;
    let served = concat_batches(&served[0].schema(), &served)?;
    let moments: Vec<i64> = answers.iter().flat_map(|(at, rows)| std::iter::repeat_n(*at, rows.num_rows())).collect();
    let moments: ArrayRef = Arc::new(TimestampMicrosecondArray::from(moments).with_timezone("UTC"));
    let (mut fields, mut columns) = (Vec::new(), Vec::new());
    for key in from.keys.iter().chain(&from.request) {
        let at = served.schema().index_of(key)?;
        fields.push(served.schema().field(at).clone());
        columns.push(Arc::clone(served.column(at)));
    }
    fields.push(Field::new(MOMENT, moments.data_type().clone(), false));
    columns.push(moments);
    let spine = RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?;
    let options = HistoricalOptions {
        timestamp: MOMENT.to_owned(),
        full_names: from.columns.full_names,
        status: from.columns.status,
        event_timestamps: from.columns.event_timestamps,
        ..HistoricalOptions::default()
    };
    let on_demand = OnDemand::of(&registry, &from.shown).await?;
    let shown = shown_columns(from, on_demand.as_ref());
    let retrieval = Retrieval { service: None, views, run: from.run, on_demand };
    let rows = futures::stream::iter([Ok(spine.clone())]);
    let answer =
        historical_features(lake, &retrieval, None, (&spine.schema(), rows), &options, memory_bytes, HashMap::new())?;
    let schema = Arc::clone(answer.schema());
    let expected = concat_batches(&schema, &answer.try_collect::<Vec<_>>().await?)?;

    let times = answers.iter().map(|(at, _)| DateTime::from_timestamp_micros(*at).unwrap_or_default());
    let (first, last) = (times.clone().min().unwrap_or_default(), times.max().unwrap_or_default());
    for (view, columns) in shown {
        for (feature, columns) in columns {
            let mut differs = vec![false; served.num_rows()];
            for column in columns {
                let pair = [&served, &expected].map(|batch| batch.column_by_name(&column));
                let [Some(served), Some(expected)] = pair else {
                    return Err(FeatureStoreError::NotFound(format!("an answer of {} without {column}", view.view)));
                };
                differing(served, expected, &mut differs)?;
            }
            let mismatches = differs.iter().filter(|differs| **differs).count() as u64;
            let values = served.num_rows() as u64;
            let key = (view.view.clone(), view.version, feature.clone());
            let entry = found.entry(key).or_insert_with(|| ComparedFeature {
                view: view.view.clone(),
                version: view.version,
                feature,
                table: view.table.clone(),
                values: 0,
                mismatches: 0,
                served_first: first,
                served_last: last,
            });
            entry.values += values;
            entry.mismatches += mismatches;
            entry.served_first = entry.served_first.min(first);
            entry.served_last = entry.served_last.max(last);
        }
    }
    Ok(())
}

/// What is compared of a view: each feature, or the view itself, with its columns.
type Compared = Vec<(Option<String>, Vec<String>)>;

/// The columns of an answer by view; on-demand views count to the history of the first that they read.
fn shown_columns(from: &ServedFrom, on_demand: Option<&OnDemand>) -> Vec<(ServedView, Compared)> {
    let of_stored = |view: &ServedView, features: &[String]| {
        let mut compared = columns_of(&view.label, features, from.columns);
        let mut own = Vec::new();
        own.extend((from.columns.status != ValueStatus::None).then(|| status_column_of(&view.label)));
        own.extend(from.columns.event_timestamps.then(|| format!("{}__event_timestamp", view.label)));
        if !own.is_empty() {
            compared.push((None, own));
        }
        (view.clone(), compared)
    };
    let Some(asked) = on_demand else {
        return from.views.iter().map(|view| of_stored(view, &view.features)).collect();
    };
    let mut shown = Vec::with_capacity(asked.parts.len());
    for part in &asked.parts {
        let is_it = |view: &&ServedView| view.view == part.view && view.version == part.version;
        if !part.on_demand {
            shown.extend(from.views.iter().find(is_it).map(|view| of_stored(view, &part.features)));
        } else if let Some(first) = from.views.first() {
            let label = asked.label(part);
            let compared = columns_of(&label, &part.features, from.columns);
            shown.push((
                ServedView { view: part.view.clone(), version: part.version, label, ..first.clone() },
                compared,
            ));
        }
    }
    shown
}

/// The columns of features.
fn columns_of(label: &str, features: &[String], columns: OnlineColumns) -> Compared {
    let mut found = Vec::new();
    for feature in features {
        let column = feature_column(label, feature, columns.full_names);
        let status = (columns.status == ValueStatus::Value).then(|| status_column_of(&column));
        found.push((Some(feature.clone()), std::iter::once(column).chain(status).collect()));
    }
    found
}

/// Marks rows whose values are not the same; not a number is the same as itself.
fn differing(served: &ArrayRef, expected: &ArrayRef, differs: &mut [bool]) -> Result<()> {
    if served.data_type() != expected.data_type() {
        differs.fill(true);
        return Ok(());
    }
    let converter = RowConverter::new(vec![SortField::new(served.data_type().clone())])?;
    let (served, expected) =
        (converter.convert_columns(&[Arc::clone(served)])?, converter.convert_columns(&[Arc::clone(expected)])?);
    for ((served, expected), differs) in served.iter().zip(expected.iter()).zip(differs) {
        *differs |= served != expected;
    }
    Ok(())
}

/// The columns without what is said of a single answer.
fn plain(schema: &SchemaRef) -> SchemaRef {
    Arc::new(Schema::new(schema.fields().clone()))
}
