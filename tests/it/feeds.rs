//! Feeds: a chain of objects in the inbox that is written once, whoever reads, dies or loses an answer.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures::TryStreamExt;
use holdfast_feeds::{
    Chunk, ChunkLimits, Feed, FeedError, FeedPartition, FeedPosition, FeedSettings, follow_feed, read_feed,
};
use holdfast_ingest::{FollowSettings, Inbox, IngestSettings, SourceSpec, ingest_inbox};
use holdfast_lake::{Lake, LakeSettings, ObjectLocation, StoreOptions, open_store};
use holdfast_testkit::{Fault, FaultStore, Random};
use holdfast_types::{Clock, ErrorKind, NoProgress};
use object_store::ObjectStore;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::rows;

const CONTRACT: &str = "kind = \"numbers\"\n[feed]\nkind = \"numbers\"\n[columns]\nid = \"string\"\n";

/// Leases end by it.
#[derive(Debug)]
struct WallClock;

impl Clock for WallClock {
    fn now(&self) -> DateTime<Utc> {
        Utc::now()
    }
}

/// Partitions of records that are counted from 0, and forgotten once they are acknowledged.
#[derive(Debug, Default)]
struct Numbers {
    /// How many there are in each partition.
    there: Mutex<BTreeMap<String, u64>>,
    acknowledged: Mutex<BTreeMap<String, u64>>,
    /// What was handed out.
    given: AtomicU64,
    /// How often opening fails from now on.
    failures: AtomicU64,
}

impl Numbers {
    fn new(partitions: u64, records: u64) -> Arc<Self> {
        let numbers = Self::default();
        (0..partitions).for_each(|partition| numbers.add(partition, records));
        Arc::new(numbers)
    }

    fn add(&self, partition: u64, records: u64) {
        *self.there.lock().unwrap().entry(format!("p{partition}")).or_default() += records;
    }

    fn there(&self, partition: &str) -> u64 {
        self.there.lock().unwrap()[partition]
    }

    fn acknowledged(&self, partition: &str) -> u64 {
        self.acknowledged.lock().unwrap().get(partition).copied().unwrap_or(0)
    }

    fn ids(&self) -> BTreeMap<String, u64> {
        let there = self.there.lock().unwrap();
        there.iter().flat_map(|(name, count)| (0..*count).map(move |id| (format!("{name}-{id}"), 1))).collect()
    }
}

struct NumbersFeed(Arc<Numbers>);

#[async_trait]
impl Feed for NumbersFeed {
    async fn partitions(&self) -> holdfast_feeds::Result<Vec<String>> {
        Ok(self.0.there.lock().unwrap().keys().cloned().collect())
    }

    async fn open(
        &self,
        _: &Inbox,
        partition: &str,
        after: Option<&FeedPosition>,
    ) -> holdfast_feeds::Result<Box<dyn FeedPartition>> {
        let what = || format!("partition {partition}");
        if self.0.failures.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Err(FeedError::Unreachable { what: what(), reason: "it is down".to_owned() });
        }
        let next = after.map_or(0, |after| after.as_str().parse().unwrap());
        if next < self.0.acknowledged(partition) {
            return Err(FeedError::Gap { what: what(), reason: format!("{next} is forgotten") });
        }
        Ok(Box::new(NumbersPartition { numbers: Arc::clone(&self.0), partition: partition.to_owned(), next }))
    }
}

struct NumbersPartition {
    numbers: Arc<Numbers>,
    partition: String,
    next: u64,
}

fn position(next: u64) -> FeedPosition {
    FeedPosition::new(format!("{next:020}")).unwrap()
}

#[async_trait]
impl FeedPartition for NumbersPartition {
    async fn next(&mut self, limits: &ChunkLimits, wait: Duration) -> holdfast_feeds::Result<Option<Chunk>> {
        sleep(Duration::from_millis(1).min(wait)).await;
        let count = limits.records.min(7).min(self.numbers.there(&self.partition) - self.next);
        if count == 0 {
            sleep(wait).await;
            return Ok(None);
        }
        let lines: String =
            (self.next..self.next + count).map(|id| format!("{{\"id\":\"{}-{id}\"}}\n", self.partition)).collect();
        self.next += count;
        self.numbers.given.fetch_add(count, Ordering::SeqCst);
        Ok(Some(Chunk { lines: lines.into_bytes(), records: count, end: position(self.next) }))
    }

