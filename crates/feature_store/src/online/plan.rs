//! How requests of one kind are answered from memory: resolved once for a run, then used for any number of keys.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, DictionaryArray, Int8Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Int8Type, Schema, SchemaRef, TimeUnit};
use arrow::error::ArrowError;
use chrono::{DateTime, Utc};
use holdfast_engine::FeatureReference;
use holdfast_features::{EVENT_TIMESTAMP, Status, status_type};
use holdfast_types::TableName;

use super::keys::{KeyHash, Keys};
use super::packing::{event_of, is_deletion};
use super::{OnlineColumns, OnlineKeys, OnlineTable, State};
use crate::historical::ValueStatus;
use crate::retrieval::Asked;
use crate::served::{ServedFrom, ServedView};
use crate::{FeatureStoreError, Result};

/// What requests of a kind come to in one run: versions, places in memory and columns. It goes on with that run for as long as it is held.
#[derive(Debug)]
pub struct OnlinePlan {
    run: u64,
    pinned: Asked,
    columns: OnlineColumns,
    keys: Vec<FieldRef>,
    views: Vec<PlannedView>,
    schema: SchemaRef,
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
    /// The table that the view is.
    pub table: TableName,
    /// Its version.
    pub version: u32,
    /// Its features, each with its column; the column of a feature's status is called `<column>__status`.
    pub features: Vec<(String, String)>,
    /// Whether there is a row.
    pub status: String,
    /// When the row's event was.
    pub event_timestamp: String,
}

/// The bytes of keys, one behind the other, and where each is looked for. A key with a null is nobody's.
struct Wanted {
    bytes: Vec<u8>,
    keys: Vec<Option<(std::ops::Range<usize>, KeyHash)>>,
}

impl OnlinePlan {
    pub(super) fn of(state: &State, asked: &Asked, columns: OnlineColumns) -> Result<Self> {
        let (service, wanted) = state.wanted(asked)?;
        if wanted.is_empty() {
            return Err(FeatureStoreError::Request("no feature is asked for: name a service or features".to_owned()));
        }
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
                let column = if columns.full_names { format!("{label}__{feature}") } else { feature.clone() };
                fields.push(Arc::new(table.schema.features()[place].as_ref().clone().with_name(&column)));
                if columns.status == ValueStatus::Value {
                    fields.push(Arc::new(Field::new(format!("{column}__status"), status_type(), false)));
                }
                places.push(place);
                names.push(format!("{}@v{}:{feature}", view.view.name, view.version));
                pinned.push(FeatureReference {
                    view: view.view.name.clone(),
                    version: Some(view.version),
                    feature: Some(feature.clone()),
                });
            }
            if columns.status != ValueStatus::None {
                fields.push(Arc::new(Field::new(format!("{label}__status"), status_type(), false)));
            }
            if columns.event_timestamps {
                fields.push(Arc::new(Field::new(format!("{label}__{EVENT_TIMESTAMP}"), moment_type(), true)));
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
        // A key may be null in the question: it is nobody's.
        fields.splice(0..0, keys.iter().map(|key| Arc::new(key.as_ref().clone().with_nullable(true))));
        for (at, field) in fields.iter().enumerate() {
            if fields[..at].iter().any(|known| known.name() == field.name()) {
                return Err(FeatureStoreError::Request(format!(
                    "two columns of the answer are called {}: ask for full names, or rename one",
                    field.name()
                )));
            }
        }
        let key_names = keys.iter().map(|key| key.name().clone()).collect();
        let served_from = ServedFrom { run: state.run, columns, keys: key_names, views: served };
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
        Ok(Self {
            run: state.run,
            pinned: service.map_or(Asked::Features(pinned), Asked::Service),
            columns,
            keys,
            views,
            schema: Arc::new(Schema::new_with_metadata(fields, metadata)),
            served_from: serde_json::to_string(&served_from).map_err(written)?.into(),
            words: Arc::new(StringArray::from_iter_values(Status::ALL.map(Status::as_str))),
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

    /// The columns of answers: keys, then of each view its features and statuses. Its metadata says where they are from.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// What the columns of each view are called.
    pub fn columns_by_view(&self) -> Vec<ViewColumns> {
        let full_names = self.columns.full_names;
        let of = |view: &PlannedView| {
            let fields = view.table.schema.features();
            let name = |feature: &usize| {
                let feature = fields[*feature].name().clone();
                let column = if full_names { format!("{}__{feature}", view.label) } else { feature.clone() };
                (feature, column)
            };
            ViewColumns {
                view: view.name.clone(),
                table: view.made_by.clone(),
                version: view.version,
                features: view.features.iter().map(name).collect(),
                status: format!("{}__status", view.label),
                event_timestamp: format!("{}__{EVENT_TIMESTAMP}", view.label),
            }
        };
        self.views.iter().map(of).collect()
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
        columns.reserve(self.schema.fields().len());
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
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }

    fn view(&self, view: &PlannedView, wanted: &Wanted, at: i64, columns: &mut Vec<ArrayRef>) -> Result<()> {
        let table = &view.table;
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

    fn statuses(&self, statuses: impl Iterator<Item = Status>) -> Result<ArrayRef> {
        let code = |status: Status| Status::ALL.iter().position(|known| *known == status);
        let codes: Int8Array = statuses.map(|status| i8::try_from(code(status)?).ok()).collect();
        Ok(Arc::new(DictionaryArray::<Int8Type>::try_new(codes, Arc::clone(&self.words))?))
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
