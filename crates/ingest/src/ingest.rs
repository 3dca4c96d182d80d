use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::RecordBatch;
use chrono::DateTime;
use futures::{StreamExt, TryStreamExt};
use holdfast_lake::{
    Change, ChangeKind, CommitOutcome, Lake, ObjectLocation, Position, StagedFile, Table, TableWriter, WriterSettings,
};
use holdfast_types::{Progress, Promise};
use serde_json::{Map, Value, json};
use tracing::Instrument;

use crate::Result;
use crate::batch::{HashedFile, Staged, Staging, stage};
use crate::books::{Books, Tables};
use crate::discover::{FoundFile, discover, look_up};
use crate::error::IngestError;
use crate::facts::{Counting, Facts, RecentKeys};
use crate::inbox::{Inbox, Look};
use crate::ledger::{Arrival, BatchTotals, Index, Ledger, Outcome, PlannedFile, app_id, batch_row, files_rows, widen};
use crate::origin::Origin;
use crate::places::Places;
use crate::quality::{Memory, RecentBatch, alerts_table};
use crate::refused::{RefusedFile, RefusedFiles, refused_row, refused_table};
use crate::report::SourceReport;
use crate::settings::{IngestSettings, IngestStep};
use crate::spec::{FileFormat, SourceSpec};
use crate::unknown::{UNKNOWN, UnknownFields, unknown_fields_rows, unknown_fields_table};

/// How often a batch is planned anew because other workers took its number.
const PLAN_ATTEMPTS_MAX: usize = 20;
/// How often an append is tried again because another commit came in between.
pub(crate) const COMMIT_ATTEMPTS_MAX: usize = 20;
/// How far back the mark of an abandoned batch is looked for. It is looked for by the next run of its source.
const ABANDONED_COMMITS_MAX: usize = 1_000;
/// Files that are hashed at the same time.
const HASHES_AHEAD: usize = 4;
/// Names of unknown fields that a warning shows.
const NAMES_SHOWN_MAX: usize = 8;

/// Brings the new files of one source from the folder or bucket `from`, and what is new in its inbox, into `raw.<source>` and
/// `quarantine.<source>`.
///
/// Each record is stored once (ING-2) and durable once this returns (ING-1); what is read is stored or quarantined
/// (ING-3). With nothing new, nothing is committed. May be called again at any time, also after a crash, and by several
/// workers at once; dropping the future leaves at most an open batch, which the next call finishes.
///
/// `progress` is told of bytes under the source's name; finishing the step is the caller's, who has the report.
///
/// A file that cannot be read as its contract says is refused as a whole: it is in [`SourceReport::refused`], and looked at
/// again when it or the contract has changed. One that is being written is left for the next call.
///
/// # Errors
/// The first thing that is wrong with the contract, the store or the lake, by [`IngestError::kind`]. The batches
/// committed before stay; nothing of the failing one does.
pub async fn ingest_source(
    lake: &Lake,
    pipeline: &str,
    spec: &SourceSpec,
    from: &ObjectLocation,
    settings: &IngestSettings,
    progress: &dyn Progress,
) -> Result<SourceReport> {
    told(pipeline, spec, run(lake, pipeline, spec, Some(from), settings, progress)).await
}

/// As [`ingest_source`], for what is new in the source's inbox alone.
///
/// # Errors
/// As there.
pub async fn ingest_inbox(
    lake: &Lake,
    pipeline: &str,
    spec: &SourceSpec,
    settings: &IngestSettings,
    progress: &dyn Progress,
) -> Result<SourceReport> {
    told(pipeline, spec, run(lake, pipeline, spec, None, settings, progress)).await
}

/// Runs the ingestion of a source in its span, and counts what it ends with.
pub(crate) async fn told(
    pipeline: &str,
    spec: &SourceSpec,
    ingestion: impl Future<Output = Result<SourceReport>>,
) -> Result<SourceReport> {
    let span = tracing::info_span!(
        "ingest_source",
        pipeline,
        source = %spec.name,
        files = tracing::field::Empty,
        rows = tracing::field::Empty,
        bytes = tracing::field::Empty,
    );
    let ended = Box::pin(ingestion).instrument(span.clone()).await;
    match &ended {
        Ok(report) => {
            span.record("files", report.files_stored).record("rows", report.rows_read).record("bytes", report.bytes);
        }
        Err(error) => {
            let kind = error.kind().as_str();
            tracing::info!(monotonic_counter.holdfast_ingest_errors = 1_u64, source = %spec.name, kind);
        }
    }
    ended
}

