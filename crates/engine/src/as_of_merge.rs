//! How an `ASOF JOIN` is worked out: both sides are sorted by key and moment and gone through together, once.
//!
//! The plan is what [`crate::as_of_join`] makes, a window over the right side and a join with the stretch between its rows. A hash join of that compares each row on the left with all of its
//! key on the right. Here each row has one candidate, the row on the right that its moment comes behind (or before, looking forward), and the join's own condition is asked of that one
//! alone: stretches of a key do not overlap. Memory is a batch of each side, and what the sorts spill.

use std::any::Any;
use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, UInt64Array, new_null_array};
use arrow::compute::kernels::cmp::neq;
use arrow::compute::{SortOptions, and, filter_record_batch, interleave, is_null, or, take_record_batch};
use arrow::datatypes::{DataType, SchemaRef};
use arrow::row::{OwnedRow, RowConverter, Rows, SortField};
use datafusion::common::tree_node::{Transformed, TransformedResult, TreeNode, TreeNodeRecursion};
use datafusion::common::{JoinSide, JoinType, NullEquality, Result, exec_err, internal_err, plan_err};
use datafusion::config::ConfigOptions;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{BinaryExpr, Column};
use datafusion::physical_expr::{
    EquivalenceProperties, LexOrdering, OrderingRequirements, PhysicalExpr, PhysicalSortExpr, split_conjunction,
};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_plan::execution_plan::{
    Boundedness, ChildrenPropertiesMode, EmissionType, ReplaceChildrenOptions,
};
use datafusion::physical_plan::joins::utils::{JoinFilter, build_join_schema};
use datafusion::physical_plan::joins::{HashJoinExec, SortMergeJoinExec};
use datafusion::physical_plan::metrics::{BaselineMetrics, ExecutionPlanMetricsSet, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, Distribution, ExecutionPlan, ExecutionPlanProperties, InputDistributionRequirements,
    PlanProperties,
};
use futures::TryStreamExt;

use crate::as_of_join::END;

type Expr = Arc<dyn PhysicalExpr>;

/// Batches of the right side that rows on the left may point into before what is found so far is given.
const BATCHES_HELD_MAX: usize = 16;
/// How both sides are sorted. Nulls find nothing, wherever they stand.
const SORTED: SortOptions = SortOptions { descending: false, nulls_first: false };

/// Puts [`AsOfMergeExec`] in the place of joins with a stretch. Before all other rules, so that these sort and spread its sides.
#[derive(Debug)]
pub(crate) struct AsOfMerge;

impl PhysicalOptimizerRule for AsOfMerge {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        plan.transform_up(|plan| match merged(&plan)? {
            Some(merged) => Ok(Transformed::yes(merged)),
            None => Ok(Transformed::no(plan)),
        })
        .data()
    }

    fn name(&self) -> &str {
        "as_of_merge"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// A join that is planned with a condition.
struct Planned<'a> {
    left: &'a Arc<dyn ExecutionPlan>,
    right: &'a Arc<dyn ExecutionPlan>,
    on: &'a [(Expr, Expr)],
    filter: &'a JoinFilter,
    join_type: JoinType,
}

/// The merge for a join with a stretch; `None` for anything else.
fn merged(plan: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let any: &dyn Any = plan.as_ref();
    let planned = if let Some(join) = any.downcast_ref::<HashJoinExec>() {
        if join.projection.is_some() || join.null_equality != NullEquality::NullEqualsNothing || join.null_aware {
            return Ok(None);
        }
        join.filter.as_ref().map(|filter| Planned {
            left: &join.left,
            right: &join.right,
            on: &join.on,
            filter,
            join_type: join.join_type,
        })
    } else if let Some(join) = any.downcast_ref::<SortMergeJoinExec>() {
        if join.null_equality() != NullEquality::NullEqualsNothing {
            return Ok(None);
        }
        join.filter().as_ref().map(|filter| Planned {
            left: join.left(),
            right: join.right(),
            on: join.on(),
            filter,
            join_type: join.join_type(),
        })
    } else {
        None
    };
    let Some(planned) = planned else { return Ok(None) };
    if !matches!(planned.join_type, JoinType::Left | JoinType::Inner) {
        return Ok(None);
    }
    let Some(stretch) = Stretch::of(&planned) else { return Ok(None) };
    Ok(Some(Arc::new(AsOfMergeExec::new(&planned, stretch)?)))
}

