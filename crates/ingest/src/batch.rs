use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{
    ArrayRef, AsArray, BooleanArray, Int64Array, RecordBatch, RecordBatchOptions, StringArray,
    TimestampMicrosecondArray, new_null_array,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, SchemaRef, TimestampMicrosecondType};
use futures::TryStreamExt;
use holdfast_lake::{StagedFile, Table, TableWriter, WriterSettings};
use holdfast_types::{Progress, Promise};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::{JoinSet, spawn_blocking};
use tracing::Instrument;

use crate::Result;
use crate::block::{Block, Chunks, NOT_UTF8, Rows, SplitFile, Splitter, decode};
use crate::column::{Column, range};
use crate::discover::FoundFile;
use crate::error::IngestError;
use crate::facts::{Counting, FileFacts, RecentKeys};
use crate::ledger::widen;
use crate::parquet_rows::{ParquetFile, ParquetRows, convert, decode_error, layout_text, open};
use crate::places::Places;
use crate::quarantine::Form;
use crate::refusal::RefusedRow;
use crate::settings::IngestSettings;
use crate::spec::{BATCH, FileFormat, INGESTED_AT, SOURCE_FILE, SOURCE_LINE, SourceSpec};
use crate::unknown::{UNKNOWN, UnknownFields};

/// Pieces of a file under way from the store, and blocks under way to each worker.
const CHUNKS_AHEAD: usize = 2;
const BLOCKS_AHEAD: usize = 2;
/// A share of bad rows says something about the file only when there are enough rows.
const SHARE_ROWS_MIN: u64 = 20;

/// A file to be read. Its hash is known before when it was planned by an earlier run, or could be a copy.
#[derive(Debug, Clone)]
pub(crate) struct HashedFile {
    pub(crate) found: FoundFile,
    pub(crate) content_hash: Option<String>,
}

/// What reading one file gave.
#[derive(Debug, Clone, Default)]
pub(crate) struct FileOutcome {
    pub(crate) read: u64,
    pub(crate) stored: u64,
    pub(crate) quarantined: u64,
    /// UTC microseconds.
    pub(crate) event_times: Option<(i64, i64)>,
    /// BLAKE3, in hexadecimal.
    pub(crate) content_hash: String,
    pub(crate) facts: FileFacts,
    blank: u64,
    not_utf8: u64,
    first_refused: Option<RefusedRow>,
}

/// A batch that is read and written, but not committed.
#[derive(Debug)]
pub(crate) struct Staged {
    pub(crate) raw: Vec<StagedFile>,
    pub(crate) quarantine: Vec<StagedFile>,
    /// In the order of the files; fewer when the batch was large or old enough before the last.
    pub(crate) files: Vec<FileOutcome>,
    /// Fields that the contract does not have.
    pub(crate) unknown: UnknownFields,
    /// Of the rows for `raw`.
    pub(crate) keys: RecentKeys,
}

/// What staging needs to know beside the files.
#[derive(Clone)]
pub(crate) struct Staging {
    pub(crate) spec: Arc<SourceSpec>,
    pub(crate) places: Arc<Places>,
    pub(crate) raw: Table,
    pub(crate) quarantine: Table,
    pub(crate) batch: i64,
    /// UTC microseconds.
    pub(crate) ingested_at: i64,
    pub(crate) counting: Arc<Counting>,
    pub(crate) settings: IngestSettings,
    /// Whether the batch may end behind any of its files, once it is large or old enough. One that was planned may not.
    pub(crate) may_end_early: bool,
}

/// Tells behind which file a batch ends.
struct Ends {
    may_end_early: bool,
    rows_max: u64,
    time_max: Duration,
    began: Instant,
    rows: u64,
}

impl Ends {
    fn of(staging: &Staging) -> Self {
        let IngestSettings { batch_rows_max, batch_time_max, .. } = staging.settings;
        Self {
            may_end_early: staging.may_end_early,
            rows_max: batch_rows_max,
            time_max: batch_time_max,
            began: Instant::now(),
            rows: 0,
        }
    }

    /// Whether the batch is large or old enough with a file of so many rows.
    fn after(&mut self, rows: u64) -> bool {
        self.rows = self.rows.saturating_add(rows);
        self.may_end_early && (self.rows >= self.rows_max || self.began.elapsed() >= self.time_max)
    }
}