    async fn acknowledge(&mut self, position: &FeedPosition) -> holdfast_feeds::Result<()> {
        let acknowledged: u64 = position.as_str().parse().unwrap();
        let mut all = self.numbers.acknowledged.lock().unwrap();
        let before = all.entry(self.partition.clone()).or_default();
        *before = acknowledged.max(*before);
        Ok(())
    }
}

struct Place {
    folder: tempfile::TempDir,
    lake: Lake,
    spec: SourceSpec,
    inbox: Inbox,
}

impl Place {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let location = location(folder.path());
        Self::with(folder, location).await
    }

    /// In a store in which some PUTs fail.
    async fn faulty(path_contains: &str, fault: Fault, times: u32) -> (Self, Arc<FaultStore>) {
        let folder = tempfile::tempdir().unwrap();
        let mut location = location(folder.path());
        let store = Arc::new(FaultStore::new(Arc::clone(&location.store), path_contains, fault, times));
        location.store = Arc::clone(&store) as Arc<dyn ObjectStore>;
        (Self::with(folder, location).await, store)
    }

    async fn with(folder: tempfile::TempDir, location: ObjectLocation) -> Self {
        let lake = Lake::create_or_open_at(location, LakeSettings::default(), Arc::new(WallClock)).await.unwrap();
        let spec = SourceSpec::parse("numbers.toml", CONTRACT).unwrap();
        let inbox = Inbox::new(&lake, "test", &spec);
        Self { folder, lake, spec, inbox }
    }

    async fn to_raw(&self) {
        ingest_inbox(&self.lake, "test", &self.spec, &IngestSettings::default(), &NoProgress).await.unwrap();
    }

    /// How often each record is in `raw`.
    fn stored(&self) -> BTreeMap<String, u64> {
        rows(self.folder.path(), "select id, count(*) as times from raw.numbers group by id")
            .iter()
            .map(|row| (row["id"].as_str().unwrap().to_owned(), row["times"].as_u64().unwrap()))
            .collect()
    }

    async fn objects(&self) -> usize {
        let folder = self.inbox.folder();
        self.lake.store().list(Some(&folder)).try_collect::<Vec<_>>().await.unwrap().len()
    }
}

fn location(folder: &Path) -> ObjectLocation {
    open_store("lake", folder, &StoreOptions::new()).unwrap()
}

/// Small objects and short times.
fn settings() -> FeedSettings {
    FeedSettings {
        chunk_records_max: 20,
        gather: Duration::from_millis(5),
        wait: Duration::from_millis(50),
        partitions_interval: Duration::from_millis(100),
        lease: Duration::from_millis(900),
        pause_max: Duration::from_millis(200),
        follow: FollowSettings { interval: Duration::from_millis(50), look_back_interval: Duration::from_secs(5) },
        ..FeedSettings::default()
    }
}