async fn run(
    lake: &Lake,
    pipeline: &str,
    spec: &SourceSpec,
    from: Option<&ObjectLocation>,
    settings: &IngestSettings,
    progress: &dyn Progress,
) -> Result<SourceReport> {
    let places = Places::new(lake, pipeline, Arc::new(spec.clone()), from.cloned());
    // Looked at first: a folder that is not there must not leave tables behind.
    let mut found = match (&spec.origin, from) {
        (Origin::Files(glob), Some(from)) => discover(from, &spec.name, glob).await?,
        _ => Vec::new(),
    };
    check_places(&places, &found)?;
    let inbox = Inbox::new(lake, pipeline, spec);
    // What is looked for in an inbox depends on all that was stored from it.
    let books = if inbox.is_used().await? {
        Books::open_whole(lake, pipeline, spec).await?
    } else {
        Books::open(lake, pipeline, spec).await?
    };
    found.extend(inbox.refused_before(&books).await?);
    let mut source = Source::new(lake, pipeline, places, settings, progress, books);
    source.finish_open_batches().await?;
    found.extend(inbox.discover(Look::Back, &source.ledger).await?);
    source.ingest_new(&found).await?;
    Ok(source.into_report().0)
}

/// No file that was found has the name of an object in the inbox.
pub(crate) fn check_places(places: &Places, found: &[FoundFile]) -> Result<()> {
    match found.iter().find(|file| places.in_inbox(&file.path)) {
        None => Ok(()),
        Some(file) => Err(IngestError::Layout {
            file: file.path.clone(),
            message: "the path is one of the source's inbox in the lake: put the files into a folder of another name"
                .to_owned(),
        }),
    }
}

pub(crate) struct Source<'a> {
    lake: &'a Lake,
    pipeline: &'a str,
    spec: Arc<SourceSpec>,
    places: Arc<Places>,
    settings: &'a IngestSettings,
    progress: &'a dyn Progress,
    tables: Tables,
    pub(crate) ledger: Ledger,
    refused: RefusedFiles,
    memory: Option<Memory>,
    unknown: UnknownFields,
    event_times: Option<(i64, i64)>,
    report: SourceReport,
}

impl<'a> Source<'a> {
    pub(crate) fn new(
        lake: &'a Lake,
        pipeline: &'a str,
        places: Places,
        settings: &'a IngestSettings,
        progress: &'a dyn Progress,
        books: Books,
    ) -> Self {
        let spec = Arc::clone(places.contract());
        let report = SourceReport { source: spec.name.clone(), ..SourceReport::default() };
        Self {
            lake,
            pipeline,
            spec,
            places: Arc::new(places),
            settings,
            progress,
            tables: books.tables,
            ledger: books.ledger,
            refused: books.refused,
            memory: books.memory,
            unknown: UnknownFields::default(),
            event_times: None,
            report,
        }
    }

    /// Batches that were planned and whose end is not recorded: their worker died, or is still at work. Oldest first,
    /// since a position only grows.
    ///
    /// To be done before files are looked for: what an abandoned batch has read is new again.
    pub(crate) async fn finish_open_batches(&mut self) -> Result<()> {
        for batch in self.ledger.open_batches() {
            let planned = self.ledger.files_of(batch).to_vec();
            let stored = self.raw_reached(batch).await?;
            if stored {
                let outcome = if self.was_abandoned(batch).await? { Outcome::Abandoned } else { Outcome::Stored };
                let started_at = planned.first().map_or_else(|| self.now(), |file| file.planned_at);
                let facts = self.facts_of(batch).await?;
                self.record_batch(batch, outcome, &planned, started_at, facts, None).await?;
                continue;
            }
            let files = match self.as_planned(&planned).await? {
                Ok(files) => files,
                Err(path) => {
                    self.abandon(batch, &planned, &format!("{path} changed")).await?;
                    continue;
                }
            };
            let started_at = self.now();
            match self.stage(&files, batch, false).await {
                Ok(staged) if is_same(&planned, &staged) => {
                    self.commit_rows(batch, &planned, started_at, staged).await?;
                    self.report.batches_recovered += 1;
                }
                Ok(_) => self.abandon(batch, &planned, "the source's contract changed").await?,
                Err(error) => match error.file() {
                    Some(file) => self.abandon(batch, &planned, &format!("{file} can no longer be read")).await?,
                    None => return Err(error),
                },
            }
        }
        Ok(())
    }

