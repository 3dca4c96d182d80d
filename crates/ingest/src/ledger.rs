use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch, StringArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimestampMicrosecondType};
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::{Expr, col, lit};
use datafusion::physical_plan::execute_stream;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use holdfast_lake::{Lake, Table, TableSpec};
use holdfast_types::{COMMENT_KEY, SORTED_KEY, TableName};

use crate::Result;
use crate::discover::FoundFile;
use crate::error::IngestError;
use crate::facts::{Facts, nulls_type};
use crate::spec::timestamp_type;

const FILES: &str = "metric.ingest_files";
const BATCHES: &str = "metric.ingest_batches";

/// Of so many files the books are asked one by one; of more, for all there is about the source.
const ASKED_MAX: usize = 1_000;
/// Values that one list of a filter names: longer ones are not held against statistics.
const VALUES_PRUNED_MAX: usize = 20;

/// How a batch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Its rows are in `raw` and `quarantine`.
    Stored,
    /// A file changed before its rows were stored: nothing of it is in `raw`, its files were planned anew.
    Abandoned,
}

impl Outcome {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Abandoned => "abandoned",
        }
    }
}

/// A file of a planned batch, with what reading it gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlannedFile {
    pub(crate) batch: i64,
    pub(crate) path: String,
    pub(crate) size: u64,
    pub(crate) etag: Option<String>,
    /// UTC microseconds.
    pub(crate) modified: i64,
    pub(crate) content_hash: String,
    pub(crate) rows_read: u64,
    pub(crate) rows_stored: u64,
    pub(crate) rows_quarantined: u64,
    /// UTC microseconds.
    pub(crate) event_times: Option<(i64, i64)>,
    /// UTC microseconds.
    pub(crate) planned_at: i64,
}

/// What is known of the files of one source: of all of them, or of those that were asked about.
///
/// How far planning and recording have come are positions in the tables' logs, and what was planned and not recorded lies between them. So nothing of the
/// past has to be read to go on; whether a file is known is looked up by its size, by which the table's merged files are sorted.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    pipeline: String,
    source: String,
    /// The newest planned batch; 0 before the first.
    planned: i64,
    /// The newest batch whose end is recorded: batches are recorded one after the other.
    recorded: i64,
    /// In the order of batches.
    files: BTreeMap<i64, Vec<PlannedFile>>,
    /// Which of the batches in `files` were abandoned.
    abandoned: HashSet<i64>,
    /// Whether `files` has all that can come up.
    is_complete: bool,
}

/// What the ledger says about a file that was found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Arrival<'a> {
    /// This content under this path is in `raw`.
    Known,
    /// This content came under another path.
    CopyOf(&'a str),
    /// A path or content not seen before.
    New,
}

impl Ledger {
    /// The books of one source, as far as work is open: what was planned and not recorded.
    pub(crate) async fn open(
        lake: &Lake,
        files: &Table,
        batches: &Table,
        pipeline: &str,
        source: &str,
    ) -> Result<Self> {
        let mut ledger = Self { pipeline: pipeline.to_owned(), source: source.to_owned(), ..Self::default() };
        ledger.go_on(lake, files, batches).await?;
        Ok(ledger)
    }

    /// Takes in what other workers planned and recorded meanwhile.
    pub(crate) async fn go_on(&mut self, lake: &Lake, files: &Table, batches: &Table) -> Result<()> {
        let known = self.planned;
        self.planned = files.position(&self.app_id("plan")).await?.unwrap_or(0);
        self.recorded = batches.position(&self.app_id("batch")).await?.unwrap_or(0);
        // Who knows all that was stored has to know what others stored since.
        let since = if self.is_complete { known.min(self.recorded) } else { self.recorded };
        if self.planned > since {
            self.read(lake, files, Some(col("batch").gt(lit(since))), |file| file.batch > since).await?;
        }
        if self.is_complete { self.learn_abandoned(lake, batches).await } else { Ok(()) }
    }

