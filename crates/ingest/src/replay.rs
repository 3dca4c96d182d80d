//! Moving rows out of quarantine after their contract was mended, each once.
//!
//! A replay is one commit to `raw`: its rows, with the number of the replay in `_replay`, at the position of that number. Which rows
//! wait is decided on a version of `raw` in which every earlier replay can be seen, and whoever comes second with a number
//! finds it taken and decides anew. So there is no moment at which a row is moved and not marked, whoever dies where.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Schema, SchemaRef};
use futures::TryStreamExt;
use holdfast_lake::{
    Change, ChangeKind, CommitOutcome, Lake, Position, StagedFile, Table, TableSpec, TableWriter, WriterSettings,
};
use holdfast_types::TableName;
use serde::Serialize;
use serde_json::{Map, json};
use tracing::Instrument;

use crate::Result;
use crate::batch::fit;
use crate::books::raw_table;
use crate::error::IngestError;
use crate::ingest::{COMMIT_ATTEMPTS_MAX, count, write};
use crate::ledger::{field, times};
use crate::quarantine::{Quarantine, QuarantineFilter, QuarantinedRow, Text, quarantine_table, replay_app_id};
use crate::reread::{Fits, reread};
use crate::spec::{BATCH, INGESTED_AT, REPLAY, SOURCE_FILE, SOURCE_LINE, SourceSpec, timestamp_type};
use crate::unknown::UNKNOWN;

/// How often all is decided anew because another process moved rows meanwhile.
const PASSES_MAX: usize = 20;

/// Limits of replays.
#[derive(Clone)]
pub struct ReplaySettings {
    /// Rows that one commit moves, give or take those that are read at once.
    pub rows_max: u64,
    /// Only tell what would be moved.
    pub is_dry_run: bool,
    /// Called after each step, for tests that stop there.
    pub on_step: Option<Arc<dyn Fn(ReplayStep) + Send + Sync>>,
}

impl Default for ReplaySettings {
    fn default() -> Self {
        Self { rows_max: 100_000, is_dry_run: false, on_step: None }
    }
}

impl std::fmt::Debug for ReplaySettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplaySettings")
            .field("rows_max", &self.rows_max)
            .field("is_dry_run", &self.is_dry_run)
            .finish_non_exhaustive()
    }
}

/// The steps of a replay, in their order. Between any two of them a process may die.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ReplayStep {
    /// Rows for `raw` are written, invisible.
    Staged,
    /// The rows are in `raw`.
    Moved,
    /// The replay is in `metric.ingest_replays`.
    Recorded,
}

impl ReplayStep {
    /// All of them, in their order.
    pub const ALL: [Self; 3] = [Self::Staged, Self::Moved, Self::Recorded];

    /// The name used on command lines.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Staged => "staged",
            Self::Moved => "moved",
            Self::Recorded => "recorded",
        }
    }
}

impl std::str::FromStr for ReplayStep {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::ALL.into_iter().find(|step| step.as_str() == text).ok_or_else(|| {
            let names: Vec<&str> = Self::ALL.into_iter().map(Self::as_str).collect();
            format!("`{text}` is not a step of a replay; the steps are {}", names.join(", "))
        })
    }
}

/// What a call of [`replay_quarantine`] did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ReplayReport {
    /// The source.
    pub source: String,
    /// Rows that this call moved to `raw`, or would have moved.
    pub rows_moved: u64,
    /// Rows that stay in quarantine.
    pub rows_kept: u64,
    /// Rows of batches that are not finished; they were not looked at.
    pub rows_open: u64,
    /// Commits that this call made to `raw`.
    pub replays: u64,
    /// Why rows stay, by today's contract; most rows first.
    pub kept: Vec<KeptRows>,
}

/// Rows that still do not fit, for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct KeptRows {
    /// Why, by today's contract.
    pub reason: String,
    /// The column at fault; `None` when the rows as a whole are.
    pub column: Option<String>,
    /// How many.
    pub rows: u64,
    /// The file of the first of them.
    pub first_file: String,
    /// Its line.
    pub first_line: i64,
}

