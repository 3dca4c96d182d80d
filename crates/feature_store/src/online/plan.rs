//! How requests of one kind are answered from memory: resolved once for a run, then used for any number of keys.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatch, TimestampMicrosecondArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use chrono::{DateTime, Utc};
use holdfast_engine::FeatureReference;
use holdfast_features::{
    Status, event_timestamp_column, feature_column, status_column, status_column_of, status_type, status_words,
};
use holdfast_types::TableName;

use super::keys::{KeyHash, Keys};
use super::packing::{event_of, is_deletion};
use super::{OnlineColumns, OnlineKeys, OnlineShare, OnlineTable, State};
use crate::historical::ValueStatus;
use crate::on_demand::{OnDemand, OnDemandOutput, OutputOptions, ShownPart, no_value, of_type};
use crate::retrieval::{Asked, ReadFeature};
use crate::served::{ServedFrom, ServedView};
use crate::{FeatureStoreError, Result};

/// What requests of a kind come to in one run: versions, places in memory and columns. It goes on with that run for as long as it is held.
#[derive(Debug)]
pub struct OnlinePlan {
    run: u64,
    share: OnlineShare,
    pinned: Asked,
    columns: OnlineColumns,
    keys: Vec<FieldRef>,
    /// What comes with the keys, for on-demand features.
    request: Vec<FieldRef>,
    views: Vec<PlannedView>,
    /// The columns that are looked up.
    read: SchemaRef,
    /// The columns of answers.
    schema: SchemaRef,
    on_demand: Option<(OnDemand, OnDemandOutput)>,
    /// As JSON, for samples of answers.
    served_from: Arc<str>,
    /// The words of statuses.
    words: ArrayRef,
}

#[derive(Debug)]
struct PlannedView {
    name: String,
    /// The table that the view is.
    made_by: TableName,
    version: u32,
    /// What columns call it.
    label: String,
    table: Arc<OnlineTable>,
    ttl_us: Option<i64>,
    /// By their place in the view.
    features: Vec<usize>,
}

/// What the columns of a view are called in an answer; those of the view itself where they are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewColumns {
    /// The view.
    pub view: String,
    /// Its version.
    pub version: u32,
    /// Its features, each with its column; the column of a feature's status is called `<column>__status`.
    pub features: Vec<(String, String)>,
    /// When the row's event was; on-demand features have none.
    pub event_timestamp: Option<String>,
}

/// The bytes of keys, one behind the other, and where each is looked for. A key with a null is nobody's.
struct Wanted {
    bytes: Vec<u8>,
    keys: Vec<Option<(std::ops::Range<usize>, KeyHash)>>,
}