enum Work {
    Lines(Block),
    Rows { file: usize, first_row: u64, rows: RecordBatch },
}

/// What the reading side counted, without decoding anything.
#[derive(Default)]
struct ReadSide {
    /// In the order of the files.
    files: Vec<SplitFile>,
    /// All that is to be in the batch was read, be it all of the files or not.
    is_whole: bool,
}

enum Done {
    Read(ReadSide),
    Worked(Worked),
}

#[derive(Default)]
struct Worked {
    raw: Vec<StagedFile>,
    quarantine: Vec<StagedFile>,
    files: BTreeMap<usize, FileOutcome>,
    unknown: UnknownFields,
}

/// Reads the files into staged Parquet files of `raw` and `quarantine`. Nothing is visible afterwards.
///
/// One task reads and cuts, `settings.threads` tasks decode and write; what is under way between them is bounded.
///
/// # Errors
/// The first thing that is wrong with any of the files. What was staged until then stays behind unreferenced.
pub(crate) async fn stage(staging: &Staging, files: &[HashedFile], progress: &dyn Progress) -> Result<Staged> {
    let files: Arc<[HashedFile]> = files.into();
    let bytes_total = files.iter().map(|file| file.found.size).sum();
    let bytes_read = Arc::new(AtomicU64::new(0));
    let mut tasks: JoinSet<Result<Done>> = JoinSet::new();

    let mut senders = Vec::new();
    for _ in 0..staging.settings.threads.max(1) {
        let (sender, receiver) = channel(BLOCKS_AHEAD);
        senders.push(sender);
        let (staging, files) = (staging.clone(), Arc::clone(&files));
        let worker = async move { Box::pin(work(staging, files, receiver)).await.map(Done::Worked) };
        tasks.spawn(worker.in_current_span());
    }
    let reading =
        Reading { staging: staging.clone(), files: Arc::clone(&files), senders, bytes_read: Arc::clone(&bytes_read) };
    let reader = async move { Box::pin(reading.run()).await.map(Done::Read) };
    tasks.spawn(reader.in_current_span());

    let mut read = None;
    let mut worked = Worked::default();
    let mut ticks = tokio::time::interval(std::time::Duration::from_millis(200));
    loop {
        let done = tokio::select! {
            done = tasks.join_next() => done,
            _ = ticks.tick() => {
                progress.advance(&staging.spec.name, bytes_read.load(Ordering::Relaxed), Some(bytes_total), "bytes");
                continue;
            }
        };
        match done {
            None => break,
            Some(done) => match done.map_err(IngestError::internal)?? {
                Done::Read(done) => read = Some(done),
                Done::Worked(done) => worked.merge(done),
            },
        }
    }
    progress.advance(&staging.spec.name, bytes_total, Some(bytes_total), "bytes");
    let read = read.ok_or_else(|| IngestError::internal("the reading task gave no answer"))?;
    let outcomes = reconcile(&staging.places, &files, &read, &worked)?;
    Ok(Staged {
        raw: worked.raw,
        quarantine: worked.quarantine,
        files: outcomes,
        unknown: worked.unknown,
        keys: RecentKeys::default(),
    })
}

/// ING-3: what the reading side counted is what the workers stored, quarantined or passed over as blank, file by file,
/// and what they stored is what is in the staged files.
fn reconcile(places: &Places, files: &[HashedFile], read: &ReadSide, worked: &Worked) -> Result<Vec<FileOutcome>> {
    if !read.is_whole {
        return Err(IngestError::internal("a batch was not read to its end, and nobody said why"));
    }
    let mut outcomes = Vec::with_capacity(read.files.len());
    for (index, (file, split)) in files.iter().zip(&read.files).enumerate() {
        let mut outcome = worked.files.get(&index).cloned().unwrap_or_default();
        let counted = split.records;
        outcome.content_hash.clone_from(&split.content_hash);
        outcome.read = counted.saturating_sub(outcome.blank);
        Promise::Ing3.check(counted == outcome.blank + outcome.stored + outcome.quarantined, || {
            format!(
                "{}: {counted} lines, {} blank, {} stored, {} quarantined",
                file.found.path, outcome.blank, outcome.stored, outcome.quarantined
            )
        })?;
        check_share(places.spec_of(&file.found.path), file, &outcome)?;
        outcomes.push(outcome);
    }
    for (what, staged, rows) in [
        ("raw", &worked.raw, outcomes.iter().map(|outcome| outcome.stored).sum::<u64>()),
        ("quarantine", &worked.quarantine, outcomes.iter().map(|outcome| outcome.quarantined).sum()),
    ] {
        let written: u64 = staged.iter().map(|file| file.rows).sum();
        Promise::Ing3.check(written == rows, || format!("{rows} rows for {what}, {written} in its files"))?;
    }
    Ok(outcomes)
}

