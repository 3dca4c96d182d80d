//! Where the rows of a stage's query are worked out: in this process, or by an [`Executor`] elsewhere that is handed the finished plan.
//!
//! The driver, this process, plans, leaves out files, freezes time and derives what changed. What goes out is the physical plan of a stage that is refreshed in full,
//! with [`WriteFilesExec`] on top: rows are judged and written there, as those of an embedded plan are here, and what comes back is what is in the files, which are
//! committed here. Where that cannot be, the rows come back and are written here. So whatever dies out there leaves nothing in a table.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, SessionState, TaskContext};
use datafusion::logical_expr::{LogicalPlan, ScalarUDF};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion::prelude::SessionConfig;
use futures::StreamExt;
use holdfast_lake::Table;
use holdfast_types::{CUSTOMER_BUCKET, ErrorKind, TableName};
use serde::Serialize;
use uuid::Uuid;

use crate::Result;
use crate::build::{Planned, StageWork};
use crate::error::EngineError;
use crate::functions::{customer_bucket_function, json_field_function};
use crate::output::{Staged, Target, physical_plan, stage_rows, write_rows_of};
use crate::session::{SessionSettings, plan_as_of};
use crate::write_files::{WriteFilesExec, staged_by};

/// How often a stage is given out when executors die over it.
const ATTEMPTS_MAX: u32 = 3;

/// What a stage without buckets has to read for each file that it may leave, in bytes.
const READ_FOR_A_FILE_BYTES: u64 = 16 << 20;

/// Works out the rows of plans elsewhere.
#[async_trait]
pub trait Executor: fmt::Debug + Send + Sync {
    /// The settings that plans for there are made with, from those of an embedded session.
    fn configure(&self, config: SessionConfig) -> SessionConfig;

    /// Runs a plan to its end and answers with where its rows are. May be repeated; when it is dropped, what runs out there is of no use to anybody.
    ///
    /// # Errors
    /// See [`ExecutorError`].
    async fn execute(&self, work: Work) -> Result<Answer, ExecutorError>;
}

/// A plan to be run elsewhere.
#[derive(Debug)]
pub struct Work {
    /// The stage whose rows it gives.
    pub stage: TableName,
    /// The plan: no ordering is declared by its scans, and time stands still in it. Its root is a [`WriteFilesExec`] where files are to be written by who runs it.
    pub plan: Arc<dyn ExecutionPlan>,
    /// The session it was planned in, by the settings of [`Executor::configure`].
    pub context: Arc<TaskContext>,
    /// Those of its functions that DataFusion does not know.
    pub functions: Vec<OwnFunction>,
}

/// A function that DataFusion does not know, with what makes it the same function elsewhere.
#[derive(Debug, Clone)]
pub struct OwnFunction {
    /// The function.
    pub function: Arc<ScalarUDF>,
    /// Two functions of one name and the same parameters give the same values. No secret is in it.
    pub parameters: String,
}

/// What became of a plan that was to be run elsewhere.
pub enum Answer {
    /// Its rows: a stream for each partition of the plan, in their order, to be read once. A stream that fails because an executor is gone gives an I/O error.
    Rows(Vec<SendableRecordBatchStream>),
    /// It writes files, and cannot there: why, in words. The rows of what is below [`WriteFilesExec`] may be had.
    NotWritten(String),
    /// It cannot be run there: why, in words. It is run in this process.
    Here(String),
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rows(streams) => write!(f, "Rows({} streams)", streams.len()),
            Self::NotWritten(reason) => write!(f, "NotWritten({reason})"),
            Self::Here(reason) => write!(f, "Here({reason})"),
        }
    }
}

/// Why an executor did not give the rows of a plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExecutorError {
    /// Nobody answers, or nobody is there to work.
    #[error("{0}")]
    Unavailable(String),
    /// Somebody died over it.
    #[error("{0}")]
    Lost(String),
    /// It did not fit into the memory there.
    #[error("{0}")]
    OutOfMemory(String),
    /// What answers cannot work with this process: another version, or no such program.
    #[error("{0}")]
    Mismatch(String),
    /// The plan failed.
    #[error("{0}")]
    Failed(String),
}

