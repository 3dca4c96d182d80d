//! What was refused from a source: the rows with their reasons, and which of them a replay has moved to raw since.
//!
//! `quarantine.<source>` is append-only. That a row was moved is told by `raw`, where it stands with its file, line, batch and
//! the number of the replay: the one commit that puts it there is also its mark, so that there is nothing to keep in step.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimestampMicrosecondType};
use chrono::{DateTime, Utc};
use datafusion::error::DataFusionError;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::{Expr, col, lit};
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::SessionConfig;
use futures::{Stream, StreamExt, TryStreamExt};
use holdfast_lake::{Lake, Table, TableSpec, is_store_failure};
use holdfast_types::{COMMENT_KEY, PII_KEY, TableName};
use serde::Serialize;

use crate::Result;
use crate::error::IngestError;
use crate::ingest::count;
use crate::ledger::batches_table;
use crate::spec::{BATCH, INGESTED_AT, REPLAY, SOURCE_FILE, SOURCE_LINE, SourceSpec, lineage_fields};

/// Rows that are in memory at once: the text of one has up to 64 KiB.
const ROWS_AT_ONCE: usize = 256;
/// The same for rows that are read without their text.
const PLACES_AT_ONCE: usize = 8_192;

/// How the text of a refused row is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Form {
    /// A CSV record; its columns are in the header, or in the order of the contract.
    Csv,
    /// A JSON object as it came.
    Ndjson,
    /// A row of a Parquet file, written down as a JSON object; its columns are in the layout.
    Parquet,
}

impl Form {
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Csv => "csv",
            Self::Ndjson => "ndjson",
            Self::Parquet => "parquet",
        }
    }

    fn parse(text: &str) -> Option<Self> {
        [Self::Csv, Self::Ndjson, Self::Parquet].into_iter().find(|form| form.as_str() == text)
    }
}

/// `quarantine.<source>`.
pub(crate) fn quarantine_table(spec: &SourceSpec) -> Result<TableSpec> {
    let field = |name: &str, data_type: DataType, comment: &str, pii: bool| {
        let mut metadata = HashMap::from([(COMMENT_KEY.to_owned(), comment.to_owned())]);
        if pii {
            metadata.insert(PII_KEY.to_owned(), "true".to_owned());
        }
        Field::new(name, data_type, true).with_metadata(metadata)
    };
    let text = DataType::Utf8;
    let column = "The column at fault, with dots into structs; null when the row as a whole is";
    let layout = "What tells the columns of original: the header line of its CSV file, or the Arrow schema of a Parquet row \
                  (IPC, base64)";
    let fields = [
        field("reason", text.clone(), "Why the row was refused", false),
        field("column_name", text.clone(), column, false),
        field("original", text.clone(), "The row as it arrived; for Parquet as JSON", true),
    ];
    let how_to_read = [
        field("form", text.clone(), "How original is written: csv, ndjson or parquet", false),
        field("layout", text, layout, false),
        field(
            "is_whole",
            DataType::Boolean,
            "Whether original is the row unaltered, so that it can be replayed",
            false,
        ),
    ];
    let fields = fields.into_iter().chain(lineage_fields()).chain(how_to_read);
    Ok(TableSpec {
        name: TableName::new("quarantine", &spec.name)?,
        schema: Arc::new(Schema::new(fields.collect::<Vec<_>>())),
        partition_by: Vec::new(),
        comment: format!("What was refused from {} ({}), and why", spec.name, spec.kind),
    })
}

/// Which refused rows are meant. Each condition that is there narrows them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QuarantineFilter {
    /// Those of this batch.
    pub batch: Option<i64>,
    /// Those of this file, relative to the ingested folder.
    pub file: Option<String>,
    /// Those refused for this reason.
    pub reason: Option<String>,
    /// Those refused for this column.
    pub column: Option<String>,
    /// Those refused at or after this moment.
    pub since: Option<DateTime<Utc>>,
}

impl QuarantineFilter {
    fn takes(&self, row: &QuarantinedRow) -> bool {
        let is = |wanted: &Option<String>, value: Option<&str>| wanted.is_none() || wanted.as_deref() == value;
        self.batch.is_none_or(|batch| batch == row.batch)
            && is(&self.file, Some(row.file.as_str()))
            && is(&self.reason, Some(row.reason.as_str()))
            && is(&self.column, row.column.as_deref())
            && self.since.is_none_or(|since| row.refused_at >= since)
    }

