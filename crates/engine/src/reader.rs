use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, RwLock};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use chrono::{DateTime, NaiveDate, NaiveDateTime, Utc};
use datafusion::catalog::TableProvider;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::prelude::SessionContext;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use holdfast_lake::{Lake, Manifest, Table};
use holdfast_types::TableName;
use tokio::sync::Semaphore;

use crate::Result;
use crate::earlier_runs::{self, EarlierRuns};
use crate::error::EngineError;
use crate::run::pin_all;
use crate::session::{SessionSettings, plan_read_only, session_with};

/// A table as a published run left it.
#[derive(Debug, Clone)]
pub struct PublishedTable {
    /// Its name.
    pub name: TableName,
    /// Which version.
    pub version: u64,
    /// Its rows, when the log knows.
    pub rows: Option<u64>,
    /// The size of its files in bytes.
    pub bytes: u64,
    /// Its columns.
    pub schema: SchemaRef,
    /// One line about it.
    pub comment: Option<String>,
}

/// All tables of the lake as one run saw them. Does not change.
#[derive(Debug)]
pub struct Published {
    sequence: u64,
    run_id: String,
    as_of: DateTime<Utc>,
    tables: Vec<PublishedTable>,
    providers: BTreeMap<TableName, Arc<dyn TableProvider>>,
    settings: SessionSettings,
    runtime: Arc<RuntimeEnv>,
    buckets: u32,
}

impl Published {
    async fn read(
        lake: &Lake,
        settings: &SessionSettings,
        runtime: &Arc<RuntimeEnv>,
        manifest: &Manifest,
    ) -> Result<Self> {
        let tables: Vec<Table> = futures::stream::iter(manifest.tables.clone())
            .map(|entry| {
                let lake = lake.clone();
                async move { lake.table_of(&entry).await }
            })
            .buffered(8)
            .try_collect()
            .await?;
        Ok(Self::over(lake, settings, runtime, manifest, tables).with_functions().await)
    }

    /// The same with the row functions that belong to what it holds.
    async fn with_functions(mut self) -> Self {
        if let Some(source) = self.settings.run_functions.take() {
            self.settings.row_functions = source.of(&self).await;
        }
        self
    }

    fn over(
        lake: &Lake,
        settings: &SessionSettings,
        runtime: &Arc<RuntimeEnv>,
        manifest: &Manifest,
        tables: Vec<Table>,
    ) -> Self {
        Self {
            sequence: manifest.sequence,
            run_id: manifest.run_id.clone(),
            as_of: manifest.as_of,
            providers: tables.iter().map(|table| (table.name().clone(), table.provider())).collect(),
            tables: tables
                .iter()
                .map(|table| PublishedTable {
                    name: table.name().clone(),
                    version: table.version(),
                    rows: table.row_count(),
                    bytes: table.byte_count(),
                    schema: Arc::clone(table.schema()),
                    comment: table.comment().map(str::to_owned),
                })
                .collect(),
            settings: settings.clone(),
            runtime: Arc::clone(runtime),
            buckets: lake.settings().customer_buckets,
        }
    }

    /// The run's place in the order of runs; 0 for what was never published.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The run's name.
    pub fn run_id(&self) -> &str {
        &self.run_id
    }

    /// What `now()` was in the run's stages.
    pub fn as_of(&self) -> DateTime<Utc> {
        self.as_of
    }

    /// The tables, sorted by name.
    pub fn tables(&self) -> &[PublishedTable] {
        &self.tables
    }

    /// One table.
    pub fn table(&self, name: &TableName) -> Option<&PublishedTable> {
        self.tables.iter().find(|table| &table.name == name)
    }

    /// What reads one of the tables.
    pub fn provider(&self, name: &TableName) -> Option<&Arc<dyn TableProvider>> {
        self.providers.get(name)
    }

    /// The memory and the spill folder that sessions over these versions share with all others.
    pub fn runtime(&self) -> &Arc<RuntimeEnv> {
        &self.runtime
    }