/// Reads the rows that `filter` takes again from their original text, under `spec` as it is today. Those that fit go to
/// `raw.<source>` with the file, line and batch they came with; the others stay.
///
/// Each row moves once, however often and by however many processes at once this is called. May be repeated after an error, and dropped
/// at any moment.
///
/// # Errors
/// What the lake answers; [`IngestError::Contended`] when others keep moving rows of the source.
pub async fn replay_quarantine(
    lake: &Lake,
    pipeline: &str,
    spec: &SourceSpec,
    filter: &QuarantineFilter,
    settings: &ReplaySettings,
) -> Result<ReplayReport> {
    let span = tracing::info_span!("replay", pipeline, source = %spec.name, rows = tracing::field::Empty);
    Box::pin(replay(lake, pipeline, spec, filter, settings)).instrument(span).await
}

async fn replay(
    lake: &Lake,
    pipeline: &str,
    spec: &SourceSpec,
    filter: &QuarantineFilter,
    settings: &ReplaySettings,
) -> Result<ReplayReport> {
    let mut report = ReplayReport { source: spec.name.clone(), ..ReplayReport::default() };
    if lake.table(&quarantine_table(spec)?.name).await?.is_none() {
        return Ok(report);
    }
    for _ in 0..PASSES_MAX {
        let Some(mut pass) = Pass::open(lake, pipeline, spec, filter, settings).await? else { return Ok(report) };
        if pass.run(&mut report).await? {
            tracing::Span::current().record("rows", report.rows_moved);
            return Ok(report);
        }
    }
    Err(IngestError::Contended { source_name: spec.name.clone(), attempts: PASSES_MAX })
}

/// The rows that wait, seen from one version of `raw`.
struct Pass<'a> {
    lake: &'a Lake,
    pipeline: &'a str,
    spec: &'a SourceSpec,
    filter: &'a QuarantineFilter,
    settings: &'a ReplaySettings,
    raw: Table,
    quarantine: Arc<Quarantine>,
    /// The newest replay that is known, and the rows and moment of each by replay and batch.
    newest: i64,
    counts: BTreeMap<(i64, i64), (u64, i64)>,
}

/// Rows that are written for the next replay, but not committed.
struct Moving {
    writer: TableWriter,
    /// By batch.
    rows: BTreeMap<i64, u64>,
    /// UTC microseconds.
    at: i64,
}

impl Moving {
    fn row_count(&self) -> u64 {
        self.rows.values().sum()
    }
}

impl<'a> Pass<'a> {
    async fn open(
        lake: &'a Lake,
        pipeline: &'a str,
        spec: &'a SourceSpec,
        filter: &'a QuarantineFilter,
        settings: &'a ReplaySettings,
    ) -> Result<Option<Self>> {
        // Today's contract may have columns that the table lacks. A dry run changes nothing: no table either.
        let raw = if settings.is_dry_run {
            lake.table(&raw_table(spec)?.name).await?
        } else {
            lake.ensure_table(&quarantine_table(spec)?).await?;
            Some(lake.ensure_table(&raw_table(spec)?).await?)
        };
        let Some(raw) = raw else { return Ok(None) };
        let quarantine = Quarantine::open(lake, pipeline, &spec.name).await?;
        Ok(quarantine.map(|quarantine| Self {
            lake,
            pipeline,
            spec,
            filter,
            settings,
            raw,
            newest: quarantine.moved.newest,
            counts: quarantine.moved.counts.clone(),
            quarantine: Arc::new(quarantine),
        }))
    }

