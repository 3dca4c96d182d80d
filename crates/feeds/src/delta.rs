//! Another Delta table: its rows at one version, then what each commit changes, through its change data feed where it has one.
//!
//! | contract | |
//! |---|---|
//! | `table` | a folder or URL; a local path is relative to the project |
//! | `start` | `"snapshot"` (default): the rows of a version, then changes; `"changes"`: changes alone |
//! | `version` | the version of the snapshot, or of the first change; the newest when left out |
//! | `on_gap` | `"error"` (default), or `"skip"`: go on behind commits that cannot be read any more |
//!
//! One partition, `table`. A position is a version, whether it is read as a snapshot (`a`) or as changes (`c`), and how many of its rows are
//! behind it. The rows of a version are always read in the same order.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, FieldRef};
use async_trait::async_trait;
use chrono::{DateTime, SecondsFormat};
use futures::StreamExt;
use futures::stream::BoxStream;
use holdfast_ingest::{FeedSpec, Inbox};
use holdfast_lake::{FileChange, ForeignFile, ForeignTable, LakeError, describe_store_error, open_store};
use serde::Deserialize;
use tokio::time::{Instant, sleep};

use crate::feed::{Chunk, ChunkLimits, Feed, FeedPartition, FeedPosition};
use crate::kinds::Surroundings;
use crate::record::{Line, push_text};
use crate::row::{partition_value, write_value};
use crate::{FeedError, Result};

const PARTITION: &str = "table";
/// How often a table is looked at for a new version.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// How often its log is listed, should it have been cleaned of the next version before that was seen.
const LIST_EVERY: Duration = Duration::from_secs(60);
/// What rows of a snapshot are, and rows of files that only come.
const INSERTED: &str = "insert";
const DELETED: &str = "delete";