fn check_share(spec: &SourceSpec, file: &HashedFile, outcome: &FileOutcome) -> Result<()> {
    #[expect(clippy::cast_precision_loss, reason = "a share of rows; the 53rd bit does not matter")]
    let share = outcome.quarantined as f64 / outcome.read.max(1) as f64;
    if outcome.read < SHARE_ROWS_MIN || share <= spec.max_quarantine_share {
        return Ok(());
    }
    let Some(first) = &outcome.first_refused else { return Ok(()) };
    let remedy = if outcome.not_utf8 * 2 > outcome.quarantined {
        "; the text is in another encoding, such as GB18030 or Latin-1: name it in the source's contract, for example encoding = \"gb18030\""
            .to_owned()
    } else if first.refusal.reason.contains("fields where") {
        "; is the delimiter right, or do quoted fields hold line ends (quoted_newlines = true)?".to_owned()
    } else if first.refusal.reason.contains("does not end on this line") {
        "; if quoted fields hold line ends, set quoted_newlines = true in the source's contract".to_owned()
    } else {
        "; mend the file, or the source's contract if it describes the column wrongly".to_owned()
    };
    let reason = match &first.refusal.column {
        Some(column) => format!("column {column}: {}", first.refusal.reason),
        None => first.refusal.reason.to_string(),
    };
    Err(IngestError::TooManyRefused {
        file: file.found.path.clone(),
        refused: outcome.quarantined,
        read: outcome.read,
        share: spec.max_quarantine_share,
        line: first.line,
        reason,
        remedy,
    })
}

impl Worked {
    fn merge(&mut self, other: Self) {
        self.raw.extend(other.raw);
        self.quarantine.extend(other.quarantine);
        self.unknown.merge(other.unknown);
        for (file, outcome) in other.files {
            self.files.entry(file).or_default().merge(outcome);
        }
    }
}

impl FileOutcome {
    fn merge(&mut self, other: Self) {
        self.stored += other.stored;
        self.quarantined += other.quarantined;
        self.facts.merge(&other.facts);
        self.blank += other.blank;
        self.not_utf8 += other.not_utf8;
        self.event_times = match (self.event_times, other.event_times) {
            (Some(left), Some(right)) => Some(widen(left, right)),
            (left, right) => left.or(right),
        };
        self.first_refused = match (self.first_refused.take(), other.first_refused) {
            (Some(left), Some(right)) => Some(if left.line <= right.line { left } else { right }),
            (left, right) => left.or(right),
        };
    }
}

struct Reading {
    staging: Staging,
    files: Arc<[HashedFile]>,
    senders: Vec<Sender<Work>>,
    bytes_read: Arc<AtomicU64>,
}

impl Reading {
    /// Reads stretches of files that are read alike, one after the other. Ends early, without an error of its own, when a worker
    /// has gone: that worker has the error.
    async fn run(self) -> Result<ReadSide> {
        let is_parquet = |index: usize| {
            let path = &self.files[index].found.path;
            self.staging.places.spec_of(path).format == FileFormat::Parquet
        };
        let mut side = ReadSide::default();
        let mut start = 0;
        while start < self.files.len() {
            let parquet = is_parquet(start);
            let end = (start..self.files.len()).find(|index| is_parquet(*index) != parquet).unwrap_or(self.files.len());
            let read = if parquet { self.parquet(start..end).await? } else { self.text(start..end).await? };
            let whole = read.files.len() == end - start;
            side.files.extend(read.files);
            side.is_whole = read.is_whole;
            if !whole {
                break;
            }
            start = end;
        }
        Ok(side)
    }

