use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{Expr as PlanExpr, ExprSchemable, LogicalPlan, Operator};
use datafusion::sql::sqlparser::ast::{Expr, Query, Value, Visitor};

use super::Subject;
use crate::diagnostic::Diagnostic;
use crate::inspect::is_float;
use crate::stage::{CLOCK_FUNCTIONS, Stage, VOLATILE_FUNCTIONS, place_of};
use crate::walk::Walk;

/// CTEs that nobody reads, clocks in the wrong zone, functions that cannot be repeated, floating point numbers as keys.
pub(super) fn lint(subject: &Subject<'_>) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    if let Some(query) = subject.query() {
        let mut unused = UnusedCtes { stage: subject.stage(), found: &mut found };
        let _ = query.walk(&mut unused);
        found.extend(clocks_in_zones(subject.stage(), query));
    }
    found.extend(plan_findings(subject));
    found
}

struct UnusedCtes<'a> {
    stage: &'a Stage,
    found: &'a mut Vec<Diagnostic>,
}

impl Visitor for UnusedCtes<'_> {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let Some(with) = &query.with else { return ControlFlow::Continue(()) };
        let reads: BTreeMap<String, BTreeSet<String>> =
            with.cte_tables.iter().map(|cte| (cte.alias.name.value.clone(), names_read(cte.query.as_ref()))).collect();
        // From the body on, over what is read there, and there again.
        let mut open: Vec<String> = names_read(query.body.as_ref()).into_iter().collect();
        open.extend(names_read(&query.order_by));
        let mut used = BTreeSet::new();
        while let Some(name) = open.pop() {
            if used.insert(name.clone()) {
                open.extend(reads.get(&name).into_iter().flatten().cloned());
            }
        }
        for cte in &with.cte_tables {
            let name = &cte.alias.name;
            if !used.contains(&name.value) {
                let start = name.span.start;
                let place = (
                    usize::try_from(start.line).unwrap_or(0),
                    usize::try_from(start.column).unwrap_or(0),
                    name.value.chars().count(),
                );
                let mistake = self.stage.mistake("W0601", format!("nobody reads `{}`", name.value), place);
                self.found.push(mistake.with_help("take it out, or join it"));
            }
        }
        ControlFlow::Continue(())
    }
}

/// Names without a schema that are read anywhere below.
fn names_read(node: &impl Walk) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let _ = node.each_relation(|name| {
        if let ([part], Some(ident)) = (name.0.as_slice(), name.0.first().and_then(|part| part.as_ident())) {
            let _ = part;
            names.insert(ident.value.clone());
        }
        ControlFlow::Continue(())
    });
    names
}

/// `now() at time zone 'X'`: DataFusion 55 takes the moment in UTC for local time in X and moves it the wrong way.
fn clocks_in_zones(stage: &Stage, query: &Query) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let _ = query.each_expression(|expr| {
        if let Expr::AtTimeZone { timestamp, time_zone } = expr
            && let Some(place) = clock_in(timestamp)
        {
            let zone = match time_zone.as_ref() {
                Expr::Value(value) => match &value.value {
                    Value::SingleQuotedString(zone) => zone.clone(),
                    _ => return ControlFlow::Continue(()),
                },
                _ => return ControlFlow::Continue(()),
            };
            if !zone.eq_ignore_ascii_case("utc") {
                let message = format!("`now()` in UTC is taken for local time in {zone}");
                let mistake = stage.mistake("E0215", message, place);
                found.push(mistake.with_help(format!("write `now() at time zone 'UTC' at time zone '{zone}'`")));
            }
        }
        ControlFlow::Continue(())
    });
    found
}

/// Where the clock is read, in an expression that is still a moment in UTC.
fn clock_in(expr: &Expr) -> Option<(usize, usize, usize)> {
    match expr {
        Expr::Nested(inner) => clock_in(inner),
        Expr::BinaryOp { left, .. } => clock_in(left),
        Expr::Function(function) => {
            let called = function.name.to_string().to_lowercase();
            let (line, column) = place_of(&function.name).unwrap_or((0, 0));
            CLOCK_FUNCTIONS.contains(&called.as_str()).then_some((line, column, called.len()))
        }
        _ => None,
    }
}

fn plan_findings(subject: &Subject<'_>) -> Vec<Diagnostic> {
    let stage = subject.stage();
    let mut volatile: BTreeSet<String> = BTreeSet::new();
    let mut floats: Vec<(String, &'static str)> = Vec::new();
    let _: Result<TreeNodeRecursion, DataFusionError> = subject.plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|part| {
                if let PlanExpr::ScalarFunction(function) = part
                    && part.is_volatile_node()
                {
                    volatile.insert(function.func.name().to_owned());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })?;
        match node {
            LogicalPlan::Aggregate(aggregate) => {
                for group in &aggregate.group_expr {
                    if group.get_type(aggregate.input.schema()).is_ok_and(|data_type| is_float(&data_type)) {
                        floats.push((last_name(group), "grouped by"));
                    }
                }
            }
            LogicalPlan::Join(join) => {
                let is_float_of = |expr: &PlanExpr| expr.get_type(&join.schema).is_ok_and(|found| is_float(&found));
                for (left, _) in join.on.iter().filter(|(left, right)| is_float_of(left) && is_float_of(right)) {
                    floats.push((last_name(left), "joined on"));
                }
                for part in join.filter.iter().flat_map(split_conjunction) {
                    if let PlanExpr::BinaryExpr(binary) = part
                        && binary.op == Operator::Eq
                        && matches!(
                            (binary.left.as_ref(), binary.right.as_ref()),
                            (PlanExpr::Column(_), PlanExpr::Column(_))
                        )
                        && is_float_of(&binary.left)
                        && is_float_of(&binary.right)
                    {
                        floats.push((last_name(&binary.left), "joined on"));
                    }
                }
            }
            _ => {}
        }
        Ok(TreeNodeRecursion::Continue)
    });
    let mut found = Vec::new();
    for name in volatile.iter().filter(|name| !VOLATILE_FUNCTIONS.contains(&name.as_str())) {
        let place = stage.place_of_word(name, 1);
        let mistake = stage.mistake("E0208", format!("`{name}()` gives another value at every call"), place);
        found.push(mistake.with_help("a stage must be repeatable: derive the value from the row"));
    }
    for (name, how) in floats {
        let mistake = stage.mistake(
            "W0604",
            format!("`{name}` is a floating point number, and rows are {how} it"),
            stage.place_of_word(&name, 1),
        );
        if !found.contains(&mistake) {
            found.push(mistake.with_help("equal values can differ in the last digit: cast it to decimal first"));
        }
    }
    found
}

fn last_name(expr: &PlanExpr) -> String {
    match expr {
        PlanExpr::Column(column) => column.name.clone(),
        PlanExpr::Alias(alias) => alias.name.clone(),
        other => other.column_refs().into_iter().next().map_or_else(|| other.to_string(), |column| column.name.clone()),
    }
}
