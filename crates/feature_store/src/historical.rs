//! Features for a spine: the point-in-time join over kept history, and the label behind it.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, RecordBatch, TimestampMicrosecondArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType};
use arrow::error::ArrowError;
use chrono::{DateTime, Utc};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, TryStreamExt};
use holdfast_features::{FeatureView, Options, StatusColumns, Zoneless, point_in_time};
use holdfast_lake::Lake;
use object_store::ObjectStore;
use serde::{Deserialize, Serialize};

use crate::on_demand::{OnDemandOutput, OutputOptions, no_value};
use crate::retrieval::{Retrieval, RetrievedView};
use crate::{FeatureStoreError, Result};

/// The column with the end of a row's horizon, while labels are joined.
const HORIZON: &str = "_label_horizon";

/// How features are joined with a spine: the contract's choices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoricalOptions {
    /// The spine's column with the moment of each row.
    pub timestamp: String,
    /// What happened exactly then is not seen.
    pub strict: bool,
    /// What became known later is seen, too.
    pub ignore_known_at: bool,
    /// Columns are called `view__feature`.
    pub full_names: bool,
    /// Which status columns there are.
    pub status: ValueStatus,
    /// Whether there is `view__event_timestamp`.
    pub event_timestamps: bool,
    /// Timestamps without a zone are in UTC.
    pub zoneless_is_utc: bool,
}

/// Which status columns there are beside the values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ValueStatus {
    /// None.
    None,
    /// One a view.
    View,
    /// One a value as well.
    Value,
}

impl Default for HistoricalOptions {
    fn default() -> Self {
        Self {
            timestamp: "event_timestamp".to_owned(),
            strict: false,
            ignore_known_at: false,
            full_names: false,
            status: ValueStatus::View,
            event_timestamps: false,
            zoneless_is_utc: false,
        }
    }
}

/// A label: what became of the key within the horizon, `(T, T + horizon]`.
#[derive(Debug, Clone)]
pub struct Label {
    /// The view, with the columns that are labels.
    pub view: RetrievedView,
    /// How long after T.
    pub horizon: Duration,
    /// Until when labels are known. A row whose horizon ends later is refused, since its label may still change.
    pub known_until: Option<DateTime<Utc>>,
}

/// The rows of a spine with their features. Its schema says which service, tables and run they are from.
pub struct HistoricalFeatures {
    schema: SchemaRef,
    batches: BoxStream<'static, Result<RecordBatch>>,
}

impl HistoricalFeatures {
    /// The columns, with where they are from as metadata.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }
}

impl Stream for HistoricalFeatures {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.batches.poll_next_unpin(context)
    }
}

impl std::fmt::Debug for HistoricalFeatures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HistoricalFeatures").field("schema", &self.schema).finish_non_exhaustive()
    }
}

