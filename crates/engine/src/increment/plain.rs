//! The plan that the rules are for: types spelled out, subqueries as joins, nothing in it that could differ between two runs.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::execution::SessionState;
use datafusion::logical_expr::expr::WindowFunction;
use datafusion::logical_expr::{Expr, LogicalPlan, Volatility, WindowFunctionDefinition};
use datafusion::optimizer::Optimizer;
use datafusion::optimizer::decorrelate_lateral_join::DecorrelateLateralJoin;
use datafusion::optimizer::decorrelate_predicate_subquery::DecorrelatePredicateSubquery;
use datafusion::optimizer::eliminate_cross_join::EliminateCrossJoin;
use datafusion::optimizer::eliminate_outer_join::EliminateOuterJoin;
use datafusion::optimizer::extract_equijoin_predicate::ExtractEquijoinPredicate;
use datafusion::optimizer::scalar_subquery_to_join::ScalarSubqueryToJoin;
use holdfast_types::TableName;

use super::{NotByKey, Result, table_name};

/// The plan as the rules read it.
///
/// Casts that the analyser adds merge values ('1' and '01' are one number), so a plan without them may not be judged. Of the optimiser
/// only those rules are applied that turn subqueries and conditions into joins: others fold away which column is the key.
pub(super) fn plain(state: &SessionState, plan: &LogicalPlan) -> Result<LogicalPlan, NotByKey> {
    let plan = state.analyzer().execute_and_check(plan.clone(), state.config_options(), |_, _| {})?;
    refuse_unrepeatable(&plan)?;
    let joins = Optimizer::with_rules(vec![
        Arc::new(DecorrelatePredicateSubquery::new()),
        Arc::new(ScalarSubqueryToJoin::new()),
        Arc::new(DecorrelateLateralJoin::new()),
        Arc::new(ExtractEquijoinPredicate::new()),
        Arc::new(EliminateCrossJoin::new()),
        Arc::new(EliminateOuterJoin::new()),
    ]);
    Ok(joins.optimize(plan, state, |_, _| {})?)
}

/// The tables that a plan reads, in subqueries, too.
pub(super) fn tables(plan: &LogicalPlan) -> BTreeSet<TableName> {
    let mut names = BTreeSet::new();
    visit(plan, &mut |node| {
        if let LogicalPlan::TableScan(scan) = node {
            names.extend(table_name(&scan.table_name));
        }
        ControlFlow::Continue(())
    });
    names
}

/// The tables that subqueries in the expressions of this one node read.
pub(super) fn tables_in_subqueries(plan: &LogicalPlan) -> BTreeSet<TableName> {
    let mut names = BTreeSet::new();
    for expr in plan.expressions() {
        for subquery in subqueries(&expr) {
            names.extend(tables(&subquery));
        }
    }
    names
}

/// The plans of an expression's subqueries.
pub(super) fn subqueries(expr: &Expr) -> Vec<Arc<LogicalPlan>> {
    let mut plans = Vec::new();
    let found = expr.apply(|expr| {
        match expr {
            Expr::Exists(exists) => plans.push(Arc::clone(&exists.subquery.subquery)),
            Expr::InSubquery(within) => plans.push(Arc::clone(&within.subquery.subquery)),
            Expr::ScalarSubquery(subquery) => plans.push(Arc::clone(&subquery.subquery)),
            Expr::SetComparison(comparison) => plans.push(Arc::clone(&comparison.subquery.subquery)),
            _ => {}
        }
        Ok(TreeNodeRecursion::Continue)
    });
    debug_assert!(found.is_ok(), "nothing here fails");
    plans
}

fn visit(plan: &LogicalPlan, see: &mut dyn FnMut(&LogicalPlan) -> ControlFlow<()>) {
    let seen = plan.apply_with_subqueries(|node| {
        Ok(match see(node) {
            ControlFlow::Continue(()) => TreeNodeRecursion::Continue,
            ControlFlow::Break(()) => TreeNodeRecursion::Stop,
        })
    });
    debug_assert!(seen.is_ok(), "nothing here fails");
}

/// Refuses what gives other rows at another time, and what these rules know nothing about.
fn refuse_unrepeatable(plan: &LogicalPlan) -> Result<(), NotByKey> {
    let mut refused = None;
    visit(plan, &mut |node| {
        refused = refusal(node);
        if refused.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    refused.map_or(Ok(()), Err)
}

fn refusal(node: &LogicalPlan) -> Option<NotByKey> {
    match node {
        LogicalPlan::TableScan(scan) if table_name(&scan.table_name).is_none() => {
            // Its arguments were worked out when the query was planned; what they depended on is not in the plan any more.
            return Some(NotByKey::of_node("a table function may give other rows in another run", node));
        }
        LogicalPlan::TableScan(scan) if scan.fetch.is_some() => {
            return Some(NotByKey::of_node("only the first rows of a table are read", node));
        }
        LogicalPlan::RecursiveQuery(_) => return Some(NotByKey::of_node("the query reads its own result", node)),
        LogicalPlan::Projection(_)
        | LogicalPlan::Filter(_)
        | LogicalPlan::Window(_)
        | LogicalPlan::Aggregate(_)
        | LogicalPlan::Sort(_)
        | LogicalPlan::Join(_)
        | LogicalPlan::Repartition(_)
        | LogicalPlan::Union(_)
        | LogicalPlan::TableScan(_)
        | LogicalPlan::EmptyRelation(_)
        | LogicalPlan::Subquery(_)
        | LogicalPlan::SubqueryAlias(_)
        | LogicalPlan::Limit(_)
        | LogicalPlan::Values(_)
        | LogicalPlan::Distinct(_)
        | LogicalPlan::Unnest(_) => {}
        _ => return Some(NotByKey::of_node("nothing is known about such a step", node)),
    }
    let mut refused = None;
    for expr in node.expressions() {
        let seen = expr.apply(|part| {
            refused = match part {
                Expr::Placeholder(_) | Expr::ScalarVariable(..) => {
                    Some(NotByKey::of_expression("the value is not in the query", &expr))
                }
                _ if is_volatile(part) => Some(NotByKey::of_expression("the value is another at every call", &expr)),
                _ => None,
            };
            Ok(if refused.is_some() { TreeNodeRecursion::Stop } else { TreeNodeRecursion::Continue })
        });
        debug_assert!(seen.is_ok(), "nothing here fails");
        if refused.is_some() {
            return refused;
        }
    }
    None
}

/// `Expr::is_volatile` looks at functions of single values only.
fn is_volatile(part: &Expr) -> bool {
    let volatility = match part {
        Expr::AggregateFunction(function) => function.func.signature().volatility,
        Expr::WindowFunction(function) => {
            let WindowFunction { fun, .. } = function.as_ref();
            match fun {
                WindowFunctionDefinition::AggregateUDF(function) => function.signature().volatility,
                WindowFunctionDefinition::WindowUDF(function) => function.signature().volatility,
            }
        }
        _ => return part.is_volatile_node(),
    };
    volatility == Volatility::Volatile
}