impl OnlinePlan {
    pub(super) fn of(state: &State, asked: &Asked, columns: OnlineColumns) -> Result<Self> {
        let (service, (wanted, on_demand)) = state.wanted(asked)?;
        if wanted.is_empty() {
            return Err(FeatureStoreError::Request("no feature is asked for: name a service or features".to_owned()));
        }
        let request = match &on_demand {
            Some(asked) => asked.request()?,
            None => Vec::new(),
        };
        // Expressions read under full names.
        let full_names = columns.full_names || on_demand.is_some();
        let mut keys: Vec<FieldRef> = Vec::new();
        let (mut fields, mut views): (Vec<FieldRef>, Vec<PlannedView>) = (Vec::new(), Vec::new());
        let (mut tables, mut names, mut pinned) = (serde_json::Map::new(), Vec::new(), Vec::new());
        let mut served = Vec::new();
        for (view, features) in &wanted {
            let table = state.table(view)?;
            for key in table.schema.keys() {
                if !keys.iter().any(|known| known.name() == key.name()) {
                    keys.push(Arc::clone(key));
                }
            }
            let several = wanted.iter().filter(|(other, _)| other.view.name == view.view.name).count() > 1;
            let label = if several { format!("{}_v{}", view.view.name, view.version) } else { view.view.name.clone() };
            let mut places = Vec::with_capacity(features.len());
            for feature in features {
                let place = table.schema.features().iter().position(|field| field.name() == feature);
                let place = place.ok_or_else(|| {
                    FeatureStoreError::NotFound(format!("the history of {} has no feature `{feature}`", view.view.name))
                })?;
                let column = feature_column(&label, feature, full_names);
                fields.push(Arc::new(table.schema.features()[place].as_ref().clone().with_name(&column)));
                if columns.status == ValueStatus::Value {
                    fields.push(Arc::new(Field::new(status_column_of(&column), status_type(), false)));
                }
                places.push(place);
                if on_demand.is_none() {
                    names.push(format!("{}@v{}:{feature}", view.view.name, view.version));
                    pinned.push(FeatureReference {
                        view: view.view.name.clone(),
                        version: Some(view.version),
                        feature: Some(feature.clone()),
                    });
                }
            }
            if columns.status != ValueStatus::None {
                fields.push(Arc::new(Field::new(status_column_of(&label), status_type(), false)));
            }
            if columns.event_timestamps {
                fields.push(Arc::new(Field::new(event_timestamp_column(&label), moment_type(), true)));
            }
            tables.insert(view.history.to_string(), table.version.into());
            let ttl_us = view.view.ttl_s.map(|ttl| ttl.saturating_mul(1_000_000));
            let (name, table) = (view.view.name.clone(), Arc::clone(table));
            served.push(ServedView {
                view: name.clone(),
                version: view.version,
                label: label.clone(),
                table: view.history.clone(),
                table_version: table.version,
                step: table.step,
                features: features.clone(),
            });
            let made_by = view.view.table.clone();
            views.push(PlannedView { name, made_by, version: view.version, label, table, ttl_us, features: places });
        }
        for part in on_demand.iter().flat_map(|asked| &asked.parts) {
            names.extend(part.references());
            pinned.extend(part.features.iter().map(|feature| FeatureReference {
                view: part.view.clone(),
                version: Some(part.version),
                feature: Some(feature.clone()),
            }));
        }
        // A key may be null in the question: it is nobody's.
        let given = keys.iter().map(|key| Arc::new(key.as_ref().clone().with_nullable(true)));
        fields.splice(0..0, given.chain(request.iter().cloned()));
        for (at, field) in fields.iter().enumerate() {
            if fields[..at].iter().any(|known| known.name() == field.name()) {
                return Err(FeatureStoreError::Request(format!(
                    "two columns of the answer are called {}: ask for full names, or rename one",
                    field.name()
                )));
            }
        }
        let key_names = keys.iter().map(|key| key.name().clone()).collect();
        let served_from = ServedFrom {
            run: state.run,
            columns,
            keys: key_names,
            views: served,
            request: request.iter().map(|value| value.name().clone()).collect(),
            shown: on_demand.as_ref().map(|asked| asked.parts.clone()).unwrap_or_default(),
        };
        let written = |error: serde_json::Error| ArrowError::JsonError(error.to_string());
        let service = service.map(|version| format!("{}@v{}", version.service.name, version.version));
        let metadata: HashMap<String, String> = [
            ("holdfast.features".to_owned(), names.join(",")),
            ("holdfast.tables".to_owned(), serde_json::Value::Object(tables).to_string()),
            ("holdfast.run".to_owned(), state.run.to_string()),
        ]
        .into_iter()
        .chain(service.iter().map(|service| ("holdfast.feature_service".to_owned(), service.clone())))
        .collect();
        let read: SchemaRef = Arc::new(Schema::new_with_metadata(fields, metadata));
        let on_demand = match on_demand {
            Some(asked) => {
                let label_of = |view: &str, version: u32| {
                    let is_it = |known: &&PlannedView| known.name == view && known.version == version;
                    views.iter().find(is_it).map(|view| view.label.clone())
                };
                let output = OutputOptions {
                    full_names: columns.full_names,
                    status: columns.status,
                    event_timestamps: columns.event_timestamps,
                };
                let output = OnDemandOutput::new(&read, keys.len() + request.len(), &asked, label_of, output)?;
                Some((asked, output))
            }
            None => None,
        };
        let schema = Arc::clone(on_demand.as_ref().map_or(&read, |(_, output)| output.schema()));
        Ok(Self {
            run: state.run,
            share: state.share,
            pinned: service.map_or(Asked::Features(pinned), Asked::Service),
            columns,
            keys,
            request,
            views,
            read,
            schema,
            on_demand,
            served_from: serde_json::to_string(&served_from).map_err(written)?.into(),
            words: status_words(),
        })
    }

    /// The run that it answers from.
    pub fn run(&self) -> u64 {
        self.run
    }

    /// The same with the versions that were meant: other runs answer it with the same columns.
    pub fn pinned(&self) -> (&Asked, OnlineColumns) {
        (&self.pinned, self.columns)
    }

    /// The key columns of all views, each once, with their types.
    pub fn keys(&self) -> &[FieldRef] {
        &self.keys
    }

    /// The values of the request that come beside the keys, with their types.
    pub fn request(&self) -> &[FieldRef] {
        &self.request
    }