    /// Looks up what there is about files that were found. Files of other sizes than these are not among those they could be.
    pub(crate) async fn learn(
        &mut self,
        lake: &Lake,
        files: &Table,
        batches: &Table,
        found: &[FoundFile],
    ) -> Result<()> {
        if self.is_complete || found.is_empty() || self.planned == 0 {
            return Ok(());
        }
        let is_few = found.len() <= ASKED_MAX;
        let sizes: BTreeSet<u64> = found.iter().map(|file| file.size).collect();
        let values = sizes.iter().map(|size| lit(i64::try_from(*size).unwrap_or(i64::MAX)));
        let filter = is_one_of("size", values).filter(|_| is_few);
        self.read(lake, files, filter, |file| sizes.contains(&file.size)).await?;
        // What a path was last decides about the files that have been what they are now before, and about no others.
        let known: HashSet<&str> = self.files.values().flatten().map(|file| file.path.as_str()).collect();
        let paths: HashSet<&str> =
            found.iter().map(|file| file.path.as_str()).filter(|path| known.contains(path)).collect();
        if let Some(filter) = is_one_of("path", paths.iter().map(|path| lit(*path))) {
            self.read(lake, files, Some(filter).filter(|_| is_few), |file| paths.contains(file.path.as_str())).await?;
        }
        self.learn_abandoned(lake, batches).await
    }

    /// Reads all there is about the source.
    pub(crate) async fn learn_all(&mut self, lake: &Lake, files: &Table, batches: &Table) -> Result<()> {
        self.read(lake, files, None, |_| true).await?;
        self.learn_abandoned(lake, batches).await?;
        self.is_complete = true;
        Ok(())
    }

    /// Whether it has all that can come up, without looking anything up.
    pub(crate) fn is_complete(&self) -> bool {
        self.is_complete
    }

    async fn learn_abandoned(&mut self, lake: &Lake, batches: &Table) -> Result<()> {
        if self.files.keys().all(|batch| *batch > self.recorded) {
            return Ok(());
        }
        let abandoned = col("outcome").eq(lit(Outcome::Abandoned.as_str()));
        let mut found = read_matching(lake, batches, BATCHES, &[self.is_of_source(), abandoned])?;
        while let Some(rows) = found.try_next().await? {
            let text = |name: &str| column(&rows, BATCHES, name).map(|array| array.as_string::<i32>().clone());
            let (pipelines, sources, outcomes) = (text("pipeline")?, text("source")?, text("outcome")?);
            let numbers = column(&rows, BATCHES, "batch")?.as_primitive::<Int64Type>().clone();
            for row in 0..rows.num_rows() {
                if pipelines.value(row) == self.pipeline
                    && sources.value(row) == self.source
                    && outcomes.value(row) == Outcome::Abandoned.as_str()
                {
                    self.abandoned.insert(numbers.value(row));
                }
            }
        }
        Ok(())
    }

    /// Reads the source's files for which `is_wanted`; `filter` says the same to statistics.
    async fn read(
        &mut self,
        lake: &Lake,
        files: &Table,
        filter: Option<Expr>,
        is_wanted: impl Fn(&PlannedFile) -> bool,
    ) -> Result<()> {
        let filters: Vec<Expr> = std::iter::once(self.is_of_source()).chain(filter).collect();
        let mut found = read_matching(lake, files, FILES, &filters)?;
        while let Some(rows) = found.try_next().await? {
            let text = |name: &str| column(&rows, FILES, name).map(|array| array.as_string::<i32>().clone());
            let number = |name: &str| column(&rows, FILES, name).map(|array| array.as_primitive::<Int64Type>().clone());
            let time = |name: &str| {
                column(&rows, FILES, name).map(|array| array.as_primitive::<TimestampMicrosecondType>().clone())
            };
            let (pipelines, sources) = (text("pipeline")?, text("source")?);
            let (paths, etags, hashes) = (text("path")?, text("etag")?, text("content_hash")?);
            let (batch_numbers, sizes) = (number("batch")?, number("size")?);
            let (read, stored, quarantined) =
                (number("rows_read")?, number("rows_stored")?, number("rows_quarantined")?);
            let (modified, planned_at) = (time("modified")?, time("planned_at")?);
            let (earliest, latest) = (time("event_time_min")?, time("event_time_max")?);
            let count = |array: &Int64Array, row: usize| u64::try_from(array.value(row)).unwrap_or(0);
            for row in 0..rows.num_rows() {
                if pipelines.value(row) != self.pipeline || sources.value(row) != self.source {
                    continue;
                }
                let file = PlannedFile {
                    batch: batch_numbers.value(row),
                    path: paths.value(row).to_owned(),
                    size: count(&sizes, row),
                    etag: etags.is_valid(row).then(|| etags.value(row).to_owned()),
                    modified: modified.value(row),
                    content_hash: hashes.value(row).to_owned(),
                    rows_read: count(&read, row),
                    rows_stored: count(&stored, row),
                    rows_quarantined: count(&quarantined, row),
                    event_times: earliest.is_valid(row).then(|| (earliest.value(row), latest.value(row))),
                    planned_at: planned_at.value(row),
                };
                if is_wanted(&file) {
                    self.put(file);
                }
            }
        }
        Ok(())
    }

