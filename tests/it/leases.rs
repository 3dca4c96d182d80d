//! Leases and fences on real stores: one holder at a time, and no commit of a holder whose successor has committed.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arrow::array::{Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Schema};
use chrono::{DateTime, TimeDelta, Utc};
use futures::FutureExt;
use futures::future::BoxFuture;
use holdfast_lake::{
    Change, ChangeKind, CommitOutcome, Fence, Lake, LakeError, LakeSettings, Lease, Position, StoreOptions, Table,
    TableSpec, TableWriter, WriterSettings, open_store,
};
use holdfast_testkit::{Fault, FaultStore, InterleavedStore};
use holdfast_types::{Clock, ErrorKind};
use object_store::ObjectStore;

const NAME: &str = "watch/orders";
const LONG: Duration = Duration::from_secs(60);

/// A clock that moves when it is told to.
#[derive(Debug, Clone)]
pub(crate) struct HandClock(Arc<Mutex<DateTime<Utc>>>);

impl HandClock {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(DateTime::UNIX_EPOCH)))
    }

    pub(crate) fn pass(&self, seconds: i64) {
        *self.0.lock().unwrap() += TimeDelta::seconds(seconds);
    }
}

impl Clock for HandClock {
    fn now(&self) -> DateTime<Utc> {
        *self.0.lock().unwrap()
    }
}

pub(crate) async fn lake(folder: &Path, clock: &HandClock) -> Lake {
    lake_over(folder, clock, |store| store).await
}

async fn lake_over(
    folder: &Path,
    clock: &HandClock,
    wrap: impl FnOnce(Arc<dyn ObjectStore>) -> Arc<dyn ObjectStore>,
) -> Lake {
    let mut place = open_store(&folder.display().to_string(), Path::new("/"), &StoreOptions::new()).unwrap();
    place.store = wrap(place.store);
    Lake::create_or_open_at(place, LakeSettings::default(), Arc::new(clock.clone())).await.unwrap()
}

/// A lake in which `before` happens right before the next PUT to a path that contains `path`.
pub(crate) async fn interleaved(
    folder: &Path,
    clock: &HandClock,
    path: &str,
    before: BoxFuture<'static, ()>,
) -> (Lake, Arc<InterleavedStore>) {
    let mut interleaved = None;
    let lake = lake_over(folder, clock, |store| {
        let store = Arc::new(InterleavedStore::new(store, path, before));
        interleaved = Some(Arc::clone(&store));
        store
    })
    .await;
    (lake, interleaved.unwrap())
}

fn spec() -> TableSpec {
    TableSpec {
        name: "raw.numbers".parse().unwrap(),
        schema: Arc::new(Schema::new(vec![Field::new("n", DataType::Int64, true)])),
        partition_by: Vec::new(),
        comment: "numbers".to_owned(),
    }
}

/// Appends one row under a fence, decided on `table`.
async fn append(
    lake: &Lake,
    table: &Table,
    app_id: &str,
    version: i64,
    fence: Fence,
) -> Result<CommitOutcome, LakeError> {
    let column = Arc::new(Int64Array::from_iter_values([version]));
    let mut writer = TableWriter::new(table, WriterSettings::default());
    writer.write(&RecordBatch::try_new(Arc::clone(table.schema()), vec![column]).unwrap()).await.unwrap();
    lake.commit(Change {
        table,
        position: Position { app_id: app_id.to_owned(), version },
        fence: Some(fence),
        kind: ChangeKind::Append,
        files: writer.close().await.unwrap(),
        schema: None,
        comment: None,
        metadata: serde_json::Map::new(),
    })
    .await
}

fn stored_generations(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(folder.join("_holdfast/leases").join(NAME))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names.into_iter().map(|name| name.trim_start_matches('0').to_owned()).collect()
}

