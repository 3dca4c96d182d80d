//! Who works on the lake, and how that ends.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use holdfast_collect::{Access, CollectError, CollectSettings, bind, collect};
use holdfast_feeds::{Feed, FeedError, FeedSettings, read_feed};
use holdfast_ingest::{
    Inbox, IngestError, IngestSettings, IngestStep, PutInbox, SweepSettings, ingest_inbox, ingest_source, sweep_inbox,
};
use holdfast_lake::{Lake, LakeError, LakeSettings, MaintainSettings, ObjectLocation};
use holdfast_testkit::{Failure, Fault, FaultStore, Moment, Operation, Random, Rule};
use holdfast_types::{ErrorKind, NoProgress};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use url::Url;

use super::delivery::{Delivery, LANDING, SOURCES, spec};
use super::puts::{Puts, STREAM, rows};
use super::topic::Topic;
use crate::leases::HandClock;

pub(super) const PIPELINE: &str = "test";
pub(super) const LAKE: &str = "lake";

/// The calls of a life among which one is chosen to die at: about as many as one makes.
const CALLS: u64 = 90;

/// A store with a landing folder and a lake, and those who push.
pub(super) struct World {
    store: Arc<InMemory>,
    clock: HandClock,
    pushes: Arc<Mutex<Pushes>>,
    topic: Topic,
    puts: Puts,
}

/// What was pushed.
#[derive(Debug, Default)]
pub(super) struct Pushes {
    sent: u64,
    /// Batches without an acknowledgement, and those with one. A message's name tells whether it fits.
    open: Vec<Vec<String>>,
    pub(super) acknowledged: Vec<Vec<String>>,
}

impl Pushes {
    /// Messages that may be stored though nobody was told so.
    pub(super) fn unanswered(&self) -> impl Iterator<Item = &String> {
        self.open.iter().flatten()
    }

    fn next(&mut self, random: &mut Random) -> Vec<String> {
        match random.below(4) {
            0 if !self.acknowledged.is_empty() => random.pick(&self.acknowledged).clone(),
            1 | 2 if !self.open.is_empty() => random.pick(&self.open).clone(),
            _ => {
                let batch: Vec<String> = (0..=random.below(4))
                    .map(|_| {
                        self.sent += 1;
                        format!("{}{}", if random.chance(20) { "bad" } else { "p" }, self.sent)
                    })
                    .collect();
                self.open.push(batch.clone());
                batch
            }
        }
    }

    fn answered(&mut self, batch: Vec<String>) {
        self.open.retain(|open| *open != batch);
        if !self.acknowledged.contains(&batch) {
            self.acknowledged.push(batch);
        }
    }
}

/// What somebody does.
#[derive(Debug, Clone)]
enum Work {
    Ingest { sources: Vec<&'static str>, batch_files: usize },
    Collect { requests: u64, seed: u64, resends_all: bool },
    Feed { chunk_records: u64 },
    Put { batches: u64, seed: u64, again: bool },
    Maintain { checkpoint_after: u64, days_ahead: i64 },
}

/// Somebody who works, and what happens to it.
#[derive(Debug, Clone)]
pub(super) struct Actor {
    work: Work,
    dies_at: Option<(u64, Moment)>,
    /// The step, and which of the times it is reached.
    dies_after: Option<(IngestStep, u64)>,
    /// Calls of a hundred that fail, and the seed of which.
    throttled: Option<(u64, u64)>,
}

/// How somebody ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// By being killed, at this call or step.
    Killed(String),
    /// With an error that says to come back.
    Failed,
    /// After all was done; these sources were brought in.
    Done(Vec<&'static str>),
}

impl fmt::Display for Actor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.work {
            Work::Ingest { sources, .. } => write!(f, "ingest {}", sources.join(" ")),
            Work::Collect { .. } => f.write_str("collect"),
            Work::Feed { .. } => f.write_str("feed"),
            Work::Put { .. } => f.write_str("put"),
            Work::Maintain { .. } => f.write_str("maintain"),
        }
    }
}

impl Actor {
    fn of(work: Work) -> Self {
        Self { work, dies_at: None, dies_after: None, throttled: None }
    }

