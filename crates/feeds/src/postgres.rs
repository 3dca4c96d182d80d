//! PostgreSQL: the tables as they are, then every change of them, from the server's own log.
//!
//! ```text
//! slot ─► copy of the tables at that moment ─► spool ─► inbox        one consistent moment, all rows or none
//!   └───► changes committed since, in their order ─────► inbox        by position in the log
//! ```
//!
//! A source has one slot and one partition. Everything comes over connections in replication mode, as text, so that a value
//! looks the same in the snapshot and in a change.

mod catalog;
mod changes;
mod connection;
mod error;
mod line;
mod pgoutput;
mod position;
mod pump;
mod settings;
mod snapshot;
mod spool;
mod tls;
mod value;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use holdfast_ingest::{FeedSpec, Inbox};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use tokio_util::task::AbortOnDropHandle;

use self::catalog::Catalog;
use self::changes::{Changed, Changes, Start};
use self::connection::Connection;
use self::position::{Lsn, Place, Position};
use self::settings::{PostgresKeys, Settings};
use self::snapshot::take_snapshot;
use self::spool::{SnapshotRecord, Spool};
use crate::Result;
use crate::feed::{Chunk, ChunkLimits, Feed, FeedPartition, FeedPosition};
use crate::kinds::Surroundings;
use crate::writer::BEGINNING;

pub use self::error::PostgresError;

/// Reads the section `[feed]` of a contract.
///
/// # Errors
/// [`crate::FeedError::Ingest`] with the place of the first key that cannot be used.
pub(crate) fn open(spec: &FeedSpec, surroundings: &Surroundings) -> Result<Arc<dyn Feed>> {
    let keys: PostgresKeys = spec.settings()?;
    match keys.check(spec.source(), surroundings.variable.as_ref()) {
        Ok(settings) => Ok(Arc::new(PostgresFeed { settings: Arc::new(settings) })),
        Err(PostgresError::Setting { key, reason }) => Err(spec.error(key, &reason).into()),
        Err(error) => Err(error.into()),
    }
}

/// The tables of one source. Its only partition has the slot's name.
#[derive(Debug)]
struct PostgresFeed {
    settings: Arc<Settings>,
}

/// What a partition needs of its surroundings.
#[derive(Debug)]
struct Source {
    settings: Arc<Settings>,
    spool: Spool,
    inbox: Inbox,
}

#[async_trait]
impl Feed for PostgresFeed {
    async fn partitions(&self) -> Result<Vec<String>> {
        Ok(vec![self.settings.slot.clone()])
    }

    async fn open(
        &self,
        inbox: &Inbox,
        partition: &str,
        after: Option<&FeedPosition>,
    ) -> Result<Box<dyn FeedPartition>> {
        let position = match after {
            Some(after) => read_position(partition, after)?,
            None => Position::START,
        };
        let system = inbox.lake().system_folder();
        let spool = Spool::new(&system, inbox.pipeline(), inbox.source(), &self.settings.slot);
        let source = Source { settings: Arc::clone(&self.settings), spool, inbox: inbox.clone() };
        Ok(Box::new(PostgresPartition {
            source: Arc::new(source),
            opened: after.cloned(),
            position,
            phase: Phase::Begin,
            is_given: false,
            noted: None,
            is_cleared: false,
        }))
    }
}

fn read_position(partition: &str, position: &FeedPosition) -> Result<Position, PostgresError> {
    position.as_str().parse().map_err(|()| PostgresError::Corrupt {
        object: format!("the inbox of partition {partition}"),
        reason: format!("{position} is no position of PostgreSQL: was the contract's kind of feed changed?"),
    })
}

/// A partition that is read.
struct PostgresPartition {
    source: Arc<Source>,
    /// Where the lake stood when this was opened.
    opened: Option<FeedPosition>,
    /// Behind what was given.
    position: Position,
    phase: Phase,
    /// Whether records were given since the last acknowledgement: then an object says how far they go.
    is_given: bool,
    /// The newest note on what the server was told.
    noted: Option<Lsn>,
    is_cleared: bool,
}

enum Phase {
    /// Nothing is known but the position.
    Begin,
    /// The tables are being copied.
    Copying(AbortOnDropHandle<Result<SnapshotRecord, PostgresError>>),
    /// The copy gets into the inbox.
    Publishing(Publishing),
    Streaming(Box<Changes>),
}

