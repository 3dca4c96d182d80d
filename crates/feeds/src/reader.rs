use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use holdfast_types::ErrorKind;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use crate::feed::{Chunk, ChunkLimits, Feed, FeedPartition, FeedPosition};
use crate::writer::{Chain, Stored};
use crate::{FeedError, Result};

/// How long is waited for records behind the end of a partition.
const WAIT_AT_GOAL: Duration = Duration::from_millis(250);

/// What this process has written into the inbox and has not seen in `raw` yet.
#[derive(Debug)]
pub(crate) struct Ahead {
    bytes_max: u64,
    written: Mutex<VecDeque<(Instant, u64)>>,
    /// Since when what was written before is in `raw`; `None` as long as nothing of the inbox is known to be.
    caught_up: watch::Receiver<Option<Instant>>,
}

impl Ahead {
    pub(crate) fn new(bytes_max: u64, caught_up: watch::Receiver<Option<Instant>>) -> Self {
        Self { bytes_max, written: Mutex::new(VecDeque::new()), caught_up }
    }

    fn add(&self, bytes: u64) {
        self.written.lock().unwrap_or_else(PoisonError::into_inner).push_back((Instant::now(), bytes));
    }

    /// Waits until more may be written.
    async fn room(&self) {
        let mut caught_up = self.caught_up.clone();
        loop {
            let seen = *caught_up.borrow_and_update();
            if let Some(seen) = seen {
                let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
                while written.front().is_some_and(|(at, _)| *at < seen) {
                    written.pop_front();
                }
                let ahead: u64 = written.iter().map(|(_, bytes)| bytes).sum();
                if ahead <= self.bytes_max {
                    return;
                }
            }
            if caught_up.changed().await.is_err() {
                // Nobody brings anything to raw any more: whoever owns both ends this, too.
                std::future::pending::<()>().await;
            }
        }
    }
}

/// When reading a partition ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    /// Where the partition ended when it was opened, or after so many bytes of lines.
    CaughtUp { bytes_max: u64 },
    /// When it is told to stop.
    Stopped,
}

/// What was read of a partition.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Read {
    pub(crate) records: u64,
    pub(crate) bytes: u64,
    /// Whether all was read that was there.
    pub(crate) caught_up: bool,
}

/// How reading behind a position ended.
enum Ended {
    /// It was read as far as was asked for.
    Done,
    /// Another worker has stored what comes next.
    Overtaken,
}

/// Reads one partition into its chain of objects.
pub(crate) struct PartitionReader {
    pub(crate) feed: Arc<dyn Feed>,
    pub(crate) chain: Chain,
    pub(crate) limits: ChunkLimits,
    pub(crate) gather: Duration,
    pub(crate) wait: Duration,
    /// For who brings the inbox to `raw` at the same time.
    pub(crate) ahead: Option<Arc<Ahead>>,
    pub(crate) news: Arc<Notify>,
}

impl PartitionReader {
    /// Reads from where the lake stands. May be dropped at any moment, and called again.
    ///
    /// # Errors
    /// What the feed and the store answer. What was acknowledged before is durable.
    pub(crate) async fn run(&self, until: Until, stop: &CancellationToken) -> Result<Read> {
        let mut read = Read::default();
        let mut durable = self.chain.end().await?;
        loop {
            let error = match self.read_behind(&mut durable, &mut read, until, stop).await {
                Ok(Ended::Done) => return Ok(read),
                Ok(Ended::Overtaken) => continue,
                Err(error) => error,
            };
            // What does not pass by itself may be due to where we stood: the other side forgets what another worker has stored.
            let end = if matches!(error.kind(), ErrorKind::Retry | ErrorKind::Conflict) {
                None
            } else {
                self.chain.end().await?.filter(|end| Some(end) > durable.as_ref())
            };
            match end {
                Some(end) => durable = Some(end),
                None => return Err(error),
            }
        }
    }