    async fn raw_reached(&self, batch: i64) -> Result<bool> {
        let raw = self.lake.table(self.tables.raw.name()).await?;
        let position = match &raw {
            Some(raw) => raw.position(&self.app_id("raw")).await?,
            None => None,
        };
        Ok(position.is_some_and(|position| position >= batch))
    }

    async fn was_abandoned(&self, batch: i64) -> Result<bool> {
        let raw = self.lake.table(self.tables.raw.name()).await?;
        Ok(match raw {
            Some(raw) => raw.commit_note(&self.abandoned_key(batch), ABANDONED_COMMITS_MAX).await?.is_some(),
            None => false,
        })
    }

    /// What was counted of a batch when its rows were stored, by whoever did.
    async fn facts_of(&self, batch: i64) -> Result<Option<Facts>> {
        let Some(raw) = self.lake.table(self.tables.raw.name()).await? else { return Ok(None) };
        let note = raw.commit_note(&self.facts_key(batch), ABANDONED_COMMITS_MAX).await?;
        Ok(note.and_then(|note| serde_json::from_value(note).ok()))
    }

    /// The planned files as they are now, or the path of the first that is another or gone. Asks the store anew: a
    /// worker that plans at this moment may know files that came after our listing.
    async fn as_planned(&self, planned: &[PlannedFile]) -> Result<Result<Vec<HashedFile>, String>> {
        let mut files = Vec::with_capacity(planned.len());
        for plan in planned {
            let found = match self.places.location_of(&plan.path) {
                Some(location) => look_up(location, &plan.path).await?,
                None => None,
            };
            let Some(file) = found else { return Ok(Err(plan.path.clone())) };
            let store = self.places.store_of(&plan.path);
            let same = file.size == plan.size
                && (file.etag.is_some() && file.etag == plan.etag
                    || file.content_hash(store).await? == plan.content_hash);
            if !same {
                return Ok(Err(plan.path.clone()));
            }
            files.push(HashedFile { found: file, content_hash: Some(plan.content_hash.clone()) });
        }
        Ok(Ok(files))
    }

    /// Closes a batch whose files do not give what was planned. The empty commit at the batch's position keeps a worker
    /// that may still have the old files from storing them; its files then count as never seen.
    async fn abandon(&mut self, batch: i64, planned: &[PlannedFile], cause: &str) -> Result<()> {
        let notes = Map::from_iter([(self.abandoned_key(batch), json!(true))]);
        let outcome = self.commit("raw", &self.tables.raw, batch, Vec::new(), notes).await?;
        let outcome = match outcome {
            CommitOutcome::Applied { .. } => Outcome::Abandoned,
            // Somebody finished it, or abandoned it, at the last moment.
            _ if self.was_abandoned(batch).await? => Outcome::Abandoned,
            _ => Outcome::Stored,
        };
        if outcome == Outcome::Abandoned {
            self.report.warnings.push(format!(
                "{cause} after batch {batch} was planned and before its rows were stored; \
                 the batch was abandoned and its files are read again"
            ));
        }
        let facts = self.facts_of(batch).await?;
        self.record_batch(batch, outcome, planned, self.now(), facts, None).await
    }

    /// Stores what is new of `found`. Books that have become stale are read again on the way.
    pub(crate) async fn ingest_new(&mut self, found: &[FoundFile]) -> Result<()> {
        self.report.files_found = count(found.len());
        for _ in 0..PLAN_ATTEMPTS_MAX {
            if self.ingest_until_overtaken(found).await? {
                return self.tell_alerts().await;
            }
            let books = if self.ledger.is_complete() {
                Books::open_whole(self.lake, self.pipeline, &self.spec).await?
            } else {
                Books::open(self.lake, self.pipeline, &self.spec).await?
            };
            (self.tables, self.ledger, self.refused) = (books.tables, books.ledger, books.refused);
            self.memory = None;
            self.finish_open_batches().await?;
        }
        Err(IngestError::Contended { source_name: self.spec.name.clone(), attempts: PLAN_ATTEMPTS_MAX })
    }

