//! One plan on the cluster: submitted, watched to its end, its rows fetched from the executors that hold them, and what it left there cleaned away.
//!
//! As `ballista_core::execution_plans::execute_physical_plan` does it, with what that one keeps to itself: the job's id, so that a job nobody waits for any more is
//! cancelled and one that was read is cleaned away at once; a stream for each partition, so that they are read side by side; whether there are executors at all.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ballista_core::BALLISTA_VERSION;
use ballista_core::client::BallistaClient;
use ballista_core::extension::{SessionConfigExt, SessionConfigHelperExt};
use ballista_core::serde::protobuf::execute_query_params::Query;
use ballista_core::serde::protobuf::scheduler_grpc_client::SchedulerGrpcClient;
use ballista_core::serde::protobuf::{
    CancelJobParams, CleanJobDataParams, ExecuteQueryParams, PartitionLocation, SuccessfulJob, job_status,
};
use ballista_core::utils::{GrpcClientConfig, create_grpc_client_endpoint};
use ballista_core::version::{check_compatibility, insert_version_header, version_from_metadata};
use datafusion::arrow::datatypes::SchemaRef;
use datafusion::error::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::prelude::SessionConfig;
use futures::{StreamExt, TryStreamExt};
use holdfast_engine::ExecutorError;
use holdfast_types::TableName;
use tonic::Status;
use tonic::transport::Channel;

use crate::address::Address;
use crate::driver::failure_of;
use crate::options::MESSAGE_BYTES_MAX;
use crate::probe::{Probed, probe};

/// How often it is looked whether there are executors while a job is under way.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// A plan to be run.
pub(crate) struct JobRequest<'a> {
    pub(crate) scheduler: &'a Address,
    pub(crate) session_id: &'a str,
    pub(crate) stage: &'a TableName,
    pub(crate) schema: SchemaRef,
    pub(crate) config: &'a SessionConfig,
    pub(crate) plan: Vec<u8>,
    /// How long a cluster may be without executors.
    pub(crate) wait: Duration,
}

/// Why there are no rows.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Executors do not have a function of the plan: what to do about it.
    NoFunction(String),
    /// Executors worked its rows out, and cannot write files of them: why.
    NotWritten(String),
    Other(ExecutorError),
}

/// A job on the cluster. What it holds there is given up when nobody needs it any more.
struct Job {
    scheduler: SchedulerGrpcClient<Channel>,
    id: String,
    is_done: bool,
}

impl Drop for Job {
    fn drop(&mut self) {
        let (mut scheduler, job_id) = (self.scheduler.clone(), std::mem::take(&mut self.id));
        let is_done = self.is_done;
        // Where the runtime is gone, the process is: the scheduler cleans up by itself after a while.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            let ended = if is_done {
                scheduler.clean_job_data(CleanJobDataParams { job_id, remove_stage_ids: Vec::new() }).await.map(drop)
            } else {
                scheduler.cancel_job(CancelJobParams { job_id }).await.map(drop)
            };
            if let Err(error) = ended {
                tracing::debug!(%error, is_done, "a job is left to the scheduler");
            }
        });
    }
}

/// Runs a plan to its end. The streams give the rows of its partitions, in their order.
pub(crate) async fn run_job(request: JobRequest<'_>) -> Result<Vec<SendableRecordBatchStream>, Failure> {
    let started = Instant::now();
    let (job, done) = watch(&request).await?;
    let bytes: u64 =
        done.partition_location.iter().filter_map(|part| part.partition_stats.as_ref()).map(bytes_of).sum();
    tracing::info!(
        stage = %request.stage,
        job = job.id,
        histogram.holdfast_cluster_job_seconds = started.elapsed().as_secs_f64(),
        monotonic_counter.holdfast_cluster_result_bytes = bytes,
        plan_bytes = request.plan.len(),
        "a plan ran on the cluster"
    );
    let mut partitions: BTreeMap<u32, Vec<PartitionLocation>> = BTreeMap::new();
    for location in done.partition_location {
        let partition = location.partition_id.as_ref().map_or(0, |id| id.partition_id);
        partitions.entry(partition).or_default().push(location);
    }
    let job = Arc::new(job);
    Ok(partitions.into_values().map(|locations| rows(locations, &request.schema, &job)).collect())
}

fn bytes_of(stats: &ballista_core::serde::protobuf::PartitionStats) -> u64 {
    u64::try_from(stats.num_bytes).unwrap_or(0)
}

