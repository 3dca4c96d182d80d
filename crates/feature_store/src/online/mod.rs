//! Features from memory: of each key of an online view its latest row, as the newest published run has it.
//!
//! ```text
//!  run ──► history: files that it added ──► packed rows ──► slabs of the keys that changed ─┐
//!                                                           all other slabs, as they are ───┴──► state, put in its place in one step
//!  request ──► OnlinePlan (versions, columns; known from the last request of its kind) ──► keys ──► rows ──► columns
//! ```
//!
//! Readers hold the whole state while they answer, so nobody sees half of a publish, and no publish waits for a reader.

mod keys;
mod packing;
mod plan;
mod share;
mod slab;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use arrow::array::RecordBatch;
use arrow::row::{RowConverter, SortField};
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use holdfast_engine::{FeatureReference, OnDemandVersion, Registry, ServiceVersion, ViewVersion, history_of, named};
use holdfast_features::{HistoryFile, HistorySchema, read_history_file};
use holdfast_lake::Lake;
use holdfast_types::{NoProgress, Progress, TableName};
use object_store::ObjectStore;
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use self::packing::{PackedRows, Packing, versions};
pub use self::plan::{OnlinePlan, ViewColumns};
pub use self::share::OnlineShare;
use self::slab::Bucket;
use crate::historical::ValueStatus;
use crate::on_demand::{Found, Gathered, features_of, gathered};
use crate::retrieval::Asked;
use crate::{FeatureStoreError, Result};

/// Rows of a file that are looked at at once.
const READ_ROWS: usize = 8_192;
/// Buckets that are read side by side.
const BUCKETS_READ: usize = 4;
/// Kinds of requests whose plans are remembered.
const PLANS_MAX: usize = 256;

/// Which columns an answer from memory has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct OnlineColumns {
    /// Columns are called `view__feature`.
    pub full_names: bool,
    /// Which status columns there are.
    pub status: ValueStatus,
    /// Whether there is `view__event_timestamp`.
    pub event_timestamps: bool,
}

/// Whose features are asked for: one row each, with the key columns of all views that are asked, and the values of the request that on-demand features need.
pub type OnlineKeys = RecordBatch;

/// The online views of a lake, in memory.
#[derive(Debug)]
pub struct OnlineStore {
    lake: Lake,
    share: OnlineShare,
    progress: Arc<dyn Progress>,
    state: RwLock<Arc<State>>,
    /// One publish at a time.
    publishing: tokio::sync::Mutex<()>,
}

/// An online view as far as it is in memory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewInMemory {
    /// Its name.
    pub name: String,
    /// Keys that have a row here.
    pub rows: u64,
    /// Buckets that its keys are spread over, held here or not.
    pub buckets: usize,
}

/// What readers see.
#[derive(Debug, Default)]
struct State {
    run: u64,
    share: OnlineShare,
    /// Every version of the views whose newest version is online, by name.
    views: BTreeMap<String, Vec<ViewVersion>>,
    services: BTreeMap<String, Vec<ServiceVersion>>,
    /// Every version of the on-demand views, by name.
    on_demand: BTreeMap<String, Vec<OnDemandVersion>>,
    /// By history.
    tables: BTreeMap<TableName, Arc<OnlineTable>>,
    /// What requests of a kind come to, as far as somebody has asked.
    plans: Mutex<HashMap<(Asked, OnlineColumns), Arc<OnlinePlan>>>,
}

/// A history in memory.
#[derive(Debug)]
struct OnlineTable {
    version: u64,
    /// Up to which version of history.
    step: i64,
    schema: HistorySchema,
    packing: Arc<Packing>,
    /// By their number in history.
    buckets: Vec<Arc<Bucket>>,
}

impl OnlineStore {
    /// Nothing, until [`OnlineStore::refresh`].
    pub fn new(lake: &Lake) -> Self {
        Self::sharing(lake, OnlineShare::ALL)
    }

    /// As [`OnlineStore::new`], of a share of the buckets alone: other keys are refused.
    pub fn sharing(lake: &Lake, share: OnlineShare) -> Self {
        let state = RwLock::new(Arc::new(State { share, ..State::default() }));
        let (publishing, progress) = (tokio::sync::Mutex::new(()), Arc::new(NoProgress));
        Self { lake: lake.clone(), share, progress, state, publishing }
    }

    /// Says how far it is where it takes a whole view into memory.
    #[must_use]
    pub fn telling(self, progress: Arc<dyn Progress>) -> Self {
        Self { progress, ..self }
    }

    /// Which buckets it holds.
    pub fn share(&self) -> OnlineShare {
        self.share
    }

