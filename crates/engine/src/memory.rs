use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::{
    MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation, human_readable_size,
};

/// What DataFusion calls those who pass rows from one set of partitions to another.
const BETWEEN_PARTITIONS: &str = "RepartitionExec[";

/// What DataFusion calls a sort's merging of what it has spilled, or of what it holds.
const MERGE: &str = "ExternalSorterMerge[";

/// A pool of memory for operators that can go on with little and for those that cannot.
///
/// Whoever can go to disk gets an equal share, as in DataFusion's fair pool, but all of them together leave a quarter of the pool to
/// those who cannot. Shares get smaller when others come or take more; what somebody held before is left to him, so that for a while
/// more is given out than there is.
///
/// A sort that has spilled must merge what it spilled, in memory that it asks for anew at each level of merging, while other sorts of
/// the plan are still filling theirs and others merge. In the fair pool it may find nothing left, and a query that could go on fails. So a merge gets
/// what it asks for as long as those who cannot go to disk have less than the pool together: the sorts beside it find their shares
/// smaller, and spill.
///
/// Those who pass rows between partitions are left out of account, so that they never spill. Their spilling can stop a query for
/// ever: a reader waits for the oldest of the open spill files while what it needs is in a newer one (apache/datafusion#24883; the
/// versions here have it). They hold little, since they wait once every partition has something to read. Where one partition is read
/// long after the others it is more; counted, it would leave nothing for the sorts and joins that are to read it.
#[derive(Debug)]
pub(crate) struct StagePool {
    bytes: usize,
    held: Mutex<Held>,
}

/// What is given out, in bytes.
#[derive(Debug, Default)]
struct Held {
    /// How many there are that can go to disk.
    spillers: usize,
    spillable: usize,
    unspillable: usize,
}

/// How an operator's memory is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Account {
    None,
    Spillable,
    Unspillable,
    /// As unspillable, with the right of way.
    Merge,
}

impl StagePool {
    pub(crate) fn new(bytes: usize) -> Self {
        Self { bytes, held: Mutex::default() }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    fn of(&mut self, account: Account) -> Option<&mut usize> {
        match account {
            Account::None => None,
            Account::Spillable => Some(&mut self.spillable),
            Account::Unspillable | Account::Merge => Some(&mut self.unspillable),
        }
    }
}

impl fmt::Display for StagePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} of {}", self.name(), human_readable_size(self.bytes))
    }
}

impl MemoryPool for StagePool {
    fn name(&self) -> &str {
        "stages"
    }

    fn register(&self, consumer: &MemoryConsumer) {
        if account_of(consumer) == Account::Spillable {
            self.held().spillers += 1;
        }
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        if account_of(consumer) == Account::Spillable {
            self.held().spillers -= 1;
        }
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        if let Some(held) = self.held().of(account_of(reservation.consumer())) {
            *held += additional;
        }
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        if let Some(held) = self.held().of(account_of(reservation.consumer())) {
            *held -= shrink;
        }
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<(), DataFusionError> {
        let account = account_of(reservation.consumer());
        let mut held = self.held();
        let available = match account {
            Account::None => return Ok(()),
            Account::Spillable => {
                let for_all = self.bytes.saturating_sub(held.unspillable.max(self.bytes / 4));
                (for_all / held.spillers.max(1)).saturating_sub(reservation.size())
            }
            Account::Unspillable => self.bytes.saturating_sub(held.spillable + held.unspillable),
            Account::Merge => self.bytes.saturating_sub(held.unspillable),
        };
        if additional > available {
            return Err(DataFusionError::ResourcesExhausted(format!(
                "{} holds {} and asks for {} more where {} are left for it in a pool of {}",
                reservation.consumer().name(),
                human_readable_size(reservation.size()),
                human_readable_size(additional),
                human_readable_size(available),
                human_readable_size(self.bytes),
            )));
        }
        if let Some(held) = held.of(account) {
            *held += additional;
        }
        Ok(())
    }

    fn reserved(&self) -> usize {
        let held = self.held();
        held.spillable + held.unspillable
    }

    fn memory_limit(&self) -> MemoryLimit {
        MemoryLimit::Finite(self.bytes)
    }
}

fn account_of(consumer: &MemoryConsumer) -> Account {
    match consumer.can_spill() {
        true if consumer.name().starts_with(BETWEEN_PARTITIONS) => Account::None,
        true => Account::Spillable,
        false if consumer.name().starts_with(MERGE) => Account::Merge,
        false => Account::Unspillable,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use datafusion::execution::runtime_env::RuntimeEnvBuilder;
    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[expect(clippy::disallowed_methods, reason = "a session over no lake")]
    async fn queries_in_too_little_memory_come_to_an_end() {
        let pool = StagePool::new(2 << 20);
        let runtime = RuntimeEnvBuilder::new().with_memory_pool(Arc::new(pool)).build_arc().unwrap();
        let config = SessionConfig::new().with_target_partitions(2).with_batch_size(64);
        let context = SessionContext::new_with_config_rt(config, runtime);
        let rows = "select v % 13 as g, md5(cast(v % 337 as varchar)) as id from generate_series(1, 40000) as s(v)";
        context.sql(&format!("create table t as {rows}")).await.unwrap().collect().await.unwrap();
        for attempt in 0..20 {
            let query = context.sql("select g, count(distinct id) as n from t group by g").await.unwrap();
            let ended = tokio::time::timeout(Duration::from_secs(60), query.collect()).await;
            let rows: usize = ended.expect("the query stands still").unwrap().iter().map(|rows| rows.num_rows()).sum();
            assert_eq!(rows, 13, "attempt {attempt}");
        }
    }

    #[test]
    fn those_who_can_go_to_disk_leave_room_for_those_who_cannot() {
        let pool: Arc<dyn MemoryPool> = Arc::new(StagePool::new(1_000));
        let spiller = |name: &str| MemoryConsumer::new(name).with_can_spill(true).register(&pool);
        let (first, second) = (spiller("first"), spiller("second"));
        first.try_grow(375).unwrap();
        assert!(first.try_grow(1).is_err(), "half of three quarters is its share");
        second.try_grow(375).unwrap();

        let other = |name: &str| MemoryConsumer::new(name).register(&pool);
        let (join, merge) = (other("HashJoinInput"), other("ExternalSorterMerge[0]"));
        join.try_grow(250).unwrap();
        assert!(join.try_grow(1).is_err(), "all is given out");
        let between = spiller("RepartitionExec[0]");
        between.try_grow(10_000).unwrap();
        assert_eq!(pool.reserved(), 1_000);

        merge.try_grow(150).unwrap();
        second.free();
        assert!(second.try_grow(301).is_err(), "600 are left for two");
        second.try_grow(300).unwrap();
        merge.try_grow(600).unwrap();
        assert!(merge.try_grow(1).is_err(), "no more than there is for those who cannot go to disk");
        assert!(second.try_grow(1).is_err());
        drop((first, join, merge, between));
        second.try_grow(450).unwrap();
        drop(second);
        assert_eq!(pool.reserved(), 0);
    }
}