    /// Whether all was done; if not, another worker planned a batch under our number and the books must be read again.
    async fn ingest_until_overtaken(&mut self, found: &[FoundFile]) -> Result<bool> {
        let unseen = self.unseen(&self.ledger.index(), found);
        self.ledger.learn(self.lake, &self.tables.files, &self.tables.batches, &unseen).await?;
        let mut index = self.ledger.index();
        let unseen = self.unseen(&index, &unseen);
        self.report.files_known = count(found.len() - unseen.len());
        self.report.files_copied = 0;
        let (waiting, unseen): (Vec<FoundFile>, Vec<FoundFile>) =
            unseen.into_iter().partition(|file| self.refused.of(file, &self.spec).is_some());
        self.report.refused = waiting.iter().filter_map(|file| self.refused.of(file, &self.spec)).cloned().collect();
        let mut rest = unseen.as_slice();
        while !rest.is_empty() {
            let (group, after) = rest.split_at(self.batch_end(rest));
            rest = after;
            let mut files = self.arrivals(&index, group).await?;
            while !files.is_empty() {
                let batch = self.ledger.next_batch();
                let span = tracing::info_span!(
                    "ingest_batch",
                    source = %self.spec.name,
                    batch,
                    files = files.len(),
                    rows = tracing::field::Empty,
                    bytes = tracing::field::Empty,
                );
                match Box::pin(self.ingest_batch(batch, &files)).instrument(span).await {
                    Ok(Some(taken)) => {
                        self.ledger.files_of(batch).iter().for_each(|file| index.take_in(file));
                        files.drain(..taken);
                    }
                    Ok(None) => return Ok(false),
                    // Nothing was planned yet: without the file at fault the others are a batch.
                    Err(error) => {
                        let fault = error.file().and_then(|path| files.iter().position(|file| file.found.path == path));
                        let Some(index) = fault else { return Err(error) };
                        // An object of the inbox does not change: the store failed, and will be asked again. Passed over, it
                        // would be behind the newest stored one and not be looked for.
                        if matches!(error, IngestError::ChangedWhileRead { .. })
                            && self.places.in_inbox(&files[index].found.path)
                        {
                            return Err(error);
                        }
                        let file = files.remove(index);
                        self.set_aside(&file.found, &error).await?;
                    }
                }
            }
        }
        Ok(true)
    }

    /// The files that the books, as far as they are known, do not show as they are now.
    fn unseen(&self, index: &Index, found: &[FoundFile]) -> Vec<FoundFile> {
        let is_known = |file: &&FoundFile| {
            let modified = file.modified.timestamp_micros();
            index.by_sight(&file.path, file.size, file.etag.as_deref(), modified)
                || self.places.in_inbox(&file.path) && index.by_path(&file.path)
        };
        found.iter().filter(|file| !is_known(file)).cloned().collect()
    }

    /// Records a file that cannot be read. One that changes meanwhile is left for the next call instead.
    async fn set_aside(&mut self, file: &FoundFile, error: &IngestError) -> Result<()> {
        if matches!(error, IngestError::ChangedWhileRead { .. }) {
            self.report.warnings.push(error.to_string());
            return Ok(());
        }
        let refused = RefusedFile::new(file, &self.spec, error, self.now());
        let table = self.lake.ensure_table(&refused_table()?).await?;
        let rows = refused_row(self.pipeline, &self.spec.name, &refused, &table)?;
        let staged = write(&table, &rows).await?;
        for _ in 0..COMMIT_ATTEMPTS_MAX {
            let newest = self.lake.table(table.name()).await?;
            let before = match &newest {
                Some(newest) => newest.position(&self.app_id("refused")).await?,
                None => None,
            };
            let position = before.unwrap_or(0) + 1;
            // Another worker may have refused a file under the same number: then under the next.
            let outcome = self.commit("refused", &table, position, staged.clone(), Map::new()).await?;
            if matches!(outcome, CommitOutcome::Applied { .. }) {
                break;
            }
        }
        tracing::info!(monotonic_counter.holdfast_ingest_refused_files = 1_u64, source = %self.spec.name, kind = refused.kind);
        self.refused.add(refused.clone());
        self.report.files_refused += 1;
        self.report.refused.push(refused);
        Ok(())
    }