    /// Whether all was done; if not, another process moved rows under our number.
    async fn run(&mut self, report: &mut ReplayReport) -> Result<bool> {
        (report.rows_kept, report.rows_open) = (0, 0);
        let mut kept: BTreeMap<(String, Option<String>), KeptRows> = BTreeMap::new();
        self.record_moved().await?;
        let quarantine = Arc::clone(&self.quarantine);
        let mut moving: Option<Moving> = None;
        let mut rows = std::pin::pin!(quarantine.rows(self.lake, self.filter, Text::Read).await?);
        while let Some(rows) = rows.try_next().await? {
            let (rows, open): (Vec<QuarantinedRow>, Vec<QuarantinedRow>) =
                rows.into_iter().filter(|row| row.replay.is_none()).partition(|row| quarantine.has_ended(row));
            report.rows_open += count(open.len());
            let again = reread(&rows, self.spec)?;
            for (index, refusal) in again.refused {
                let row = &rows[index];
                report.rows_kept += 1;
                let key = (refusal.reason.into_owned(), refusal.column);
                let group = kept.entry(key.clone()).or_insert_with(|| KeptRows {
                    reason: key.0,
                    column: key.1,
                    rows: 0,
                    first_file: row.file.clone(),
                    first_line: row.line,
                });
                group.rows += 1;
            }
            if self.settings.is_dry_run {
                report.rows_moved += again.fits.iter().map(|fits| count(fits.rows.len())).sum::<u64>();
                continue;
            }
            for fits in again.fits {
                let moving = moving.get_or_insert_with(|| Moving {
                    writer: TableWriter::new(&self.raw, WriterSettings::default()),
                    rows: BTreeMap::new(),
                    at: self.lake.clock().now().timestamp_micros(),
                });
                moving.writer.write(&self.raw_rows(&rows, &fits, moving.at)?).await?;
                for index in fits.rows {
                    *moving.rows.entry(rows[index].batch).or_default() += 1;
                }
            }
            if moving.as_ref().is_some_and(|moving| moving.row_count() >= self.settings.rows_max)
                && let Some(full) = moving.take()
                && !self.commit(full, report).await?
            {
                return Ok(false);
            }
        }
        if let Some(rest) = moving
            && !self.commit(rest, report).await?
        {
            return Ok(false);
        }
        report.kept = kept.into_values().collect();
        report.kept.sort_by_key(|kept| std::cmp::Reverse(kept.rows));
        Ok(true)
    }

    /// Rows for the next replay, as `raw` has them. They became known now, not when they were refused.
    fn raw_rows(&self, rows: &[QuarantinedRow], fits: &Fits, at: i64) -> Result<RecordBatch> {
        let chosen = || fits.rows.iter().map(|index| &rows[*index]);
        let length = fits.rows.len();
        let mut columns: BTreeMap<&str, ArrayRef> = self
            .spec
            .columns
            .iter()
            .map(|column| column.name.as_str())
            .zip(fits.columns.iter().map(Arc::clone))
            .collect();
        columns.extend(fits.unknown.iter().map(|unknown| (UNKNOWN, Arc::clone(unknown))));
        columns.insert(SOURCE_FILE, Arc::new(StringArray::from_iter_values(chosen().map(|row| &row.file))));
        columns.insert(SOURCE_LINE, Arc::new(Int64Array::from_iter_values(chosen().map(|row| row.line))));
        columns.insert(BATCH, Arc::new(Int64Array::from_iter_values(chosen().map(|row| row.batch))));
        columns.insert(INGESTED_AT, Arc::new(TimestampMicrosecondArray::from_value(at, length).with_timezone("UTC")));
        columns.insert(REPLAY, Arc::new(Int64Array::from_value(self.newest + 1, length)));
        fit(&mut columns, self.raw.schema(), length)
    }

    /// Whether this call made the next replay of these rows.
    async fn commit(&mut self, moving: Moving, report: &mut ReplayReport) -> Result<bool> {
        let rows = moving.row_count();
        let files = moving.writer.close().await?;
        self.reached(ReplayStep::Staged);
        let replay = self.newest + 1;
        match self.append(&self.raw, replay, files.clone()).await? {
            CommitOutcome::Applied { .. } => {}
            CommitOutcome::AlreadyApplied { .. } | CommitOutcome::Conflicted { .. } => {
                self.lake.discard(files, &self.raw).await;
                return Ok(false);
            }
        }
        self.reached(ReplayStep::Moved);
        self.counts.extend(moving.rows.into_iter().map(|(batch, rows)| ((replay, batch), (rows, moving.at))));
        self.newest = replay;
        report.rows_moved += rows;
        report.replays += 1;
        tracing::info!(
            monotonic_counter.holdfast_ingest_rows_replayed = rows,
            source = %self.spec.name,
            replay,
            "rows moved out of quarantine"
        );
        self.record_moved().await?;
        self.reached(ReplayStep::Recorded);
        Ok(true)
    }