    /// The columns of answers: keys and values of the request, then of each view its features and statuses. Its metadata says where they are from.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// What the columns of each view are called, of stored views and of on-demand ones.
    pub fn columns_by_view(&self) -> Vec<ViewColumns> {
        let full = self.columns.full_names;
        let named = |label: &str, feature: &String| (feature.clone(), feature_column(label, feature, full));
        let of_stored = |view: &PlannedView, features: &[String]| ViewColumns {
            view: view.name.clone(),
            version: view.version,
            features: features.iter().map(|feature| named(&view.label, feature)).collect(),
            event_timestamp: Some(event_timestamp_column(&view.label)),
        };
        let Some((asked, _)) = &self.on_demand else {
            return self.views.iter().map(|view| of_stored(view, &view.names())).collect();
        };
        let of = |part: &ShownPart| {
            if part.on_demand {
                let label = asked.label(part);
                return Some(ViewColumns {
                    view: part.view.clone(),
                    version: part.version,
                    features: part.features.iter().map(|feature| named(&label, feature)).collect(),
                    event_timestamp: None,
                });
            }
            let is_it = |view: &&PlannedView| view.name == part.view && view.version == part.version;
            self.views.iter().find(is_it).map(|view| of_stored(view, &part.features))
        };
        asked.parts.iter().filter_map(of).collect()
    }

    /// The stored features that are read, and the columns that show them.
    pub fn read_features(&self) -> Vec<ReadFeature> {
        let mut read = Vec::new();
        for view in &self.views {
            let one = |feature: &String, column| ReadFeature {
                table: view.made_by.clone(),
                view: view.name.clone(),
                feature: feature.clone(),
                column,
            };
            let shown = match &self.on_demand {
                None => view.names(),
                Some((asked, _)) => asked.shown(&view.name, view.version).cloned().unwrap_or_default(),
            };
            for feature in &shown {
                let column = feature_column(&view.label, feature, self.columns.full_names);
                read.push(one(feature, Some(column)));
            }
            let inputs = self.on_demand.iter().flat_map(|(asked, _)| asked.inputs(&view.name, view.version));
            read.extend(inputs.map(|feature| one(feature, None)));
        }
        read
    }

    /// All that it takes to work an answer out again.
    pub(crate) fn served_from(&self) -> &Arc<str> {
        &self.served_from
    }

    /// What the keys have at a moment: one row for each, in their order.
    ///
    /// # Errors
    /// A key column that is not there or of another type; a moment before what is in memory became known, which history alone can answer.
    pub fn answer(&self, keys: &OnlineKeys, at: DateTime<Utc>) -> Result<RecordBatch> {
        let at = at.timestamp_micros();
        let key_columns: Vec<ArrayRef> = self.keys.iter().map(|key| key_column(keys, key)).collect::<Result<_>>()?;
        let mut columns = key_columns.clone();
        columns.reserve(self.read.fields().len());
        for value in &self.request {
            let view = || self.on_demand.as_ref().map(|(asked, _)| asked.needing(value.name())).unwrap_or_default();
            let column = keys.column_by_name(value.name()).ok_or_else(|| no_value(value, &view()))?;
            columns.push(of_type(column, value, &view())?);
        }
        // Mostly all views have the same keys.
        let mut wanted: Vec<(Vec<usize>, Wanted)> = Vec::new();
        for view in &self.views {
            if view.table.known_last() > at {
                return Err(FeatureStoreError::Request(format!(
                    "the features of {} in memory became known after that moment: ask for features as of moments",
                    view.name
                )));
            }
            let place = |key: &FieldRef| self.keys.iter().position(|known| known.name() == key.name());
            let own: Vec<usize> = view.table.schema.keys().iter().filter_map(place).collect();
            let known = match wanted.iter().position(|(columns, _)| *columns == own) {
                Some(known) => known,
                None => {
                    let columns: Vec<ArrayRef> = own.iter().map(|at| Arc::clone(&key_columns[*at])).collect();
                    wanted.push((own, Wanted::of(&columns, keys.num_rows())));
                    wanted.len() - 1
                }
            };
            self.view(view, &wanted[known].1, at, &mut columns)?;
        }
        let read = RecordBatch::try_new(Arc::clone(&self.read), columns)?;
        let Some((_, output)) = &self.on_demand else { return Ok(read) };
        let moments = TimestampMicrosecondArray::from_value(at, read.num_rows()).with_timezone("UTC");
        output.of(&read, &(Arc::new(moments) as ArrayRef))
    }