#[async_trait]
impl FeedPartition for PostgresPartition {
    async fn next(&mut self, limits: &ChunkLimits, wait: Duration) -> Result<Option<Chunk>> {
        loop {
            self.begin().await?;
            match &mut self.phase {
                Phase::Begin => {}
                Phase::Copying(copying) => {
                    let copied = copying.await.map_err(|error| PostgresError::Internal(error.to_string()))?;
                    // `begin` finds what was copied.
                    self.phase = Phase::Begin;
                    copied?;
                }
                Phase::Publishing(publishing) => {
                    let changed = match publishing.next(&self.source.spool, limits).await {
                        Ok(changed) => changed,
                        Err(error) => return Err(self.or_busy(error).await?.into()),
                    };
                    if matches!(changed.end.place, Place::Log { .. }) {
                        self.phase = Phase::Begin;
                    }
                    return self.give(changed).map(Some);
                }
                Phase::Streaming(changes) => {
                    let patient = !self.is_given;
                    return match changes.next(limits, wait, patient).await? {
                        Some(changed) => self.give(changed).map(Some),
                        None => Ok(None),
                    };
                }
            }
        }
    }

    async fn acknowledge(&mut self, position: &FeedPosition) -> Result<()> {
        let at = read_position(&self.source.settings.slot, position)?;
        let Place::Log { lsn, .. } = at.place else { return Ok(()) };
        let is_in_an_object = std::mem::take(&mut self.is_given) || self.opened.as_ref() == Some(position);
        if !is_in_an_object {
            // Nothing else says that there was nothing up to here.
            self.source.spool.will_confirm(at.generation, lsn, self.noted).await?;
            self.noted = Some(lsn);
        }
        if let Phase::Streaming(changes) = &self.phase {
            changes.confirm(lsn).await;
        }
        if !std::mem::replace(&mut self.is_cleared, true)
            && let Err(error) = self.source.spool.clear(at.generation).await
        {
            tracing::warn!(%error, "rows of a finished snapshot stay in the lake; they are of no use");
        }
        Ok(())
    }

    async fn end(&mut self) -> Result<Option<FeedPosition>> {
        self.begin().await?;
        let lsn = match &self.phase {
            Phase::Streaming(changes) => changes.target(),
            _ => {
                let settings = &self.source.settings;
                let mut connection = Connection::open(&settings.server).await?;
                Catalog { connection: &mut connection, settings }.identity().await?.end
            }
        };
        Ok(Some(FeedPosition::new(Position::log(self.position.generation, lsn, 0).to_string())?))
    }
}

impl PostgresPartition {
    fn give(&mut self, changed: Changed) -> Result<Chunk> {
        self.position = changed.end;
        self.is_given |= changed.records > 0;
        let end = FeedPosition::new(changed.end.to_string())?;
        Ok(Chunk { lines: changed.lines, records: changed.records, end })
    }

    /// Finds out what comes next, if that is not known.
    async fn begin(&mut self) -> Result<(), PostgresError> {
        while matches!(self.phase, Phase::Begin) {
            let generation = self.position.generation;
            let record = self.source.spool.snapshot(generation).await?;
            match (self.position.place, record) {
                (Place::Snapshot { rows: 0 }, None) => {
                    let source = Arc::clone(&self.source);
                    let copy = async move { take_snapshot(&source.settings, &source.spool, generation).await };
                    self.phase = Phase::Copying(AbortOnDropHandle::new(tokio::spawn(copy)));
                }
                (Place::Snapshot { rows }, Some(record)) => {
                    let lsn = record_lsn(&record)?;
                    if rows < record.rows {
                        self.phase =
                            Phase::Publishing(Publishing::open(&self.source.spool, generation, rows, record).await?);
                    } else {
                        // Tables without rows.
                        self.stream(lsn, 0, record.system).await?;
                    }
                }
                (Place::Log { lsn, changes }, Some(record)) => self.stream(lsn, changes, record.system).await?,
                (_, None) => {
                    return Err(PostgresError::Corrupt {
                        object: format!("{}/{generation:06}/snapshot.json", self.source.settings.slot),
                        reason: "it is gone, and says which server the positions in the inbox are of".to_owned(),
                    });
                }
            }
        }
        Ok(())
    }