impl ExecutorError {
    /// What the caller should do.
    pub const fn kind(&self) -> ErrorKind {
        match self {
            Self::Unavailable(_) | Self::Lost(_) | Self::OutOfMemory(_) => ErrorKind::Retry,
            Self::Mismatch(_) => ErrorKind::InvalidConfig,
            Self::Failed(_) => ErrorKind::InvalidInput,
        }
    }
}

/// Where the rows of a full refresh were worked out, in a run that has an executor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Place {
    /// By the executor.
    Executor {
        /// Who wrote them.
        #[serde(flatten)]
        written_by: WrittenBy,
    },
    /// In this process.
    Here {
        /// Why.
        reason: String,
    },
}

/// Who wrote the files of rows that were worked out by executors.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "written_by")]
pub enum WrittenBy {
    /// They did.
    Executors,
    /// This process, which they came to.
    Driver {
        /// Why.
        reason: String,
    },
}

/// A stage that is given out.
struct Errand<'a> {
    executor: &'a dyn Executor,
    plan: Arc<dyn ExecutionPlan>,
    context: Arc<TaskContext>,
    target: Arc<Target>,
    /// What the files of attempts that were given up are called by.
    given_up: Vec<Uuid>,
}

/// What became of it.
enum Sent {
    Staged(Staged),
    /// The rows may be had, and files not.
    NotWritten(String),
    Here(String),
    /// It may be given out again.
    Lost(EngineError),
}

/// The functions of every session of a lake with so many buckets, as they are sent to an executor.
pub(crate) fn own_functions(settings: &SessionSettings, buckets: u32) -> Vec<OwnFunction> {
    let built_in = [("customer_bucket", buckets.to_string()), ("json_field", String::new())];
    let built_in = built_in.into_iter().filter_map(|(name, parameters)| {
        Some(OwnFunction { function: built_in_function(name, &parameters)?, parameters })
    });
    let handed_in = settings
        .functions
        .iter()
        .map(|function| OwnFunction { function: Arc::clone(function), parameters: settings.salt.clone() });
    built_in.chain(handed_in).collect()
}

/// The function of that name and parameters, where it is one that the engine itself brings to every session.
pub fn built_in_function(name: &str, parameters: &str) -> Option<Arc<ScalarUDF>> {
    match name {
        "customer_bucket" => Some(Arc::new(customer_bucket_function(parameters.parse().ok()?))),
        "json_field" if parameters.is_empty() => Some(Arc::new(json_field_function())),
        _ => None,
    }
}

impl StageWork {
    /// Works out the rows of the whole query and leaves them in staged files. Answers where that was, when there was a choice.
    pub(crate) async fn stage_all(&self, planned: &Planned, target: Target) -> Result<(Staged, Option<Place>)> {
        let target = Arc::new(target);
        let here = |target| {
            let (state, plan) = (&planned.state, planned.plan.clone());
            stage_rows(state, plan, self.buckets(), self.name(), target)
        };
        let Some(executor) = &self.settings.executor else {
            return Ok((here(target).await?, None));
        };
        if self.settings.is_frugal {
            let reason = "it did not fit into the memory of executors".to_owned();
            return Ok((here(target).await?, Some(Place::Here { reason })));
        }
        let (state, plan) = self.plan_for(executor.as_ref()).await?;
        let failed = EngineError::execution(format!("stage {}", self.name()));
        let plan = physical_plan(&state, plan, self.buckets(), &target.schema).await.map_err(failed)?;
        let mut errand = Errand {
            executor: executor.as_ref(),
            plan,
            context: Arc::new(TaskContext::from(&state)),
            target: Arc::clone(&target),
            given_up: Vec::new(),
        };
        let sent = self.send(&mut errand).await;
        self.lake.discard_attempts(&errand.given_up, &target.table).await;
        if let Some(quarantine) = &target.quarantine {
            self.lake.discard_attempts(&errand.given_up, quarantine).await;
        }
        match sent? {
            Ok((staged, written_by)) => Ok((staged, Some(Place::Executor { written_by }))),
            Err(reason) => Ok((here(target).await?, Some(Place::Here { reason }))),
        }
    }

