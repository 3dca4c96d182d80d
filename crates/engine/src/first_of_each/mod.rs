//! `row_number() over (partition by k order by o) = 1` without putting rows in order.
//!
//! DataFusion sorts whole rows by `k` and `o`, numbers them and keeps the first of each `k`. Tables of arrivals are wide and have few rows twice, so the sort moves all of a table for
//! the sake of some. Here the columns of `k` are read first, and of the keys that occur more than once those of `o`; that tells which rows are the first. Then the rows are read, and pass or
//! not as they come: nothing is held but a hash a row and what is known of the repeated keys.
//!
//! [`FirstOfEach`] is the rule that finds such plans, `exec` the operator, `winners` what it knows of the keys.

mod exec;
#[cfg(test)]
mod tests;
mod winners;

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::common::config::ConfigOptions;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, Literal};
use datafusion::physical_expr::window::{StandardWindowExpr, WindowExpr};
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr, split_conjunction};
use datafusion::physical_optimizer::PhysicalOptimizerRule;
use datafusion::physical_optimizer::ensure_requirements::EnsureRequirements;
use datafusion::physical_optimizer::optimizer::PhysicalOptimizer;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::execution_plan::replace_children_if_necessary;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::{ProjectionExec, ProjectionExpr};
use datafusion::physical_plan::union::UnionExec;
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec, WindowUDFExpr};

use self::exec::FirstOfEachExec;

/// The rules of DataFusion with this one before those that give a plan its partitions and orders: what was asked of the window is not asked of what stands in its place.
pub(crate) fn physical_rules() -> Vec<Arc<dyn PhysicalOptimizerRule + Send + Sync>> {
    let mut rules = PhysicalOptimizer::new().rules;
    let place = rules.iter().position(|rule| rule.name() == EnsureRequirements::new().name()).unwrap_or(0);
    rules.insert(place, Arc::new(FirstOfEach));
    rules
}

/// Puts [`FirstOfEachExec`] in the place of a window and the filter for its first rows, where the rows below can be read twice for less than sorting them costs.
#[derive(Debug)]
pub(crate) struct FirstOfEach;

impl PhysicalOptimizerRule for FirstOfEach {
    fn optimize(&self, plan: Arc<dyn ExecutionPlan>, _config: &ConfigOptions) -> Result<Arc<dyn ExecutionPlan>> {
        let rewritten = plan.transform_up(|node| {
            Ok(match rewritten(&node)? {
                Some(other) => Transformed::yes(other),
                None => Transformed::no(node),
            })
        })?;
        Ok(rewritten.data)
    }

    fn name(&self) -> &'static str {
        "FirstOfEach"
    }

    fn schema_check(&self) -> bool {
        true
    }
}

/// A window that numbers the rows of each key.
struct Numbering<'plan> {
    input: &'plan Arc<dyn ExecutionPlan>,
    /// What its column is called.
    name: String,
    keys: Vec<Arc<dyn PhysicalExpr>>,
    order: Vec<PhysicalSortExpr>,
}

fn rewritten(node: &Arc<dyn ExecutionPlan>) -> Result<Option<Arc<dyn ExecutionPlan>>> {
    let Some(filter) = node.downcast_ref::<FilterExec>().filter(|filter| filter.fetch().is_none()) else {
        return Ok(None);
    };
    let conditions = split_conjunction(filter.predicate());
    for condition in &conditions {
        let Some(number) = column_that_is_one(condition) else { continue };
        let Some((between, numbering)) = numbering_below(filter.input(), number) else { continue };
        if !can_be_read_twice(numbering.input) {
            return Ok(None);
        }
        let Some(mut plan) = numbering.first_rows()? else { return Ok(None) };
        for projection in between.into_iter().rev() {
            plan = replace_children_if_necessary(projection, vec![plan])?;
        }
        // The number is 1 in every row that is left: the other conditions are asked as they were.
        if conditions.len() > 1 {
            return Ok(Some(replace_children_if_necessary(Arc::clone(node), vec![plan])?));
        }
        let Some(columns) = filter.projection() else { return Ok(Some(plan)) };
        let schema = plan.schema();
        let kept = columns.iter().map(|index| column(*index, schema.field(*index).name()));
        return Ok(Some(Arc::new(ProjectionExec::try_new(kept, plan)?)));
    }
    Ok(None)
}

fn column(index: usize, name: &str) -> ProjectionExpr {
    ProjectionExpr { expr: Arc::new(Column::new(name, index)), alias: name.to_owned() }
}

/// The column of which a condition says that it is 1, for a column of whole numbers from 1 on.
fn column_that_is_one(condition: &Arc<dyn PhysicalExpr>) -> Option<usize> {
    let comparison = condition.downcast_ref::<BinaryExpr>()?;
    let number = |expr: &Arc<dyn PhysicalExpr>| match expr.downcast_ref::<Literal>()?.value().cast_to(&DataType::UInt64)
    {
        Ok(ScalarValue::UInt64(number)) => number,
        _ => None,
    };
    let column = |expr: &Arc<dyn PhysicalExpr>| expr.downcast_ref::<Column>().map(Column::index);
    let (left, right) = (comparison.left(), comparison.right());
    let (index, operator, number) = match (column(left), column(right)) {
        (Some(index), None) => (index, *comparison.op(), number(right)?),
        (None, Some(index)) => (index, comparison.op().swap()?, number(left)?),
        _ => return None,
    };
    let is_one = match operator {
        Operator::Eq | Operator::LtEq => number == 1,
        Operator::Lt => number == 2,
        _ => false,
    };
    is_one.then_some(index)
}

