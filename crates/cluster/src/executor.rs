use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ballista_core::RuntimeProducer;
use ballista_core::config::TaskSchedulingPolicy;
use ballista_executor::executor_process::{ExecutorProcessConfig, start_executor_process};
use ballista_executor::health::ExecutorHealth;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use holdfast_engine::OwnFunction;
use holdfast_lake::StoreOptions;
use holdfast_types::{ErrorKind, Progress};
use tokio::net::TcpListener;

use crate::Result;
use crate::address::Address;
use crate::codec::FunctionCodec;
use crate::error::ClusterError;
use crate::options::{MESSAGE_BYTES_MAX, check_version, known_functions, worker_config};
use crate::probe::{Probed, probe};
use crate::scheduler::bracketed;
use crate::stores::Stores;

/// How often a scheduler that does not answer is asked again.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How often an executor says that it is there. After five failures in a row it gives up.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// How long rows on their way are kept of a plan whose end nobody told.
const KEPT_FOR: Duration = Duration::from_secs(6 * 60 * 60);
/// How often it is looked for such.
const SWEPT_EVERY: Duration = Duration::from_secs(10 * 60);

/// How an executor is run.
#[derive(Debug, Clone)]
pub struct ExecutorSettings {
    /// Its scheduler.
    pub scheduler: Address,
    /// How long to wait for it.
    pub wait: Duration,
    /// Where it gives rows to others, `host:port`; port 0 takes any.
    pub listen: String,
    /// Where it takes tasks, on the same host; by default the port after the one of `listen`.
    pub task_port: Option<u16>,
    /// The name or address by which the scheduler, other executors and drivers reach it; by default the one it listens on.
    pub advertise: Option<String>,
    /// Where rows on their way and what does not fit into memory are kept.
    pub work_dir: PathBuf,
    /// The memory that all its tasks share, each its part, in bytes.
    pub memory_bytes: usize,
    /// How many tasks it runs at once.
    pub tasks: usize,
    /// Functions of plans that neither DataFusion nor the engine has.
    pub functions: Vec<OwnFunction>,
    /// Settings of object stores, credentials among them.
    pub stores: StoreOptions,
}

/// Serves as an executor until what `ready` returned completes, or the scheduler is lost. It lets its tasks end first.
///
/// `ready` is called with its address once the scheduler has it. Whoever reaches its ports can read rows on their way: there is no authentication in Ballista.
///
/// # Errors
/// Addresses and folders that cannot be used, and a scheduler that does not answer.
pub async fn serve_executor<Stop: Future<Output = ()> + Send>(
    settings: ExecutorSettings,
    progress: &dyn Progress,
    ready: impl FnOnce(SocketAddr) -> Stop + Send,
) -> Result<()> {
    let address = free(&settings.listen).await?;
    let task_port = match settings.task_port {
        Some(port) => port,
        None if settings.listen.ends_with(":0") => 0,
        None => address.port().checked_add(1).unwrap_or(0),
    };
    let tasks_at = free(&format!("{}:{task_port}", bracketed(address))).await?;
    let work_dir = settings.work_dir.join(format!("holdfast-executor-{}", address.port()));
    // What Ballista finds in its folder and does not know it deletes after a while.
    let (shuffled, spilled) = (work_dir.join("shuffled"), work_dir.join("spilled"));
    prepare(&work_dir, [&shuffled, &spilled])
        .map_err(|source| ClusterError::WorkFolder { path: work_dir.clone(), source })?;
    find_scheduler(&settings.scheduler, settings.wait, progress).await?;

    let health = ExecutorHealth::new();
    let config = ExecutorProcessConfig {
        bind_host: bracketed(address),
        external_host: match &settings.advertise {
            Some(name) => Some(name.clone()),
            // By the address that the scheduler sees it come from.
            None if address.ip().is_unspecified() => None,
            None => Some(bracketed(address)),
        },
        port: address.port(),
        grpc_port: tasks_at.port(),
        scheduler_host: settings.scheduler.host.clone(),
        scheduler_port: settings.scheduler.port,
        vcores: settings.tasks.max(1),
        task_scheduling_policy: TaskSchedulingPolicy::PushStaged,
        work_dir: Some(shuffled.display().to_string()),
        job_data_ttl_seconds: KEPT_FOR.as_secs(),
        job_data_clean_up_interval_seconds: SWEPT_EVERY.as_secs(),
        grpc_max_decoding_message_size: MESSAGE_BYTES_MAX,
        grpc_max_encoding_message_size: MESSAGE_BYTES_MAX,
        executor_heartbeat_interval_seconds: HEARTBEAT.as_secs(),
        memory_pool_size: Some(settings.memory_bytes as u64),
        override_function_registry: Some(Arc::new(known_functions())),
        override_config_producer: Some(Arc::new(worker_config)),
        override_runtime_producer: Some(runtimes(&spilled, settings.stores)?),
        override_physical_codec: Some(Arc::new(FunctionCodec::of_executor(settings.functions))),
        health: health.clone(),
        ..ExecutorProcessConfig::default()
    };

    let mut work = Box::pin(start_executor_process(Arc::new(config)));
    // Ballista listens to the same signals, and ends by itself then.
    let is_told = AtomicBool::new(false);
    let told = async {
        while !health.is_ready() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        ready(address).await;
        is_told.store(true, Ordering::Release);
        std::future::pending::<()>().await;
    };
    let ended = tokio::select! {
        ended = &mut work => ended,
        () = told => Ok(()),
    };
    let _ = std::fs::remove_dir_all(&work_dir);
    let is_told = is_told.load(Ordering::Acquire);
    match ended {
        Ok(()) if is_told || health.is_ready() => Ok(()),
        Ok(()) => Err(ClusterError::SchedulerLost { scheduler: settings.scheduler.to_string() }),
        Err(error) => Err(ClusterError::program("executor")(error)),
    }
}