    pub(super) fn ingesting(sources: &[&'static str], batch_files: usize) -> Self {
        Self::of(Work::Ingest { sources: sources.to_vec(), batch_files })
    }

    pub(super) fn collecting(requests: u64, resends_all: bool) -> Self {
        Self::of(Work::Collect { requests, seed: requests, resends_all })
    }

    pub(super) fn feeding() -> Self {
        Self::of(Work::Feed { chunk_records: 3 })
    }

    /// Puts all again that was not acknowledged.
    pub(super) fn putting_again() -> Self {
        Self::of(Work::Put { batches: 0, seed: 0, again: true })
    }

    pub(super) fn is_feeding(&self) -> bool {
        matches!(self.work, Work::Feed { .. })
    }

    /// Alone, so that a clock far ahead makes it delete all that nobody needs.
    pub(super) fn maintaining(random: &mut Random) -> Self {
        let days_ahead = if random.chance(50) { 30 } else { 0 };
        Self::of(Work::Maintain { checkpoint_after: 1 + random.below(4), days_ahead })
    }

    /// Those who live at the same time.
    pub(super) fn draw(random: &mut Random, delivery: &Delivery) -> Vec<Self> {
        let sources = delivery.sources();
        let pushes = sources.contains(&"events");
        let ingest = |random: &mut Random| {
            let batch_files = usize::try_from(1 + random.below(3)).unwrap();
            Self::ingesting(&sources, batch_files).doomed(random)
        };
        let collect = |random: &mut Random| {
            let (requests, seed) = (1 + random.below(4), random.any());
            Self::of(Work::Collect { requests, seed, resends_all: false }).doomed(random)
        };
        let feed = |random: &mut Random| Self::of(Work::Feed { chunk_records: 1 + random.below(4) }).doomed(random);
        let put = |random: &mut Random| {
            let (batches, seed) = (1 + random.below(5), random.any());
            Self::of(Work::Put { batches, seed, again: false }).doomed(random)
        };
        match random.below(18) {
            // Alone: what it deletes is judged by a clock that the others do not have.
            0 => vec![Self::maintaining(random).doomed(random)],
            1 => vec![ingest(random), ingest(random)],
            2 => {
                let maintain = Self::of(Work::Maintain { checkpoint_after: 1 + random.below(3), days_ahead: 0 });
                vec![ingest(random), maintain.doomed(random)]
            }
            3 | 4 if pushes => vec![collect(random), ingest(random)],
            5..=7 if pushes => vec![collect(random)],
            8 | 9 if pushes => vec![feed(random), feed(random)],
            10 if pushes => vec![feed(random), collect(random)],
            11 if pushes => vec![feed(random), ingest(random)],
            12 | 13 if pushes => vec![put(random)],
            14 if pushes => vec![put(random), put(random)],
            15 if pushes => vec![put(random), ingest(random)],
            _ => vec![ingest(random)],
        }
    }

    fn doomed(mut self, random: &mut Random) -> Self {
        let moment = if random.chance(50) { Moment::Before } else { Moment::After };
        match random.below(10) {
            0 => {}
            1..=6 => self.dies_at = Some((1 + random.below(CALLS), moment)),
            _ if matches!(self.work, Work::Ingest { .. } | Work::Feed { .. }) => {
                self.dies_after = Some((*random.pick(&IngestStep::ALL), 1 + random.below(2)));
            }
            _ => self.dies_at = Some((1 + random.below(CALLS / 2), moment)),
        }
        if random.chance(25) {
            self.throttled = Some((*random.pick(&[2, 5, 10, 25]), random.any()));
        }
        self
    }

    fn store(&self, inner: Arc<InMemory>) -> FaultStore {
        let mut store = FaultStore::over(inner);
        if let Some((call, moment)) = self.dies_at {
            store = store.dying_at(call, moment);
        }
        if let Some((percent, seed)) = self.throttled {
            // What a busy store, a lost connection and an S3 client that tries again by itself look like from here.
            let share = percent.div_ceil(3);
            store = store
                .with_seed(seed)
                .with(Rule::on(&[], Fault::Refused).percent(share))
                .with(Rule::on(&[], Fault::AnswerLost).percent(share))
                .with(Rule::on(&[Operation::Get], Fault::Truncated).percent(share))
                .with(
                    Rule::on(&[Operation::PutCreate], Fault::AnswerLost).told(Failure::AlreadyExists).percent(percent),
                )
                .with(Rule::on(&[Operation::PutCreate], Fault::Refused).told(Failure::AlreadyExists).percent(share));
        }
        store
    }
}

impl World {
    pub(super) fn new(store: Arc<InMemory>) -> Self {
        Self { store, clock: HandClock::new(), pushes: Arc::default(), topic: Topic::default(), puts: Puts::default() }
    }