#[tokio::test]
async fn a_lease_is_held_by_one_until_it_ends_or_is_given_back() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), HandClock::new());
    let lake = lake(folder.path(), &clock).await;
    let first = lake.lease(NAME, "one", LONG).await.unwrap().unwrap();
    assert!(lake.lease(NAME, "two", LONG).await.unwrap().is_none());
    // Another name is another lease, also where one is the beginning of the other.
    assert!(lake.lease("watch", "two", LONG).await.unwrap().is_some());
    first.release().await.unwrap();
    let mut second = lake.lease(NAME, "two", LONG).await.unwrap().unwrap();
    assert!(second.fence().generation > 1);

    // Renewed, it goes on; the fence stays what it was.
    let fence = second.fence();
    for _ in 0..5 {
        clock.pass(50);
        assert!(second.renew().await.unwrap());
    }
    assert_eq!(second.fence(), fence);
    assert!(lake.lease(NAME, "three", LONG).await.unwrap().is_none());
    assert_eq!(stored_generations(folder.path()).len(), 2, "old generations stay behind");

    // Left alone, it ends; others wait a tenth longer, because their clocks may differ.
    clock.pass(61);
    assert!(!second.is_running());
    assert!(lake.lease(NAME, "three", LONG).await.unwrap().is_none());
    clock.pass(6);
    let third = lake.lease(NAME, "three", LONG).await.unwrap().unwrap();
    assert!(third.fence().generation > fence.generation);
    assert!(!second.renew().await.unwrap());
    // Giving back what somebody else has by now takes nothing from them.
    second.release().await.unwrap();
    assert!(lake.lease(NAME, "four", LONG).await.unwrap().is_none());
}

#[tokio::test]
async fn a_late_renewal_holds_when_nobody_came() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), HandClock::new());
    let lake = lake(folder.path(), &clock).await;
    let mut lease = lake.lease(NAME, "one", LONG).await.unwrap().unwrap();
    clock.pass(1_000);
    assert!(lease.renew().await.unwrap());
    assert!(lease.is_running());
}

#[tokio::test]
async fn work_goes_on_while_its_lease_is_renewed_and_ends_when_it_is_lost() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), HandClock::new());
    let lake = lake(folder.path(), &clock).await;
    let mut lease = lake.lease(NAME, "one", Duration::from_millis(150)).await.unwrap().unwrap();
    let done = lease.hold(tokio::time::sleep(Duration::from_millis(400)).map(|()| "done")).await.unwrap();
    assert_eq!(done, Some("done"));
    let renewed: u32 = stored_generations(folder.path())[1].trim_end_matches(".json").parse().unwrap();
    assert!(renewed > 3, "renewed up to {renewed}");

    clock.pass(1);
    let other = lake.lease(NAME, "two", LONG).await.unwrap().unwrap();
    assert_eq!(lease.hold(std::future::pending::<()>()).await.unwrap(), None);
    assert!(other.is_running());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn of_many_who_try_at_once_one_gets_it() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), HandClock::new());
    let lake = lake(folder.path(), &clock).await;
    for round in 0..10 {
        let mut takers = tokio::task::JoinSet::new();
        for taker in 0..8 {
            let lake = lake.clone();
            takers.spawn(async move { lake.lease(NAME, &format!("taker {taker}"), LONG).await.unwrap() });
        }
        let held: Vec<Lease> = takers.join_all().await.into_iter().flatten().collect();
        assert_eq!(held.len(), 1, "round {round}");
        clock.pass(67);
    }
}

#[tokio::test]
async fn a_taker_that_was_passed_by_several_generations_gets_nothing() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), HandClock::new());
    let quick = lake(folder.path(), &clock).await;
    quick.lease(NAME, "gone", LONG).await.unwrap().unwrap();
    clock.pass(67);
    // Between the look of the slow one and its PUT of generation 2, others go on to 4 and delete 2.
    let held = Arc::new(Mutex::new(None));
    let before = {
        let (quick, held) = (quick.clone(), Arc::clone(&held));
        async move {
            let mut lease = quick.lease(NAME, "quick", LONG).await.unwrap().unwrap();
            assert!(lease.renew().await.unwrap() && lease.renew().await.unwrap());
            *held.lock().unwrap() = Some(lease);
        }
        .boxed()
    };
    let (slow, store) = interleaved(folder.path(), &clock, "_holdfast/leases/", before).await;
    assert!(slow.lease(NAME, "slow", LONG).await.unwrap().is_none());
    assert!(store.has_happened());
    assert_eq!(stored_generations(folder.path()), ["3.json", "4.json"]);
    let mut lease = held.lock().unwrap().take().unwrap();
    assert!(lease.renew().await.unwrap());
}

