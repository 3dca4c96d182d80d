use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ballista_core::config::TaskSchedulingPolicy;
use ballista_core::error::BallistaError;
use ballista_scheduler::cluster::{BallistaCluster, ClusterStateEvent};
use ballista_scheduler::config::{SchedulerConfig, TaskDistributionPolicy};
use ballista_scheduler::scheduler_process::{create_scheduler, start_grpc_service_with_listener};
use ballista_scheduler::scheduler_server::SessionBuilder;
use datafusion::execution::SessionStateBuilder;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion_proto::protobuf::{LogicalPlanNode, PhysicalPlanNode};
use futures::StreamExt;
use holdfast_types::Progress;
use tokio::net::TcpListener;

use crate::Result;
use crate::codec::FunctionCodec;
use crate::error::ClusterError;
use crate::options::{MESSAGE_BYTES_MAX, check_version, worker_config};
use crate::slots::CountedSlots;
use crate::stores::Unread;

/// How long plans that are under way may take to end when the scheduler is told to stop.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// How often it is looked whether plans wait for executors that are gone.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How a scheduler is run.
#[derive(Debug, Clone)]
pub struct SchedulerSettings {
    /// Where it listens, `host:port`; port 0 takes any.
    pub listen: String,
    /// The name or address by which executors reach it; by default the one it listens on.
    pub advertise: Option<String>,
    /// An executor that is not heard of for so long is given up, and its tasks are given to others.
    pub executor_timeout: Duration,
}

/// Serves as a scheduler until what `ready` returned completes, then lets plans that are under way end.
///
/// `ready` is called with the address once the port is taken. Whoever reaches the port can run plans on the executors, with their credentials: there is no
/// authentication in Ballista.
///
/// # Errors
/// An address that cannot be listened on, or that executors could not use.
pub async fn serve_scheduler<Stop: Future<Output = ()> + Send>(
    settings: &SchedulerSettings,
    progress: &dyn Progress,
    ready: impl FnOnce(SocketAddr) -> Stop + Send,
) -> Result<()> {
    let bind = |source| ClusterError::Bind { address: settings.listen.clone(), source };
    let listener = TcpListener::bind(&settings.listen).await.map_err(bind)?;
    let address = listener.local_addr().map_err(bind)?;
    let host = match &settings.advertise {
        Some(name) => name.clone(),
        None if address.ip().is_unspecified() => {
            return Err(ClusterError::Setting {
                setting: "--advertise",
                reason: format!("executors report to the scheduler by a name, and {} is none: say which", address.ip()),
            });
        }
        None => bracketed(address),
    };
    let seconds = settings.executor_timeout.as_secs().max(2);
    let session_builder: SessionBuilder = Arc::new(|config| {
        check_version(&config, "scheduler")?;
        let runtime = RuntimeEnvBuilder::new().with_object_store_registry(Arc::new(Unread)).build_arc()?;
        let state = SessionStateBuilder::new().with_default_features().with_config(config).with_runtime_env(runtime);
        Ok(state.build())
    });
    let config = SchedulerConfig {
        external_host: host,
        bind_host: address.ip().to_string(),
        bind_port: address.port(),
        scheduling_policy: TaskSchedulingPolicy::PushStaged,
        // Executors are alike: each gets its share.
        task_distribution: TaskDistributionPolicy::RoundRobin,
        executor_timeout_seconds: seconds,
        expire_dead_executor_interval_seconds: (seconds / 4).max(1),
        no_executors_grace_period_seconds: seconds,
        // A part of a plan whose input is lost is not made up for: see below.
        stage_max_failures: 1,
        // One that was told to stop ends its tasks first.
        executor_termination_grace_period: seconds,
        grpc_server_max_decoding_message_size: MESSAGE_BYTES_MAX,
        grpc_server_max_encoding_message_size: MESSAGE_BYTES_MAX,
        grpc_client_max_message_size: MESSAGE_BYTES_MAX,
        override_config_producer: Some(Arc::new(worker_config)),
        override_session_builder: Some(session_builder),
        override_physical_codec: Some(Arc::new(FunctionCodec::of_scheduler())),
        ..SchedulerConfig::default()
    };
    let failed = |error: BallistaError| ClusterError::program("scheduler")(error);
    config.validate().map_err(failed)?;
    let cluster = BallistaCluster::new_from_config(&config).await.map_err(failed)?;
    let cluster = BallistaCluster::new(Arc::new(CountedSlots::new(cluster.cluster_state())), cluster.job_state());
    let scheduler =
        create_scheduler::<LogicalPlanNode, PhysicalPlanNode>(cluster, Arc::new(config)).await.map_err(failed)?;
    let mut events = scheduler.cluster_state_events().await.map_err(failed)?;
    let mut serve = Box::pin(start_grpc_service_with_listener(listener, scheduler.clone()));
    let mut stop = std::pin::pin!(ready(address));
    let mut stopping: Option<Instant> = None;
    let mut look = tokio::time::interval(Duration::from_millis(200));
    let mut gone: HashSet<String> = HashSet::new();
    let mut look_for_lost = tokio::time::interval(LOOK_EVERY);
    loop {
        tokio::select! {
            ended = &mut serve => return ended.map_err(failed),
            () = &mut stop, if stopping.is_none() => {
                stopping = Some(Instant::now());
                match scheduler.running_job_number() {
                    0 => return Ok(()),
                    count => progress.note(&format!("  Stopping once {count} plans are done")),
                }
            }
            event = events.next() => match event {
                Some(ClusterStateEvent::RegisteredExecutor { executor_id }) => {
                    progress.note(&format!("   Joined executor {executor_id}"));
                    gone.remove(&executor_id);
                }
                Some(ClusterStateEvent::RemovedExecutor { executor_id }) => {
                    progress.note(&format!("     Left executor {executor_id}"));
                    // What is under way may have lost rows with it. The driver gives the plan out again as a whole, which is one way less for rows to be wrong
                    // than making up for parts of it, and is what it does when rows are lost on their way to it, too.
                    for job in scheduler.state.task_manager.get_running_job_cache().keys() {
                        if let Err(error) = scheduler.cancel_job(job.clone()).await {
                            tracing::warn!(%error, "a plan could not be given up");
                        }
                    }
                    gone.insert(executor_id);
                }
                None => {}
            },
            // A plan that was being prepared when an executor went is not among those that are under way then, and may have been given a place there before: nobody would
            // ever tell of its tasks.
            _ = look_for_lost.tick(), if !gone.is_empty() => {
                for (job, info) in scheduler.state.task_manager.get_running_job_cache().iter() {
                    let tasks = info.execution_graph.read().await.running_tasks();
                    if tasks.iter().any(|task| gone.contains(&task.executor_id))
                        && let Err(error) = scheduler.cancel_job(job.clone()).await
                    {
                        tracing::warn!(%error, "a plan could not be given up");
                    }
                }
            }
            _ = look.tick(), if stopping.is_some() => {
                let is_late = stopping.is_some_and(|since| since.elapsed() > STOP_LIMIT);
                if is_late || scheduler.running_job_number() == 0 {
                    return Ok(());
                }
            }
        }
    }
}

/// An address as it stands in front of a port.
pub(crate) fn bracketed(address: SocketAddr) -> String {
    match address {
        SocketAddr::V4(address) => address.ip().to_string(),
        SocketAddr::V6(address) => format!("[{}]", address.ip()),
    }
}