    /// The moment that it is: by the lake's clock, but not before what is in memory became known. The clock of a machine that makes runs may be ahead.
    pub fn now(&self) -> DateTime<Utc> {
        let known = self.state().tables.values().map(|table| table.known_last()).max();
        self.lake.clock().now().max(known.and_then(DateTime::from_timestamp_micros).unwrap_or_default())
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
        let mut state = State { run: manifest.sequence, share: self.share, ..State::default() };
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
        for newest in registry.on_demands().await? {
            let name = newest.view.name;
            state.on_demand.insert(name.clone(), registry.on_demand_versions(&name).await?);
        }
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
        Ok(true)
    }

    /// How a request is answered by what is in memory now. Remembered, so that the next of its kind costs no more than its keys.
    ///
    /// # Errors
    /// A service, view, version or feature that is not there or not online, two columns of one name.
    pub fn plan(&self, asked: &Asked, columns: OnlineColumns) -> Result<Arc<OnlinePlan>> {
        let state = self.state();
        // Whoever panicked left a whole map.
        let plans = || state.plans.lock().unwrap_or_else(PoisonError::into_inner);
        let kind = (asked.clone(), columns);
        if let Some(plan) = plans().get(&kind) {
            return Ok(Arc::clone(plan));
        }
        let plan = Arc::new(OnlinePlan::of(&state, asked, columns)?);
        let mut plans = plans();
        if plans.len() >= PLANS_MAX {
            plans.clear();
        }
        plans.insert(kind, Arc::clone(&plan));
        Ok(plan)
    }

    /// What the keys have at a moment, from memory alone: one row for each, in their order. As the point-in-time join answers for a spine of these keys and that moment
    /// (PIT-3). The key columns come first, then of each view its features and statuses, as [`crate::historical_features`] has them; the schema says where they are from.
    ///
    /// # Errors
    /// As of [`OnlineStore::plan`] and [`OnlinePlan::answer`].
    pub fn answer(
        &self,
        asked: &Asked,
        keys: &OnlineKeys,
        columns: OnlineColumns,
        at: DateTime<Utc>,
    ) -> Result<RecordBatch> {
        self.plan(asked, columns)?.answer(keys, at)
    }

    /// The online views with the rows that are in memory, by name.
    pub fn views(&self) -> Vec<(String, u64)> {
        self.views_in_memory().into_iter().map(|view| (view.name, view.rows)).collect()
    }

    /// The online views, by name.
    pub fn views_in_memory(&self) -> Vec<ViewInMemory> {
        let state = self.state();
        let of = |(name, versions): (&String, &Vec<ViewVersion>)| {
            let table = versions.last().and_then(|newest| state.tables.get(&newest.history));
            ViewInMemory {
                name: name.clone(),
                rows: table.map_or(0, |table| table.rows()),
                buckets: table.map_or(0, |table| table.buckets.len()),
            }
        };
        state.views.iter().map(of).collect()
    }

    fn state(&self) -> Arc<State> {
        // A poisoned lock still holds a whole state: writers only ever swap the pointer.
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// A history at a version of its table, gone on to from what is known of it.
    async fn read(&self, name: &TableName, version: u64, known: Option<&OnlineTable>) -> Result<OnlineTable> {
        let began = Instant::now();
        let table = self.lake.table_at(name, version).await?;
        let (schema, history) = history_of(&table)?;
        // A history keeps its columns and its buckets.
        let mut after = match known {
            Some(known) => OnlineTable {
                version,
                buckets: known.buckets.clone(),
                packing: Arc::clone(&known.packing),
                schema,
                ..*known
            },
            None => OnlineTable {
                version,
                step: 0,
                packing: Arc::new(Packing::of(&schema)?),
                buckets: (0..schema.buckets()).map(|_| Arc::default()).collect(),
                schema,
            },
        };
        let since = after.step;
        let mut files: BTreeMap<u32, Vec<HistoryFile>> = BTreeMap::new();
        for file in history.all_files().filter(|file| *file.versions.end() > since) {
            after.step = after.step.max(*file.versions.end());
            if !self.share.holds(file.bucket) {
                continue;
            }
            files.entry(file.bucket).or_default().push(file.clone());
        }
        let (count, mut reading, mut waiting) = (files.len(), JoinSet::new(), files.into_iter());
        let mut done = 0;
        loop {
            while reading.len() < BUCKETS_READ
                && let Some((number, files)) = waiting.next()
            {
                let at = packing::index(number);
                let bucket = Arc::clone(&after.buckets[at]);
                let of = (Arc::clone(self.lake.store()), after.schema.clone(), Arc::clone(&after.packing));
                reading.spawn(async move { read_bucket(of, &bucket, &files, since).await.map(|bucket| (at, bucket)) });
            }
            let Some(read) = reading.join_next().await else { break };
            // Nobody aborts it, so this is a panic, and goes on as one.
            let (at, bucket) = read.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))?;
            after.buckets[at] = Arc::new(bucket);
            done += 1;
            if known.is_none() {
                self.progress.advance(name.table(), done, Some(count as u64), "buckets");
            }
        }
        let (rows, seconds) = (after.rows(), began.elapsed().as_secs_f64());
        let bytes = after.buckets.iter().map(|bucket| bucket.bytes()).sum::<usize>();
        if known.is_none() {
            let mebibytes = bytes.div_ceil(1 << 20);
            let told = format!("   Online {name}  {rows} rows, {mebibytes} MiB  {seconds:.1}s");
            self.progress.finish(name.table(), &told);
        }
        let ms = seconds * 1e3;
        tracing::info!(history = %name, rows, bytes, buckets = count, ms, "online features are in memory");
        Ok(after)
    }
}

