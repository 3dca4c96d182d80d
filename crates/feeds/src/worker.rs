use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use holdfast_ingest::{Inbox, InboxReader, IngestSettings, follow};
use holdfast_lake::Lease;
use holdfast_types::ErrorKind;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::feed::{Feed, is_name};
use crate::reader::{Ahead, PartitionReader, Until};
use crate::settings::FeedSettings;
use crate::writer::Chain;
use crate::{FeedError, Result};

/// The pause after a first error that may pass by itself; each further one doubles it.
const PAUSE_MIN: Duration = Duration::from_millis(500);

/// How [`read_feed`] ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReadEnd {
    /// Records that are durable in the inbox now.
    pub records: u64,
    /// Whether all was read that was there. If not, the inbox is far enough ahead of `raw`: bring it there, then read on.
    pub caught_up: bool,
}

/// Reads what a feed has now into the inbox. May be dropped at any moment and called again, also by several workers at once.
///
/// # Errors
/// The first thing that fails, by [`FeedError::kind`]. What was read before stays.
pub async fn read_feed(feed: &Arc<dyn Feed>, inbox: &Inbox, settings: &FeedSettings) -> Result<ReadEnd> {
    let partitions = partitions(feed.as_ref()).await?;
    let (mut records, mut bytes) = (0, 0);
    for partition in &partitions {
        let reader = PartitionReader {
            feed: Arc::clone(feed),
            chain: chain(inbox, partition, settings),
            limits: settings.limits(1),
            gather: settings.gather,
            wait: settings.wait,
            ahead: None,
            news: Arc::new(Notify::new()),
        };
        let bytes_max = settings.ahead_bytes_max.saturating_sub(bytes);
        let read = Box::pin(reader.run(Until::CaughtUp { bytes_max }, &CancellationToken::new())).await?;
        records += read.records;
        bytes += read.bytes;
        if !read.caught_up {
            return Ok(ReadEnd { records, caught_up: false });
        }
    }
    Ok(ReadEnd { records, caught_up: true })
}

/// Reads a feed, and brings what it gives to `raw`, until `stop` is cancelled. Then what is being written is finished.
///
/// Partitions are shared with the workers of other processes by leases. `owner` is for those who wonder who reads a partition: a host and a
/// process, no person. May be dropped at any moment.
///
/// # Errors
/// What does not pass by itself, by [`FeedError::kind`]: a contract that is wrong, credentials that are refused, records that are gone.
pub async fn follow_feed(
    feed: Arc<dyn Feed>,
    inbox: Inbox,
    (settings, ingest_settings): (FeedSettings, IngestSettings),
    owner: &str,
    stop: CancellationToken,
) -> Result<()> {
    let news = Arc::new(Notify::new());
    let (caught_up, seen) = watch::channel(None);
    let stop_following = CancellationToken::new();
    // Whichever way this function ends, the tasks that it started end with it.
    let mut following = JoinSet::new();
    let reader = InboxReader::new(inbox.clone(), ingest_settings);
    following.spawn(follow(reader, settings.follow, Arc::clone(&news), caught_up, stop_following.clone()));
    let ahead = Arc::new(Ahead::new(settings.ahead_bytes_max, seen));
    let ended = Worker { feed, inbox, settings, owner: owner.to_owned(), ahead, news }.run(&stop).await;
    stop_following.cancel();
    while let Some(followed) = following.join_next().await {
        followed.map_err(FeedError::internal)?;
    }
    ended
}

async fn partitions(feed: &dyn Feed) -> Result<Vec<String>> {
    let partitions = feed.partitions().await?;
    match partitions.iter().find(|partition| !is_name(partition)) {
        Some(wrong) => Err(FeedError::internal(format!("{wrong:?} cannot name a partition"))),
        None => Ok(partitions),
    }
}

fn chain(inbox: &Inbox, partition: &str, settings: &FeedSettings) -> Chain {
    Chain { inbox: inbox.clone(), partition: partition.to_owned(), write_timeout: settings.write_timeout }
}

/// Whether the same may succeed later.
fn passes(error: &FeedError) -> bool {
    matches!(error.kind(), ErrorKind::Retry | ErrorKind::Conflict)
}

struct Worker {
    feed: Arc<dyn Feed>,
    inbox: Inbox,
    settings: FeedSettings,
    owner: String,
    ahead: Arc<Ahead>,
    news: Arc<Notify>,
}

/// Errors in a row, and until when nothing is tried after the last.
#[derive(Debug, Clone, Copy)]
struct Pause {
    failures: u32,
    until: Instant,
}