/// Joins a spine with what every view had at each row's moment, by the contract of [`point_in_time`]. Nothing happens before the answer is polled; dropped, it stops. `memory_bytes` is
/// about what a part of the spine with its answer may take. `metadata` is added to what the schema says.
///
/// # Errors
/// At once: columns that are missing, of another type, or of one name. Later: rows of the spine that cannot be used, what the store says.
pub fn historical_features<S>(
    lake: &Lake,
    retrieval: &Retrieval,
    label: Option<&Label>,
    (spine_schema, spine): (&SchemaRef, S),
    options: &HistoricalOptions,
    memory_bytes: usize,
    metadata: HashMap<String, String>,
) -> Result<HistoricalFeatures>
where
    S: Stream<Item = std::result::Result<RecordBatch, ArrowError>> + Send + 'static,
{
    let store = Arc::clone(lake.store());
    let views = retrieval.views.iter().map(RetrievedView::joined).collect();
    let features = join_options(options, memory_bytes);
    let mut metadata = metadata;
    metadata.extend(provenance(retrieval));
    let Some(label) = label else {
        let answer = joined(store, (spine_schema, spine), views, features, retrieval, options)?;
        let schema = with_metadata(&answer.schema, metadata);
        let named = Arc::clone(&schema);
        let batches = answer.batches.map(move |batch| Ok(batch?.with_schema(Arc::clone(&named))?)).boxed();
        return Ok(HistoricalFeatures { schema, batches });
    };

    // The label is joined behind the features, at the end of each row's horizon. It may have become known at any time since.
    let horizon = i64::try_from(label.horizon.as_micros()).unwrap_or(i64::MAX);
    if horizon < 2 {
        return Err(FeatureStoreError::Request("the horizon of a label is longer than a microsecond".to_owned()));
    }
    let at = spine_schema.index_of(&options.timestamp).map_err(|_| missing(&options.timestamp))?;
    let mut fields: Vec<Field> = spine_schema.fields().iter().map(|field| field.as_ref().clone()).collect();
    fields.push(Field::new(HORIZON, moment_type(), true));
    let wide: SchemaRef = Arc::new(Schema::new(fields));
    let (columns, known_until) = (Arc::clone(&wide), label.known_until.map(|moment| moment.timestamp_micros()));
    let mut first_row = 0;
    let spine = spine.map(move |batch| {
        let batch = batch?;
        let widened = with_horizon(&batch, at, horizon, known_until, first_row, &columns);
        first_row += batch.num_rows();
        widened
    });
    let answer = joined(Arc::clone(&store), (&wide, spine), views, features, retrieval, options)?;
    let mut labels = label.view.joined();
    // Both ends of a ttl count, and T itself is not behind T.
    labels.ttl = Some(label.horizon - Duration::from_micros(1));
    let label_options = Options {
        known_only: false,
        strict: false,
        timestamp: HORIZON.to_owned(),
        ..join_options(options, memory_bytes)
    };
    let HistoricalFeatures { schema: with_features, batches: answer } = answer;
    let answer = answer.map_err(|error| ArrowError::ExternalError(Box::new(error)));
    let labelled = point_in_time(store, &with_features, answer, vec![labels], label_options)?;
    let kept: Vec<usize> =
        (0..labelled.schema().fields().len()).filter(|at| labelled.schema().field(*at).name() != HORIZON).collect();
    let schema = with_metadata(&Arc::new(labelled.schema().project(&kept)?), metadata);
    let named = Arc::clone(&schema);
    let batches = labelled
        .map(move |batch| {
            Ok(batch.map_err(FeatureStoreError::from)?.project(&kept)?.with_schema(Arc::clone(&named))?)
        })
        .boxed();
    Ok(HistoricalFeatures { schema, batches })
}

/// The join, and on-demand features behind it.
fn joined<S>(
    store: Arc<dyn ObjectStore>,
    (spine_schema, spine): (&SchemaRef, S),
    views: Vec<FeatureView>,
    features: Options,
    retrieval: &Retrieval,
    options: &HistoricalOptions,
) -> Result<HistoricalFeatures>
where
    S: Stream<Item = std::result::Result<RecordBatch, ArrowError>> + Send + 'static,
{
    let Some(asked) = &retrieval.on_demand else {
        let answer = point_in_time(store, spine_schema, spine, views, features)?;
        let schema = Arc::clone(answer.schema());
        return Ok(HistoricalFeatures { schema, batches: answer.map_err(FeatureStoreError::from).boxed() });
    };
    for value in asked.request()? {
        if spine_schema.field_with_name(value.name()).is_err() {
            return Err(no_value(&value, &asked.needing(value.name())));
        }
    }
    let at = spine_schema.index_of(&options.timestamp).map_err(|_| missing(&options.timestamp))?;
    let answer = point_in_time(store, spine_schema, spine, views, Options { full_names: true, ..features })?;
    let label_of = |view: &str, version: u32| {
        let is_it = |known: &&RetrievedView| known.view.view.name == view && known.view.version == version;
        retrieval.views.iter().find(is_it).map(|view| view.label.clone())
    };
    let output = OutputOptions {
        full_names: options.full_names,
        status: options.status,
        event_timestamps: options.event_timestamps,
    };
    let output = OnDemandOutput::new(answer.schema(), spine_schema.fields().len(), asked, label_of, output)?;
    let schema = Arc::clone(output.schema());
    let batches = answer.map(move |batch| {
        let batch = batch?;
        // Nanoseconds go down, as the join takes them; without a zone it is UTC, or was refused.
        let moments = cast(batch.column(at), &moment_type())?;
        output.of(&batch, &moments)
    });
    Ok(HistoricalFeatures { schema, batches: batches.boxed() })
}