    /// What is remembered of the source, read the first time.
    async fn remember(&mut self) -> Result<&mut Memory> {
        let memory = match self.memory.take() {
            Some(memory) => memory,
            None => self.load_memory(&self.tables.batches).await?,
        };
        Ok(self.memory.insert(memory))
    }

    async fn load_memory(&self, batches: &Table) -> Result<Memory> {
        Memory::load(self.lake, batches, self.pipeline, &self.spec.name, self.ledger.next_batch() - 1).await
    }

    /// Writes down which alerts opened or closed. Nothing when all is as before.
    async fn tell_alerts(&mut self) -> Result<()> {
        let spec = Arc::clone(&self.spec);
        let now = self.now();
        if self.remember().await?.judge(&spec, now).is_some() {
            // Another worker may have brought what seems to be missing, or told of it.
            for _ in 0..COMMIT_ATTEMPTS_MAX {
                let batches = self.lake.table(self.tables.batches.name()).await?;
                let mut memory = self.load_memory(batches.as_ref().unwrap_or(&self.tables.batches)).await?;
                if let Some(before) = &self.memory {
                    memory.keep_keys_of(before);
                }
                let verdict = memory.judge(&spec, now);
                let told = memory.next_told();
                self.memory = Some(memory);
                let Some(verdict) = verdict else { break };
                let table = self.lake.ensure_table(&alerts_table()?).await?;
                let rows = write(&table, &verdict.rows(self.pipeline, &spec.name, told, now)?).await?;
                if !matches!(
                    self.commit("alerts", &table, told, rows, Map::new()).await?,
                    CommitOutcome::Applied { .. }
                ) {
                    continue;
                }
                for rule in &verdict.opened {
                    let (source, rule) = (spec.name.as_str(), rule.as_str());
                    tracing::info!(monotonic_counter.holdfast_ingest_alerts = 1_u64, source, rule, "an alert opened");
                }
                self.report.alerts_changed += verdict.changes();
                if let Some(memory) = &mut self.memory {
                    memory.settle(verdict);
                }
                break;
            }
        }
        self.report.alerts = self.memory.as_ref().map(Memory::alerts).unwrap_or_default();
        Ok(())
    }

    /// How many of the next files make a batch.
    fn batch_end(&self, files: &[FoundFile]) -> usize {
        let mut bytes = 0_u64;
        let fitting = files
            .iter()
            .take(self.settings.batch_files_max.max(1))
            .take_while(|file| {
                bytes = bytes.saturating_add(file.size);
                bytes <= self.settings.batch_bytes_max
            })
            .count();
        fitting.max(1)
    }

    /// Looks into the files: what is known under this path or another is left out. What came through the inbox counts by its name
    /// alone: a sender may say the same thing twice.
    async fn arrivals(&mut self, index: &Index, files: &[FoundFile]) -> Result<Vec<HashedFile>> {
        let places = Arc::clone(&self.places);
        let mut sizes: HashMap<u64, usize> = HashMap::new();
        for file in files {
            *sizes.entry(file.size).or_default() += 1;
        }
        // Text is hashed while it is read. Before that, only what could be a copy has to be looked into, and Parquet,
        // which is not read from end to end.
        let look_into = |file: &FoundFile| {
            places.spec_of(&file.path).format == FileFormat::Parquet
                || !places.in_inbox(&file.path)
                    && (index.has_size(file.size) || sizes.get(&file.size).is_some_and(|files| *files > 1))
        };
        let candidates: Vec<(FoundFile, bool)> = files.iter().map(|file| (file.clone(), look_into(file))).collect();
        let store_of = |file: &FoundFile| Arc::clone(places.store_of(&file.path));
        let hashed: Vec<HashedFile> = futures::stream::iter(candidates)
            .map(|(found, look_into)| {
                let store = store_of(&found);
                async move {
                    let content_hash = if look_into { Some(found.content_hash(&store).await?) } else { None };
                    Ok::<_, IngestError>(HashedFile { found, content_hash })
                }
            })
            .buffered(HASHES_AHEAD)
            .try_collect()
            .await?;
        let mut arrivals: Vec<HashedFile> = Vec::with_capacity(hashed.len());
        let mut notes = Vec::new();
        let mut known = 0;
        for file in hashed {
            let arrival = match &file.content_hash {
                None => Arrival::New,
                Some(_) if places.in_inbox(&file.found.path) => Arrival::New,
                Some(hash) => match arrivals.iter().find(|other| other.content_hash.as_ref() == Some(hash)) {
                    Some(twin) => Arrival::CopyOf(&twin.found.path),
                    None => index.by_content(&file.found.path, hash),
                },
            };
            match arrival {
                Arrival::Known => known += 1,
                Arrival::CopyOf(other) => {
                    notes.push(format!("{} has the same content as {other} and is left out", file.found.path));
                }
                Arrival::New => arrivals.push(file),
            }
        }
        self.report.files_known += known;
        self.report.files_copied += count(notes.len());
        for note in notes {
            if !self.report.warnings.contains(&note) {
                self.report.warnings.push(note);
            }
        }
        Ok(arrivals)
    }

