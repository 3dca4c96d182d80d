//! The operator: finds the first rows by the columns that decide, then lets them pass.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use arrow::array::{ArrayRef, BooleanArray, RecordBatch, UInt32Array};
use arrow::compute::{BatchCoalescer, SortOptions, take_arrays};
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, Rows, SortField};
use datafusion::common::hash_utils::{RandomState, create_hashes};
use datafusion::common::runtime::SpawnedTask;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result};
use datafusion::execution::memory_pool::{MemoryConsumer, MemoryLimit, MemoryReservation};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr, PhysicalSortExpr};
use datafusion::physical_plan::execution_plan::{
    ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions, apply_expression_roots, reset_plan_states,
};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::projection::{ProjectionExec, ProjectionExpr};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties};
use futures::{Stream, StreamExt, TryStreamExt};
use tokio::sync::OnceCell;

use super::winners::{Repeated, Winners};

/// Columns that decide are kept until it is known which keys are repeated, up to this much and this part of the memory; beyond it they are read once more.
const KEPT_BYTES_MAX: usize = 64 << 20;
const KEPT_SHARE: usize = 8;

/// One seed for all, so that a key has one hash.
const HASHING: RandomState = RandomState::with_seed(0x686f_6c64_6661_7374);

/// The rows of its first child that are the first of their key by an order. The second child gives the columns that decide, for all of them: keys, then what orders them.
///
/// Rows come as they are in the first child, in its partitions and its order. Needs memory for 8 bytes a row, and for key and order of each key that has more than one row.
pub(super) struct FirstOfEachExec {
    rows: Arc<dyn ExecutionPlan>,
    deciding: Arc<dyn ExecutionPlan>,
    keys: Vec<Arc<dyn PhysicalExpr>>,
    order: Vec<PhysicalSortExpr>,
    execution: Mutex<Execution>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

/// What partitions share while the plan is run.
#[derive(Default)]
struct Execution {
    /// Found by whichever partition is asked first, for all of them.
    first: Arc<OnceCell<First>>,
    /// The partitions that were begun.
    begun: HashSet<usize>,
}

impl FirstOfEachExec {
    pub(super) fn try_new(
        rows: Arc<dyn ExecutionPlan>,
        keys: Vec<Arc<dyn PhysicalExpr>>,
        order: Vec<PhysicalSortExpr>,
    ) -> Result<Self> {
        let deciding = keys.iter().chain(order.iter().map(|sort| &sort.expr)).enumerate();
        let deciding =
            deciding.map(|(index, expr)| ProjectionExpr { expr: Arc::clone(expr), alias: format!("c{index}") });
        let deciding = ProjectionExec::try_new(deciding.collect::<Vec<_>>(), Arc::clone(&rows))?;
        Ok(Self::over(rows, Arc::new(deciding), keys, order))
    }

    fn over(
        rows: Arc<dyn ExecutionPlan>,
        deciding: Arc<dyn ExecutionPlan>,
        keys: Vec<Arc<dyn PhysicalExpr>>,
        order: Vec<PhysicalSortExpr>,
    ) -> Self {
        // What is equal or constant among all rows is so among some.
        let equivalences: EquivalenceProperties = rows.equivalence_properties().clone();
        let partitioning = rows.output_partitioning().clone();
        let properties = PlanProperties::new(equivalences, partitioning, EmissionType::Incremental, rows.boundedness());
        Self {
            rows,
            deciding,
            keys,
            order,
            execution: Mutex::default(),
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
        }
    }

    /// What the partition shares with the others. One that is begun a second time is of another run of the plan, in which the same rows are the first once more.
    fn begin(&self, partition: usize) -> Arc<OnceCell<First>> {
        let mut execution = self.execution.lock().unwrap_or_else(PoisonError::into_inner);
        if !execution.begun.insert(partition) {
            *execution = Execution { begun: HashSet::from([partition]), ..Execution::default() };
        }
        Arc::clone(&execution.first)
    }
}

impl fmt::Debug for FirstOfEachExec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.fmt_as(DisplayFormatType::Default, f)
    }
}