#[tokio::test]
async fn ing_1_and_ing_2_hold_for_a_feed_whose_readers_die_at_any_moment() {
    const SEED: u64 = 20_261_126;
    const DEATHS: u64 = 60;
    eprintln!("seed {SEED}");
    let place = Place::new().await;
    let numbers = Numbers::new(3, 150);
    let feed: Arc<dyn Feed> = Arc::new(NumbersFeed(Arc::clone(&numbers)));
    let mut random = Random::new(SEED);
    let mut deaths = 0;
    loop {
        // Two at once, of which one or both are cut off anywhere.
        let settings = settings();
        let read = async {
            tokio::join!(read_feed(&feed, &place.inbox, &settings), read_feed(&feed, &place.inbox, &settings))
        };
        // However slow the machine is, it comes to an end.
        let patience = 1 + random.below(60) + if deaths < DEATHS { 0 } else { 60_000 };
        match timeout(Duration::from_millis(patience), read).await {
            Err(_) => deaths += 1,
            Ok((left, right)) => {
                assert!(left.unwrap().caught_up && right.unwrap().caught_up);
                break;
            }
        }
        assert!(deaths <= DEATHS, "it does not come to an end");
        if random.below(4) == 0 {
            place.to_raw().await;
        }
    }
    place.to_raw().await;
    eprintln!("{deaths} deaths, {} records given", numbers.given.load(Ordering::SeqCst));
    assert!(deaths > 5, "too few deaths to show anything: {deaths}");
    assert_eq!(place.stored(), numbers.ids());
    for partition in 0..3 {
        assert_eq!(numbers.acknowledged(&format!("p{partition}")), 150);
    }
}

#[tokio::test]
async fn ing_2_an_object_whose_answer_was_lost_is_stored_once() {
    for fault in [Fault::AnswerLost, Fault::Refused] {
        let (place, store) = Place::faulty("/feed/", fault, 9).await;
        let numbers = Numbers::new(1, 300);
        let feed: Arc<dyn Feed> = Arc::new(NumbersFeed(Arc::clone(&numbers)));
        let mut tries = 0;
        while read_feed(&feed, &place.inbox, &settings()).await.is_err() {
            tries += 1;
            assert!(tries < 10);
        }
        assert_eq!(store.left(), 0, "every fault struck");
        place.to_raw().await;
        assert_eq!(place.stored(), numbers.ids(), "{fault:?}");
    }
}

#[tokio::test]
async fn workers_share_partitions_and_take_over_those_of_one_that_died() {
    let place = Place::new().await;
    let numbers = Numbers::new(4, 100);
    let mut workers = Vec::new();
    for name in ["left", "right"] {
        let (feed, inbox) = (Arc::new(NumbersFeed(Arc::clone(&numbers))), place.inbox.clone());
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        let given = (settings(), IngestSettings::default());
        tasks.spawn({
            let stop = stop.clone();
            async move { Box::pin(follow_feed(feed, inbox, given, name, stop)).await }
        });
        workers.push((tasks, stop));
    }
    let until_acknowledged = async |count: u64| {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !(0..4).all(|partition| numbers.acknowledged(&format!("p{partition}")) >= count) {
            assert!(Instant::now() < deadline, "{:?}", numbers.acknowledged.lock().unwrap());
            sleep(Duration::from_millis(10)).await;
        }
    };
    until_acknowledged(100).await;
    // One dies where it is; the other takes its partitions, and one that is new.
    drop(workers.remove(0));
    (0..4).for_each(|partition| numbers.add(partition, 50));
    until_acknowledged(150).await;
    numbers.add(9, 30);
    let deadline = Instant::now() + Duration::from_secs(30);
    while numbers.acknowledged("p9") < 30 {
        assert!(Instant::now() < deadline);
        sleep(Duration::from_millis(10)).await;
    }
    let (mut tasks, stop) = workers.remove(0);
    let stopping = Instant::now();
    stop.cancel();
    tasks.join_next().await.unwrap().unwrap().unwrap();
    assert!(stopping.elapsed() < Duration::from_secs(8), "{:?}", stopping.elapsed());
    assert_eq!(place.stored(), numbers.ids(), "all of it is in raw when the worker has stopped");
    // The leases kept them off each other's partitions.
    let again = numbers.given.load(Ordering::SeqCst) - numbers.ids().len() as u64;
    assert!(again < 200, "{again} records were read more than once");
}