    /// How many of the files it took; `None` when another worker planned a batch under this number, or undid this one.
    async fn ingest_batch(&mut self, batch: i64, files: &[HashedFile]) -> Result<Option<usize>> {
        let started_at = self.now();
        let staged = self.stage(files, batch, true).await?;
        let taken = staged.files.len();
        let planned_at = self.now();
        let planned: Vec<PlannedFile> = files
            .iter()
            .zip(&staged.files)
            .map(|(file, outcome)| PlannedFile {
                batch,
                path: file.found.path.clone(),
                size: file.found.size,
                etag: file.found.etag.clone(),
                modified: file.found.modified.timestamp_micros(),
                content_hash: outcome.content_hash.clone(),
                rows_read: outcome.read,
                rows_stored: outcome.stored,
                rows_quarantined: outcome.quarantined,
                event_times: outcome.event_times,
                planned_at,
            })
            .collect();
        let rows = files_rows(self.pipeline, &self.spec.name, &planned)?;
        let plan = write(&self.tables.files, &rows).await?;
        match self.commit("plan", &self.tables.files, batch, plan, Map::new()).await? {
            CommitOutcome::Applied { .. } => {}
            CommitOutcome::AlreadyApplied { .. } | CommitOutcome::Conflicted { .. } => return Ok(None),
        }
        self.reached(IngestStep::Planned);
        self.ledger.add(planned.clone());
        // Abandoned by a worker that found other files: what is there now has to be looked at again.
        let outcome = self.commit_rows(batch, &planned, started_at, staged).await?;
        Ok((outcome == Outcome::Stored).then_some(taken))
    }

    async fn stage(&mut self, files: &[HashedFile], batch: i64, may_end_early: bool) -> Result<Staged> {
        let (lake, raw, spec) = (self.lake, self.tables.raw.clone(), Arc::clone(&self.spec));
        let memory = self.remember().await?;
        let counting = Counting::new(memory.late_before(&spec), memory.keys(lake, &raw, &spec).await?);
        let staging = Staging {
            spec: Arc::clone(&self.spec),
            places: Arc::clone(&self.places),
            raw: self.tables.raw.clone(),
            quarantine: self.tables.quarantine.clone(),
            batch,
            ingested_at: self.now(),
            counting: Arc::new(counting),
            settings: self.settings.clone(),
            may_end_early,
        };
        let mut staged = Box::pin(stage(&staging, files, self.progress)).await?;
        staged.keys = Arc::into_inner(staging.counting).map(Counting::into_keys).unwrap_or_default();
        self.reached(IngestStep::RawStaged);
        if !staged.quarantine.is_empty() {
            self.reached(IngestStep::QuarantineStaged);
        }
        Ok(staged)
    }

    /// Commits a planned batch: what was refused, what was stored, that it is done. Each at most once.
    async fn commit_rows(
        &mut self,
        batch: i64,
        planned: &[PlannedFile],
        started_at: i64,
        staged: Staged,
    ) -> Result<Outcome> {
        let totals = BatchTotals::of(planned);
        Promise::Ing3.check(totals.rows_read == totals.rows_stored + totals.rows_quarantined, || {
            format!("source {} batch {batch}: {totals:?}", self.spec.name)
        })?;
        let notes = || Map::from_iter([("holdfast_batch".to_owned(), json!(batch))]);
        if !staged.quarantine.is_empty() {
            let outcome = self.commit("quarantine", &self.tables.quarantine, batch, staged.quarantine, notes()).await?;
            tracing::debug!(source = %self.spec.name, batch, ?outcome, "refused rows committed");
            self.reached(IngestStep::QuarantineCommitted);
        }
        if !staged.unknown.is_empty() {
            self.note_unknown(batch, &staged.unknown).await?;
        }
        let facts = Facts::of(&self.spec, staged.files.iter().map(|file| &file.facts));
        let mut raw_notes = notes();
        // Should this worker die now, the one that records the batch finds them here.
        raw_notes.insert(self.facts_key(batch), json!(facts));
        let outcome = self.commit("raw", &self.tables.raw, batch, staged.raw, raw_notes).await?;
        let outcome = match outcome {
            CommitOutcome::Applied { .. } => Outcome::Stored,
            // Another worker did the same batch, or closed it because it found other files.
            _ if self.was_abandoned(batch).await? => Outcome::Abandoned,
            _ => Outcome::Stored,
        };
        self.reached(IngestStep::RawCommitted);
        self.unknown.merge(staged.unknown);
        self.record_batch(batch, outcome, planned, started_at, Some(facts), Some(&staged.keys)).await?;
        Ok(outcome)
    }