    pub(super) fn store(&self) -> &InMemory {
        &self.store
    }

    pub(super) fn puts(&self) -> &Puts {
        &self.puts
    }

    pub(super) fn topic(&self) -> &Topic {
        &self.topic
    }

    pub(super) fn pushes(&self) -> std::sync::MutexGuard<'_, Pushes> {
        self.pushes.lock().unwrap()
    }

    pub(super) fn has_pushed(&self) -> bool {
        self.pushed() > 0
    }

    pub(super) fn pushed(&self) -> u64 {
        self.pushes().sent
    }

    pub(super) fn has_no_open_pushes(&self) -> bool {
        self.pushes().open.is_empty()
    }

    /// Some time goes by: less than looking back reaches.
    pub(super) fn pass(&self, random: &mut Random) {
        self.clock.pass(i64::try_from(random.below(600)).unwrap());
    }

    /// Every commit there is.
    pub(super) async fn commits(&self) -> Vec<String> {
        use futures::TryStreamExt;

        let listed: Vec<_> = self.store.list(Some(&Path::from(LAKE))).try_collect().await.unwrap();
        let mut commits: Vec<String> = listed.into_iter().map(|object| object.location.to_string()).collect();
        commits.retain(|path| path.contains("/_delta_log/"));
        commits.sort();
        commits
    }

    fn place(store: &FaultStore, path: &str) -> ObjectLocation {
        let url = Url::parse(&format!("memory:///{path}")).unwrap();
        ObjectLocation { store: Arc::new(store.clone()), path: Path::from(path), url }
    }

    /// Lives the life of somebody to its end.
    ///
    /// # Panics
    /// When it ends with an error that a failing store does not excuse.
    pub(super) async fn live(&self, actor: Actor) -> (Actor, Ended) {
        let store = actor.store(Arc::clone(&self.store));
        let step: Arc<Mutex<Option<IngestStep>>> = Arc::default();
        let work = async {
            match &actor.work {
                Work::Ingest { sources, batch_files } => {
                    let settings = ingest_settings(*batch_files, actor.dies_after, &store, &step);
                    self.ingest(&store, sources, &settings).await
                }
                Work::Collect { requests, seed, resends_all } => {
                    self.collect(&store, *requests, *seed, *resends_all).await.map(|()| Vec::new())
                }
                Work::Feed { chunk_records } => {
                    self.feed(&store, *chunk_records, actor.dies_after, &step).await.map(|()| Vec::new())
                }
                Work::Put { batches, seed, again } => {
                    self.put(&store, *batches, *seed, *again).await.map(|()| Vec::new())
                }
                Work::Maintain { checkpoint_after, days_ahead } => {
                    self.maintain(&store, *checkpoint_after, *days_ahead).await.map(|()| Vec::new())
                }
            }
        };
        let ended = {
            let mut work = std::pin::pin!(work);
            tokio::select! {
                biased;
                () = store.died() => None,
                ended = &mut work => Some(ended),
            }
        };
        let ended = match ended {
            _ if store.is_dead() => Ended::Killed(match *step.lock().unwrap() {
                Some(step) => format!("after {}", step.as_str()),
                None => place_of_death(&store, actor.dies_at),
            }),
            Some(Ok(sources)) => Ended::Done(sources),
            Some(Err((kind, said))) => {
                let excused = actor.throttled.is_some() && matches!(kind, ErrorKind::Retry | ErrorKind::Conflict);
                // Workers that get in each other's way say so.
                assert!(excused || kind == ErrorKind::Conflict, "{actor:?} ended with {kind}: {said}");
                Ended::Failed
            }
            None => unreachable!("it neither died nor ended"),
        };
        (actor, ended)
    }

    async fn lake(&self, store: &FaultStore, clock: &HandClock) -> Result<Lake, LakeError> {
        Lake::create_or_open_at(Self::place(store, LAKE), LakeSettings::default(), Arc::new(clock.clone())).await
    }

    async fn ingest(
        &self,
        store: &FaultStore,
        sources: &[&'static str],
        settings: &IngestSettings,
    ) -> Result<Vec<&'static str>, (ErrorKind, String)> {
        let told = |error: IngestError| (error.kind(), error.to_string());
        let lake = self.lake(store, &self.clock).await.map_err(|error| told(error.into()))?;
        let from = Self::place(store, LANDING);
        for source in sources {
            ingest_source(&lake, PIPELINE, &spec(source), &from, settings, &NoProgress).await.map_err(told)?;
        }
        Ok(sources.to_vec())
    }