#[tokio::test]
async fn what_may_pass_is_tried_again_and_what_does_not_ends_the_worker() {
    let place = Place::new().await;
    let numbers = Numbers::new(1, 40);
    numbers.failures.store(3, Ordering::SeqCst);
    let stop = CancellationToken::new();
    let follow = |feed: NumbersFeed| {
        let given = (settings(), IngestSettings::default());
        Box::pin(follow_feed(Arc::new(feed), place.inbox.clone(), given, "test", stop.clone()))
    };
    let watch = async {
        while numbers.acknowledged("p0") < 40 {
            sleep(Duration::from_millis(10)).await;
        }
        stop.cancel();
    };
    let (ended, ()) = tokio::join!(follow(NumbersFeed(Arc::clone(&numbers))), watch);
    ended.unwrap();
    assert_eq!(place.stored(), numbers.ids());

    // The other side has forgotten what this lake does not have.
    let other = Place::new().await;
    let feed: Arc<dyn Feed> = Arc::new(NumbersFeed(Arc::clone(&numbers)));
    let error = read_feed(&feed, &other.inbox, &settings()).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    let given = (settings(), IngestSettings::default());
    let ended = Box::pin(follow_feed(feed, other.inbox.clone(), given, "test", CancellationToken::new())).await;
    assert_eq!(ended.unwrap_err().kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn nothing_is_read_while_too_much_waits_for_raw() {
    let (place, store) = Place::faulty("/raw/numbers/", Fault::Refused, 1_000_000).await;
    let numbers = Numbers::new(2, 100_000);
    let given = (FeedSettings { ahead_bytes_max: 20_000, ..settings() }, IngestSettings::default());
    let (feed, stop) = (Arc::new(NumbersFeed(Arc::clone(&numbers))), CancellationToken::new());
    let following = follow_feed(feed, place.inbox.clone(), given, "test", stop.clone());
    // Before anything of the inbox is known to reach raw, nothing is read.
    assert!(timeout(Duration::from_secs(1), Box::pin(following)).await.is_err());
    assert_eq!((numbers.given.load(Ordering::SeqCst), place.objects().await), (0, 0));
    assert!(store.left() < 1_000_000);

    let (place, store) = Place::faulty("/raw/numbers/part", Fault::Refused, 1_000_000).await;
    let given = (FeedSettings { ahead_bytes_max: 20_000, ..settings() }, IngestSettings::default());
    let feed = Arc::new(NumbersFeed(Arc::clone(&numbers)));
    let following = follow_feed(feed, place.inbox.clone(), given, "test", stop.clone());
    assert!(timeout(Duration::from_secs(3), Box::pin(following)).await.is_err());
    // 18 bytes a record or more, and what two partitions had in hand.
    let read = numbers.given.load(Ordering::SeqCst);
    assert!(store.left() < 1_000_000 && read > 100 && read < 20_000 / 18 + 200, "{read} records");
}

/// Gives the same chunk for ever.
struct StuckFeed(Chunk);

#[async_trait]
impl Feed for StuckFeed {
    async fn partitions(&self) -> holdfast_feeds::Result<Vec<String>> {
        Ok(vec!["stuck".to_owned()])
    }

    async fn open(
        &self,
        _: &Inbox,
        _: &str,
        _: Option<&FeedPosition>,
    ) -> holdfast_feeds::Result<Box<dyn FeedPartition>> {
        Ok(Box::new(Self(self.0.clone())))
    }
}

#[async_trait]
impl FeedPartition for StuckFeed {
    async fn next(&mut self, _: &ChunkLimits, _: Duration) -> holdfast_feeds::Result<Option<Chunk>> {
        Ok(Some(self.0.clone()))
    }

    async fn acknowledge(&mut self, _: &FeedPosition) -> holdfast_feeds::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_feed_that_does_not_move_on_or_miscounts_is_found_out() {
    for (lines, records) in [("{\"id\":\"1\"}\n", 1), ("{}\n{}\n", 3), ("{}\n{}", 1)] {
        let place = Place::new().await;
        let chunk = Chunk { lines: lines.as_bytes().to_vec(), records, end: position(1) };
        let feed: Arc<dyn Feed> = Arc::new(StuckFeed(chunk));
        let error = read_feed(&feed, &place.inbox, &settings()).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Bug, "{error}");
        assert!(error.to_string().contains("partition stuck of source numbers"), "{error}");
    }
}
