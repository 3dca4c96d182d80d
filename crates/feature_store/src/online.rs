//! Features from memory: of each key of an online view its latest row, as the newest published run has it.
//!
//! A history is held in layers, each with the latest row of the keys that some published versions changed. A newer version adds a layer, at a cost of its own size; layers are merged as they grow, so
//! that there are few. Readers hold the whole state while they answer: a new one is put in its place in one step, so nobody sees half of it.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, PoisonError, RwLock};

use arrow::array::{
    Array, ArrayRef, AsArray, DictionaryArray, Int8Array, RecordBatch, StringArray, TimestampMicrosecondArray,
    UInt32Array, new_null_array,
};
use arrow::compute::{cast, interleave, interleave_record_batch, take_record_batch};
use arrow::datatypes::{
    DataType, Field, FieldRef, Int8Type, Int64Type, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType,
};
use arrow::row::{RowConverter, SortField};
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use holdfast_engine::{FeatureView, Registry, ServiceVersion, ViewVersion, history_of, named};
use holdfast_features::{
    DELETED, EVENT_TIMESTAMP, HistoryFile, HistorySchema, KNOWN_AT, Status, VERSION, read_history_file, status_type,
};
use holdfast_lake::Lake;
use holdfast_types::TableName;

use crate::historical::ValueStatus;
use crate::retrieval::Asked;
use crate::{FeatureStoreError, Result};

/// Rows of a file that are looked at at once.
const READ_ROWS: usize = 8_192;
/// Rows that are held in one piece at most: offsets of texts are counted in 32 bits.
const PIECE_ROWS: usize = 262_144;

/// How features are asked of memory.
#[derive(Debug, Clone, Copy)]
pub struct OnlineOptions {
    /// Columns are called `view__feature`.
    pub full_names: bool,
    /// Which status columns there are.
    pub status: ValueStatus,
    /// Whether there is `view__event_timestamp`.
    pub event_timestamps: bool,
    /// The moment of the question: what is known later is not seen, and what is older than a ttl before it is not given.
    pub at: DateTime<Utc>,
}

/// Whose features are asked for: one row each, with the key columns of all views that are asked.
pub type OnlineKeys = RecordBatch;

/// One row for each key, in their order.
#[derive(Debug, Clone)]
pub struct OnlineAnswer {
    /// The key columns, then of each view its features and statuses, as [`crate::historical_features`] has them. Its schema says where they are from.
    pub rows: RecordBatch,
}

/// The online views of a lake, in memory.
#[derive(Debug)]
pub struct OnlineStore {
    lake: Lake,
    state: RwLock<Arc<State>>,
    /// One publish at a time.
    publishing: tokio::sync::Mutex<()>,
}

/// What readers see.
#[derive(Debug, Default)]
struct State {
    run: u64,
    /// Every version of the views whose newest version is online, by name.
    views: BTreeMap<String, Vec<ViewVersion>>,
    services: BTreeMap<String, Vec<ServiceVersion>>,
    /// By history.
    tables: BTreeMap<TableName, Arc<OnlineTable>>,
}

/// A history in memory.
#[derive(Debug)]
struct OnlineTable {
    version: u64,
    /// Up to which version of history.
    step: i64,
    schema: HistorySchema,
    /// The oldest first.
    layers: Vec<Arc<Layer>>,
}

/// The latest row of some keys.
#[derive(Debug)]
struct Layer {
    pieces: Vec<RecordBatch>,
    /// Where the row of a key is: piece and row.
    index: HashMap<Box<[u8]>, (usize, usize)>,
}

impl OnlineStore {
    /// Nothing, until [`OnlineStore::refresh`].
    pub fn new(lake: &Lake) -> Self {
        Self { lake: lake.clone(), state: RwLock::default(), publishing: tokio::sync::Mutex::new(()) }
    }

    /// The moment that it is by the lake's clock.
    pub fn now(&self) -> DateTime<Utc> {
        self.lake.clock().now()
    }

    /// The run that is served from memory; 0 before the first.
    pub fn run(&self) -> u64 {
        self.state().run
    }

