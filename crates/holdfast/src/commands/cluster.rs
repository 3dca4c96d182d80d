//! The two programs of a cluster that stages can be given to. `holdfast run --cluster` is its driver.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use holdfast_cluster::{Address, ExecutorSettings, SchedulerSettings, serve_executor, serve_scheduler};
use holdfast_engine::OwnFunction;
use holdfast_lake::StoreOptions;
use holdfast_types::Progress;

use super::stop_signal;
use crate::error::CliError;
use crate::progress::Terminal;
use crate::project::{Project, ProjectArgs, memory_bytes_of};

/// Run the programs of a Ballista cluster, to which `run --cluster` gives stages
///
/// Neither asks who somebody is: keep their ports within a private network. docs/cluster.md says what runs where.
#[derive(Debug, clap::Args)]
pub(crate) struct ClusterArgs {
    #[command(subcommand)]
    program: Program,
}

#[derive(Debug, clap::Subcommand)]
enum Program {
    Scheduler(SchedulerArgs),
    Executor(ExecutorArgs),
}

/// Divide plans into tasks and give them to executors. Its state is in memory: what is under way is lost with it, and the run does it again
#[derive(Debug, clap::Args)]
struct SchedulerArgs {
    /// The address to listen on
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:50050")]
    listen: String,
    /// The name or address by which executors reach it [default: the one it listens on]
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    /// An executor that is not heard of for so long is given up, and others do its tasks, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(4..=3_600))]
    executor_timeout_s: u64,
}

/// Run tasks: read Parquet from the object store, with the store settings of its own environment
///
/// Stages that make identifier tokens run here only where the project's folder and its identity key are, as for the driver.
#[derive(Debug, clap::Args)]
struct ExecutorArgs {
    /// The scheduler: df://host:port
    #[arg(long, value_name = "URL")]
    scheduler: Address,
    /// The address to give rows to others on
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:50051")]
    listen: String,
    /// The port to take tasks on, on the same host [default: the one after that of --listen]
    #[arg(long, value_name = "PORT")]
    task_port: Option<u16>,
    /// The name or address by which the scheduler, other executors and drivers reach it [default: the one it listens on, or comes from]
    #[arg(long, value_name = "HOST")]
    advertise: Option<String>,
    /// The folder for rows on their way and for what does not fit into memory [default: one that is deleted at the end]
    #[arg(long, value_name = "DIR")]
    work_dir: Option<PathBuf>,
    /// The memory that all tasks share, each its part, in MiB [default: half of the machine's or container's]
    #[arg(long, value_name = "MB", value_parser = clap::value_parser!(u64).range(64..))]
    memory_mb: Option<u64>,
    /// How many tasks to run at once [default: the number of cores]
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u16).range(1..))]
    tasks: Option<u16>,
    /// How long to wait for the scheduler, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    wait_s: u64,
}

pub(crate) async fn run(
    args: &ClusterArgs,
    project: &ProjectArgs,
    stores: StoreOptions,
    terminal: &Arc<Terminal>,
) -> Result<(), CliError> {
    match &args.program {
        Program::Scheduler(args) => scheduler(args, terminal).await,
        Program::Executor(args) => executor(args, project, stores, terminal).await,
    }
}

async fn scheduler(args: &SchedulerArgs, terminal: &Arc<Terminal>) -> Result<(), CliError> {
    let settings = SchedulerSettings {
        listen: args.listen.clone(),
        advertise: args.advertise.clone(),
        executor_timeout: Duration::from_secs(args.executor_timeout_s),
    };
    let ready = |address: std::net::SocketAddr| {
        // Before anybody is told: who reads the line may stop it at once.
        let stop = stop_signal();
        terminal.note(&format!("  Scheduling on df://{address}, {}, Ctrl-C stops", reach(address.ip())));
        stop
    };
    Box::pin(serve_scheduler(&settings, terminal.as_ref(), ready)).await?;
    terminal.note("  Stopped");
    Ok(())
}

async fn executor(
    args: &ExecutorArgs,
    project: &ProjectArgs,
    stores: StoreOptions,
    terminal: &Arc<Terminal>,
) -> Result<(), CliError> {
    let functions = functions(project, &stores, terminal)?;
    // Deleted at the end.
    let (_folder, work_dir) = match &args.work_dir {
        Some(work_dir) => (None, std::path::absolute(work_dir).map_err(unusable(work_dir))?),
        None => {
            let folder = tempfile::tempdir().map_err(unusable(&std::env::temp_dir()))?;
            let path = folder.path().to_owned();
            (Some(folder), path)
        }
    };
    let tasks = args.tasks.map_or_else(|| std::thread::available_parallelism().map_or(2, usize::from), usize::from);
    let memory_bytes =
        args.memory_mb.map_or_else(|| memory_bytes_of(2), |mb| usize::try_from(mb << 20).unwrap_or(usize::MAX));
    let settings = ExecutorSettings {
        scheduler: args.scheduler.clone(),
        wait: Duration::from_secs(args.wait_s),
        listen: args.listen.clone(),
        task_port: args.task_port,
        advertise: args.advertise.clone(),
        work_dir,
        memory_bytes,
        tasks,
        functions,
        stores,
    };
    let ready = |address: std::net::SocketAddr| {
        let stop = stop_signal();
        terminal.note(&format!(
            "  Executing for {} on {address}, {tasks} tasks at once in {} MB, {}, Ctrl-C stops",
            args.scheduler,
            memory_bytes >> 20,
            reach(address.ip())
        ));
        stop
    };
    Box::pin(serve_executor(settings, terminal.as_ref(), ready)).await?;
    terminal.note("  Stopped");
    Ok(())
}

/// The functions of the project that this machine has, where it has one with its key. None is made: another key makes other tokens.
fn functions(
    args: &ProjectArgs,
    stores: &StoreOptions,
    terminal: &Arc<Terminal>,
) -> Result<Vec<OwnFunction>, CliError> {
    let without = |why: &str| {
        terminal.note(&format!("  Without identifier tokens: {why}; stages that make some will run in the driver"));
        Ok(Vec::new())
    };
    let project = match Project::find(args, stores.clone()) {
        Ok(project) => project,
        Err(CliError::NoProject(_)) if !args.is_named() => return without("there is no project folder here"),
        Err(error) => return Err(error),
    };
    if !project.has_key() {
        return without("the identity key is not here");
    }
    let settings = project.session_settings_by_own_key()?;
    let own = settings.functions.iter();
    Ok(own.map(|function| OwnFunction { function: Arc::clone(function), parameters: settings.salt.clone() }).collect())
}

fn unusable(path: &Path) -> impl FnOnce(std::io::Error) -> CliError + use<> {
    let path = path.to_owned();
    move |source| CliError::File { what: "cannot use the folder", path, source }
}

/// Who can reach an address.
fn reach(ip: std::net::IpAddr) -> &'static str {
    if ip.is_loopback() {
        "for this machine alone"
    } else {
        "for whoever reaches it: nobody is asked who they are, keep it within a private network"
    }
}