    /// Brings `metric.ingest_replays` up to what is in `raw`, whoever put it there.
    async fn record_moved(&self) -> Result<()> {
        if self.settings.is_dry_run || self.newest == 0 {
            return Ok(());
        }
        let table = self.lake.ensure_table(&replays_table()?).await?;
        let recorded = table.position(&replay_app_id(self.pipeline, &self.spec.name)).await?.unwrap_or(0);
        for replay in recorded + 1..=self.newest {
            let batches = self.counts.range((replay, i64::MIN)..=(replay, i64::MAX));
            let rows: Vec<(i64, u64, i64)> = batches.map(|((_, batch), (rows, at))| (*batch, *rows, *at)).collect();
            let files = write(&table, &replay_rows(self.pipeline, &self.spec.name, replay, &rows)?).await?;
            let outcome = self.append(&table, replay, files).await?;
            tracing::debug!(source = %self.spec.name, replay, ?outcome, "replay recorded");
        }
        Ok(())
    }

    async fn append(&self, table: &Table, replay: i64, files: Vec<StagedFile>) -> Result<CommitOutcome> {
        let app_id = replay_app_id(self.pipeline, &self.spec.name);
        let mut outcome = CommitOutcome::Conflicted { version: table.version() };
        for _ in 0..COMMIT_ATTEMPTS_MAX {
            outcome = self
                .lake
                .commit(Change {
                    table,
                    position: Position { app_id: app_id.clone(), version: replay },
                    fence: None,
                    kind: ChangeKind::Append,
                    files: files.clone(),
                    schema: None,
                    comment: None,
                    metadata: Map::from_iter([("holdfast_replay".to_owned(), json!(replay))]),
                })
                .await?;
            if !matches!(outcome, CommitOutcome::Conflicted { .. }) {
                return Ok(outcome);
            }
        }
        tracing::debug!(table = %table.name(), ?outcome, "gave up after conflicts");
        Err(IngestError::Contended { source_name: self.spec.name.clone(), attempts: COMMIT_ATTEMPTS_MAX })
    }

    fn reached(&self, step: ReplayStep) {
        if let Some(on_step) = &self.settings.on_step {
            on_step(step);
        }
    }
}

fn replays_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        field("pipeline", DataType::Utf8, "Pipeline of the source"),
        field("source", DataType::Utf8, "Source of the rows"),
        field("replay", DataType::Int64, "Replay, counted per source from 1: see _replay in raw"),
        field("batch", DataType::Int64, "Batch that had brought the rows to quarantine"),
        field("rows_replayed", DataType::Int64, "Records that it moved from quarantine to raw"),
        field("replayed_at", timestamp_type(), "When they were read again"),
    ]))
}

/// `metric.ingest_replays`.
pub(crate) fn replays_table() -> Result<TableSpec> {
    Ok(TableSpec {
        name: TableName::new("metric", "ingest_replays")?,
        schema: replays_schema(),
        partition_by: Vec::new(),
        comment: "What was moved from quarantine to raw, one row a replay and batch".to_owned(),
    })
}

/// Rows of `metric.ingest_replays`: batch, rows and moment (UTC microseconds) of each.
fn replay_rows(pipeline: &str, source: &str, replay: i64, batches: &[(i64, u64, i64)]) -> Result<RecordBatch> {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::new_repeated(pipeline, batches.len())),
        Arc::new(StringArray::new_repeated(source, batches.len())),
        Arc::new(Int64Array::from_value(replay, batches.len())),
        Arc::new(Int64Array::from_iter_values(batches.iter().map(|(batch, _, _)| *batch))),
        Arc::new(Int64Array::from_iter_values(
            batches.iter().map(|(_, rows, _)| i64::try_from(*rows).unwrap_or(i64::MAX)),
        )),
        times(batches.iter().map(|(_, _, at)| Some(*at))),
    ];
    RecordBatch::try_new(replays_schema(), columns).map_err(IngestError::internal)
}
