use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use async_trait::async_trait;
use ballista_core::JobId;
use ballista_core::error::Result;
use ballista_core::serde::protobuf::ExecutorHeartbeat;
use ballista_core::serde::scheduler::{ExecutorData, ExecutorMetadata};
use ballista_scheduler::cluster::{BoundTask, ClusterState, ClusterStateEventStream, ExecutorSlot};
use ballista_scheduler::config::TaskDistributionPolicy;
use ballista_scheduler::state::task_manager::JobInfoCache;
use tokio::sync::Mutex;

/// The state of a cluster, with places for tasks that are counted from the tasks there are.
///
/// Ballista gives a task's place back when it hears of the task's end. When an executor is lost, it takes tasks that read from it out of their plan, those on executors
/// that are there, too, and does not know them any more when they end: their places are gone for good, and plans that come later wait for ever. So before places are given
/// out, it is looked which of them tasks have, and all others are free.
pub(crate) struct CountedSlots {
    inner: Arc<dyn ClusterState>,
    slots: Mutex<HashMap<String, Slots>>,
}

/// Of one executor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slots {
    total: u32,
    /// As `inner` has it.
    free: u32,
}

impl Slots {
    /// How many places to give back, where tasks have `busy` of them.
    fn lost(self, busy: u32) -> u32 {
        self.total.saturating_sub(busy).saturating_sub(self.free)
    }
}

impl CountedSlots {
    pub(crate) fn new(inner: Arc<dyn ClusterState>) -> Self {
        Self { inner, slots: Mutex::default() }
    }

    async fn give_back_lost(
        &self,
        slots: &mut HashMap<String, Slots>,
        jobs: &HashMap<JobId, JobInfoCache>,
    ) -> Result<()> {
        let mut busy: HashMap<String, u32> = HashMap::new();
        for job in jobs.values() {
            let graph = job.execution_graph.read().await;
            for task in graph.running_tasks() {
                let places = graph.task_vcores(task.stage_id, task.task_id).unwrap_or(1);
                *busy.entry(task.executor_id).or_default() += places;
            }
        }
        let mut lost: Vec<ExecutorSlot> = Vec::new();
        for (executor, slots) in slots.iter_mut() {
            let places = slots.lost(busy.get(executor).copied().unwrap_or(0));
            if places > 0 {
                tracing::info!(%executor, places, "places that no task has are free again");
                slots.free += places;
                lost.push((executor.clone(), places));
            }
        }
        if lost.is_empty() { Ok(()) } else { self.inner.unbind_tasks(lost).await }
    }
}

#[async_trait]
impl ClusterState for CountedSlots {
    async fn init(&self) -> Result<()> {
        self.inner.init().await
    }

    async fn bind_schedulable_tasks(
        &self,
        distribution: TaskDistributionPolicy,
        active_jobs: Arc<HashMap<JobId, JobInfoCache>>,
        executors: Option<HashSet<String>>,
    ) -> Result<Vec<BoundTask>> {
        let mut slots = self.slots.lock().await;
        self.give_back_lost(&mut slots, &active_jobs).await?;
        let bound = self.inner.bind_schedulable_tasks(distribution, active_jobs, executors).await?;
        for (executor, task) in &bound {
            if let Some(slots) = slots.get_mut(executor) {
                slots.free = slots.free.saturating_sub(task.vcores_consumed);
            }
        }
        Ok(bound)
    }

    async fn unbind_tasks(&self, executor_slots: Vec<ExecutorSlot>) -> Result<()> {
        let mut slots = self.slots.lock().await;
        // A task that is refused is given back twice: as one that did not start, and as one of a plan that is given up.
        let given_back = executor_slots
            .into_iter()
            .map(|(executor, places)| match slots.get_mut(&executor) {
                Some(slots) => {
                    let places = places.min(slots.total.saturating_sub(slots.free));
                    slots.free += places;
                    (executor, places)
                }
                None => (executor, places),
            })
            .collect();
        self.inner.unbind_tasks(given_back).await
    }

    async fn register_executor(&self, metadata: ExecutorMetadata, spec: ExecutorData) -> Result<()> {
        let mut slots = self.slots.lock().await;
        let (executor, counted) =
            (spec.executor_id.clone(), Slots { total: spec.total_vcores, free: spec.available_vcores });
        self.inner.register_executor(metadata, spec).await?;
        slots.insert(executor, counted);
        Ok(())
    }

    async fn save_executor_metadata(&self, metadata: ExecutorMetadata) -> Result<()> {
        self.inner.save_executor_metadata(metadata).await
    }

    async fn get_executor_metadata(&self, executor_id: &str) -> Result<ExecutorMetadata> {
        self.inner.get_executor_metadata(executor_id).await
    }

    async fn registered_executor_metadata(&self) -> Vec<ExecutorMetadata> {
        self.inner.registered_executor_metadata().await
    }