/// The stretch of a row on the right, in expressions over each side's columns.
#[derive(Debug, Clone)]
struct Stretch {
    /// The moment on the left.
    at: Expr,
    /// Where the stretch of a row on the right begins.
    begin: Expr,
    /// Where it ends.
    end: Expr,
    is_backward: bool,
    counts_same: bool,
}

impl Stretch {
    fn of(planned: &Planned<'_>) -> Option<Self> {
        let filter = planned.filter;
        let end_at = filter
            .schema()
            .fields()
            .iter()
            .zip(filter.column_indices())
            .position(|(field, column)| field.name() == END && column.side == JoinSide::Right)?;
        let end = Arc::new(Column::new(END, filter.column_indices()[end_at].index)) as Expr;
        let mut found = None;
        for conjunct in split_conjunction(filter.expression()) {
            let any: &dyn Any = conjunct.as_ref();
            let Some(compared) = any.downcast_ref::<BinaryExpr>() else { continue };
            let (left, right) = (side_of(compared.left(), filter), side_of(compared.right(), filter));
            let (at, begin, operator) = match (left, right) {
                (Some(JoinSide::Left), Some(JoinSide::Right)) => (compared.left(), compared.right(), *compared.op()),
                (Some(JoinSide::Right), Some(JoinSide::Left)) => {
                    (compared.right(), compared.left(), compared.op().swap()?)
                }
                _ => continue,
            };
            if mentions(begin, end_at) {
                continue;
            }
            let (is_backward, counts_same) = match operator {
                Operator::GtEq => (true, true),
                Operator::Gt => (true, false),
                Operator::LtEq => (false, true),
                Operator::Lt => (false, false),
                _ => continue,
            };
            // A second one would be a condition that somebody else wrote.
            if found.is_some() {
                return None;
            }
            let (at, begin) = (of_side(at, filter)?, of_side(begin, filter)?);
            found = Some(Self { at, begin, end: Arc::clone(&end), is_backward, counts_same });
        }
        let found = found?;
        let same_type = |left: &Expr, right: &Expr| {
            let types = (left.data_type(&planned.left.schema()).ok()?, right.data_type(&planned.right.schema()).ok()?);
            (types.0 == types.1 && !types.0.is_nested() && types.0 != DataType::Null).then_some(())
        };
        same_type(&found.at, &found.begin)?;
        planned.on.iter().try_for_each(|(left, right)| same_type(left, right))?;
        Some(found)
    }
}

/// The side whose columns an expression of the condition is of; `None` where it is of both, or of no column.
fn side_of(expr: &Expr, filter: &JoinFilter) -> Option<JoinSide> {
    let mut sides = Vec::new();
    let _ = expr.apply(|part| {
        if let Some(column) = (part.as_ref() as &dyn Any).downcast_ref::<Column>() {
            sides.push(filter.column_indices().get(column.index()).map(|column| column.side));
        }
        Ok(TreeNodeRecursion::Continue)
    });
    let first = sides.first().copied().flatten()?;
    sides.iter().all(|side| *side == Some(first)).then_some(first)
}

fn mentions(expr: &Expr, index: usize) -> bool {
    let mut found = false;
    let _ = expr.apply(|part| {
        let column = (part.as_ref() as &dyn Any).downcast_ref::<Column>();
        found |= column.is_some_and(|column| column.index() == index);
        Ok(TreeNodeRecursion::Continue)
    });
    found
}

