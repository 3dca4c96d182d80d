use std::sync::Arc;

use arrow::array::RecordBatch;
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode};
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::{ExecutionPlan, execute_stream};
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use holdfast_engine::lane_of;
use tokio::sync::mpsc::{self, Receiver};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::encode::{BatchEncoder, CopyStyle, writable};
use crate::error::{Problem, state};
use crate::gate::Watched;
use crate::io::CHUNK_BYTES;
use crate::message::Format;
use crate::plan::{Column, Planned};
use crate::statement::Command;

/// Batches that wait to be written; the plan stops while there are this many.
const BATCHES_AHEAD: usize = 2;

/// A statement with its values, begun or not.
pub(crate) struct Portal {
    /// Nothing of an empty statement.
    pub(crate) command: Option<Command>,
    pub(crate) columns: Vec<Column>,
    pub(crate) formats: Vec<Format>,
    pub(crate) source: Source,
    /// A cursor that outlives its transaction.
    pub(crate) is_held: bool,
    /// Declared as a cursor: `fetch` reads it.
    pub(crate) is_cursor: bool,
    /// Sent so far by all executions.
    pub(crate) rows: u64,
}

/// Where a portal's rows come from.
pub(crate) enum Source {
    /// It gives none.
    Nothing,
    Planned(Box<Planned>, SessionContext),
    Running(Rows),
    Ended,
}