/// Submits the plan and waits for its end.
async fn watch(request: &JobRequest<'_>) -> Result<(Job, SuccessfulJob), Failure> {
    let unavailable = |reason: String| {
        let scheduler = request.scheduler;
        Failure::Other(ExecutorError::Lost(format!("the scheduler at {scheduler} cannot be asked: {reason}")))
    };
    let client = GrpcClientConfig::from(&request.config.ballista_config());
    let connection = create_grpc_client_endpoint(request.scheduler.url(), Some(&client))
        .map_err(|error| unavailable(error.to_string()))?
        .connect()
        .await
        .map_err(|error| unavailable(error.to_string()))?;
    let mut scheduler = SchedulerGrpcClient::new(connection)
        .max_encoding_message_size(MESSAGE_BYTES_MAX as usize)
        .max_decoding_message_size(MESSAGE_BYTES_MAX as usize);

    let mut submission = tonic::Request::new(ExecuteQueryParams {
        query: Some(Query::PhysicalPlan(request.plan.clone())),
        settings: request.config.to_key_value_pairs(),
        session_id: request.session_id.to_owned(),
        operation_id: uuid::Uuid::now_v7().to_string(),
    });
    insert_version_header(submission.metadata_mut());
    let response = scheduler.execute_query_push(submission).await.map_err(|status| refusal(&status, &unavailable))?;
    check_compatibility(Some(BALLISTA_VERSION), version_from_metadata(response.metadata()))
        .map_err(|reason| Failure::Other(ExecutorError::Mismatch(reason)))?;

    let mut updates = response.into_inner();
    let mut job: Option<Job> = None;
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut seen_executors = Instant::now();
    loop {
        let update = tokio::select! {
            update = updates.message() => update,
            _ = look.tick() => {
                match probe(request.scheduler).await {
                    Probed::NoExecutors if seen_executors.elapsed() > request.wait => {
                        return Err(Failure::Other(ExecutorError::Unavailable(format!(
                            "the scheduler at {} has had no executors for {} s",
                            request.scheduler,
                            request.wait.as_secs()
                        ))));
                    }
                    Probed::NoExecutors => {}
                    _ => seen_executors = Instant::now(),
                }
                continue;
            }
        };
        let status = match update {
            Ok(Some(update)) => update.status,
            Ok(None) => return Err(unavailable("it stopped before the plan was done".to_owned())),
            Err(status) => return Err(unavailable(status.message().to_owned())),
        };
        let Some(status) = status else { continue };
        let mut current = job.take().unwrap_or_else(|| Job {
            scheduler: scheduler.clone(),
            id: status.job_id.clone(),
            is_done: false,
        });
        match status.status {
            Some(job_status::Status::Failed(failed)) => {
                // It is over, and what it left can go.
                current.is_done = true;
                return Err(failure_of(&failed.error));
            }
            Some(job_status::Status::Successful(done)) => {
                current.is_done = true;
                return Ok((current, done));
            }
            _ => job = Some(current),
        }
    }
}

/// Why a plan was not taken.
fn refusal(status: &Status, unavailable: &impl Fn(String) -> Failure) -> Failure {
    match status.code() {
        tonic::Code::Unavailable | tonic::Code::DeadlineExceeded | tonic::Code::Cancelled | tonic::Code::Unknown => {
            unavailable(status.message().to_owned())
        }
        tonic::Code::FailedPrecondition => Failure::Other(ExecutorError::Mismatch(status.message().to_owned())),
        _ => failure_of(status.message()),
    }
}

/// The rows of one partition of the result, from wherever they are.
fn rows(locations: Vec<PartitionLocation>, schema: &SchemaRef, job: &Arc<Job>) -> SendableRecordBatchStream {
    let job = Arc::clone(job);
    let parts = locations.into_iter().map(|location| futures::stream::once(fetch(location)).try_flatten());
    let rows = futures::stream::iter(parts).flatten().map(move |rows| {
        // What the executors hold is held until it is read.
        let _held = &job;
        rows
    });
    Box::pin(RecordBatchStreamAdapter::new(Arc::clone(schema), rows))
}

async fn fetch(location: PartitionLocation) -> Result<SendableRecordBatchStream, DataFusionError> {
    let layout = location.layout();
    let (Some(executor), Some(partition)) = (location.executor_meta, location.partition_id) else {
        return Err(DataFusionError::Internal("a part of a result is nowhere".to_owned()));
    };
    let (host, port) = (executor.host.as_str(), u16::try_from(executor.port).unwrap_or(0));
    let gone = |reason: String| {
        // Whatever it is, the rows can be worked out again.
        let reason = format!("executor {host}:{port} does not give the rows that it worked out: {reason}");
        DataFusionError::IoError(std::io::Error::other(reason))
    };
    let mut client = BallistaClient::try_new(host, port, MESSAGE_BYTES_MAX as usize, false, None, 2, 500, 0, 0)
        .await
        .map_err(|error| gone(error.to_string()))?;
    let stream = client
        // As decoded batches, which are checked on arrival: blocks of files, as executors pass to each other, are not.
        .fetch_partition(&executor.id, &partition.into(), location.file_id, layout, true)
        .await
        .map_err(|error| gone(error.to_string()))?;
    let schema = stream.schema();
    let place = format!("{host}:{port}");
    let rows = stream.map_err(move |error| {
        let reason = format!("executor {place} stopped while its rows were read: {}", error.strip_backtrace());
        DataFusionError::IoError(std::io::Error::other(reason))
    });
    Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
}
