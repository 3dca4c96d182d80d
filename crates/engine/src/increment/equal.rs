//! Which columns of a plan are equal in every row of it (both NULL counts as equal).

use std::collections::BTreeMap;

use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::common::{Column, DFSchema, ExprSchema};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{BinaryExpr, Expr, JoinType, LogicalPlan, Operator};

use super::expression::{bare, is_key_type};

/// Columns that are equal in every row, as pairs.
#[derive(Debug, Clone, Default)]
pub(super) struct Equal(Vec<(Column, Column)>);

impl Equal {
    /// The pairs that hold for the rows of `plan`. More may hold.
    pub(super) fn of(plan: &LogicalPlan) -> Self {
        Self(pairs(plan))
    }

    /// The expression with one column for all that are equal to it, so that equal expressions are written alike.
    pub(super) fn written(&self, expr: &Expr) -> Expr {
        let mut first: BTreeMap<Column, Column> = BTreeMap::new();
        let root = |first: &BTreeMap<Column, Column>, column: &Column| {
            let mut column = column.clone();
            while let Some(next) = first.get(&column) {
                column = next.clone();
            }
            column
        };
        for (one, other) in &self.0 {
            let (one, other) = (root(&first, one), root(&first, other));
            match one.cmp(&other) {
                std::cmp::Ordering::Less => first.insert(other, one),
                std::cmp::Ordering::Greater => first.insert(one, other),
                std::cmp::Ordering::Equal => None,
            };
        }
        let written = expr.clone().transform_down(|part| match &part {
            Expr::Column(column) => Ok(Transformed::yes(Expr::Column(root(&first, column)))),
            _ => Ok(Transformed::no(part)),
        });
        written.map_or_else(|_| expr.clone(), |written| written.data)
    }
}

fn pairs(plan: &LogicalPlan) -> Vec<(Column, Column)> {
    match plan {
        LogicalPlan::Filter(filter) => {
            let mut found = pairs(&filter.input);
            for condition in split_conjunction(&filter.predicate) {
                if let Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq | Operator::IsNotDistinctFrom, right }) =
                    condition
                {
                    found.extend(columns(left, right, filter.input.schema()));
                }
            }
            found
        }
        LogicalPlan::Join(join) => {
            let (mut left, mut right) = (pairs(&join.left), pairs(&join.right));
            match join.join_type {
                JoinType::Inner => {
                    left.append(&mut right);
                    left.extend(join.on.iter().filter_map(|(left, right)| columns(left, right, &join.schema)));
                    left
                }
                // A side that is left out is NULL in all its columns.
                JoinType::Left | JoinType::Right | JoinType::Full => {
                    left.append(&mut right);
                    left
                }
                JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => left,
                JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => right,
            }
        }
        LogicalPlan::Projection(projection) => {
            let made: Vec<(Column, Column)> = projection
                .expr
                .iter()
                .zip(projection.schema.columns())
                .filter_map(|(expr, output)| match bare(expr) {
                    Expr::Column(input) => Some((input, output)),
                    _ => None,
                })
                .collect();
            renamed(&pairs(&projection.input), &made)
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let made: Vec<(Column, Column)> =
                alias.input.schema().columns().into_iter().zip(alias.schema.columns()).collect();
            renamed(&pairs(&alias.input), &made)
        }
        LogicalPlan::Window(window) => pairs(&window.input),
        LogicalPlan::Sort(sort) => pairs(&sort.input),
        _ => Vec::new(),
    }
}

fn columns(left: &Expr, right: &Expr, schema: &DFSchema) -> Option<(Column, Column)> {
    match (bare(left), bare(right)) {
        // Of other types, values that compare as equal need not be the same (0.0 and -0.0).
        (Expr::Column(left), Expr::Column(right))
            if schema.field_from_column(&left).is_ok_and(|field| is_key_type(field.data_type())) =>
        {
            Some((left, right))
        }
        _ => None,
    }
}

fn renamed(pairs: &[(Column, Column)], made: &[(Column, Column)]) -> Vec<(Column, Column)> {
    // A column may be given several names; then these are equal, too.
    let names = |column: &Column| -> Vec<Column> {
        made.iter().filter(|(input, _)| input == column).map(|(_, output)| output.clone()).collect()
    };
    let mut found = Vec::new();
    for (one, other) in pairs {
        for one in names(one) {
            found.extend(names(other).into_iter().map(|other| (one.clone(), other)));
        }
    }
    for (index, (input, output)) in made.iter().enumerate() {
        found.extend(
            made[index + 1..]
                .iter()
                .filter(|(other, _)| other == input)
                .map(|(_, other)| (output.clone(), other.clone())),
        );
    }
    found
}
