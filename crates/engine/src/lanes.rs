//! Which threads the queries of readers run on.
//!
//! Large queries take whatever processors there are. So that a small one between them has its answer as soon as if it were alone, they run on threads of their own, as many as there are
//! processors, to which the system gives what others leave: alone on the machine they are as quick as before.

use std::sync::OnceLock;
use std::thread::available_parallelism;

use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use datafusion::physical_plan::union::{InterleaveExec, UnionExec};
use thread_priority::{ThreadPriority, set_current_thread_priority};
use tokio::runtime::{Builder, Handle, Runtime};

/// Rows that a query looks at before it is large: some ten milliseconds of work.
const LARGE_FROM: u64 = 500_000;

/// Of 99, where 49 is what threads have by themselves: nice 11 on Linux, a tenth of the weight of other threads.
const PRIORITY: u8 = 20;

/// Where a plan is to be executed: what it spawns is spawned there, too.
pub fn lane_of(plan: &dyn ExecutionPlan) -> Handle {
    if is_large(plan) { large_lane() } else { Handle::current() }
}

/// Whether a plan may look at half a million rows, with each row of one side of a join meeting each row of the other. Nothing depends on it but who waits for whom.
pub fn is_large(plan: &dyn ExecutionPlan) -> bool {
    work(plan).is_none_or(|work| work.looked_at >= LARGE_FROM)
}

/// Where large plans are executed.
pub fn large_lane() -> Handle {
    static LANE: OnceLock<Option<Runtime>> = OnceLock::new();
    let lane = LANE.get_or_init(|| {
        let threads = available_parallelism().map_or(1, usize::from);
        let lane = Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name("holdfast-large")
            .on_thread_start(|| {
                let lowered = ThreadPriority::try_from(PRIORITY).map(set_current_thread_priority);
                if !matches!(lowered, Ok(Ok(()))) {
                    tracing::debug!("threads of large queries have the priority of all others");
                }
            })
            .enable_all()
            .build();
        lane.inspect_err(|error| tracing::warn!(%error, "large queries run among all others")).ok()
    });
    lane.as_ref().map_or_else(Handle::current, |lane| lane.handle().clone())
}

/// At most.
struct Work {
    given: u64,
    looked_at: u64,
}

/// `None` where nobody knows how many rows there are.
fn work(plan: &dyn ExecutionPlan) -> Option<Work> {
    let children = plan.children();
    if children.is_empty() {
        let rows =
            StatisticsContext::new().compute(plan, &StatisticsArgs::new()).ok()?.num_rows.get_value().copied()?;
        let rows = u64::try_from(rows).ok()?;
        return Some(Work { given: rows, looked_at: rows });
    }
    let is_sum = plan.is::<UnionExec>() || plan.is::<InterleaveExec>();
    let mut all = Work { given: u64::from(!is_sum), looked_at: 0 };
    let is_join = children.len() > 1 && !is_sum;
    for child in children {
        let child = work(child.as_ref())?;
        all.looked_at = all.looked_at.saturating_add(child.looked_at);
        all.given = if is_sum { all.given.saturating_add(child.given) } else { all.given.saturating_mul(child.given) };
    }
    if is_join {
        all.looked_at = all.looked_at.saturating_add(all.given);
    }
    if let Some(fetch) = plan.fetch() {
        all.given = all.given.min(fetch as u64);
    }
    Some(all)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use datafusion::prelude::{SessionConfig, SessionContext};

    use super::*;

    #[expect(clippy::disallowed_methods, reason = "a session over no lake")]
    async fn plan(sql: &str) -> Arc<dyn ExecutionPlan> {
        let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(2));
        context
            .sql("create table few as select * from (values (1), (2), (3)) as t(a)")
            .await
            .unwrap()
            .collect()
            .await
            .unwrap();
        context
            .sql("create table many as select a.value as a from generate_series(1, 1000) as a")
            .await
            .unwrap()
            .collect()
            .await
            .unwrap();
        context.sql(sql).await.unwrap().create_physical_plan().await.unwrap()
    }

    #[tokio::test]
    async fn plans_are_large_by_the_rows_that_they_may_look_at() {
        for small in [
            "select count(*) from many",
            "select * from few join few as others using (a)",
            "select a from few union all select a from many order by a",
            "select 1",
        ] {
            assert!(!is_large(plan(small).await.as_ref()), "{small}");
        }
        for large in [
            "select count(*) from many join many as others on many.a = others.a",
            "select * from generate_series(1, 10) as a",
        ] {
            assert!(is_large(plan(large).await.as_ref()), "{large}");
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn large_plans_have_threads_of_lower_priority() {
        let nice = || {
            let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let fields = stat.rsplit(')').next().unwrap();
            fields.split_whitespace().nth(16).unwrap().parse::<i32>().unwrap()
        };
        let there = large_lane().spawn(async move { (nice(), std::thread::current().name().map(str::to_owned)) });
        let (lowered, name) = there.await.unwrap();
        assert_eq!(name.as_deref(), Some("holdfast-large"));
        assert!(lowered > nice(), "{lowered}");
    }
}