fn join_options(options: &HistoricalOptions, memory_bytes: usize) -> Options {
    Options {
        strict: options.strict,
        known_only: !options.ignore_known_at,
        full_names: options.full_names,
        status: match options.status {
            ValueStatus::None => StatusColumns::None,
            ValueStatus::View => StatusColumns::View,
            ValueStatus::Value => StatusColumns::Value,
        },
        event_timestamps: options.event_timestamps,
        zoneless: if options.zoneless_is_utc { Zoneless::Utc } else { Zoneless::Refuse },
        memory_bytes,
        ..Options::new(options.timestamp.clone())
    }
}

/// What an answer says of itself.
pub(crate) fn provenance(retrieval: &Retrieval) -> HashMap<String, String> {
    let tables: serde_json::Map<String, serde_json::Value> =
        retrieval.tables().into_iter().map(|(name, version)| (name.to_string(), version.into())).collect();
    let service = retrieval.service_name().map(|name| ("holdfast.feature_service".to_owned(), name));
    [
        ("holdfast.features".to_owned(), retrieval.features().join(",")),
        ("holdfast.tables".to_owned(), serde_json::Value::Object(tables).to_string()),
        ("holdfast.run".to_owned(), retrieval.run.to_string()),
    ]
    .into_iter()
    .chain(service)
    .collect()
}

fn with_metadata(schema: &SchemaRef, metadata: HashMap<String, String>) -> SchemaRef {
    let mut all = schema.metadata().clone();
    all.extend(metadata);
    Arc::new(schema.as_ref().clone().with_metadata(all))
}

/// The batch with the end of each row's horizon.
fn with_horizon(
    batch: &RecordBatch,
    at: usize,
    horizon: i64,
    known_until: Option<i64>,
    first_row: usize,
    schema: &SchemaRef,
) -> std::result::Result<RecordBatch, ArrowError> {
    // Nanoseconds go down, as the join takes them.
    let moments = cast(batch.column(at), &moment_type())?;
    let moments = moments.as_primitive::<TimestampMicrosecondType>();
    let mut ends = Vec::with_capacity(moments.len());
    for (row, moment) in moments.iter().enumerate() {
        let end = moment.map(|moment| moment.saturating_add(horizon));
        if let (Some(end), Some(known_until)) = (end, known_until)
            && end > known_until
        {
            let until = DateTime::from_timestamp_micros(known_until).map_or_else(String::new, |at| at.to_rfc3339());
            return Err(ArrowError::ParseError(format!(
                "row {}: its horizon ends after {until}, up to when the label is known: leave such rows out, or say --open-horizon",
                first_row + row
            )));
        }
        ends.push(end);
    }
    let ends: ArrayRef = Arc::new(TimestampMicrosecondArray::from(ends).with_timezone("UTC"));
    let columns = batch.columns().iter().cloned().chain([ends]).collect();
    RecordBatch::try_new(Arc::clone(schema), columns)
}

fn moment_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC")))
}

fn missing(column: &str) -> FeatureStoreError {
    FeatureStoreError::Request(format!(
        "the spine has no column {column}: it holds the moment of each row; name another with --timestamp"
    ))
}