    /// Keeps the files of a batch sorted by path, each once.
    fn put(&mut self, file: PlannedFile) {
        let files = self.files.entry(file.batch).or_default();
        if let Err(place) = files.binary_search_by(|other| other.path.cmp(&file.path)) {
            files.insert(place, file);
        }
    }

    fn is_of_source(&self) -> Expr {
        col("pipeline").eq(lit(&self.pipeline)).and(col("source").eq(lit(&self.source)))
    }

    fn app_id(&self, role: &str) -> String {
        app_id(role, &self.pipeline, &self.source)
    }

    pub(crate) fn add(&mut self, files: Vec<PlannedFile>) {
        for file in files {
            self.planned = self.planned.max(file.batch);
            self.put(file);
        }
    }

    pub(crate) fn record(&mut self, batch: i64, outcome: Outcome) {
        self.recorded = self.recorded.max(batch);
        if outcome == Outcome::Abandoned {
            self.abandoned.insert(batch);
        }
    }

    pub(crate) fn next_batch(&self) -> i64 {
        self.planned + 1
    }

    /// Planned batches whose end is not recorded, oldest first.
    pub(crate) fn open_batches(&self) -> Vec<i64> {
        self.files.range(self.recorded + 1..).map(|(batch, _)| *batch).collect()
    }

    pub(crate) fn files_of(&self, batch: i64) -> &[PlannedFile] {
        self.files.get(&batch).map_or(&[], Vec::as_slice)
    }

    /// The paths of what is stored.
    pub(crate) fn stored_paths(&self) -> impl Iterator<Item = &str> {
        self.stored().map(|file| file.path.as_str())
    }

    /// What is stored and recorded: nothing is open about it.
    pub(crate) fn done(&self) -> impl Iterator<Item = &PlannedFile> {
        let done = self.files.range(..=self.recorded).filter(|(batch, _)| !self.abandoned.contains(batch));
        done.flat_map(|(_, files)| files)
    }

    /// Whether a file of this path is stored.
    pub(crate) fn has_stored(&self, path: &str) -> bool {
        self.stored_paths().any(|stored| stored == path)
    }

    /// Forgets batches that are done and have no file whose path is `needed`.
    pub(crate) fn forget_unless(&mut self, needed: impl Fn(&str) -> bool) {
        let recorded = self.recorded;
        self.files.retain(|batch, files| *batch > recorded || files.iter().any(|file| needed(&file.path)));
        self.forget_outcomes();
    }

    /// Forgets batches that are done and have none of these files: they are looked up again when they come up.
    pub(crate) fn forget_others(&mut self, found: &[FoundFile]) {
        if self.is_complete {
            return;
        }
        let found: HashSet<&str> = found.iter().map(|file| file.path.as_str()).collect();
        let recorded = self.recorded;
        self.files
            .retain(|batch, files| *batch > recorded || files.iter().any(|file| found.contains(file.path.as_str())));
        self.forget_outcomes();
    }

    fn forget_outcomes(&mut self) {
        let files = &self.files;
        self.abandoned.retain(|batch| files.contains_key(batch));
    }

    /// Newest first, without those of abandoned batches.
    fn stored(&self) -> impl Iterator<Item = &PlannedFile> {
        self.files.iter().rev().filter(|(batch, _)| !self.abandoned.contains(batch)).flat_map(|(_, files)| files)
    }