    /// The same run as somebody sees it who sees these tables alone, and works in the memory of `runtime`.
    #[must_use]
    pub fn as_seen(&self, tables: Vec<(PublishedTable, Arc<dyn TableProvider>)>, runtime: Arc<RuntimeEnv>) -> Self {
        Self {
            sequence: self.sequence,
            run_id: self.run_id.clone(),
            as_of: self.as_of,
            providers: tables.iter().map(|(table, provider)| (table.name.clone(), Arc::clone(provider))).collect(),
            tables: tables.into_iter().map(|(table, _)| table).collect(),
            settings: self.settings.clone(),
            runtime,
            buckets: self.buckets,
        }
    }

    /// A fresh session over these versions. `now()` in it is the wall clock.
    ///
    /// # Errors
    /// When the session cannot be built, which is a mistake of ours.
    pub fn session(&self) -> Result<SessionContext> {
        let tables = self.providers.iter().map(|(name, provider)| (name.clone(), Arc::clone(provider)));
        session_with(&self.settings, &self.runtime, self.buckets, tables)
    }

    /// The same, in which `as_of(…)` reads these runs.
    ///
    /// # Errors
    /// As of [`Published::session`].
    pub fn session_with(&self, earlier: Arc<dyn EarlierRuns>) -> Result<SessionContext> {
        let session = self.session()?;
        earlier_runs::give(&session, earlier);
        Ok(session)
    }

    /// The rows that a query gives of these versions, batch by batch. `what` names it where it fails.
    ///
    /// # Errors
    /// As of [`plan_read_only`], and what the lake answers.
    pub async fn rows(&self, what: &str, sql: &str) -> Result<BoxStream<'static, Result<RecordBatch>>> {
        let session = self.session()?;
        let plan = plan_read_only(&session, sql).await?;
        let failed =
            |what: String| move |source| EngineError::Execution { what: what.clone(), source: Box::new(source) };
        let frame = session.execute_logical_plan(plan).await.map_err(failed(what.to_owned()))?;
        let rows = frame.execute_stream().await.map_err(failed(what.to_owned()))?;
        Ok(rows.map_err(failed(what.to_owned())).boxed())
    }
}

/// A published run, as a person names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WhichRun {
    /// By its place in the order of runs.
    Sequence(u64),
    /// By its name.
    Id(String),
    /// The newest whose data is of this moment or before.
    AsOf(DateTime<Utc>),
}

impl WhichRun {
    /// As a person writes it: a number, a moment, or else a name.
    pub fn written(text: &str) -> Self {
        let text = text.trim();
        match text.parse() {
            Ok(sequence) => Self::Sequence(sequence),
            Err(_) => written_moment(text).map_or_else(|| Self::Id(text.to_owned()), Self::AsOf),
        }
    }

    /// That there is none, in words.
    pub fn missing(&self) -> String {
        match self {
            Self::Sequence(sequence) => format!("there is no published run {sequence}"),
            Self::Id(id) => format!("there is no published run called `{id}`"),
            Self::AsOf(moment) => format!("no published run is of {} or before", moment.to_rfc3339()),
        }
    }
}

/// A moment as people write it; a day is its beginning in UTC.
pub fn written_moment(text: &str) -> Option<DateTime<Utc>> {
    let text = text.trim();
    let with_zone = |text: &str| DateTime::parse_from_rfc3339(text).ok().map(|moment| moment.with_timezone(&Utc));
    with_zone(text)
        .or_else(|| DateTime::parse_from_str(&format!("{text}00"), "%Y-%m-%d %H:%M:%S%.f%z").ok().map(|m| m.to_utc()))
        .or_else(|| {
            NaiveDateTime::parse_from_str(&text.replace('T', " "), "%Y-%m-%d %H:%M:%S%.f").ok().map(|m| m.and_utc())
        })
        .or_else(|| NaiveDate::parse_from_str(text, "%Y-%m-%d").ok()?.and_hms_opt(0, 0, 0).map(|m| m.and_utc()))
}

