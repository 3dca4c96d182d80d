//! The rules: at each node of a plan, whether keys may be chosen before it as well as behind it.

use std::sync::Arc;

use datafusion::common::Column;
use datafusion::logical_expr::expr::GroupingSet;
use datafusion::logical_expr::utils::{enumerate_grouping_sets, grouping_set_to_exprlist};
use datafusion::logical_expr::{Aggregate, Distinct, DistinctOn, Expr, ExprSchemable, LogicalPlan, Unnest, Window};

use super::NotByKey;
use super::equal::Equal;
use super::expression::{bare, can_fail, has_floats, is_function_of, is_key_type, is_of_its_row, substituted};
use super::join;
use super::own::{Own, Trail};
use super::plain::subqueries;

/// A plan that is asked for the rows of some keys: those whose values of `exprs` are among the keys'.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) plan: Arc<LogicalPlan>,
    pub(super) exprs: Vec<Expr>,
    pub(super) how: How,
}

/// Where the keys are chosen.
#[derive(Debug, Clone)]
pub(super) enum How {
    /// Right behind this node. All below are rows taken one by one.
    Here,
    /// In its input.
    Through(Box<Asked>),
    /// In each of its inputs.
    Every(Vec<Asked>),
    /// In at least one side of a join.
    Join(Box<Side>, Box<Side>),
}

/// What becomes of one side of a join.
#[derive(Debug, Clone)]
pub(super) enum Side {
    /// It carries the key, too.
    Keyed(Asked),
    /// It stays whole. What a change of it concerns is found through the other side.
    Joined(Box<Lookup>),
    /// It stays whole, and a change of it concerns who knows what.
    Opaque { plan: Arc<LogicalPlan>, reason: String },
}

/// How changed rows of a joined side lead to keys.
#[derive(Debug, Clone)]
pub(super) struct Lookup {
    /// The joined side, asked for what it is joined by.
    pub(super) asked: Asked,
    /// What these are equal to in the other side.
    pub(super) by: Vec<Expr>,
    /// How the other side's rows are found in the stage's own table.
    pub(super) own: Option<Own>,
}

/// Finds out how `plan` is asked for the rows of some keys.
///
/// # Errors
/// What stops it.
pub(super) fn ask(plan: &Arc<LogicalPlan>, exprs: Vec<Expr>, trail: Option<&Trail>) -> Result<Asked, NotByKey> {
    let asked = |how| Ok(Asked { plan: Arc::clone(plan), exprs: exprs.clone(), how });
    let through = |input: &Arc<LogicalPlan>, below: Vec<Expr>, trail: Option<Trail>| {
        asked(How::Through(Box::new(ask(input, below, trail.as_ref())?)))
    };
    if is_row_by_row(plan) {
        return ask_rows(plan, exprs);
    }
    // 0.0 and -0.0 are one group, and two keys once they are written out.
    if let Some(expr) = exprs.iter().find(|expr| has_floats(expr, plan.schema())) {
        return Err(NotByKey::of_expression("the key is made of floating point numbers", expr));
    }
    match plan.as_ref() {
        LogicalPlan::Projection(projection) => {
            let made =
                |column: &Column| Some(projection.expr[projection.schema.maybe_index_of_column(column)?].clone());
            through(&projection.input, below(plan, &exprs, &made)?, trail.and_then(|trail| trail.below(&made)))
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let inputs = alias.input.schema().columns();
            let made =
                |column: &Column| Some(Expr::Column(inputs[alias.schema.maybe_index_of_column(column)?].clone()));
            through(&alias.input, below(plan, &exprs, &made)?, trail.and_then(|trail| trail.below(&made)))
        }
        LogicalPlan::Filter(filter) => {
            refuse_failing(plan, &exprs)?;
            through(&filter.input, exprs.clone(), trail.and_then(|trail| trail.deciding(&filter.predicate)))
        }
        LogicalPlan::Sort(sort) if sort.fetch.is_none() => through(&sort.input, exprs.clone(), trail.cloned()),
        LogicalPlan::Repartition(repartition) => through(&repartition.input, exprs.clone(), trail.cloned()),
        LogicalPlan::Aggregate(aggregate) => through(&aggregate.input, below_groups(plan, aggregate, &exprs)?, None),
        LogicalPlan::Window(window) => {
            check_partitions(window, &exprs)?;
            through(&window.input, exprs.clone(), trail.and_then(|trail| trail.below_window(window.input.schema())))
        }
        LogicalPlan::Distinct(Distinct::All(input)) => through(input, exprs.clone(), None),
        LogicalPlan::Distinct(Distinct::On(distinct)) => {
            through(&distinct.input, below_distinct(plan, distinct, &exprs)?, None)
        }
        LogicalPlan::Unnest(unnest) => through(&unnest.input, below_unnest(plan, unnest, &exprs)?, None),
        LogicalPlan::Union(union) => {
            let mut inputs = Vec::with_capacity(union.inputs.len());
            for input in &union.inputs {
                let columns = input.schema().columns();
                let made =
                    |column: &Column| Some(Expr::Column(columns[union.schema.maybe_index_of_column(column)?].clone()));
                let trail = trail.and_then(|trail| trail.below(&made));
                inputs.push(ask(input, below(plan, &exprs, &made)?, trail.as_ref())?);
            }
            asked(How::Every(inputs))
        }
        LogicalPlan::Join(found) => join::ask(plan, found, exprs, trail),
        LogicalPlan::Limit(_) | LogicalPlan::Sort(_) => {
            Err(NotByKey::of_node("which rows are the first depends on the rows of other keys", plan))
        }
        _ => Err(NotByKey::of_node("nothing is known about such a step", plan)),
    }
}

