use std::sync::Arc;

use arrow::array::{Array, BooleanArray, RecordBatch, StringArray, StringBuilder};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::common::DFSchema;
use datafusion::common::cast::as_boolean_array;
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::execution::SessionState;
use datafusion::logical_expr::simplify::SimplifyContext;
use datafusion::logical_expr::{Expr, ExprSchemable};
use datafusion::optimizer::simplify_expressions::ExprSimplifier;
use datafusion::physical_expr::PhysicalExpr;
use serde::Serialize;

use crate::directive::{Expectation, Severity};
use crate::error::describe;

/// How a stage's table did against one expectation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExpectationResult {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub severity: Severity,
    /// Its condition.
    pub condition: String,
    /// The rows that did not meet it; for a condition over the whole table 1 or 0.
    pub failed_rows: u64,
}

/// Whether the condition fits the columns.
///
/// # Errors
/// What is wrong with it, for a person.
pub(crate) fn check(expectation: &Expectation, schema: &SchemaRef, state: &SessionState) -> Result<(), String> {
    let (expr, columns) = parse(expectation, schema, state)?;
    let data_type = expr.get_type(&columns).map_err(|error| describe(&error))?;
    if data_type != DataType::Boolean {
        return Err(format!("expectation `{}` is {data_type}, not boolean", expectation.name));
    }
    if is_aggregate(&expr) {
        if expectation.severity == Severity::Quarantine {
            return Err(format!(
                "expectation `{}` is about the whole table, so it cannot quarantine rows: use fail or warn",
                expectation.name
            ));
        }
    } else {
        state.create_physical_expr(expr, &columns).map_err(|error| describe(&error))?;
    }
    Ok(())
}

fn parse(expectation: &Expectation, schema: &SchemaRef, state: &SessionState) -> Result<(Expr, DFSchema), String> {
    let columns = DFSchema::try_from(Arc::clone(schema)).map_err(|error| describe(&error))?;
    let expr = state
        .create_logical_expr(&expectation.condition, &columns)
        .and_then(|expr| {
            // A physical expression is made as it is written; `now()` must have become the run's moment before.
            let context = SimplifyContext::builder()
                .with_schema(Arc::new(columns.clone()))
                .with_config_options(Arc::clone(state.config_options()))
                .with_query_execution_start_time(state.execution_props().query_execution_start_time)
                .build();
            let simplifier = ExprSimplifier::new(context);
            simplifier.simplify(simplifier.coerce(expr, &columns)?)
        })
        .map_err(|error| describe(&error))?;
    Ok((expr, columns))
}

fn is_aggregate(expr: &Expr) -> bool {
    let mut found = false;
    let _: Result<TreeNodeRecursion, DataFusionError> = expr.apply(|part| {
        if matches!(part, Expr::AggregateFunction(_)) {
            found = true;
            return Ok(TreeNodeRecursion::Stop);
        }
        Ok(TreeNodeRecursion::Continue)
    });
    found
}

/// The expectations of a stage, ready to judge its rows as they stream by.
#[derive(Debug, Clone)]
pub(crate) struct RowRules {
    rules: Vec<(Expectation, Arc<dyn PhysicalExpr>)>,
}

/// A batch after judgement.
pub(crate) struct Judged {
    /// The rows to publish.
    pub(crate) kept: RecordBatch,
    /// The rows to quarantine, and the names of the expectations that each failed.
    pub(crate) refused: Option<(RecordBatch, StringArray)>,
}

/// Splits a stage's expectations into those for rows and those for the whole table.
pub(crate) fn split(
    expectations: &[Expectation],
    schema: &SchemaRef,
    state: &SessionState,
) -> Result<(RowRules, Vec<Expectation>), String> {
    let mut rules = Vec::new();
    let mut whole = Vec::new();
    for expectation in expectations {
        let (expr, columns) = parse(expectation, schema, state)?;
        if is_aggregate(&expr) {
            whole.push(expectation.clone());
        } else {
            let expr = state.create_physical_expr(expr, &columns).map_err(|error| describe(&error))?;
            rules.push((expectation.clone(), expr));
        }
    }
    Ok((RowRules::new(rules), whole))
}

