use std::fmt;

use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryPool, MemoryReservation};

/// What DataFusion calls those who pass rows from one set of partitions to another.
const BETWEEN_PARTITIONS: &str = "RepartitionExec[";

/// A pool over another one that leaves those who pass rows between partitions out of account, so that they never spill.
///
/// Their spilling can stop a query for ever: a reader waits for the oldest of the open spill files while what it needs is in a
/// newer one (apache/datafusion#24883; the versions here have it). They hold little, since they wait once every partition has
/// something to read. Where one partition is read long after the others it is more; counted, it would leave nothing for the sorts
/// and joins that are to read it, and a query that could go on would fail.
#[derive(Debug)]
pub(crate) struct FreeBetweenPartitions<P>(pub(crate) P);

impl<P: MemoryPool> fmt::Display for FreeBetweenPartitions<P> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl<P: MemoryPool> MemoryPool for FreeBetweenPartitions<P> {
    fn name(&self) -> &str {
        self.0.name()
    }

    fn register(&self, consumer: &MemoryConsumer) {
        if !is_between_partitions(consumer) {
            self.0.register(consumer);
        }
    }

    fn unregister(&self, consumer: &MemoryConsumer) {
        if !is_between_partitions(consumer) {
            self.0.unregister(consumer);
        }
    }

    fn grow(&self, reservation: &MemoryReservation, additional: usize) {
        if !is_between_partitions(reservation.consumer()) {
            self.0.grow(reservation, additional);
        }
    }

    fn shrink(&self, reservation: &MemoryReservation, shrink: usize) {
        if !is_between_partitions(reservation.consumer()) {
            self.0.shrink(reservation, shrink);
        }
    }

    fn try_grow(&self, reservation: &MemoryReservation, additional: usize) -> Result<(), DataFusionError> {
        if is_between_partitions(reservation.consumer()) { Ok(()) } else { self.0.try_grow(reservation, additional) }
    }

    fn reserved(&self) -> usize {
        self.0.reserved()
    }

    fn memory_limit(&self) -> MemoryLimit {
        self.0.memory_limit()
    }
}

fn is_between_partitions(consumer: &MemoryConsumer) -> bool {
    consumer.can_spill() && consumer.name().starts_with(BETWEEN_PARTITIONS)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use datafusion::execution::memory_pool::FairSpillPool;
    use datafusion::execution::runtime_env::RuntimeEnvBuilder;
    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    #[expect(clippy::disallowed_methods, reason = "a session over no lake")]
    async fn queries_in_too_little_memory_come_to_an_end() {
        let pool = FreeBetweenPartitions(FairSpillPool::new(2 << 20));
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
}