    /// Takes the newest published run into memory; answers whether there was a newer one. Costs what changed since the one before. When it fails, readers keep what they have.
    ///
    /// # Errors
    /// What the lake answers.
    pub async fn refresh(&self) -> Result<bool> {
        let _one = self.publishing.lock().await;
        let before = self.state();
        let Some(manifest) = self.lake.latest_manifest().await? else { return Ok(false) };
        if manifest.sequence <= before.run {
            return Ok(false);
        }
        let registry = Registry::new(&self.lake);
        let mut state = State { run: manifest.sequence, ..State::default() };
        for newest in registry.views().await?.into_iter().filter(|version| version.view.online) {
            let versions = registry.view_versions(&newest.view.name).await?;
            let histories: Vec<&TableName> = versions.iter().map(|version| &version.history).collect();
            for entry in manifest.tables.iter().filter(|entry| histories.contains(&&entry.name)) {
                let known = before.tables.get(&entry.name);
                let table = match known.filter(|table| table.version == entry.version) {
                    Some(table) => Arc::clone(table),
                    None => Arc::new(self.read(&entry.name, entry.version, known.map(AsRef::as_ref)).await?),
                };
                state.tables.insert(entry.name.clone(), table);
            }
            state.views.insert(newest.view.name.clone(), versions);
        }
        for newest in registry.services().await? {
            let name = newest.service.name;
            state.services.insert(name.clone(), registry.service_versions(&name).await?);
        }
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
        Ok(true)
    }

    /// What the keys have at a moment, from memory alone. As the point-in-time join answers for a spine of these keys and that moment (PIT-3).
    ///
    /// # Errors
    /// A service, view, version or feature that is not there or not online, keys of another type, two columns of one name.
    pub fn answer(&self, asked: &Asked, keys: &OnlineKeys, options: &OnlineOptions) -> Result<OnlineAnswer> {
        let state = self.state();
        let (service, wanted) = state.wanted(asked)?;
        let mut answer = Answer::new(keys);
        let mut tables = serde_json::Map::new();
        let mut names = Vec::new();
        for (view, features) in &wanted {
            let table = state.table(view)?;
            let several = wanted.iter().filter(|(other, _)| other.view.name == view.view.name).count() > 1;
            let label = if several { format!("{}_v{}", view.view.name, view.version) } else { view.view.name.clone() };
            table.answer(view, &label, features, keys, options, &mut answer)?;
            tables.insert(view.history.to_string(), table.version.into());
            names.extend(features.iter().map(|feature| format!("{}@v{}:{feature}", view.view.name, view.version)));
        }
        let service = service.map(|version| format!("{}@v{}", version.service.name, version.version));
        let metadata: HashMap<String, String> = [
            ("holdfast.features".to_owned(), names.join(",")),
            ("holdfast.tables".to_owned(), serde_json::Value::Object(tables).to_string()),
            ("holdfast.run".to_owned(), state.run.to_string()),
        ]
        .into_iter()
        .chain(service.map(|service| ("holdfast.feature_service".to_owned(), service)))
        .collect();
        Ok(OnlineAnswer { rows: answer.batch(metadata)? })
    }

    /// The key columns of what is asked for, each once, with their types.
    ///
    /// # Errors
    /// As of [`OnlineStore::answer`].
    pub fn keys_of(&self, asked: &Asked) -> Result<Vec<FieldRef>> {
        let state = self.state();
        let mut keys: Vec<FieldRef> = Vec::new();
        for (view, _) in state.wanted(asked)?.1 {
            for key in state.table(&view)?.schema.keys() {
                if !keys.iter().any(|known| known.name() == key.name()) {
                    keys.push(Arc::clone(key));
                }
            }
        }
        Ok(keys)
    }

