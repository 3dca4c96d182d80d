//! Joins: which sides carry the key, and how a change of the other side reaches it.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{BinaryExpr, Expr, ExprSchemable, Join, JoinType, LogicalPlan, Operator};

use super::NotByKey;
use super::derive::{self, Asked, How, Lookup, Side};
use super::equal::Equal;
use super::expression::{bare, can_fail, first_of, is_key_type, is_lossless, is_over};
use super::own::{Own, Trail};

/// What a left row and a right row that are joined are equal in.
pub(super) struct Conditions {
    pairs: Vec<(Expr, Expr)>,
    /// Whether being equal in all pairs is all that is asked.
    pub(super) is_all: bool,
}

impl Conditions {
    fn of(join: &Join) -> Self {
        let (left, right) = (join.left.schema(), join.right.schema());
        let mut found = Self { pairs: Vec::new(), is_all: true };
        let conditions = join.filter.iter().flat_map(split_conjunction).map(|condition| match condition {
            Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq | Operator::IsNotDistinctFrom, right }) => {
                Some((bare(left), bare(right)))
            }
            _ => None,
        });
        for pair in join.on.iter().map(|(left, right)| Some((bare(left), bare(right)))).chain(conditions) {
            let pair = pair.and_then(|(one, other)| {
                if is_over(&one, left) && is_over(&other, right) {
                    Some((one, other))
                } else if is_over(&one, right) && is_over(&other, left) {
                    Some((other, one))
                } else {
                    None
                }
            });
            // Of other types, values that compare as equal need not be the same; a value that no column has a part in joins nothing.
            let pair = pair.filter(|(one, other)| {
                let has_columns = |expr: &Expr| !expr.column_refs().is_empty();
                has_columns(one)
                    && has_columns(other)
                    && one.get_type(left).is_ok_and(|data_type| is_key_type(&data_type))
                    && other.get_type(right).is_ok_and(|data_type| is_key_type(&data_type))
            });
            match pair {
                Some(pair) => found.pairs.push(pair),
                None => found.is_all = false,
            }
        }
        found
    }

    /// The same, seen from the right.
    fn turned(&self) -> Self {
        Self {
            pairs: self.pairs.iter().map(|(left, right)| (right.clone(), left.clone())).collect(),
            is_all: self.is_all,
        }
    }
}

/// One side of a join as the rules see it from the other.
struct Seen<'a> {
    plan: &'a Arc<LogicalPlan>,
    equal: Equal,
}

impl<'a> Seen<'a> {
    fn of(plan: &'a Arc<LogicalPlan>) -> Self {
        Self { plan, equal: Equal::of(plan) }
    }

    fn has(&self, expr: &Expr) -> bool {
        is_over(expr, self.plan.schema())
    }
}

pub(super) fn ask(
    plan: &Arc<LogicalPlan>,
    join: &Join,
    exprs: Vec<Expr>,
    trail: Option<&Trail>,
) -> Result<Asked, NotByKey> {
    let conditions = Conditions::of(join);
    let (left, right) = (Seen::of(&join.left), Seen::of(&join.right));
    let exprs_left: Vec<Expr> =
        exprs.iter().map(|expr| uncovered(expr, &conditions.pairs, join.join_type, true)).collect();
    let exprs_right: Vec<Expr> =
        exprs.iter().map(|expr| uncovered(expr, &conditions.pairs, join.join_type, false)).collect();
    let turned = conditions.turned();

    let (left, right) = match join.join_type {
        JoinType::Inner => {
            let asked_left = asked_or_through(&left, &right, &exprs_left, &turned, join);
            let asked_right = asked_or_through(&right, &left, &exprs_right, &conditions, join);
            match (asked_left, asked_right) {
                (Ok(left), Ok(right)) => (Side::Keyed(left), Side::Keyed(right)),
                (Ok(asked), Err(_)) => {
                    let side = other_side(&conditions, join, (&left, &right), None);
                    (Side::Keyed(asked), side)
                }
                (Err(_), Ok(asked)) => {
                    let side = other_side(&turned, join, (&right, &left), None);
                    (side, Side::Keyed(asked))
                }
                (Err(first), Err(second)) => {
                    return Err(if exprs_left.iter().all(|expr| left.has(expr)) { first } else { second });
                }
            }
        }
        JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => {
            kept_and_other(plan, join, &exprs_left, &conditions, (&left, &right), trail)?
        }
        JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => {
            let (kept, other) = kept_and_other(plan, join, &exprs_right, &turned, (&right, &left), trail)?;
            (other, kept)
        }
        JoinType::Full => {
            let both_have = |has: &dyn Fn(&Expr) -> bool, exprs: &[Expr]| exprs.iter().all(has);
            if !both_have(&|expr| left.has(expr), &exprs_left) || !both_have(&|expr| right.has(expr), &exprs_right) {
                let reason = "the key is not the coalesce of both sides of a full join (a column that `using` names is the left one)";
                return Err(NotByKey::of_node(reason, plan));
            }
            (Side::Keyed(ask_side(&left, exprs_left, join)?), Side::Keyed(ask_side(&right, exprs_right, join)?))
        }
    };
    Ok(Asked { plan: Arc::clone(plan), exprs, how: How::Join(Box::new(left), Box::new(right)) })
}