    /// For the files of the table that cannot hold such rows.
    fn pushed_down(&self) -> Vec<Expr> {
        let batch = self.batch.map(|batch| col(BATCH).eq(lit(batch)));
        let file = self.file.as_ref().map(|file| col(SOURCE_FILE).eq(lit(file.clone())));
        batch.into_iter().chain(file).collect()
    }
}

/// A row that was refused. Holds what a person typed: [`QuarantinedRow::original`] is for those who may see it.
#[derive(Clone, PartialEq, Eq, Serialize)]
pub struct QuarantinedRow {
    /// The file, relative to the ingested folder.
    pub file: String,
    /// Its line, from 1; for Parquet the row.
    pub line: i64,
    /// The batch that brought it.
    pub batch: i64,
    /// When it was refused.
    pub refused_at: DateTime<Utc>,
    /// The column at fault; `None` when the row as a whole is.
    pub column: Option<String>,
    /// Why it was refused.
    pub reason: String,
    /// The replay that moved it to raw; `None` while it waits.
    pub replay: Option<i64>,
    /// The row as it arrived; for Parquet as JSON. Empty where it was not asked for.
    pub original: String,
    /// `None` in rows of older versions.
    #[serde(skip)]
    pub(crate) form: Option<Form>,
    #[serde(skip)]
    pub(crate) layout: Option<Arc<str>>,
    /// `None` in rows of older versions.
    pub is_whole: Option<bool>,
}

impl std::fmt::Debug for QuarantinedRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never the text itself: it is a customer's data.
        f.debug_struct("QuarantinedRow")
            .field("file", &self.file)
            .field("line", &self.line)
            .field("batch", &self.batch)
            .field("column", &self.column)
            .field("reason", &self.reason)
            .field("replay", &self.replay)
            .finish_non_exhaustive()
    }
}

/// Rows of a source that were refused for the same thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QuarantineGroup {
    /// Why they were refused.
    pub reason: String,
    /// The column at fault; `None` when the rows as a whole are.
    pub column: Option<String>,
    /// Rows.
    pub rows: u64,
    /// Of these, rows that a replay has moved to raw.
    pub rows_replayed: u64,
    /// Files they are from.
    pub files: u64,
    /// When the first of them was refused.
    pub first_seen: DateTime<Utc>,
    /// When the last of them was refused.
    pub last_seen: DateTime<Utc>,
}

/// What is in the quarantine of a source, most rows first. Rows of batches that were abandoned are left out: their files were
/// read again.
///
/// # Errors
/// What the lake answers.
pub async fn list_quarantine(
    lake: &Lake,
    pipeline: &str,
    source: &str,
    filter: &QuarantineFilter,
) -> Result<Vec<QuarantineGroup>> {
    let Some(quarantine) = Quarantine::open(lake, pipeline, source).await? else { return Ok(Vec::new()) };
    let mut groups: BTreeMap<(String, Option<String>), (QuarantineGroup, HashSet<String>)> = BTreeMap::new();
    let mut rows = std::pin::pin!(quarantine.rows(lake, filter, Text::LeftOut).await?);
    while let Some(rows) = rows.try_next().await? {
        for row in rows {
            let key = (row.reason.clone(), row.column.clone());
            let (group, files) = groups.entry(key).or_insert_with(|| {
                let group = QuarantineGroup {
                    reason: row.reason.clone(),
                    column: row.column.clone(),
                    rows: 0,
                    rows_replayed: 0,
                    files: 0,
                    first_seen: row.refused_at,
                    last_seen: row.refused_at,
                };
                (group, HashSet::new())
            });
            group.rows += 1;
            group.rows_replayed += u64::from(row.replay.is_some());
            group.first_seen = group.first_seen.min(row.refused_at);
            group.last_seen = group.last_seen.max(row.refused_at);
            if !files.contains(&row.file) {
                files.insert(row.file);
            }
        }
    }
    let mut groups: Vec<QuarantineGroup> =
        groups.into_values().map(|(group, files)| QuarantineGroup { files: count(files.len()), ..group }).collect();
    groups.sort_by_key(|group| std::cmp::Reverse(group.rows));
    Ok(groups)
}

