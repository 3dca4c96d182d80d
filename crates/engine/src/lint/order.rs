use std::collections::BTreeSet;
use std::ops::ControlFlow;

use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Distinct as PlanDistinct, Expr as PlanExpr, LogicalPlan, SortExpr};
use datafusion::sql::sqlparser::ast::{
    Distinct, Expr, Function, FunctionArgumentClause, FunctionArguments, LimitClause, OrderByExpr, Query, Select,
    SetExpr, Visitor, WindowType,
};

use super::Subject;
use crate::diagnostic::Diagnostic;
use crate::stage::{Stage, place_of};
use crate::unique;
use crate::walk::Walk;

/// Functions whose value depends on which of two rows comes first. `rank` and `dense_rank` give equal rows equal numbers.
const BY_PLACE: [&str; 7] = ["row_number", "first_value", "last_value", "nth_value", "lag", "lead", "ntile"];

/// Aggregates whose value depends on the order of rows.
const BY_ORDER: [&str; 4] = ["array_agg", "string_agg", "first_value", "last_value"];

/// What depends on an order that is not there, or that leaves ties.
pub(super) fn lint(subject: &Subject<'_>) -> Vec<Diagnostic> {
    let mut unordered = Unordered { stage: subject.stage(), found: Vec::new() };
    if let Some(query) = subject.query() {
        let _ = query.walk(&mut unordered);
    }
    let mut found = unordered.found;
    for tie in ties(subject) {
        // What has no order at all is told already.
        if !found.iter().any(|other| other.line == tie.line && other.column == tie.column) {
            found.push(tie);
        }
    }
    found
}

struct Unordered<'a> {
    stage: &'a Stage,
    found: Vec<Diagnostic>,
}

impl Visitor for Unordered<'_> {
    type Break = ();

    fn pre_visit_expr(&mut self, expr: &Expr) -> ControlFlow<()> {
        if let Expr::Function(function) = expr {
            self.function(function);
        }
        ControlFlow::Continue(())
    }

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let limits = match &query.limit_clause {
            Some(LimitClause::LimitOffset { limit, offset, .. }) => limit.is_some() || offset.is_some(),
            Some(LimitClause::OffsetCommaLimit { .. }) => true,
            None => query.fetch.is_some(),
        };
        if limits && query.order_by.is_none() {
            let place = match query.limit_clause {
                Some(_) => self.stage.place_of_word("limit", 1),
                None => self.stage.place_of_word("fetch", 1),
            };
            let mistake = self.stage.mistake("W0603", "which rows are the first is left to chance", place);
            self.found.push(mistake.with_help("add `order by` with columns that tell all rows apart"));
        }
        if let SetExpr::Select(select) = query.body.as_ref() {
            self.distinct_on(select, query);
        }
        ControlFlow::Continue(())
    }
}

impl Unordered<'_> {
    fn function(&mut self, function: &Function) {
        let called = function.name.to_string().to_lowercase();
        let (orders_by, partition): (&[OrderByExpr], &[Expr]) = match &function.over {
            Some(WindowType::WindowSpec(spec)) if spec.window_name.is_none() => {
                if !BY_PLACE.contains(&called.as_str()) {
                    return;
                }
                (&spec.order_by, &spec.partition_by)
            }
            // A named window is judged where its plan is.
            Some(_) => return,
            None => {
                if !BY_ORDER.contains(&called.as_str()) || is_distinct(function) {
                    return;
                }
                (ordered_within(function), &[])
            }
        };
        let orders =
            orders_by.iter().any(|order| !matches!(order.expr, Expr::Value(_)) && !partition.contains(&order.expr));
        if orders {
            return;
        }
        let (line, column) = place_of(&function.name).unwrap_or((0, 0));
        let message = format!("`{called}` depends on the order of rows, and there is none");
        let mistake = self.stage.mistake("W0602", message, (line, column, called.len()));
        self.found.push(match function.over {
            Some(_) => mistake.with_help("order by columns that tell the rows of a partition apart"),
            None => mistake.with_help(format!("write `{called}(… order by …)` with columns that tell its rows apart")),
        });
    }

    fn distinct_on(&mut self, select: &Select, query: &Query) {
        let Some(Distinct::On(on)) = &select.distinct else { return };
        let orders = query.order_by.as_ref().is_some_and(|order_by| {
            order_by.to_string().split(',').any(|part| {
                !on.iter().any(|on| part.trim_start_matches("ORDER BY ").trim().starts_with(&on.to_string()))
            })
        });
        if !orders {
            let mistake = self.stage.mistake(
                "W0602",
                "`distinct on` keeps the first row, and which one that is, is left to chance",
                self.stage.place_of_word("distinct", 1),
            );
            self.found.push(mistake.with_help("add `order by` with the same columns and those that choose the row"));
        }
    }
}