/// Follows the published runs of a lake. Readers get a whole run or the whole one before it, never half.
#[derive(Debug)]
pub struct LakeReader {
    lake: Lake,
    settings: SessionSettings,
    runtime: Arc<RuntimeEnv>,
    current: RwLock<Arc<Published>>,
    /// Runs of before that somebody asked for, the one asked for last at the end.
    earlier: Mutex<VecDeque<Arc<Published>>>,
    /// One is opened at a time: whoever asks for many must not take the lake from others.
    opening: Semaphore,
}

/// Runs of before that are kept open.
const EARLIER_KEPT: usize = 8;

impl LakeReader {
    /// Opens the newest published run.
    ///
    /// # Errors
    /// [`EngineError::NothingPublished`] when there is none.
    pub async fn open(lake: Lake, settings: SessionSettings) -> Result<Self> {
        let runtime = settings.runtime(&lake)?;
        let manifest =
            lake.latest_manifest().await?.ok_or_else(|| EngineError::NothingPublished(lake.url().to_string()))?;
        let published = Published::read(&lake, &settings, &runtime, &manifest).await?;
        Ok(Self::at(lake, settings, runtime, published))
    }

    /// As [`LakeReader::open`], but where nothing is published yet readers see a run without tables, of sequence 0, until
    /// [`LakeReader::refresh`] finds the first.
    ///
    /// # Errors
    /// What the lake answers.
    pub async fn open_early(lake: Lake, settings: SessionSettings) -> Result<Self> {
        if lake.latest_manifest().await?.is_some() {
            return Self::open(lake, settings).await;
        }
        let runtime = settings.runtime(&lake)?;
        let nothing = Self::unpublished(&lake, &settings, Vec::new())?;
        Ok(Self::at(lake, settings, runtime, nothing))
    }

    fn at(lake: Lake, settings: SessionSettings, runtime: Arc<RuntimeEnv>, run: Published) -> Self {
        let current = RwLock::new(Arc::new(run));
        Self { lake, settings, runtime, current, earlier: Mutex::default(), opening: Semaphore::new(1) }
    }

    /// The newest version of every table, published or not, pinned now: what a data engineer looks at between runs.
    ///
    /// # Errors
    /// What the lake answers.
    pub async fn newest(lake: &Lake, settings: &SessionSettings) -> Result<Published> {
        let newest = Self::unpublished(lake, settings, pin_all(lake).await?.into_values().collect())?;
        Ok(newest.with_functions().await)
    }

    /// The newest version of the named tables alone; those that do not exist are left out.
    ///
    /// # Errors
    /// What the lake answers.
    pub async fn newest_of(lake: &Lake, settings: &SessionSettings, names: &[TableName]) -> Result<Published> {
        let mut tables = Vec::with_capacity(names.len());
        for name in names {
            tables.extend(lake.table(name).await?);
        }
        Self::unpublished(lake, settings, tables)
    }

    /// A run that nobody published, of these tables; for trying what is in files.
    ///
    /// # Errors
    /// When the spill folder cannot be made.
    pub fn imagined(
        lake: &Lake,
        settings: &SessionSettings,
        tables: Vec<(PublishedTable, Arc<dyn TableProvider>)>,
    ) -> Result<Published> {
        let nothing = Self::unpublished(lake, settings, Vec::new())?;
        let runtime = Arc::clone(nothing.runtime());
        Ok(nothing.as_seen(tables, runtime))
    }

    fn unpublished(lake: &Lake, settings: &SessionSettings, tables: Vec<Table>) -> Result<Published> {
        let runtime = settings.runtime(lake)?;
        let now = lake.clock().now();
        let manifest =
            Manifest { sequence: 0, run_id: String::new(), as_of: now, published_at: now, tables: Vec::new() };
        Ok(Published::over(lake, settings, &runtime, &manifest, tables))
    }

    /// The lake.
    pub fn lake(&self) -> &Lake {
        &self.lake
    }