impl DisplayAs for FirstOfEachExec {
    fn fmt_as(&self, _kind: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys: Vec<String> = self.keys.iter().map(ToString::to_string).collect();
        let order: Vec<String> = self.order.iter().map(ToString::to_string).collect();
        write!(f, "FirstOfEachExec: keys=[{}], order=[{}]", keys.join(", "), order.join(", "))
    }
}

impl ExecutionPlan for FirstOfEachExec {
    fn name(&self) -> &'static str {
        "FirstOfEachExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.rows, &self.deciding]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true, false]
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        apply_expression_roots(self.keys.iter().chain(self.order.iter().map(|sort| &sort.expr)), f)
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (Some(deciding), Some(rows), None) = (children.pop(), children.pop(), children.pop()) else {
            return Err(DataFusionError::Internal("the first rows of each key have two children".to_owned()));
        };
        Ok(Arc::new(Self::over(rows, deciding, self.keys.clone(), self.order.clone())))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let decision = Decision {
            plan: Arc::clone(&self.deciding),
            keys: self.keys.len(),
            options: self.order.iter().map(|sort| sort.options).collect(),
            context: Arc::clone(&context),
        };
        let (first, rows, keys) = (self.begin(partition), Arc::clone(&self.rows), self.keys.clone());
        let order: Vec<_> = self.order.iter().map(|sort| Arc::clone(&sort.expr)).collect();
        let schema = self.schema();
        let columns = Arc::clone(&schema);
        let batch_rows = context.session_config().batch_size();
        let stream = futures::stream::once(async move {
            first.get_or_try_init(|| decision.made()).await?;
            let batches = rows.execute(partition, context)?;
            Ok::<_, DataFusionError>(passing(batches, Passing { first, keys, order, metrics }, columns, batch_rows))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, stream.try_flatten())))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// What is known of the keys before rows pass.
struct First {
    repeated: Repeated,
    winners: Winners,
    bytes_of: Bytes,
    _memory: MemoryReservation,
}

/// Makes bytes of values that are equal when the values are, and in their order.
struct Bytes {
    keys: RowConverter,
    order: RowConverter,
}

/// Reads the columns that decide.
struct Decision {
    plan: Arc<dyn ExecutionPlan>,
    keys: usize,
    options: Vec<SortOptions>,
    context: Arc<TaskContext>,
}

/// The columns that decide, of one batch.
type Columns = Vec<ArrayRef>;

/// What was read of a partition.
struct Read {
    hashes: Vec<u64>,
    /// As long as they are few.
    columns: Option<Vec<Columns>>,
}

impl Decision {
    async fn made(self) -> Result<First> {
        let memory = Arc::new(MemoryConsumer::new("FirstOfEach").register(self.context.memory_pool()));
        let streams = self.streams()?;
        let kept_max = match self.context.memory_pool().memory_limit() {
            MemoryLimit::Finite(bytes) => KEPT_BYTES_MAX.min(bytes / KEPT_SHARE),
            _ => KEPT_BYTES_MAX,
        };
        let kept_max = kept_max / streams.len().max(1);
        let read = on_each(streams, |stream| read(stream, self.keys, kept_max, Arc::clone(&memory))).await?;
        let mut hashes = Vec::with_capacity(read.iter().map(|read| read.hashes.len()).sum());
        let mut kept = Some(Vec::new());
        for part in read {
            hashes.extend(part.hashes);
            kept = kept.zip(part.columns).map(|(mut all, some)| {
                all.extend(some);
                all
            });
        }
        let repeated = Repeated::among(hashes);
        memory.try_grow(repeated.bytes())?;

        let finding = Finding {
            keys: self.keys,
            bytes_of: self.bytes_of()?,
            repeated,
            winners: Mutex::default(),
            memory: Arc::clone(&memory),
        };
        let finding = Arc::new(finding);
        match kept {
            _ if finding.repeated.is_empty() => {}
            Some(batches) => batches.iter().try_for_each(|columns| finding.look_at(columns))?,
            None => {
                on_each(self.streams()?, |stream| look_through(stream, Arc::clone(&finding))).await?;
            }
        }
        let busy = || DataFusionError::Internal("first rows are still being looked for".to_owned());
        let Finding { bytes_of, repeated, winners, memory: held, .. } = Arc::into_inner(finding).ok_or_else(busy)?;
        drop(held);
        let memory = Arc::into_inner(memory).ok_or_else(busy)?;
        let winners = winners.into_inner().unwrap_or_else(PoisonError::into_inner);
        memory.try_resize(repeated.bytes() + winners.bytes())?;
        Ok(First { repeated, winners, bytes_of, _memory: memory })
    }