const CHANGE_TYPE: &str = "_change_type";
const COMMIT_VERSION: &str = "_commit_version";
const COMMIT_TIMESTAMP: &str = "_commit_timestamp";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Keys {
    table: String,
    #[serde(default)]
    start: Start,
    version: Option<u64>,
    #[serde(default)]
    on_gap: OnGap,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Start {
    #[default]
    Snapshot,
    Changes,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum OnGap {
    #[default]
    Error,
    Skip,
}

#[derive(Debug)]
struct DeltaFeed {
    table: ForeignTable,
    start: Start,
    version: Option<u64>,
    on_gap: OnGap,
}

/// The table that a contract names. Nothing is read yet.
pub(crate) fn open(spec: &FeedSpec, surroundings: &Surroundings) -> Result<Arc<dyn Feed>> {
    let Keys { table, start, version, on_gap } = spec.settings()?;
    let place = open_store(&table, &surroundings.folder, &surroundings.store_options)
        .map_err(|error| spec.error("table", &error.to_string()))?;
    Ok(Arc::new(DeltaFeed { table: ForeignTable::new(place), start, version, on_gap }))
}

#[async_trait]
impl Feed for DeltaFeed {
    async fn partitions(&self) -> Result<Vec<String>> {
        Ok(vec![PARTITION.to_owned()])
    }

    async fn open(
        &self,
        _inbox: &Inbox,
        _partition: &str,
        after: Option<&FeedPosition>,
    ) -> Result<Box<dyn FeedPartition>> {
        let newest = self.table.newest().await?;
        let place = match after {
            Some(after) => Place::parse(after)?,
            None => {
                let version = self.version.unwrap_or(newest.version);
                match self.start {
                    Start::Snapshot => Place { version, part: Part::Snapshot, row: 0 },
                    // The changes behind the newest version, or from the one that is named on.
                    Start::Changes => Place::changes_of(self.version.unwrap_or(version + 1)),
                }
            }
        };
        Ok(Box::new(DeltaPartition {
            table: self.table.clone(),
            on_gap: self.on_gap,
            pinned: after.is_some() || self.start == Start::Snapshot,
            place,
            newest: newest.version,
            listed_at: Instant::now(),
            partition_fields: newest.partition_fields,
            has_change_feed: newest.has_change_feed,
            open: None,
        }))
    }
}

/// How a version is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Snapshot,
    Changes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    version: u64,
    part: Part,
    /// How many rows of it were read.
    row: u64,
}

impl Place {
    fn changes_of(version: u64) -> Self {
        Self { version, part: Part::Changes, row: 0 }
    }

    fn parse(position: &FeedPosition) -> Result<Self> {
        let text = position.as_str();
        let parse = || {
            let part = match text.as_bytes().get(20)? {
                b'a' => Part::Snapshot,
                b'c' => Part::Changes,
                _ => return None,
            };
            let (version, row) = (text.get(..20)?.parse().ok()?, text.get(21..)?.parse().ok()?);
            Some(Self { version, part, row })
        };
        parse().ok_or_else(|| FeedError::Damaged {
            path: format!("position {text}"),
            reason:
                "it is none of a Delta table: did the source read another kind of feed before? give it another name"
                    .to_owned(),
        })
    }

    fn position(self) -> Result<FeedPosition> {
        let part = if self.part == Part::Snapshot { 'a' } else { 'c' };
        FeedPosition::new(format!("{:020}{part}{:015}", self.version, self.row))
    }
}

struct DeltaPartition {
    table: ForeignTable,
    on_gap: OnGap,
    /// Whether where it begins is known to the lake, or need not be: where there are changes "from now on" it must not be worked out again.
    pinned: bool,
    place: Place,
    /// The newest version that is known to have been there, and when the log was listed last.
    newest: u64,
    listed_at: Instant,
    partition_fields: Vec<FieldRef>,
    has_change_feed: bool,
    /// The version at `place`, while it is read.
    open: Option<OpenVersion>,
}

/// A version that is being read.
struct OpenVersion {
    committed_at: Option<String>,
    files: VecDeque<ForeignFile>,
    file: Option<OpenFile>,
    /// The rows at hand, and the next of them.
    rows: Option<(RecordBatch, usize)>,
    /// Rows that were given or passed over. Those before the place were given by an earlier reader.
    passed: u64,
}

struct OpenFile {
    change: FileChange,
    /// The fields that all of its rows have, as they stand in a line.
    fixed: String,
    stream: BoxStream<'static, holdfast_lake::Result<RecordBatch>>,
}

#[async_trait]
impl FeedPartition for DeltaPartition {
    async fn next(&mut self, limits: &ChunkLimits, wait: Duration) -> Result<Option<Chunk>> {
        if !self.pinned {
            self.pinned = true;
            return Ok(Some(Chunk { lines: Vec::new(), records: 0, end: self.place.position()? }));
        }
        let deadline = Instant::now() + wait;
        let mut rows = Rows { limits: *limits, lines: Vec::new(), records: 0 };
        let began = self.place;
        while !rows.are_enough() {
            if self.open.is_some() {
                self.read(&mut rows).await?;
            } else if !self.open_version(&mut rows).await? {
                // All is read that there is.
                if self.place != began || Instant::now() >= deadline {
                    break;
                }
                sleep(LOOK_EVERY.min(deadline.saturating_duration_since(Instant::now()))).await;
            }
        }
        if self.place == began {
            return Ok(None);
        }
        Ok(Some(Chunk { lines: rows.lines, records: rows.records, end: self.place.position()? }))
    }

    async fn acknowledge(&mut self, _position: &FeedPosition) -> Result<()> {
        Ok(())
    }

    async fn end(&mut self) -> Result<Option<FeedPosition>> {
        let newest = self.table.newest().await?.version;
        Place::changes_of(newest + 1).position().map(Some)
    }
}

/// What one chunk has so far.
struct Rows {
    limits: ChunkLimits,
    lines: Vec<u8>,
    records: u64,
}

impl Rows {
    fn are_enough(&self) -> bool {
        self.records >= self.limits.records || self.lines.len() >= self.limits.bytes
    }
}

impl DeltaPartition {
    /// Begins with the version at the place, or goes on behind one that is gone. `false` when there is none yet.
    async fn open_version(&mut self, rows: &mut Rows) -> Result<bool> {
        let version = self.place.version;
        if self.place.part == Part::Snapshot {
            let found = self.table.at(version).await?.ok_or_else(|| {
                let newest = self.newest;
                self.gap(&format!(
                    "this version cannot be put together (the newest is {newest}): name one that can in `version`, or leave it out to \
                     begin with the newest"
                ))
            })?;
            self.begin(found.committed_at, found.files);
            return Ok(true);
        }
        let Some(commit) = self.table.commit(version).await? else {
            if version > self.newest && self.listed_at.elapsed() < LIST_EVERY {
                return Ok(false);
            }
            self.listed_at = Instant::now();
            let commits = self.table.commits().await?;
            match commits.into_iter().find(|commit| *commit >= version) {
                Some(oldest) if oldest > version => {
                    let reason = format!(
                        "the table's log is cleaned of the commits before version {oldest}: take a new snapshot under another source name, \
                         and let the table keep its log longer (delta.logRetentionDuration)"
                    );
                    self.pass_over(&reason, rows, oldest)?;
                    return Ok(true);
                }
                _ => return Ok(false),
            }
        };
        self.newest = self.newest.max(version);
        if commit.changes_metadata
            && let Some(now) = self.table.at(version).await?
        {
            self.partition_fields = now.partition_fields;
            self.has_change_feed = now.has_change_feed;
        }
        if commit.replaces && !self.has_change_feed {
            let reason = "the commit puts files in the place of others, and the table keeps no change data that says which rows differ: \
                          set its property delta.enableChangeDataFeed = true, and take a new snapshot under another source name";
            self.pass_over(reason, rows, version + 1)?;
            return Ok(true);
        }
        self.begin(commit.committed_at, commit.files);
        Ok(true)
    }

    fn begin(&mut self, committed_at: Option<i64>, files: Vec<ForeignFile>) {
        let committed_at = committed_at
            .and_then(DateTime::from_timestamp_millis)
            .map(|moment| moment.to_rfc3339_opts(SecondsFormat::Millis, true));
        self.open = Some(OpenVersion { committed_at, files: files.into(), file: None, rows: None, passed: 0 });
    }

    /// Reads on in the open version until there are enough rows or it ends; the place is then the beginning of the next.
    async fn read(&mut self, rows: &mut Rows) -> Result<()> {
        while !rows.are_enough() {
            let Some(open) = &mut self.open else { return Ok(()) };
            if open.rows.is_some() {
                self.give(rows)?;
            } else if let Some(file) = &mut open.file {
                match file.stream.next().await {
                    None => open.file = None,
                    Some(batch) => {
                        let batch = batch?;
                        let length = u64::try_from(batch.num_rows()).unwrap_or(u64::MAX);
                        let known = (self.place.row - open.passed).min(length);
                        open.passed += known;
                        open.rows = Some((batch, usize::try_from(known).unwrap_or(usize::MAX)));
                    }
                }
            } else if let Some(file) = open.files.pop_front() {
                self.open_file(file, rows).await?;
            } else {
                self.open = None;
                self.place = Place::changes_of(self.place.version + 1);
            }
        }
        Ok(())
    }

    async fn open_file(&mut self, file: ForeignFile, rows: &mut Rows) -> Result<()> {
        match self.table.rows(&file).await {
            Ok(stream) => {
                let fixed = self.fixed_fields(&file);
                if let Some(open) = &mut self.open {
                    open.file = Some(OpenFile { change: file.change, fixed, stream });
                }
                Ok(())
            }
            Err(LakeError::Store { what, source: source @ object_store::Error::NotFound { .. } }) => {
                let reason = format!(
                    "{what}: {}; the table was vacuumed: take a new snapshot under another source name, and let the table keep its files \
                     longer (delta.deletedFileRetentionDuration)",
                    describe_store_error(&source)
                );
                match self.place.part {
                    Part::Snapshot => Err(self.gap(&reason)),
                    Part::Changes => self.pass_over(&reason, rows, self.place.version + 1),
                }
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The version, its time and the partition columns.
    fn fixed_fields(&self, file: &ForeignFile) -> String {
        let mut fixed = Vec::new();
        let mut field = |name: &str, json: &str| {
            fixed.push(b',');
            push_text(&mut fixed, name);
            fixed.push(b':');
            fixed.extend_from_slice(json.as_bytes());
        };
        field(COMMIT_VERSION, &self.place.version.to_string());
        if let Some(committed_at) = self.open.as_ref().and_then(|open| open.committed_at.as_ref()) {
            field(COMMIT_TIMESTAMP, &format!("\"{committed_at}\""));
        }
        for column in &self.partition_fields {
            let value = file.partition_values.get(column.name()).and_then(Option::as_deref);
            field(column.name(), &partition_value(column.data_type(), value));
        }
        String::from_utf8_lossy(&fixed).into_owned()
    }

    /// Writes the rows at hand as lines, as many as are wanted.
    fn give(&mut self, rows: &mut Rows) -> Result<()> {
        let what = self.what();
        let unreadable = |reason: String| FeedError::Unreadable { what: what.clone(), reason };
        let Some(OpenVersion { file: Some(file), rows: Some((batch, next)), passed, .. }) = &mut self.open else {
            return Ok(());
        };
        let told = match (file.change, batch.column_by_name(CHANGE_TYPE)) {
            (FileChange::Told, Some(column)) => {
                Some(cast(column, &DataType::Utf8).map_err(|error| unreadable(error.to_string()))?)
            }
            (FileChange::Told, None) => {
                return Err(unreadable(format!("a file of change data has no column {CHANGE_TYPE}")));
            }
            _ => None,
        };
        let mut columns: Vec<(Vec<u8>, &dyn Array)> = Vec::new();
        for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
            let name = field.name().as_str();
            if ![CHANGE_TYPE, COMMIT_VERSION, COMMIT_TIMESTAMP].contains(&name) {
                let mut key = vec![b','];
                push_text(&mut key, name);
                key.push(b':');
                columns.push((key, column.as_ref()));
            }
        }
        while *next < batch.num_rows() && !rows.are_enough() {
            let change = match &told {
                Some(column) => column.as_string::<i32>().value(*next),
                None if file.change == FileChange::Deleted => DELETED,
                None => INSERTED,
            };
            rows.lines.extend_from_slice(b"{\"_change_type\":");
            push_text(&mut rows.lines, change);
            rows.lines.extend_from_slice(file.fixed.as_bytes());
            for (key, column) in &columns {
                // A field that is not there is null.
                if column.is_valid(*next) {
                    rows.lines.extend_from_slice(key);
                    write_value(&mut rows.lines, *column, *next)
                        .map_err(|what| unreadable(format!("{what} cannot be read: cast the column in the table")))?;
                }
            }
            rows.lines.extend_from_slice(b"}\n");
            rows.records += 1;
            *next += 1;
            *passed += 1;
            self.place.row += 1;
        }
        if *next >= batch.num_rows()
            && let Some(open) = &mut self.open
        {
            open.rows = None;
        }
        Ok(())
    }

    /// Goes on at version `next` when the contract says so, and leaves a line that says what is missing, which goes to the quarantine.
    fn pass_over(&mut self, reason: &str, rows: &mut Rows, next: u64) -> Result<()> {
        if self.on_gap == OnGap::Error {
            return Err(self.gap(&format!("{reason}; or go on behind it with on_gap = \"skip\"")));
        }
        let version = self.place.version;
        tracing::warn!(table = %self.table.url(), version, next, reason, "changes are passed over");
        tracing::info!(monotonic_counter.holdfast_feed_gaps = 1_u64);
        let mut line = Line::new(&mut rows.lines);
        line.json("_gap_from_version", version);
        line.json("_gap_to_version", next - 1);
        line.text("_gap_reason", reason);
        line.finish_as_no_record();
        rows.records += 1;
        self.open = None;
        self.place = Place::changes_of(next);
        Ok(())
    }

    fn gap(&self, reason: &str) -> FeedError {
        FeedError::Gap { what: self.what(), reason: reason.to_owned() }
    }

    fn what(&self) -> String {
        format!("Delta table {}, version {}", self.table.url(), self.place.version)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_sort_as_rows_are_read() {
        let places = [
            Place { version: 9, part: Part::Snapshot, row: 0 },
            Place { version: 9, part: Part::Snapshot, row: 12 },
            Place::changes_of(10),
            Place { version: 10, part: Part::Changes, row: 7 },
            Place::changes_of(100),
        ];
        let positions: Vec<FeedPosition> = places.iter().map(|place| place.position().unwrap()).collect();
        assert!(positions.is_sorted());
        for (place, position) in places.iter().zip(&positions) {
            assert_eq!(Place::parse(position).unwrap(), *place);
        }
        assert!(Place::parse(&FeedPosition::new("00000000000000000042").unwrap()).is_err());
    }
}