    /// The run that readers see now.
    pub fn current(&self) -> Arc<Published> {
        // A poisoned lock still holds a whole run: writers only ever swap the pointer.
        Arc::clone(&self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner))
    }

    /// A run that was published before, if the lake still has it. Reading its tables fails where maintenance has removed what it read.
    ///
    /// # Errors
    /// What the lake answers.
    pub async fn published(&self, which: &WhichRun) -> Result<Option<Arc<Published>>> {
        let current = self.current();
        if matches!(which, WhichRun::Sequence(sequence) if *sequence == current.sequence())
            || matches!(which, WhichRun::Id(id) if id == current.run_id())
        {
            return Ok(Some(current));
        }
        let Some(manifest) = self.manifest(which).await? else { return Ok(None) };
        if manifest.sequence == current.sequence() {
            return Ok(Some(current));
        }
        if let Some(open) = self.kept(manifest.sequence) {
            return Ok(Some(open));
        }
        // The semaphore is never closed. Who waited may find it opened by who was before.
        let _one = self.opening.acquire().await;
        if let Some(open) = self.kept(manifest.sequence) {
            return Ok(Some(open));
        }
        let run = Arc::new(Published::read(&self.lake, &self.settings, &self.runtime, &manifest).await?);
        let mut earlier = self.earlier.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        earlier.push_back(Arc::clone(&run));
        if earlier.len() > EARLIER_KEPT {
            earlier.pop_front();
        }
        Ok(Some(run))
    }

    /// A run of before that is open already.
    fn kept(&self, sequence: u64) -> Option<Arc<Published>> {
        // A panic in between leaves a shorter list at worst.
        let mut earlier = self.earlier.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let at = earlier.iter().position(|run| run.sequence() == sequence)?;
        let run = earlier.remove(at)?;
        earlier.push_back(Arc::clone(&run));
        Some(run)
    }

    async fn manifest(&self, which: &WhichRun) -> Result<Option<Manifest>> {
        let mut sequences = self.lake.run_sequences().await?;
        if let WhichRun::Sequence(sequence) = which {
            return Ok(match sequences.contains(sequence) {
                true => Some(self.lake.manifest(*sequence).await?),
                false => None,
            });
        }
        // The newest first: what is asked for is seldom long ago.
        sequences.reverse();
        for sequence in sequences {
            let manifest = self.lake.manifest(sequence).await?;
            let is_it = match which {
                WhichRun::Sequence(_) => false,
                WhichRun::Id(id) => manifest.run_id == *id,
                WhichRun::AsOf(moment) => manifest.as_of <= *moment,
            };
            if is_it {
                return Ok(Some(manifest));
            }
        }
        Ok(None)
    }

    /// Looks for a newer run and switches to it. Answers whether it did. May be called again at any time; when it fails, readers keep what they have.
    ///
    /// # Errors
    /// What the lake answers.
    pub async fn refresh(&self) -> Result<bool> {
        let Some(manifest) = self.lake.latest_manifest().await? else { return Ok(false) };
        if manifest.sequence <= self.current().sequence() {
            return Ok(false);
        }
        let published = Arc::new(Published::read(&self.lake, &self.settings, &self.runtime, &manifest).await?);
        let mut current = self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        // Another refresh may have been quicker: readers only ever move forward.
        let newer = published.sequence() > current.sequence();
        if newer {
            *current = published;
        }
        Ok(newer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_named_as_people_write_them() {
        for text in [
            "2026-01-31",
            "2026-01-31 00:00:00",
            "2026-01-31T00:00:00Z",
            "2026-01-31 01:00:00+01",
            "2026-01-31T01:00:00+01:00",
        ] {
            assert_eq!(written_moment(text).unwrap().to_rfc3339(), "2026-01-31T00:00:00+00:00", "{text}");
        }
        assert_eq!(written_moment("yesterday"), None);
        assert_eq!(WhichRun::written(" 411 "), WhichRun::Sequence(411));
        assert_eq!(WhichRun::written("nightly-2026"), WhichRun::Id("nightly-2026".to_owned()));
        assert!(matches!(WhichRun::written("2026-01-31"), WhichRun::AsOf(_)));
    }
}