    /// Tells of fields outside the contract, once a batch. Before its rows are there, as with what was refused.
    async fn note_unknown(&self, batch: i64, fields: &UnknownFields) -> Result<()> {
        let table = self.lake.ensure_table(&unknown_fields_table()?).await?;
        let rows = unknown_fields_rows(self.pipeline, &self.spec.name, batch, fields, self.now())?;
        let files = write(&table, &rows).await?;
        let outcome = self.commit("unknown", &table, batch, files, Map::new()).await?;
        tracing::debug!(source = %self.spec.name, batch, ?outcome, "fields outside the contract noted");
        Ok(())
    }

    async fn record_batch(
        &mut self,
        batch: i64,
        outcome: Outcome,
        planned: &[PlannedFile],
        started_at: i64,
        facts: Option<Facts>,
        keys: Option<&RecentKeys>,
    ) -> Result<()> {
        let (totals, facts) = match outcome {
            Outcome::Stored => (BatchTotals::of(planned), facts),
            Outcome::Abandoned => (BatchTotals::of(planned).without_rows(), None),
        };
        let finished_at = self.now();
        let (source, facts) = (self.spec.name.as_str(), facts.as_ref());
        let row = batch_row(self.pipeline, source, batch, outcome, &totals, started_at, finished_at, facts)?;
        let files = write(&self.tables.batches, &row).await?;
        let recorded = self.commit("batch", &self.tables.batches, batch, files, Map::new()).await?;
        tracing::debug!(source = %self.spec.name, batch, ?recorded, "batch recorded");
        self.ledger.record(batch, outcome);
        // Of several workers with the same batch, the one that records it counts it.
        if outcome == Outcome::Stored && matches!(recorded, CommitOutcome::Applied { .. }) {
            self.count_batch(&totals, started_at, finished_at, facts);
        }
        if let (Outcome::Stored, Some(memory)) = (outcome, &mut self.memory) {
            memory.add(RecentBatch::new(batch, &totals, finished_at, facts), keys);
        }
        self.reached(IngestStep::BatchRecorded);
        Ok(())
    }

    fn count_batch(&mut self, totals: &BatchTotals, started_at: i64, finished_at: i64, facts: Option<&Facts>) {
        let report = &mut self.report;
        report.batches += 1;
        report.files_stored += totals.files;
        report.bytes += totals.bytes;
        report.rows_read += totals.rows_read;
        report.rows_stored += totals.rows_stored;
        report.rows_quarantined += totals.rows_quarantined;
        let (late, in_file, across) = facts.map_or((0, 0, 0), |facts| {
            let counted = |value: Option<u64>| value.unwrap_or(0);
            (counted(facts.late), counted(facts.duplicates_in_file), counted(facts.duplicates_across_files))
        });
        report.rows_late += late;
        report.duplicates_in_file += in_file;
        report.duplicates_across_files += across;
        self.event_times = match (self.event_times, totals.event_times) {
            (Some(left), Some(right)) => Some(widen(left, right)),
            (left, right) => left.or(right),
        };
        let source = self.spec.name.as_str();
        tracing::Span::current().record("rows", totals.rows_read).record("bytes", totals.bytes);
        tracing::info!(
            monotonic_counter.holdfast_ingest_rows = totals.rows_stored,
            monotonic_counter.holdfast_ingest_rows_quarantined = totals.rows_quarantined,
            monotonic_counter.holdfast_ingest_rows_late = late,
            monotonic_counter.holdfast_ingest_duplicates = in_file + across,
            monotonic_counter.holdfast_ingest_bytes = totals.bytes,
            monotonic_counter.holdfast_ingest_files = totals.files,
            source,
        );
        tracing::info!(histogram.holdfast_ingest_batch_seconds = seconds(started_at, finished_at), source);
        if let Some((_, latest)) = totals.event_times {
            tracing::info!(histogram.holdfast_ingest_lag_seconds = seconds(latest, finished_at), source);
        }
    }