    /// The views that are asked, with what columns call each and its features.
    ///
    /// # Errors
    /// As of [`OnlineStore::answer`].
    pub fn views_of(&self, asked: &Asked) -> Result<Vec<(FeatureView, String, Vec<String>)>> {
        let (_, wanted) = self.state().wanted(asked)?;
        let several = |name: &str| wanted.iter().filter(|(other, _)| other.view.name == name).count() > 1;
        let labelled = wanted.iter().map(|(version, features)| {
            let name = &version.view.name;
            let label = if several(name) { format!("{name}_v{}", version.version) } else { name.clone() };
            (version.view.clone(), label, features.clone())
        });
        Ok(labelled.collect())
    }

    /// The online views with the rows that are in memory, by name.
    pub fn views(&self) -> Vec<(String, u64)> {
        let state = self.state();
        let rows = |versions: &Vec<ViewVersion>| {
            let table = versions.last().and_then(|newest| state.tables.get(&newest.history));
            table.map_or(0, |table| table.layers.iter().map(|layer| layer.index.len() as u64).sum())
        };
        state.views.iter().map(|(name, versions)| (name.clone(), rows(versions))).collect()
    }

    fn state(&self) -> Arc<State> {
        // A poisoned lock still holds a whole state: writers only ever swap the pointer.
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A history at a version of its table, gone on to from what is known of it.
    async fn read(&self, name: &TableName, version: u64, known: Option<&OnlineTable>) -> Result<OnlineTable> {
        let table = self.lake.table_at(name, version).await?;
        let (schema, history) = history_of(&table)?;
        let (mut layers, since) = match known {
            Some(known) => (known.layers.clone(), known.step),
            None => (Vec::new(), 0),
        };
        let mut step = since;
        let mut rows = Vec::new();
        for file in history.all_files().filter(|file| *file.versions.end() > since) {
            step = step.max(*file.versions.end());
            self.read_file(&schema, file, since, &mut rows).await?;
        }
        if let Some(layer) = Layer::of(&schema, &rows)? {
            layers.push(Arc::new(layer));
        }
        // A layer is merged with what is not much bigger: so each row is moved a number of times that grows with the logarithm of what there is.
        while let [.., older, newer] = layers.as_slice()
            && older.index.len() <= 2 * newer.index.len()
        {
            let pieces: Vec<RecordBatch> = older.pieces.iter().chain(&newer.pieces).cloned().collect();
            let merged = Layer::of(&schema, &pieces)?;
            layers.truncate(layers.len() - 2);
            layers.extend(merged.map(Arc::new));
        }
        Ok(OnlineTable { version, step, schema, layers })
    }

    /// Of each batch of a file the last row of each key, of versions behind `since`.
    async fn read_file(
        &self,
        schema: &HistorySchema,
        file: &HistoryFile,
        since: i64,
        rows: &mut Vec<RecordBatch>,
    ) -> Result<()> {
        let mut batches = read_history_file(self.lake.store(), schema, file, READ_ROWS).await?;
        while let Some(batch) = batches.try_next().await? {
            let keys = key_rows(schema, &batch.columns()[..schema.keys().len()])?;
            let versions = version_column(&batch)?;
            let is_last = |row: usize| row + 1 == batch.num_rows() || keys.row(row) != keys.row(row + 1);
            let mut last: Option<usize> = None;
            let mut kept = Vec::new();
            for (row, &version) in versions.iter().enumerate() {
                if version > since {
                    last = Some(row);
                }
                if is_last(row) {
                    kept.extend(last.take().and_then(|row| u32::try_from(row).ok()));
                }
            }
            if !kept.is_empty() {
                rows.push(take_record_batch(&batch, &UInt32Array::from(kept))?);
            }
        }
        Ok(())
    }
}

/// A view, and the features of it that are meant.
type Wanted = (ViewVersion, Vec<String>);

/// A key as bytes.
type Key = Box<[u8]>;

/// A batch and a row in it.
type RowPlace = (usize, usize);

impl State {
    /// The views and features that are meant.
    fn wanted(&self, asked: &Asked) -> Result<(Option<&ServiceVersion>, Vec<Wanted>)> {
        let mut wanted: Vec<Wanted> = Vec::new();
        let mut add = |view: &ViewVersion, feature: &str| {
            if view.view.feature(feature).is_none() {
                let known =
                    view.view.features.iter().map(|feature| feature.name.clone()).collect::<Vec<_>>().join(", ");
                return Err(FeatureStoreError::NotFound(format!(
                    "the feature view `{}` has no feature `{feature}`; it has: {known}",
                    view.view.name
                )));
            }
            let is_same = |(known, _): &&mut (ViewVersion, Vec<String>)| {
                known.view.name == view.view.name && known.version == view.version
            };
            match wanted.iter_mut().find(is_same) {
                Some((_, features)) if features.iter().any(|known| known == feature) => {}
                Some((_, features)) => features.push(feature.to_owned()),
                None => wanted.push((view.clone(), vec![feature.to_owned()])),
            }
            Ok(())
        };
        match asked {
            Asked::Service(name) => {
                let (name, version) = named(name).map_err(FeatureStoreError::Request)?;
                let versions = self.services.get(&name);
                let found = versions.and_then(|versions| match version {
                    Some(version) => versions.iter().find(|found| found.version == version),
                    None => versions.last(),
                });
                let service = found.ok_or_else(|| {
                    let version = version.map_or_else(String::new, |version| format!("@v{version}"));
                    let known = self.services.keys().cloned().collect::<Vec<_>>().join(", ");
                    FeatureStoreError::NotFound(format!(
                        "no feature service is called `{name}{version}`; there are: {known}"
                    ))
                })?;
                for feature in &service.service.features {
                    add(self.view(&feature.view, Some(feature.version))?, &feature.feature)?;
                }
                Ok((Some(service), wanted))
            }
            Asked::Features(references) => {
                for reference in references {
                    let view = self.view(&reference.view, reference.version)?;
                    match &reference.feature {
                        Some(feature) => add(view, feature)?,
                        None => view.view.features.iter().try_for_each(|feature| add(view, &feature.name))?,
                    }
                }
                Ok((None, wanted))
            }
        }
    }