/// A join that keeps the rows of one side: that side has to carry the key.
fn kept_and_other(
    plan: &LogicalPlan,
    join: &Join,
    exprs: &[Expr],
    conditions: &Conditions,
    (kept, other): (&Seen<'_>, &Seen<'_>),
    trail: Option<&Trail>,
) -> Result<(Side, Side), NotByKey> {
    if let Some(expr) = exprs.iter().find(|expr| !kept.has(expr)) {
        return Err(NotByKey {
            what: expr.to_string(),
            place: super::expression::place(expr),
            ..NotByKey::of_node("the key comes from the side of an outer join that may have no row", plan)
        });
    }
    let is_outer = matches!(join.join_type, JoinType::Left | JoinType::Right);
    let below = trail.filter(|_| is_outer).map(|trail| trail.of_side(kept.plan.schema()));
    let asked = ask_kept(kept, exprs.to_vec(), join, below.as_ref())?;
    // `not in` is no row at all as soon as the other side holds a NULL, and says something about NULL only where it is empty.
    if join.null_aware && !are_never_null(conditions, kept, other) {
        let reason = "`not in` with values that may be NULL depends on the rows of all keys".to_owned();
        return Ok((Side::Keyed(asked), Side::Opaque { plan: Arc::clone(other.plan), reason }));
    }
    let keyed = asked_through(other, kept, exprs, conditions, join);
    let side = match keyed {
        Some(keyed) => Side::Keyed(keyed),
        None => other_side(conditions, join, (kept, other), trail.filter(|_| is_outer)),
    };
    Ok((Side::Keyed(asked), side))
}

fn are_never_null(conditions: &Conditions, kept: &Seen<'_>, other: &Seen<'_>) -> bool {
    conditions.pairs.iter().all(|(one, two)| {
        !one.nullable(kept.plan.schema()).unwrap_or(true) && !two.nullable(other.plan.schema()).unwrap_or(true)
    })
}

/// The side asked for the key: by its own columns or, where the key is of the other side, by what these are equal to.
fn asked_or_through(
    side: &Seen<'_>,
    other: &Seen<'_>,
    exprs: &[Expr],
    from_other: &Conditions,
    join: &Join,
) -> Result<Asked, NotByKey> {
    if exprs.iter().all(|expr| side.has(expr)) {
        return ask_side(side, exprs.to_vec(), join);
    }
    asked_through(side, other, exprs, from_other, join)
        .ok_or_else(|| NotByKey::of_node("the sides of a join are not joined by the key", side.plan))
}

/// The side asked for the key of the other one, through what both are joined by.
fn asked_through(
    side: &Seen<'_>,
    other: &Seen<'_>,
    exprs: &[Expr],
    from_other: &Conditions,
    join: &Join,
) -> Option<Asked> {
    let exprs: Option<Vec<Expr>> =
        exprs.iter().map(|expr| carried_over(expr, other, side, &from_other.pairs)).collect();
    ask_side(side, exprs?, join).ok()
}

fn ask_side(side: &Seen<'_>, exprs: Vec<Expr>, join: &Join) -> Result<Asked, NotByKey> {
    ask_kept(side, exprs, join, None)
}

fn ask_kept(side: &Seen<'_>, exprs: Vec<Expr>, join: &Join, trail: Option<&Trail>) -> Result<Asked, NotByKey> {
    // What rows are joined by is worked out for all of them anyway.
    let is_worked_out = |expr: &Expr| join.on.iter().any(|(left, right)| bare(left) == *expr || bare(right) == *expr);
    if let Some(expr) = exprs.iter().find(|expr| can_fail(expr, side.plan.schema()) && !is_worked_out(expr)) {
        return Err(NotByKey::of_expression("the key may not be worked out for rows that the query leaves out", expr));
    }
    derive::ask(side.plan, exprs, trail)
}

