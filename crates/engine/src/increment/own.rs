//! How rows of a joined side are found in the stage's own table.
//!
//! `core.orders` joins each order to the customer of its token. When a token gets another customer, the orders with it are found by
//! reading all orders ever sent, or in the table that the stage made: there they stand under the customer whom the token had before.
//!
//! This holds under one condition: each row of the kept side is in the stage's table, whatever it is joined to. So between the join and
//! the stage's output there are only steps that keep rows, or leave them out for reasons of their own: projections, conditions over
//! other columns, further outer joins that keep the side. Rows of the kept side that changed themselves are no concern here, their keys
//! are affected anyway. Then there are two ways:
//!
//! - What the sides are joined by can be worked out from output columns: the rows in question are those where it is among the values
//!   that changed in the joined side.
//! - An output column is the joined side's, untouched. Then a pair of joined rows that was there before is found by it. A pair that is
//!   new has a kept row that was joined to nothing (the column is NULL), or to another row of the same value, which is either gone
//!   (and found as a removed one) or still there (and found by reading the joined side).

use std::collections::BTreeSet;

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema};
use datafusion::logical_expr::{Expr, ExprSchemable, JoinType, LogicalPlan, cast};

use super::derive::{Asked, is_row_by_row};
use super::expression::{is_kept_as_it_is, is_of_its_row, is_over, substituted};

/// What the stage's table shows of the rows of a plan, and which of their columns have a part in what rows it shows.
#[derive(Debug, Clone)]
pub(super) struct Trail {
    /// Values that are worked out from a row of the plan, and the output column that holds them.
    shown: Vec<(Expr, String)>,
    deciding: BTreeSet<Column>,
}

/// How rows of the kept side are found in the stage's own table.
#[derive(Debug, Clone)]
pub(super) enum Own {
    /// By what the sides are joined by.
    By {
        /// What is joined by, over the columns of the stage's table.
        exprs: Vec<Expr>,
        columns: Vec<String>,
    },
    /// By a column of the joined side.
    Joined {
        /// The column there.
        column: Column,
        /// Its name in the stage's table.
        name: String,
        /// Whether rows that are equal in what is asked for are joined, without further conditions.
        is_all: bool,
    },
}

/// What the stage's own table is called in expressions over it.
pub(super) const OWN_TABLE: &str = "the stage's own rows";

impl Trail {
    pub(super) fn from_output(schema: &DFSchema) -> Self {
        let shown = schema.iter().map(|(qualifier, field)| {
            (Expr::Column(Column::new(qualifier.cloned(), field.name())), field.name().clone())
        });
        Self { shown: shown.collect(), deciding: BTreeSet::new() }
    }

    /// The trail in the input of a node that makes its columns of those below.
    pub(super) fn below(&self, made: &dyn Fn(&Column) -> Option<Expr>) -> Option<Self> {
        let shown = self.shown.iter().filter_map(|(expr, name)| {
            let below = substituted(expr, made)?;
            is_of_its_row(&below).then(|| (below, name.clone()))
        });
        let mut deciding = BTreeSet::new();
        for column in &self.deciding {
            let made = made(column)?;
            if !is_of_its_row(&made) {
                return None;
            }
            deciding.extend(made.column_refs().into_iter().cloned());
        }
        Some(Self { shown: shown.collect(), deciding })
    }

    /// Below a condition.
    pub(super) fn deciding(&self, predicate: &Expr) -> Option<Self> {
        let mut trail = self.clone();
        trail.deciding.extend(predicate.column_refs().into_iter().cloned());
        is_of_its_row(predicate).then_some(trail)
    }

    /// Below window functions. They see how many rows there are, so rows must not be left out for what they say.
    pub(super) fn below_window(&self, input: &DFSchema) -> Option<Self> {
        let is_below = |column: &Column| input.maybe_index_of_column(column).is_some();
        self.deciding.iter().all(is_below).then(|| self.of_side(input))
    }

    /// The trail in one side of a join.
    pub(super) fn of_side(&self, side: &DFSchema) -> Self {
        let has = |column: &Column| side.maybe_index_of_column(column).is_some();
        Self {
            shown: self.shown.iter().filter(|(expr, _)| is_over(expr, side)).cloned().collect(),
            deciding: self.deciding.iter().filter(|column| has(column)).cloned().collect(),
        }
    }
}