    fn view(&self, name: &str, version: Option<u32>) -> Result<&ViewVersion> {
        let versions = self.views.get(name).ok_or_else(|| {
            let known = self.views.keys().cloned().collect::<Vec<_>>().join(", ");
            FeatureStoreError::NotFound(format!(
                "no online feature view is called `{name}`: a view is online with `@feature online`; online are: {known}"
            ))
        })?;
        let found = match version {
            Some(version) => versions.iter().find(|found| found.version == version),
            None => versions.last(),
        };
        found.ok_or_else(|| FeatureStoreError::NotFound(format!("the feature view `{name}` has no such version")))
    }

    fn table(&self, view: &ViewVersion) -> Result<&OnlineTable> {
        self.tables.get(&view.history).map(AsRef::as_ref).ok_or_else(|| {
            FeatureStoreError::NotFound(format!(
                "no published run has made {}@v{} yet: use `holdfast run`",
                view.view.name, view.version
            ))
        })
    }
}

/// Where a row stands in history.
type Place = (i64, i64, i64);

impl Layer {
    /// The latest row of each key; nothing when there are no rows. Rows that agree in all of their place: the last one.
    fn of(schema: &HistorySchema, rows: &[RecordBatch]) -> Result<Option<Self>> {
        let mut best: HashMap<Key, (Place, RowPlace)> = HashMap::new();
        for (at, batch) in rows.iter().enumerate() {
            let keys = key_rows(schema, &batch.columns()[..schema.keys().len()])?;
            let (events, knowns) = (moment_column(batch, EVENT_TIMESTAMP)?, moment_column(batch, KNOWN_AT)?);
            let versions = version_column(batch)?;
            for (row, key) in keys.iter().enumerate() {
                let place = (events[row], knowns[row], versions[row]);
                let found = best.entry(key.data().into()).or_insert((place, (at, row)));
                if found.0 <= place {
                    *found = (place, (at, row));
                }
            }
        }
        if best.is_empty() {
            return Ok(None);
        }
        let mut chosen: Vec<(Key, RowPlace)> = best.into_iter().map(|(key, (_, row))| (key, row)).collect();
        chosen.sort_unstable_by_key(|(_, row)| *row);
        let batches: Vec<&RecordBatch> = rows.iter().collect();
        let mut pieces = Vec::new();
        let mut index = HashMap::with_capacity(chosen.len());
        for chunk in chosen.chunks(PIECE_ROWS) {
            let rows: Vec<(usize, usize)> = chunk.iter().map(|(_, row)| *row).collect();
            for (row, (key, _)) in chunk.iter().enumerate() {
                index.insert(key.clone(), (pieces.len(), row));
            }
            pieces.push(interleave_record_batch(&batches, &rows)?);
        }
        Ok(Some(Self { pieces, index }))
    }
}

impl OnlineTable {
    fn answer(
        &self,
        view: &ViewVersion,
        label: &str,
        features: &[String],
        keys: &OnlineKeys,
        options: &OnlineOptions,
        answer: &mut Answer,
    ) -> Result<()> {
        let columns = self.schema.keys().iter().map(|key| key_column(keys, key)).collect::<Result<Vec<_>>>()?;
        let pieces: Vec<&RecordBatch> = self.layers.iter().flat_map(|layer| &layer.pieces).collect();
        let places = pieces.iter().map(|piece| Places::of(piece)).collect::<Result<Vec<_>>>()?;
        let at = options.at.timestamp_micros();
        let oldest = view.view.ttl_s.map_or(i64::MIN, |ttl| at.saturating_sub(ttl.saturating_mul(1_000_000)));
        let converted = key_rows(&self.schema, &columns)?;
        let mut found = Vec::with_capacity(keys.num_rows());
        let mut statuses = Vec::with_capacity(keys.num_rows());
        let mut events = Vec::with_capacity(keys.num_rows());
        for row in 0..keys.num_rows() {
            let is_null = columns.iter().any(|column| column.is_null(row));
            let best = if is_null { None } else { self.latest(converted.row(row).data(), &places, at) };
            let (status, place) = match best {
                None => (Status::NotFound, None),
                Some((piece, row)) if places[piece].deleted.value(row) => (Status::NotFound, None),
                Some((piece, row)) if places[piece].events[row] < oldest => (Status::OutsideMaxAge, Some((piece, row))),
                Some(place) => (Status::Present, Some(place)),
            };
            statuses.push(status);
            events.push(place.map(|(piece, row)| places[piece].events[row]));
            // The first array is a null.
            found.push(place.filter(|_| status == Status::Present).map_or((0, 0), |(piece, row)| (piece + 1, row)));
        }
        for feature in features {
            let field = self.schema.features().iter().find(|field| field.name() == feature).ok_or_else(|| {
                FeatureStoreError::NotFound(format!("the history of {} has no feature `{feature}`", view.view.name))
            })?;
            let null = new_null_array(field.data_type(), 1);
            let arrays: Vec<&dyn Array> = std::iter::once(null.as_ref())
                .chain(pieces.iter().filter_map(|piece| Some(piece.column_by_name(feature)?.as_ref())))
                .collect();
            let values = interleave(&arrays, &found)?;
            let column = if options.full_names { format!("{label}__{feature}") } else { feature.clone() };
            let codes = statuses.iter().enumerate().map(|(row, status)| match status {
                Status::Present if values.is_null(row) => Status::NullValue,
                other => *other,
            });
            let codes: Vec<Status> = codes.collect();
            answer.add(field.as_ref().clone().with_name(&column), values)?;
            if options.status == ValueStatus::Value {
                answer.add_status(&format!("{column}__status"), &codes)?;
            }
        }
        if options.status != ValueStatus::None {
            answer.add_status(&format!("{label}__status"), &statuses)?;
        }
        if options.event_timestamps {
            let field = Field::new(format!("{label}__{EVENT_TIMESTAMP}"), moment_type(), true);
            answer.add(field, Arc::new(TimestampMicrosecondArray::from(events).with_timezone("UTC")))?;
        }
        Ok(())
    }