/// The conditions under which rows are published: those whose rows would go to quarantine when they are false. Over columns by their names alone.
///
/// # Errors
/// What is wrong with one, for a person.
pub(crate) fn quarantine_rules(
    expectations: &[Expectation],
    schema: &SchemaRef,
    state: &SessionState,
) -> Result<Vec<Expr>, String> {
    let quarantines = expectations.iter().filter(|expectation| expectation.severity == Severity::Quarantine);
    quarantines.map(|expectation| parse(expectation, schema, state).map(|(expr, _)| expr)).collect()
}

impl RowRules {
    pub(crate) fn new(rules: Vec<(Expectation, Arc<dyn PhysicalExpr>)>) -> Self {
        Self { rules }
    }

    /// Each with its condition over the columns of the stage's table.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &(Expectation, Arc<dyn PhysicalExpr>)> {
        self.rules.iter()
    }

    pub(crate) fn results(&self, failed: &[u64]) -> Vec<ExpectationResult> {
        self.rules
            .iter()
            .zip(failed)
            .map(|((expectation, _), failed)| ExpectationResult {
                name: expectation.name.clone(),
                severity: expectation.severity,
                condition: expectation.condition.clone(),
                failed_rows: *failed,
            })
            .collect()
    }

    pub(crate) fn len(&self) -> usize {
        self.rules.len()
    }

    /// Judges a batch and adds to `failed`, one count a rule.
    pub(crate) fn judge(&self, batch: &RecordBatch, failed: &mut [u64]) -> Result<Judged, DataFusionError> {
        let mut reasons: Option<Vec<Vec<&str>>> = None;
        for ((expectation, expr), failed) in self.rules.iter().zip(failed) {
            let value = expr.evaluate(batch)?.into_array(batch.num_rows())?;
            let met = as_boolean_array(&value)?;
            let broken = met.len() - met.null_count() - met.true_count();
            if broken == 0 {
                continue;
            }
            *failed += broken as u64;
            if expectation.severity == Severity::Quarantine {
                let reasons = reasons.get_or_insert_with(|| vec![Vec::new(); batch.num_rows()]);
                for (row, reasons) in reasons.iter_mut().enumerate() {
                    if met.is_valid(row) && !met.value(row) {
                        reasons.push(&expectation.name);
                    }
                }
            }
        }
        let Some(reasons) = reasons else { return Ok(Judged { kept: batch.clone(), refused: None }) };
        let refuse: BooleanArray = reasons.iter().map(|reasons| Some(!reasons.is_empty())).collect();
        let keep: BooleanArray = reasons.iter().map(|reasons| Some(reasons.is_empty())).collect();
        let mut texts = StringBuilder::new();
        for reasons in reasons.iter().filter(|reasons| !reasons.is_empty()) {
            texts.append_value(reasons.join(", "));
        }
        Ok(Judged {
            kept: filter_record_batch(batch, &keep)?,
            refused: Some((filter_record_batch(batch, &refuse)?, texts.finish())),
        })
    }
}

/// The columns of a stage's table in `quarantine`: its own, and the names of the expectations each row failed.
pub(crate) fn quarantine_schema(schema: &Schema) -> SchemaRef {
    let fields: Vec<_> = schema
        .fields()
        .iter()
        .filter(|field| field.name() != holdfast_types::CUSTOMER_BUCKET)
        .cloned()
        .chain(std::iter::once(Arc::new(
            arrow::datatypes::Field::new("_expectations", DataType::Utf8, true).with_metadata(
                [(
                    holdfast_types::COMMENT_KEY.to_owned(),
                    "Names of the expectations that the row did not meet".to_owned(),
                )]
                .into(),
            ),
        )))
        .collect();
    Arc::new(Schema::new(fields))
}