    /// An index for [`Index::by_sight`] and [`Index::by_content`].
    pub(crate) fn index(&self) -> Index {
        let mut index = Index::default();
        let stored = self.files.iter().filter(|(batch, _)| !self.abandoned.contains(batch));
        stored.flat_map(|(_, files)| files).for_each(|file| index.take_in(file));
        index
    }
}

/// The newest state of each path and content.
#[derive(Debug, Default)]
pub(crate) struct Index {
    newest: HashMap<String, State>,
    /// The newest path of each content.
    contents: HashMap<String, String>,
    sizes: HashSet<u64>,
}

#[derive(Debug)]
struct State {
    size: u64,
    etag: Option<String>,
    modified: i64,
    content_hash: String,
}

impl Index {
    /// Adds a file of a batch that comes after all that are in.
    pub(crate) fn take_in(&mut self, file: &PlannedFile) {
        let state = State {
            size: file.size,
            etag: file.etag.clone(),
            modified: file.modified,
            content_hash: file.content_hash.clone(),
        };
        self.newest.insert(file.path.clone(), state);
        self.contents.insert(file.content_hash.clone(), file.path.clone());
        self.sizes.insert(file.size);
    }

    /// Whether the file can be left alone without looking into it.
    pub(crate) fn by_sight(&self, path: &str, size: u64, etag: Option<&str>, modified: i64) -> bool {
        self.newest.get(path).is_some_and(|known| {
            known.size == size
                && match (&known.etag, etag) {
                    (Some(known), Some(etag)) => known == etag,
                    _ => known.modified == modified,
                }
        })
    }

    /// Whether a file of this path is known, whatever it looked like.
    pub(crate) fn by_path(&self, path: &str) -> bool {
        self.newest.contains_key(path)
    }

    /// Whether a file of this size could have the content of one that is known.
    pub(crate) fn has_size(&self, size: u64) -> bool {
        self.sizes.contains(&size)
    }

    /// What the file is, by its content.
    pub(crate) fn by_content(&self, path: &str, content_hash: &str) -> Arrival<'_> {
        match (self.newest.get(path), self.contents.get(content_hash)) {
            (Some(known), _) if known.content_hash == content_hash => Arrival::Known,
            // The path had this content before, and another since: its records count again.
            (Some(_), Some(earlier)) if earlier == path => Arrival::New,
            (_, Some(other)) => Arrival::CopyOf(other),
            (_, None) => Arrival::New,
        }
    }
}

/// Under which name a step of a source's batches leaves its position in a table.
pub(crate) fn app_id(role: &str, pipeline: &str, source: &str) -> String {
    format!("{role}/{pipeline}/{source}")
}

/// A filter on a column by some values, in parts that are held against statistics. `None` without a value, or with one that nothing is told about.
fn is_one_of(name: &str, values: impl IntoIterator<Item = Expr>) -> Option<Expr> {
    let values: Vec<Expr> = values.into_iter().collect();
    values.chunks(VALUES_PRUNED_MAX).map(|part| col(name).in_list(part.to_vec(), false)).reduce(Expr::or)
}

/// Every row of a small table. Reading goes through the table's own provider, without SQL.
pub(crate) async fn read(lake: &Lake, table: &Table, name: &'static str) -> Result<Vec<RecordBatch>> {
    read_matching(lake, table, name, &[])?.try_collect().await
}

/// The rows of a table that fit the filters, and perhaps others.
fn read_matching(
    lake: &Lake,
    table: &Table,
    name: &'static str,
    filters: &[Expr],
) -> Result<BoxStream<'static, Result<RecordBatch>>> {
    if table.file_count() == 0 {
        return Ok(futures::stream::empty().boxed());
    }
    let failed = IngestError::unread(name);
    let state = SessionStateBuilder::new().build();
    state.runtime_env().register_object_store(lake.store_url().as_ref(), Arc::clone(lake.store()));
    let plan = table.scan_matching(&state, filters).map_err(failed)?;
    Ok(execute_stream(plan, state.task_ctx()).map_err(failed)?.map_err(failed).boxed())
}