    /// The last row of a key that was known at a moment, as a piece counted over all layers, and its row there.
    fn latest(&self, key: &[u8], places: &[Places<'_>], at: i64) -> Option<(usize, usize)> {
        let mut best: Option<(Place, (usize, usize))> = None;
        let mut first_piece = 0;
        for layer in &self.layers {
            if let Some((piece, row)) = layer.index.get(key) {
                let piece = first_piece + piece;
                let of = &places[piece];
                let place = (of.events[*row], of.knowns[*row], of.versions[*row]);
                let is_seen = place.0 <= at && place.1 <= at;
                if is_seen && best.is_none_or(|(other, _)| other <= place) {
                    best = Some((place, (piece, *row)));
                }
            }
            first_piece += layer.pieces.len();
        }
        best.map(|(_, place)| place)
    }
}

/// The columns of a piece that say where its rows stand.
struct Places<'a> {
    events: &'a [i64],
    knowns: &'a [i64],
    versions: &'a [i64],
    deleted: &'a arrow::array::BooleanArray,
}

impl<'a> Places<'a> {
    fn of(piece: &'a RecordBatch) -> Result<Self> {
        let deleted = piece.column_by_name(DELETED).and_then(|column| column.as_boolean_opt());
        Ok(Self {
            events: moment_column(piece, EVENT_TIMESTAMP)?,
            knowns: moment_column(piece, KNOWN_AT)?,
            versions: version_column(piece)?,
            deleted: deleted.ok_or_else(|| no_column(DELETED))?,
        })
    }
}

/// The columns of an answer.
struct Answer {
    fields: Vec<FieldRef>,
    columns: Vec<ArrayRef>,
    words: ArrayRef,
}

impl Answer {
    fn new(keys: &OnlineKeys) -> Self {
        let words: ArrayRef = Arc::new(StringArray::from_iter_values(Status::ALL.map(Status::as_str)));
        Self { fields: keys.schema().fields().to_vec(), columns: keys.columns().to_vec(), words }
    }