    /// All partitions, from their beginning: a plan in which rows are passed between partitions can be run but once.
    fn streams(&self) -> Result<Vec<SendableRecordBatchStream>> {
        let plan = reset_plan_states(Arc::clone(&self.plan))?;
        let partitions = 0..plan.output_partitioning().partition_count();
        partitions.map(|partition| plan.execute(partition, Arc::clone(&self.context))).collect()
    }

    fn bytes_of(&self) -> Result<Bytes> {
        let schema = self.plan.schema();
        let mut kinds = schema.fields().iter().map(|field| field.data_type().clone());
        let keys = kinds.by_ref().take(self.keys).map(SortField::new).collect();
        let order = kinds.zip(&self.options).map(|(kind, options)| SortField::new_with_options(kind, *options));
        Ok(Bytes { keys: RowConverter::new(keys)?, order: RowConverter::new(order.collect())? })
    }
}

/// Does something with all streams, side by side.
async fn on_each<Done, Doing>(
    streams: Vec<SendableRecordBatchStream>,
    work: impl Fn(SendableRecordBatchStream) -> Doing,
) -> Result<Vec<Done>>
where
    Done: Send + 'static,
    Doing: Future<Output = Result<Done>> + Send + 'static,
{
    // Ended with the list, when one of them fails or nobody waits any more.
    let tasks: Vec<_> = streams.into_iter().map(|stream| SpawnedTask::spawn(work(stream))).collect();
    let mut done = Vec::with_capacity(tasks.len());
    for task in tasks {
        done.push(task.join_unwind().await.map_err(|error| DataFusionError::External(Box::new(error)))??);
    }
    Ok(done)
}

/// Reads a partition, of whose columns no more than `kept_max` bytes are kept.
async fn read(
    mut stream: SendableRecordBatchStream,
    keys: usize,
    kept_max: usize,
    memory: Arc<MemoryReservation>,
) -> Result<Read> {
    let (mut hashes, mut columns, mut bytes_kept) = (Vec::new(), Some(Vec::new()), 0);
    while let Some(batch) = stream.next().await {
        let batch = batch?;
        memory.try_grow(batch.num_rows() * size_of::<u64>())?;
        hashes.extend(hashes_of(&batch.columns()[..keys], batch.num_rows())?);
        if let Some(kept) = &mut columns {
            let bytes = batch.get_array_memory_size();
            if bytes_kept + bytes <= kept_max && memory.try_grow(bytes).is_ok() {
                bytes_kept += bytes;
                kept.push(batch.columns().to_vec());
            } else {
                memory.shrink(bytes_kept);
                columns = None;
            }
        }
    }
    Ok(Read { hashes, columns })
}

async fn look_through(mut stream: SendableRecordBatchStream, finding: Arc<Finding>) -> Result<()> {
    while let Some(batch) = stream.next().await {
        finding.look_at(batch?.columns())?;
    }
    Ok(())
}

fn hashes_of(keys: &[ArrayRef], rows: usize) -> Result<Vec<u64>> {
    let mut hashes = vec![0; rows];
    create_hashes(keys, &HASHING, &mut hashes)?;
    Ok(hashes)
}

/// Finds the first rows of the repeated keys.
struct Finding {
    keys: usize,
    bytes_of: Bytes,
    repeated: Repeated,
    winners: Mutex<Winners>,
    memory: Arc<MemoryReservation>,
}

impl Finding {
    fn look_at(&self, columns: &[ArrayRef]) -> Result<()> {
        let (keys, order) = columns.split_at(self.keys);
        let rows = keys.first().map_or(0, |key| key.len());
        let hashes = hashes_of(keys, rows)?;
        let Some(known) = self.bytes_of.repeated_rows(&self.repeated, &hashes, keys, || Ok(order.to_vec()))? else {
            return Ok(());
        };
        let mut winners = self.winners.lock().unwrap_or_else(PoisonError::into_inner);
        let before = winners.bytes();
        for (row, key, order) in known.rows() {
            winners.offer(hashes[row], key, order);
        }
        self.memory.try_grow(winners.bytes().saturating_sub(before))
    }
}