/// An expression of the condition over the columns of the one side that it is of.
fn of_side(expr: &Expr, filter: &JoinFilter) -> Option<Expr> {
    let moved = Arc::clone(expr).transform_up(|part| {
        let Some(column) = (part.as_ref() as &dyn Any).downcast_ref::<Column>() else {
            return Ok(Transformed::no(part));
        };
        let Some(place) = filter.column_indices().get(column.index()) else { return internal_err!("no such column") };
        Ok(Transformed::yes(Arc::new(Column::new(column.name(), place.index)) as Expr))
    });
    moved.data().ok()
}

/// Goes through both sides together, and joins each row on the left with the row on the right whose stretch its moment is in.
#[derive(Debug)]
pub(crate) struct AsOfMergeExec {
    left: Arc<dyn ExecutionPlan>,
    right: Arc<dyn ExecutionPlan>,
    on: Vec<(Expr, Expr)>,
    stretch: Stretch,
    filter: JoinFilter,
    join_type: JoinType,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl AsOfMergeExec {
    fn new(planned: &Planned<'_>, stretch: Stretch) -> Result<Self> {
        let (schema, _) = build_join_schema(&planned.left.schema(), &planned.right.schema(), &planned.join_type);
        let schema = Arc::new(schema);
        Ok(Self {
            left: Arc::clone(planned.left),
            right: Arc::clone(planned.right),
            on: planned.on.to_vec(),
            stretch,
            filter: planned.filter.clone(),
            join_type: planned.join_type,
            properties: Arc::new(properties(planned.left, &schema)),
            schema,
            metrics: ExecutionPlanMetricsSet::new(),
        })
    }

    fn sorted(&self, keys: impl Iterator<Item = Expr>, moment: &Expr) -> Option<OrderingRequirements> {
        let sorts = keys.chain([Arc::clone(moment)]).map(|expr| PhysicalSortExpr::new(expr, SORTED));
        LexOrdering::new(sorts).map(OrderingRequirements::from)
    }
}

/// The left side comes first, in its partitions.
fn properties(left: &Arc<dyn ExecutionPlan>, schema: &SchemaRef) -> PlanProperties {
    PlanProperties::new(
        EquivalenceProperties::new(Arc::clone(schema)),
        left.output_partitioning().clone(),
        EmissionType::Incremental,
        Boundedness::Bounded,
    )
}

impl DisplayAs for AsOfMergeExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on: Vec<String> = self.on.iter().map(|(left, right)| format!("({left}, {right})")).collect();
        write!(f, "AsOfMergeExec: join_type={}, on=[{}], filter={}", self.join_type, on.join(", "), self.filter)
    }
}

