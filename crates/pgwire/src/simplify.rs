//! Queries of system tables without what reads tables that are always empty, and with subqueries in a form that the planner takes.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use datafusion::sql::sqlparser::ast::{
    ArrayElemTypeDef, DataType, Expr, FunctionArg, FunctionArgExpr, FunctionArguments, GroupByExpr, Ident,
    JoinOperator, Query, Select, SelectItem, SetExpr, SetOperator, Statement, TableFactor, TableWithJoins,
    UnaryOperator, Value, ValueWithSpan, Visitor, VisitorMut,
};
use holdfast_engine::walk::{Walk, WalkMut};

use crate::catalog;
use crate::rewrite::{boolean, call, cast, folded, last_part, name_of, null};

/// The statement without what reads system tables that are always empty, such as those of triggers, and with subqueries of one value
/// in the form that the planner asks for. For queries of tools that it cannot plan otherwise.
pub(crate) fn simplified(statement: &Statement) -> Statement {
    let mut statement = statement.clone();
    let _ = statement.walk_mut(&mut Simplifier);
    statement
}

struct Simplifier;

impl VisitorMut for Simplifier {
    type Break = ();

    fn post_visit_query(&mut self, query: &mut Query) -> ControlFlow<()> {
        prune(&mut query.body);
        if is_empty(&query.body) && forget_rows(&mut query.body) {
            query.order_by = None;
        }
        ControlFlow::Continue(())
    }

    fn post_visit_expr(&mut self, expr: &mut Expr) -> ControlFlow<()> {
        let simpler = match expr {
            Expr::Subquery(query) if is_known_empty(query) => Some(null()),
            Expr::Exists { subquery, negated } if is_known_empty(subquery) => Some(boolean(*negated)),
            Expr::InSubquery { subquery, negated, .. } if is_known_empty(subquery) => Some(boolean(*negated)),
            Expr::InSubquery { expr, subquery, negated } => collected(subquery).map(|array| {
                let has = call("array_has", vec![array, expr.as_ref().clone()]);
                if *negated { Expr::UnaryOp { op: UnaryOperator::Not, expr: Box::new(has) } } else { has }
            }),
            Expr::Function(function) => match &function.args {
                FunctionArguments::Subquery(query) if last_part(&function.name).as_deref() == Some("array") => {
                    if is_known_empty(query) {
                        Some(no_texts())
                    } else {
                        collected(query)
                    }
                }
                _ => None,
            },
            Expr::Subquery(query) => {
                at_most_one(query);
                None
            }
            _ => None,
        };
        if let Some(simpler) = simpler {
            *expr = simpler;
        }
        ControlFlow::Continue(())
    }
}

/// Nothing where an array is expected.
fn no_texts() -> Expr {
    cast(null(), DataType::Array(ArrayElemTypeDef::SquareBracket(Box::new(DataType::Text), None)))
}

/// A query that was emptied, or is empty.
fn is_known_empty(query: &Query) -> bool {
    match query.body.as_ref() {
        SetExpr::Select(select) if select.from.is_empty() => {
            matches!(&select.selection, Some(Expr::Value(ValueWithSpan { value: Value::Boolean(false), .. })))
        }
        _ => is_empty(&query.body),
    }
}

fn is_empty(body: &SetExpr) -> bool {
    match body {
        SetExpr::Select(select) => {
            // Without groups, an aggregate gives a row of nothing.
            !aggregates(select) && select.from.iter().any(joins_are_empty)
        }
        SetExpr::Query(query) => is_known_empty(query),
        SetExpr::SetOperation { left, op, right, .. } => match op {
            SetOperator::Union => is_empty(left) && is_empty(right),
            _ => is_empty(left),
        },
        _ => false,
    }
}

fn joins_are_empty(table: &TableWithJoins) -> bool {
    let mut empty = factor_is_empty(&table.relation);
    for join in &table.joins {
        let right = factor_is_empty(&join.relation);
        empty = match &join.join_operator {
            JoinOperator::Join(_) | JoinOperator::Inner(_) | JoinOperator::CrossJoin(_) => empty || right,
            JoinOperator::Left(_) | JoinOperator::LeftOuter(_) => empty,
            JoinOperator::Right(_) | JoinOperator::RightOuter(_) => right,
            _ => empty && right,
        };
    }
    empty
}

