//! A topic of two partitions, whose records are gone once they are acknowledged.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use holdfast_feeds::{Chunk, ChunkLimits, Feed, FeedError, FeedPartition, FeedPosition};
use holdfast_ingest::Inbox;
use holdfast_testkit::Random;

const PARTITIONS: usize = 2;

/// The topic, as its other side knows it.
#[derive(Debug, Clone, Default)]
pub(super) struct Topic(Arc<Mutex<[Partition; PARTITIONS]>>);

#[derive(Debug, Clone, Copy, Default)]
struct Partition {
    produced: u64,
    /// Known to be durable: acknowledged, or read to the end by somebody who said so.
    durable: u64,
    forgotten: u64,
}

impl Topic {
    /// Records come.
    pub(super) fn produce(&self, random: &mut Random) {
        for partition in self.0.lock().unwrap().iter_mut() {
            partition.produced += random.below(6);
        }
    }

    /// How many came.
    pub(super) fn produced(&self) -> [u64; PARTITIONS] {
        self.0.lock().unwrap().map(|partition| partition.produced)
    }

    /// All of these were read.
    pub(super) fn read_to(&self, produced: [u64; PARTITIONS]) {
        for (partition, produced) in self.0.lock().unwrap().iter_mut().zip(produced) {
            partition.durable = partition.durable.max(produced);
        }
    }

    /// As a broker answers who asks for what it has forgotten: another worker may have acknowledged it since that one looked.
    fn still_has(&self, at: usize, next: u64) -> Result<(), FeedError> {
        let forgotten = self.0.lock().unwrap()[at].forgotten;
        if next >= forgotten {
            return Ok(());
        }
        let what = format!("partition {at}");
        Err(FeedError::Gap { what, reason: format!("is read from {next}, and begins at {forgotten}") })
    }

    /// The names of the records that came, and whether each has to be stored.
    pub(super) fn records(&self) -> Vec<(String, bool)> {
        let partitions = *self.0.lock().unwrap();
        let names = partitions.iter().enumerate().flat_map(|(at, partition)| {
            (0..partition.produced).map(move |offset| (name(at, offset), offset < partition.durable))
        });
        names.collect()
    }
}

/// Every seventh does not fit.
fn name(partition: usize, offset: u64) -> String {
    let kind = if offset % 7 == 6 { "badf" } else { "f" };
    format!("{kind}{partition}00{offset}")
}

fn line(name: &str) -> String {
    let n = if name.starts_with("bad") { "\"x\"" } else { "1" };
    format!("{{\"messageId\":\"{name}\",\"n\":{n}}}\n")
}

fn position(offset: u64) -> FeedPosition {
    FeedPosition::new(format!("{offset:020}")).unwrap()
}

fn offset(position: &FeedPosition) -> u64 {
    position.as_str().parse().unwrap()
}

#[async_trait]
impl Feed for Topic {
    async fn partitions(&self) -> Result<Vec<String>, FeedError> {
        Ok((0..PARTITIONS).map(|at| at.to_string()).collect())
    }

    async fn open(
        &self,
        _: &Inbox,
        partition: &str,
        after: Option<&FeedPosition>,
    ) -> Result<Box<dyn FeedPartition>, FeedError> {
        let at: usize = partition.parse().unwrap();
        let next = after.map_or(0, offset);
        self.still_has(at, next)?;
        Ok(Box::new(Reader { topic: self.clone(), at, next }))
    }
}

struct Reader {
    topic: Topic,
    at: usize,
    next: u64,
}

#[async_trait]
impl FeedPartition for Reader {
    async fn next(&mut self, limits: &ChunkLimits, _: Duration) -> Result<Option<Chunk>, FeedError> {
        self.topic.still_has(self.at, self.next)?;
        let produced = self.topic.0.lock().unwrap()[self.at].produced;
        let end = produced.min(self.next + limits.records);
        if end == self.next {
            return Ok(None);
        }
        let lines: String = (self.next..end).map(|offset| line(&name(self.at, offset))).collect();
        let records = end - self.next;
        self.next = end;
        Ok(Some(Chunk { lines: lines.into_bytes(), records, end: position(end) }))
    }

    async fn acknowledge(&mut self, position: &FeedPosition) -> Result<(), FeedError> {
        let partition = &mut self.topic.0.lock().unwrap()[self.at];
        partition.forgotten = partition.forgotten.max(offset(position));
        partition.durable = partition.durable.max(partition.forgotten);
        Ok(())
    }
}