    /// Gives a stage out until its rows are in files. Answers with those and who wrote them, or why the stage is to be made here.
    async fn send(&self, errand: &mut Errand<'_>) -> Result<Result<(Staged, WrittenBy), String>> {
        let mut kept = self.why_written_here(errand);
        let mut attempt = 1;
        loop {
            let sent = match &kept {
                None => self.send_to_write(errand).await?,
                Some(_) => self.send_for_rows(errand).await?,
            };
            match (sent, kept) {
                (Sent::Staged(staged), None) => return Ok(Ok((staged, WrittenBy::Executors))),
                (Sent::Staged(staged), Some(reason)) => return Ok(Ok((staged, WrittenBy::Driver { reason }))),
                (Sent::Here(reason), _) => return Ok(Err(reason)),
                (Sent::NotWritten(reason), Some(_)) => {
                    let source = ExecutorError::Failed(reason);
                    return Err(EngineError::Elsewhere { table: self.name().clone(), source });
                }
                (Sent::NotWritten(reason), None) => {
                    tracing::debug!(stage = %self.name(), reason, "the driver writes what executors do not");
                    kept = Some(reason);
                }
                (Sent::Lost(error), before) if attempt < ATTEMPTS_MAX => {
                    tracing::warn!(stage = %self.name(), attempt, %error, "a stage is given to the executors once more");
                    attempt += 1;
                    kept = before;
                }
                (Sent::Lost(error), _) => return Err(error),
            }
        }
    }

    /// Why executors are not asked to write files. Without buckets each of their tasks writes a file of its own: where there is little to read there would be many small ones.
    fn why_written_here(&self, errand: &Errand<'_>) -> Option<String> {
        let partitions = errand.plan.output_partitioning().partition_count();
        let is_by_bucket = errand.target.schema.field_with_name(CUSTOMER_BUCKET).is_ok();
        if is_by_bucket || partitions <= self.settings.target_partitions {
            return None;
        }
        let bytes: u64 = self.inputs.values().flatten().map(Table::byte_count).sum();
        (bytes < partitions as u64 * READ_FOR_A_FILE_BYTES).then(|| {
            format!("it has no buckets and reads little, and {partitions} tasks would write a small file each")
        })
    }

    /// One attempt at having its files written there.
    async fn send_to_write(&self, errand: &mut Errand<'_>) -> Result<Sent> {
        let Errand { plan, target, .. } = &*errand;
        let (target, attempt) = (Arc::clone(target), Uuid::now_v7());
        let plan = Arc::new(WriteFilesExec::new(Arc::clone(plan), &target, attempt));
        // Until it is known that all of its files are there.
        errand.given_up.push(attempt);
        let answers = match self.rows_elsewhere(errand, plan).await? {
            Ok(answers) => answers,
            Err(sent) => return Ok(sent),
        };
        let staged = match staged_by(answers, target.rules.len()).await {
            Ok(staged) => staged,
            Err(error) => return lost(EngineError::execution(format!("stage {}", self.name()))(error)),
        };
        if !self.are_there(&target, &staged).await? {
            let reason = "the files that executors wrote are not where the driver reads: their store is another one";
            return Ok(Sent::NotWritten(reason.to_owned()));
        }
        errand.given_up.retain(|given_up| *given_up != attempt);
        Ok(Sent::Staged(staged))
    }

