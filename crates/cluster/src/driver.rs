use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use ballista_core::config::{BALLISTA_CLIENT_GRPC_MAX_MESSAGE_SIZE, BALLISTA_JOB_NAME};
use ballista_core::extension::SessionConfigExt;
use datafusion::prelude::SessionConfig;
use holdfast_engine::{Answer, Executor, ExecutorError, NOT_WRITTEN, Work, WriteFilesExec};
use holdfast_types::{NoProgress, Progress};

use crate::address::Address;
use crate::codec::NO_FUNCTION;
use crate::job::{Failure, JobRequest, run_job};
use crate::options::{HoldfastOptions, MESSAGE_BYTES_MAX, VERSION};
use crate::probe::{Probed, probe};
use crate::travel::pack;

/// How often it is looked whether executors have come.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Until when a scheduler has places on executors that are there alone, after it lost one.
const SETTLED_AFTER: Duration = Duration::from_secs(3);

/// Which cluster, and how it is used.
#[derive(Debug, Clone)]
pub struct ClusterSettings {
    /// Its scheduler.
    pub scheduler: Address,
    /// Into how many parts the rows of a plan are divided where they are passed on: at least as many as the executors run tasks at once.
    pub partitions: usize,
    /// How long to wait for executors where there are none.
    pub wait: Duration,
}

impl ClusterSettings {
    /// Ballista's own default for `partitions`.
    pub const PARTITIONS: usize = 16;

    /// A cluster, used as most are.
    pub fn new(scheduler: Address) -> Self {
        Self { scheduler, partitions: Self::PARTITIONS, wait: Duration::from_secs(60) }
    }
}

/// The driver's side of a cluster: gives plans to it and reads their rows.
#[derive(Debug)]
pub struct ClusterExecutor {
    settings: ClusterSettings,
    session_id: String,
    /// Why plans with these functions need not be sent again.
    missing: Mutex<HashMap<String, String>>,
    /// Why plans that write files need not be.
    not_written: Mutex<Option<String>>,
}

impl ClusterExecutor {
    /// Of the cluster with these settings; nobody is asked for yet.
    pub fn new(settings: ClusterSettings) -> Self {
        Self {
            settings,
            session_id: uuid::Uuid::now_v7().to_string(),
            missing: Mutex::default(),
            not_written: Mutex::default(),
        }
    }

    /// Where its scheduler is.
    pub fn scheduler(&self) -> &Address {
        &self.settings.scheduler
    }

    /// Waits until the scheduler has executors.
    ///
    /// # Errors
    /// When nobody answers, or one of another version, or no executor comes in time.
    pub async fn ready(&self, progress: &dyn Progress) -> Result<(), ExecutorError> {
        let scheduler = &self.settings.scheduler;
        let started = Instant::now();
        let mut told = false;
        loop {
            match probe(scheduler).await {
                Probed::Ready => return Ok(()),
                Probed::Nobody(reason) => {
                    return Err(ExecutorError::Unavailable(format!(
                        "no scheduler answers at {scheduler} ({reason}): start one with `holdfast cluster scheduler`, or run without --cluster"
                    )));
                }
                Probed::Stranger(reason) => return Err(ExecutorError::Mismatch(format!("{scheduler}: {reason}"))),
                Probed::NoExecutors if started.elapsed() >= self.settings.wait => {
                    return Err(ExecutorError::Unavailable(format!(
                        "the scheduler at {scheduler} has no executors: start some with `holdfast cluster executor --scheduler {scheduler}`"
                    )));
                }
                Probed::NoExecutors => {
                    if !std::mem::replace(&mut told, true) {
                        progress.note(&format!("  Waiting for executors at {scheduler}"));
                    }
                    tokio::time::sleep(LOOK_EVERY).await;
                }
            }
        }
    }

    fn known_missing(&self, work: &Work) -> Option<String> {
        let missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
        if missing.is_empty() {
            return None;
        }
        let plan = datafusion::physical_plan::displayable(work.plan.as_ref()).indent(false).to_string();
        missing.iter().find(|(name, _)| plan.contains(&format!("{name}("))).map(|(_, reason)| reason.clone())
    }

    /// Remembers which function executors do not have, from what one of them said.
    fn remember(&self, reason: &str) {
        if let Some(name) = reason.split('`').nth(1) {
            let mut missing = self.missing.lock().unwrap_or_else(PoisonError::into_inner);
            missing.insert(name.to_owned(), reason.to_owned());
        }
    }
}

#[async_trait]
impl Executor for ClusterExecutor {
    fn configure(&self, config: SessionConfig) -> SessionConfig {
        config
            .upgrade_for_ballista()
            .with_target_partitions(self.settings.partitions)
            // A physical plan is cut into tasks as it is, whatever this says; said, so that a version that does otherwise does not begin to by itself.
            .with_ballista_adaptive_query_planner(false)
            .set_usize(BALLISTA_CLIENT_GRPC_MAX_MESSAGE_SIZE, MESSAGE_BYTES_MAX as usize)
            .set_bool("datafusion.optimizer.prefer_existing_sort", false)
            .with_option_extension(HoldfastOptions { version: VERSION.to_owned() })
    }