/// The address, if it can be listened on. It is let go again: who serves takes it.
async fn free(listen: &str) -> Result<SocketAddr> {
    let bind = |source| ClusterError::Bind { address: listen.to_owned(), source };
    let listener = TcpListener::bind(listen).await.map_err(bind)?;
    listener.local_addr().map_err(bind)
}

/// Empty folders: what is in them is of a process that had the port before and is gone.
fn prepare(work_dir: &Path, folders: [&Path; 2]) -> std::io::Result<()> {
    match std::fs::remove_dir_all(work_dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    folders.into_iter().try_for_each(std::fs::create_dir_all)
}

async fn find_scheduler(scheduler: &Address, wait: Duration, progress: &dyn Progress) -> Result<()> {
    let started = Instant::now();
    let mut told = false;
    loop {
        match probe(scheduler).await {
            Probed::Ready | Probed::NoExecutors => return Ok(()),
            Probed::Stranger(reason) => {
                let reason = format!("{scheduler}: {reason}");
                return Err(ClusterError::Program { program: "executor", reason, kind: ErrorKind::InvalidConfig });
            }
            Probed::Nobody(reason) if started.elapsed() >= wait => {
                let reason = format!(
                    "no scheduler answers at {scheduler} ({reason}): start it with `holdfast cluster scheduler`"
                );
                return Err(ClusterError::Program { program: "executor", reason, kind: ErrorKind::Retry });
            }
            Probed::Nobody(_) => {
                if !std::mem::replace(&mut told, true) {
                    progress.note(&format!("  Waiting for the scheduler at {scheduler}"));
                }
                tokio::time::sleep(ASK_EVERY).await;
            }
        }
    }
}

/// What plans run in: one set of stores and footers for all of them. Ballista gives each task memory of its own.
fn runtimes(spilled: &Path, stores: StoreOptions) -> Result<RuntimeProducer> {
    let runtime = RuntimeEnvBuilder::new()
        .with_temp_file_path(spilled)
        .with_object_store_registry(Arc::new(Stores::new(stores)))
        .build_arc()
        .map_err(|error| ClusterError::Program {
            program: "executor",
            reason: error.strip_backtrace(),
            kind: ErrorKind::Bug,
        })?;
    Ok(Arc::new(move |config| {
        check_version(config, "executor")?;
        Ok(Arc::clone(&runtime))
    }))
}