    fn view(&self, view: &PlannedView, wanted: &Wanted, at: i64, columns: &mut Vec<ArrayRef>) -> Result<()> {
        let table = &view.table;
        if self.share.of() > 1 {
            self.all_are_held(view, wanted)?;
        }
        let oldest = view.ttl_us.map_or(i64::MIN, |ttl| at.saturating_sub(ttl));
        // One thing for all keys, then the next: memory answers many questions at once that do not wait for each other.
        let slabs: Vec<_> = wanted
            .keys
            .iter()
            .map(|key| {
                let (bytes, hash) = key.as_ref()?;
                Some((table.buckets[hash.bucket(table.buckets.len())].slab(*hash), &wanted.bytes[bytes.clone()], hash))
            })
            .collect();
        let mut rows: Vec<Option<&[u8]>> = slabs
            .iter()
            .map(|slab| slab.and_then(|(slab, key, hash)| slab.find(&table.packing, hash.tag(), key)))
            .collect();
        let mut statuses = Vec::with_capacity(rows.len());
        let mut events = Vec::with_capacity(if self.columns.event_timestamps { rows.len() } else { 0 });
        for row in &mut rows {
            let found = row.filter(|row| !is_deletion(row));
            let event = found.map(event_of);
            let status = match event {
                None => Status::NotFound,
                Some(event) if event < oldest => Status::OutsideMaxAge,
                Some(_) => Status::Present,
            };
            *row = found.filter(|_| status == Status::Present);
            statuses.push(status);
            if self.columns.event_timestamps {
                events.push(event);
            }
        }
        for feature in &view.features {
            let values = table.packing.column(*feature, &rows)?;
            if self.columns.status == ValueStatus::Value {
                let of_values = statuses.iter().enumerate().map(|(row, status)| match status {
                    Status::Present if values.is_null(row) => Status::NullValue,
                    other => *other,
                });
                let of_values = self.statuses(of_values)?;
                columns.extend([values, of_values]);
            } else {
                columns.push(values);
            }
        }
        if self.columns.status != ValueStatus::None {
            columns.push(self.statuses(statuses.into_iter())?);
        }
        if self.columns.event_timestamps {
            columns.push(Arc::new(TimestampMicrosecondArray::from(events).with_timezone("UTC")));
        }
        Ok(())
    }

    fn all_are_held(&self, view: &PlannedView, wanted: &Wanted) -> Result<()> {
        let buckets = view.table.buckets.len();
        for (row, key) in wanted.keys.iter().enumerate() {
            let Some((_, hash)) = key else { continue };
            let bucket = u32::try_from(hash.bucket(buckets)).unwrap_or_default();
            if !self.share.holds(bucket) {
                let (share, node) = (self.share, bucket % self.share.of() + 1);
                return Err(FeatureStoreError::Request(format!(
                    "row {row}: its key is in bucket {bucket} of {buckets} of {}, which node {node} of {} holds, and this is node {share}: \
                     ask that one",
                    view.name,
                    share.of()
                )));
            }
        }
        Ok(())
    }

    fn statuses(&self, statuses: impl Iterator<Item = Status>) -> Result<ArrayRef> {
        Ok(status_column(statuses.map(|status| Some(status.code())).collect(), &self.words)?)
    }
}

impl PlannedView {
    fn names(&self) -> Vec<String> {
        self.features.iter().map(|at| self.table.schema.features()[*at].name().clone()).collect()
    }
}

impl Wanted {
    fn of(columns: &[ArrayRef], rows: usize) -> Self {
        let keys = Keys::new(columns);
        let (mut bytes, mut found) = (Vec::new(), Vec::with_capacity(rows));
        for row in 0..rows {
            if keys.is_null(row) {
                found.push(None);
                continue;
            }
            let begin = bytes.len();
            keys.append(row, &mut bytes);
            let key = begin..bytes.len();
            found.push(Some((key.clone(), KeyHash::of(&bytes[key]))));
        }
        Self { bytes, keys: found }
    }
}

/// A key column of the question in the type of history.
fn key_column(keys: &OnlineKeys, key: &FieldRef) -> Result<ArrayRef> {
    let Some(column) = keys.column_by_name(key.name()) else {
        return Err(FeatureStoreError::Request(format!("the keys have no column {}", key.name())));
    };
    let fits = match (column.data_type(), key.data_type()) {
        (found, wanted) if found == wanted => return Ok(Arc::clone(column)),
        (
            DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::UInt8 | DataType::UInt16 | DataType::UInt32,
            DataType::Int64,
        ) => true,
        (DataType::LargeUtf8 | DataType::Utf8View, DataType::Utf8) => true,
        (DataType::Dictionary(_, values), wanted) => values.as_ref() == wanted,
        _ => false,
    };
    if !fits {
        let (name, found, wanted) = (key.name(), column.data_type(), key.data_type());
        return Err(FeatureStoreError::Request(format!("the key {name} is {found}, expected {wanted}")));
    }
    Ok(cast(column, key.data_type())?)
}

fn moment_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC")))
}