/// The window whose only column is `row_number()` and comes up as column `index`, with the projections above it, from the top.
fn numbering_below(
    plan: &Arc<dyn ExecutionPlan>,
    mut index: usize,
) -> Option<(Vec<Arc<dyn ExecutionPlan>>, Numbering<'_>)> {
    let mut between = Vec::new();
    let mut plan = plan;
    while let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        index = projection.expr().get(index)?.expr.downcast_ref::<Column>()?.index();
        between.push(Arc::clone(plan));
        plan = projection.input();
    }
    let (input, windows): (_, &[Arc<dyn WindowExpr>]) =
        if let Some(window) = plan.downcast_ref::<BoundedWindowAggExec>() {
            (window.input(), window.window_expr())
        } else {
            let window = plan.downcast_ref::<WindowAggExec>()?;
            (window.input(), window.window_expr())
        };
    let [window] = windows else { return None };
    let function = window.as_any().downcast_ref::<StandardWindowExpr>()?.get_standard_func_expr();
    let is_number = function.as_any().downcast_ref::<WindowUDFExpr>()?.fun().name() == "row_number";
    if !is_number || index != input.schema().fields().len() || window.partition_by().is_empty() {
        return None;
    }
    let name = plan.schema().field(index).name().clone();
    let (keys, order) = (window.partition_by().to_vec(), window.order_by().to_vec());
    Some((between, Numbering { input, name, keys, order }))
}

impl Numbering<'_> {
    /// The rows of the window that have the number 1; `None` where the types of a key or of the order are none whose equality is plain, as of floats.
    fn first_rows(self) -> Result<Option<Arc<dyn ExecutionPlan>>> {
        let schema = self.input.schema();
        for expr in self.keys.iter().chain(self.order.iter().map(|sort| &sort.expr)) {
            if !is_plain(&expr.data_type(&schema)?)
                || datafusion::physical_expr_common::physical_expr::is_volatile(expr)
            {
                return Ok(None);
            }
        }
        let (mut input, mut keys, mut order) = (Arc::clone(self.input), self.keys, self.order);
        let mut above = Vec::new();
        // What a projection works out beside the columns that decide is needed of the first rows alone.
        while let Some(projection) = input.downcast_ref::<ProjectionExec>() {
            let below = |expr: &Arc<dyn PhysicalExpr>| {
                let index = expr.downcast_ref::<Column>()?.index();
                let below = &projection.expr().get(index)?.expr;
                below.downcast_ref::<Column>().is_some().then(|| Arc::clone(below))
            };
            let keys_below: Option<Vec<_>> = keys.iter().map(below).collect();
            let order_below: Option<Vec<_>> =
                order.iter().map(|sort| Some(PhysicalSortExpr::new(below(&sort.expr)?, sort.options))).collect();
            let (Some(keys_below), Some(order_below)) = (keys_below, order_below) else { break };
            (keys, order) = (keys_below, order_below);
            let next = Arc::clone(projection.input());
            above.push(std::mem::replace(&mut input, next));
        }
        let mut plan: Arc<dyn ExecutionPlan> = Arc::new(FirstOfEachExec::try_new(input, keys, order)?);
        for projection in above.into_iter().rev() {
            plan = replace_children_if_necessary(projection, vec![plan])?;
        }
        let fields = schema.fields().iter().enumerate().map(|(index, field)| column(index, field.name()));
        let one = Arc::new(Literal::new(ScalarValue::UInt64(Some(1))));
        let columns: Vec<_> = fields.chain([ProjectionExpr { expr: one, alias: self.name }]).collect();
        Ok(Some(Arc::new(ProjectionExec::try_new(columns, plan)?)))
    }
}

/// Whether equal values have equal bytes, and bytes in the order of the values.
fn is_plain(kind: &DataType) -> bool {
    match kind {
        DataType::Dictionary(_, values) => is_plain(values),
        DataType::Boolean
        | DataType::Date32
        | DataType::Date64
        | DataType::Time32(_)
        | DataType::Time64(_)
        | DataType::Timestamp(_, _)
        | DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Utf8View
        | DataType::Binary
        | DataType::LargeBinary
        | DataType::BinaryView
        | DataType::FixedSizeBinary(_)
        | DataType::Decimal128(_, _)
        | DataType::Decimal256(_, _) => true,
        other => other.is_integer(),
    }
}

/// Whether a plan gives the same rows again, at the price of reading files: of joins and aggregates it would be that of working them out.
fn can_be_read_twice(plan: &Arc<dyn ExecutionPlan>) -> bool {
    let is_steady = |expr: &Arc<dyn PhysicalExpr>| !datafusion::physical_expr_common::physical_expr::is_volatile(expr);
    if let Some(filter) = plan.downcast_ref::<FilterExec>() {
        return filter.fetch().is_none() && is_steady(filter.predicate()) && can_be_read_twice(filter.input());
    }
    if let Some(projection) = plan.downcast_ref::<ProjectionExec>() {
        let are_steady = projection.expr().iter().all(|projected| is_steady(&projected.expr));
        return are_steady && can_be_read_twice(projection.input());
    }
    if let Some(union) = plan.downcast_ref::<UnionExec>() {
        return union.children().into_iter().all(can_be_read_twice);
    }
    plan.downcast_ref::<DataSourceExec>().is_some_and(|source| source.fetch().is_none())
}