impl ExecutionPlan for AsOfMergeExec {
    fn name(&self) -> &'static str {
        "AsOfMergeExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.left, &self.right]
    }

    fn required_input_distribution(&self) -> Vec<Distribution> {
        self.input_distribution_requirements().into_per_child()
    }

    fn input_distribution_requirements(&self) -> InputDistributionRequirements {
        let (left, right) = self.on.iter().map(|(left, right)| (Arc::clone(left), Arc::clone(right))).unzip();
        InputDistributionRequirements::co_partitioned(vec![
            Distribution::KeyPartitioned(left),
            Distribution::KeyPartitioned(right),
        ])
    }

    fn required_input_ordering(&self) -> Vec<Option<OrderingRequirements>> {
        let (left, right) = (self.on.iter().map(|on| Arc::clone(&on.0)), self.on.iter().map(|on| Arc::clone(&on.1)));
        vec![self.sorted(left, &self.stretch.at), self.sorted(right, &self.stretch.begin)]
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        // It does keep the left one's; nobody is told, since columns of both sides can have one name.
        vec![false, false]
    }

    fn apply_expressions(&self, f: &mut dyn FnMut(&Expr) -> Result<TreeNodeRecursion>) -> Result<TreeNodeRecursion> {
        let keys = self.on.iter().flat_map(|(left, right)| [left, right]);
        let own = [&self.stretch.at, &self.stretch.begin, &self.stretch.end, self.filter.expression()];
        datafusion::physical_plan::apply_expression_roots(keys.chain(own), f)
    }

    fn replace_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let [left, right] = <[_; 2]>::try_from(children).or_else(|_| plan_err!("an as-of merge has two sides"))?;
        Ok(Arc::new(Self {
            properties: Arc::new(properties(&left, &self.schema)),
            left,
            right,
            on: self.on.clone(),
            stretch: self.stretch.clone(),
            filter: self.filter.clone(),
            join_type: self.join_type,
            schema: Arc::clone(&self.schema),
            metrics: ExecutionPlanMetricsSet::new(),
        }))
    }

    fn with_new_children(self: Arc<Self>, children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(children, ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute))
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let (lefts, rights) =
            (self.left.output_partitioning().partition_count(), self.right.output_partitioning().partition_count());
        if lefts != rights {
            return internal_err!("an as-of merge of {lefts} partitions with {rights}");
        }
        let (keys, moment): (Vec<SortField>, DataType) = {
            let schema = self.left.schema();
            let types = self.on.iter().map(|(left, _)| left.data_type(&schema));
            let keys = types.map(|data_type| Ok(SortField::new_with_options(data_type?, SORTED)));
            (keys.collect::<Result<_>>()?, self.stretch.at.data_type(&schema)?)
        };
        let merge = Merge {
            sides: [
                Side {
                    keys: self.on.iter().map(|on| Arc::clone(&on.0)).collect(),
                    moment: Arc::clone(&self.stretch.at),
                    rows: self.left.execute(partition, Arc::clone(&context))?,
                },
                Side {
                    keys: self.on.iter().map(|on| Arc::clone(&on.1)).collect(),
                    moment: Arc::clone(&self.stretch.begin),
                    rows: self.right.execute(partition, context)?,
                },
            ],
            keys: RowConverter::new(keys)?,
            moments: RowConverter::new(vec![SortField::new_with_options(moment, SORTED)])?,
            end: Arc::clone(&self.stretch.end),
            is_backward: self.stretch.is_backward,
            counts_same: self.stretch.counts_same,
            filter: self.filter.clone(),
            is_outer: self.join_type == JoinType::Left,
            schema: Arc::clone(&self.schema),
            right_schema: self.right.schema(),
            left: None,
            right: None,
            right_ended: false,
            last: None,
        };
        let metrics = BaselineMetrics::new(&self.metrics, partition);
        let rows = futures::stream::try_unfold((merge, metrics), |(mut merge, metrics)| async move {
            let next = merge.next().await?;
            Ok(next.map(|batch| {
                metrics.record_output(batch.num_rows());
                (batch, (merge, metrics))
            }))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), rows)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// A side, as it comes.
struct Side {
    keys: Vec<Expr>,
    moment: Expr,
    rows: SendableRecordBatchStream,
}

/// A batch with its keys and moments, and how far it was gone through.
struct Sorted {
    batch: Arc<RecordBatch>,
    keys: Rows,
    moments: Rows,
    /// Whether a key or the moment is null.
    is_null: BooleanArray,
    at: usize,
}

/// A row on the right that was gone past.
struct Past {
    batch: Arc<RecordBatch>,
    row: usize,
    key: OwnedRow,
}

struct Merge {
    sides: [Side; 2],
    keys: RowConverter,
    moments: RowConverter,
    end: Expr,
    is_backward: bool,
    counts_same: bool,
    filter: JoinFilter,
    is_outer: bool,
    schema: SchemaRef,
    right_schema: SchemaRef,
    left: Option<Sorted>,
    right: Option<Sorted>,
    right_ended: bool,
    /// Looking back: the last row that is not later.
    last: Option<Past>,
}