    /// The store is read here; cutting into blocks, which is work for a processor, happens on a thread of its own.
    async fn text(&self, range: Range<usize>) -> Result<ReadSide> {
        let Self { staging, files, senders, bytes_read } = self;
        let (file_sender, mut file_receiver) = channel(1);
        let splitting = {
            let (staging, files, senders) = (staging.clone(), Arc::clone(files), senders.clone());
            let range = range.clone();
            let batch_span = tracing::Span::current();
            spawn_blocking(move || {
                let _in_batch = batch_span.entered();
                let mut side = ReadSide::default();
                let mut next = 0;
                let mut ends = Ends::of(&staging);
                for index in range {
                    let file = &files[index];
                    let Some(chunks) = file_receiver.blocking_recv() else { return Ok(side) };
                    let splitter = Splitter {
                        spec: staging.places.spec_of(&file.found.path),
                        name: &file.found.path,
                        file: index,
                        content_hash: file.content_hash.as_deref(),
                        block_bytes: staging.settings.block_bytes.max(1),
                        record_bytes_max: staging.settings.record_bytes_max,
                    };
                    let span = file_span(&staging, &file.found).entered();
                    let split = splitter.split(Chunks::new(chunks), file.found.size, |block| {
                        next = (next + 1) % senders.len();
                        senders[next].blocking_send(Work::Lines(block)).is_ok()
                    })?;
                    let Some(split) = split else { return Ok(side) };
                    span.record("rows", split.records);
                    let is_last = ends.after(split.records);
                    side.files.push(split);
                    if is_last {
                        break;
                    }
                }
                side.is_whole = true;
                Ok(side)
            })
        };
        'files: for file in &files[range] {
            let (sender, receiver) = channel(CHUNKS_AHEAD);
            if file_sender.send(receiver).await.is_err() {
                break;
            }
            let mut bytes = std::pin::pin!(file.found.bytes(staging.places.store_of(&file.found.path)));
            loop {
                let chunk = match bytes.try_next().await {
                    Ok(None) => break,
                    Ok(Some(chunk)) => {
                        bytes_read.fetch_add(u64::try_from(chunk.len()).unwrap_or(0), Ordering::Relaxed);
                        Ok(chunk)
                    }
                    Err(error) => Err(error),
                };
                if sender.send(chunk).await.is_err() {
                    break 'files;
                }
            }
        }
        drop(file_sender);
        splitting.await.map_err(IngestError::internal)?
    }

    async fn parquet(&self, range: Range<usize>) -> Result<ReadSide> {
        let mut side = ReadSide::default();
        let mut next = 0;
        let mut ends = Ends::of(&self.staging);
        for index in range {
            let file = &self.files[index];
            let span = file_span(&self.staging, &file.found);
            let reading = self.parquet_file(index, &file.found, &mut next).instrument(span.clone());
            let Some(rows) = reading.await? else { return Ok(side) };
            span.record("rows", rows);
            let content_hash = file.content_hash.clone().unwrap_or_default();
            side.files.push(SplitFile { records: rows, content_hash });
            self.bytes_read.fetch_add(file.found.size, Ordering::Relaxed);
            if ends.after(rows) {
                break;
            }
        }
        side.is_whole = true;
        Ok(side)
    }

    /// The number of rows that the file says it has; `None` when a worker has gone.
    async fn parquet_file(&self, index: usize, file: &FoundFile, next: &mut usize) -> Result<Option<u64>> {
        let places = &self.staging.places;
        let opened = open(places.store_of(&file.path), file, places.spec_of(&file.path)).await?;
        let Some(opened) = opened else { return Ok(Some(0)) };
        let ParquetFile { mut stream, rows: rows_declared } = opened;
        let mut first_row = 1;
        while let Some(rows) = stream
            .try_next()
            .await
            .map_err(|error| decode_error(&file.path, &format!("rows after {} cannot be read", first_row - 1), error))?
        {
            let count = u64::try_from(rows.num_rows()).unwrap_or(0);
            *next = (*next + 1) % self.senders.len();
            if self.senders[*next].send(Work::Rows { file: index, first_row, rows }).await.is_err() {
                return Ok(None);
            }
            first_row += count;
        }
        Ok(Some(rows_declared))
    }
}

fn file_span(staging: &Staging, file: &FoundFile) -> tracing::Span {
    tracing::info_span!(
        "ingest_file",
        source = %staging.spec.name,
        batch = staging.batch,
        file = %file.path,
        bytes = file.size,
        rows = tracing::field::Empty,
    )
}

