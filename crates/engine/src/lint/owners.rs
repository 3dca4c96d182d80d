use std::collections::BTreeSet;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, ScalarValue};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{BinaryExpr, Distinct, Expr, Join, JoinType, LogicalPlan, Operator};

use super::Subject;
use crate::diagnostic::Diagnostic;

/// A row for each owner of an identifier.
const IDENTIFIERS: &str = "identity.identifiers";
const TOKEN: &str = "token";
const FROM: &str = "valid_from";
const TO: &str = "valid_to";

/// Makes tokens; its first argument is the type.
const TOKEN_FUNCTION: &str = "identifier_token";

/// Joins of identifiers by token alone, where an identifier can have changed hands: they give a row for each owner.
pub(super) fn lint(subject: &Subject<'_>) -> Vec<Diagnostic> {
    let stage = subject.stage();
    if subject.recycled.is_empty() || !stage.inputs.keys().any(|input| input.to_string() == IDENTIFIERS) {
        return Vec::new();
    }
    let filters = filters(subject.plan);
    let mut types: Vec<BTreeSet<String>> = Vec::new();
    let _: Result<TreeNodeRecursion, DataFusionError> = subject.plan.apply_with_subqueries(|node| {
        match node {
            LogicalPlan::Join(join) => types.extend(undated(join, &filters)),
            // The conditions of `from a, b where …` stand above the join.
            LogicalPlan::Filter(filter) => {
                if let LogicalPlan::Join(join) = filter.input.as_ref()
                    && join.on.is_empty()
                    && join.filter.is_none()
                {
                    let join = Join { filter: Some(filter.predicate.clone()), ..join.clone() };
                    types.extend(undated(&join, &filters));
                }
            }
            _ => {}
        }
        Ok(TreeNodeRecursion::Continue)
    });
    let mut found = Vec::new();
    for types in types {
        // Where tokens come from a table, nobody knows of which type they are.
        let changing: Vec<&str> = match types.is_empty() {
            true => subject.recycled.iter().map(String::as_str).collect(),
            false => subject.recycled.iter().filter(|name| types.contains(*name)).map(String::as_str).collect(),
        };
        if changing.is_empty() {
            continue;
        }
        let place = stage.inputs.iter().find(|(input, _)| input.to_string() == IDENTIFIERS);
        let message = format!(
            "`{IDENTIFIERS}` is joined by token alone: a record has a row for each owner of a {} that changed hands",
            changing.join(" or ")
        );
        let mistake = stage.mistake("W0607", message, place.map_or((0, 0, 0), |(_, place)| *place));
        let help = "add `and (valid_from is null or at >= valid_from) and (valid_to is null or at < valid_to)`, with the record's time for `at`";
        if !found.contains(&mistake.clone().with_help(help)) {
            found.push(mistake.with_help(help));
        }
    }
    found
}

/// Every condition of a `where` anywhere in the plan.
fn filters(plan: &LogicalPlan) -> Vec<Expr> {
    let mut filters = Vec::new();
    let _: Result<TreeNodeRecursion, DataFusionError> = plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Filter(filter) = node {
            filters.push(filter.predicate.clone());
        }
        Ok(TreeNodeRecursion::Continue)
    });
    filters
}

/// The types of the tokens that identifiers are joined to, when the join gives a row for each owner; nothing is in it when they are not known. `None` for any other join.
fn undated(join: &Join, filters: &[Expr]) -> Option<BTreeSet<String>> {
    if matches!(join.join_type, JoinType::LeftSemi | JoinType::RightSemi | JoinType::LeftAnti | JoinType::RightAnti) {
        return None;
    }
    let conditions: Vec<&Expr> = join.filter.iter().flat_map(split_conjunction).collect();
    let equal = conditions.iter().filter_map(|condition| match condition {
        Expr::BinaryExpr(BinaryExpr { left, op: Operator::Eq, right }) => Some((left.as_ref(), right.as_ref())),
        _ => None,
    });
    let pairs: Vec<(&Expr, &Expr)> = join.on.iter().map(|(left, right)| (left, right)).chain(equal).collect();
    for (side, other) in [(&join.left, &join.right), (&join.right, &join.left)] {
        if !are_identifiers(side) {
            continue;
        }
        let of_side = |expr: &Expr, name: &str| match expr {
            Expr::Column(column) => column.name == name && side.schema().has_column(column),
            _ => false,
        };
        let token = pairs.iter().find_map(|&(one, two)| match (of_side(one, TOKEN), of_side(two, TOKEN)) {
            (true, false) => Some(two),
            (false, true) => Some(one),
            _ => None,
        });
        let Some(token) = token else { continue };
        let names = |name: &str| {
            let in_join = conditions.iter().copied().any(|condition| mentions(condition, &|part| of_side(part, name)));
            in_join || filters.iter().any(|filter| mentions(filter, &|part| is_named(part, name)))
        };
        // The newest owner alone, or the first.
        let is_one = |name: &str| {
            let parts = conditions.iter().copied().chain(filters.iter().flat_map(split_conjunction));
            parts.into_iter().any(|part| matches!(part, Expr::IsNull(inner) if is_named(inner, name)))
        };
        if (names(FROM) && names(TO)) || is_one(TO) || is_one(FROM) {
            continue;
        }
        let mut types = BTreeSet::new();
        types_of(token, other, &mut types);
        return Some(types);
    }
    None
}