fn factor_is_empty(factor: &TableFactor) -> bool {
    match factor {
        TableFactor::Table { name, args: None, .. } => {
            let is_system = name.0.len() >= 2
                && name.0[name.0.len() - 2].as_ident().is_some_and(|schema| folded(schema) == catalog::SCHEMA);
            is_system && last_part(name).is_some_and(|table| catalog::is_always_empty(&table))
        }
        TableFactor::Derived { subquery, .. } => is_known_empty(subquery),
        TableFactor::UNNEST { array_exprs, .. } => array_exprs.iter().any(is_never_filled),
        TableFactor::Table { name, args: Some(args), .. } if last_part(name).as_deref() == Some("unnest") => {
            args.args.iter().any(|arg| match arg {
                FunctionArg::Unnamed(FunctionArgExpr::Expr(expr)) => is_never_filled(expr),
                _ => false,
            })
        }
        TableFactor::NestedJoin { table_with_joins, .. } => joins_are_empty(table_with_joins),
        _ => false,
    }
}

/// Whether it is a column of a system table that is always null.
fn is_never_filled(expr: &Expr) -> bool {
    matches!(
        name_of(expr).as_deref(),
        Some(
            "reloptions"
                | "relacl"
                | "attoptions"
                | "attacl"
                | "nspacl"
                | "datacl"
                | "spcacl"
                | "spcoptions"
                | "rolconfig"
        )
    )
}

fn aggregates(select: &Select) -> bool {
    let is_grouped = !matches!(&select.group_by, GroupByExpr::Expressions(by, _) if by.is_empty());
    let is_aggregate = |expr: &Expr| {
        let mut finder = AggregateFinder { depth: 0 };
        expr.walk(&mut finder).is_break()
    };
    let expr = |item: &SelectItem| match item {
        SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. } => is_aggregate(expr),
        _ => false,
    };
    !is_grouped && select.projection.iter().any(expr)
}

/// Looks for an aggregate that is the query's own and not a subquery's.
struct AggregateFinder {
    depth: usize,
}

impl Visitor for AggregateFinder {
    type Break = ();

    fn pre_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth += 1;
        ControlFlow::Continue(())
    }

    fn post_visit_query(&mut self, _: &Query) -> ControlFlow<()> {
        self.depth -= 1;
        ControlFlow::Continue(())
    }

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        const AGGREGATES: [&str; 9] =
            ["count", "sum", "max", "min", "avg", "array_agg", "string_agg", "bool_or", "bool_and"];
        match expr {
            Expr::Function(function)
                if self.depth == 0
                    && last_part(&function.name).is_some_and(|name| AGGREGATES.contains(&name.as_str())) =>
            {
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        }
    }
}

/// The elements of a query of one column, as an array that a subquery gives.
fn collected(query: &Query) -> Option<Expr> {
    let mut query = query.clone();
    if let SetExpr::Select(select) = query.body.as_mut()
        && select.distinct.is_none()
        && !aggregates(select)
        && query.limit_clause.is_none()
        && let [SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }] =
            select.projection.as_mut_slice()
    {
        // In place, so that it may depend on the row outside.
        *expr = call("array_agg", vec![expr.clone()]);
        query.order_by = None;
        return Some(Expr::Subquery(Box::new(query)));
    }
    let statement = crate::statement::parse_one(&format!("select array_agg(element) from ({query}) as one(element)"));
    match *statement.ok()? {
        Statement::Query(query) => Some(Expr::Subquery(query)),
        _ => None,
    }
}

/// Leaves empty sides out of unions.
fn prune(body: &mut Box<SetExpr>) {
    if let SetExpr::SetOperation { left, op: SetOperator::Union, right, .. } = body.as_mut() {
        prune(left);
        prune(right);
        let kept = match (is_empty(left), is_empty(right)) {
            (true, false) => right,
            (false, true) => left,
            _ => return,
        };
        let kept = std::mem::replace(kept.as_mut(), SetExpr::Values(no_values()));
        **body = kept;
    }
}