    async fn commit(
        &self,
        role: &str,
        table: &Table,
        batch: i64,
        files: Vec<StagedFile>,
        metadata: Map<String, Value>,
    ) -> Result<CommitOutcome> {
        let mut outcome = CommitOutcome::Conflicted { version: table.version() };
        for _ in 0..COMMIT_ATTEMPTS_MAX {
            outcome = self
                .lake
                .commit(Change {
                    table,
                    position: Position { app_id: self.app_id(role), version: batch },
                    fence: self.settings.fence.clone(),
                    kind: ChangeKind::Append,
                    files: files.clone(),
                    schema: None,
                    comment: None,
                    metadata: metadata.clone(),
                })
                .await?;
            // An append was decided on nothing that another commit could change: only try again.
            if !matches!(outcome, CommitOutcome::Conflicted { .. }) {
                return Ok(outcome);
            }
        }
        tracing::debug!(table = %table.name(), ?outcome, "gave up after conflicts");
        Err(IngestError::Contended { source_name: self.spec.name.clone(), attempts: COMMIT_ATTEMPTS_MAX })
    }

    fn app_id(&self, role: &str) -> String {
        app_id(role, self.pipeline, &self.spec.name)
    }

    fn facts_key(&self, batch: i64) -> String {
        format!("holdfast_facts/{}/{}/{batch}", self.pipeline, self.spec.name)
    }

    fn abandoned_key(&self, batch: i64) -> String {
        format!("holdfast_abandoned/{}/{}/{batch}", self.pipeline, self.spec.name)
    }

    fn now(&self) -> i64 {
        self.lake.clock().now().timestamp_micros()
    }

    fn reached(&self, step: IngestStep) {
        if let Some(on_step) = &self.settings.on_step {
            on_step(step);
        }
    }

    /// What was done, and the books as they are now.
    pub(crate) fn into_report(mut self) -> (SourceReport, Books) {
        let mut names: Vec<String> = self.unknown.iter().map(|(name, rows)| format!("{name} ({rows} rows)")).collect();
        if matches!(self.spec.origin, Origin::Feed(_)) {
            // What a feed adds by itself need not be in the contract.
            names.retain(|name| !name.starts_with('_'));
        }
        if !names.is_empty() {
            let more = names.len().saturating_sub(NAMES_SHOWN_MAX);
            names.truncate(NAMES_SHOWN_MAX);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            let names = names.join(", ");
            self.report.warnings.push(format!(
                "fields outside the contract are kept in raw.{}.{UNKNOWN}: {names}{more}",
                self.spec.name
            ));
        }
        let moment = |micros: i64| DateTime::from_timestamp_micros(micros);
        self.report.event_time_min = self.event_times.and_then(|(earliest, _)| moment(earliest));
        self.report.event_time_max = self.event_times.and_then(|(_, latest)| moment(latest));
        let Self { tables, ledger, refused, memory, report, .. } = self;
        (report, Books { tables, ledger, refused, memory })
    }
}

/// Whether reading the files again gave what was planned. Quarantine and raw would not fit together otherwise.
fn is_same(planned: &[PlannedFile], staged: &Staged) -> bool {
    planned
        .iter()
        .zip(&staged.files)
        .all(|(plan, now)| plan.rows_stored == now.stored && plan.rows_quarantined == now.quarantined)
}

pub(crate) async fn write(table: &Table, rows: &RecordBatch) -> Result<Vec<StagedFile>> {
    let mut writer = TableWriter::new(table, WriterSettings::default());
    writer.write(rows).await?;
    Ok(writer.close().await?)
}

/// The seconds between two moments in microseconds.
#[expect(clippy::cast_precision_loss, reason = "seconds for a chart")]
fn seconds(from: i64, to: i64) -> f64 {
    (to - from) as f64 / 1e6
}

pub(crate) fn count(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}
