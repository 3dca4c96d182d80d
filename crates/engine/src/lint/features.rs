use std::collections::{BTreeMap, BTreeSet};

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::{Expr, LogicalPlan, Operator};
use holdfast_types::TableName;

use super::Subject;
use crate::diagnostic::Diagnostic;
use crate::features::{LABEL_TAG, LABELS};
use crate::stage::CLOCK_FUNCTIONS;

/// The schema of stages that models are trained on.
const FEATURES: &str = "features";
/// What a model must not see: labels, and what happened after `now()`.
pub(super) fn lint(subject: &Subject<'_>) -> Vec<Diagnostic> {
    let stage = subject.stage();
    let is_view = stage.name.schema() == FEATURES || stage.directives.feature.is_some();
    if !is_view || LABELS.contains(&stage.name.schema()) {
        return Vec::new();
    }
    let mut found = labels(subject);
    found.extend(open_ends(subject));
    found
}

/// Labels, read directly or over other stages.
fn labels(subject: &Subject<'_>) -> Vec<Diagnostic> {
    let stage = subject.stage();
    let mut found = Vec::new();
    for (input, place) in &stage.inputs {
        if let Some(label) = label_behind(subject, input, &mut BTreeSet::new()) {
            let message = match label == *input {
                true => format!("a feature stage reads the labels of `{label}`"),
                false => format!("a feature stage reads `{input}`, which is made from the labels of `{label}`"),
            };
            let mistake = stage.mistake("E0601", message, *place);
            found.push(mistake.with_help("a model would be trained on the answer: join labels in the training set"));
        }
    }
    let tagged: BTreeMap<&TableName, BTreeSet<&str>> = subject
        .before
        .stages
        .iter()
        .map(|stage| {
            let fields = stage.schema.fields().iter().filter(|field| field.metadata().contains_key(LABEL_TAG));
            (&stage.stage.name, fields.map(|field| field.name().as_str()).collect())
        })
        .collect();
    let lineages = subject.before.lineages();
    for (column, origins) in &subject.inspected.lineage.columns {
        let mut open: Vec<_> = origins.iter().cloned().collect();
        let mut seen = BTreeSet::new();
        while let Some(origin) = open.pop() {
            if !seen.insert(origin.clone()) {
                continue;
            }
            if tagged.get(&origin.table).is_some_and(|columns| columns.contains(origin.column.as_str())) {
                let message = format!("the feature `{column}` is made from `{origin}`, which is tagged as a label");
                let mistake = stage.mistake("E0601", message, stage.place_of_output(column));
                found.push(mistake.with_help("a model would be trained on the answer: take the column out"));
                break;
            }
            let below = lineages.get(&origin.table).and_then(|lineage| lineage.column(&origin.column));
            open.extend(below.into_iter().flatten().cloned());
        }
    }
    found
}

fn label_behind(subject: &Subject<'_>, table: &TableName, seen: &mut BTreeSet<TableName>) -> Option<TableName> {
    if LABELS.contains(&table.schema()) {
        return Some(table.clone());
    }
    if !seen.insert(table.clone()) {
        return None;
    }
    let stage = subject.before.stage(table)?;
    stage.stage.inputs.keys().find_map(|input| label_behind(subject, input, seen))
}

/// Tables of things that happened, whose contract says when, read without an end at `now()`.
fn open_ends(subject: &Subject<'_>) -> Vec<Diagnostic> {
    let stage = subject.stage();
    let bounded = bounded_by_now(subject.plan);
    let mut found = Vec::new();
    for (input, place) in &stage.inputs {
        let contract = subject.before.stage(input).and_then(|stage| stage.stage.contract.as_ref());
        let Some(event_time) = contract.and_then(|contract| contract.event_time.as_ref()) else { continue };
        if !bounded.contains(event_time) {
            let message = format!("`{input}` is read without an end: rows behind `now()` would be features");
            let mistake = stage.mistake("W0605", message, *place);
            found.push(mistake.with_help(format!("add `{event_time} <= now()`")));
        }
    }
    found
}

/// Names of columns that are compared with the clock so that they lie before it.
fn bounded_by_now(plan: &LogicalPlan) -> BTreeSet<String> {
    let mut bounded = BTreeSet::new();
    let mut pair = |early: &Expr, late: &Expr| {
        if reads_clock(late) {
            bounded.extend(early.column_refs().into_iter().map(|column| column.name.clone()));
        }
    };
    let _: Result<TreeNodeRecursion, DataFusionError> = plan.apply_with_subqueries(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|part| {
                match part {
                    Expr::BinaryExpr(binary) => match binary.op {
                        Operator::Lt | Operator::LtEq | Operator::Eq => pair(&binary.left, &binary.right),
                        Operator::Gt | Operator::GtEq => pair(&binary.right, &binary.left),
                        _ => {}
                    },
                    Expr::Between(between) if !between.negated => pair(&between.expr, &between.high),
                    _ => {}
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    bounded
}

fn reads_clock(expr: &Expr) -> bool {
    expr.exists(|part| {
        Ok(matches!(part, Expr::ScalarFunction(function) if CLOCK_FUNCTIONS.contains(&function.func.name())))
    })
    .unwrap_or(false)
}