fn column<'a>(rows: &'a RecordBatch, table: &'static str, name: &str) -> Result<&'a ArrayRef> {
    let ledger = |message: String| IngestError::Ledger { table, message };
    let array = rows.column_by_name(name).ok_or_else(|| ledger(format!("has no column {name}")))?;
    let schema = if table == FILES { files_schema() } else { batches_schema() };
    match schema.field_with_name(name) {
        Ok(field) if field.data_type() == array.data_type() => Ok(array),
        _ => Err(ledger(format!("column {name} has an unexpected type"))),
    }
}

pub(crate) fn field(name: &str, data_type: DataType, comment: &str) -> Field {
    Field::new(name, data_type, true).with_metadata(HashMap::from([(COMMENT_KEY.to_owned(), comment.to_owned())]))
}

/// A column that the rows of a file are sorted by, in that place.
fn sorted(place: u8, field: Field) -> Field {
    let mut metadata = field.metadata().clone();
    metadata.insert(SORTED_KEY.to_owned(), place.to_string());
    field.with_metadata(metadata)
}

fn files_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        sorted(1, field("pipeline", DataType::Utf8, "Pipeline of the source")),
        sorted(2, field("source", DataType::Utf8, "Source of the file")),
        field("batch", DataType::Int64, "Batch of the file, counted per source from 1"),
        field("path", DataType::Utf8, "File, relative to the ingested folder"),
        sorted(3, field("size", DataType::Int64, "Size in bytes")),
        field("etag", DataType::Utf8, "The store's mark of the file's version, where it has one"),
        field("modified", timestamp_type(), "When the file was last changed"),
        field("content_hash", DataType::Utf8, "BLAKE3 of the bytes"),
        field("rows_read", DataType::Int64, "Records in the file"),
        field("rows_stored", DataType::Int64, "Records for raw"),
        field("rows_quarantined", DataType::Int64, "Records for quarantine"),
        field("event_time_min", timestamp_type(), "Earliest event time"),
        field("event_time_max", timestamp_type(), "Latest event time"),
        field("planned_at", timestamp_type(), "When the batch was planned"),
    ]))
}

fn batches_schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        field("pipeline", DataType::Utf8, "Pipeline of the source"),
        field("source", DataType::Utf8, "Source of the batch"),
        field("batch", DataType::Int64, "Batch, counted per source from 1"),
        field("outcome", DataType::Utf8, "stored, or abandoned when a file changed before its rows were stored"),
        field("files", DataType::Int64, "Files of the batch"),
        field("bytes", DataType::Int64, "Bytes of the files"),
        field("rows_read", DataType::Int64, "Records read: stored plus quarantined"),
        field("rows_stored", DataType::Int64, "Records in raw"),
        field("rows_quarantined", DataType::Int64, "Records in quarantine"),
        field("event_time_min", timestamp_type(), "Earliest event time"),
        field("event_time_max", timestamp_type(), "Latest event time"),
        field("started_at", timestamp_type(), "When reading began"),
        field("finished_at", timestamp_type(), "When the end was recorded"),
        field(
            "rows_late",
            DataType::Int64,
            "Stored records older than what earlier batches had reached; null without event_time",
        ),
        field(
            "duplicates_in_file",
            DataType::Int64,
            "Stored records whose key stands earlier in their file; null without a key",
        ),
        field(
            "duplicates_across_files",
            DataType::Int64,
            "Stored records whose key came in another file; null without a key",
        ),
        field("column_nulls", nulls_type(), "Empty values of stored records, by column"),
    ]))
}

/// `metric.ingest_files`.
pub(crate) fn files_table() -> Result<TableSpec> {
    Ok(TableSpec {
        name: TableName::new("metric", "ingest_files")?,
        schema: files_schema(),
        partition_by: Vec::new(),
        comment: "Every file that was planned for ingestion, one row a file and batch".to_owned(),
    })
}

/// `metric.ingest_batches`.
pub(crate) fn batches_table() -> Result<TableSpec> {
    Ok(TableSpec {
        name: TableName::new("metric", "ingest_batches")?,
        schema: batches_schema(),
        partition_by: Vec::new(),
        comment: "Every batch that was ingested, one row a batch".to_owned(),
    })
}