    async fn are_there(&self, target: &Target, staged: &Staged) -> Result<bool> {
        let is_whole = self.lake.are_there(&target.table, &staged.files).await?;
        match &target.quarantine {
            Some(quarantine) if is_whole => Ok(self.lake.are_there(quarantine, &staged.refused).await?),
            _ => Ok(is_whole),
        }
    }

    /// One attempt at having its rows, which are written here.
    async fn send_for_rows(&self, errand: &Errand<'_>) -> Result<Sent> {
        let streams = match self.rows_elsewhere(errand, Arc::clone(&errand.plan)).await? {
            Ok(streams) => streams,
            Err(sent) => return Ok(sent),
        };
        match self.write_streams(streams, Arc::clone(&errand.target)).await {
            Ok(staged) => Ok(Sent::Staged(staged)),
            Err(error) => lost(error),
        }
    }

    /// The rows of a plan, or what there is instead.
    async fn rows_elsewhere(
        &self,
        errand: &Errand<'_>,
        plan: Arc<dyn ExecutionPlan>,
    ) -> Result<Result<Vec<SendableRecordBatchStream>, Sent>> {
        let work = Work {
            stage: self.name().clone(),
            plan,
            context: Arc::clone(&errand.context),
            functions: own_functions(&self.settings, self.buckets()),
        };
        let elsewhere = |source| EngineError::Elsewhere { table: self.name().clone(), source };
        match errand.executor.execute(work).await {
            Ok(Answer::Rows(streams)) => Ok(Ok(streams)),
            Ok(Answer::NotWritten(reason)) => Ok(Err(Sent::NotWritten(reason))),
            Ok(Answer::Here(reason)) => Ok(Err(Sent::Here(reason))),
            Err(source @ ExecutorError::Lost(_)) => Ok(Err(Sent::Lost(elsewhere(source)))),
            Err(source) => Err(elsewhere(source)),
        }
    }

    /// The query in a session as the executor wants it: the same query, over the same versions, at the same moment.
    async fn plan_for(&self, executor: &dyn Executor) -> Result<(SessionState, LogicalPlan)> {
        let context = self.session(&BTreeSet::new())?;
        {
            let state = context.state_ref();
            let mut state = state.write();
            let config = executor.configure(state.config().clone());
            *state.config_mut() = config;
        }
        let failed = EngineError::execution(format!("stage {}", self.name()));
        plan_as_of(&context, self.checked.stage.statement.clone(), self.moment()).await.map_err(failed)
    }

    /// Writes what comes from elsewhere with as many writers as an embedded plan has, so that there are no more files. A writer takes one stream after the other: rows
    /// of one bucket come from one stream, in their order.
    async fn write_streams(&self, streams: Vec<SendableRecordBatchStream>, target: Arc<Target>) -> Result<Staged> {
        let writers = self.settings.target_partitions.clamp(1, streams.len().max(1));
        let mut shares: Vec<Vec<SendableRecordBatchStream>> = (0..writers).map(|_| Vec::new()).collect();
        for (index, stream) in streams.into_iter().enumerate() {
            shares[index % writers].push(stream);
        }
        let shares = shares.into_iter().filter_map(|share| {
            let schema = share.first()?.schema();
            let rows = futures::stream::iter(share).flatten();
            let rows: SendableRecordBatchStream = Box::pin(RecordBatchStreamAdapter::new(schema, rows));
            Some(move || Ok::<_, DataFusionError>(rows))
        });
        write_rows_of(shares.collect(), self.name(), target).await
    }
}

/// What could not be read because who had it is gone is asked for again.
fn lost(error: EngineError) -> Result<Sent> {
    if is_lost(&error) { Ok(Sent::Lost(error)) } else { Err(error) }
}

/// Whether rows that were worked out could not be read, because who had them is gone.
fn is_lost(error: &EngineError) -> bool {
    matches!(error, EngineError::Execution { source, .. } if matches!(source.find_root(), DataFusionError::IoError(_)))
}