/// The rows of a batch whose keys may be repeated: which, and their bytes.
struct RepeatedRows {
    places: Vec<u32>,
    keys: Rows,
    order: Rows,
}

impl RepeatedRows {
    /// Place in the batch, key and order of each.
    fn rows(&self) -> impl Iterator<Item = (usize, &[u8], &[u8])> {
        self.places
            .iter()
            .enumerate()
            .map(|(index, place)| (*place as usize, self.keys.row(index).data(), self.order.row(index).data()))
    }
}

impl Bytes {
    /// `None` when there is none. What orders the rows is asked for only then.
    fn repeated_rows(
        &self,
        repeated: &Repeated,
        hashes: &[u64],
        keys: &[ArrayRef],
        order: impl FnOnce() -> Result<Columns>,
    ) -> Result<Option<RepeatedRows>> {
        if repeated.is_empty() {
            return Ok(None);
        }
        let places = (0_u32..).zip(hashes).filter(|(_, hash)| repeated.contains(**hash)).map(|(place, _)| place);
        let places: Vec<u32> = places.collect();
        if places.is_empty() {
            return Ok(None);
        }
        let taken = UInt32Array::from(places.clone());
        let keys = self.keys.convert_columns(&take_arrays(keys, &taken, None)?)?;
        let order = self.order.convert_columns(&take_arrays(&order()?, &taken, None)?)?;
        Ok(Some(RepeatedRows { places, keys, order }))
    }
}

/// Lets rows pass that are the first of their key.
struct Passing {
    first: Arc<OnceCell<First>>,
    keys: Vec<Arc<dyn PhysicalExpr>>,
    order: Vec<Arc<dyn PhysicalExpr>>,
    metrics: BaselineMetrics,
}

impl Passing {
    /// Which rows pass; `None` when all do.
    fn mask(&self, batch: &RecordBatch) -> Result<Option<BooleanArray>> {
        let _timer = self.metrics.elapsed_compute().timer();
        let not_there = || DataFusionError::Internal("the first rows are not known yet".to_owned());
        let first = self.first.get().ok_or_else(not_there)?;
        let values = |exprs: &[Arc<dyn PhysicalExpr>]| -> Result<Columns> {
            exprs.iter().map(|expr| expr.evaluate(batch)?.into_array(batch.num_rows())).collect()
        };
        let keys = values(&self.keys)?;
        let hashes = hashes_of(&keys, batch.num_rows())?;
        let known = first.bytes_of.repeated_rows(&first.repeated, &hashes, &keys, || values(&self.order))?;
        let Some(known) = known else { return Ok(None) };
        let mut passes = vec![true; batch.num_rows()];
        for (row, key, order) in known.rows() {
            passes[row] = first.winners.takes(hashes[row], key, order);
        }
        Ok(Some(BooleanArray::from(passes)))
    }
}

/// The rows that pass, in batches of about the usual size.
fn passing(
    batches: SendableRecordBatchStream,
    passing: Passing,
    schema: SchemaRef,
    batch_rows: usize,
) -> impl Stream<Item = Result<RecordBatch>> {
    let together = BatchCoalescer::new(schema, batch_rows).with_biggest_coalesce_batch_size(Some(batch_rows / 2));
    let state = (batches, together, passing, false);
    futures::stream::try_unfold(state, |(mut batches, mut together, passing, mut is_over)| async move {
        loop {
            if let Some(batch) = together.next_completed_batch() {
                passing.metrics.record_output(batch.num_rows());
                return Ok(Some((batch, (batches, together, passing, is_over))));
            }
            if is_over {
                return Ok(None);
            }
            match batches.next().await {
                Some(batch) => {
                    let batch = batch?;
                    match passing.mask(&batch)? {
                        Some(mask) => together.push_batch_with_filter(batch, &mask)?,
                        None => together.push_batch(batch)?,
                    }
                }
                None => {
                    together.finish_buffered_batch()?;
                    is_over = true;
                }
            }
        }
    })
}