/// The first `rows_max` refused rows of a source in the order of batch, file and line, and how many there are in all.
///
/// # Errors
/// What the lake answers.
pub async fn quarantined_rows(
    lake: &Lake,
    pipeline: &str,
    source: &str,
    filter: &QuarantineFilter,
    rows_max: usize,
) -> Result<(Vec<QuarantinedRow>, u64)> {
    let Some(quarantine) = Quarantine::open(lake, pipeline, source).await? else { return Ok((Vec::new(), 0)) };
    let mut first: BTreeMap<(i64, String, i64), QuarantinedRow> = BTreeMap::new();
    let mut total = 0;
    let mut rows = std::pin::pin!(quarantine.rows(lake, filter, Text::Read).await?);
    while let Some(rows) = rows.try_next().await? {
        total += count(rows.len());
        for row in rows {
            first.insert((row.batch, row.file.clone(), row.line), row);
            if first.len() > rows_max {
                first.pop_last();
            }
        }
    }
    Ok((first.into_values().collect(), total))
}

/// Whether the text of rows is read, which is most of what the table holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Text {
    Read,
    LeftOut,
}

/// One version of the quarantine of a source, with what else is known of its rows.
#[derive(Debug)]
pub(crate) struct Quarantine {
    table: Table,
    /// Whether each batch that is done was stored.
    batches: HashMap<i64, bool>,
    pub(crate) moved: Moved,
}

impl Quarantine {
    /// `None` when nothing was ever read from the source.
    pub(crate) async fn open(lake: &Lake, pipeline: &str, source: &str) -> Result<Option<Self>> {
        let Some(table) = lake.table(&TableName::new("quarantine", source)?).await? else { return Ok(None) };
        let moved = match lake.table(&TableName::new("raw", source)?).await? {
            Some(raw) => Moved::read(lake, &raw, pipeline, source).await?,
            None => Moved::default(),
        };
        Ok(Some(Self { table, batches: ended_batches(lake, pipeline, source).await?, moved }))
    }

    /// Whether the row is of a batch that is done. Until then its end is open.
    pub(crate) fn has_ended(&self, row: &QuarantinedRow) -> bool {
        self.batches.contains_key(&row.batch)
    }

    /// The rows that `filter` takes, without those of abandoned batches.
    pub(crate) async fn rows(
        &self,
        lake: &Lake,
        filter: &QuarantineFilter,
        text: Text,
    ) -> Result<impl Stream<Item = Result<Vec<QuarantinedRow>>>> {
        let mut columns = vec!["reason", "column_name", SOURCE_FILE, SOURCE_LINE, BATCH, INGESTED_AT, "is_whole"];
        if text == Text::Read {
            columns.extend(["original", "form", "layout"]);
        }
        let batches = scan(lake, &self.table, &columns, &filter.pushed_down(), ROWS_AT_ONCE).await?;
        Ok(batches.map(move |batch| -> Result<Vec<QuarantinedRow>> {
            let rows = self.decode(&batch?)?;
            let abandoned = |row: &QuarantinedRow| self.batches.get(&row.batch) == Some(&false);
            Ok(rows.into_iter().filter(|row| filter.takes(row) && !abandoned(row)).collect())
        }))
    }