/// Whether each row of the result is made from one row of one table, whatever the others are.
pub(super) fn is_row_by_row(plan: &LogicalPlan) -> bool {
    let is_plain = match plan {
        LogicalPlan::TableScan(scan) => scan.fetch.is_none(),
        LogicalPlan::Sort(sort) => sort.fetch.is_none(),
        LogicalPlan::Projection(_)
        | LogicalPlan::Filter(_)
        | LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::Repartition(_)
        | LogicalPlan::Unnest(_)
        | LogicalPlan::Union(_)
        | LogicalPlan::EmptyRelation(_)
        | LogicalPlan::Values(_) => true,
        _ => false,
    };
    is_plain
        && plan.expressions().iter().all(|expr| subqueries(expr).is_empty())
        && plan.inputs().into_iter().all(is_row_by_row)
}

/// Rows that are taken one by one may be chosen anywhere. Plain columns are followed down to the table, where files without such keys
/// need not be read; anything else is worked out where the query does so itself, and not for rows that it leaves out before.
fn ask_rows(plan: &Arc<LogicalPlan>, exprs: Vec<Expr>) -> Result<Asked, NotByKey> {
    for expr in &exprs {
        let data_type = expr.get_type(plan.schema())?;
        if !is_key_type(&data_type) || !is_of_its_row(expr) {
            return Err(NotByKey::of_expression(format!("values of type {data_type} cannot be chosen by"), expr));
        }
    }
    let here = Asked { plan: Arc::clone(plan), exprs: exprs.clone(), how: How::Here };
    let are_columns = |exprs: &[Expr]| exprs.iter().all(|expr| matches!(expr, Expr::Column(_)));
    if !are_columns(&exprs) {
        return Ok(here);
    }
    let through = |input: &Arc<LogicalPlan>, below: Option<Vec<Expr>>| match below {
        Some(below) if are_columns(&below) => {
            let how = How::Through(Box::new(ask_rows(input, below)?));
            Ok(Asked { plan: Arc::clone(plan), exprs: exprs.clone(), how })
        }
        _ => Ok(here.clone()),
    };
    let all = |made: &dyn Fn(&Column) -> Option<Expr>| exprs.iter().map(|expr| substituted(expr, made)).collect();
    match plan.as_ref() {
        LogicalPlan::Projection(projection) => through(
            &projection.input,
            all(&|column| Some(projection.expr[projection.schema.maybe_index_of_column(column)?].clone())),
        ),
        LogicalPlan::SubqueryAlias(alias) => {
            let inputs = alias.input.schema().columns();
            through(
                &alias.input,
                all(&|column| Some(Expr::Column(inputs[alias.schema.maybe_index_of_column(column)?].clone()))),
            )
        }
        LogicalPlan::Filter(filter) => through(&filter.input, Some(exprs.clone())),
        LogicalPlan::Sort(sort) => through(&sort.input, Some(exprs.clone())),
        LogicalPlan::Repartition(repartition) => through(&repartition.input, Some(exprs.clone())),
        LogicalPlan::Unnest(unnest) => through(&unnest.input, below_unnest(plan, unnest, &exprs).ok()),
        LogicalPlan::Union(union) => {
            let mut inputs = Vec::with_capacity(union.inputs.len());
            for input in &union.inputs {
                let columns = input.schema().columns();
                let below: Option<Vec<Expr>> =
                    all(&|column| Some(Expr::Column(columns[union.schema.maybe_index_of_column(column)?].clone())));
                let Some(below) = below else { return Ok(here) };
                inputs.push(ask_rows(input, below)?);
            }
            Ok(Asked { plan: Arc::clone(plan), exprs: exprs.clone(), how: How::Every(inputs) })
        }
        _ => Ok(here),
    }
}