/// How rows are written.
pub(crate) enum Sink<'a> {
    Rows(&'a [Format]),
    Copy(&'a CopyStyle),
}

/// The rows of a plan that runs in a task of its own. Dropped, it stops.
pub(crate) struct Rows {
    batches: Receiver<Result<RecordBatch, DataFusionError>>,
    /// Until it has ended.
    task: Option<JoinHandle<()>>,
    current: Option<(RecordBatch, usize)>,
    /// Who follows it, until it has ended.
    watched: Option<Box<dyn Watched>>,
    until: Option<Instant>,
    row_limit: Option<u64>,
    given: u64,
}

impl Drop for Rows {
    fn drop(&mut self) {
        self.tell("cancelled");
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Rows {
    /// Begins to run a plan that is optimised.
    pub(crate) async fn start(
        plan: &LogicalPlan,
        state: &SessionState,
        mut watched: Box<dyn Watched>,
    ) -> Result<Self, Problem> {
        match Self::begun(plan, state).await {
            Ok((batches, task)) => {
                let until = watched.time_limit().and_then(|limit| Instant::now().checked_add(limit));
                let row_limit = watched.row_limit();
                let (watched, task) = (Some(watched), Some(task));
                Ok(Self { batches, task, current: None, watched, until, row_limit, given: 0 })
            }
            Err(problem) => {
                watched.ended(0, problem.outcome());
                Err(problem)
            }
        }
    }

    async fn begun(
        plan: &LogicalPlan,
        state: &SessionState,
    ) -> Result<(Receiver<Result<RecordBatch, DataFusionError>>, JoinHandle<()>), Problem> {
        let plan = state.query_planner().create_physical_plan(plan, state).await.map_err(Problem::of_query)?;
        let plan = yielding(plan).map_err(Problem::of_query)?;
        let (sender, batches) = mpsc::channel(BATCHES_AHEAD);
        let context = state.task_ctx();
        let task = lane_of(plan.as_ref()).spawn(async move {
            let mut stream = match execute_stream(plan, context) {
                Ok(stream) => stream,
                Err(error) => {
                    let _ = sender.send(Err(error)).await;
                    return;
                }
            };
            while let Some(batch) = stream.next().await {
                let failed = batch.is_err();
                if sender.send(batch).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok((batches, task))
    }

    /// Rows that are there already.
    pub(crate) fn ready(batch: RecordBatch) -> Self {
        let (_, batches) = mpsc::channel(1);
        Self { batches, task: None, current: Some((batch, 0)), watched: None, until: None, row_limit: None, given: 0 }
    }

    /// Whether rows can be written without waiting for the plan.
    pub(crate) fn has_some(&self) -> bool {
        self.current.as_ref().is_some_and(|(batch, at)| *at < batch.num_rows())
    }

    /// Whether the plan is ahead, so that waiting for it takes no time.
    pub(crate) fn is_ahead(&self) -> bool {
        !self.batches.is_empty()
    }

    /// Waits for rows; `false` when there are no more. May be dropped at any moment.
    pub(crate) async fn wait(&mut self) -> Result<bool, Problem> {
        let waited = self.more().await;
        match &waited {
            Ok(true) => {}
            Ok(false) => self.tell("ok"),
            Err(problem) => self.tell(problem.outcome()),
        }
        waited
    }

    fn tell(&mut self, outcome: &'static str) {
        if let Some(mut watched) = self.watched.take() {
            watched.ended(self.given, outcome);
        }
    }

    async fn more(&mut self) -> Result<bool, Problem> {
        while !self.has_some() {
            let next = match self.until {
                Some(until) => tokio::time::timeout_at(until, self.batches.recv()).await.map_err(|_| {
                    Problem::new(state::QUERY_CANCELED, "the query takes longer than your role's limit")
                })?,
                None => self.batches.recv().await,
            };
            match next {
                Some(batch) => {
                    let batch = batch.map_err(Problem::of_query)?;
                    let given = self.given + batch.num_rows() as u64;
                    if let Some(limit) = self.row_limit.filter(|limit| given > *limit) {
                        return Err(Problem::new(
                            state::PROGRAM_LIMIT,
                            format!(
                                "the answer has more than {limit} rows, which is the limit of your role: ask for less, with `limit` or a condition"
                            ),
                        ));
                    }
                    self.given = given;
                    let written = writable(&batch).map_err(|error| Problem::of_query(error.into()))?;
                    self.current = Some((written, 0));
                }
                // A plan that panicked ends without a word.
                None if !self.ended_well().await => {
                    return Err(Problem::new(state::INTERNAL, "the query failed in an unexpected way"));
                }
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    async fn ended_well(&mut self) -> bool {
        let Some(task) = &mut self.task else { return true };
        let is_well = task.await.is_ok();
        self.task = None;
        is_well
    }

    /// Writes rows that are there, until there is a good deal to send or `limit` are written. How many were.
    pub(crate) fn write(&mut self, limit: u64, sink: &Sink<'_>, out: &mut Vec<u8>) -> Result<u64, Problem> {
        let Some((batch, at)) = &mut self.current else { return Ok(0) };
        let copied;
        let formats = match sink {
            Sink::Rows(formats) => *formats,
            Sink::Copy(style) => {
                let format = if **style == CopyStyle::Binary { Format::Binary } else { Format::Text };
                copied = vec![format; batch.num_columns()];
                &copied
            }
        };
        let mut encoder = BatchEncoder::new(batch, formats).map_err(|error| Problem::of_query(error.into()))?;
        let mut written = 0;
        while *at < batch.num_rows() && written < limit && out.len() < CHUNK_BYTES {
            match sink {
                Sink::Rows(_) => encoder.data_row(*at, out),
                Sink::Copy(style) => encoder.copy_row(*at, style, out),
            }
            *at += 1;
            written += 1;
        }
        Ok(written)
    }

    /// Passes over rows that are there.
    pub(crate) fn skip(&mut self, limit: u64) -> u64 {
        let Some((batch, at)) = &mut self.current else { return 0 };
        let count = usize::try_from(limit).unwrap_or(usize::MAX).min(batch.num_rows() - *at);
        *at += count;
        count as u64
    }
}

/// The plan with joins that give way now and then. A join of two small tables can give a great many rows without asking them again, and
/// whoever wants to stop it would wait for a thread that it holds.
fn yielding(plan: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>, DataFusionError> {
    plan.transform_up(|plan| {
        Ok(match plan.name().ends_with("JoinExec") {
            true => Transformed::yes(Arc::new(CooperativeExec::new(plan)) as Arc<dyn ExecutionPlan>),
            false => Transformed::no(plan),
        })
    })
    .data()
}

/// One row, or none, of texts.
pub(crate) fn texts(columns: &[Column], rows: &[Vec<String>]) -> Result<RecordBatch, Problem> {
    use arrow::array::{ArrayRef, StringArray};
    use arrow::datatypes::{DataType, Field, Schema};

    let fields: Vec<Field> = columns.iter().map(|column| Field::new(&column.name, DataType::Utf8, true)).collect();
    let arrays = (0..columns.len())
        .map(|index| Arc::new(rows.iter().map(|row| row.get(index)).collect::<StringArray>()) as ArrayRef)
        .collect();
    RecordBatch::try_new(Arc::new(Schema::new(fields)), arrays).map_err(|error| Problem::of_query(error.into()))
}