#[tokio::test]
async fn a_lease_whose_answer_is_lost_is_held_and_one_that_was_refused_is_not() {
    for (fault, expected) in [(Fault::AnswerLost, true), (Fault::Refused, false)] {
        let (folder, clock) = (tempfile::tempdir().unwrap(), HandClock::new());
        let faulty =
            lake_over(folder.path(), &clock, |store| Arc::new(FaultStore::new(store, "/leases/", fault, 1))).await;
        match faulty.lease(NAME, "one", LONG).await {
            Ok(lease) => assert_eq!(lease.is_some(), expected),
            Err(error) => assert!(!expected && error.kind() == ErrorKind::Retry, "{error}"),
        }
        let other = lake(folder.path(), &clock).await.lease(NAME, "two", LONG).await.unwrap();
        assert_eq!(other.is_some(), !expected);
    }
}

#[tokio::test]
async fn a_commit_that_stalls_until_its_successor_has_committed_is_refused() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), HandClock::new());
    let quick = lake(folder.path(), &clock).await;
    let table = quick.ensure_table(&spec()).await.unwrap();
    let stalled = quick.lease(NAME, "stalled", LONG).await.unwrap().unwrap();
    // It has looked at the table and found no newer holder; before its version is written, one takes over and commits.
    let before = {
        let (quick, table, clock) = (quick.clone(), table.clone(), clock.clone());
        async move {
            clock.pass(67);
            let successor = quick.lease(NAME, "successor", LONG).await.unwrap().unwrap();
            let outcome = append(&quick, &table, "successor", 1, successor.fence()).await.unwrap();
            assert!(matches!(outcome, CommitOutcome::Applied { .. }));
        }
        .boxed()
    };
    let (slow, store) = interleaved(folder.path(), &clock, "numbers/_delta_log/", before).await;
    let refused = append(&slow, &table, "stalled", 1, stalled.fence()).await;
    assert!(store.has_happened());
    assert!(matches!(refused, Err(LakeError::Superseded { generation: 1, newest: 2, .. })), "{refused:?}");
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Conflict);
    assert_eq!(quick.table(&spec().name).await.unwrap().unwrap().row_count(), Some(1));
}

#[tokio::test]
async fn a_commit_under_a_lease_that_is_over_is_refused_until_it_is_renewed() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), HandClock::new());
    let lake = lake(folder.path(), &clock).await;
    let table = lake.ensure_table(&spec()).await.unwrap();
    let mut lease = lake.lease(NAME, "one", LONG).await.unwrap().unwrap();
    let fence = lease.fence();
    clock.pass(60);
    let refused = append(&lake, &table, "one", 1, fence.clone()).await;
    assert!(matches!(refused, Err(LakeError::LeaseOver { .. })), "{refused:?}");
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Conflict);
    assert!(lease.renew().await.unwrap());
    let outcome = append(&lake, &table, "one", 1, fence.clone()).await.unwrap();
    assert!(matches!(outcome, CommitOutcome::Applied { .. }), "{outcome:?}");
    // Given back is over, too.
    lease.release().await.unwrap();
    let refused = append(&lake, &table, "one", 2, fence).await;
    assert!(matches!(refused, Err(LakeError::LeaseOver { .. })), "{refused:?}");
    assert_eq!(lake.table(&spec().name).await.unwrap().unwrap().row_count(), Some(1));
}

#[tokio::test]
async fn who_holds_leases_is_told_and_what_nobody_takes_again_goes() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), HandClock::new());
    let lake = lake(folder.path(), &clock).await;
    assert_eq!(lake.lease_holder("workers/one").await.unwrap(), None);
    let one = lake.lease("workers/one", "host a", LONG).await.unwrap().unwrap();
    let two = lake.lease("workers/two", "host b", LONG).await.unwrap().unwrap();
    let holder = lake.lease_holder("workers/one").await.unwrap().unwrap();
    assert_eq!((holder.owner.as_str(), holder.expires_at), ("host a", one.expires_at()));
    assert_eq!(lake.leases_below("workers").await.unwrap(), ["workers/one", "workers/two"]);
    two.release().await.unwrap();
    assert_eq!(lake.leases_below("workers").await.unwrap(), ["workers/one"]);
    clock.pass(67);
    assert_eq!(lake.lease_holder("workers/one").await.unwrap(), None);
    assert_eq!(lake.leases_below("workers").await.unwrap(), Vec::<String>::new());
    let left = || std::fs::read_dir(folder.path().join("_holdfast/leases/workers/one")).map_or(0, Iterator::count);
    assert!(left() > 0);
    clock.pass(3_600);
    lake.leases_below("workers").await.unwrap();
    assert_eq!(left(), 0);
}