/// Rows of `identity.identifiers` as they are, whatever they are called.
fn are_identifiers(plan: &LogicalPlan) -> bool {
    match plan {
        LogicalPlan::TableScan(scan) => scan.table_name.to_string() == IDENTIFIERS,
        LogicalPlan::SubqueryAlias(alias) => are_identifiers(&alias.input),
        LogicalPlan::Projection(projection) => are_identifiers(&projection.input),
        LogicalPlan::Filter(filter) => are_identifiers(&filter.input),
        LogicalPlan::Sort(sort) => are_identifiers(&sort.input),
        _ => false,
    }
}

fn is_named(expr: &Expr, name: &str) -> bool {
    matches!(expr, Expr::Column(column) if column.name == name)
}

fn mentions(expr: &Expr, is_it: &dyn Fn(&Expr) -> bool) -> bool {
    expr.exists(|part| Ok(is_it(part))).unwrap_or(false)
}

/// The types of the tokens that an expression over the columns of a plan makes.
fn types_of(expr: &Expr, below: &LogicalPlan, types: &mut BTreeSet<String>) {
    let mut columns: Vec<Column> = Vec::new();
    let _: Result<TreeNodeRecursion, DataFusionError> = expr.apply(|part| match part {
        Expr::ScalarFunction(function) if function.func.name() == TOKEN_FUNCTION => {
            if let Some(Expr::Literal(ScalarValue::Utf8(Some(name)), _)) = function.args.first() {
                types.insert(name.clone());
            }
            Ok(TreeNodeRecursion::Jump)
        }
        Expr::Column(column) => {
            columns.push(column.clone());
            Ok(TreeNodeRecursion::Continue)
        }
        _ => Ok(TreeNodeRecursion::Continue),
    });
    for column in columns {
        if let Ok(index) = below.schema().index_of_column(&column) {
            types_of_column(index, below, types);
        }
    }
}

fn types_of_column(index: usize, plan: &LogicalPlan, types: &mut BTreeSet<String>) {
    match plan {
        LogicalPlan::Projection(projection) => {
            if let Some(expr) = projection.expr.get(index) {
                types_of(expr, &projection.input, types);
            }
        }
        LogicalPlan::Aggregate(aggregate) => {
            let made = aggregate.group_expr.iter().chain(&aggregate.aggr_expr).nth(index);
            if let Some(expr) = made {
                types_of(expr, &aggregate.input, types);
            }
        }
        LogicalPlan::Window(window) => {
            let given = window.input.schema().fields().len();
            match index.checked_sub(given).and_then(|made| window.window_expr.get(made)) {
                Some(expr) => types_of(expr, &window.input, types),
                None => types_of_column(index, &window.input, types),
            }
        }
        LogicalPlan::Join(join) => {
            let of_left = join.left.schema().fields().len();
            match index.checked_sub(of_left) {
                Some(index) => types_of_column(index, &join.right, types),
                None => types_of_column(index, &join.left, types),
            }
        }
        LogicalPlan::Union(union) => union.inputs.iter().for_each(|input| types_of_column(index, input, types)),
        LogicalPlan::Distinct(Distinct::On(on)) => {
            if let Some(expr) = on.select_expr.get(index) {
                types_of(expr, &on.input, types);
            }
        }
        LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::Filter(_)
        | LogicalPlan::Sort(_)
        | LogicalPlan::Limit(_)
        | LogicalPlan::Repartition(_)
        | LogicalPlan::Distinct(Distinct::All(_)) => {
            plan.inputs().into_iter().for_each(|input| types_of_column(index, input, types));
        }
        _ => {}
    }
}