    fn add(&mut self, field: Field, column: ArrayRef) -> Result<()> {
        if self.fields.iter().any(|known| known.name() == field.name()) {
            return Err(FeatureStoreError::Request(format!(
                "two columns of the answer are called {}: ask for full names, or rename one",
                field.name()
            )));
        }
        self.fields.push(Arc::new(field));
        self.columns.push(column);
        Ok(())
    }

    fn add_status(&mut self, name: &str, statuses: &[Status]) -> Result<()> {
        let code = |status: &Status| Status::ALL.iter().position(|known| known == status);
        let codes: Int8Array = statuses.iter().map(|status| i8::try_from(code(status)?).ok()).collect();
        let column = DictionaryArray::<Int8Type>::try_new(codes, Arc::clone(&self.words))?;
        self.add(Field::new(name, status_type(), false), Arc::new(column))
    }

    fn batch(self, metadata: HashMap<String, String>) -> Result<RecordBatch> {
        let schema: SchemaRef = Arc::new(Schema::new_with_metadata(self.fields, metadata));
        Ok(RecordBatch::try_new(schema, self.columns)?)
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

fn key_rows(schema: &HistorySchema, columns: &[ArrayRef]) -> Result<arrow::row::Rows> {
    let fields = schema.keys().iter().map(|key| SortField::new(key.data_type().clone())).collect();
    Ok(RowConverter::new(fields)?.convert_columns(columns)?)
}

fn moment_column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a [i64]> {
    let column = batch.column_by_name(name).and_then(|column| column.as_primitive_opt::<TimestampMicrosecondType>());
    Ok(column.ok_or_else(|| no_column(name))?.values())
}

fn version_column(batch: &RecordBatch) -> Result<&[i64]> {
    let column = batch.column_by_name(VERSION).and_then(|column| column.as_primitive_opt::<Int64Type>());
    Ok(column.ok_or_else(|| no_column(VERSION))?.values())
}

/// History has these columns, or was refused when it was opened.
fn no_column(name: &str) -> FeatureStoreError {
    FeatureStoreError::Arrow(arrow::error::ArrowError::SchemaError(format!("rows of history without {name}")))
}

fn moment_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("UTC")))
}