    /// Starts reading the log; where it cannot follow on what was read, goes over to the next generation if it may.
    async fn stream(&mut self, lsn: Lsn, changes: u64, system: String) -> Result<(), PostgresError> {
        let generation = self.position.generation;
        self.noted = self.source.spool.confirmed(generation).await?;
        let confirmed = self.noted.unwrap_or_default();
        let start = Start { generation, lsn, changes, confirmed, system };
        match Changes::start(&self.source.settings, &start).await {
            Ok(changes) => {
                self.phase = Phase::Streaming(Box::new(changes));
                Ok(())
            }
            Err(gap @ PostgresError::Gap { .. }) => {
                let gap = match self.or_busy(gap).await? {
                    gap @ PostgresError::Gap { .. } => gap,
                    busy => return Err(busy),
                };
                let Some(next) = self.position.next_generation().filter(|_| self.source.settings.resnapshot) else {
                    return Err(gap);
                };
                tracing::warn!(error = %gap, "the tables are copied anew, as resnapshot says");
                self.position = next;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// What an error means when records were stored behind the position that this was opened at: the slot and the snapshot have
    /// moved on with them, and nothing is missing to who opens the partition again.
    async fn or_busy(&self, error: PostgresError) -> Result<PostgresError, PostgresError> {
        let slot = &self.source.settings.slot;
        let opened = self.opened.as_ref().map_or(BEGINNING, FeedPosition::as_str);
        let path = self.source.inbox.feed_object(slot, opened);
        match self.source.inbox.lake().store().head(&path).await {
            Ok(_) => Ok(PostgresError::Busy {
                server: self.source.settings.server.shown(),
                reason: format!("slot {slot} was read further meanwhile"),
            }),
            Err(object_store::Error::NotFound { .. }) => Ok(error),
            Err(source) => Err(PostgresError::Store { what: format!("looking for {path}"), source }),
        }
    }
}

fn record_lsn(record: &SnapshotRecord) -> Result<Lsn, PostgresError> {
    record.lsn().ok_or_else(|| PostgresError::Corrupt {
        object: "snapshot.json".to_owned(),
        reason: "it names no place in the log".to_owned(),
    })
}

/// A copied snapshot on its way into the inbox.
#[derive(Debug)]
struct Publishing {
    generation: u32,
    lsn: Lsn,
    rows: u64,
    /// Behind so many rows.
    at: u64,
    objects: Vec<(u64, Path)>,
    /// The rest of the object that is being read.
    open: Option<(Vec<u8>, usize)>,
}

impl Publishing {
    async fn open(spool: &Spool, generation: u32, at: u64, record: SnapshotRecord) -> Result<Self, PostgresError> {
        let objects = spool.objects(generation, &record.attempt).await?;
        Ok(Self { generation, lsn: record_lsn(&record)?, rows: record.rows, at, objects, open: None })
    }

    async fn next(&mut self, spool: &Spool, limits: &ChunkLimits) -> Result<Changed, PostgresError> {
        let (lines, begin) = match self.open.take() {
            Some(open) => open,
            None => self.read(spool).await?,
        };
        let (mut end, mut records) = (begin, 0);
        while records < limits.records {
            let Some(length) = memchr::memchr(b'\n', &lines[end..]) else { break };
            if records > 0 && end + length + 1 - begin > limits.bytes {
                break;
            }
            end += length + 1;
            records += 1;
        }
        let given = lines[begin..end].to_vec();
        self.at += records;
        if end < lines.len() {
            self.open = Some((lines, end));
        }
        let place = if self.at < self.rows {
            Position { generation: self.generation, place: Place::Snapshot { rows: self.at } }
        } else {
            Position::log(self.generation, self.lsn, 0)
        };
        Ok(Changed { lines: given, records, end: place })
    }

    /// The object that has the next row, and where in it that begins.
    async fn read(&self, spool: &Spool) -> Result<(Vec<u8>, usize), PostgresError> {
        let object = self.objects.iter().rev().find(|(first, _)| *first <= self.at);
        let missing = || PostgresError::Corrupt {
            object: format!("row {} of the snapshot", self.at),
            reason: "it is no longer in the lake".to_owned(),
        };
        let (first, path) = object.ok_or_else(missing)?;
        let rows = spool.rows(*first, path).await?;
        let mut begin = 0;
        for _ in rows.first..self.at {
            let length = memchr::memchr(b'\n', &rows.lines[begin..]).ok_or_else(missing)?;
            begin += length + 1;
        }
        if begin < rows.lines.len() { Ok((rows.lines, begin)) } else { Err(missing()) }
    }
}