    async fn collect(
        &self,
        store: &FaultStore,
        requests: u64,
        seed: u64,
        resends_all: bool,
    ) -> Result<(), (ErrorKind, String)> {
        let told = |error: CollectError| (error.kind(), error.to_string());
        let lake = self.lake(store, &self.clock).await.map_err(|error| (error.kind(), error.to_string()))?;
        let inbox = Inbox::new(&lake, PIPELINE, &spec("events"));
        let access = Access::Open { source: "events".to_owned() };
        let listener = bind("127.0.0.1:0", &access).await.map_err(told)?;
        let address = listener.local_addr().unwrap();
        let settings = CollectSettings {
            gather: Duration::ZERO,
            ingest_interval: Duration::from_millis(1),
            write_again_after: Duration::from_millis(5),
            ..CollectSettings::default()
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let ready = || async {
            let _ = stopped.await;
        };
        let clock = Arc::new(self.clock.clone());
        let settings = (settings, ingest_settings(2, None, store, &Arc::default()));
        let serving = collect(vec![inbox], access, settings, clock, listener, ready);
        let pushes = Arc::clone(&self.pushes);
        let pushing = async move {
            let mut random = Random::new(seed);
            for _ in 0..requests {
                let batch = pushes.lock().unwrap().next(&mut random);
                if push(address, &batch).await {
                    pushes.lock().unwrap().answered(batch);
                }
            }
            let open = if resends_all { pushes.lock().unwrap().open.clone() } else { Vec::new() };
            for batch in open {
                if push(address, &batch).await {
                    pushes.lock().unwrap().answered(batch);
                }
            }
            drop(stop);
        };
        let (served, ()) = futures::future::join(Box::pin(serving), pushing).await;
        served.map_err(told)
    }

    /// As `holdfast ingest` does it with the source of a feed.
    async fn feed(
        &self,
        store: &FaultStore,
        chunk_records: u64,
        dies_after: Option<(IngestStep, u64)>,
        step: &Arc<Mutex<Option<IngestStep>>>,
    ) -> Result<(), (ErrorKind, String)> {
        let lake = self.lake(store, &self.clock).await.map_err(|error| (error.kind(), error.to_string()))?;
        let inbox = Inbox::new(&lake, PIPELINE, &spec("events"));
        let feed: Arc<dyn Feed> = Arc::new(self.topic.clone());
        let settings = FeedSettings {
            chunk_records_max: chunk_records,
            gather: Duration::ZERO,
            wait: Duration::ZERO,
            ..FeedSettings::default()
        };
        let told = |error: FeedError| (error.kind(), error.to_string());
        read_feed(&feed, &inbox, &settings).await.map_err(told)?;
        let settings = ingest_settings(2, dies_after, store, step);
        let ended = ingest_inbox(&lake, PIPELINE, &spec("events"), &settings, &NoProgress).await;
        ended.map(|_| ()).map_err(|error| (error.kind(), error.to_string()))
    }

    /// As `holdfast serve --accept-puts` does it with the batches of a stream.
    async fn put(&self, store: &FaultStore, batches: u64, seed: u64, again: bool) -> Result<(), (ErrorKind, String)> {
        let told = |error: IngestError| (error.kind(), error.to_string());
        let lake = self.lake(store, &self.clock).await.map_err(|error| told(error.into()))?;
        let contract = spec("events");
        let inbox = PutInbox::new(&lake, PIPELINE, &contract, Duration::from_secs(30));
        let layout = inbox.layout(&rows(0).schema()).map_err(told)?;
        let stream = inbox.stream(Some(STREAM)).await.map_err(told)?;
        let mut random = Random::new(seed);
        let mut sent: Vec<u64> = (0..batches).map(|_| self.puts.next(&mut random)).collect();
        if again {
            sent.extend(self.puts.open());
        }
        for batch in sent {
            let object = layout.object(stream.name(), batch, &rows(batch)).map_err(told)?;
            stream.store(batch, object).await.map_err(told)?;
            self.puts.acknowledged(batch);
        }
        let settings = ingest_settings(2, None, store, &Arc::default());
        ingest_inbox(&lake, PIPELINE, &contract, &settings, &NoProgress).await.map(|_| ()).map_err(told)
    }

    /// As `holdfast maintain` does it.
    async fn maintain(
        &self,
        store: &FaultStore,
        checkpoint_after: u64,
        days_ahead: i64,
    ) -> Result<(), (ErrorKind, String)> {
        let told = |error: LakeError| (error.kind(), error.to_string());
        let clock = if days_ahead == 0 {
            self.clock.clone()
        } else {
            let ahead = HandClock::new();
            ahead.pass(chrono::Utc::now().timestamp() + days_ahead * 24 * 60 * 60);
            ahead
        };
        let lake = self.lake(store, &clock).await.map_err(told)?;
        let settings = MaintainSettings {
            target_bytes: 1 << 20,
            checkpoint_after,
            // As many as are looked at for the mark of an abandoned batch, and more than a seed commits.
            commits_kept: 1_000,
            memory_bytes: 64 << 20,
            ..MaintainSettings::default()
        };
        let kept = lake.maintain_runs(&settings).await.map_err(told)?;
        for table in lake.tables().await.map_err(told)? {
            let lease =
                lake.lease(&format!("maintain/{table}"), "test", Duration::from_secs(60)).await.map_err(told)?;
            let Some(mut lease) = lease else { continue };
            let fence = lease.fence();
            let held = lease.hold(lake.maintain(&table, &settings, &kept, Some(fence))).await.map_err(told)?;
            match held {
                // A table that is being made, or another holder.
                Some(Err(LakeError::NoTable(_) | LakeError::Superseded { .. })) | None => {}
                Some(done) => {
                    done.map_err(told)?;
                }
            }
            lease.release().await.map_err(told)?;
        }
        for source in SOURCES {
            let swept = sweep_inbox(&Inbox::new(&lake, PIPELINE, &spec(source)), &SweepSettings::default()).await;
            swept.map_err(|error| (error.kind(), error.to_string()))?;
        }
        Ok(())
    }
}

fn ingest_settings(
    batch_files_max: usize,
    dies_after: Option<(IngestStep, u64)>,
    store: &FaultStore,
    reached: &Arc<Mutex<Option<IngestStep>>>,
) -> IngestSettings {
    let mut settings = IngestSettings { threads: 1, batch_files_max, block_bytes: 64, ..IngestSettings::default() };
    if let Some((last, times)) = dies_after {
        let (store, reached, count) = (store.clone(), Arc::clone(reached), AtomicU64::new(0));
        settings.on_step = Some(Arc::new(move |step| {
            if step == last && count.fetch_add(1, Ordering::SeqCst) + 1 == times {
                *reached.lock().unwrap() = Some(step);
                store.kill();
            }
        }));
    }
    settings
}

/// What was asked of which kind of object when somebody died, without what differs from seed to seed.
fn place_of_death(store: &FaultStore, dies_at: Option<(u64, Moment)>) -> String {
    let (number, moment) = dies_at.unwrap();
    let calls = store.calls();
    let call = &calls[usize::try_from(number).unwrap() - 1];
    let path = call.path.as_str();
    let object = if path.starts_with(LANDING) {
        "a delivered file".to_owned()
    } else if path.contains("/inbox/") {
        "the inbox".to_owned()
    } else if path.contains("/leases/") {
        "a lease".to_owned()
    } else {
        let kind = match path {
            path if path.contains("_last_checkpoint") => "_last_checkpoint of ",
            path if path.contains(".checkpoint") => "a checkpoint of ",
            path if path.contains("/_delta_log") => "the log of ",
            path if path.ends_with(".parquet") => "a data file of ",
            _ => "",
        };
        let mut parts = path.split('/').skip(1);
        let schema = parts.next().unwrap_or("the lake");
        let table = if schema == "metric" { parts.next().unwrap_or_default() } else { "" };
        format!("{kind}{schema} {table}").trim().to_owned()
    };
    format!("{moment:?} {:?} of {object}", call.operation).to_lowercase()
}

/// Whether the server has acknowledged the batch.
async fn push(address: std::net::SocketAddr, batch: &[String]) -> bool {
    let message = |id: &String| {
        let n = if id.starts_with("bad") { json!("x") } else { json!(1) };
        json!({ "type": "track", "event": "e", "userId": "u", "messageId": id, "n": n })
    };
    let body = json!({ "batch": batch.iter().map(message).collect::<Vec<_>>() }).to_string();
    let request = format!(
        "POST /v1/batch HTTP/1.1\r\nhost: test\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    let answer = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    answer.await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}