impl OnlineTable {
    fn rows(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.rows() as u64).sum()
    }

    /// When its last row became known, in microseconds.
    fn known_last(&self) -> i64 {
        self.buckets.iter().map(|bucket| bucket.known_last()).max().unwrap_or(i64::MIN)
    }
}

/// A bucket with what files of it have of versions behind `since`, a file at a time.
async fn read_bucket(
    (store, schema, packing): (Arc<dyn ObjectStore>, HistorySchema, Arc<Packing>),
    before: &Bucket,
    files: &[HistoryFile],
    since: i64,
) -> Result<Bucket> {
    let fields = schema.keys().iter().map(|key| SortField::new(key.data_type().clone())).collect();
    let converter = RowConverter::new(fields)?;
    let mut after = before.clone();
    for file in files {
        let mut came = PackedRows::default();
        let mut batches = read_history_file(&store, &schema, file, READ_ROWS).await?;
        while let Some(batch) = batches.try_next().await? {
            let keys = converter.convert_columns(&batch.columns()[..schema.keys().len()])?;
            let versions = versions(&batch)?;
            // Rows of a key stand side by side: the last of them counts.
            let is_last = |row: usize| row + 1 == batch.num_rows() || keys.row(row) != keys.row(row + 1);
            let (mut last, mut chosen) = (None, Vec::new());
            for (row, &version) in versions.iter().enumerate() {
                if version > since {
                    last = Some(row);
                }
                if is_last(row) {
                    chosen.extend(last.take());
                }
            }
            packing.pack(&schema, &batch, &chosen, &mut came)?;
        }
        after = after.with(&packing, &came)?;
    }
    Ok(after)
}

impl State {
    /// The views and features that are read, and what is shown where on-demand features are meant.
    fn wanted(&self, asked: &Asked) -> Result<(Option<&ServiceVersion>, Gathered)> {
        let (service, references) = match asked {
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
                let references = service.service.features.iter().map(|feature| FeatureReference {
                    view: feature.view.clone(),
                    version: Some(feature.version),
                    feature: Some(feature.feature.clone()),
                });
                (Some(service), references.collect())
            }
            Asked::Features(references) => (None, references.clone()),
        };
        let mut found = Vec::with_capacity(references.len());
        for FeatureReference { view: name, version, feature } in &references {
            if let Some(versions) = self.on_demand.get(name) {
                let meant = match version {
                    Some(version) => versions.iter().find(|found| found.version == *version),
                    None => versions.last(),
                };
                let meant = meant.ok_or_else(|| {
                    FeatureStoreError::NotFound(format!("the on-demand view `{name}` has no such version"))
                })?;
                found.push(Found::OnDemand(meant.clone(), features_of(meant, feature.as_deref())?));
                continue;
            }
            let view = self.view(name, *version)?;
            let features = match feature {
                Some(feature) if view.view.feature(feature).is_none() => {
                    let known =
                        view.view.features.iter().map(|feature| feature.name.clone()).collect::<Vec<_>>().join(", ");
                    return Err(FeatureStoreError::NotFound(format!(
                        "the feature view `{}` has no feature `{feature}`; it has: {known}",
                        view.view.name
                    )));
                }
                Some(feature) => vec![feature.clone()],
                None => view.view.features.iter().map(|feature| feature.name.clone()).collect(),
            };
            found.push(Found::Stored(view.clone(), features));
        }
        Ok((service, gathered(found, |input| Ok(self.view(&input.view, Some(input.version))?.clone()))?))
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

    fn table(&self, view: &ViewVersion) -> Result<&Arc<OnlineTable>> {
        self.tables.get(&view.history).ok_or_else(|| {
            FeatureStoreError::NotFound(format!(
                "no published run has made {}@v{} yet: use `holdfast run`",
                view.view.name, view.version
            ))
        })
    }
}