#[tokio::test]
async fn a_commit_overtaken_by_its_own_successor_at_the_same_position_counts_once() {
    let (folder, clock) = (tempfile::tempdir().unwrap(), HandClock::new());
    let quick = lake(folder.path(), &clock).await;
    let table = quick.ensure_table(&spec()).await.unwrap();
    let stalled = quick.lease(NAME, "stalled", LONG).await.unwrap().unwrap();
    let before = {
        let (quick, table, clock) = (quick.clone(), table.clone(), clock.clone());
        async move {
            clock.pass(67);
            let successor = quick.lease(NAME, "successor", LONG).await.unwrap().unwrap();
            let outcome = append(&quick, &table, "shared", 1, successor.fence()).await.unwrap();
            assert!(matches!(outcome, CommitOutcome::Applied { .. }));
        }
        .boxed()
    };
    let (slow, store) = interleaved(folder.path(), &clock, "numbers/_delta_log/", before).await;
    let outcome = append(&slow, &table, "shared", 1, stalled.fence()).await.unwrap();
    assert!(store.has_happened());
    assert!(matches!(outcome, CommitOutcome::AlreadyApplied { .. }), "{outcome:?}");
    assert_eq!(quick.table(&spec().name).await.unwrap().unwrap().row_count(), Some(1));
}

/// A number from a seed: xorshift, for choices that can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

#[derive(Default)]
struct Worker {
    lease: Option<Lease>,
    /// The version it looked at last.
    table: Option<Table>,
    step: i64,
}

#[tokio::test]
async fn whatever_happens_in_whatever_order_one_holds_it_and_generations_never_go_back() {
    for seed in 1..=6_u64 {
        let (folder, clock) = (tempfile::tempdir().unwrap(), HandClock::new());
        let lake = lake(folder.path(), &clock).await;
        let table = lake.ensure_table(&spec()).await.unwrap();
        let mut dice = Dice(seed * 0x9E37_79B9);
        let mut workers: Vec<Worker> = (0..4).map(|_| Worker::default()).collect();
        let (mut highest, mut applied, mut refused) = (0, 0, 0);
        for _ in 0..150 {
            clock.pass(i64::try_from(dice.roll(25)).unwrap());
            let index = usize::try_from(dice.roll(4)).unwrap();
            let worker = &mut workers[index];
            match (dice.roll(8), worker.lease.take()) {
                (0, Some(lease)) => lease.release().await.unwrap(),
                (1 | 2, Some(mut lease)) => {
                    if lease.renew().await.unwrap() {
                        worker.lease = Some(lease);
                    }
                }
                (3, lease) => {
                    worker.table = lake.table(&spec().name).await.unwrap();
                    worker.lease = lease;
                }
                // Also past the end of the lease: a worker that stalls does not know.
                (_, Some(lease)) => {
                    worker.step += 1;
                    let decided_on = worker.table.as_ref().unwrap_or(&table);
                    let fence = lease.fence();
                    match append(&lake, decided_on, &format!("worker {index}"), worker.step, fence.clone()).await {
                        Ok(CommitOutcome::Applied { .. }) => {
                            assert!(fence.generation >= highest, "seed {seed}: {} after {highest}", fence.generation);
                            assert!(lease.is_running(), "seed {seed}: applied under a lease that is over");
                            highest = fence.generation;
                            applied += 1;
                            worker.lease = Some(lease);
                        }
                        Err(LakeError::Superseded { .. }) => {
                            assert!(fence.generation < highest, "seed {seed}: refused without a successor");
                            refused += 1;
                        }
                        Err(LakeError::LeaseOver { .. }) => {
                            assert!(!lease.is_running(), "seed {seed}: refused under a lease that is running");
                            worker.lease = Some(lease);
                            refused += 1;
                        }
                        other => panic!("seed {seed}: {other:?}"),
                    }
                }
                (_, None) => worker.lease = lake.lease(NAME, &format!("worker {index}"), LONG).await.unwrap(),
            }
            let running = workers.iter().flat_map(|worker| &worker.lease).filter(|lease| lease.is_running()).count();
            assert!(running <= 1, "seed {seed}: {running} hold it");
        }
        assert_eq!(lake.table(&spec().name).await.unwrap().unwrap().row_count(), Some(applied), "seed {seed}");
        assert!(applied > 10, "seed {seed}: {applied} applied, {refused} refused");
    }
}