    fn decode(&self, batch: &RecordBatch) -> Result<Vec<QuarantinedRow>> {
        let read = Columns { table: &self.table, batch };
        let (reasons, columns, files) = (read.text("reason")?, read.text("column_name")?, read.text(SOURCE_FILE)?);
        let (lines, batches, moments) = (read.number(SOURCE_LINE)?, read.number(BATCH)?, read.moment(INGESTED_AT)?);
        let (originals, forms, layouts) = (read.text("original")?, read.text("form")?, read.text("layout")?);
        let whole = read.boolean("is_whole")?;
        let at = |texts: &Option<StringArray>, row: usize| {
            texts.as_ref().filter(|texts| texts.is_valid(row)).map(|texts| texts.value(row).to_owned())
        };
        let mut layout: Option<Arc<str>> = None;
        Ok((0..batch.num_rows())
            .map(|row| {
                let text = at(&layouts, row);
                // Rows of one file follow each other.
                if layout.as_deref() != text.as_deref() {
                    layout = text.map(Arc::from);
                }
                let file = at(&files, row).unwrap_or_default();
                let (line, batch) = (number_at(&lines, row), number_at(&batches, row));
                QuarantinedRow {
                    line,
                    batch,
                    refused_at: moments
                        .as_ref()
                        .and_then(|moments| DateTime::from_timestamp_micros(moments.value(row)))
                        .unwrap_or_default(),
                    column: at(&columns, row),
                    reason: at(&reasons, row).unwrap_or_default(),
                    replay: self.moved.replay_of(batch, &file, line),
                    file,
                    original: at(&originals, row).unwrap_or_default(),
                    form: at(&forms, row).and_then(|form| Form::parse(&form)),
                    layout: layout.clone(),
                    is_whole: whole.as_ref().filter(|whole| whole.is_valid(row)).map(|whole| whole.value(row)),
                }
            })
            .collect())
    }
}

/// The rows of one version of `raw` that replays have put there.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    /// The newest replay in that version; 0 before the first.
    pub(crate) newest: i64,
    /// Batch, file and line, and the replay.
    places: HashMap<i64, HashMap<String, HashMap<i64, i64>>>,
    /// Rows and moment (UTC microseconds) by replay and batch.
    pub(crate) counts: BTreeMap<(i64, i64), (u64, i64)>,
}

impl Moved {
    async fn read(lake: &Lake, raw: &Table, pipeline: &str, source: &str) -> Result<Self> {
        let mut moved = Self { newest: newest_replay(raw, pipeline, source).await?, ..Self::default() };
        if moved.newest == 0 {
            return Ok(moved);
        }
        let columns = [SOURCE_FILE, SOURCE_LINE, BATCH, INGESTED_AT, REPLAY];
        let mut rows =
            std::pin::pin!(scan(lake, raw, &columns, &[col(REPLAY).gt_eq(lit(1_i64))], PLACES_AT_ONCE).await?);
        while let Some(rows) = rows.try_next().await? {
            let read = Columns { table: raw, batch: &rows };
            let (files, moments) = (read.text(SOURCE_FILE)?, read.moment(INGESTED_AT)?);
            let (lines, batches, replays) = (read.number(SOURCE_LINE)?, read.number(BATCH)?, read.number(REPLAY)?);
            let (Some(files), Some(moments)) = (files, moments) else { continue };
            for row in 0..rows.num_rows() {
                let replay = number_at(&replays, row);
                if replay > 0 {
                    let (batch, line) = (number_at(&batches, row), number_at(&lines, row));
                    moved.add(replay, batch, files.value(row), line, moments.value(row));
                }
            }
        }
        Ok(moved)
    }

    fn add(&mut self, replay: i64, batch: i64, file: &str, line: i64, at: i64) {
        let files = self.places.entry(batch).or_default();
        match files.get_mut(file) {
            Some(lines) => lines.insert(line, replay),
            None => files.entry(file.to_owned()).or_default().insert(line, replay),
        };
        self.counts.entry((replay, batch)).or_insert((0, at)).0 += 1;
    }

    fn replay_of(&self, batch: i64, file: &str, line: i64) -> Option<i64> {
        self.places.get(&batch)?.get(file)?.get(&line).copied()
    }
}

/// The newest replay of a source in its table in `raw`; 0 before the first.
///
/// # Errors
/// What the Delta log answers.
pub async fn newest_replay(raw: &Table, pipeline: &str, source: &str) -> Result<i64> {
    Ok(raw.position(&replay_app_id(pipeline, source)).await?.unwrap_or(0))
}

pub(crate) fn replay_app_id(pipeline: &str, source: &str) -> String {
    format!("replay/{pipeline}/{source}")
}

