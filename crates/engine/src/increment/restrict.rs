//! The query for some keys alone: the same plan, with the keys put before the rows that carry them.

use std::sync::Arc;

use datafusion::catalog::TableProvider;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, JoinConstraint, JoinType, NullEquality};
use datafusion::datasource::provider_as_source;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Expr, ExprSchemable, Join, LogicalPlan, LogicalPlanBuilder, cast};
use holdfast_types::TableName;

use super::Result;
use super::derive::{Asked, How, Side};

/// What the keys are called where they stand beside a table.
const KEYS: &str = "the keys";

pub(super) fn restricted(asked: &Asked, keys: Arc<dyn TableProvider>) -> Result<LogicalPlan> {
    let keys = LogicalPlanBuilder::scan(KEYS, provider_as_source(keys), None)?.build()?;
    if keys.schema().fields().len() != 1 {
        return Err(DataFusionError::Plan("keys are one column".to_owned()));
    }
    in_place(asked, &keys)
}

/// The rows that the query reads for the keys, at each of the places where they are chosen, with the tables that are read there. Without those that a condition right above
/// leaves out.
pub(super) fn chosen_rows(asked: &Asked, keys: &Arc<dyn TableProvider>) -> Result<Vec<(Vec<TableName>, LogicalPlan)>> {
    let plan = LogicalPlanBuilder::scan(KEYS, provider_as_source(Arc::clone(keys)), None)?.build()?;
    let mut places = Vec::new();
    // With the conditions right above, outermost first: what they leave out is behind nothing.
    let mut open: Vec<(&Asked, Vec<&LogicalPlan>)> = vec![(asked, Vec::new())];
    while let Some((asked, mut above)) = open.pop() {
        match &asked.how {
            How::Here => {
                let tables = super::plain::tables(&asked.plan).into_iter().collect();
                let mut rows = chosen(Arc::clone(&asked.plan), &asked.exprs, plan.clone())?;
                for node in above.into_iter().rev() {
                    rows = node.with_new_exprs(node.expressions(), vec![rows])?;
                }
                places.push((tables, rows));
            }
            How::Through(input) => {
                match asked.plan.as_ref() {
                    LogicalPlan::Filter(_) | LogicalPlan::SubqueryAlias(_) => above.push(asked.plan.as_ref()),
                    _ => above.clear(),
                }
                open.push((input, above));
            }
            How::Every(inputs) => open.extend(inputs.iter().map(|input| (input, Vec::new()))),
            How::Join(left, right) => {
                let sides = [left.as_ref(), right.as_ref()].into_iter();
                open.extend(sides.filter_map(|side| match side {
                    Side::Keyed(asked) => Some((asked, Vec::new())),
                    Side::Joined(_) | Side::Opaque { .. } => None,
                }));
            }
        }
    }
    Ok(places)
}

fn in_place(asked: &Asked, keys: &LogicalPlan) -> Result<LogicalPlan> {
    let inputs = match &asked.how {
        How::Here => return chosen(Arc::clone(&asked.plan), &asked.exprs, keys.clone()),
        How::Through(input) => vec![in_place(input, keys)?],
        How::Every(inputs) => inputs.iter().map(|input| in_place(input, keys)).collect::<Result<_>>()?,
        How::Join(left, right) => {
            let LogicalPlan::Join(join) = asked.plan.as_ref() else {
                return Err(DataFusionError::Internal("a join is no join".to_owned()));
            };
            let side = |side: &Side, whole: &LogicalPlan| match side {
                Side::Keyed(asked) => in_place(asked, keys),
                Side::Joined(_) | Side::Opaque { .. } => Ok(whole.clone()),
            };
            vec![side(left, &join.left)?, side(right, &join.right)?]
        }
    };
    // The inputs have the columns they had, so that everything above stays as it is.
    let mut inputs = inputs.into_iter();
    let plan = asked.plan.as_ref().clone().map_children(|input| match inputs.next() {
        Some(restricted) => Ok(Transformed::yes(restricted)),
        None => Ok(Transformed::no(input)),
    })?;
    Ok(plan.data)
}

/// The rows of `plan` whose values of `exprs` are among those of `keys`; NULL is a value like another.
///
/// The keys are the left side: the few rows that a hash join holds, and whose range files are left out by.
pub(super) fn chosen(plan: Arc<LogicalPlan>, exprs: &[Expr], keys: LogicalPlan) -> Result<LogicalPlan> {
    let mut on = Vec::with_capacity(exprs.len());
    for (column, expr) in keys.schema().columns().into_iter().zip(exprs) {
        on.push((as_type(Expr::Column(column), &keys, &expr.get_type(plan.schema())?)?, expr.clone()));
    }
    let join = Join::try_new(
        Arc::new(keys),
        plan,
        on,
        None,
        JoinType::RightSemi,
        JoinConstraint::On,
        NullEquality::NullEqualsNull,
        false,
    )?;
    Ok(LogicalPlan::Join(join))
}

/// Keys are told in the type that the rows have them in; the rules let through only types that hold them all.
fn as_type(key: Expr, keys: &LogicalPlan, wanted: &arrow::datatypes::DataType) -> Result<Expr> {
    if key.get_type(keys.schema())? == *wanted { Ok(key) } else { Ok(cast(key, wanted.clone())) }
}

/// The columns of keys, in the order of what they are keys of.
pub(super) fn key_columns(count: usize) -> Vec<String> {
    (0..count).map(|index| format!("key_{index}")).collect()
}

/// A column by its name alone.
pub(super) fn column(name: &str) -> Expr {
    Expr::Column(Column::new_unqualified(name))
}