    async fn execute(&self, work: Work) -> Result<Answer, ExecutorError> {
        let writes = work.plan.is::<WriteFilesExec>();
        if writes && let Some(reason) = self.not_written.lock().unwrap_or_else(PoisonError::into_inner).clone() {
            return Ok(Answer::NotWritten(reason));
        }
        let plan = match pack(&work.plan, &work.context, &work.functions) {
            Ok(plan) => plan,
            // What is below it may be less.
            Err(reason) if writes => return Ok(Answer::NotWritten(reason)),
            Err(reason) => return Ok(Answer::Here(reason)),
        };
        if let Some(reason) = self.known_missing(&work) {
            return Ok(Answer::Here(reason));
        }
        self.ready(&NoProgress).await?;
        let config = work.context.session_config().clone().set_str(BALLISTA_JOB_NAME, &work.stage.to_string());
        let request = JobRequest {
            scheduler: &self.settings.scheduler,
            session_id: &self.session_id,
            stage: &work.stage,
            schema: work.plan.schema(),
            config: &config,
            plan,
            wait: self.settings.wait,
        };
        match run_job(request).await {
            Ok(streams) => Ok(Answer::Rows(streams)),
            Err(Failure::NoFunction(reason)) => {
                self.remember(&reason);
                Ok(Answer::Here(reason))
            }
            Err(Failure::NotWritten(reason)) => {
                *self.not_written.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.clone());
                Ok(Answer::NotWritten(reason))
            }
            Err(Failure::Other(error)) => {
                if matches!(error, ExecutorError::Lost(_)) {
                    tokio::time::sleep(SETTLED_AFTER).await;
                }
                Err(error)
            }
        }
    }
}

/// Signs of a plan that would have been done, had nobody gone. The last is how a part of a plan fails that cannot read rows from another executor: for other reasons its
/// tasks fail, not the part.
const LOST: [&str; 5] = ["Cancelled", "xecutor lost", "no executors", "Fetch", " times, most recent failure reason: "];

/// What a plan's failure elsewhere means, from all that is left of it: a text, with values in it that are not to be shown.
pub(crate) fn failure_of(text: &str) -> Failure {
    let told = |sign: &str| {
        let (_, reason) = text.split_once(sign)?;
        let reason = reason.split(['"', '\\', '\n']).next().unwrap_or_default();
        Some(reason.trim().to_owned())
    };
    if let Some(reason) = told(NO_FUNCTION) {
        return Failure::NoFunction(reason);
    }
    if let Some(reason) = told(NOT_WRITTEN) {
        return Failure::NotWritten(reason);
    }
    let shown = shown(text);
    Failure::Other(if text.contains(crate::options::VERSIONS_DIFFER) {
        ExecutorError::Mismatch(shown)
    } else if text.contains("ResourcesExhausted") || text.contains("Resources exhausted") {
        ExecutorError::OutOfMemory(format!("{shown} (raise --memory-mb of executors, or their number)"))
    } else if LOST.iter().any(|sign| text.contains(sign)) {
        ExecutorError::Lost(shown)
    } else {
        ExecutorError::Failed(shown)
    })
}

/// A remote failure without what it quotes, and no longer than a few lines.
fn shown(text: &str) -> String {
    const SHOWN_MAX: usize = 600;
    let text = holdfast_engine::without_quoted(text);
    let mut clean = String::new();
    for (index, part) in text.split("\\\"").enumerate() {
        clean.push_str(if index % 2 == 0 { part } else { "…" });
    }
    let clean = clean.split("\\n\\nbacktrace:").next().unwrap_or_default();
    clean.chars().take(SHOWN_MAX).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_wrong_elsewhere_is_told_without_values() {
        let text = "Job 1 failed: Stage 2 failed: Task failed due to runtime execution error: DataFusionError(ArrowError(CastError(\
                    \"Cannot cast string 'Wei Zhang' to value of Int64 type\"), None))";
        let Failure::Other(ExecutorError::Failed(told)) = failure_of(text) else { panic!("another failure") };
        assert!(told.contains("Int64") && !told.contains("Wei"), "{told}");

        let text = "Task failed: DataFusionError(Execution(\"no function for this plan: an executor does not have `f` as the driver has it\"))";
        let Failure::NoFunction(told) = failure_of(text) else { panic!("another failure") };
        assert_eq!(told, "an executor does not have `f` as the driver has it");

        let text = "Task failed: DataFusionError(Execution(\"the files of this plan are not written: table a.b: no permission for lake/a/b: check\"))";
        let Failure::NotWritten(told) = failure_of(text) else { panic!("another failure") };
        assert_eq!(told, "table a.b: no permission for lake/a/b: check");

        let gone = failure_of(
            "Job failed due to stage 6 failed: Stage 6 has failed 1 times, most recent failure reason: \"Error connecting to \
             Ballista scheduler or executor at http://127.0.0.1:38683\"",
        );
        assert!(matches!(gone, Failure::Other(ExecutorError::Lost(_))));
        let own = "Tasks [1, 2] in Stage 2 failed 4 times, fail the stage, most recent failure reason: \"IoError\"";
        assert!(matches!(failure_of(own), Failure::Other(ExecutorError::Failed(_))));

        let memory = failure_of("DataFusionError(ResourcesExhausted(\"Failed to allocate\"))");
        assert!(matches!(memory, Failure::Other(ExecutorError::OutOfMemory(_))));
        let versions = failure_of("versions differ: the driver is holdfast 2, the executor is 1");
        assert!(matches!(versions, Failure::Other(ExecutorError::Mismatch(_))));
    }
}