    async fn save_executor_heartbeat(&self, heartbeat: ExecutorHeartbeat) -> Result<()> {
        self.inner.save_executor_heartbeat(heartbeat).await
    }

    async fn remove_executor(&self, executor_id: &str) -> Result<()> {
        let mut slots = self.slots.lock().await;
        slots.remove(executor_id);
        self.inner.remove_executor(executor_id).await
    }

    fn executor_heartbeats(&self) -> HashMap<String, ExecutorHeartbeat> {
        self.inner.executor_heartbeats()
    }

    fn get_executor_heartbeat(&self, executor_id: &str) -> Option<ExecutorHeartbeat> {
        self.inner.get_executor_heartbeat(executor_id)
    }

    async fn cluster_state_events(&self) -> Result<ClusterStateEventStream> {
        self.inner.cluster_state_events().await
    }
}

#[cfg(test)]
mod tests {
    use ballista_core::serde::scheduler::{ExecutorOperatingSystemSpecification, ExecutorSpecification};
    use ballista_scheduler::cluster::BallistaCluster;
    use ballista_scheduler::config::SchedulerConfig;
    use ballista_scheduler::planner::DefaultDistributedPlanner;
    use ballista_scheduler::state::execution_graph::{ExecutionGraph, StaticExecutionGraph};
    use datafusion::arrow::datatypes::Schema;
    use datafusion::physical_plan::ExecutionPlan;
    use datafusion::physical_plan::empty::EmptyExec;
    use datafusion::prelude::SessionConfig;

    use super::*;

    /// A plan of one task, ready to be run.
    fn job(id: &str) -> HashMap<JobId, JobInfoCache> {
        let id = JobId::new(id);
        let plan: Arc<dyn ExecutionPlan> = Arc::new(EmptyExec::new(Arc::new(Schema::empty())));
        let config = Arc::new(SessionConfig::new());
        let mut planner = DefaultDistributedPlanner::new();
        let mut graph =
            StaticExecutionGraph::new("scheduler", &id, "job", "session", plan, 0, config, &mut planner, None).unwrap();
        graph.revive();
        HashMap::from([(id, JobInfoCache::new(Box::new(graph)))])
    }

    async fn cluster() -> Arc<dyn ClusterState> {
        BallistaCluster::new_from_config(&SchedulerConfig::default()).await.unwrap().cluster_state()
    }

    async fn with_one_executor(cluster: &dyn ClusterState) {
        let metadata = ExecutorMetadata {
            id: "a".to_owned(),
            host: "127.0.0.1".to_owned(),
            port: 1,
            grpc_port: 2,
            specification: ExecutorSpecification::default().with_vcores(1),
            os_info: ExecutorOperatingSystemSpecification::default(),
        };
        let spec = ExecutorData { executor_id: "a".to_owned(), total_vcores: 1, available_vcores: 1 };
        cluster.register_executor(metadata, spec).await.unwrap();
    }

    async fn bound(cluster: &dyn ClusterState, jobs: HashMap<JobId, JobInfoCache>) -> u32 {
        let policy = TaskDistributionPolicy::RoundRobin;
        let bound = cluster.bind_schedulable_tasks(policy, Arc::new(jobs), None).await.unwrap();
        bound.iter().map(|(_, task)| task.vcores_consumed).sum()
    }

    #[tokio::test]
    async fn places_of_tasks_that_nobody_knows_any_more_are_given_out_again() {
        // What Ballista does by itself: with its plan gone, a task's place is gone, too.
        let cluster_alone = cluster().await;
        with_one_executor(cluster_alone.as_ref()).await;
        assert_eq!(bound(cluster_alone.as_ref(), job("first")).await, 1);
        assert_eq!(
            bound(cluster_alone.as_ref(), job("second")).await,
            0,
            "Ballista counts tasks itself: this file can go"
        );

        let counted = CountedSlots::new(cluster().await);
        with_one_executor(&counted).await;
        let mut jobs = job("first");
        assert_eq!(bound(&counted, jobs.clone()).await, 1);
        // Places that tasks have are not given out twice.
        jobs.extend(job("second"));
        assert_eq!(bound(&counted, jobs).await, 0);
        assert_eq!(bound(&counted, job("third")).await, 1);
    }

    #[tokio::test]
    async fn places_given_back_twice_are_places_once() {
        let counted = CountedSlots::new(cluster().await);
        with_one_executor(&counted).await;
        assert_eq!(bound(&counted, job("first")).await, 1);
        for _ in 0..2 {
            counted.unbind_tasks(vec![("a".to_owned(), 1)]).await.unwrap();
        }
        let mut jobs = job("second");
        jobs.extend(job("third"));
        assert_eq!(bound(&counted, jobs).await, 1);
    }
}