/// A set of values has no first one; what becomes of it is the caller's affair.
fn is_distinct(function: &Function) -> bool {
    matches!(&function.args, FunctionArguments::List(list) if list.duplicate_treatment.is_some())
}

fn ordered_within(function: &Function) -> &[OrderByExpr] {
    if !function.within_group.is_empty() {
        return &function.within_group;
    }
    let FunctionArguments::List(list) = &function.args else { return &[] };
    let clause = list.clauses.iter().find_map(|clause| match clause {
        FunctionArgumentClause::OrderBy(order_by) => Some(order_by.as_slice()),
        _ => None,
    });
    clause.unwrap_or_default()
}

/// Windows that are ordered, over rows whose keys are known, by columns that hold none of the keys.
fn ties(subject: &Subject<'_>) -> Vec<Diagnostic> {
    let stage = subject.stage();
    let mut found: Vec<Diagnostic> = Vec::new();
    let mut say = |name: &str, ordinal: usize, key: &[String]| {
        let message = format!("rows can be equal in all that `{name}` is ordered by");
        let mistake = stage.mistake("W0602", message, stage.place_of_word(name, ordinal));
        let mistake = mistake.with_help(format!("add `{}`, which tells them apart", key.join("`, `")));
        if !found.contains(&mistake) {
            found.push(mistake);
        }
    };
    let _: Result<TreeNodeRecursion, DataFusionError> = subject.plan.apply_with_subqueries(|node| {
        match node {
            LogicalPlan::Window(window) => {
                let keys = unique::keys(&window.input, subject.known);
                for expr in &window.window_expr {
                    let PlanExpr::WindowFunction(function) = expr.clone().unalias() else { continue };
                    let name = function.fun.name().to_lowercase();
                    if !BY_PLACE.contains(&name.as_str()) || function.params.order_by.is_empty() {
                        continue;
                    }
                    let given: BTreeSet<usize> = columns(&function.params.partition_by, &window.input)
                        .into_iter()
                        .chain(sort_columns(&function.params.order_by, &window.input))
                        .collect();
                    if let Some(key) = uncovered(&keys, &given, &window.input) {
                        say(&name, stage.nth_call(&name, &function.params.order_by), &key);
                    }
                }
            }
            LogicalPlan::Distinct(PlanDistinct::On(on)) => {
                let keys = unique::keys(&on.input, subject.known);
                let Some(sorts) = &on.sort_expr else { return Ok(TreeNodeRecursion::Continue) };
                let given: BTreeSet<usize> =
                    columns(&on.on_expr, &on.input).into_iter().chain(sort_columns(sorts, &on.input)).collect();
                if let Some(key) = uncovered(&keys, &given, &on.input) {
                    say("distinct", 1, &key);
                }
            }
            _ => {}
        }
        Ok(TreeNodeRecursion::Continue)
    });
    found
}

fn columns(exprs: &[PlanExpr], input: &LogicalPlan) -> Vec<usize> {
    exprs
        .iter()
        .filter_map(|expr| match expr {
            PlanExpr::Column(column) => input.schema().maybe_index_of_column(column),
            _ => None,
        })
        .collect()
}

fn sort_columns(sorts: &[SortExpr], input: &LogicalPlan) -> Vec<usize> {
    columns(&sorts.iter().map(|sort| sort.expr.clone()).collect::<Vec<_>>(), input)
}

/// The shortest key, when keys are known and none is among the given columns.
fn uncovered(keys: &[unique::Key], given: &BTreeSet<usize>, input: &LogicalPlan) -> Option<Vec<String>> {
    if keys.iter().any(|key| key.is_subset(given)) {
        return None;
    }
    let key = keys.first()?;
    let missing = key.difference(given).map(|index| input.schema().field(*index).name().clone());
    Some(missing.collect())
}