/// The tables that ingestion keeps its books in, which stages may read.
///
/// # Errors
/// None that can happen: their names are fixed.
pub fn ledger_tables() -> Result<Vec<TableSpec>> {
    Ok(vec![
        files_table()?,
        batches_table()?,
        crate::quality::alerts_table()?,
        crate::refused::refused_table()?,
        crate::replay::replays_table()?,
        crate::unknown::unknown_fields_table()?,
    ])
}

/// Rows of `metric.ingest_files`, in the order of the table's files.
pub(crate) fn files_rows(pipeline: &str, source: &str, files: &[PlannedFile]) -> Result<RecordBatch> {
    let mut files: Vec<&PlannedFile> = files.iter().collect();
    files.sort_by_key(|file| file.size);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::new_repeated(pipeline, files.len())),
        Arc::new(StringArray::new_repeated(source, files.len())),
        Arc::new(Int64Array::from_iter_values(files.iter().map(|file| file.batch))),
        Arc::new(StringArray::from_iter_values(files.iter().map(|file| &file.path))),
        counts(files.iter().map(|file| file.size)),
        Arc::new(StringArray::from_iter(files.iter().map(|file| file.etag.as_deref()))),
        times(files.iter().map(|file| Some(file.modified))),
        Arc::new(StringArray::from_iter_values(files.iter().map(|file| &file.content_hash))),
        counts(files.iter().map(|file| file.rows_read)),
        counts(files.iter().map(|file| file.rows_stored)),
        counts(files.iter().map(|file| file.rows_quarantined)),
        times(files.iter().map(|file| file.event_times.map(|(earliest, _)| earliest))),
        times(files.iter().map(|file| file.event_times.map(|(_, latest)| latest))),
        times(files.iter().map(|file| Some(file.planned_at))),
    ];
    RecordBatch::try_new(files_schema(), columns).map_err(IngestError::internal)
}

/// What `metric.ingest_batches` says of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BatchTotals {
    pub(crate) files: u64,
    pub(crate) bytes: u64,
    pub(crate) rows_read: u64,
    pub(crate) rows_stored: u64,
    pub(crate) rows_quarantined: u64,
    pub(crate) event_times: Option<(i64, i64)>,
}

impl BatchTotals {
    pub(crate) fn of(files: &[PlannedFile]) -> Self {
        let sum = |value: fn(&PlannedFile) -> u64| files.iter().map(value).sum();
        Self {
            files: u64::try_from(files.len()).unwrap_or(u64::MAX),
            bytes: sum(|file| file.size),
            rows_read: sum(|file| file.rows_read),
            rows_stored: sum(|file| file.rows_stored),
            rows_quarantined: sum(|file| file.rows_quarantined),
            event_times: files.iter().filter_map(|file| file.event_times).reduce(widen),
        }
    }

    /// The row of an abandoned batch: its files are known, nothing of them is in `raw`.
    pub(crate) fn without_rows(self) -> Self {
        Self { rows_read: 0, rows_stored: 0, rows_quarantined: 0, event_times: None, ..self }
    }
}

/// The range that covers both.
pub(crate) fn widen(left: (i64, i64), right: (i64, i64)) -> (i64, i64) {
    (left.0.min(right.0), left.1.max(right.1))
}