/// Decodes on a thread of its own, which lives as long as the batch so that its memory is used again and again, and
/// writes here.
async fn work(staging: Staging, files: Arc<[HashedFile]>, mut receiver: Receiver<Work>) -> Result<Worked> {
    let mut raw: Option<TableWriter> = None;
    let mut quarantine: Option<TableWriter> = None;
    let mut worked = Worked::default();
    let (sender, mut decoded_blocks) = channel(1);
    let decoding = {
        let staging = staging.clone();
        spawn_blocking(move || {
            while let Some(work) = receiver.blocking_recv() {
                let decoded = staging.decode(work, &files);
                let failed = decoded.is_err();
                if sender.blocking_send(decoded).is_err() || failed {
                    break;
                }
            }
        })
    };
    while let Some(decoded) = decoded_blocks.recv().await {
        let decoded = decoded?;
        if let Some(rows) = &decoded.raw {
            raw.get_or_insert_with(|| TableWriter::new(&staging.raw, WriterSettings::default())).write(rows).await?;
        }
        if let Some(rows) = &decoded.quarantine {
            quarantine
                .get_or_insert_with(|| TableWriter::new(&staging.quarantine, WriterSettings::default()))
                .write(rows)
                .await?;
        }
        worked.files.entry(decoded.file).or_default().merge(decoded.outcome);
        worked.unknown.merge(decoded.unknown);
    }
    decoding.await.map_err(IngestError::internal)?;
    if let Some(writer) = raw {
        worked.raw = writer.close().await?;
    }
    if let Some(writer) = quarantine {
        worked.quarantine = writer.close().await?;
    }
    Ok(worked)
}

struct Decoded {
    file: usize,
    raw: Option<RecordBatch>,
    quarantine: Option<RecordBatch>,
    outcome: FileOutcome,
    unknown: UnknownFields,
}