fn no_values() -> datafusion::sql::sqlparser::ast::Values {
    datafusion::sql::sqlparser::ast::Values { explicit_row: false, rows: Vec::new(), value_keyword: false }
}

/// Makes a query that gives no rows of one that reads nothing, with columns of the same names. Whether it could.
fn forget_rows(body: &mut Box<SetExpr>) -> bool {
    match body.as_mut() {
        SetExpr::Select(select) => {
            let is_wild =
                |item: &SelectItem| !matches!(item, SelectItem::UnnamedExpr(_) | SelectItem::ExprWithAlias { .. });
            if select.projection.iter().any(is_wild) {
                return false;
            }
            let mut names = BTreeSet::new();
            for (index, item) in select.projection.iter_mut().enumerate() {
                let (expr, alias) = match item {
                    SelectItem::UnnamedExpr(expr) => (&*expr, name_of(expr)),
                    SelectItem::ExprWithAlias { expr, alias } => (&*expr, Some(folded(alias))),
                    _ => continue,
                };
                let data_type = match expr {
                    Expr::Cast { data_type, .. } => data_type.clone(),
                    _ => DataType::Text,
                };
                let mut name = alias.unwrap_or_else(|| "?column?".to_owned());
                if !names.insert(name.clone()) {
                    name = format!("{name} {}", index + 1);
                }
                *item =
                    SelectItem::ExprWithAlias { expr: cast(null(), data_type), alias: Ident::with_quote('"', name) };
            }
            select.from.clear();
            select.distinct = None;
            select.having = None;
            select.group_by = GroupByExpr::Expressions(Vec::new(), Vec::new());
            select.selection = Some(boolean(false));
            true
        }
        SetExpr::SetOperation { left, .. } => {
            if !forget_rows(left) {
                return false;
            }
            let kept = std::mem::replace(left.as_mut(), SetExpr::Values(no_values()));
            **body = kept;
            true
        }
        SetExpr::Query(query) => forget_rows(&mut query.body),
        _ => false,
    }
}

/// The planner takes a subquery of one value that depends on the row outside only as an aggregate: of one value it is the value.
fn at_most_one(query: &mut Query) {
    if query.limit_clause.is_some() || query.order_by.is_some() {
        return;
    }
    let SetExpr::Select(select) = query.body.as_mut() else { return };
    if select.from.is_empty() || aggregates(select) || select.distinct.is_some() {
        return;
    }
    if let [SelectItem::UnnamedExpr(expr) | SelectItem::ExprWithAlias { expr, .. }] = select.projection.as_mut_slice() {
        *expr = call("max", vec![expr.clone()]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rewrite::for_execution;
    use crate::statement::parse_one;

    #[test]
    fn what_reads_tables_that_are_always_empty_is_left_out() {
        let simple = |sql: &str| simplified(&for_execution(&parse_one(sql).unwrap(), &[]).0).to_string();
        assert_eq!(
            simple(
                "select p.polname, array(select 1 from pg_roles where oid = any(p.polroles)) from pg_policy p order by 1"
            ),
            "SELECT CAST(NULL AS TEXT) AS \"polname\", CAST(NULL AS TEXT) AS \"array_agg\" WHERE false"
        );
        assert_eq!(
            simple("select a, (select x from pg_attrdef d where d.adnum = a) from pg_attribute"),
            "SELECT a, NULL FROM pg_catalog.pg_attribute"
        );
        assert_eq!(
            simple("select a from pg_class union all select tgname from pg_trigger"),
            "SELECT a FROM pg_catalog.pg_class"
        );
        assert_eq!(simple("select count(*) from pg_trigger"), "SELECT count(*) FROM pg_catalog.pg_trigger");
        assert_eq!(
            simple("select c from pg_class left join pg_index on true"),
            "SELECT c FROM pg_catalog.pg_class LEFT JOIN pg_catalog.pg_index ON true"
        );
    }
}