impl Own {
    /// How rows of the kept side with these values of `by` are found; `joined` is the other side, asked for the same values.
    pub(super) fn of(trail: &Trail, kept: &LogicalPlan, by: &[Expr], joined: &Asked, is_all: bool) -> Option<Self> {
        let other = joined.plan.schema();
        let joined_trail = trail.of_side(other);
        if !joined_trail.deciding.is_empty() {
            return None;
        }
        Self::by(&trail.of_side(kept.schema()), kept, by).or_else(|| {
            if !is_row_by_row(&joined.plan) {
                return None;
            }
            joined_trail.shown.iter().find_map(|(expr, name)| match expr {
                Expr::Column(column) if is_kept(expr, other) => {
                    Some(Self::Joined { column: column.clone(), name: name.clone(), is_all })
                }
                _ => None,
            })
        })
    }

    fn by(trail: &Trail, kept: &LogicalPlan, by: &[Expr]) -> Option<Self> {
        let mut shown = Vec::new();
        for (expr, name) in &trail.shown {
            if !expr.column_refs().is_empty() && is_kept(expr, kept.schema()) {
                shown.push(Shown { expr: expr.clone(), name, data_type: expr.get_type(kept.schema()).ok()? });
            }
        }
        let mut columns = Vec::new();
        let exprs =
            by.iter().map(|expr| over_own(expr.clone(), shown.clone(), kept, &mut columns)).collect::<Option<_>>()?;
        columns.sort();
        columns.dedup();
        Some(Self::By { exprs, columns })
    }

    pub(super) fn columns(&self) -> Vec<String> {
        match self {
            Self::By { columns, .. } => columns.clone(),
            Self::Joined { name, .. } => vec![name.clone()],
        }
    }
}

/// A value of a plan's rows that the stage's table shows.
#[derive(Debug, Clone)]
struct Shown<'a> {
    expr: Expr,
    name: &'a String,
    data_type: DataType,
}

/// The expression over the stage's own table, written with what it shows. Two names for one thing are seen to be one further down, where
/// both are written as what they are made of; all of them step down together, since the same name means another thing elsewhere.
fn over_own(
    mut expr: Expr,
    mut shown: Vec<Shown<'_>>,
    mut plan: &LogicalPlan,
    columns: &mut Vec<String>,
) -> Option<Expr> {
    loop {
        let mut used = Vec::new();
        let written = expr.clone().transform_down(|part| {
            let Some(found) = shown.iter().find(|shown| shown.expr == part) else {
                return Ok(Transformed::no(part));
            };
            used.push(found.name.clone());
            // The lake may keep the values in another type of the same kind.
            let own = cast(Expr::Column(Column::new(Some(OWN_TABLE), found.name)), found.data_type.clone());
            Ok(Transformed::new(own, true, TreeNodeRecursion::Jump))
        });
        let written = written.ok()?.data;
        let is_own = |column: &&Column| column.relation.as_ref().is_some_and(|table| table.table() == OWN_TABLE);
        if written.column_refs().iter().all(is_own) {
            columns.append(&mut used);
            return Some(written);
        }
        let input = passed_on(plan)?;
        expr = one_down(&expr, plan, input)?;
        shown = shown
            .into_iter()
            .filter_map(|shown| Some(Shown { expr: one_down(&shown.expr, plan, input)?, ..shown }))
            .collect();
        plan = input;
    }
}

/// The input whose values the rows of a plan have, where it has no others in their place.
fn passed_on(plan: &LogicalPlan) -> Option<&LogicalPlan> {
    match plan {
        LogicalPlan::Projection(projection) => Some(&projection.input),
        LogicalPlan::SubqueryAlias(alias) => Some(&alias.input),
        LogicalPlan::Filter(filter) => Some(&filter.input),
        LogicalPlan::Sort(sort) => Some(&sort.input),
        LogicalPlan::Window(window) => Some(&window.input),
        LogicalPlan::Join(join) => match join.join_type {
            JoinType::Left => Some(&join.left),
            JoinType::Right => Some(&join.right),
            _ => None,
        },
        _ => None,
    }
}

/// An expression over a plan's rows, over those of its input.
fn one_down(expr: &Expr, plan: &LogicalPlan, input: &LogicalPlan) -> Option<Expr> {
    let below = match plan {
        LogicalPlan::Projection(projection) => substituted(expr, &|column| {
            Some(projection.expr[projection.schema.maybe_index_of_column(column)?].clone())
        })?,
        LogicalPlan::SubqueryAlias(alias) => {
            let columns = input.schema().columns();
            substituted(expr, &|column| {
                Some(Expr::Column(columns[alias.schema.maybe_index_of_column(column)?].clone()))
            })?
        }
        _ => expr.clone(),
    };
    is_over(&below, input.schema()).then_some(below)
}

fn is_kept(expr: &Expr, schema: &DFSchema) -> bool {
    expr.get_type(schema).is_ok_and(|data_type| is_kept_as_it_is(&data_type))
}