    /// Reads behind `durable`, which moves with what is stored.
    async fn read_behind(
        &self,
        durable: &mut Option<FeedPosition>,
        read: &mut Read,
        until: Until,
        stop: &CancellationToken,
    ) -> Result<Ended> {
        let partition_name = self.chain.partition.as_str();
        let source = self.chain.inbox.source();
        let mut partition = self.feed.open(&self.chain.inbox, partition_name, durable.as_ref()).await?;
        if let Some(durable) = &durable {
            // The last acknowledgement may not have arrived.
            partition.acknowledge(durable).await?;
        }
        let goal = if until == Until::Stopped { None } else { partition.end().await? };
        let mut reached = durable.clone();
        loop {
            let at_goal = goal.as_ref().is_some_and(|goal| reached.as_ref() >= Some(goal));
            let is_much = matches!(until, Until::CaughtUp { bytes_max } if read.bytes >= bytes_max);
            if is_much || stop.is_cancelled() {
                return Ok(Ended::Done);
            }
            if let Some(ahead) = &self.ahead {
                tokio::select! {
                    () = ahead.room() => {}
                    () = stop.cancelled() => return Ok(Ended::Done),
                }
            }
            let began = Instant::now();
            // Where a partition ends may be told late: there is one look behind it.
            let wait = if at_goal { self.wait.min(WAIT_AT_GOAL) } else { self.wait };
            let gathered = tokio::select! {
                gathered = self.gather(partition.as_mut(), reached.as_ref(), wait) => gathered?,
                () = stop.cancelled() => return Ok(Ended::Done),
            };
            let Some(chunk) = gathered else {
                if until == Until::Stopped {
                    continue;
                }
                read.caught_up = true;
                return Ok(Ended::Done);
            };
            // What a feed decided at its beginning stays decided, also when there are no records yet.
            if chunk.records > 0 || durable.is_none() {
                let bytes = u64::try_from(chunk.lines.len()).unwrap_or(u64::MAX);
                let records = chunk.records;
                let span = tracing::info_span!("feed_chunk", source, partition = partition_name, records, bytes);
                match self.chain.store(durable.as_ref(), &chunk).instrument(span).await? {
                    Stored::Ours => *durable = Some(chunk.end.clone()),
                    Stored::Theirs(end) => {
                        tracing::debug!(source, partition = partition_name, %end, "another worker reads this partition");
                        *durable = Some(end);
                        return Ok(Ended::Overtaken);
                    }
                }
                read.records += records;
                read.bytes += bytes;
                if let Some(ahead) = &self.ahead {
                    ahead.add(bytes);
                }
                self.news.notify_one();
                self.told(records, bytes, began, partition.records_behind());
            }
            partition.acknowledge(&chunk.end).await?;
            reached = Some(chunk.end);
            if at_goal {
                read.caught_up = true;
                return Ok(Ended::Done);
            }
        }
    }

    /// The records that come within a moment of the first.
    async fn gather(
        &self,
        partition: &mut dyn FeedPartition,
        after: Option<&FeedPosition>,
        wait: Duration,
    ) -> Result<Option<Chunk>> {
        let Some(mut chunk) = partition.next(&self.limits, wait).await? else { return Ok(None) };
        self.check(&chunk, after)?;
        let deadline = Instant::now() + self.gather;
        while chunk.records < self.limits.records && chunk.lines.len() < self.limits.bytes {
            let left = deadline.saturating_duration_since(Instant::now());
            let limits = ChunkLimits {
                records: self.limits.records - chunk.records,
                bytes: self.limits.bytes - chunk.lines.len(),
            };
            if left.is_zero() {
                break;
            }
            let Some(more) = partition.next(&limits, left).await? else { break };
            self.check(&more, Some(&chunk.end))?;
            chunk.lines.extend_from_slice(&more.lines);
            chunk.records += more.records;
            chunk.end = more.end;
        }
        Ok(Some(chunk))
    }

    /// A feed that does not move on would be read for ever, and one that miscounts would not be noticed.
    fn check(&self, chunk: &Chunk, after: Option<&FeedPosition>) -> Result<()> {
        let lines = chunk.lines.iter().filter(|byte| **byte == b'\n').count();
        let whole = chunk.lines.last().is_none_or(|last| *last == b'\n');
        if after.is_some_and(|after| chunk.end <= *after) || u64::try_from(lines) != Ok(chunk.records) || !whole {
            return Err(FeedError::internal(format!(
                "partition {} of source {} gave {} records in {lines} lines that end at {}, behind {}",
                self.chain.partition,
                self.chain.inbox.source(),
                chunk.records,
                chunk.end,
                after.map_or("the beginning", FeedPosition::as_str),
            )));
        }
        Ok(())
    }

    fn told(&self, records: u64, bytes: u64, began: Instant, behind: Option<u64>) {
        let source = self.chain.inbox.source();
        tracing::info!(
            monotonic_counter.holdfast_feed_records = records,
            monotonic_counter.holdfast_feed_bytes = bytes,
            source,
        );
        tracing::info!(histogram.holdfast_feed_chunk_seconds = began.elapsed().as_secs_f64(), source);
        if let Some(behind) = behind {
            tracing::info!(gauge.holdfast_feed_records_behind = behind, source, partition = self.chain.partition);
        }
    }
}