impl Merge {
    /// The next rows; `None` at the end of the left side.
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            let Some(mut left) = self.next_left().await? else { return Ok(None) };
            let begin = left.at;
            let mut held: Vec<Arc<RecordBatch>> = Vec::new();
            let mut found: Vec<Option<(usize, usize)>> = Vec::with_capacity(left.batch.num_rows() - begin);
            while left.at < left.batch.num_rows() && held.len() < BATCHES_HELD_MAX {
                if left.is_null.value(left.at) {
                    found.push(None);
                    left.at += 1;
                    continue;
                }
                self.go_on(&left).await?;
                let candidate = self.candidate(&left);
                found.push(candidate.map(|(batch, row)| {
                    if held.last().is_none_or(|last| !Arc::ptr_eq(last, &batch)) {
                        held.push(batch);
                    }
                    (held.len() - 1, row)
                }));
                left.at += 1;
            }
            let rows = left.batch.slice(begin, left.at - begin);
            self.left = Some(left);
            let joined = self.joined(&rows, &held, &found)?;
            if joined.num_rows() > 0 {
                return Ok(Some(joined));
            }
        }
    }

    async fn next_left(&mut self) -> Result<Option<Sorted>> {
        if let Some(left) = self.left.take().filter(|left| left.at < left.batch.num_rows()) {
            return Ok(Some(left));
        }
        while let Some(batch) = self.sides[0].rows.try_next().await? {
            if batch.num_rows() > 0 {
                return self.sorted(0, batch).map(Some);
            }
        }
        Ok(None)
    }

    /// Goes past rows on the right that stand before a row on the left.
    async fn go_on(&mut self, left: &Sorted) -> Result<()> {
        loop {
            if self.right.as_ref().is_none_or(|right| right.at == right.batch.num_rows()) {
                if self.right_ended {
                    return Ok(());
                }
                self.right = self.next_right().await?;
                self.right_ended = self.right.is_none();
                continue;
            }
            let Some(right) = &mut self.right else { return Ok(()) };
            let begin = right.at;
            while right.at < right.batch.num_rows() && self.is_backward == self.counts_same {
                // Looking back a row at the same moment is gone past where it counts; looking forward where it does not.
                if right.compared(left) == Ordering::Greater {
                    break;
                }
                right.at += 1;
            }
            while right.at < right.batch.num_rows() && self.is_backward != self.counts_same {
                if right.compared(left) != Ordering::Less {
                    break;
                }
                right.at += 1;
            }
            if self.is_backward && right.at > begin {
                let row = right.at - 1;
                self.last = Some(Past { batch: Arc::clone(&right.batch), row, key: right.keys.row(row).owned() });
            }
            if right.at < right.batch.num_rows() {
                return Ok(());
            }
        }
    }

    async fn next_right(&mut self) -> Result<Option<Sorted>> {
        while let Some(batch) = self.sides[1].rows.try_next().await? {
            // Of rows at one moment all but one have an empty stretch.
            let end = self.end.evaluate(&batch)?.into_array(batch.num_rows())?;
            let begin = self.sides[1].moment.evaluate(&batch)?.into_array(batch.num_rows())?;
            let has_length = or(&is_null(&end)?, &without_nulls(&neq(&end, &begin)?))?;
            let batch = if has_length.true_count() == batch.num_rows() {
                batch
            } else {
                filter_record_batch(&batch, &has_length)?
            };
            if batch.num_rows() > 0 {
                return self.sorted(1, batch).map(Some);
            }
        }
        Ok(None)
    }

    /// The row on the right that a row on the left can be joined with.
    fn candidate(&self, left: &Sorted) -> Option<(Arc<RecordBatch>, usize)> {
        let key = left.keys.row(left.at);
        if self.is_backward {
            let last = self.last.as_ref().filter(|last| last.key.row() == key)?;
            return Some((Arc::clone(&last.batch), last.row));
        }
        let right = self.right.as_ref().filter(|right| right.at < right.batch.num_rows())?;
        (right.keys.row(right.at) == key).then(|| (Arc::clone(&right.batch), right.at))
    }

    fn sorted(&self, side: usize, batch: RecordBatch) -> Result<Sorted> {
        let Side { keys, moment, .. } = &self.sides[side];
        let columns = |exprs: &[Expr]| -> Result<Vec<ArrayRef>> {
            exprs.iter().map(|expr| expr.evaluate(&batch)?.into_array(batch.num_rows())).collect()
        };
        let (keys, moments) = (columns(keys)?, columns(std::slice::from_ref(moment))?);
        let mut nulls = BooleanArray::from(vec![false; batch.num_rows()]);
        for column in keys.iter().chain(&moments).filter(|column| column.null_count() > 0) {
            nulls = or(&nulls, &is_null(column)?)?;
        }
        Ok(Sorted {
            keys: self.keys.convert_columns(&keys)?,
            moments: self.moments.convert_columns(&moments)?,
            is_null: nulls,
            batch: Arc::new(batch),
            at: 0,
        })
    }

    /// Rows on the left beside those that they found, where the condition of the join holds.
    fn joined(
        &self,
        left: &RecordBatch,
        held: &[Arc<RecordBatch>],
        found: &[Option<(usize, usize)>],
    ) -> Result<RecordBatch> {
        // One more, of nulls, for rows that found none.
        let places: Vec<(usize, usize)> = found.iter().map(|place| place.unwrap_or((held.len(), 0))).collect();
        let mut right = Vec::with_capacity(self.right_schema.fields().len());
        for (at, field) in self.right_schema.fields().iter().enumerate() {
            let none = new_null_array(field.data_type(), 1);
            let columns: Vec<&dyn Array> =
                held.iter().map(|batch| batch.column(at).as_ref()).chain([none.as_ref()]).collect();
            right.push(interleave(&columns, &places)?);
        }
        let column = |place: &datafusion::physical_plan::joins::utils::ColumnIndex| match place.side {
            JoinSide::Left => Ok(Arc::clone(left.column(place.index))),
            JoinSide::Right => Ok(Arc::clone(&right[place.index])),
            JoinSide::None => exec_err!("a condition of a join with a column of no side"),
        };
        let columns = self.filter.column_indices().iter().map(column).collect::<Result<Vec<_>>>()?;
        let fields = self.filter.schema().fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
        let asked = RecordBatch::try_new(Arc::new(arrow::datatypes::Schema::new(fields.collect::<Vec<_>>())), columns)?;
        let holds = self.filter.expression().evaluate(&asked)?.into_array(asked.num_rows())?;
        let is_found = BooleanArray::from(found.iter().map(Option::is_some).collect::<Vec<_>>());
        let holds = and(&is_found, &without_nulls(holds.as_boolean()))?;
        if !self.is_outer {
            let columns = left.columns().iter().cloned().chain(right).collect();
            let joined = RecordBatch::try_new(Arc::clone(&self.schema), columns)?;
            return Ok(filter_record_batch(&joined, &holds)?);
        }
        if holds.true_count() != is_found.true_count() {
            let kept = (0_u64..).zip(holds.values().iter()).map(|(row, holds)| holds.then_some(row));
            let kept = UInt64Array::from_iter(kept);
            let fields = self.right_schema.fields().iter().map(|field| field.as_ref().clone().with_nullable(true));
            let schema = Arc::new(arrow::datatypes::Schema::new(fields.collect::<Vec<_>>()));
            right = take_record_batch(&RecordBatch::try_new(schema, right)?, &kept)?.columns().to_vec();
        }
        let columns = left.columns().iter().cloned().chain(right).collect();
        Ok(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }
}

impl Sorted {
    /// The row that this side has come to beside the one that the other has come to.
    fn compared(&self, other: &Self) -> Ordering {
        let keys = self.keys.row(self.at).cmp(&other.keys.row(other.at));
        keys.then_with(|| self.moments.row(self.at).cmp(&other.moments.row(other.at)))
    }
}

/// A null does not hold.
fn without_nulls(found: &BooleanArray) -> BooleanArray {
    match found.nulls() {
        Some(nulls) => BooleanArray::new(found.values() & nulls.inner(), None),
        None => found.clone(),
    }
}