impl Worker {
    /// Takes partitions that nobody reads and reads them, until it is told to stop or something does not pass by itself.
    async fn run(&self, stop: &CancellationToken) -> Result<()> {
        let halt = stop.child_token();
        let mut tasks: JoinSet<(String, Result<()>)> = JoinSet::new();
        let mut running: HashMap<String, Instant> = HashMap::new();
        let mut pauses: HashMap<String, Pause> = HashMap::new();
        let mut look_failures = 0;
        let mut look_at = Instant::now();
        let ended = loop {
            tokio::select! {
                () = stop.cancelled() => break Ok(()),
                Some(done) = tasks.join_next(), if !tasks.is_empty() => {
                    let (partition, ended) = match done {
                        Ok(done) => done,
                        Err(error) => break Err(FeedError::internal(error)),
                    };
                    let began = running.remove(&partition);
                    match ended {
                        Ok(()) => {
                            pauses.remove(&partition);
                        }
                        Err(error) if passes(&error) => {
                            // One that went well for a while has begun anew.
                            let before = pauses
                                .get(&partition)
                                .filter(|_| began.is_none_or(|began| began.elapsed() < self.settings.pause_max))
                                .map_or(0, |pause| pause.failures);
                            let failures = before + 1;
                            let until = Instant::now() + self.pause(&error, &partition, failures);
                            pauses.insert(partition, Pause { failures, until });
                            look_at = look_at.min(until);
                        }
                        Err(error) => break Err(error),
                    }
                }
                () = sleep_until(look_at) => {
                    let looked = tokio::select! {
                        looked = self.free_partitions(&running, &pauses) => looked,
                        () = stop.cancelled() => break Ok(()),
                    };
                    match looked {
                        Ok((taken, all)) => {
                            look_failures = 0;
                            look_at = Instant::now() + self.settings.partitions_interval;
                            if let Some(next) = pauses.values().map(|pause| pause.until).filter(|until| *until > Instant::now()).min() {
                                look_at = look_at.min(next);
                            }
                            for (partition, lease) in taken {
                                running.insert(partition.clone(), Instant::now());
                                tasks.spawn(self.read(partition, all, lease, halt.clone()));
                            }
                        }
                        Err(error) if passes(&error) => {
                            look_failures += 1;
                            look_at = Instant::now() + self.pause(&error, "", look_failures);
                        }
                        Err(error) => break Err(error),
                    }
                }
            }
        };
        halt.cancel();
        while let Some(done) = tasks.join_next().await {
            if let Ok((partition, Err(error))) = done {
                tracing::warn!(source = self.inbox.source(), partition, %error, "a partition ended with an error");
            }
        }
        ended
    }

    /// Leases of the partitions that are not read and not paused, and how many partitions there are.
    async fn free_partitions(
        &self,
        running: &HashMap<String, Instant>,
        pauses: &HashMap<String, Pause>,
    ) -> Result<(Vec<(String, Lease)>, usize)> {
        let partitions = partitions(self.feed.as_ref()).await?;
        let all = partitions.len();
        let mut taken = Vec::new();
        for partition in partitions {
            let paused = pauses.get(&partition).is_some_and(|pause| pause.until > Instant::now());
            if paused || running.contains_key(&partition) {
                continue;
            }
            let name = format!("feed/{}/{}/{partition}", self.inbox.pipeline(), self.inbox.source());
            if let Some(lease) = self.inbox.lake().lease(&name, &self.owner, self.settings.lease).await? {
                taken.push((partition, lease));
            }
        }
        Ok((taken, all))
    }

    /// Reads a partition for as long as its lease is held.
    fn read(
        &self,
        partition: String,
        partitions: usize,
        mut lease: Lease,
        stop: CancellationToken,
    ) -> impl Future<Output = (String, Result<()>)> + Send + use<> {
        let reader = PartitionReader {
            feed: Arc::clone(&self.feed),
            chain: chain(&self.inbox, &partition, &self.settings),
            limits: self.settings.limits(partitions),
            gather: self.settings.gather,
            wait: self.settings.wait,
            ahead: Some(Arc::clone(&self.ahead)),
            news: Arc::clone(&self.news),
        };
        async move {
            let ended = lease.hold(Box::pin(reader.run(Until::Stopped, &stop))).await;
            let ended = match ended {
                Ok(Some(ended)) => {
                    if let Err(error) = lease.release().await {
                        tracing::debug!(partition, %error, "a lease ends by itself");
                    }
                    ended.map(|_| ())
                }
                Ok(None) => {
                    tracing::warn!(partition, "another worker took this partition over");
                    Ok(())
                }
                Err(error) => Err(error.into()),
            };
            (partition, ended)
        }
    }

    fn pause(&self, error: &FeedError, partition: &str, failures: u32) -> Duration {
        let pause = PAUSE_MIN.saturating_mul(1 << failures.min(10)).min(self.settings.pause_max);
        let (source, kind) = (self.inbox.source(), error.kind().as_str());
        tracing::info!(monotonic_counter.holdfast_feed_errors = 1_u64, source, kind);
        let seconds = pause.as_secs_f64();
        tracing::warn!(source, partition, %error, seconds, "a feed cannot be read; it is tried again");
        pause
    }
}