/// A row of `metric.ingest_batches`. Times in UTC microseconds.
#[expect(clippy::too_many_arguments, reason = "the columns of the row")]
pub(crate) fn batch_row(
    pipeline: &str,
    source: &str,
    batch: i64,
    outcome: Outcome,
    totals: &BatchTotals,
    started_at: i64,
    finished_at: i64,
    facts: Option<&Facts>,
) -> Result<RecordBatch> {
    let number = |value: fn(&Facts) -> Option<u64>| -> ArrayRef {
        let value = facts.and_then(value).map(|value| i64::try_from(value).unwrap_or(i64::MAX));
        Arc::new(Int64Array::from(vec![value]))
    };
    let one = std::iter::once::<u64>;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(StringArray::from(vec![pipeline])),
        Arc::new(StringArray::from(vec![source])),
        Arc::new(Int64Array::from(vec![batch])),
        Arc::new(StringArray::from(vec![outcome.as_str()])),
        counts(one(totals.files)),
        counts(one(totals.bytes)),
        counts(one(totals.rows_read)),
        counts(one(totals.rows_stored)),
        counts(one(totals.rows_quarantined)),
        times(std::iter::once(totals.event_times.map(|(earliest, _)| earliest))),
        times(std::iter::once(totals.event_times.map(|(_, latest)| latest))),
        times(std::iter::once(Some(started_at))),
        times(std::iter::once(Some(finished_at))),
        number(|facts| facts.late),
        number(|facts| facts.duplicates_in_file),
        number(|facts| facts.duplicates_across_files),
        Facts::nulls_array(facts)?,
    ];
    RecordBatch::try_new(batches_schema(), columns).map_err(IngestError::internal)
}

fn counts(values: impl Iterator<Item = u64>) -> ArrayRef {
    Arc::new(Int64Array::from_iter_values(values.map(|value| i64::try_from(value).unwrap_or(i64::MAX))))
}

pub(crate) fn times(values: impl Iterator<Item = Option<i64>>) -> ArrayRef {
    Arc::new(TimestampMicrosecondArray::from_iter(values).with_timezone("UTC"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(batch: i64, path: &str, content_hash: &str) -> PlannedFile {
        PlannedFile {
            batch,
            path: path.to_owned(),
            size: 1,
            etag: Some(format!("{path}{content_hash}")),
            modified: 0,
            content_hash: content_hash.to_owned(),
            rows_read: 1,
            rows_stored: 1,
            rows_quarantined: 0,
            event_times: None,
            planned_at: 0,
        }
    }

    #[test]
    fn a_file_is_known_by_path_and_content() {
        let mut ledger = Ledger::default();
        ledger.add(vec![file(1, "a", "x"), file(1, "b", "y"), file(2, "a", "z"), file(3, "c", "w")]);
        assert_eq!(ledger.open_batches(), [1, 2, 3]);
        ledger.record(1, Outcome::Stored);
        assert_eq!(ledger.open_batches(), [2, 3]);
        ledger.record(2, Outcome::Stored);
        ledger.record(3, Outcome::Abandoned);
        let index = ledger.index();
        assert!(index.by_sight("a", 1, Some("az"), 0));
        assert!(!index.by_sight("a", 1, Some("ax"), 0), "an older state of the path");
        assert_eq!(index.by_content("a", "z"), Arrival::Known);
        assert_eq!(index.by_content("a", "x"), Arrival::New, "the path went back to what it was");
        assert_eq!(index.by_content("d", "y"), Arrival::CopyOf("b"));
        assert_eq!(index.by_content("a", "y"), Arrival::CopyOf("b"));
        assert_eq!(index.by_content("c", "w"), Arrival::New, "an abandoned batch stored nothing");
        assert!(ledger.open_batches().is_empty());
        assert_eq!(ledger.next_batch(), 4);
    }

    #[test]
    fn what_is_forgotten_is_neither_open_nor_newest_nor_looked_at_again() {
        let mut ledger = Ledger::default();
        for batch in 1..=5 {
            ledger.add(vec![file(batch, &format!("in/{batch}"), &batch.to_string())]);
        }
        ledger.add(vec![file(6, "elsewhere/9", "9")]);
        for batch in 1..=5 {
            ledger.record(batch, if batch == 5 { Outcome::Abandoned } else { Outcome::Stored });
        }
        assert!(ledger.has_stored("in/4") && !ledger.has_stored("in/5"), "an abandoned batch stored nothing");
        ledger.forget_unless(|path| path.starts_with("in/") && path >= "in/4");
        assert_eq!(ledger.files.keys().copied().collect::<Vec<_>>(), [4, 5, 6]);
        assert_eq!(ledger.open_batches(), [6]);
        ledger.record(6, Outcome::Stored);
        ledger.forget_unless(|path| path.starts_with("in/") && path >= "in/4");
        assert_eq!(ledger.files.keys().copied().collect::<Vec<_>>(), [4, 5]);
        assert_eq!(ledger.next_batch(), 7);
    }
}