impl Staging {
    fn decode(&self, work: Work, files: &[HashedFile]) -> Result<Decoded> {
        let original_bytes_max = self.settings.original_bytes_max;
        let event_time =
            self.spec.columns.iter().position(|column| Some(&column.name) == self.spec.event_time.as_ref());
        match work {
            Work::Lines(block) => {
                let name = &files[block.file].found.path;
                let Rows { columns, lines, refused, blank, unknown } =
                    decode(&block, name, self.places.spec_of(name), original_bytes_max)?;
                let file = block.file;
                let (form, layout) = match &block.layout {
                    Some(layout) => (Form::Csv, layout.header.clone()),
                    None => (Form::Ndjson, None),
                };
                drop(block);
                let event_times = event_time.and_then(|index| columns[index].time_range());
                let columns =
                    columns.into_iter().map(Column::finish).collect::<Result<_, _>>().map_err(IngestError::internal)?;
                let unknown = unknown.finish(lines.len())?;
                let quarantine = self.quarantine_rows(name, &refused, form, layout.as_deref())?;
                self.decoded(file, name, columns, lines, refused, quarantine, event_times, blank, unknown)
            }
            Work::Rows { file, first_row, rows } => {
                let name = &files[file].found.path;
                let converted = convert(&rows, first_row, name, self.places.spec_of(name), original_bytes_max)?;
                let event_times = event_time.and_then(|index| time_range(&converted.columns[index]));
                let ParquetRows { columns, lines, refused, unknown } = converted;
                let layout = (!refused.is_empty()).then(|| layout_text(&rows.schema()));
                let quarantine = self.quarantine_rows(name, &refused, Form::Parquet, layout.as_deref())?;
                self.decoded(file, name, columns, lines, refused, quarantine, event_times, 0, unknown)
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "the parts of one block, taken apart by its two callers")]
    fn decoded(
        &self,
        file: usize,
        name: &str,
        columns: Vec<ArrayRef>,
        lines: Vec<i64>,
        refused: Vec<RefusedRow>,
        quarantine: Option<RecordBatch>,
        event_times: Option<(i64, i64)>,
        blank: u64,
        (kept, unknown): (Option<ArrayRef>, UnknownFields),
    ) -> Result<Decoded> {
        let count = |length: usize| u64::try_from(length).unwrap_or(0);
        let facts = self.counting.count(&self.spec, file, &columns, lines.len())?;
        let outcome = FileOutcome {
            read: 0,
            stored: count(lines.len()),
            quarantined: count(refused.len()),
            event_times,
            content_hash: String::new(),
            facts,
            blank,
            not_utf8: count(refused.iter().filter(|row| row.refusal.reason == NOT_UTF8).count()),
            first_refused: refused.iter().min_by_key(|row| row.line).cloned(),
        };
        let raw = (!lines.is_empty()).then(|| self.raw_rows(name, columns, kept, lines)).transpose()?;
        Ok(Decoded { file, raw, quarantine, outcome, unknown })
    }

    /// The rows in the columns that the table has: one that the contract no longer has is null.
    fn raw_rows(
        &self,
        file: &str,
        columns: Vec<ArrayRef>,
        kept: Option<ArrayRef>,
        lines: Vec<i64>,
    ) -> Result<RecordBatch> {
        let rows = lines.len();
        let mut columns: BTreeMap<&str, ArrayRef> =
            self.spec.columns.iter().map(|column| column.name.as_str()).zip(columns).collect();
        columns.extend(kept.map(|kept| (UNKNOWN, kept)));
        columns.extend(self.lineage(file, lines));
        fit(&mut columns, self.raw.schema(), rows)
    }

    fn quarantine_rows(
        &self,
        file: &str,
        refused: &[RefusedRow],
        form: Form,
        layout: Option<&str>,
    ) -> Result<Option<RecordBatch>> {
        if refused.is_empty() {
            return Ok(None);
        }
        let lines = refused.iter().map(|row| i64::try_from(row.line).unwrap_or(i64::MAX)).collect();
        let mut columns: BTreeMap<&str, ArrayRef> = self.lineage(file, lines).into_iter().collect();
        columns
            .insert("reason", Arc::new(StringArray::from_iter_values(refused.iter().map(|row| &row.refusal.reason))));
        columns.insert(
            "column_name",
            Arc::new(StringArray::from_iter(refused.iter().map(|row| row.refusal.column.as_deref()))),
        );
        columns.insert("original", Arc::new(StringArray::from_iter_values(refused.iter().map(|row| &row.original))));
        columns.insert("form", Arc::new(StringArray::new_repeated(form.as_str(), refused.len())));
        columns.insert("layout", Arc::new(StringArray::from_iter(refused.iter().map(|_| layout))));
        columns.insert("is_whole", Arc::new(BooleanArray::from_iter(refused.iter().map(|row| Some(row.is_whole)))));
        fit(&mut columns, self.quarantine.schema(), refused.len()).map(Some)
    }

    fn lineage(&self, file: &str, lines: Vec<i64>) -> [(&'static str, ArrayRef); 4] {
        let rows = lines.len();
        [
            (SOURCE_FILE, Arc::new(StringArray::new_repeated(file, rows))),
            (SOURCE_LINE, Arc::new(Int64Array::from(lines))),
            (BATCH, Arc::new(Int64Array::from_value(self.batch, rows))),
            (INGESTED_AT, Arc::new(TimestampMicrosecondArray::from_value(self.ingested_at, rows).with_timezone("UTC"))),
        ]
    }
}

/// The columns that `schema` asks for, with nulls for those that are not there.
pub(crate) fn fit(columns: &mut BTreeMap<&str, ArrayRef>, schema: &SchemaRef, rows: usize) -> Result<RecordBatch> {
    let columns = schema
        .fields()
        .iter()
        .map(|field| match columns.remove(field.name().as_str()) {
            None => Ok(new_null_array(field.data_type(), rows)),
            Some(array) if array.data_type() == field.data_type() => Ok(array),
            Some(array) => cast(&array, field.data_type()),
        })
        .collect::<Result<Vec<_>, _>>()
        .map_err(IngestError::internal)?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    RecordBatch::try_new_with_options(Arc::clone(schema), columns, &options).map_err(IngestError::internal)
}

fn time_range(values: &ArrayRef) -> Option<(i64, i64)> {
    let micros = match values.data_type() {
        DataType::Timestamp(_, _) => Arc::clone(values),
        _ => cast(values, &crate::spec::timestamp_type()).ok()?,
    };
    range(micros.as_primitive::<TimestampMicrosecondType>().iter().flatten())
}