/// The expressions as the node's input makes them.
fn below(plan: &LogicalPlan, exprs: &[Expr], made: &dyn Fn(&Column) -> Option<Expr>) -> Result<Vec<Expr>, NotByKey> {
    exprs
        .iter()
        .map(|expr| match substituted(expr, made) {
            Some(below) if is_of_its_row(&below) => Ok(below),
            Some(below) => Err(NotByKey::of_expression("the key comes from a subquery", &below)),
            None => Err(NotByKey::of_node(format!("{expr} is not in its input"), plan)),
        })
        .collect()
}

/// Below a condition there are rows that it guards the key's expression from.
pub(super) fn refuse_failing(plan: &LogicalPlan, exprs: &[Expr]) -> Result<(), NotByKey> {
    match exprs.iter().find(|expr| can_fail(expr, plan.schema())) {
        Some(expr) => {
            Err(NotByKey::of_expression("the key may not be worked out for rows that the query leaves out", expr))
        }
        None => Ok(()),
    }
}

fn below_groups(plan: &LogicalPlan, aggregate: &Aggregate, exprs: &[Expr]) -> Result<Vec<Expr>, NotByKey> {
    let refused = |expr: &Expr| {
        let reason = match aggregate.group_expr.is_empty() {
            true => "all rows are added up, whatever their key".to_owned(),
            false => format!("rows are grouped without {}", bare(expr)),
        };
        NotByKey::of_node(reason, plan)
    };
    if aggregate.group_expr.is_empty() {
        return Err(exprs.first().map_or_else(|| NotByKey::of_node("there is no key", plan), refused));
    }
    let sets = match enumerate_grouping_sets(aggregate.group_expr.clone())?.as_slice() {
        [Expr::GroupingSet(GroupingSet::GroupingSets(sets))] => Some(sets.clone()),
        [Expr::GroupingSet(_)] => return Err(NotByKey::of_node("rows are grouped in several ways", plan)),
        _ => None,
    };
    let groups: Vec<Expr> = match &sets {
        Some(_) => grouping_set_to_exprlist(&aggregate.group_expr)?.into_iter().cloned().collect(),
        None => aggregate.group_expr.clone(),
    };
    // Where a set leaves a column out it is NULL; where a set is empty there is a row for no rows at all.
    let in_every_set = |group: &Expr| sets.iter().flatten().all(|set| set.contains(group));
    if sets.iter().flatten().any(Vec::is_empty) {
        return Err(NotByKey::of_node("one of the groupings is of all rows", plan));
    }
    exprs
        .iter()
        .map(|expr| {
            let made = |column: &Column| {
                groups.get(aggregate.schema.maybe_index_of_column(column)?).filter(|group| in_every_set(group)).cloned()
            };
            substituted(expr, &made).ok_or_else(|| refused(expr))
        })
        .collect()
}

fn check_partitions(window: &Window, exprs: &[Expr]) -> Result<(), NotByKey> {
    let equal = Equal::of(&window.input);
    for function in &window.window_expr {
        let Expr::WindowFunction(called) = bare(function) else {
            return Err(NotByKey::of_expression("nothing is known about such a function", function));
        };
        let partitions: Vec<Expr> =
            called.params.partition_by.iter().map(|partition| equal.written(&bare(partition))).collect();
        if let Some(expr) = exprs.iter().find(|expr| !is_function_of(&equal.written(expr), &partitions)) {
            let reason = format!("a window function is not partitioned by {expr}");
            return Err(NotByKey::of_expression(reason, function));
        }
    }
    Ok(())
}

fn below_distinct(plan: &LogicalPlan, distinct: &DistinctOn, exprs: &[Expr]) -> Result<Vec<Expr>, NotByKey> {
    let made = |column: &Column| Some(distinct.select_expr[distinct.schema.maybe_index_of_column(column)?].clone());
    let below = below(plan, exprs, &made)?;
    let equal = Equal::of(&distinct.input);
    let on: Vec<Expr> = distinct.on_expr.iter().map(|expr| equal.written(&bare(expr))).collect();
    match below.iter().find(|expr| !is_function_of(&equal.written(expr), &on)) {
        Some(expr) => {
            Err(NotByKey::of_node(format!("one row is kept of several keys: distinct on without {expr}"), plan))
        }
        None => Ok(below),
    }
}

/// Columns that come out of a list have no expression below.
fn below_unnest(plan: &LogicalPlan, unnest: &Unnest, exprs: &[Expr]) -> Result<Vec<Expr>, NotByKey> {
    let inputs = unnest.input.schema().columns();
    let made = |column: &Column| {
        let input = *unnest.dependency_indices.get(unnest.schema.maybe_index_of_column(column)?)?;
        let is_taken_apart = unnest.list_type_columns.iter().any(|(index, _)| *index == input)
            || unnest.struct_type_columns.contains(&input);
        (!is_taken_apart).then(|| Expr::Column(inputs[input].clone()))
    };
    exprs
        .iter()
        .map(|expr| {
            substituted(expr, &made).ok_or_else(|| NotByKey::of_node(format!("{expr} comes out of a list"), plan))
        })
        .collect()
}