/// An expression of one side as the other side writes it: with each part that both are joined by replaced by what it is equal to.
fn carried_over(expr: &Expr, from: &Seen<'_>, to: &Seen<'_>, pairs: &[(Expr, Expr)]) -> Option<Expr> {
    let written = from.equal.written(expr);
    let mut carried = written.clone();
    let taken =
        |part: &Expr| pairs.iter().find(|(one, _)| from.equal.written(one) == *part).map(|(_, other)| other.clone());
    if let Ok(found) = carried.clone().transform_down(|part| match taken(&part) {
        Some(other) => Ok(Transformed::new(other, true, TreeNodeRecursion::Jump)),
        None => Ok(Transformed::no(part)),
    }) {
        carried = found.data;
    }
    if to.has(&carried) {
        return Some(carried);
    }
    // A key that is joined as a wider type is a key of that type: no two of its values become one.
    pairs.iter().find_map(|(one, other)| match one {
        Expr::Cast(cast)
            if from.equal.written(&cast.expr) == written
                && written
                    .get_type(from.plan.schema())
                    .is_ok_and(|data_type| is_lossless(&data_type, cast.field.data_type())) =>
        {
            Some(other.clone())
        }
        _ => None,
    })
}

/// The expression with the first of both sides' keys written as the key of one side.
///
/// Rows of a full join have the key of the side that is there, and where both are there they are equal. Of a side that is always there
/// it is that side's.
fn uncovered(expr: &Expr, pairs: &[(Expr, Expr)], join_type: JoinType, of_left: bool) -> Expr {
    let takes_left = match join_type {
        JoinType::Inner | JoinType::Left => true,
        JoinType::Right => false,
        JoinType::Full => of_left,
        _ => return expr.clone(),
    };
    let first = |part: &Expr| {
        let arguments = first_of(part);
        if arguments.len() < 2 {
            return None;
        }
        pairs.iter().find_map(|(left, right)| {
            let (one, other) = (first_of(left), first_of(right));
            let is_both = arguments == [one.clone(), other.clone()].concat() || arguments == [other, one].concat();
            is_both.then(|| if takes_left { left.clone() } else { right.clone() })
        })
    };
    let written = expr.clone().transform_down(|part| match first(&part) {
        Some(side) => Ok(Transformed::new(side, true, TreeNodeRecursion::Jump)),
        None => Ok(Transformed::no(part)),
    });
    written.map_or_else(|_| expr.clone(), |written| written.data)
}

/// What a change of the side that stays whole means.
fn other_side(
    conditions: &Conditions,
    join: &Join,
    (keyed, other): (&Seen<'_>, &Seen<'_>),
    trail: Option<&Trail>,
) -> Side {
    let mut candidates: Vec<Vec<(Expr, Expr)>> = vec![conditions.pairs.clone()];
    if conditions.pairs.len() > 1 {
        candidates.extend(conditions.pairs.iter().map(|pair| vec![pair.clone()]));
    }
    let mut stopped = None;
    let mut first = None;
    for pairs in candidates.into_iter().filter(|pairs| !pairs.is_empty()) {
        let (by, exprs): (Vec<Expr>, Vec<Expr>) = pairs.into_iter().unzip();
        match ask_side(other, exprs, join) {
            Ok(asked) => {
                let own = trail.and_then(|trail| {
                    let is_all = conditions.is_all && by.len() == conditions.pairs.len();
                    Own::of(trail, keyed.plan, &by, &asked, is_all)
                });
                let is_own = own.is_some();
                let lookup = Lookup { asked, by, own };
                if is_own {
                    return Side::Joined(Box::new(lookup));
                }
                first.get_or_insert(lookup);
            }
            Err(error) => {
                stopped.get_or_insert(error);
            }
        }
    }
    match (first, stopped) {
        (Some(lookup), _) => Side::Joined(Box::new(lookup)),
        (None, stopped) => {
            let reason = match stopped {
                Some(stopped) => format!("it is not joined by what its rows can be chosen by ({})", stopped.reason),
                None => "it is joined by no equality".to_owned(),
            };
            Side::Opaque { plan: Arc::clone(other.plan), reason }
        }
    }
}