async fn ended_batches(lake: &Lake, pipeline: &str, source: &str) -> Result<HashMap<i64, bool>> {
    let mut ended = HashMap::new();
    let Some(table) = lake.table(&batches_table()?.name).await? else { return Ok(ended) };
    let filter = [col("source").eq(lit(source.to_owned()))];
    let columns = ["pipeline", "source", "batch", "outcome"];
    let mut rows = std::pin::pin!(scan(lake, &table, &columns, &filter, PLACES_AT_ONCE).await?);
    while let Some(rows) = rows.try_next().await? {
        let read = Columns { table: &table, batch: &rows };
        let (pipelines, sources, outcomes) = (read.text("pipeline")?, read.text("source")?, read.text("outcome")?);
        let (Some(pipelines), Some(sources), Some(outcomes)) = (pipelines, sources, outcomes) else { continue };
        let batches = read.number("batch")?;
        for row in 0..rows.num_rows() {
            if pipelines.value(row) == pipeline && sources.value(row) == source {
                ended.insert(number_at(&batches, row), outcomes.value(row) == "stored");
            }
        }
    }
    Ok(ended)
}

/// Those of `columns` that the table has, `rows_at_once`. Files that cannot hold a row for which `filters` are true are
/// left out; others come whole.
pub(crate) async fn scan(
    lake: &Lake,
    table: &Table,
    columns: &[&str],
    filters: &[Expr],
    rows_at_once: usize,
) -> Result<impl Stream<Item = Result<RecordBatch>> + use<>> {
    let name = table.name().to_string();
    let failed = move |error: DataFusionError| match error {
        DataFusionError::ObjectStore(source) => {
            IngestError::Store { what: format!("cannot read table {name}"), source: *source }
        }
        error if is_store_failure(&error) => {
            IngestError::Unread { table: name.clone(), message: error.strip_backtrace() }
        }
        error => {
            IngestError::Table { table: name.clone(), message: format!("cannot be read: {}", error.strip_backtrace()) }
        }
    };
    let projection: Vec<usize> = columns.iter().filter_map(|column| table.schema().index_of(column).ok()).collect();
    let filters: Vec<Expr> = filters
        .iter()
        .filter(|filter| filter.column_refs().iter().all(|column| table.schema().index_of(&column.name).is_ok()))
        .cloned()
        .collect();
    let config = SessionConfig::new().with_batch_size(rows_at_once).with_target_partitions(1);
    let state = SessionStateBuilder::new().with_config(config).build();
    state.runtime_env().register_object_store(lake.store_url().as_ref(), Arc::clone(lake.store()));
    let plan = table.provider().scan(&state, Some(&projection), &filters, None).await.map_err(&failed)?;
    let rows = execute_stream(plan, state.task_ctx()).map_err(&failed)?;
    Ok(rows.map(move |rows| rows.map_err(&failed)))
}

/// The columns of a batch; `None` for one that an older version of the table does not have.
pub(crate) struct Columns<'a> {
    pub(crate) table: &'a Table,
    pub(crate) batch: &'a RecordBatch,
}

impl Columns<'_> {
    fn column(&self, name: &str, data_type: &DataType) -> Result<Option<ArrayRef>> {
        match self.batch.column_by_name(name) {
            None => Ok(None),
            Some(array) if array.data_type() == data_type => Ok(Some(Arc::clone(array))),
            Some(_) => Err(IngestError::Table {
                table: self.table.name().to_string(),
                message: format!("column {name} has an unexpected type"),
            }),
        }
    }

    pub(crate) fn text(&self, name: &str) -> Result<Option<StringArray>> {
        Ok(self.column(name, &DataType::Utf8)?.map(|array| array.as_string::<i32>().clone()))
    }

    pub(crate) fn number(&self, name: &str) -> Result<Option<Int64Array>> {
        Ok(self.column(name, &DataType::Int64)?.map(|array| array.as_primitive::<Int64Type>().clone()))
    }

    fn boolean(&self, name: &str) -> Result<Option<BooleanArray>> {
        Ok(self.column(name, &DataType::Boolean)?.map(|array| array.as_boolean().clone()))
    }

    pub(crate) fn moment(&self, name: &str) -> Result<Option<arrow::array::TimestampMicrosecondArray>> {
        let array = self.column(name, &crate::spec::timestamp_type())?;
        Ok(array.map(|array| array.as_primitive::<TimestampMicrosecondType>().clone()))
    }
}

fn number_at(numbers: &Option<Int64Array>, row: usize) -> i64 {
    numbers.as_ref().filter(|numbers| numbers.is_valid(row)).map_or(0, |numbers| numbers.value(row))
}
